"""The table of kernels is read as it was written, or refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llvq import canonical_json
from llvq.artifact import Box
from llvq.artifact.kernels import Check, Entry, KernelTable, kernel_file, read_table, table_file
from llvq.artifact.manifest import is_box_path
from llvq.errors import ArtifactError

TABLE = KernelTable(
    {"quantize.0123": Entry("quantize", 4, 1024, 128), "gemm.4567": Entry("gemm", 8, 0, 0)},
    [
        Check(
            "paged_attention",
            "triton",
            {
                "q": torch.empty_strided((1, 6, 2, 16), (576, 96, 16, 1), dtype=torch.bfloat16,
                                         device="meta"),
                "pages": [torch.empty(1, 2, 4, dtype=torch.float8_e4m3fn, device="meta")],
                "cos": None,
                "scale": 0.25,
                "layer": 3,
                "kv_format": "nvfp4",
                "dtype": torch.bfloat16,
                "segments": [64, 32],
            },
        )
    ],
)  # fmt: skip


def written(folder: Path, document: Any) -> Box:
    name = table_file("sm_90a")
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(canonical_json.dumps(document))
    return Box(folder, {"files": {name: {}}}, "")


def look(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.stride(), value.device.type
    return [look(item) for item in value] if isinstance(value, list) else value


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    read = read_table(written(tmp_path, TABLE.to_dict()), "sm_90a")
    assert read.kernels == TABLE.kernels
    (found,), (wanted,) = read.checks, TABLE.checks
    assert (found.op, found.impl) == (wanted.op, wanted.impl)
    assert {k: look(v) for k, v in found.arguments.items()} == {
        k: look(v) for k, v in wanted.arguments.items()
    }


def test_files_are_of_the_box() -> None:
    assert is_box_path(table_file("sm_90a")) and is_box_path(kernel_file("sm_90a", "gemm.4567"))


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "surplus": lambda table: table.update(more=1),
    "missing": lambda table: table.pop("checks"),
    "kernels": lambda table: table.update(kernels=[]),
    "entry": lambda table: table["kernels"]["gemm.4567"].pop("entry"),
    "warps": lambda table: table["kernels"]["gemm.4567"].update(warps=-1),
    "shared": lambda table: table["kernels"]["gemm.4567"].update(shared="1"),
    "check": lambda table: table["checks"][0].pop("op"),
    "dtype": lambda table: table["checks"][0]["args"].update(q={"strided": ["f4", [1], [1]]}),
    "sizes": lambda table: table["checks"][0]["args"].update(q={"strided": ["int8", [-1], [1]]}),
    "value": lambda table: table["checks"][0]["args"].update(q={"code": "x"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_no_table_is_refused(tmp_path: Path, change: Callable[..., Any]) -> None:
    document = TABLE.to_dict()
    change(document)
    with pytest.raises(ArtifactError, match=r"kernels/sm_90a/kernels\.json is not a table"):
        read_table(written(tmp_path, document), "sm_90a")
