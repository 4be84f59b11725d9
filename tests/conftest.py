"""One tiny model for every test that needs one: captured once, copied per test."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import llvq.calibrate.rollout as calibrate
from llvq.backends.implementations import TABLES
from llvq.compiler import Compiled, compile_model, instantiate
from llvq.models.chunk import capture_chunk, meta_model
from llvq.models.config import DitConfig, ModelConfig, StreamConfig, TextConfig, VaeConfig
from llvq.models.dit import CausalWanDit
from llvq.models.text import TextEncoder
from llvq.program import Program
from llvq.recipe import BF16, NVFP4
from llvq.runtime.executable import Executable
from llvq.sources import DictSource


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write golden texts anew")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are three times slower on two threads, and worse on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_seed() -> None:
    """What a test draws is its own, not what the tests before it have left."""
    torch.manual_seed(0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell makes what it starts in the background ignore SIGINT, and its children with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class EagerRollout(calibrate.EagerRollout):
    """A video by the eager model with `weights`; every call leaves its velocity and timesteps."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        model = CausalWanDit(config.dit, relative_rope=config.stream.relative_rope)
        model.load_state_dict(dict(weights))
        super().__init__(model, config.stream)
        self.velocities: list[Tensor] = []
        self.timesteps: list[Tensor] = []
        model.register_forward_hook(self._keep)

    def _keep(self, model: CausalWanDit, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        self.velocities.append(outputs[0])
        self.timesteps.append(inputs[1])

    def run(
        self, index: int, noise: Tensor, prompt: Tensor, *, scene_cut: bool, image: Tensor | None
    ) -> Tensor:
        """x0 of one chunk; arguments as those of `Denoiser.run`."""
        return super().run(index, (noise,), prompt, scene_cut=scene_cut, image=image)


@pytest.fixture(scope="session")
def eager_rollout() -> type[EagerRollout]:
    return EagerRollout


@pytest.fixture
def toy_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What targets run as kernels is in tests/backends/toy_ops.py: one, and it compiles fast."""
    monkeypatch.setitem(TABLES, "triton", "tests.backends.toy_ops")


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Two layers, 12 tokens per chunk, a window of four chunks; no VAE, no text encoder."""
    dit = DitConfig(
        dim=64,
        ffn_dim=128,
        num_heads=2,
        num_layers=2,
        in_dim=8,
        out_dim=8,
        text_dim=32,
        text_len=5,
        freq_dim=32,
    )
    stream = StreamConfig(frames_per_chunk=2, window_frames=8, sink_frames=2)
    return ModelConfig(dit=dit, stream=stream, vae=None, text=None, latent_hw=(4, 6))


@pytest.fixture(scope="session")
def _captured(tiny_config: ModelConfig) -> Program:
    return capture_chunk(tiny_config)


@pytest.fixture
def program(_captured: Program) -> Program:
    """The tiny model in bf16 at level `captured`; every test has its own copy."""
    return _captured.copy()


@pytest.fixture(scope="session")
def compiled_nvfp4(tiny_config: ModelConfig) -> Compiled:
    return compile_model(tiny_config, NVFP4)


@pytest.fixture(scope="session")
def compiled_fp32(tiny_config: ModelConfig) -> Compiled:
    """Rewritten through every pass, but nothing rounded: no NVFP4, pages in fp32."""
    return compile_model(tiny_config, replace(BF16, dtype="float32"))


@pytest.fixture(scope="session")
def make_weights() -> Callable[[ModelConfig], DictSource]:
    """Random fp32 weights of a model, the same ones every time, large enough to matter."""

    def make(config: ModelConfig) -> DictSource:
        generator = torch.Generator().manual_seed(3)
        shapes = {
            name: t.shape for name, t in meta_model(config, torch.float32).state_dict().items()
        }
        return DictSource(
            {
                name: torch.randn(shape, generator=generator) * max(shape[1:], default=1) ** -0.5
                for name, shape in shapes.items()
            }
        )

    return make


@pytest.fixture(scope="session")
def make_whole_weights() -> Callable[[ModelConfig], DictSource]:
    """Random weights of denoiser, VAE and text encoder under the names of the captured model."""

    def make(config: ModelConfig) -> DictSource:
        generator = torch.Generator().manual_seed(3)
        with torch.device("meta"):
            text = {f"text.{n}": t for n, t in TextEncoder(config.text).state_dict().items()}
        tensors = meta_model(config, torch.float32).state_dict() | text
        return DictSource(
            {
                name: torch.randn(t.shape, generator=generator)
                * max(t.shape[1:], default=1) ** -0.5
                for name, t in tensors.items()
            }
        )

    return make


@pytest.fixture(scope="session")
def whole_config(tiny_config: ModelConfig) -> ModelConfig:
    """The tiny model with a text encoder of one layer, and a VAE of three levels instead of four:
    a third fewer nodes to compile. The golden VAE of tests/runtime/test_decoder.py has all four."""
    vae = VaeConfig(
        dim=8,
        dec_dim=8,
        z_dim=8,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        latent_mean=(0.0,) * 8,
        latent_std=(1.0,) * 8,
    )
    text = TextConfig(vocab_size=40, dim=32, attn_dim=32, ffn_dim=64, num_heads=2, num_layers=1)
    return replace(tiny_config, vae=vae, text=text)


@pytest.fixture(scope="session")
def compiled_whole(whole_config: ModelConfig) -> Compiled:
    """Denoiser, VAE and text encoder in NVFP4, compiled once."""
    return compile_model(whole_config, NVFP4)


@pytest.fixture(scope="session")
def executable(
    whole_config: ModelConfig,
    compiled_whole: Compiled,
    make_whole_weights: Callable[[ModelConfig], DictSource],
) -> Executable:
    return instantiate(compiled_whole, make_whole_weights(whole_config))
