"""Phase 1: the VAE, on crops and then on whole frames, and the statistics of its latents.

python -m examples.tiny_longlive.train_vae --out runs/tiny --seconds 420
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.tiny_longlive import data
from examples.tiny_longlive.model import tiny_longlive, write_vae
from examples.tiny_longlive.progress import Progress
from examples.tiny_longlive.sheets import write_sheet
from examples.tiny_longlive.weights import Masters, rate_scale
from llvq.models.vae import WanVae
from llvq.models.vae_causal import StartState

FRAMES = 13
RATE = 4e-4  # at 2e-3 nothing is learned until the rate has come down
CROP = 128
WHOLE_FROM = 0.7  # of the training: whole frames, since the middle attends over all of one
KL, DETAIL = 3e-4, 1.0
LATENT_NOISE = 0.1  # the decoder must bear a denoiser that is not exact
STD_FLOOR = 0.4  # of the mean deviation: a channel that says nothing is not blown up
MAX_SECONDS = 60.0


def clips(count: int, seed: int, device: str, *, crop: int | None, frames: int = FRAMES) -> Tensor:
    """Pixels [count, 3, frames, H, W]; every fourth clip has a cut."""
    random = Random(seed)
    scenes = data.batch([data.sample_scene(random) for _ in range(count)], device)
    starts = [random.randrange(int(MAX_SECONDS * data.FPS)) for _ in range(count)]
    times = data.frame_times(torch.tensor(starts, device=device), frames)
    side = crop or data.SIZE
    left, top = (random.randint(0, data.SIZE - side) for _ in "xy")
    video, _ = data.draw(scenes, times, (left, top, side, side))
    cut = 1 + 4 * random.randrange(frames // 4)
    # The other shot of a cut is a neighbour's.
    video[::4, cut:] = video.roll(1, 0)[::4, cut:]
    return video.transpose(1, 2)


def vae_loss(vae: WanVae, video: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and its L1 part. `noise` is shaped like the latents, standard normal.

    A posterior of fixed deviation: the encoder must keep what matters above LATENT_NOISE.
    """
    dtype = next(vae.parameters()).dtype
    latent = vae._encode(video.to(dtype), StartState(), first=True)
    noisy = latent + (LATENT_NOISE * noise).to(dtype)
    out = vae._decode(noisy, StartState(), first=True).float()
    error = (out - video).abs().mean()
    return error + DETAIL * edge_loss(out, video) + KL * 0.5 * latent.float().square().mean(), error


def edge_loss(out: Tensor, video: Tensor) -> Tensor:
    """L1 of the differences between neighbours in height, width and time."""
    difference = out - video
    loss = sum(difference.diff(dim=axis).abs().mean() for axis in (2, 3, 4))
    return torch.as_tensor(loss) / 3


@torch.no_grad()
def statistics(vae: WanVae, batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each latent channel."""
    dtype = next(vae.parameters()).dtype
    latents = [vae._encode(video.to(dtype), StartState(), first=True) for video in batches]
    channels = torch.cat([z.float().transpose(0, 1).flatten(1) for z in latents], dim=1)
    mean, std = channels.mean(1), channels.std(1)
    return mean, torch.maximum(std, STD_FLOOR * std.mean())


def train(
    vae: WanVae,
    masters: Masters,
    progress: Progress,
    *,
    seed: int,
    device: str,
    batch: int,
) -> None:
    torch.manual_seed(seed)
    going = True
    while going:
        whole = progress.fraction > WHOLE_FROM
        count = max(batch // 4, 1) if whole else batch
        video = clips(count, seed + progress.step, device, crop=None if whole else CROP)
        shape = (count, vae.config.z_dim, 1 + FRAMES // 4, *(n // 16 for n in video.shape[3:]))
        loss, error = vae_loss(vae, video, torch.randn(shape, device=device))
        loss.backward()
        norm = masters.step(rate_scale(progress.fraction))
        going = progress.advance(50, loss=loss.detach(), l1=error.detach(), grad=norm)
    masters.use_mean()


@torch.no_grad()
def report(vae: WanVae, folder: Path, progress: Progress, device: str) -> None:
    """Statistics, a sheet of originals above reconstructions, and their PSNR."""
    dtype = next(vae.parameters()).dtype
    batches = [clips(8, 10_000_000 + i, device, crop=None, frames=29) for i in range(8)]
    mean, std = statistics(vae, batches)
    video = batches[0]
    latent = vae._encode(video.to(dtype), StartState(), first=True)
    out = vae._decode(latent, StartState(), first=True).float().clamp(-1, 1)
    error = F.mse_loss(out, video) / 4
    progress.note(psnr_db=round(float(-10 * error.log10()), 2), std=std.tolist())
    write_vae(folder, vae, mean, std)
    frames = [0, 7, 14, 21, 28]
    pairs = [clip[:, frames].transpose(0, 1) for i in range(6) for clip in (video[i], out[i])]
    write_sheet(folder / "vae.png", pairs, side=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--steps", type=int, help="instead of seconds: exactly reproducible")
    parser.add_argument("--batch", type=int, default=8, help="crops per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    config = tiny_longlive().vae
    assert config is not None
    vae = WanVae(config).to(args.device, torch.bfloat16)
    torch.backends.cudnn.benchmark = True
    progress = Progress(args.out / "vae.jsonl", seconds=args.seconds, steps=args.steps)
    masters = Masters([vae], rate=RATE, betas=(0.9, 0.98), ema=0.995)
    train(vae, masters, progress, seed=args.seed, device=args.device, batch=args.batch)
    report(vae, args.out, progress, args.device)


if __name__ == "__main__":
    main()
