"""The whole system in plain PyTorch, bf16: denoiser, then VAE, one chunk after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.denoise_models import Plain, random_inputs
from llvq.models.config import ModelConfig
from llvq.models.vae import WanVae, decode_state_shapes
from llvq.runtime.sampler import Schedule, schedule, update
from llvq.runtime.streams import upload
from llvq.runtime.video import frames_to_uint8


@dataclass(frozen=True)
class PlainChunk:
    """Frames uint8 [T, H, W, 3] in the memory of the host."""

    frames: Tensor


class PlainDecoder:
    """The published VAE, eager, channels last: what cuDNN is fastest with."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], device: torch.device, calls: int
    ) -> None:
        """`calls`: latents per call."""
        assert config.vae is not None, "a model without VAE"
        self.device, self.calls = device, calls
        with torch.device("meta"):
            self.vae = WanVae(config.vae)
        own = {name: t for name, t in weights.items() if name.startswith("vae.")}
        laid = {name.removeprefix("vae."): _channels_last(t) for name, t in own.items()}
        self.dtype = next(iter(laid.values())).dtype
        self.vae.load_state_dict(laid, assign=True)
        self.vae.requires_grad_(False)
        for name in ("latent_mean", "latent_std"):
            values = torch.tensor(getattr(config.vae, name), dtype=self.dtype, device=device)
            setattr(self.vae, name, values.view(-1, 1, 1, 1))
        self.shapes = decode_state_shapes(config.vae, config.latent_hw)
        self.reset()

    def reset(self) -> None:
        """Begin a video."""
        like = {"dtype": self.dtype, "device": self.device}
        self.state = [torch.zeros(shape, **like) for shape in self.shapes]
        self.first = True

    def pixels(self, latent: Tensor) -> Iterator[Tensor]:
        """[1, 3, T, H, W] of each call for the latents of a chunk [1, C, channels, h, w]."""
        with torch.inference_mode():
            for part in latent.movedim(1, 2).split(self.calls, dim=2):
                laid = part.contiguous(memory_format=torch.channels_last_3d)
                pixels, self.state = self.vae.decode(laid, self.state, first=self.first)
                self.first = False
                yield pixels

    def frames(self, latent: Tensor) -> Tensor:
        """uint8 [T, H, W, 3] on the device."""
        return torch.cat([frames_to_uint8(pixels) for pixels in self.pixels(latent)])


class PlainVideo(Plain):
    """Chunks of one video; as many `steps` of the model's own sampler as a session makes."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        device: torch.device,
        *,
        calls: int,
        seed: int,
    ) -> None:
        super().__init__(config, weights, random_inputs(config, device, seed), device)
        self.decoder = PlainDecoder(config, weights, device, calls)
        self.random = torch.Generator(device).manual_seed(seed)

    def chunks(self, count: int, steps: int) -> Iterator[PlainChunk]:
        stream = self.config.stream
        plan = schedule(steps, stream.shift, stream.sampler, stream.timesteps)
        empty = self.keys[0][:, :0]
        self.keys, self.values = ([empty] * self.config.dit.num_layers for _ in range(2))
        self.decoder.reset()
        for index in range(count):
            latent = self._denoise(index, plan)
            self._remember(index, latent)
            yield PlainChunk(self.decoder.frames(latent).cpu())

    def _denoise(self, index: int, plan: Schedule) -> Tensor:
        noises = [torch.randn_like(self.given.latents[0]) for _ in range(plan.draws)]
        latent, velocities = noises[0], []
        for step, timestep in enumerate(plan.timesteps):
            velocities.append(self._call(index, latent, timestep)[0])
            latent = update(plan, step, latent, noises, velocities)
        return latent

    def _remember(self, index: int, latent: Tensor) -> None:
        """K and V of a finished chunk join the window; the oldest leaves it, but for the sink."""
        _, keys, values = self._call(index, latent, 0.0)
        self.keys = [self._rolled(*both) for both in zip(self.keys, keys, strict=True)]
        self.values = [self._rolled(*both) for both in zip(self.values, values, strict=True)]

    def _rolled(self, held: Tensor, new: Tensor) -> Tensor:
        config = self.config
        tokens, stream = config.chunk_tokens, config.stream
        joined = torch.cat([held, new], 1)
        if joined.shape[1] < tokens * stream.window_chunks:
            return joined
        sink = tokens * stream.sink_chunks
        return torch.cat([joined[:, :sink], joined[:, sink + tokens :]], 1)


def _channels_last(weight: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    form = formats.get(weight.dim())
    return weight if form is None else weight.contiguous(memory_format=form)


def first_latents(config: ModelConfig, device: torch.device, seed: int) -> Tensor:
    """Latents [1, C, channels, h, w] of a chunk that nobody denoised."""
    random = torch.Generator().manual_seed(seed)
    shape = (1, config.stream.frames_per_chunk, config.dit.in_dim, *config.latent_hw)
    return upload(torch.randn(shape, generator=random).to(torch.bfloat16), device)
