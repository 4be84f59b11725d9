"""The script of the phases, with a stand-in for Python: what it runs, and what it packs."""

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
if sys.argv[1] == "-c":  # how many GPUs?
    print(2)
    sys.exit()
arguments = sys.argv[2:]
folder = Path(arguments[arguments.index("--out") + 1])
print("ran", *arguments, flush=True)
if arguments[0].endswith("train_few_steps"):
    if not (Path(arguments[arguments.index("--teacher") + 1]) / "weights.safetensors").exists():
        sys.exit(3)
    (folder / "config.json").write_text("{{}}")
(folder / "weights.safetensors").write_bytes(bytes(16_000_000))
(folder / "sheet.png").write_bytes(b"sheet")
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="GNU tar and split")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Of two GPUs, where Python is something else."""
    program = tmp_path / "python"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return tmp_path


def run(machine: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{machine}:{PATH}"}
    return subprocess.run(
        ["bash", SCRIPT, *words], cwd=machine, env=environment, text=True, capture_output=True,
        check=False,
    )  # fmt: skip


def names(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def packed(folder: Path, name: str) -> list[str]:
    """What lies in the pieces of a name."""
    pieces = sorted(folder.glob(f"{name}.tar.*"))
    assert len(pieces) == 2 and all(p.stat().st_size < 16 * 2**20 for p in pieces)
    whole = folder / "whole"
    whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    return names(whole)


def test_a_call_hands_on_what_the_next_one_needs(machine: Path) -> None:
    for phase, before, after in (("vae", "none", "a"), ("ar-1", "a", "b"), ("few", "b", "c")):
        assert run(machine, before, after, phase).returncode == 0
    assert packed(machine / "a", "tiny") == ["tiny", "tiny/weights.safetensors"]
    assert names(machine / "a/sheets.tar") == ["build/tiny/sheet.png"]
    made = {"tiny-few", "tiny-few/config.json", "tiny-few/weights.safetensors"}
    assert set(packed(machine / "c", "tiny-few")) == made
    assert not list((machine / "c").glob("tiny.tar.*")), "nothing of it is new"
    lines = (machine / "b/log.txt").read_text().splitlines()
    assert "train_ar --out build/tiny --gpus 2 --graphs" in lines[0]
    assert "kinds --out build/tiny" in lines[1]
    assert "samples --out build/tiny --name ar-1" in lines[2]


def test_phases_of_one_call_follow_each_other(machine: Path) -> None:
    vae = machine / "vae"
    vae.mkdir()
    (vae / "Wan2.2_VAE.safetensors").write_bytes(b"trained")
    done = run(machine, "vae", "all", "ar-1", "ar-2", "ar-2", "few")
    assert done.returncode == 0, done.stderr
    assert "tiny/Wan2.2_VAE.safetensors" in packed(machine / "all", "tiny")
    assert packed(machine / "all", "tiny-few")
    modules = [word for word in (machine / "all/log.txt").read_text().split() if "train_" in word]
    assert [word.rpartition("train_")[2] for word in modules] == ["ar", "ar", "ar", "few_steps"]


def test_a_phase_that_fails_ends_the_call_and_leaves_what_there_is(machine: Path) -> None:
    assert run(machine, "none", "a", "few", "vae").returncode == 3
    assert "train_vae" not in (machine / "a/log.txt").read_text()
    assert run(machine, "none", "b", "vae", "nothing").returncode == 2
    assert packed(machine / "b", "tiny")
