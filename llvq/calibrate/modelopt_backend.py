"""ModelOpt 0.47 on any device: its calibration of linears, with a fake NVFP4 quantizer of ours.

ModelOpt's own needs CUDA, and a Triton that still has block pointers. The backend is registered
while it is in use and removed afterwards, so nothing is left behind in a process.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor, nn

from llvq.calibrate.configs import BACKEND, Config
from llvq.errors import TargetError
from llvq.formats import nvfp4

PACKAGE, SERIES = "nvidia-modelopt", "0.47"
PIP = f'pip install "{PACKAGE}=={SERIES}.*"'
# Linears that read one input, in one module: ModelOpt's export makes their scales agree.
SIBLINGS = (("self_attn", ("q", "k", "v")), ("cross_attn", ("k", "v")))


def modelopt_version() -> str:
    """The installed version. Raises TargetError if there is none, or one of another series."""
    try:
        found = version(PACKAGE)
    except PackageNotFoundError as error:
        raise TargetError(
            "calibration needs NVIDIA ModelOpt",
            because=f"{PACKAGE} is not installed",
            fix=PIP,
        ) from error
    if not f"{found}.".startswith(f"{SERIES}."):
        raise TargetError(
            f"ModelOpt {found} cannot be used for calibration",
            because=f"llvq saves and resumes the running sums of {SERIES}, which change by version",
            fix=PIP,
        )
    return found


def calibrate(
    model: nn.Module,
    layers: Sequence[str],
    config: Config,
    forward: Callable[[nn.Module], None],
) -> None:
    """Calibrate `layers` (module paths of linears) in place, weights included.

    `forward` runs all data through the model, once per phase of the config. What ModelOpt's export
    would do to linears that share an input is done here, by its own code. Raises TargetError.
    """
    modelopt_version()
    with _quietly():
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export.quant_utils import preprocess_linear_fusion
    document = {"quant_cfg": quantizers(config, layers), "algorithm": dict(config.algorithm)}
    with backend(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # Of the linears that the recipe keeps, which it was not asked to smooth.
        warnings.filterwarnings("ignore", message=".*is not calibrated, skip smoothing")
        mtq.quantize(model, document, forward)
        for group in sibling_groups(layers):
            preprocess_linear_fusion([model.get_submodule(name) for name in group])


def quantizers(config: Config, layers: Sequence[str]) -> list[dict[str, Any]]:
    """ModelOpt's list of quantizers: none but those of the layers."""
    rows: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for layer in layers:
        for part, attributes in (("weight", config.weight), ("input", config.input)):
            row = {"quantizer_name": f"{layer}.{part}_quantizer", "cfg": dict(attributes)}
            rows.append(row)
    return rows


def sibling_groups(layers: Sequence[str]) -> list[tuple[str, ...]]:
    """The layers that share an input with another one of `layers`."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for layer in layers:
        parent, _, name = layer.rpartition(".")
        for module, names in SIBLINGS:
            if parent.rpartition(".")[2] == module and name in names:
                groups.setdefault((parent, names), []).append(layer)
    return [tuple(group) for group in groups.values() if len(group) > 1]


@contextlib.contextmanager
def backend() -> Iterator[None]:
    """Within the block, quantizers that name our backend use it."""
    with _quietly():
        from modelopt.torch.quantization.nn import (
            register_quant_backend,
            unregister_quant_backend,
        )
    register_quant_backend(BACKEND, fake_quantize)
    try:
        yield
    finally:
        unregister_quant_backend(BACKEND)


def fake_quantize(x: Tensor, quantizer: Any) -> Tensor:
    """x [..., K] to NVFP4 and back, under the amax of a ModelOpt quantizer or, without, its own."""
    amax = getattr(quantizer, "_amax", None)
    largest = nvfp4.amax_of(x) if amax is None else amax.amax()
    scale = nvfp4.global_scale(largest.to(x.device), "max")
    quantized = nvfp4.quantize(x, block_rule="max", global_scale=scale)
    return nvfp4.dequantize(*quantized, x.dtype)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Importing ModelOpt warns, prints and logs about packages that llvq has no use for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
