from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llvq.quality import metrics
from llvq.quality.metrics import Energies, energies


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    r = torch.randn(40, 50, generator=random)
    return r, r + 0.1 * torch.randn(40, 50, generator=random)


def test_metrics_are_those_of_numpy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    r, v = (t.numpy().astype(np.float64).ravel() for t in pair)
    wanted = 10 * np.log10(np.mean(r**2) / np.mean((r - v) ** 2))
    assert metrics.sqnr_db(*pair) == pytest.approx(wanted, abs=1e-5)
    norms = np.linalg.norm(r), np.linalg.norm(v)
    assert metrics.cosine(*pair) == pytest.approx(np.dot(r, v) / np.prod(norms), abs=1e-7)
    assert metrics.relative_l2(*pair) == pytest.approx(np.linalg.norm(r - v) / norms[0], rel=1e-6)


@pytest.mark.parametrize("level", [20.0, 40.0, 60.0])
def test_sqnr_of_known_noise_is_its_level(level: float) -> None:
    r = torch.ones(1000)
    noise = torch.tensor([1.0, -1.0]).repeat(500) * 10 ** (-level / 20)
    assert metrics.sqnr_db(r, r + noise) == pytest.approx(level, abs=1e-2)


def test_sqnr_of_a_uniform_quantizer_is_six_db_a_bit() -> None:
    """A full-scale ramp through a step of 2**-bits: signal 1/3, noise step**2 / 12."""
    r = torch.linspace(-1, 1, 100001, dtype=torch.float32)
    for bits in (4, 8):
        step = 2.0**-bits
        assert metrics.sqnr_db(r, (r / step).round() * step) == pytest.approx(
            10 * math.log10(4 * 4.0**bits), abs=0.2
        )


@pytest.mark.parametrize("offset", [1, 5, 50])
def test_psnr_of_a_constant_offset(offset: int) -> None:
    frames = torch.full((2, 8, 8, 3), 100, dtype=torch.uint8)
    wanted = 20 * math.log10(255 / offset)
    assert metrics.psnr_db(frames, frames + offset) == pytest.approx(wanted)
    assert metrics.psnr_db(frames, frames - offset) == pytest.approx(wanted)


def test_scale_leaves_the_cosine_and_shows_in_the_others() -> None:
    r = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert metrics.cosine(r, 0.9 * r) == pytest.approx(1.0)
    assert metrics.relative_l2(r, 0.9 * r) == pytest.approx(0.1, rel=1e-5)
    assert metrics.sqnr_db(r, 0.9 * r) == pytest.approx(20.0, abs=1e-4)


def test_energies_of_parts_add_up(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    r, v = pair
    whole, parts = energies(r, v), energies(r[:7], v[:7]) + energies(r[7:], v[7:])
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
    assert parts.cosine == pytest.approx(whole.cosine)


def test_equal_zero_and_broken_tensors() -> None:
    one, zero = torch.ones(4), torch.zeros(4)
    assert metrics.sqnr_db(one, one) == math.inf
    assert metrics.sqnr_db(zero, one) == -math.inf
    assert metrics.relative_l2(zero, one) == math.inf
    assert metrics.relative_l2(zero, zero) == 0.0
    assert metrics.cosine(zero, zero) == 1.0
    assert metrics.cosine(zero, one) == 0.0
    assert math.isnan(metrics.sqnr_db(one, one * math.nan))
    assert Energies().sqnr_db == math.inf
    with pytest.raises(ValueError, match="differ"):
        energies(one, torch.ones(1, 4))


def test_slope_of_a_line_is_its_step() -> None:
    assert metrics.slope([30.0, 28.5, 27.0, 25.5]) == pytest.approx(-1.5)
    values = np.random.default_rng(0).normal(size=9)
    assert metrics.slope(values.tolist()) == pytest.approx(np.polyfit(range(9), values, 1)[0])
    assert math.isnan(metrics.slope([1.0]))
    assert math.isnan(metrics.slope([1.0, math.inf]))
