"""Whole programs as ONNX: every stage in other runtimes, against llvq's own."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from llvq.backends.onnx import export as module
from llvq.backends.onnx.dialects import DIALECTS
from llvq.backends.onnx.export import STAGES, check, export, translated_stage
from llvq.backends.onnx.external_data import FILE
from llvq.errors import TargetError
from tests.backends.onnx.conftest import Program, check_all, error


@pytest.mark.parametrize("dialect", ["standard", "portable"])
def test_every_stage_in_fp32(in_fp32: Program, dialect: str, tmp_path: Path) -> None:
    folder = in_fp32.export(dialect, tmp_path / "m")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{stage}.onnx" for stage in STAGES), FILE]
    )
    check_all(in_fp32, folder, 1e-4)


@pytest.mark.parametrize("dialect", ["standard", "portable"])
def test_refresh_gives_the_page_that_llvq_stores(
    in_fp32: Program, dialect: str, tmp_path: Path
) -> None:
    folder = in_fp32.export(dialect, tmp_path / "m")
    slot = torch.tensor(3)
    pages = {n: t.clone() for n, t in in_fp32.values.items() if n.startswith("pages.")}
    in_fp32.wanted("refresh", slot=slot, **pages)
    found = in_fp32.run(folder, "refresh")
    assert set(found) == {"page.codes", "page.scales", "page.global_scale"}
    for name in ("codes", "scales"):
        wanted = pages[f"pages.{name}"][:, :, 3].view(torch.uint8)
        assert torch.equal(torch.from_numpy(found[f"page.{name}"]), wanted)
    assert error(found["page.global_scale"], pages["pages.global_scale"][:, :, 3]) < 1e-6


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_the_max_rule_in_every_dialect(of_max: Program, dialect: str, tmp_path: Path) -> None:
    check_all(of_max, of_max.export(dialect, tmp_path / "m"), 1e-4)


def test_a_stage_that_cannot_be_said_leaves_nothing_behind(
    in_fp32: Program, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match="four_over_six") as caught:
        export(in_fp32.box, DIALECTS["trt"], tmp_path / "m")
    assert "stage condition   node quantize" in str(caught.value.where)
    assert not list(tmp_path.iterdir())


def test_the_length_of_the_page_table_is_open_and_names_are_those_of_the_contract(
    in_fp32: Program, tmp_path: Path
) -> None:
    folder = in_fp32.export("portable", tmp_path / "m")
    model = onnx.load(folder / "denoise.onnx", load_external_data=False)
    inputs = {i.name: i.type.tensor_type for i in model.graph.input}
    assert set(inputs) == {spec.name for spec in in_fp32.runtime.stage("denoise").inputs}
    assert inputs["page_table"].shape.dim[0].dim_param == "page_table_size"
    assert [o.name for o in model.graph.output] == ["velocity"]
    facts = {p.key: p.value for p in model.metadata_props}
    assert facts["llvq.program"] == in_fp32.box.id and facts["llvq.dialect"] == "portable"


def test_weights_lie_in_the_file_once(in_fp32: Program, tmp_path: Path) -> None:
    """Denoise and refresh read the same; the models themselves are small."""
    seen: list[tuple[int, int]] = []
    done = export(
        in_fp32.box, DIALECTS["standard"], tmp_path / "m", progress=lambda a, b: seen.append((a, b))
    )
    stored = sum(spec.nbytes for spec in map(module.weights_of(in_fp32.box).spec, _read(in_fp32)))
    assert seen[-1] == (stored, stored)
    assert stored <= done.data_bytes < stored + 4096 * len(_read(in_fp32))
    assert done.left_out == ("encode_image",)


def _read(program: Program) -> set[str]:
    graphs = [translated_stage(program.box, stage, DIALECTS["standard"]) for stage in STAGES]
    return set(module.external_data.weights_read(i for g in graphs for i in g.initializers))


def test_a_model_that_is_not_valid_is_a_bug_that_is_told(tmp_path: Path) -> None:
    file = tmp_path / "bad.onnx"
    node = onnx.helper.make_node("Add", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], [])
    file.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(TargetError, match=r"bad\.onnx is not a valid ONNX model"):
        check(file)
