from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn

from llvq.checkpoints.lora_names import changed_weight, is_lora, of_generator

TAIL = "blocks.0.self_attn.q"


class Wrapper(nn.Module):
    """As LongLive's: an attribute `model` that is the denoiser."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.blocks = nn.ModuleList([nn.Module()])
        self.model.blocks[0].self_attn = nn.Module()
        self.model.blocks[0].self_attn.q = nn.Linear(4, 4)


def test_the_names_that_peft_gives_are_understood() -> None:
    peft = get_peft_model(Wrapper(), LoraConfig(r=2, target_modules=["q"]))
    for names in (
        list(get_peft_model_state_dict(peft)),
        [n for n in peft.state_dict() if "lora" in n],
    ):
        assert is_lora(names)
        assert {changed_weight(name) for name in names} == {
            (f"{TAIL}.weight", "A"),
            (f"{TAIL}.weight", "B"),
        }


@pytest.mark.parametrize(
    "name",
    [
        f"generator_lora.base_model.model.model.{TAIL}.lora_B.weight",
        f"generator_lora.base_model.model._fsdp_wrapped_module.{TAIL}.lora_B.default.weight",
        f"base_model.model.{TAIL}.lora_B.generator.weight",
        "transformer.blocks.0.attn1.to_q.lora_B.weight",
    ],
)
def test_other_wrappings(name: str) -> None:
    assert changed_weight(name) == (f"{TAIL}.weight", "B")


@pytest.mark.parametrize(
    "name",
    [
        f"{TAIL}.lora_magnitude_vector.weight",
        f"{TAIL}.lora_embedding_A",
        f"{TAIL}.lora_C.weight",
        f"{TAIL}.weight",
        "lora_A.weight",
    ],
)
def test_what_is_none(name: str) -> None:
    assert changed_weight(name) is None


def test_the_critics_is_left_alone() -> None:
    names = ["generator_lora.a.lora_A.weight", "critic_lora.a.lora_A.weight"]
    assert of_generator(names) == names[:1] and is_lora(names)
    assert of_generator(["a.lora_A.weight"]) == ["a.lora_A.weight"]
    assert not is_lora([*names, "generator.a.weight"])
