"""Two forms of one denoiser, run on the same inputs: plain PyTorch in bf16, and compiled by llvq.

Both make their own history: a refresh of every chunk but the newest, whose velocity is compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.utils.deterministic
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llvq.bench.linears import distinct_calls
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit
from llvq.runtime.bind import op_of
from llvq.runtime.executable import Executable

# What a chunk is denoised at: one step of four, in the middle.
TIMESTEP = 750.0
# The fastest first, as measured on Hopper.
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Given:
    """Inputs of both: a latent per chunk of the window [1, C, channels, h, w], and the prompt."""

    latents: tuple[Tensor, ...]
    prompt: Tensor


def random_inputs(config: ModelConfig, device: torch.device, seed: int) -> Given:
    stream, dit = config.stream, config.dit
    random = torch.Generator(device).manual_seed(seed)
    like = {"generator": random, "device": device, "dtype": torch.bfloat16}
    shape = (1, stream.frames_per_chunk, dit.in_dim, *config.latent_hw)
    latents = tuple(torch.randn(shape, **like) for _ in range(stream.window_chunks))
    return Given(latents, torch.randn(1, dit.text_len, dit.text_dim, **like))


@contextmanager
def fastest_attention() -> Iterator[None]:
    with sdpa_kernel(ATTENTION, set_priority=True):
        yield


class Plain:
    """The model in PyTorch: eager, with the fastest attention that PyTorch has here."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], given: Given, device: torch.device
    ) -> None:
        self.config, self.given, self.device = config, given, device
        with torch.device("meta"):
            self.model = CausalWanDit(config.dit, relative_rope=config.stream.relative_rope)
        own = {n.removeprefix("dit."): t for n, t in weights.items() if n.startswith("dit.")}
        self.model.load_state_dict(own, assign=True)
        self.model.requires_grad_(False)
        dit = config.dit
        empty = torch.empty(1, 0, dit.num_heads, dit.head_dim, dtype=torch.bfloat16, device=device)
        self.keys, self.values = [empty] * dit.num_layers, [empty] * dit.num_layers
        self.written: list[tuple[Tensor, Tensor]] = []

    def fill(self) -> None:
        """The history of the newest chunk. `written` has K and V of the chunk before it."""
        for index, latent in enumerate(self.given.latents[:-1]):
            _, keys, values = self._call(index, latent, 0.0)
            self.written = list(zip(keys, values, strict=True))
            self.keys = [torch.cat(both, 1) for both in zip(self.keys, keys, strict=True)]
            self.values = [torch.cat(both, 1) for both in zip(self.values, values, strict=True)]

    def forward(self) -> Tensor:
        """The velocity of the newest chunk."""
        return self._call(len(self.given.latents) - 1, self.given.latents[-1], TIMESTEP)[0]

    def _call(
        self, index: int, latent: Tensor, timestep: float
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        stream = self.config.stream
        count = stream.frames_per_chunk
        positions = torch.arange(count, device=self.device).double() + index * count
        steps = torch.full((1, count), timestep, device=self.device)
        with torch.inference_mode(), fastest_attention():
            result: tuple[Tensor, list[Tensor], list[Tensor]] = self.model(
                latent, steps, positions, self.given.prompt, self.keys, self.values
            )
        return result


class Llvq:
    """The compiled stages, with pages of their own."""

    def __init__(self, model: Executable, given: Given) -> None:
        self.model, self.given = model, given
        facts = model.facts
        self.pages = {
            name: torch.zeros(shape, dtype=getattr(torch, dtype), device=model.device)
            for name, dtype, shape in facts.pages.tensors
        }
        self.condition = model.stage("condition")({"prompt_embeds": given.prompt})
        self.inputs: dict[str, Tensor] = {}
        self.written: list[tuple[Tensor, Tensor]] = []

    @property
    def page_bytes(self) -> int:
        return sum(page.nbytes for page in self.pages.values())

    @property
    def weight_bytes(self) -> int:
        held = {
            tensor.data_ptr(): tensor.nbytes
            for stage in self.model.stages.values()
            for tensor in stage.graph.buffers()
        }
        return sum(held.values())

    def fill(self) -> None:
        """The pages, and the inputs of the newest chunk. `written` as that of `Plain`."""
        table, chunks = self.model.facts.page_table, len(self.given.latents)
        stage = self.model.stage("refresh")
        for index, latent in enumerate(self.given.latents):
            table = table.begin(index)
            placement = table.placement
            assert placement is not None
            timestep = TIMESTEP if index == chunks - 1 else 0.0
            self.inputs = {
                **self.pages,
                **self.condition,
                **self._modulation(timestep),
                "positions": self._positions(index),
                "page_table": self._integers(placement.history),
                "slot": self._integers(placement.slot),
                "kept_slot": self._integers(placement.kept_slot),
                "latent": latent,
            }
            if index == chunks - 2:
                calls = distinct_calls(stage, self.inputs, lambda n: op_of(n) == "write_page")
                self.written = [(call.args[1], call.args[2]) for call in calls]
            elif index < chunks - 2:
                stage(self.inputs)
            table = table.commit(scene_cut=False)

    def forward(self) -> Tensor:
        """The velocity of the newest chunk."""
        return self.model.stage("denoise")(self.inputs)["velocity"]

    def _modulation(self, timestep: float) -> dict[str, Tensor]:
        count = self.model.facts.frames_per_chunk
        steps = torch.full((1, count), timestep, device=self.model.device)
        return self.model.stage("modulate")({"timestep": steps})

    def _positions(self, index: int) -> Tensor:
        count = self.model.facts.frames_per_chunk
        return torch.arange(count, device=self.model.device).double() + index * count

    def _integers(self, value: int | tuple[int, ...]) -> Tensor:
        return torch.tensor(value, dtype=torch.int64, device=self.model.device)


def poisoned(call: Callable[[], Tensor]) -> Tensor:
    """What a call gives where memory that it allocates holds NaN until it is written."""
    was = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.utils.deterministic.fill_uninitialized_memory = True
        torch.use_deterministic_algorithms(True, warn_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call().clone()
    finally:
        torch.use_deterministic_algorithms(was)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def relative_l2(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||; NaN where anything is."""
    difference = (found.double() - wanted.double()).norm()
    return float(difference / wanted.double().norm())
