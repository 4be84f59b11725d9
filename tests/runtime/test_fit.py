"""A box that is sealed, but whose parts do not fit: one error that says which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llvq import graphs
from llvq.errors import ArtifactError
from llvq.runtime.load import open_checked

if TYPE_CHECKING:
    from .conftest import Forger

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def no_graph_is_built(honest_box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        pytest.fail("a graph was built")

    monkeypatch.setattr(graphs, "load", fail)


def swap_inputs(manifest: dict[str, Any]) -> None:
    contract = manifest["contract"]["denoise"]
    contract[0], contract[1] = contract[1], contract[0]


def in_spec(index: int, **changes: Any) -> Change:
    return lambda m: m["contract"]["denoise"][index].update(changes)


def in_state(**changes: Any) -> Change:
    return lambda m: m["state"].update(changes)


def in_outputs(stage: str, outputs: Any) -> Change:
    return lambda m: m["stages"][stage].update(outputs=outputs)


CHANGES: dict[str, tuple[Change, str]] = {
    "no contract": (lambda m: m["contract"].pop("denoise"), "stage denoise is not in both"),
    "no stage": (lambda m: m["stages"].pop("denoise"), "stage denoise is not in both"),
    "no outputs": (lambda m: m["stages"]["denoise"].clear(), "outputs are not a list"),
    "outputs": (in_outputs("denoise", [1]), "outputs are not a list"),
    "two outputs": (in_outputs("denoise", ["velocity", "x"]), "has 2 outputs, its graph returns 1"),
    "other output": (in_outputs("denoise", ["speed"]), "does not give velocity"),
    "contract type": (lambda m: m["contract"].update(denoise={}), "contract is not a list"),
    "short contract": (lambda m: m["contract"]["denoise"].pop(), "its graph"),
    "swapped": (swap_inputs, "in the contract"),
    "spec type": (lambda m: m["contract"].update(denoise=[1]), "it is a int"),
    "rate": (in_spec(0, rate="hourly"), "none of the rates"),
    "dtype": (in_spec(0, dtype="float32"), "in the graph"),
    "shape": (in_spec(0, shape=[1]), "in the graph"),
    "huge": (in_spec(0, shape=[10**15]), "in the graph"),
    "twice": (in_spec(1, name="latent"), "an input twice"),
    "from nowhere": (in_spec(0, name="nothing"), "comes from nowhere"),
    "steps": (in_state(steps=-1), "steps is -1"),
    "latent size": (in_state(latent_hw=[4, 8]), "input latent of"),
    "text length": (in_state(text_len=6), "prompt_embeds of condition"),
    "window": (in_state(window_frames=6), "page_table of denoise"),
    "chunk": (in_state(frames_per_chunk=1), "input latent of"),
    "channels": (in_state(latent_channels=9), "input latent of"),
    "dtype of all": (in_state(dtype="float32"), "input latent of"),
    "loops": (
        lambda m: m["state"]["loops"].append(["decode_state.0", "nothing"]),
        "loop nothing -> decode_state.0 is not of a stage",
    ),
    "no state": (
        lambda m: m["contract"]["decode"][-1].update(rate="emit"),
        "of decode comes from nowhere",
    ),
    "state of the denoiser": (in_spec(0, rate="state"), "which nobody holds as state"),
    "pages": (
        lambda m: m["state"]["pages"]["tensors"][0].__setitem__(2, [2**20, 2**20]),
        "input pages.codes",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_parts_that_do_not_fit(forger: Forger, name: str) -> None:
    change, problem = CHANGES[name]
    forger.manifest(change)
    with pytest.raises(ArtifactError) as caught:
        open_checked(forger.path)
    assert problem in str(caught.value)
    assert str(caught.value).count("\n") == 3 and str(forger.path) in str(caught.value)


def test_a_graph_that_returns_no_tuple(forger: Forger) -> None:
    forger.graph("denoise", lambda nodes: nodes[-1].update(args=[None]))
    with pytest.raises(ArtifactError, match="do not fit each other") as caught:
        open_checked(forger.path)
    assert "does not return a tuple of nodes" in str(caught.value)


def test_an_honest_box_fits(honest_box: Path) -> None:
    open_checked(honest_box)
