"""The manager: names are checked, passes run in order, books balance, a limit cuts anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from llvq.compiler import Compiled, compile_model, instantiate
from llvq.errors import MissError, OutputError, RecipeError, SpecError
from llvq.models.config import ModelConfig
from llvq.passes import PIPELINE, Options, run
from llvq.passes.manager import Pass, Result
from llvq.program import Level, Program
from llvq.recipe import BF16, NVFP4
from llvq.runtime.denoiser import Denoiser
from llvq.runtime.sampler import schedule
from llvq.sources import DictSource

NAMES = [step.name for step in PIPELINE]
FP32 = replace(BF16, dtype="float32")


def test_names_are_functions_and_summaries_sentences() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for step in PIPELINE:
        assert step.name == step.function.__name__.replace("_", "-")
        assert step.summary and not step.summary.startswith(step.name)


def test_no_pass_skips_a_rung() -> None:
    levels = [Level.CAPTURED, *(step.reaches for step in PIPELINE)]
    steps = [after - before for before, after in pairwise(levels)]
    assert set(steps) <= {0, 1} and levels[-1] == Level.STAGED


@pytest.mark.parametrize(
    "options",
    [
        Options(disable=("raise-atention",)),
        Options(print_ir_after=("raise-atention",)),
        Options(stop_after="raise-atention"),
    ],
)
def test_an_unknown_pass_is_refused_with_the_nearest(program: Program, options: Options) -> None:
    with pytest.raises(RecipeError, match="no pass 'raise-atention'") as caught:
        run(program, NVFP4, PIPELINE, options)
    assert "did you mean 'raise-attention'?" in str(caught.value)


@pytest.mark.parametrize("name", [step.name for step in PIPELINE if not step.optional])
def test_a_pass_that_makes_a_level_cannot_be_disabled(program: Program, name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} cannot be disabled") as caught:
        run(program, NVFP4, PIPELINE, Options(disable=(name,)))
    assert "fuse-gelu-quantize" in str(caught.value)


def test_optional_passes_can_all_be_disabled(program: Program) -> None:
    optional = tuple(step.name for step in PIPELINE if step.optional)
    result = run(program, NVFP4, PIPELINE, Options(disable=optional))
    assert [report.name for report in result.reports] == [n for n in NAMES if n not in optional]
    assert not any("gelu_quantize" in name for name in program.op_counts())
    assert program.level == Level.STAGED


@pytest.mark.parametrize("name", ["canonicalize", "raise-qk-norm-rope", "cache-attention"])
def test_stop_after_stops_there(program: Program, name: str) -> None:
    result = run(program, NVFP4, PIPELINE, Options(stop_after=name))
    assert result.reports[-1].name == name
    assert program.level == PIPELINE[NAMES.index(name)].reaches


def test_ir_is_shown_after_the_named_passes(program: Program) -> None:
    shown: list[str] = []
    options = Options(
        print_ir_after=("raise-attention", "canonicalize"),
        stop_after="raise-norm-modulate",
        show=shown.append,
    )
    run(program, NVFP4, PIPELINE, options)
    heads = [text.splitlines()[0] for text in shown]
    assert heads == ["// IR after canonicalize", "// IR after raise-attention"]
    assert "llvq.attention" not in shown[0] and "llvq.attention" in shown[1]


def test_ir_after_all(program: Program) -> None:
    shown: list[str] = []
    run(program, NVFP4, PIPELINE, Options(print_ir_after=("all",), show=shown.append))
    assert [text.split("\n")[0].removeprefix("// IR after ") for text in shown] == NAMES


def test_dumps_are_files_in_the_order_of_the_passes(program: Program, tmp_path: Path) -> None:
    run(program, NVFP4, PIPELINE, Options(dump=tmp_path / "ir"))
    files = sorted((tmp_path / "ir").iterdir())
    assert [path.stem.split("-", 1)[1] for path in files] == NAMES
    assert files[-1].read_text(encoding="utf-8") == program.text() + "\n"


def test_books_balance_and_account_for_every_linear(program: Program) -> None:
    result = run(program, NVFP4, PIPELINE)
    books = [book for report in result.reports for book in report.books]
    assert books and all(book.balanced and not book.stopped for book in books)
    report = next(r for r in result.reports if r.name == "insert-quantize")
    assert (report.total("sites"), report.total("hits"), report.total("excluded")) == (26, 20, 6)
    assert report.total("misses") == 0


def test_reports_are_data(program: Program) -> None:
    result = run(program, NVFP4, PIPELINE)
    rows = [report.to_dict(timing=False) for report in result.reports]
    assert [row["name"] for row in rows] == NAMES and "ms" not in rows[0]
    assert "ms" in result.reports[0].to_dict()
    for before, after in pairwise(rows):
        assert before["nodes"][1] == after["nodes"][0]


def test_the_same_program_gives_the_same_rows_and_text(program: Program) -> None:
    def rows(result: Result) -> list[object]:
        return [report.to_dict(timing=False) for report in result.reports]

    twin = program.copy()
    assert rows(run(program, NVFP4, PIPELINE)) == rows(run(twin, NVFP4, PIPELINE))
    assert program.digest() == twin.digest() and program.diff(twin) == ""


def break_norm(program: Program) -> str:
    """Scale one norm by 2 + scale, which no rule knows. Returns its module path."""
    graph = program.graph.graph
    norm = next(n for n in graph.nodes if n.target is torch.ops.aten.layer_norm.default)
    plus_one = next(
        n for n in norm.graph.nodes if n.target is torch.ops.aten.add.Tensor and n.args[1] == 1
    )
    plus_one.args = (plus_one.args[0], 2)
    return "dit.blocks.0"


def test_a_miss_ends_the_compilation(program: Program) -> None:
    path = break_norm(program)
    with pytest.raises(MissError, match="rule norm-modulate left 1 of 5 sites") as caught:
        run(program, BF16, PIPELINE)
    _, at, because, fix = str(caught.value).splitlines()
    assert path in at and "dit.py:" in at and "layer_norm" in at
    assert "expected 1, found 2" in because
    assert f'[allow_miss."raise-norm-modulate"] "{path}"' in fix


def test_a_miss_that_later_passes_need_cannot_be_accepted(program: Program) -> None:
    sdpa = torch.ops.aten.scaled_dot_product_attention.default
    node = next(n for n in program.graph.graph.nodes if n.target is sdpa)
    node.args = (*node.args[:3], None, 0.5)
    with pytest.raises(MissError, match="rule attention left 1 of 4 sites") as caught:
        run(program, BF16, PIPELINE)
    assert "write the model so that it matches" in str(caught.value)


@pytest.mark.parametrize("glob", ["dit.blocks.0", "dit.blocks.*", "*"])
def test_a_miss_can_be_accepted_by_glob_and_is_reported(program: Program, glob: str) -> None:
    break_norm(program)
    recipe = replace(BF16, allow_miss={"raise-norm-modulate": {glob: "an odd layer"}})
    tolerant = Options(stop_after="raise-norm-modulate")
    result = run(program, recipe, PIPELINE, tolerant)
    (book,) = result.reports[-1].books
    assert book.tolerated == {glob: 1} and book.balanced
    assert result.reports[-1].total("misses") == 1


def test_what_a_pass_wrongly_records_is_found_after_it(program: Program) -> None:
    step = Pass(forget_to_infer, Level.CAPTURED, "exact")
    with pytest.raises(SpecError, match="not legal"):
        run(program, NVFP4, (step,))


def forget_to_infer(program: Program, ctx: object) -> list[object]:
    node = next(n for n in program.graph.graph.nodes if n.target is torch.ops.aten.gelu.default)
    node.meta["val"] = node.meta["val"].float()
    return []


def test_a_limit_makes_the_first_rewrites_and_no_more(program: Program) -> None:
    made = [(r.pass_name, r.rule) for r in run(program.copy(), NVFP4, PIPELINE).rewrites]
    for limit in (0, len(made) // 2):
        result = run(program.copy(), NVFP4, PIPELINE, Options(limit=limit))
        assert [(r.pass_name, r.rule) for r in result.rewrites] == made[:limit]
        assert all(book.balanced for report in result.reports for book in report.books)


def test_a_program_that_a_limit_cut_short_computes_the_same(
    tiny_config: ModelConfig,
    compiled_fp32: Compiled,
    make_weights: Callable[[ModelConfig], DictSource],
) -> None:
    weights = make_weights(tiny_config)
    expected = first_chunk(compiled_fp32, weights)
    for limit in (0, len(compiled_fp32.rewrites) * 2 // 3):
        cut = compile_model(tiny_config, FP32, options=Options(limit=limit))
        torch.testing.assert_close(first_chunk(cut, weights), expected)


def first_chunk(compiled: Compiled, weights: DictSource) -> torch.Tensor:
    stream, generator = compiled.config.stream, torch.Generator().manual_seed(0)
    denoiser = Denoiser(instantiate(compiled, weights), schedule(2, stream.shift))
    noise = torch.randn(1, 2, 8, 4, 6, generator=generator)
    prompt = torch.randn(1, 5, 32, generator=generator)
    return denoiser.run(0, noise, prompt, scene_cut=False, image=None).x0


def test_a_dump_that_cannot_be_written_is_an_output_error(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match=r"01-canonicalize\.txt could not be written") as caught:
        run(program, BF16, PIPELINE, Options(dump=tmp_path / "file" / "ir"))
    assert "--dump" in str(caught.value)
