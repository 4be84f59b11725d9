"""The parts of a video model beside the chunk: prompt to embedding, image to first latent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llvq.capture import capture
from llvq.models.config import ModelConfig
from llvq.models.text import TextEncoder
from llvq.models.vae import WanVae, encode_state_shapes
from llvq.program import Program


class PromptEncoder(nn.Module):
    """Token ids and mask [1, X] -> prompt_embeds [1, X, text_dim]. Weights: `text.*`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.text is not None
        self.text = TextEncoder(config.text)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"prompt_embeds": self.text(ids, mask)}


class ImageEncoder(nn.Module):
    """One image [1, 3, 1, H, W] in [-1, 1] -> latent [1, 1, z, h, w]. Weights: `vae.*`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vae is not None
        self.vae = WanVae(config.vae)
        self.shapes = encode_state_shapes(config.vae, _pixels(config))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        state = [image.new_zeros(shape) for shape in self.shapes]
        latent, _ = self.vae.encode(image, state, first=True)
        return {"image_latent": latent.transpose(1, 2)}


def capture_prompt_encoder(config: ModelConfig, dtype: torch.dtype) -> Program:
    tokens = torch.empty(1, config.dit.text_len, dtype=torch.int64, device="meta")
    with torch.device("meta"):
        model = PromptEncoder(config).to(dtype)
    inputs = {"ids": tokens, "mask": tokens}
    return capture(model, inputs, rates={"ids": "prompt", "mask": "prompt"})


def capture_image_encoder(config: ModelConfig, dtype: torch.dtype) -> Program:
    image = torch.empty(1, 3, 1, *_pixels(config), dtype=dtype, device="meta")
    with torch.device("meta"):
        model = ImageEncoder(config).to(dtype)
    set_latent_statistics(model.vae, config, dtype)
    return capture(model, {"image": image}, rates={"image": "prompt"})


def set_latent_statistics(vae: WanVae, config: ModelConfig, dtype: torch.dtype) -> None:
    """Make the latent statistics real: they come from the configuration, not from a file."""
    assert config.vae is not None
    for name in ("latent_mean", "latent_std"):
        value = torch.tensor(getattr(config.vae, name), dtype=dtype)
        setattr(vae, name, value.view(getattr(vae, name).shape))


def _pixels(config: ModelConfig) -> tuple[int, int]:
    assert config.vae is not None
    height, width = config.latent_hw
    return height * config.vae.spatial_stride, width * config.vae.spatial_stride
