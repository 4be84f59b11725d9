"""Specs survive a manifest, and a tensor that was not compiled for is named with what was."""

from __future__ import annotations

import json
import timeit

import pytest
import torch

from llvq.errors import ContractError
from llvq.runtime.contract import InputSpec, check

LATENT = InputSpec("latent", torch.bfloat16, (1, 48, 8, 4, 4), "call")
PAGES = InputSpec("pages", torch.int64, (None,), "chunk", allowed=(0, 1, 2, 3))
SPECS = (LATENT, PAGES)


def tensors() -> dict[str, torch.Tensor]:
    return {
        "latent": torch.empty(1, 48, 8, 4, 4, dtype=torch.bfloat16, device="meta"),
        "pages": torch.empty(3, dtype=torch.int64, device="meta"),
    }


def message(changes: dict[str, torch.Tensor]) -> str:
    with pytest.raises(ContractError) as caught:
        check(SPECS, {**tensors(), **changes}, stage="denoise")
    assert str(caught.value).count("\n") == 3
    assert "stage denoise" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("length", PAGES.allowed)
def test_every_bucket_is_admitted(length: int) -> None:
    check(SPECS, {**tensors(), "pages": torch.empty(length, dtype=torch.int64)}, stage="denoise")


def test_a_wrong_dtype_is_named() -> None:
    text = message({"latent": tensors()["latent"].float()})
    assert "input latent is float32 [1, 48, 8, 4, 4]" in text
    assert "expected bfloat16 [1, 48, 8, 4, 4]" in text
    assert "latent.to(torch.bfloat16)" in text


def test_a_wrong_shape_is_named() -> None:
    assert "is bfloat16 [1, 48, 8, 4, 6]" in message(
        {"latent": torch.empty(1, 48, 8, 4, 6, dtype=torch.bfloat16)}
    )
    assert "is bfloat16 [48, 8, 4, 4], expected bfloat16 [1, 48, 8, 4, 4]" in message(
        {"latent": tensors()["latent"][0]}
    )


def test_a_length_outside_the_buckets_is_named() -> None:
    text = message({"pages": torch.empty(4, dtype=torch.int64)})
    assert "input pages is int64 [4], expected int64 [0|1|2|3]" in text


def test_missing_and_surplus_inputs_are_named() -> None:
    with pytest.raises(ContractError, match="input pages is missing, expected int64"):
        check(SPECS, {"latent": tensors()["latent"]}, stage="denoise")
    assert "input sigma is not an input" in message({"sigma": torch.empty(1)})


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_specs_survive_a_manifest(spec: InputSpec) -> None:
    assert InputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat17"},
        {"dtype": "nn"},
        {"rate": "hourly"},
        {"allowed": []},
        {"shape": [4]},
        {"shape": [None, None]},
        {"device": "cuda"},
        {"dtype": None},
        {"rate": []},
        {"shape": None},
        {"shape": [None, -1]},
        {"shape": [None, 1.5]},
        {"allowed": [True]},
        {"allowed": ["3"]},
    ],
    ids=str,
)
def test_invalid_specs_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ContractError, match="description of input pages"):
        InputSpec.from_dict({**PAGES.to_dict(), **change})


def test_missing_entries_are_refused() -> None:
    with pytest.raises(ContractError, match="description of input latent") as caught:
        InputSpec.from_dict({"name": "latent"})
    assert "dtype" in str(caught.value)


def test_what_is_no_description_is_refused() -> None:
    with pytest.raises(ContractError, match="description of input"):
        InputSpec.from_dict([1])  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="description of input 3"):
        InputSpec.from_dict({**PAGES.to_dict(), "name": 3})


def test_a_check_takes_microseconds() -> None:
    given = tensors()
    fastest = min(timeit.repeat(lambda: check(SPECS, given, stage="denoise"), number=100, repeat=5))
    assert fastest / 100 < 100e-6
