"""How long `llvq run` took, and how it says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llvq.runtime.executable import RunFacts

TIMED = "denoise + decode + writing, wall clock; loading and prompt encoding not included"


@dataclass
class Timing:
    """Seconds: loading and prompts; until the first frames; until the last."""

    setup: float
    first: float | None = None
    generate: float = 0.0

    def show(
        self, path: Path, frames: int, facts: RunFacts, *, latents_only: bool, as_json: bool
    ) -> None:
        from llvq.cli.table import print_fields, print_json

        speed = frames / self.generate
        if as_json:
            print_json(
                {
                    "path": str(path),
                    "frames": frames,
                    "latents_only": latents_only,
                    "setup_s": round(self.setup, 3),
                    "first_frame_s": round(self.first or 0.0, 3),
                    "generate_s": round(self.generate, 3),
                    "fps": round(speed, 3),
                    "timed": TIMED,
                }
            )
            return
        what = "latent frames" if latents_only else f"frames, {frames / facts.fps:.1f} s of video"
        print_fields(
            [
                (str(path), f"{frames} {what}"),
                ("loading, prompts", f"{self.setup:.1f} s"),
                ("first frames", f"{self.first or 0.0:.1f} s after that"),
                ("generating", f"{self.generate:.1f} s, {speed:.2f} FPS ({TIMED})"),
            ]
        )
