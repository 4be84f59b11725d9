"""One tiny program, and packed weights of any size."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from llvq.artifact import Box
from llvq.box import write_program
from llvq.calibration import calibration_of
from llvq.compiler import Compiled, compile_model
from llvq.formats import nvfp4
from llvq.models.config import ModelConfig
from llvq.recipe import BF16, NVFP4, Recipe
from llvq.runtime.load import open_checked
from llvq.sources import DictSource, PackedWeight, TensorSource


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


@dataclass(frozen=True)
class Made:
    """A program, compiled and written, and what it was made of."""

    compiled: Compiled
    source: TensorSource
    program: Box


def facts_about(weights: DictSource, kind: str) -> dict[str, Tensor]:
    """Facts of every linear of the blocks as AWQ or SVDQuant finds them, in bf16.

    Linears of block 0 that read one value share its factor, those of block 1 do not; there two
    that read different values have equal ones, and only one of these is behind a norm.
    """
    found: dict[str, Tensor] = {}
    for name in weights.names():
        shape, layer = weights.spec(name).shape, name.removesuffix(".weight")
        if ".blocks." not in name or not name.endswith(".weight") or len(shape) != 2:
            continue
        alike = re.sub(r"(0.self_attn.)[kv]$", r"\1q", layer)
        alike = re.sub(r"(cross_attn.)v$", r"\1k", re.sub(r"(1.cross_attn.)q$", r"\1o", alike))
        seed = torch.Generator().manual_seed(zlib.crc32(alike.encode()))
        factor = torch.rand(shape[1], generator=seed) + 0.5
        found[f"{layer}.pre_quant_scale"] = factor.bfloat16()
        siblings = re.sub(r"self_attn.[kv]$", "self_attn.q", alike)
        found[f"{layer}.input_scale"] = torch.tensor(8.0 + len(siblings) / 9) / (6 * 448)
        if kind == "svd":
            random = torch.Generator().manual_seed(zlib.crc32(layer.encode()))
            for half, size in (("down", (4, shape[1])), ("up", (shape[0], 4))):
                branch = torch.randn(size, generator=random) * 0.1
                found[f"{layer}.lora_{half}"] = branch.bfloat16()
    return found


@pytest.fixture(scope="session")
def make_program(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig
) -> Callable[..., Made]:
    """A program of a source, with the facts that are in it."""

    def make(source: TensorSource, recipe: Recipe = NVFP4) -> Made:
        compiled = compile_model(tiny_config, recipe, calibration=calibration_of(source))
        path = tmp_path_factory.mktemp("program") / "tiny.nvfp4"
        write_program(compiled, source, path)
        return Made(compiled, source, open_checked(path, kinds=("program",)))

    return make


def joined(weights: DictSource, facts: Mapping[str, Tensor]) -> DictSource:
    return DictSource({**{name: weights.read(name) for name in weights.names()}, **facts})


@pytest.fixture(scope="session", params=["awq", "svd"])
def smoothed(
    request: pytest.FixtureRequest, make_program: Callable[..., Made], weights: DictSource
) -> Made:
    """Programs whose weights were quantized behind factors, and beside branches."""
    return make_program(joined(weights, facts_about(weights, request.param)))


@pytest.fixture(scope="session")
def smoothed_fp32(make_program: Callable[..., Made], weights: DictSource) -> Made:
    """Factors and branches in fp32, by ModelOpt's rules: for comparison with its arithmetic."""
    linear = replace(NVFP4.linear, weight_rule="max", activation_rule="max")
    recipe = replace(NVFP4, dtype="float32", linear=linear, kv=BF16.kv)
    return make_program(joined(weights, facts_about(weights, "svd")), recipe)
