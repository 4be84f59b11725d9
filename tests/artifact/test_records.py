"""What tables read of a manifest has the form they read it in."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from llvq.artifact.records import check_records
from llvq.errors import ArtifactError

BOOK = {"rule": "linear", "hits": 1, "stopped": 0, "excluded": {"*head": 1}, "tolerated": {}}
GOOD: dict[str, Any] = {
    "recipe": {
        "name": "mine",
        "dtype": "bfloat16",
        "linear": {"weight_rule": "max", "activation_rule": "max", "exclude": ["*head"]},
        "kv": {"format": "nvfp4"},
        "allow_miss": {"fuse-linear": {"*": "small"}},
    },
    "passes": [
        {
            "name": "fuse",
            "level": "fused",
            "numerics": "exact",
            "nodes": [3, 2],
            "ops": {"aten.linear.default": [2, 0]},
            "books": [{**BOOK, "misses": [], "sites": 2}],
        }
    ],
    "weights": {"q": {"op": "copy", "sources": ["q"]}},
    "unchecked": {"decode": "too large"},
    "implementations": {"llvq.rope.default": {"triton": 2}},
    "lora": [{"name": "a.pt", "sha256": "0" * 64, "rank": 4, "alpha": 4.0, "layers": 10}],
}


def test_what_llvq_writes_is_accepted() -> None:
    check_records(GOOD, where="box")


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("recipe", "linear"), None, "recipe.linear is not a dict"),
        (("recipe", "linear"), {}, "recipe.linear.weight_rule is missing"),
        (("recipe", "linear", "exclude", 0), 1.5, "recipe.linear.exclude.0 is not a str"),
        (("recipe", "allow_miss", "fuse-linear"), [], "recipe.allow_miss.fuse-linear is not"),
        (("passes", 0), "fuse", "passes.0 is not a dict"),
        (("passes", 0, "nodes"), [1], "passes.0.nodes is not a count before and one after"),
        (("passes", 0, "books", 0, "hits"), True, "passes.0.books.0.hits is not a int"),
        (("passes", 0, "books", 0, "excluded", "*head"), "1", "excluded.*head is not a int"),
        (("weights", "q"), [], "weights.q is not a dict"),
        (("lora", 0, "rank"), 4.5, "lora.0.rank is not a int"),
        (("unchecked", "decode"), None, "unchecked.decode is not a str"),
        (("implementations", "llvq.rope.default"), 2, "implementations.llvq.rope.default is not"),
    ],
    ids=str,
)
def test_another_form_is_refused(path: tuple[Any, ...], value: Any, problem: str) -> None:
    manifest = deepcopy(GOOD)
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ArtifactError, match="wrong fields") as caught:
        check_records(manifest, where="box")
    assert problem in str(caught.value)
