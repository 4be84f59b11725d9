"""The samplers against the reference's constants, its goldens, and diffusers' solvers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from safetensors.torch import load_file

from llvq.errors import SessionError
from llvq.runtime.sampler import advance, renoise, schedule

GOLDENS = Path(os.environ.get("LLVQ_GOLDENS", Path(__file__).parents[1] / "data"))
ROLLOUTS = [
    path for path in sorted(GOLDENS.glob("*.json")) if "steps" in json.loads(path.read_text())
]

TIMESTEPS = {2: (999, 833), 3: (999, 908, 713), 4: (999, 937, 833, 624)}
# Row k holds the coefficients of v_0 .. v_k, as measured on the reference.
CONSTANTS = {
    2: [[0.166744], [0.166744, 0.833055]],
    3: [[0.090957], [0.036776, 0.249044], [0.036776, 0.249044, 0.713979]],
    4: [
        [0.062534],
        [0.026651, 0.140094],
        [0.027461, -0.004177, 0.351828],
        [0.027461, -0.004177, 0.351828, 0.624687],
    ],
}


@pytest.mark.parametrize("steps", TIMESTEPS)
def test_constants_are_those_of_the_reference(steps: int) -> None:
    plan = schedule(steps, 5.0)
    assert plan.timesteps == TIMESTEPS[steps]
    assert len(plan.sigmas) == steps + 1
    for row, expected in zip(plan.coefficients, CONSTANTS[steps], strict=True):
        assert row == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_last_update_is_exactly_the_data_prediction(steps: int) -> None:
    plan = schedule(steps, 5.0)
    before = plan.coefficients[-2] if steps > 1 else ()
    assert plan.coefficients[-1] == (*before, plan.sigmas[-2])
    assert plan.sigmas[-1] == 0


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", range(1, 9))
def test_every_state_is_that_of_diffusers(steps: int, shift: float) -> None:
    solver = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=2,
        solver_type="bh2",
        predict_x0=True,
        lower_order_final=True,
    )
    # Its own ramp starts at 1 and ends at 0.001; LongLive-2.0's starts at 0.999 and ends at 0.
    ramp = np.linspace(float(np.float32(0.999)), 0, steps + 1)[:-1]
    solver.set_timesteps(sigmas=ramp)
    plan = schedule(steps, shift)
    assert plan.timesteps == tuple(solver.timesteps.tolist())
    assert torch.tensor(plan.sigmas).allclose(solver.sigmas, atol=1e-6)

    generator = torch.Generator().manual_seed(steps)
    noise, linear, offset = torch.randn(3, 2, 8, generator=generator)
    latent, velocities = noise, []
    for k, timestep in enumerate(solver.timesteps):
        velocities.append(linear * latent + offset)
        latent = solver.step(velocities[-1], timestep, latent).prev_sample
        ours = advance(plan, k, noise, velocities)
        torch.testing.assert_close(ours, latent, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("path", ROLLOUTS, ids=lambda path: path.stem)
def test_golden_velocities_give_golden_latents(path: Path) -> None:
    config = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".io.safetensors"))
    plan = schedule(config["steps"], config["shift"])
    size, calls = config["frames_per_chunk"], config["steps"] + 1
    for chunk in range(len(config["prompts"])):
        frames = slice(chunk * size, (chunk + 1) * size)
        noise, expected = tensors["noise"][:, frames], tensors["latents"][:, frames]
        velocities = tensors["velocity"][chunk * calls : (chunk + 1) * calls - 1]
        # Frame 0 of an image-to-video chunk 0 is clamped to the image, not sampled.
        free = slice(1, None) if config["i2v"] and chunk == 0 else slice(None)
        ours = advance(plan, config["steps"] - 1, noise, list(velocities))
        torch.testing.assert_close(
            ours[:, free], expected[:, free], rtol=0, atol=1e-4 * float(expected.abs().max())
        )
        asked = tensors["timesteps"][chunk * calls : (chunk + 1) * calls - 1, 0, -1]
        assert plan.timesteps == tuple(asked.long().tolist())


def test_there_are_goldens() -> None:
    assert ROLLOUTS


def test_the_latent_keeps_the_dtype_of_the_noise() -> None:
    noise = torch.ones(3, dtype=torch.bfloat16)
    velocity = torch.full((3,), 2.0)
    latent = advance(schedule(2, 5.0), 0, noise, [velocity])
    assert latent.dtype == torch.bfloat16
    assert torch.equal(latent, (torch.ones(3) - 0.166744 * velocity).bfloat16())


def test_as_many_velocities_as_calls() -> None:
    with pytest.raises(ValueError, match="zip"):
        advance(schedule(2, 5.0), 1, torch.zeros(1), [torch.zeros(1)])


@pytest.mark.parametrize(
    ("steps", "shift"),
    [(0, 5.0), (-1, 5.0), (1001, 5.0), (10**12, 5.0), (4, 0.0), (4, float("nan"))],
)
def test_impossible_schedules_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(SessionError, match=r"steps|shift") as caught:
        schedule(steps, shift)
    assert caught.value.fix is not None


TRAINED = {
    "Self-Forcing": (1000, 750, 500, 250),
    "Rolling Forcing": (1000, 800, 600, 400, 200),
    "uneven": (1000, 757, 522),
    "one": (1000,),
}


def test_the_noise_levels_of_self_forcing() -> None:
    """Its list, warped by its scheduler of 1000 steps and shift 5."""
    plan = schedule(4, 5.0, "renoise", TRAINED["Self-Forcing"])
    assert plan.timesteps == pytest.approx((1000, 937.5, 2500 / 3, 625))
    assert plan.sigmas == pytest.approx((1, 0.9375, 2.5 / 3, 0.625, 0))
    assert plan.draws == 4 and schedule(4, 5.0).draws == 1


@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
@pytest.mark.parametrize("timesteps", TRAINED.values(), ids=TRAINED)
def test_every_renoised_latent_is_that_of_diffusers(
    timesteps: tuple[int, ...], shift: float
) -> None:
    solver = FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=True)
    solver.set_timesteps(sigmas=[timestep / 1000 for timestep in timesteps])
    plan = schedule(len(timesteps), shift, "renoise", timesteps)
    assert torch.tensor(plan.timesteps).allclose(solver.timesteps)
    assert torch.tensor(plan.sigmas).allclose(solver.sigmas)

    latent, linear, offset = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    theirs, ours = (torch.Generator().manual_seed(1) for _ in range(2))
    for step, timestep in enumerate(solver.timesteps):
        velocity = linear * latent + offset
        expected = solver.step(velocity, timestep, latent, generator=theirs).prev_sample
        last = step + 1 == len(timesteps)
        fresh = None if last else torch.randn(2, 8, generator=ours)
        found = renoise(plan, step, latent, velocity, fresh)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        latent = expected


def test_renoising_rounds_x0_and_the_result_to_the_dtype_of_the_latent() -> None:
    plan = schedule(2, 5.0, "renoise", (1000, 500))
    generator = torch.Generator().manual_seed(0)
    latent, velocity, fresh = torch.randn(3, 64, generator=generator).bfloat16()
    x0 = (latent.float() - velocity.float()).bfloat16()
    assert torch.equal(renoise(plan, 0, latent, velocity, None), x0)
    sigma = plan.sigmas[1]
    expected = (1 - sigma) * x0.float() + sigma * fresh.float()
    assert torch.equal(renoise(plan, 0, latent, velocity, fresh), expected.bfloat16())


@pytest.mark.parametrize(
    ("steps", "sampler", "timesteps"),
    [
        (4, "euler", ()),
        (4, "unipc", (1000, 750, 500, 250)),
        (4, "renoise", ()),
        (3, "renoise", (1000, 750, 500, 250)),
        (2, "renoise", (500, 1000)),
        (2, "renoise", (500, 500)),
        (2, "renoise", (1001, 500)),
        (2, "renoise", (500, 0)),
    ],
)
def test_timesteps_that_do_not_fit_are_refused(
    steps: int, sampler: str, timesteps: tuple[int, ...]
) -> None:
    with pytest.raises(SessionError, match=r"sampler|timesteps") as caught:
        schedule(steps, 5.0, sampler, timesteps)
    assert caught.value.fix is not None
