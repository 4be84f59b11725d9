"""Whole programs as ONNX: every stage in other runtimes, against llvq's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from llvq.backends.onnx import export as module
from llvq.backends.onnx.dialects import DIALECTS
from llvq.backends.onnx.export import STAGES, check, export, translated_stage
from llvq.backends.onnx.external_data import FILE
from llvq.errors import TargetError
from llvq.models.config import ModelConfig
from llvq.recipe import NVFP4, DecodeRecipe, KvRecipe, Recipe
from tests.backends.onnx.conftest import FP32, MAX, Program, error

Make = Callable[[ModelConfig, Recipe], Program]
WINDOWS = ([], [1], [2, 0, 1])


def worst(program: Program, folder: Path, stage: str, **changed: torch.Tensor) -> float:
    """The largest relative L2 distance among the outputs of a stage."""
    wanted = program.wanted(stage, **changed)
    found = program.run(folder, stage, **changed)
    assert set(found) == set(wanted)
    return max(error(found[name], tensor) for name, tensor in wanted.items())


def check_all(program: Program, folder: Path, limit: float) -> None:
    for stage in ("condition", "modulate", "decode_first", "decode"):
        if stage in program.runtime.stages:
            assert worst(program, folder, stage) < limit, stage
    for window in WINDOWS:
        table = torch.tensor(window, dtype=torch.int64)
        assert worst(program, folder, "denoise", page_table=table) < limit, window


@pytest.mark.parametrize("dialect", ["standard", "portable"])
def test_every_stage_in_fp32(in_fp32: Program, dialect: str, tmp_path: Path) -> None:
    folder = in_fp32.export(dialect, tmp_path / "m")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{stage}.onnx" for stage in STAGES), FILE]
    )
    check_all(in_fp32, folder, 1e-4)


@pytest.mark.parametrize("dialect", ["standard", "portable"])
def test_in_bf16_it_is_no_farther_than_bf16_is_from_fp32(
    in_bf16: Program, in_fp32: Program, dialect: str, tmp_path: Path
) -> None:
    """Both programs have the same codes, so their distance is what rounding to bf16 does."""
    folder = in_bf16.export(dialect, tmp_path / "m")
    for stage in ("condition", "modulate", "denoise", "decode_first", "decode"):
        wanted = in_bf16.wanted(stage)
        given = {
            spec.name: in_bf16.values[spec.name].to(spec.dtype)
            for spec in in_fp32.runtime.stage(stage).inputs
        }
        exact = in_fp32.wanted(stage, **given)
        rounding = max(error(exact[n].numpy(), tensor) for n, tensor in wanted.items())
        assert worst(in_bf16, folder, stage) < 1.5 * rounding, stage


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
def test_the_max_rule_in_every_dialect(
    make_program: Make, tiny_config: ModelConfig, dialect: str, tmp_path: Path
) -> None:
    program = make_program(tiny_config, MAX)
    check_all(program, program.export(dialect, tmp_path / "m"), 1e-4)


@pytest.mark.parametrize("kv_format", ["fp8", "none"])
def test_other_pages_another_size_and_relative_positions(
    make_program: Make, tiny_config: ModelConfig, kv_format: str, tmp_path: Path
) -> None:
    stream = replace(tiny_config.stream, relative_rope=kv_format == "fp8")
    config = replace(tiny_config, stream=stream, latent_hw=(6, 4))
    program = make_program(config, replace(FP32, kv=KvRecipe(kv_format)))
    check_all(program, program.export("portable", tmp_path / "m"), 1e-4)


def test_another_size_with_two_latents_per_call(
    make_program: Make, whole_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(whole_config, latent_hw=(6, 8))
    program = make_program(config, replace(FP32, decode=DecodeRecipe(2)))
    check_all(program, program.export("portable", tmp_path / "m"), 1e-4)


def test_a_stage_that_cannot_be_said_leaves_nothing_behind(
    make_program: Make, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    program = make_program(tiny_config, NVFP4)
    with pytest.raises(TargetError, match="four_over_six") as caught:
        export(program.box, DIALECTS["trt"], tmp_path / "m")
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
