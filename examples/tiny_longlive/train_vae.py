"""Phase 1: the VAE, on crops and then on whole frames, and the statistics of its latents.

python -m examples.tiny_longlive.train_vae --out runs/tiny --seconds 500
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from examples.tiny_longlive import data
from examples.tiny_longlive.model import read_vae, tiny_longlive, write_vae
from examples.tiny_longlive.progress import Progress, add_arguments, part_seed
from examples.tiny_longlive.replicas import Replicas, train_together
from examples.tiny_longlive.sheets import write_sheet
from examples.tiny_longlive.steps import Steps, gradients, own_stream
from examples.tiny_longlive.weights import Masters, rate_scale
from llvq.models.vae import WanVae
from llvq.models.vae_causal import StartState
from llvq.quality.similarity import similarity

FRAMES = 13
RATE = 6e-4  # at 2e-3, with Adam, nothing is learned until the rate has come down
CROP = 128
WHOLE_FROM = 0.7  # of the training: whole frames, since the middle attends over all of one
KL, DETAIL = 3e-4, 1.0
LATENT_NOISE = 0.1  # the decoder must bear a denoiser that is not exact
STD_FLOOR = 0.4  # of the mean deviation: a channel that says nothing is not blown up
MAX_SECONDS = 60.0
CLIPS_PER_CALL = 64
HELD_OUT_SEED = 10_000_000


class Clips:
    """Videos of FRAMES frames in uint8 on the device, of which steps take crops."""

    def __init__(self, count: int, seed: int, device: str, frames: int = FRAMES) -> None:
        self.device, self.frames, self.random = device, frames, Random(seed)
        calls = range(0, count, CLIPS_PER_CALL)
        self.pixels = torch.cat([self._drawn(min(CLIPS_PER_CALL, count - i)) for i in calls])

    def renew(self, count: int) -> None:
        """Replace `count` clips that follow each other."""
        at = self.random.randrange(len(self.pixels) - count + 1)
        self.pixels[at : at + count] = self._drawn(count)

    def crops(self, count: int, side: int) -> Tensor:
        """Pixels [count, 3, frames, side, side] in [-1, 1], of random clips, all at one place."""
        chosen = torch.tensor(self.random.choices(range(len(self.pixels)), k=count))
        left, top = (self.random.randint(0, data.SIZE - side) for _ in "xy")
        window = self.pixels[chosen.to(self.device), ..., top : top + side, left : left + side]
        return window.transpose(1, 2).float() / 127.5 - 1

    def _drawn(self, count: int) -> Tensor:
        """uint8 [count, frames, 3, H, W]; every fourth clip has a cut, to its neighbour's shot."""
        scenes = data.batch([data.sample_scene(self.random) for _ in range(count)], self.device)
        starts = [self.random.randrange(int(MAX_SECONDS * data.FPS)) for _ in range(count)]
        times = data.frame_times(torch.tensor(starts, device=self.device), self.frames)
        video = data.paint(scenes, times)
        cut = 1 + 4 * self.random.randrange(self.frames // 4)
        video[::4, cut:] = video.roll(1, 0)[::4, cut:]
        return ((video + 1) * 127.5).round().to(torch.uint8)


def vae_loss(vae: WanVae, video: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and its L1 part.

    A posterior of fixed deviation: the encoder must keep what matters above LATENT_NOISE.
    """
    dtype = next(vae.parameters()).dtype
    latent = vae._encode(video.to(dtype), StartState(), first=True)
    noisy = latent + LATENT_NOISE * torch.randn_like(latent)
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
    clips: Clips,
    steps: Steps,
    progress: Progress,
    save: Callable[[], None],
    *,
    batch: int,
    rate: float = RATE,
    crop: int = CROP,
    renew_every: int = 20,
) -> None:
    """`save` is called with the mean of the weights. Whole frames are fewer at once."""
    masters = Masters(
        [vae], rate=rate, muon=True, betas=(0.9, 0.98), ema=0.998, replicas=progress.replicas
    )
    going = True
    while going:
        if progress.step % renew_every == renew_every - 1:
            clips.renew(min(CLIPS_PER_CALL, len(clips.pixels)))
        whole = progress.fraction > WHOLE_FROM
        count, side = (max(batch // 4, 1), data.SIZE) if whole else (batch, crop)
        video = clips.crops(count, side)
        loss, error = steps(video.shape, (video,), partial(gradients, partial(vae_loss, vae)))
        norm = masters.step(rate_scale(progress.fraction, progress.local))
        going = progress.advance(100, loss=loss, l1=error, grad=norm)
        if progress.save_is_due() or not going:
            masters.use_mean()
            if progress.replicas.is_first:
                save()
            masters.use_masters()
    masters.use_mean()


@torch.no_grad()
def report(vae: WanVae, video: Tensor, folder: Path, progress: Progress) -> None:
    """Weights, statistics, and PSNR and SSIM of `video` [clips, 3, T, H, W] with a sheet of it."""
    dtype = next(vae.parameters()).dtype
    mean, std = statistics(vae, list(video.split(8)))
    write_vae(folder, vae, mean, std)
    latents = [vae._encode(part.to(dtype), StartState(), first=True) for part in video.split(8)]
    out = torch.cat([vae._decode(z, StartState(), first=True) for z in latents])
    out = out.float().clamp(-1, 1)
    error = ((out - video).square().mean((1, 2, 3, 4)) / 4).cpu()
    frames = [((x[:8, :, 5] + 1) * 127.5).round().byte().movedim(1, -1).cpu() for x in (video, out)]
    progress.note(
        psnr_db=round(float(-10 * error.mean().log10()), 2),
        worst_clip_db=round(float(-10 * error.max().log10()), 2),
        ssim=round(float(similarity(*frames).ssim.mean()), 4),
        std=[round(value, 3) for value in std.tolist()],
    )
    pairs = [clip[:, ::3].transpose(0, 1) for i in range(6) for clip in (video[i], out[i])]
    write_sheet(folder / f"vae-part{progress.part[0]}.png", pairs, side=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, seconds=500)
    parser.add_argument("--batch", type=int, default=32, help="crops per step")
    parser.add_argument("--clips", type=int, default=4096, help="held at once: 2.6 MB each")
    parser.add_argument("--graphs", action="store_true", help="replay steps as CUDA graphs")
    train_together(train_vae, parser.parse_args())


def train_vae(args: argparse.Namespace, replicas: Replicas) -> None:
    seed = part_seed(args)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True
    config = tiny_longlive()
    assert config.vae is not None
    progress = Progress(args.out / "vae.jsonl", seconds=args.seconds, steps=args.steps,
                        part=args.part, replicas=replicas)  # fmt: skip
    # Statistics are those of the latents before they are normalised: of a VAE without any.
    vae = WanVae(config.vae)
    if args.part[0] > 1:
        vae.load_state_dict(read_vae(args.out, config).state_dict())
    vae = vae.to(args.device, torch.bfloat16)
    torch.manual_seed(replicas.seed(seed))
    with own_stream(args.device):
        tests = Clips(64, HELD_OUT_SEED, args.device).crops(64, data.SIZE)
        clips = Clips(args.clips, replicas.seed(seed), args.device)
        progress.note(clips=args.clips)
        save = partial(report, vae, tests, args.out, progress)
        train(vae, clips, Steps(graphs=args.graphs), progress, save, batch=args.batch)
    progress.note(done=True)


if __name__ == "__main__":
    main()
