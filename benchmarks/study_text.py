"""The head of a study's tables: what was run, with what, on what; and the text of all."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import llvq
from benchmarks.report import command_of
from benchmarks.study_rows import CLOSE, Row, table
from benchmarks.study_runs import Setting, Study
from llvq.checkpoints.checkpoint import json_beside


def header(at: Setting, study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """What was run, on what."""
    facts, gpu = at.plain.facts, at.plain.device.type == "cuda"
    device = torch.cuda.get_device_name(at.plain.device) if gpu else f"cpu ({platform.machine()})"
    random = json_beside(at.model.bundle.dit, "config.json").get("random_weights") is True
    height, width = facts.pixel_hw
    return {
        "command": command_of("kv_study"),
        "study": study.title,
        "random_weights": random,
        "video": f"{height}x{width}, {options.chunks} chunks of {facts.frames_per_chunk} latent "
        f"frames, window of {facts.window_chunks}, {at.steps} steps, {options.seeds} seeds",
        "versions": versions(),
        "device": device,
    }


def as_text(head: Mapping[str, Any], rows: Sequence[Row], study: Study) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    random = "The weights are random: no number here says how a trained model fares.\n"
    told = "identity" in rows[0].samples[0].numbers
    identity = "Identity: what share of objects hold; its drift.\n" if told else ""
    judged = " Chunk 0 has no history and is left out." if study.first else ""
    return (
        f"$ {head['command']}\n{head['device']}; {versions}\n\n{study.title}\n{head['video']}\n"
        + (random if head["random_weights"] else "")
        + f"Against bf16 of the same noise and prompts, free-running.{judged}\n"
        "Mean over seeds and sample standard deviation; worst, median and last are of the chunks\n"
        f"of a video, as is how many come before one below {CLOSE:g} dB; drift is SQNR's slope.\n"
        f"{identity}\n{table(rows, rows[0].nbytes)}\n"
    )


def versions() -> dict[str, str]:
    return {
        "llvq": llvq.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
