"""Small decoders as programs of two stages, lowered as far as a test wants, played on latents."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from llvq.capture import capture
from llvq.compiler import stages_of, with_weights
from llvq.models.config import VaeConfig
from llvq.models.vae import WanVae, decode_state_shapes
from llvq.passes.books import Book, refuse_misses
from llvq.passes.canonicalize import canonicalize
from llvq.passes.convs_to_fp8 import convs_to_fp8
from llvq.passes.lowering import STREAMING
from llvq.passes.raise_attention import raise_attention
from llvq.passes.rules import Context
from llvq.passes.spec import verify
from llvq.passes.split_stages import split_stages
from llvq.program import Level, LoopState, Program
from llvq.recipe import NVFP4, DecodeRecipe
from llvq.runtime.executable import DECODING
from llvq.sources import DictSource

STATISTICS = {"latent_mean": (0.1, -0.2, 0.3), "latent_std": (1.2, 0.8, 1.0)}
# As Wan2.2 is: shortcuts around changes of resolution, pixels packed. Time doubles once.
PACKED = VaeConfig(
    dec_dim=8,
    z_dim=3,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(False, True),
    **STATISTICS,  # type: ignore[arg-type]
)
# As Wan2.1 is: neither, and the way up halves the channels.
PLAIN = replace(PACKED, patch_size=1, is_residual=False)
# Time doubles twice, so that frames go in at three rates.
TWICE = replace(PACKED, temporal_downsample=(True, True))
CONFIGS = {"packed": PACKED, "plain": PLAIN, "twice": TWICE}
# Twice the channels, in bf16: pixels of the last ring are as long as those in FP8 of another.
WIDE = {"wide": replace(PACKED, dec_dim=16)}
HW = (3, 5)


class BothStages(nn.Module):
    """The decoder as the first call of a video has it, and as all later ones do."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.vae = WanVae(config)

    def forward(
        self, latent: Tensor, decode_frames: Tensor, decode_state: list[Tensor]
    ) -> dict[str, Any]:
        x = latent.index_select(2, decode_frames)
        outputs: dict[str, Any] = {"velocity": latent * 2}
        for name, first in zip(DECODING, (True, False), strict=True):
            frames, state = self.vae.decode(x, decode_state, first=first)
            outputs[name] = {"frames": frames, "state": state}
        return outputs


def weights_of(config: VaeConfig) -> DictSource:
    random = torch.Generator().manual_seed(7)
    model = BothStages(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    # Pixels that are mostly inside [-1, 1].
    tensors = {
        name: torch.randn(shape, generator=random)
        * (0.1 if ".head.2." in name else max(shape[1:], default=1) ** -0.5)
        for name, shape in shapes.items()
    }
    constants = {
        "vae.latent_mean": model.vae.latent_mean,
        "vae.latent_std": model.vae.latent_std,
    }
    return DictSource(tensors | constants)


@cache
def _staged(name: str, latents: int, conv: str) -> Program:
    config, dtype = (CONFIGS | WIDE)[name], torch.bfloat16 if name in WIDE else torch.float32
    shapes = decode_state_shapes(config, HW)
    inputs = {
        "latent": torch.empty(1, config.z_dim, 4, *HW, dtype=dtype),
        "decode_frames": torch.empty(latents, dtype=torch.int64),
        "decode_state": [torch.empty(shape, dtype=dtype) for shape in shapes],
    }
    loops = [
        LoopState(f"decode_state.{i}", f"{stage}.state.{i}")
        for stage in DECODING
        for i in range(len(shapes))
    ]
    program = capture(
        BothStages(config).to(dtype),
        inputs,
        rates={"latent": "call", "decode_frames": "emit", "decode_state": "emit"},
        loop_states=loops,
    )
    recipe = replace(NVFP4, decode=DecodeRecipe(latents, conv))
    for step in (canonicalize, raise_attention, convs_to_fp8, split_stages):
        refuse_misses(step.__name__, step(program, Context(recipe)), tolerable=False)
    program.level = Level.STAGED
    verify(program)
    return program


def staged(name: str, latents: int = 1, conv: str = "none") -> Program:
    """A decoder of CONFIGS in fp32, or WIDE, that takes so many latents per call; a copy for each
    caller."""
    return _staged(name, latents, conv).copy()


def stream(program: Program, upto: str = "share-rings") -> list[Book]:
    """Run the passes that stream a decoder, up to the one of that name; gives its books."""
    for step in STREAMING:
        books = step.function(program, Context(NVFP4))
        refuse_misses(step.name, books, tolerable=False)
        verify(program)
        if step.name == upto:
            return books
    raise ValueError(upto)


@cache
def _streamed(name: str, latents: int, conv: str, upto: str) -> Program:
    program = staged(name, latents, conv)
    stream(program, upto)
    return program


def streamed(name: str, latents: int = 1, conv: str = "none", upto: str = "share-rings") -> Program:
    """A decoder of CONFIGS after the passes up to that one; a copy for each caller."""
    return _streamed(name, latents, conv, upto).copy()


def random_latents(count: int, seed: int = 0) -> Tensor:
    """[1, z, count, h, w]."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(1, PACKED.z_dim, count, *HW, generator=random)


def play(program: Program, source: DictSource, latents: Tensor) -> Tensor:
    """Decode a video, call by call: pixels [1, 3, T, H, W], or frames uint8 where they are such."""
    stages = with_weights(stages_of(program), program.weights, source)
    held = {spec.name: spec for name in DECODING for spec in stages[name].inputs}
    values = {
        name: torch.zeros(spec.sizes).to(spec.dtype)
        for name, spec in held.items()
        if name.startswith("decode_state.")
    }
    per_call, made = held["decode_frames"].sizes[0], list[Tensor]()
    for part in latents.split(held["latent"].sizes[2], dim=2):
        for places in torch.arange(part.shape[2]).split(per_call):
            decoded = torch.tensor(per_call * len(made))
            name = DECODING[min(len(made), 1)]
            given = {
                "latent": part.to(held["latent"].dtype),
                "decode_frames": places,
                "decoded": decoded,
            }
            results = stages[name]({**values, **given})
            loops = {loop.output: loop.input for loop in program.loop_states}
            values |= {loops[n]: t for n, t in results.items() if n in loops}
            made.append(results[f"{name}.frames"])
    return torch.cat(made, dim=0 if made[0].dtype == torch.uint8 else 2)


def shown(pixels: Tensor) -> Tensor:
    """Pixels [1, 3, T, H, W] in steps of 255, [T, H, W, 3], not rounded."""
    return (pixels[0].movedim(0, -1).clamp(-1, 1) * 0.5 + 0.5) * 255


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """Of fp32 pixels that are summed in another order; of frames, that each is the nearest step."""
    if found.dtype == torch.uint8:
        assert (found - shown(wanted)).abs().amax() < 0.5 + 1e-3
    else:
        assert (found - wanted).abs().amax() < 1e-5 * wanted.abs().amax()


def calls(program: Program, stage: str, op: Any) -> list[torch.fx.Node]:
    """The calls of an op in a stage."""
    nodes = program.graphs[stage].graph.nodes
    return [node for node in nodes if node.op == "call_function" and node.target == op]
