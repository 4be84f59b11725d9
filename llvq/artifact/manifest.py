"""The fields of manifest.json, their types, and the checks that need no other file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from llvq import canonical_json
from llvq.errors import ArtifactError

FORMAT_VERSION = 1
FORMAT = {"name": "llvq-box", "version": FORMAT_VERSION}
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
REPORT = "report"
FOLDERS = ("graphs", "weights", "checks", "tokenizer", "kernels")
KINDS = ("program", "box")
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_STAGES = 256
# Stages that a box may lack although its program has them.
OPTIONAL_STAGES = ("encode_text",)
REQUANTIZE = "write the box again: llvq quantize, then llvq export"

_FIELDS: dict[str, tuple[type, ...]] = {
    "format": (dict,),
    "kind": (str,),
    "target": (str, type(None)),
    "numerics": (str, type(None)),
    "versions": (dict,),
    "ops": (dict,),
    "contract": (dict,),
    "state": (dict,),
    "stages": (dict,),
    "recipe": (dict,),
    "passes": (list,),
    "weights": (dict,),
    "unchecked": (dict,),
    "left_out": (dict,),
    "implementations": (dict,),
    "kernels": (dict, type(None)),
    "calibration": (dict, type(None)),
    "lora": (list,),
    "model": (dict,),
    "files": (dict,),
}
_PATH_PART = re.compile(r"[\w+=@-][\w.+=@-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TORCH_RANGE = re.compile(r">=(\d+)\.(\d+),<(\d+)\.(\d+)", re.ASCII)
_VERSION = re.compile(r"(\d+)\.(\d+)", re.ASCII)


def seal(data: bytes) -> bytes:
    """The content of manifest.sha256, in the form that `sha256sum -c` reads."""
    return f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n".encode("ascii")


def parse(data: bytes, *, where: str) -> dict[str, Any]:
    """The manifest in `data`, of this format version; its fields are not looked at yet."""
    try:
        manifest = canonical_json.loads(data)
    except ValueError as error:
        raise damaged("manifest.json is not JSON", where=where, because=str(error)) from error
    declared = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(declared, dict) or declared.get("name") != FORMAT["name"]:
        raise damaged(
            "this is not a box of llvq",
            where=where,
            because=f"manifest.json does not say format {FORMAT['name']}",
        )
    if declared != FORMAT or type(declared["version"]) is not int:
        version = repr(declared.get("version"))[:40]
        raise ArtifactError(
            f"the box has format version {version}",
            where=where,
            because=f"this llvq reads version {FORMAT_VERSION}",
            fix=f"use the llvq that wrote it, or {REQUANTIZE}",
        )
    return manifest


def check_fields(manifest: Mapping[str, Any], *, where: str) -> None:
    """Every field is there, of its type, and no other field is."""
    problems = [f"field {name!r} is missing" for name in _FIELDS if name not in manifest]
    problems += [f"field {name[:80]!r} is unknown" for name in manifest if name not in _FIELDS]
    for name, kinds in _FIELDS.items():
        if name in manifest and not isinstance(manifest[name], kinds):
            problems.append(f"field {name!r} is a {type(manifest[name]).__name__}")
    problems = problems or list(_content_problems(manifest))
    if problems:
        raise damaged("manifest.json has wrong fields", where=where, because="; ".join(problems))


def _content_problems(manifest: Mapping[str, Any]) -> Collection[str]:
    problems = []
    if manifest["kind"] not in KINDS:
        problems.append(f"kind {manifest['kind'][:80]!r} is not one of {', '.join(KINDS)}")
    if (manifest["kind"] == "box") != isinstance(manifest["target"], str):
        problems.append("a box has a target, a program has none")
    for name in ("versions", "ops"):
        if not all(isinstance(value, str) for value in manifest[name].values()):
            problems.append(f"field {name!r} holds something that is not a string")
    if len(manifest["stages"]) > MAX_STAGES:
        problems.append(f"{len(manifest['stages'])} stages are more than {MAX_STAGES}")
    if not all(isinstance(stage, dict) for stage in manifest["stages"].values()):
        problems.append("field 'stages' holds something that is not an object")
    for name, identity in manifest["left_out"].items():
        if name not in OPTIONAL_STAGES or name in manifest["stages"]:
            problems.append(f"stage {name[:80]!r} cannot be left out")
        if not isinstance(identity, str) or not _SHA256.fullmatch(identity):
            problems.append(f"left_out.{name[:80]} is no sha256")
    kernels = manifest["kernels"]
    if kernels is not None and not _describes_kernels(kernels, manifest["target"]):
        problems.append("field 'kernels' does not say what was compiled for the target")
    for name in ("torch", "llvq"):
        if name not in manifest["versions"]:
            problems.append(f"versions.{name} is missing")
    if not _TORCH_RANGE.fullmatch(str(manifest["versions"].get("torch"))):
        problems.append("versions.torch is not a range like '>=2.11,<2.14'")
    return problems


def _describes_kernels(kernels: Mapping[str, Any], target: Any) -> bool:
    return (
        kernels.keys() == {"chip", "triton", "sources", "count"}
        and kernels["chip"] == target
        and isinstance(kernels["triton"], str)
        and bool(_SHA256.fullmatch(str(kernels["sources"])))
        and type(kernels["count"]) is int
    )


def check_kind(
    manifest: Mapping[str, Any],
    *,
    kinds: Collection[str],
    targets: Collection[str] | None,
    reasons: Mapping[str, str],
    where: str,
) -> None:
    """The box is of a kind, and for a target, that the caller can use (None: any target).

    `reasons`: why targets that are not among them are not.
    """
    kind, target = manifest["kind"], manifest["target"]
    if kind not in kinds:
        raise ArtifactError(
            f"this is a {kind}, not a {' or a '.join(kinds)}",
            where=where,
            because="llvq quantize writes a program, llvq export makes a box of it for one target",
            fix="llvq export <program> --target <target>" if kind == "program" else REQUANTIZE,
        )
    if targets is not None and target is not None and target not in targets:
        raise ArtifactError(
            f"the box is for target {target}",
            where=where,
            because=reasons.get(target, f"this machine runs {_listed(targets)}"),
            fix=f"export for this machine (llvq export <program> --target {_listed(targets)}), or "
            "run it on the one that it is for",
        )


def _listed(targets: Collection[str]) -> str:
    return ", ".join(sorted(targets)) or "no target"


def check_versions(manifest: Mapping[str, Any], *, torch_version: str, where: str) -> None:
    match = _TORCH_RANGE.fullmatch(manifest["versions"]["torch"])
    found = _VERSION.match(torch_version)
    assert match and found
    low = (int(match[1]), int(match[2]))
    high = (int(match[3]), int(match[4]))
    if not low <= (int(found[1]), int(found[2])) < high:
        raise ArtifactError(
            f"the box needs torch {manifest['versions']['torch']}",
            where=where,
            because=f"torch {torch_version} is installed",
            fix=f'pip install "torch{manifest["versions"]["torch"]}"',
        )


def check_ops(manifest: Mapping[str, Any], *, known_ops: Mapping[str, str], where: str) -> None:
    """Every operator of the box exists here, with the schema it was written with."""
    for name, schema in sorted(manifest["ops"].items()):
        here = known_ops.get(name)
        if here == schema:
            continue
        raise ArtifactError(
            f"operator {name} is unknown" if here is None else f"operator {name} has changed",
            where=where,
            because=f"the box was written with {schema}" + (f", here it is {here}" if here else ""),
            fix=f"install llvq {manifest['versions']['llvq']}, or {REQUANTIZE}",
        )


def check_file_table(manifest: Mapping[str, Any], *, where: str) -> None:
    """Every listed path stays in the box, in a folder of the format, with a size and a hash."""
    for path, entry in sorted(manifest["files"].items()):
        if not is_box_path(path):
            raise damaged(f"path {path!r} may not be in a box", where=where, because=_PATH_RULE)
        if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
            raise damaged(f"{path} is listed without exactly its sha256 and bytes", where=where)
        if not _SHA256.fullmatch(str(entry["sha256"])):
            raise damaged(f"{path} is listed with something that is no sha256", where=where)
        if type(entry["bytes"]) is not int or entry["bytes"] < 0:
            raise damaged(f"{path} is listed with something that is no size", where=where)


_PATH_RULE = f"files are in {', '.join(FOLDERS)}, their names are letters, digits and . _ - + = @"


def is_box_path(path: str) -> bool:
    """`graphs/denoise.json`: relative, below a folder of the format, no dot first in any part."""
    parts = path.split("/")
    return (
        len(parts) > 1 and parts[0] in FOLDERS and all(_PATH_PART.fullmatch(part) for part in parts)
    )


def damaged(what: str, *, where: str, because: str | None = None) -> ArtifactError:
    """Something is wrong that no other machine or version would make right."""
    return ArtifactError(
        what,
        where=where,
        because=because,
        fix=f"copy the box again from its source, or {REQUANTIZE}",
    )
