"""cuDNN's attention over operands in FP8, as a call that a CUDA graph can record.

A plan is made once for each problem, which takes seconds. Making one is not recordable; running it
is: it allocates nothing and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from llvq.errors import KernelError

# What cuDNN takes beside its operands: fp32, each 16 bytes from the last, as it may want them.
SCALARS = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
# What it gives beside its result: the largest magnitudes of weights and results.
MAXIMA = ("amax_s", "amax_o")
SPACING = 4


@dataclass(frozen=True)
class Problem:
    """Queries [N, H, D] and keys and values [W, H, D]; `scale` multiplies their products."""

    tokens: int
    keys: int
    heads: int
    dim: int
    scale: float
    device: int


@dataclass(frozen=True)
class Plan:
    """A graph of cuDNN that is ready to run. `tensors` are its own, by name; workspace in bytes."""

    graph: Any
    tensors: Mapping[str, Any]
    workspace: int


def empty_scalars(device: torch.device) -> Tensor:
    """Room for SCALARS, which the caller sets, then MAXIMA: fp32 [8, SPACING], each first in its
    row."""
    return torch.empty((len(SCALARS) + len(MAXIMA), SPACING), dtype=torch.float32, device=device)


def attend(q: Tensor, k: Tensor, v: Tensor, scalars: Tensor, out: Tensor, scale: float) -> None:
    """Queue attention on the current stream: q e4m3 [N, H, D] over k and v [W, H, D] into `out`,
    like q, with `scalars` as in `empty_scalars`. Raises KernelError."""
    cudnn, device = _cudnn(), q.device
    keys, heads, dim = k.shape
    problem = Problem(q.shape[0], keys, heads, dim, scale, device.index or 0)
    with torch.cuda.device(device), _told(problem):
        plan, handle = _plan(problem), _handle(problem.device)
        cudnn.set_stream(handle, torch.cuda.current_stream(device).cuda_stream)
        workspace = torch.empty(max(1, plan.workspace), dtype=torch.uint8, device=device)
        rows = dict(zip((*SCALARS, *MAXIMA), scalars.view(-1, SPACING, 1, 1, 1), strict=True))
        given = {"q": q, "k": k, "v": v, "o": out, **{n: row[0] for n, row in rows.items()}}
        pack = {plan.tensors[name]: tensor for name, tensor in given.items()}
        plan.graph.execute(pack, workspace, handle)


def prepare(
    tokens: int, keys: int, heads: int, dim: int, scale: float, *, device: torch.device
) -> None:
    """Make the plan that `attend` needs for these sizes. Raises KernelError."""
    problem = Problem(tokens, keys, heads, dim, scale, device.index or 0)
    with torch.cuda.device(device), _told(problem):
        _plan(problem)


@contextmanager
def _told(problem: Problem) -> Iterator[None]:
    """cuDNN's refusals as a KernelError."""
    cudnn = _cudnn()
    try:
        yield
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError) as error:
        raise KernelError(
            f"cuDNN cannot run attention in FP8 of {problem.tokens} queries over "
            f"{problem.keys} keys, {problem.heads} heads of {problem.dim}",
            because=str(error),
            fix="update nvidia-cudnn-frontend, or export with other numerics",
        ) from error


def _cudnn() -> Any:
    try:
        return import_module("cudnn")
    except ImportError as error:
        raise KernelError(
            "cuDNN's attention in FP8 cannot be called here",
            because=f"Python cannot import cudnn: {error}",
            fix="pip install llvq[gpu]",
        ) from error


@cache
def _handle(device: int) -> Any:
    """cuDNN's handle for a device, which is the current one."""
    return _cudnn().create_handle()


@cache
def _plan(problem: Problem) -> Plan:
    cudnn = _cudnn()
    fp8, fp32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=fp8,
        intermediate_data_type=fp32,
        compute_data_type=fp32,
        handle=_handle(problem.device),
    )
    rows = {"q": problem.tokens, "k": problem.keys, "v": problem.keys}
    tensors = {
        name: graph.tensor(name=name, data_type=fp8, **_layout(problem, count))
        for name, count in rows.items()
    }
    one = {"dim": [1, 1, 1, 1], "stride": [1, 1, 1, 1]}
    scalars = {name: graph.tensor(name=name, data_type=fp32, **one) for name in SCALARS}
    out, _, *maxima = graph.sdpa_fp8(
        **tensors,
        **scalars,
        is_inference=True,
        attn_scale=problem.scale,
        use_causal_mask=False,
        name="attention",
    )
    found = dict(zip(("o", *MAXIMA), (out, *maxima), strict=True))
    for name, tensor in found.items():
        layout = _layout(problem, problem.tokens) if name == "o" else one
        tensor.set_output(True).set_dim(layout["dim"]).set_stride(layout["stride"])
        tensor.set_data_type(fp8 if name == "o" else fp32)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    return Plan(graph, {**tensors, **scalars, **found}, graph.get_workspace_size())


def _layout(problem: Problem, rows: int) -> dict[str, list[int]]:
    """Rows [rows, H, D] as cuDNN sees them: [1, H, rows, D]."""
    heads, dim = problem.heads, problem.dim
    return {"dim": [1, heads, rows, dim], "stride": [rows * heads * dim, dim, heads * dim, 1]}
