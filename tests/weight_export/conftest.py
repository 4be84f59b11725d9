"""One tiny program, and packed weights of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from llvq.artifact import Box
from llvq.box import write_program
from llvq.compiler import Compiled
from llvq.formats import nvfp4
from llvq.models.config import ModelConfig
from llvq.runtime.load import open_checked
from llvq.sources import DictSource, PackedWeight


@dataclass(frozen=True)
class Held:
    """A PackedWeight in memory."""

    q: nvfp4.Nvfp4

    def global_scale(self) -> Tensor:
        return self.q.global_scale

    def read_rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.q.codes[start:stop], self.q.scales[start:stop]


class PackedDict(DictSource):
    """A TensorSource in memory, some of whose weights are packed."""

    def __init__(self, tensors: Mapping[str, Tensor], held: Mapping[str, Held]) -> None:
        super().__init__(tensors)
        self.held = held

    def packed(self, name: str) -> PackedWeight | None:
        return self.held.get(name)


Make = Callable[..., PackedDict]


@pytest.fixture(scope="session")
def make_packed() -> Make:
    """Linear `a` [rows, columns] packed by a rule, `b` in bf16; `facts` beside `a`."""

    def make(
        rows: int, columns: int, *, rule: str = "four_over_six", seed: int = 3, **facts: Tensor
    ) -> PackedDict:
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(rows, columns, generator=generator, dtype=torch.bfloat16) * 0.05
        q = nvfp4.quantize(w, block_rule=rule)
        values = nvfp4.dequantize(q.codes, q.scales, q.global_scale, torch.bfloat16)
        tensors = {"a.weight": values, "a.bias": torch.ones(rows, dtype=w.dtype), "b.weight": w}
        beside = {f"a.{name}": value for name, value in facts.items()}
        return PackedDict(tensors | beside, {"a.weight": Held(q)})

    return make


@pytest.fixture(scope="session")
def program(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_config: ModelConfig,
    compiled_nvfp4: Compiled,
    make_weights: Callable[[ModelConfig], DictSource],
) -> Box:
    path = tmp_path_factory.mktemp("program") / "tiny.nvfp4"
    write_program(compiled_nvfp4, make_weights(tiny_config), path)
    return open_checked(path, kinds=("program",))


@pytest.fixture(scope="session")
def weights(
    tiny_config: ModelConfig, make_weights: Callable[[ModelConfig], DictSource]
) -> DictSource:
    """What the program was made of, with the prefix of the captured model."""
    return make_weights(tiny_config)
