"""The memory that a video takes of a device, pool by pool: PyTorch's allocator, played through.

A stream has a pool of its own, and so have CUDA graphs that share one, where what they record also
runs before. What a pool of a stream has taken it keeps, until something is recorded:
`torch.cuda.graph` begins by giving back what is free in them. So a video takes the most either
before anything is recorded or once all is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from llvq.graphs.weight_groups import SLOTS, Group, Limits, group_all, slot_bytes
from llvq.plan_memory import buffer_specs, state_specs
from llvq.plan_pool import MIB, Block, Pool
from llvq.plan_stages import RunningStage
from llvq.runtime.denoiser import EVERY_CALL
from llvq.runtime.executable import DECODING, RunFacts, Streamed
from llvq.runtime.streamed_weights import families, streamed
from llvq.sources import TensorSpec

# What cuBLAS takes of PyTorch for each stream that it works on, as measured on an H100.
CUBLAS_WORKSPACE = 32 * MIB
# Stages whose results are kept.
CONDITION, MODULATE = "condition", "modulate"


@dataclass(frozen=True)
class Taken:
    """Bytes. `loading` is the most until all weights are there, `resident` those on the device;
    `workspace` what pools take beside weights and tensors that are held by name, when they take
    the most."""

    loading: int
    resident: int
    workspace: Mapping[str, int]
    streaming: Streamed | None


def play(
    stages: Mapping[str, RunningStage],
    facts: RunFacts,
    *,
    on_gpu: bool,
    limits: Limits | None = None,
) -> Taken:
    """Load stages, and make a video with them. `limits`: weights stay in the memory of the host."""
    main, sizes = Pool(on_gpu), _sizes(stages)
    groups = {} if limits is None else grouped(stages, limits)
    moving = {w.name for each in groups.values() for group in each for w in group.weights}
    resident = {name: nbytes for name, nbytes in sizes.items() if name not in moving}
    _load(main, stages, resident, limits)
    loading, slots = main.most, list(_slots(groups))
    main.most = main.reserved
    _hold(main, slots)
    records = on_gpu and limits is None
    named = sum(resident.values()) + sum(slots)
    workspace = _denoise(main, stages, facts, named, records=records)
    workspace |= _decode(stages, facts, on_gpu=on_gpu, records=records)
    moved = None if limits is None else streamed(groups)
    return Taken(loading, sum(resident.values()), workspace, moved)


def grouped(stages: Mapping[str, RunningStage], limits: Limits) -> dict[str, tuple[Group, ...]]:
    """Groups of the weights of each stage, as a loader makes them."""
    made: dict[str, tuple[Group, ...]] = {}
    for names in families(stages):
        made |= group_all({name: stages[name].uses for name in names}, limits=limits)
    return made


def alone(stage: RunningStage, *, on_gpu: bool, limits: Limits | None = None) -> int:
    """What a stage takes that runs with nothing but its own weights in memory."""
    pool, stages = Pool(on_gpu), {"": stage}
    groups = {} if limits is None else group_all({"": stage.uses}, limits=limits)
    moving = {w.name for each in groups.values() for group in each for w in group.weights}
    resident = {name: n for name, n in _sizes(stages).items() if name not in moving}
    _load(pool, stages, resident, limits)
    _hold(pool, _slots(groups))
    pool.run(stage.allocations.events)
    return pool.most + (CUBLAS_WORKSPACE if on_gpu else 0)


def _sizes(stages: Mapping[str, RunningStage]) -> dict[str, int]:
    return {n: spec.nbytes for stage in stages.values() for n, spec in stage.weights.items()}


def _load(
    pool: Pool,
    stages: Mapping[str, RunningStage],
    resident: Mapping[str, int],
    limits: Limits | None,
) -> None:
    """Weights come one after the other, in the form before their last if they have one. Those that
    leave for the host do so as each is done."""
    sizes, held = _sizes(stages), dict[str, Block]()
    for stage in stages.values():
        for fold in stage.folds:
            if all(name in held for name in fold.results):
                continue
            before = pool.allocate(fold.nbytes)
            held |= {name: pool.allocate(sizes[name]) for name in fold.results}
            pool.free(before)
            _leave(pool, held, fold.results, resident, limits)
    for name, nbytes in sizes.items():
        if name not in held:
            held[name] = pool.allocate(nbytes)
            _leave(pool, held, [name], resident, limits)
    pool.trim()


def _leave(
    pool: Pool,
    held: Mapping[str, Block],
    names: Iterable[str],
    resident: Mapping[str, int],
    limits: Limits | None,
) -> None:
    """A weight that is moved, and is not moved back."""
    for name in names:
        if limits is not None and name not in resident:
            pool.free(held[name])


def _slots(groups: Mapping[str, tuple[Group, ...]]) -> Iterable[int]:
    for names in families(groups):
        if nbytes := slot_bytes({name: groups[name] for name in names}):
            yield from [nbytes] * SLOTS


def _denoise(
    pool: Pool,
    stages: Mapping[str, RunningStage],
    facts: RunFacts,
    named: int,
    *,
    records: bool,
) -> dict[str, int]:
    """Beside `named` bytes of weights."""
    if not any(name in stages for name in EVERY_CALL):
        return {"around weights": pool.reserved - named}
    pages = [_nbytes(dtype, shape) for _, dtype, shape in facts.pages.tensors]
    _hold(pool, pages)
    named += sum(pages)
    for name, calls in ((CONDITION, 1), (MODULATE, facts.steps + 1)):
        if name in stages:
            for _ in range(calls):  # views of more are copied, and so kept alone
                made = pool.run(stages[name].allocations.events)
                _hold(pool, stages[name].results)
                _give_back(pool, made)
            named += calls * sum(stages[name].results)
    if not records:
        return {"denoising": _run_all(pool, stages) - named}
    buffers = [spec.nbytes for spec in buffer_specs(stages, facts)]
    _hold(pool, buffers)
    named += sum(buffers)
    first = {"denoising": _final(pool) - named}
    pool.trim()
    pool.most = pool.reserved
    recorded = {
        "denoising": _final(pool) - named,
        "denoising, recorded": _recorded(stages, EVERY_CALL),
    }
    return _largest(first, recorded)


def _run_all(pool: Pool, stages: Mapping[str, RunningStage]) -> int:
    """The most until all stages that denoise have run."""
    for name in EVERY_CALL:
        if name in stages:
            _give_back(pool, pool.run(stages[name].allocations.events))
    return _final(pool)


def _decode(
    stages: Mapping[str, RunningStage], facts: RunFacts, *, on_gpu: bool, records: bool
) -> dict[str, int]:
    """On a stream of its own, beside the state of the decoder.

    A GPU may be told to make all frames of a chunk before the first of them are copied.
    """
    if not any(name in stages for name in DECODING):
        return {}
    pool, records = Pool(on_gpu), records and not facts.loops
    state = [spec.nbytes for spec in state_specs(stages, facts).values()]
    _hold(pool, state)
    returned = sum(stages[DECODING[1]].results) - (sum(state) if facts.loops else 0)
    calls = facts.frames_per_chunk // facts.latents_per_decode if on_gpu else 1
    if records:
        _hold(pool, [returned] * calls)
        return {
            "decoding": pool.most - sum(state),
            "decoding, recorded": _recorded(stages, DECODING[1:], first=DECODING[0]),
        }
    waiting: deque[Mapping[int, Block]] = deque()
    for name in (*DECODING, *[DECODING[1]] * calls):
        made: Mapping[int, Block] = pool.run(stages[name].allocations.events)
        if facts.loops:  # state takes the place of that before
            _give_back(pool, made)
            made = {0: pool.allocate(returned)}
        waiting.append(made)
        if len(waiting) > calls:
            _give_back(pool, waiting.popleft())
    return {"decoding": _final(pool) - sum(state)}


def _largest(*moments: dict[str, int]) -> dict[str, int]:
    return max(moments, key=lambda rows: sum(rows.values()))


def _recorded(
    stages: Mapping[str, RunningStage], names: Iterable[str], *, first: str | None = None
) -> int:
    """A pool of CUDA graphs: results stay, all else is there for the next recording.

    `first` runs there before any of them, and is not recorded.
    """
    pool = Pool()
    if first is not None:
        _give_back(pool, pool.run(stages[first].allocations.events))
    for name in names:
        if name in stages:
            pool.run(stages[name].allocations.events)
    return _final(pool)


def _final(pool: Pool) -> int:
    """With what cuBLAS takes on a GPU."""
    return pool.most + (CUBLAS_WORKSPACE if pool.rounds else 0)


def _hold(pool: Pool, sizes: Iterable[int]) -> None:
    for nbytes in sizes:
        pool.allocate(nbytes)


def _give_back(pool: Pool, held: Mapping[int, Block]) -> None:
    for block in held.values():
        pool.free(block)


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return TensorSpec(getattr(torch, dtype), shape).nbytes
