"""Flow matching of the denoiser, and the help that it gets to find out where a token is.

Shapes: B clips, m noisy chunks, N tokens per chunk, E channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.tiny_longlive.layouts import Layout
from examples.tiny_longlive.teacher_forcing import TeacherForcing
from llvq.models.config import ModelConfig
from llvq.models.text import TextEncoder

HISTORY_NOISE = 0.3  # most noise on clean chunks, so that a rollout's small errors do not add up
WORD_DROP, PROMPT_DROP = 0.02, 0.08
UNKNOWN = 2  # the token for it
PLACES_DEPTH, PLACES_WEIGHT = 2, 0.1


class Places(nn.Module):
    """Guesses from a token's activations where it is: frame of the chunk, row and column.

    Rotary positions are relative, so tokens of pure noise all look alike: where the frame ends must
    be found out by comparing neighbours, which the flow loss alone teaches slowly. Trained beside
    the denoiser, and then thrown away.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _, ph, pw = config.dit.patch_size
        rows, columns = config.latent_hw[0] // ph, config.latent_hw[1] // pw
        self.sizes = (config.stream.frames_per_chunk, rows, columns)
        self.guess = nn.Linear(config.dit.dim, sum(self.sizes))
        nn.init.zeros_(self.guess.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Cross-entropy [B, m] of the three guesses, from [B, m * N, E]."""
        hidden = F.layer_norm(hidden, hidden.shape[-1:])
        grid = torch.meshgrid(*(torch.arange(n, device=hidden.device) for n in self.sizes),
                              indexing="ij")  # fmt: skip
        guesses = self.guess(hidden).float().split(self.sizes, dim=-1)
        losses = []
        for guess, axis in zip(guesses, grid, strict=True):
            scores = guess.log_softmax(-1).unflatten(1, (-1, axis.numel()))
            right = axis.flatten()[:, None] == torch.arange(guess.shape[-1], device=axis.device)
            losses.append(-(scores * right).sum(-1).mean(-1))
        return torch.stack(losses).sum(0)


@dataclass(frozen=True)
class Denoiser:
    """What phase 2 trains."""

    forcing: TeacherForcing
    text: TextEncoder
    places: Places

    @property
    def modules(self) -> list[nn.Module]:
        return [self.forcing.dit, self.text, self.places]


def flow_loss(
    model: Denoiser,
    layout: Layout,
    shift: float,
    copies: int,
    latents: Tensor,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is trained; the mean squared error of the velocity in it; the error of `Places`.

    Every trained chunk is there `copies` times, each at its own noise level.
    """
    x0 = latents[:, layout.given :].repeat(1, copies, 1, 1, 1, 1)
    sigma, timestep = noise_levels(x0.shape[:2], shift, x0.device)
    noise = torch.randn_like(x0)
    level = sigma[:, :, None, None, None, None]
    noisy = ((1 - level) * x0.float() + level * noise.float()).to(x0.dtype)
    embeds = embed(model.text, drop_words(ids), mask, layout)
    velocity, hidden = model.forcing.with_hidden(
        corrupt(latents), noisy, timestep, embeds, layout, positions, depth=PLACES_DEPTH
    )
    error = (velocity.float() - (noise.float() - x0.float())).square().mean()
    # The noisier, the less else says where a token is.
    places = (model.places(hidden) * sigma).mean()
    return error + PLACES_WEIGHT * places, error, places


def places_loss(
    model: Denoiser, layout: Layout, latents: Tensor, ids: Tensor, mask: Tensor, positions: Tensor
) -> tuple[Tensor]:
    """The error of `Places` on pure noise: taught alone, it is learned in some hundred steps."""
    noise = torch.randn_like(latents[:, layout.given :])
    timestep = torch.full(noise.shape[:2], 999.0, device=noise.device)
    embeds = embed(model.text, ids, mask, layout)
    _, hidden = model.forcing.with_hidden(
        latents, noise, timestep, embeds, layout, positions, depth=PLACES_DEPTH
    )
    return (model.places(hidden).mean(),)


def noise_levels(
    shape: tuple[int, ...], shift: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """sigma and whole timesteps, more of them at high noise, as the sampler's schedule."""
    u = torch.rand(shape, device=device)
    sigma = shift * u / (1 + (shift - 1) * u)
    return sigma, (sigma * 1000).floor()


def corrupt(clean: Tensor) -> Tensor:
    """Half of the chunks with up to HISTORY_NOISE added; the model is told that they are clean."""
    shape = (*clean.shape[:2], 1, 1, 1, 1)
    level = torch.rand(shape, device=clean.device) * HISTORY_NOISE
    level = level * (torch.rand(shape, device=clean.device) < 0.5)
    return clean + (level * torch.randn_like(clean)).to(clean.dtype)


def drop_words(ids: Tensor) -> Tensor:
    """A few words made unknown, for prompts with words that the model never saw, and a few whole
    prompts, for `no_words`. All prompts of a clip go together."""
    word = torch.rand(ids.shape, device=ids.device) < WORD_DROP
    whole = torch.rand((len(ids), *(1,) * (ids.ndim - 1)), device=ids.device) < PROMPT_DROP
    return ids.masked_fill((word | whole) & (ids > UNKNOWN), UNKNOWN)


def no_words(ids: Tensor) -> Tensor:
    """Prompts of which only the length is left: what guidance leads away from."""
    return ids.masked_fill(ids > UNKNOWN, UNKNOWN)


def embed(text: TextEncoder, ids: Tensor, mask: Tensor, layout: Layout) -> Tensor:
    """[B, 3, X] tokens to embeddings [B, prompts of the layout, X, text_dim]."""
    used = max(layout.prompts) + 1
    ids, mask = ids[:, :used], mask[:, :used]
    return text(ids.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, ids.shape[:2])
