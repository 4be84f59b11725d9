"""What `llvq inspect` says of a small box that is made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llvq import __version__
from llvq.artifact import Box, BoxWriter, open_box
from llvq.box import plain
from llvq.cli.box_tables import describe, graph_text, show
from llvq.compiler import Compiled
from llvq.errors import RecipeError
from llvq.runtime.contract import InputSpec
from llvq.runtime.load import op_table

GELU, ROPE = "aten.gelu.default", "llvq.rope.default"
WEIGHTS = {
    "dit.q.codes": ["uint8", [8, 16]],
    "dit.q.scales": ["float8_e4m3fn", [8, 2]],
    "dit.q.global_scale": ["float32", [1]],
    "dit.q.bias": ["bfloat16", [8]],
    "vae.conv.weight": ["float32", [5]],
}


def node(op: str, name: str, target: str, *args: Any, spec: Any = None) -> dict[str, Any]:
    record = {"name": name, "op": op, "target": target, "args": list(args), "kwargs": {}}
    val = None if spec is None else {"tensor": spec}
    return record | {"val": val, "module": "", "source": "", "llvq": None}


def document() -> dict[str, Any]:
    """y = rope(gelu(gelu(x)), cos, sin), and weights that nothing reads."""
    inputs = {"x": [1, 3, 1, 4], "cos": [3, 2], "sin": [3, 2]}
    x = ["float32", inputs["x"]]
    return {
        "nodes": [
            *(node("get_attr", f"w{i}", n, spec=s) for i, (n, s) in enumerate(WEIGHTS.items())),
            *(node("placeholder", n, n, spec=["float32", s]) for n, s in inputs.items()),
            node("call_function", "g1", GELU, {"node": "x"}, spec=x),
            node("call_function", "g2", GELU, {"node": "g1"}, spec=x),
            node("call_function", "r", ROPE, *({"node": n} for n in ("g2", "cos", "sin")), spec=x),
            node("output", "output", "output", {"tuple": [{"node": "r"}]}),
        ]
    }


KERNELS = {"chip": "sm_90a", "triton": "3.6.0", "sources": "0123" * 16}


@pytest.fixture
def small_box(tmp_path: Path, compiled_nvfp4: Compiled) -> Box:
    table = (InputSpec(name, torch.float32, (3, 2), "chunk") for name in ("cos", "sin"))
    inputs = [InputSpec("x", torch.float32, (1, 3, 1, 4), "step"), *table]
    book = {"rule": "r", "sites": 1, "hits": 1, "excluded": {}, "tolerated": {}, "misses": []}
    row = {"name": "raise-rope", "level": "raised", "numerics": "exact", "nodes": [9, 4], "ops": {}}
    with BoxWriter(tmp_path / "m.llvq") as writer:
        writer.add_json("graphs/turn.json", document())
        writer.finish(
            {
                "kind": "box",
                "target": "sm_90a",
                "numerics": "w4a8",
                "versions": {"torch": ">=2.11,<2.99", "llvq": __version__},
                "ops": op_table([GELU, ROPE]),
                "contract": {"turn": [plain(spec.to_dict()) for spec in inputs]},
                "state": plain(compiled_nvfp4.facts.to_dict()),
                "stages": {"turn": {"outputs": ["y"]}},
                "recipe": plain(compiled_nvfp4.recipe.to_dict()),
                "passes": [row | {"books": [book | {"stopped": 0}]}],
                "unchecked": {},
                "left_out": {},
                "implementations": {ROPE: {"triton": 1}},
                "kernels": {**KERNELS, "count": 2},
                "calibration": None,
                "lora": [],
                "weights": {},
                "model": {},
            }
        )
    return open_box(tmp_path / "m.llvq", known_ops=op_table())


def test_everything_is_plain_data(small_box: Box, compiled_nvfp4: Compiled) -> None:
    found = describe(small_box)
    assert (found["id"], found["kind"], found["target"]) == (small_box.id, "box", "sm_90a")
    (stage,) = found["stages"]
    counts = {key: stage[key] for key in ("rates", "inputs", "outputs", "calls", "llvq_calls")}
    assert counts == {
        "rates": "step, chunk", "inputs": 3, "outputs": 1, "calls": 3, "llvq_calls": 1,
    }  # fmt: skip
    assert stage["specs"][1] == {"name": "cos", "type": "float32 [3, 2]", "rate": "chunk"}
    assert found["ops"] == {GELU: 2, ROPE: 1}
    assert found["implementations"] == {ROPE: {"triton": 1}} and found["kernels"]["count"] == 2
    assert found["bytes"] == {
        "dit": {"codes": 128, "scales": 16, "global_scale": 4, "kept": 16},
        "vae": {"codes": 0, "scales": 0, "global_scale": 0, "kept": 20},
    }
    pages = compiled_nvfp4.facts.pages
    assert found["pages"] == {"format": "nvfp4", "slots": pages.slots, "bytes": pages.nbytes}
    assert found["files"] == 1


def test_the_same_data_in_tables(small_box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    show(describe(small_box))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in (
        ["box", str(small_box.path)],
        ["turn", "step,", "chunk", "3", "1", "3", "1"],
        ["cos", "float32", "[3,", "2]", "chunk"],
        ["kernels", "2", "for", "sm_90a,", "by", "Triton", "3.6.0,", "sources", "0123" * 4],
        [ROPE, "1", "triton"],
        ["1", "aten", "ops", "2", "-"],
        ["dit", "128", "B", "16", "B", "4", "B", "16", "B", "164", "B"],
        ["1", "raise-rope", "raised", "exact", "1", "-", "-", "-", "9", "->", "4", "-"],
    ):
        assert row in lines


@pytest.mark.parametrize(("count", "rows"), [(3, 3), (4, 1)])
def test_inputs_of_a_large_family_share_a_row(
    small_box: Box, count: int, rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = describe(small_box)
    types = ["float32 [1]", "bfloat16 [2]", "float32 [3]", "float32 [4]"]
    found["stages"][0]["specs"] = [
        {"name": f"decode_state.{i}", "type": types[i], "rate": "emit"} for i in range(count)
    ]
    show(found)
    lines = [line for line in capsys.readouterr().out.splitlines() if "decode_state" in line]
    assert len(lines) == rows
    shared = ["decode_state.*", "(4)", "float32", "and", "bfloat16", "emit"]
    assert (lines[0].split() == shared) is (rows == 1)


def test_a_program_has_no_target(small_box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = dict.fromkeys(("target", "numerics", "kernels"))
    show({**describe(small_box), "kind": "program", **nothing})
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.split()]
    assert names[0] == "program" and "target" not in names and "numerics" not in names


def test_the_graph_of_a_stage_as_text(small_box: Box) -> None:
    text = graph_text(small_box, "turn")
    assert "= llvq.rope(" in text and text.endswith("\n")
    with pytest.raises(RecipeError, match="no stage 'turm'") as caught:
        graph_text(small_box, "turm")
    assert "did you mean 'turn'?" in str(caught.value)
