"""The parts beside the chunk: what they are captured as, and what they compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llvq import graphs
from llvq.models.config import ModelConfig
from llvq.models.stages import (
    ImageEncoder,
    capture_image_encoder,
    capture_prompt_encoder,
    set_latent_statistics,
)
from llvq.models.text import TextEncoder
from llvq.models.vae import WanVae, encode_state_shapes
from llvq.program import Program
from llvq.sources import DictSource

MakeWeights = Callable[[ModelConfig], DictSource]


@pytest.fixture(scope="module")
def weights(whole_config: ModelConfig, make_whole_weights: MakeWeights) -> dict[str, torch.Tensor]:
    source = make_whole_weights(whole_config)
    return {name: source.read(name) for name in source.names()}


def run(program: Program, weights: dict[str, torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    graph = graphs.load(graphs.dump(program.graph), device="cpu")
    held = {**weights, **program.constants}
    graphs.attach(graph, {name: held[name] for name in graphs.weights(graph)})
    with torch.no_grad():
        (result,) = graph(*inputs)
    return result


def part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}


def test_prompts_become_embeddings(
    whole_config: ModelConfig, weights: dict[str, torch.Tensor]
) -> None:
    assert whole_config.text is not None
    program = capture_prompt_encoder(whole_config, torch.float32)
    length = whole_config.dit.text_len
    named = [(spec.name, spec.dtype, spec.shape, spec.rate) for spec in program.inputs]
    assert named == [(name, torch.int64, (1, length), "prompt") for name in ("ids", "mask")]
    assert program.outputs == ("prompt_embeds",) and not program.constants
    encoder = TextEncoder(whole_config.text)
    encoder.load_state_dict(part(weights, "text."))
    ids, mask = torch.arange(length)[None] + 3, (torch.arange(length) < 2)[None].long()
    with torch.no_grad():
        expected = encoder(ids, mask)
    torch.testing.assert_close(run(program, weights, ids, mask), expected)


def test_an_image_becomes_the_first_latent(
    whole_config: ModelConfig, weights: dict[str, torch.Tensor]
) -> None:
    """As the whole encoder gives it from a video of one frame, with time before channels."""
    assert whole_config.vae is not None
    program = capture_image_encoder(whole_config, torch.float32)
    (spec,) = program.inputs
    assert (spec.name, spec.shape, spec.rate) == ("image", (1, 3, 1, 32, 48), "prompt")
    assert program.outputs == ("image_latent",)
    vae = WanVae(whole_config.vae)
    vae.load_state_dict(part(weights, "vae."))
    image = torch.rand(spec.sizes, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state = [torch.zeros(s) for s in encode_state_shapes(whole_config.vae, (32, 48))]
    with torch.no_grad():
        expected, _ = vae.encode(image, state, first=True)
    found = run(program, weights, image)
    assert found.shape == (1, 1, whole_config.vae.z_dim, *whole_config.latent_hw)
    torch.testing.assert_close(found.transpose(1, 2), expected)


def test_statistics_of_the_configuration_travel_as_constants(whole_config: ModelConfig) -> None:
    """A model on meta has lost them, and no checkpoint of the VAE holds them."""
    assert whole_config.vae is not None
    with torch.device("meta"):
        model = ImageEncoder(whole_config)
    assert model.vae.latent_std.is_meta
    set_latent_statistics(model.vae, whole_config, torch.bfloat16)
    for name in ("latent_mean", "latent_std"):
        found = getattr(model.vae, name)
        assert found.dtype == torch.bfloat16 and found.shape == (whole_config.vae.z_dim, 1, 1, 1)
        assert torch.equal(
            found.flatten(), torch.tensor(getattr(whole_config.vae, name)).bfloat16()
        )
        assert f"vae.{name}" not in model.state_dict()
