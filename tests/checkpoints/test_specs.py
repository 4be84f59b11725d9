from __future__ import annotations

from math import prod

from llvq.checkpoints.specs import dit_specs, vae_specs
from llvq.models.config import DitConfig, VaeConfig


def test_the_published_denoiser_has_825_tensors_and_5b_parameters() -> None:
    specs = dit_specs(DitConfig())
    assert len(specs) == 825
    assert sum(prod(shape) for shape in specs.values()) == 4_999_787_712


def test_the_published_vae_has_196_tensors() -> None:
    specs = vae_specs(VaeConfig())
    assert len(specs) == 196
    assert round(sum(prod(shape) for shape in specs.values()) / 1e6, 1) == 704.7
