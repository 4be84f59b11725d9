"""A model whose weights come from the memory of the host computes what it does with them on the
device, whenever the copies happen to be made."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from llvq import graphs
from llvq.backends.base import CPU
from llvq.bench.stages import random_script
from llvq.box import export_box, write_program
from llvq.compiler import Compiled, with_constants, with_weights
from llvq.graphs.weight_groups import SLOTS, Limits, group_all, weight_uses
from llvq.models.config import ModelConfig
from llvq.runtime import load
from llvq.runtime.executable import Executable
from llvq.runtime.load import executable, open_checked
from llvq.runtime.session import Session
from llvq.runtime.streamed_weights import HostMemory, Pairs, families, stream_weights
from llvq.sources import DictSource

DEVICE = torch.device("cpu")
SMALL = Limits(sizes=(2**13,), smallest=256)
Make = Callable[[], Executable]


@pytest.fixture(scope="module")
def path(
    compiled_whole: Compiled,
    whole_config: ModelConfig,
    make_whole_weights: Callable[[ModelConfig], DictSource],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("streamed")
    write_program(compiled_whole, make_whole_weights(whole_config), folder / "m.nvfp4")
    export_box(open_checked(folder / "m.nvfp4"), CPU, folder / "m.llvq")
    return folder / "m.llvq"


@pytest.fixture
def make(
    compiled_whole: Compiled,
    whole_config: ModelConfig,
    make_whole_weights: Callable[[ModelConfig], DictSource],
) -> Make:
    """Graphs as a loader has them when it makes their weights stream."""
    source = with_constants(compiled_whole, make_whole_weights(whole_config))

    def made() -> Executable:
        stages = with_weights(compiled_whole.stages, compiled_whole.weights, source)
        return Executable(stages, compiled_whole.facts, DEVICE)

    return made


def video(model: Executable, chunks: int = 3) -> list[Tensor]:
    """Latents and frames of every chunk."""
    made: list[Tensor] = []
    for chunk in Session(model, random_script(model, chunks), seed=3, steps=2):
        assert chunk.frames is not None
        made += [chunk.latents.clone(), chunk.frames.clone()]
    return made


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_a_box_in_little_memory_makes_the_same_video(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "LIMITS", SMALL)
    box = open_checked(path)
    wanted = video(executable(box, "cpu"))
    model = executable(box, "cpu", low_memory=True)
    assert model.streamed is not None and model.streamed.copied["denoise"] > 0
    assert_same(video(model), wanted)
    assert_same(video(model), wanted)  # with what the first one left in the slots


class Late:
    """Copies as late as it may: when somebody waits for one, all up to that one."""

    def __init__(self) -> None:
        self.open: deque[tuple[int, Pairs]] = deque()
        self.count = 0

    def copy(self, pairs: Pairs, after: Any) -> int:
        self.count += 1
        self.open.append((self.count, pairs))
        return self.count

    def mark(self) -> None:
        return None

    def wait(self, mark: int) -> None:
        while self.open and self.open[0][0] <= mark:
            for target, source in self.open.popleft()[1]:
                target.copy_(source)


class Early(Late):
    """Copies as early as it may, and makes everything else in the slot unreadable."""

    def copy(self, pairs: Pairs, after: Any) -> None:
        whole = pairs[0][0].untyped_storage()
        torch.empty(0, dtype=torch.uint8).set_(whole).fill_(0xFF)
        for target, source in pairs:
            target.copy_(source)

    def wait(self, mark: Any) -> None:
        raise AssertionError("nothing is waited for")


@pytest.mark.parametrize("copier", [Late, Early])
def test_it_does_not_matter_when_copies_are_made(make: Make, copier: type[Late]) -> None:
    wanted, model = video(make()), make()
    for names in families(model.stages):
        stream({name: model.stage(name).graph for name in names}, copier())
    assert_same(video(model), wanted)


def stream(gms: dict[str, GraphModule], copier: Any = None, device: torch.device = DEVICE) -> None:
    """Have a family read weights that were elsewhere, but those that stay where they are."""
    groups = group_all({name: weight_uses(gm) for name, gm in gms.items()}, limits=SMALL)
    memory = HostMemory(device, {n for each in groups.values() for g in each for n in g.names})
    weights = {n: graphs.weight(gm, n) for gm in gms.values() for n in graphs.weights(gm)}
    kept = {name: memory.keep(name, weight) for name, weight in weights.items()}
    for gm in gms.values():
        graphs.attach(gm, {name: kept[name] for name in graphs.weights(gm)})
    stream_weights(gms, groups, device, copier)


def streamed(model: Executable, copier: Any = None) -> dict[str, GraphModule]:
    gms = {name: model.stage(name).graph for name in ("denoise", "refresh")}
    stream(gms, copier)
    return gms


def test_what_is_on_the_device_is_a_few_slots_and_what_stays(make: Make) -> None:
    model = make()
    whole = _held({name: model.stage(name).graph for name in ("denoise", "refresh")})
    uses = {name: weight_uses(model.stage(name).graph) for name in ("denoise", "refresh")}
    groups = group_all(uses, limits=SMALL)
    moving = {use.name: use.nbytes for each in groups.values() for g in each for use in g.weights}
    slot = max(group.nbytes for each in groups.values() for group in each)
    held = _held(streamed(model))
    assert held == whole - sum(moving.values()) + SLOTS * slot < 0.7 * whole


def _held(gms: dict[str, GraphModule]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for gm in gms.values() for t in gm.buffers()}  # fmt: skip
    return sum(storages.values())


def test_every_weight_is_copied_once_per_call_but_those_that_are_there(make: Make) -> None:
    class Counting(Early):
        copied: list[int] = []  # noqa: RUF012

        def copy(self, pairs: Pairs, after: Any) -> None:
            super().copy(pairs, after)
            self.copied.append(sum(source.nbytes for _, source in pairs))

    model = make()
    uses = {name: weight_uses(model.stage(name).graph) for name in ("denoise", "refresh")}
    groups = group_all(uses, limits=SMALL)["denoise"]
    streamed(model, Counting())
    sizes = [sum(use.nbytes for use in group.weights) for group in groups]
    for _ in range(2):
        Counting.copied.clear()
        _run(model, "denoise")
    # The first groups came with the end of the call before; then all others, and those again.
    assert Counting.copied == [*sizes[SLOTS:], *sizes[:SLOTS]]


def _run(model: Executable, name: str) -> dict[str, Tensor]:
    stage = model.stage(name)
    return stage({s.name: torch.zeros(s.sizes, dtype=s.dtype) for s in stage.inputs})


def test_a_call_after_one_that_failed_is_right(make: Make) -> None:
    wanted, model = make(), make()
    gm = streamed(model)["denoise"]
    middle = list(gm.graph.nodes)[len(gm.graph.nodes) // 2]

    def fails() -> None:
        raise RuntimeError("a kernel failed")

    with gm.graph.inserting_before(middle):
        node = gm.graph.call_function(fails)
    gm.recompile()
    with pytest.raises(RuntimeError, match="a kernel failed"):
        _run(model, "denoise")
    gm.graph.erase_node(node)
    gm.recompile()
    assert_same(list(_run(model, "denoise").values()), list(_run(wanted, "denoise").values()))


def test_kept_tensors_are_equal_and_others_stay() -> None:
    memory, tensor = HostMemory(DEVICE, {"w"}), torch.randn(7, 50)
    assert memory.keep("v", tensor) is tensor
    kept = memory.keep("w", tensor.t())
    assert torch.equal(kept, tensor.t()) and kept.is_contiguous()
    assert kept.data_ptr() != tensor.data_ptr()


def test_weights_in_the_memory_of_the_host_die_with_their_model(make: Make) -> None:
    model = make()
    gm = streamed(model)["denoise"]
    dead = weakref.ref(next(gm.buffers()))
    del gm, model
    gc.collect()
    assert dead() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_copies_run_beside_the_graph(make: Make) -> None:
    """Many calls in a row without a wait on the host: a copy that came early would be seen."""
    wanted = _run(make(), "modulate")
    model = make()
    gms = {"modulate": graphs.load(graphs.dump(model.stage("modulate").graph), device="cuda")}
    weights = graphs.weights(gms["modulate"])
    device, owner = torch.device("cuda", 0), model.stage("modulate").graph
    graphs.attach(gms["modulate"], {n: graphs.weight(owner, n).to(device) for n in weights})
    stream(gms, device=device)
    stage = model.stage("modulate")
    inputs = [torch.zeros(s.sizes, dtype=s.dtype, device="cuda") for s in stage.inputs]
    with torch.inference_mode():
        found = [gms["modulate"](*inputs) for _ in range(20)]
    for results in found:
        for ours, theirs in zip(results, wanted.values(), strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=0.02, atol=0.02)
