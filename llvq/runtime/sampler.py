"""The few-step samplers: UniPC of order 2 folded to constants, and re-noising.

Every update of UniPC (Zhao et al. 2023, "UniPC", data prediction, B(h) = e^h - 1) is linear
in the starting noise x_T and the velocities v_0 .. v_k, and x_T keeps the coefficient 1. So the
solver is run once on coefficients, and a step is x_{k+1} = x_T - sum_j c[k][j] v_j. No history of
data predictions, no solver state, and the result does not accumulate rounding of the steps.

Re-noising (Self-Forcing, LongLive-1) goes all the way to x0 in every step and mixes it with noise
that has not been seen before: x_{k+1} = (1 - sigma_{k+1}) x0 + sigma_{k+1} noise_{k+1}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from llvq.errors import SessionError

Coefficients = npt.NDArray[np.float64]

SAMPLERS = ("unipc", "renoise")
TRAIN_TIMESTEPS = 1000
# float32(0.999), as the reference stores it. Being above 0.999, it also keeps sigma * 1000 from
# falling just under a whole timestep.
SIGMA_MAX = float(np.float32(1 - 1 / TRAIN_TIMESTEPS))


@dataclass(frozen=True)
class Schedule:
    """`steps` timesteps, and `steps + 1` noise levels (the last is 0).

    UniPC: row k of `coefficients` is the update k. Re-noising has none.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...] = ()

    @property
    def draws(self) -> int:
        """How many noise tensors a chunk takes: one to start from, and one per re-noising."""
        return 1 if self.coefficients else len(self.timesteps)


def schedule(
    steps: int, shift: float, sampler: str = "unipc", timesteps: Sequence[int] = ()
) -> Schedule:
    """The schedule of `steps` model calls. Larger `shift` spends them at higher noise.

    `timesteps`: where re-noising calls the model, before the shift: those it was distilled at.
    Raises SessionError for fewer than one step, more than 1000, a shift that is not positive, or
    timesteps that do not fit the sampler.
    """
    if steps < 1:
        raise SessionError(f"{steps} sampling steps", fix="use 1 step or more (LongLive-2.0: 4)")
    if steps > TRAIN_TIMESTEPS:
        raise SessionError(
            f"{steps} sampling steps",
            because=f"the model was trained on {TRAIN_TIMESTEPS} timesteps",
            fix=f"use {TRAIN_TIMESTEPS} steps or fewer (LongLive-2.0: 4)",
        )
    if not shift > 0:
        raise SessionError(f"a shift of {shift}", fix="use a shift above 0 (LongLive-2.0: 5.0)")
    _check_timesteps(steps, sampler, tuple(timesteps))
    if sampler == "renoise":
        return _renoising(timesteps, shift)
    sigmas = _shifted(np.linspace(SIGMA_MAX, 0.0, steps + 1), shift)
    return Schedule(
        timesteps=tuple(int(sigma * TRAIN_TIMESTEPS) for sigma in sigmas[:-1]),
        sigmas=tuple(float(sigma) for sigma in sigmas),
        coefficients=_fold(sigmas),
    )


def update(
    schedule: Schedule,
    step: int,
    latent: torch.Tensor,
    noises: Sequence[torch.Tensor],
    velocities: Sequence[torch.Tensor],
) -> torch.Tensor:
    """The latent after update `step` (from 0) by the schedule's sampler, and before it `latent`.

    `noises` are the draws of the chunk, `velocities` those of calls 0 to `step`; one shape for all.
    """
    if schedule.coefficients:
        return advance(schedule, step, noises[0], velocities)
    last = step + 1 == len(schedule.timesteps)
    return renoise(schedule, step, latent, velocities[-1], None if last else noises[step + 1])


