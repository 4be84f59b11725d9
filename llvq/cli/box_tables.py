"""The tables of a program or a box, from its manifest and graphs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llvq import graphs
from llvq.artifact import Box
from llvq.cli.pass_table import print_pass_table
from llvq.cli.table import human, print_fields, print_table
from llvq.cli.weight_summary import input_scales, scales_text
from llvq.recipe import unknown
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import RunFacts
from llvq.sources import TensorSpec

MANY = 3  # inputs of one family that are still listed one by one
PACKED = ("codes", "scales", "global_scale")


def graph_text(box: Box, stage: str) -> str:
    """The graph of a stage as text. Raises RecipeError with the nearest name."""
    if stage not in box.manifest["stages"]:
        raise unknown("stage", stage, sorted(box.manifest["stages"]))
    return graphs.text(graphs.load(box.graph(stage), device="meta"))


def describe(box: Box) -> dict[str, Any]:
    """Everything that `llvq inspect` says of a box, as plain data."""
    manifest = box.manifest
    loaded = {name: graphs.load(box.graph(name), device="meta") for name in manifest["stages"]}
    weights: dict[str, TensorSpec] = {}
    for gm in loaded.values():
        weights |= graphs.weights(gm)
    pages = RunFacts.from_dict(manifest["state"]).pages
    return {
        "path": str(box.path),
        "id": box.id,
        **{key: manifest[key] for key in ("kind", "target", "numerics", "versions", "recipe")},
        "stages": [_stage(manifest, name, gm.graph.nodes) for name, gm in loaded.items()],
        "ops": dict(_ops(loaded).most_common()),
        "implementations": manifest["implementations"],
        "kernels": manifest["kernels"],
        "bytes": _bytes_by_part(weights),
        "pages": {"format": pages.text, "slots": pages.slots, "bytes": pages.nbytes},
        "inputs": input_scales(manifest["weights"].values()),
        "left_out": manifest["left_out"],
        "calibration": manifest["calibration"],
        "lora": manifest["lora"],
        "passes": manifest["passes"],
        "files": len(manifest["files"]),
    }


def show(box: Mapping[str, Any]) -> None:
    versions = ", ".join(f"{name} {value}" for name, value in box["versions"].items())
    linear, pages = box["recipe"]["linear"], box["pages"]
    print_fields(
        [
            (box["kind"], box["path"]),
            ("id", box["id"]),
            ("target", box["target"]),
            ("numerics", box["numerics"]),
            ("kernels", _compiled(box["kernels"])),
            ("needs", versions),
            ("recipe", f"{box['recipe']['name']}: {linear['weight_rule']} weights, "
                       f"{linear['activation_rule']} activations"),
            ("input scales", scales_text(box["inputs"])),
            ("left out", ", ".join(f"{n} {i}" for n, i in box["left_out"].items()) or None),
            ("calibrated", _calibrated(box["calibration"])),
            ("LoRA merged in", ", ".join(map(_lora, box["lora"])) or None),
            ("kept out", ", ".join(linear["exclude"])),
            ("KV pages", f"{pages['slots']} of {pages['format']}, {human(pages['bytes'])}"),
        ]
    )  # fmt: skip
    print()
    columns = ("stage", "rate of inputs", "inputs", "outputs", "calls", "llvq calls")
    print_table("stages", columns, [tuple(s.values())[:6] for s in box["stages"]], left=2)
    for stage in box["stages"]:
        print_table(
            f"\ninputs of {stage['name']}",
            ("name", "type", "rate"),
            _grouped(stage["specs"]),
            left=3,
        )
    print()
    own = [row for row in box["ops"].items() if row[0].startswith("llvq.")]
    others = [count for name, count in box["ops"].items() if not name.startswith("llvq.")]
    runs = {op: ", ".join(counts) for op, counts in box["implementations"].items()}
    rows = [(op, count, runs.get(op)) for op, count in own]
    rows.append((f"{len(others)} aten ops", sum(others), None))
    print_table("ops", ("op", "calls", "run by"), rows)
    print()
    columns = ("part", "codes", "scales", "global scales", "kept", "sum")
    rows = [
        (part, *(human(n) for n in sizes.values()), human(sum(sizes.values())))
        for part, sizes in box["bytes"].items()
    ]
    print_table("weights", columns, rows)
    print()
    print_pass_table(box["passes"])


def _compiled(kernels: Mapping[str, Any] | None) -> str | None:
    if kernels is None:
        return None
    made = f"{kernels['count']} for {kernels['chip']}, by Triton {kernels['triton']}"
    return f"{made}, sources {kernels['sources'][:16]}"


def _calibrated(made: Mapping[str, Any] | None) -> str | None:
    if not made:
        return None
    config = made.get("config")
    name = config.get("name") if isinstance(config, Mapping) else config
    videos = f"{made.get('videos')} videos of {made.get('chunks')} chunks"
    return f"{name} of ModelOpt {made.get('modelopt')}, {videos}"


def _lora(record: Mapping[str, Any]) -> str:
    rank = f"rank {record['rank']}, alpha {record['alpha']:g}, {record['layers']} linears"
    return f"{record['name']} ({rank}) {record['sha256'][:16]}"


def _grouped(specs: Sequence[Mapping[str, str]]) -> list[tuple[str, str, str]]:
    """One row per input, but one for all of `decode_state.0`, `decode_state.1`, ..."""
    families: dict[str, list[Mapping[str, str]]] = {}
    for spec in specs:
        families.setdefault(spec["name"].split(".")[0], []).append(spec)
    rows = []
    for family, members in families.items():
        if len(members) > MANY:
            types = " and ".join(dict.fromkeys(spec["type"].split(" ")[0] for spec in members))
            rows.append((f"{family}.* ({len(members)})", types, members[0]["rate"]))
        else:
            rows += [(spec["name"], spec["type"], spec["rate"]) for spec in members]
    return rows


def _stage(manifest: Mapping[str, Any], name: str, nodes: Any) -> dict[str, Any]:
    specs = [InputSpec.from_dict(spec) for spec in manifest["contract"][name]]
    calls = [node for node in nodes if node.op == "call_function"]
    return {
        "name": name,
        "rates": ", ".join(dict.fromkeys(str(spec.rate) for spec in specs)),
        "inputs": len(specs),
        "outputs": len(manifest["stages"][name]["outputs"]),
        "calls": len(calls),
        "llvq_calls": sum(getattr(node.target, "namespace", "") == "llvq" for node in calls),
        "specs": [{"name": s.name, "type": str(s), "rate": s.rate} for s in specs],
    }


def _ops(loaded: Mapping[str, Any]) -> Counter[str]:
    return Counter(
        str(node.target)
        for gm in loaded.values()
        for node in gm.graph.nodes
        if hasattr(node.target, "namespace")
    )


def _bytes_by_part(weights: Mapping[str, TensorSpec]) -> dict[str, dict[str, int]]:
    """Bytes of dit, vae and text: NVFP4 codes, scales, global scales, and what was kept."""
    parts: dict[str, dict[str, int]] = {}
    for name, spec in weights.items():
        sizes = parts.setdefault(name.split(".")[0], dict.fromkeys((*PACKED, "kept"), 0))
        leaf = name.rpartition(".")[2]
        sizes[leaf if leaf in PACKED else "kept"] += spec.nbytes
    return parts
