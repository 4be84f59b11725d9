"""The script of the calls, with a stand-in for Python: what it runs, and what it packs."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

PATH = os.environ["PATH"]
SCRIPT = Path(__file__).parents[3] / "examples/tiny_longlive/train.sh"
STAND_IN = f"""#!{sys.executable}
import sys
from pathlib import Path
arguments = sys.argv[2:]
folder = Path(arguments[arguments.index("--out") + 1])
folder.mkdir(parents=True, exist_ok=True)
print("ran", *arguments, flush=True)
if "--graphs" in arguments and arguments[0].endswith("train_vae"):
    sys.exit(3)
(folder / "weights.safetensors").write_bytes(bytes(16_000_000))
(folder / "sheet.png").write_bytes(b"sheet")
with (folder / "log.jsonl").open("a") as log:
    log.write('{{"step": 7, "done": true}}' + chr(10))
"""


def names(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


@pytest.mark.skipif(sys.platform != "linux", reason="GNU tar and split")
def test_a_call_hands_on_what_the_next_one_needs(tmp_path: Path) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    gpus = tmp_path / "nvidia-smi"
    gpus.write_text("#!/bin/sh\necho 'GPU 0'\necho 'GPU 1'\n")
    for program in (stand_in, gpus):
        program.chmod(0o755)
    for phase, before, after in (("vae", "none", "a"), ("ar-1", "a", "b")):
        command = ["bash", SCRIPT, phase, before, after, stand_in]
        subprocess.run(command, cwd=tmp_path, check=True, env={"PATH": f"{tmp_path}:{PATH}"})
        subprocess.run(["rm", "-r", tmp_path / "build"], check=True)
        folder = tmp_path / after
        pieces = sorted(folder.glob("weights.tar.*"))
        assert len(pieces) == 2 and all(p.stat().st_size < 16 * 2**20 for p in pieces)
        whole = tmp_path / "whole.tar"
        whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
        assert "tiny/weights.safetensors" in names(whole)
        assert "tiny/sheet.png" not in names(whole)
        assert names(folder / "sheets.tar") == ["build/tiny/sheet.png"]
    # Graphs did not work for the VAE; for the denoiser they were no faster.
    runs = [line for line in (tmp_path / "a/log.txt").read_text().splitlines() if line[:3] == "ran"]
    assert all("--gpus 2" in line for line in runs)
    assert "--graphs" not in runs[-1] and "--out build/tiny " in runs[-1] + " "
    assert "samples --out build/tiny --name ar-1" in (tmp_path / "b/log.txt").read_text()
