from __future__ import annotations

from pathlib import Path

import pytest

from llvq.checkpoints.module_names import module_names, root_of, unwrapped
from llvq.errors import CheckpointError

PATH = Path("m.pt")


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.ffn.0.weight",
        "model.blocks.0.ffn.0.weight",
        "model._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.ffn.0.weight",
        "module._orig_mod.model.blocks.0._checkpoint_wrapped_module.ffn.0.weight",
        "model.diffusion_model.blocks.0.ffn.0.weight",
    ],
)
def test_wrappers_leave_no_trace(name: str) -> None:
    assert unwrapped(name) == "blocks.0.ffn.0.weight"


@pytest.mark.parametrize(
    ("names", "use_ema", "root"),
    [
        (["a", "b"], False, ""),
        (["model.a"], False, "model"),
        (["generator.a", "generator_ema.a", "critic.a"], False, "generator"),
        (["generator.a", "generator_ema.a"], True, "generator_ema"),
        (["generator_ema.a"], False, "generator_ema"),
    ],
)
def test_where_the_denoiser_is(names: list[str], use_ema: bool, root: str) -> None:
    assert root_of(names, use_ema=use_ema, path=PATH)[0] == root


def test_other_weights_in_the_file_are_told() -> None:
    assert (
        "--use-ema" in root_of(["generator.a", "generator_ema.a"], use_ema=False, path=PATH)[1][0]
    )
    assert "EMA weights only" in root_of(["generator_ema.a"], use_ema=False, path=PATH)[1][0]


def test_two_denoisers_or_the_wrong_one_asked_for() -> None:
    with pytest.raises(CheckpointError, match="may hold two denoisers"):
        root_of(["generator.a", "model.a"], use_ema=False, path=PATH)
    with pytest.raises(CheckpointError, match="no EMA weights"):
        root_of(["generator.a"], use_ema=True, path=PATH)


def test_only_what_is_under_the_root_and_every_name_once() -> None:
    names = ["generator.model.a", "critic.model.a", "generator.model._orig_mod.b"]
    assert module_names(names, "generator", PATH) == {"a": names[0], "b": names[2]}
    with pytest.raises(CheckpointError, match="a is there twice"):
        module_names(["a", "module.a"], "", PATH)
