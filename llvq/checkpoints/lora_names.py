"""Names of a LoRA's tensors, as PEFT gives them, to names of the weights that they change.

`base_model.model.model.blocks.0.self_attn.q.lora_A.weight`, with the name of the adapter before
`weight` or without, under `generator_lora` in a training checkpoint. Of the model's own names both
spellings are known (llvq.checkpoints.wan_names).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llvq.checkpoints.module_names import unwrapped
from llvq.checkpoints.wan_names import to_original

GROUP = "generator_lora"
GROUPS = (GROUP, "critic_lora")
PEFT = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight", re.ASCII)
OUTER = ("base_model", "transformer")


def is_lora(names: Sequence[str]) -> bool:
    """Whether all tensors of a file are of LoRAs."""
    return all(name.split(".")[0] in GROUPS or PEFT.fullmatch(name) for name in names)


def of_generator(names: Sequence[str]) -> list[str]:
    """The tensors of the generator's LoRA: those under `generator_lora`, or all if none are."""
    grouped = [name for name in names if name.startswith(f"{GROUP}.")]
    return grouped or list(names)


def changed_weight(name: str) -> tuple[str, str] | None:
    """(`blocks.0.self_attn.q.weight`, `A` or `B`); None if it is no such tensor of a LoRA."""
    match = PEFT.fullmatch(name.removeprefix(f"{GROUP}."))
    if match is None:
        return None
    module = unwrapped(match[1])
    while module.split(".")[0] in OUTER:
        module = unwrapped(module.partition(".")[2])
    weight = f"{module}.weight"
    return to_original(weight) or weight, match[2]
