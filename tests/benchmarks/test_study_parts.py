"""Parts come back as they were, and not for anything else."""

from __future__ import annotations

import math
import os
from pathlib import Path

from benchmarks.study_parts import Part, Parts, fingerprint
from benchmarks.study_rows import Sample
from llvq.checkpoints.bundle import Bundle

CHUNKS = [{"sqnr_db": math.inf}, {"sqnr_db": 12.25}]


def test_a_part_comes_back_and_goes_with_the_others(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "new" / "parts")
    part = Part(17, Sample(3, ("a", "b"), CHUNKS, {"drift": -0.5}))
    assert parts.read("int4, groups of 64", 3) is None
    parts.write("int4, groups of 64", part)
    assert parts.read("int4, groups of 64", 3) == part
    assert parts.read("int4, groups of 64", 4) is None and parts.read("fp8", 3) is None
    parts.remove()
    parts.remove()
    assert not parts.folder.exists()


def test_other_weights_or_another_length_are_another_study(tmp_path: Path) -> None:
    file, vae = tmp_path / "model.pt", tmp_path / "vae.pt"
    file.write_bytes(b"weights")
    vae.write_bytes(b"more")
    alone, both = Bundle(file, None, None, None), Bundle(file, vae, None, None)
    folder = Bundle(tmp_path, None, None, None)
    first = fingerprint(folder, {"chunks": 4})
    assert first == fingerprint(folder, {"chunks": 4}) != fingerprint(folder, {"chunks": 5})
    assert fingerprint(alone, {}) != fingerprint(both, {})
    os.utime(file, ns=(1, 1))
    assert fingerprint(folder, {"chunks": 4}) != first