def advance(
    schedule: Schedule, step: int, noise: torch.Tensor, velocities: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The latent after UniPC's update `step` (from 0), given the velocities of calls 0 to `step`.

    All tensors have one shape. Computed in float32, returned in the dtype of `noise`.
    """
    latent = noise.float()
    for coefficient, velocity in zip(schedule.coefficients[step], velocities, strict=True):
        latent = latent - coefficient * velocity.float()
    return latent.to(noise.dtype)


def renoise(
    schedule: Schedule,
    step: int,
    latent: torch.Tensor,
    velocity: torch.Tensor,
    noise: torch.Tensor | None,
) -> torch.Tensor:
    """The latent after re-noising step `step` (from 0), which called the model on `latent`.

    `noise` is fresh for each step; the last one, which ends at x0, takes none. All tensors have
    one shape. Computed in float32; x0 and the result are rounded to the dtype of `latent`.
    """
    x0 = (latent.float() - schedule.sigmas[step] * velocity.float()).to(latent.dtype)
    if noise is None:
        return x0
    sigma = schedule.sigmas[step + 1]
    return ((1 - sigma) * x0.float() + sigma * noise.float()).to(latent.dtype)


def _check_timesteps(steps: int, sampler: str, timesteps: tuple[int, ...]) -> None:
    if sampler not in SAMPLERS:
        raise SessionError(f"no sampler {sampler!r}", fix=f"use one of {', '.join(SAMPLERS)}")
    listed = ", ".join(map(str, timesteps))
    if sampler == "unipc" and timesteps:
        raise SessionError(
            f"timesteps {listed} for UniPC",
            because="it spreads its steps itself",
            fix="leave the timesteps out, or use the sampler renoise",
        )
    if sampler == "renoise" and len(timesteps) != steps:
        raise SessionError(
            f"{steps} sampling steps for {len(timesteps)} timesteps",
            because=f"the model is called once at each of {listed or 'no timesteps'}",
            fix=f"use {len(timesteps)} steps" if timesteps else "list the timesteps",
        )
    falling = all(earlier > later for earlier, later in pairwise(timesteps))
    if timesteps and not (falling and timesteps[0] <= TRAIN_TIMESTEPS and timesteps[-1] >= 1):
        raise SessionError(
            f"timesteps {listed}",
            because="noise only ever falls, and the model was trained on these",
            fix=f"list them from high to low, between {TRAIN_TIMESTEPS} and 1",
        )


def _renoising(timesteps: Sequence[int], shift: float) -> Schedule:
    sigmas = _shifted(np.array([*timesteps, 0]) / TRAIN_TIMESTEPS, shift)
    return Schedule(
        timesteps=tuple(float(sigma * TRAIN_TIMESTEPS) for sigma in sigmas[:-1]),
        sigmas=tuple(float(sigma) for sigma in sigmas),
    )


def _shifted(ramp: Coefficients, shift: float) -> Coefficients:
    """Noise levels from an even ramp: `shift` above 1 raises all but 0 and 1."""
    return shift * ramp / (1 + (shift - 1) * ramp)


def _fold(sigmas: Coefficients) -> tuple[tuple[float, ...], ...]:
    """Run the solver on rows c that stand for x_T - sum_j c[j] v_j."""
    steps = len(sigmas) - 1
    predicted = corrected = np.zeros(steps)
    clean: list[Coefficients] = []  # the data predictions x_k - sigma_k v_k
    rows = []
    for k in range(steps):
        clean.append(predicted + sigmas[k] * np.eye(steps)[k])
        if k > 0:
            corrected = _correct(sigmas, k, corrected, clean)
        # At sigma 0 the first-order update is the data prediction itself; the corrected sample,
        # whose weight is sigma_n / sigma_{n-1} = 0, has no part in it.
        predicted = clean[k] if k == steps - 1 else _predict(sigmas, k, corrected, clean)
        rows.append(tuple(float(c) for c in predicted[: k + 1]))
    return tuple(rows)


def _predict(
    sigmas: Coefficients, k: int, sample: Coefficients, clean: list[Coefficients]
) -> Coefficients:
    """UniP from noise level k to k + 1: first order at the start, second order after."""
    residual = np.zeros_like(sample)
    if k > 0:
        ratio = _log_snr_step(sigmas, k, k - 1) / _log_snr_step(sigmas, k, k + 1)
        residual = 0.5 * (clean[k - 1] - clean[k]) / ratio
    return _exponential_step(sigmas, k, sample, clean[k] + residual)


def _correct(
    sigmas: Coefficients, k: int, sample: Coefficients, clean: list[Coefficients]
) -> Coefficients:
    """UniC: take the step from k - 1 to k again, knowing the data prediction at k."""
    now, before = clean[k], clean[k - 1]
    residual = 0.5 * (now - before)
    if k > 1:
        h = _log_snr_step(sigmas, k - 1, k)
        ratio = _log_snr_step(sigmas, k - 1, k - 2) / h
        # The weights solve [[1, 1], [ratio, 1]] @ (old, new) = (first, second).
        first = (np.expm1(-h) / -h - 1) / np.expm1(-h)
        second = 2 * ((np.expm1(-h) / -h - 1) / -h - 0.5) / np.expm1(-h)
        old = (first - second) / (1 - ratio)
        residual = old * (clean[k - 2] - before) / ratio + (first - old) * (now - before)
    return _exponential_step(sigmas, k - 1, sample, before + residual)


def _exponential_step(
    sigmas: Coefficients, k: int, sample: Coefficients, target: Coefficients
) -> Coefficients:
    """The exact solution from level k to k + 1 if the data prediction were `target` throughout."""
    keep = sigmas[k + 1] / sigmas[k]
    gain = -(1 - sigmas[k + 1]) * np.expm1(-_log_snr_step(sigmas, k, k + 1))
    return keep * sample + gain * target


def _log_snr_step(sigmas: Coefficients, start: int, end: int) -> float:
    """lambda_end - lambda_start, with lambda = log((1 - sigma) / sigma)."""
    signal, noise = 1 - sigmas, sigmas
    return float(np.log(signal[end] / signal[start]) - np.log(noise[end] / noise[start]))
