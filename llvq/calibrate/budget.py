"""Spend a budget of bits: which linears stay in bf16, given what each would cost and buy back.

The budget is effective bits per weight over the linears that the recipe quantizes: NVFP4 is 4.5
(4 and one 8-bit scale for 16), bf16 is 16. Layers are taken by energy bought back per bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llvq.errors import RecipeError
from llvq.formats.nvfp4 import BLOCK
from llvq.recipe import Recipe

NVFP4_BITS, KEPT_BITS = 4 + 8 / BLOCK, 16.0
SPELLING = re.compile(r"(\d+(?:\.\d+)?)\s*(?:bits?)?")


@dataclass(frozen=True)
class Kept:
    """One layer that the budget keeps: `share` of the energy of all layers, and its weights."""

    layer: str
    share: float
    elements: int


@dataclass(frozen=True)
class Spending:
    """`kept`, most worth first; `bits` is what they come to, and `share` what they buy back."""

    kept: tuple[Kept, ...]
    bits: float

    @property
    def share(self) -> float:
        return sum(layer.share for layer in self.kept)


def parse_budget(text: str) -> float:
    """`4.7bits`, `4.7 bits` or `4.7`. Raises RecipeError outside of 4.5 .. 16."""
    match = SPELLING.fullmatch(text.strip())
    bits = float(match[1]) if match else 0.0
    if NVFP4_BITS <= bits <= KEPT_BITS:
        return bits
    raise RecipeError(
        f"no budget {text!r}",
        because=f"NVFP4 is {NVFP4_BITS:g} bits a weight with its scales, bf16 is {KEPT_BITS:g}",
        fix="write something between, such as --budget 4.7bits",
    )


def spend(scores: Mapping[str, float], elements: Mapping[str, int], budget: float) -> Spending:
    """Choose greedily. `scores`: energy per layer; `elements`: weights per layer."""
    total, energy = sum(elements.values()), sum(scores.values()) or 1.0
    room = (budget - NVFP4_BITS) / (KEPT_BITS - NVFP4_BITS) * total
    spent, kept = 0, []
    for layer in sorted(scores, key=lambda name: (-scores[name] / elements[name], name)):
        if scores[layer] > 0 and spent + elements[layer] <= room:
            spent += elements[layer]
            kept.append(Kept(layer, scores[layer] / energy, elements[layer]))
    bits = NVFP4_BITS + (KEPT_BITS - NVFP4_BITS) * spent / total
    return Spending(tuple(kept), bits)


def with_budget(recipe: Recipe, spending: Spending, *, prefix: str) -> Recipe:
    """The recipe that keeps those layers too, and says why of each."""
    because = {
        f"{prefix}{kept.layer}": f"carries {kept.share:.1%} of the first-order error of the "
        f"velocity in {kept.elements} weights"
        for kept in spending.kept
    }
    linear = replace(
        recipe.linear,
        exclude=(*recipe.linear.exclude, *because),
        because={**recipe.linear.because, **because},
    )
    return replace(recipe, name=f"{recipe.name}-{spending.bits:.3g}bits", linear=linear)
