"""What this machine can run, and the sentence for what it cannot."""

from __future__ import annotations

import pytest
import torch

from llvq.backends.base import TARGETS
from llvq.errors import SessionError, TargetError
from llvq.runtime.device import (
    GPUS,
    TARGET_DEVICES,
    check_decode_device,
    chip_of,
    exact_device,
    memory_of,
    obstacles,
    require,
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with an H100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return monkeypatch


def test_every_target_has_a_device_and_every_chip_a_gpu() -> None:
    assert {target.name: target.device for target in TARGETS} == TARGET_DEVICES
    assert GPUS.keys() == {target.chip for target in TARGETS} - {None}


def test_without_a_gpu_only_the_cpu_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert obstacles().keys() == set(GPUS)
    assert require("cpu") == torch.device("cpu")
    with pytest.raises(TargetError, match="target sm_90a cannot run here") as caught:
        require("sm_90a")
    assert caught.value.because == (
        f"torch {torch.__version__} finds no CUDA device, and sm_90a is H100, H200"
    )


def test_a_gpu_runs_its_own_target_alone(gpu: pytest.MonkeyPatch) -> None:
    assert obstacles().keys() == set(GPUS) - {"sm_90a"}
    assert obstacles()["sm_100a"] == (
        "the GPU here is sm_90a (NVIDIA H100 80GB HBM3), and sm_100a is B200, GB200"
    )
    gpu.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert obstacles().keys() == set(GPUS)


def test_devices_and_chips_by_name() -> None:
    assert exact_device("cpu") == torch.empty(0).device
    assert chip_of((10, 3)) == "sm_103a"


def test_memory_is_that_of_the_machine() -> None:
    assert 2**28 < memory_of(torch.device("cpu")) < 2**50


@pytest.fixture
def two_gpus(gpu: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two H100, the first of which is the current one."""
    gpu.setattr(torch.cuda, "device_count", lambda: 2)
    gpu.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    gpu.setattr("llvq.runtime.device.exact_device", lambda name: torch.device("cuda", 0))
    return gpu


@pytest.mark.usefixtures("two_gpus")
def test_another_gpu_may_decode() -> None:
    assert check_decode_device("cuda:1", "sm_90a") == "cuda:1"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "target", "because", "fix"),
    [
        ("cuda:0", "sm_90a", "the device of the denoiser", "use cuda:1, or leave it out"),
        ("cuda", "sm_90a", "the device of the denoiser", "use cuda:1, or leave it out"),
        ("cuda:2", "sm_90a", "this machine has cuda:0, cuda:1", "use cuda:1, or leave it out"),
        ("cpu", "sm_90a", "this machine has cuda:0, cuda:1", "use cuda:1, or leave it out"),
        ("gpu", "sm_90a", "this machine has cuda:0, cuda:1", "use cuda:1, or leave it out"),
        ("cuda:1", "cpu", "the box is for cpu, which has one device", "leave it out"),
    ],
)
def test_other_devices_may_not(name: str, target: str, because: str, fix: str) -> None:
    with pytest.raises(SessionError, match=f"{name} cannot decode") as caught:
        check_decode_device(name, target)
    assert because in (caught.value.because or "") and caught.value.fix == fix
    assert str(caught.value).count("\n") == 3


def test_a_gpu_of_another_kind_may_not(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setattr(torch.cuda, "get_device_capability", lambda device=None: (10, 0))
    with pytest.raises(SessionError, match="cuda:1 cannot decode") as caught:
        check_decode_device("cuda:1", "sm_90a")
    assert caught.value.because == "it is sm_100a, and the kernels of the box are for sm_90a"


def test_one_gpu_alone_decodes_what_it_denoises(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SessionError, match="cuda:1 cannot decode") as caught:
        check_decode_device("cuda:1", "sm_90a")
    assert (caught.value.because, caught.value.fix) == ("this machine has cuda:0", "leave it out")
