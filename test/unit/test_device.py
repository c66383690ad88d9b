"""Devices: which one and why, what fits its memory, and what counts as too little of it."""

import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.device import (
    MEMORY_RESERVE,
    Device,
    DeviceError,
    fitting_batch,
    free_bytes,
    inference_precision,
    is_out_of_memory,
    peak_bytes,
    pick_device,
    place,
)

ROOT = Path(__file__).resolve().parents[2]

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def cpu() -> Device:
    return pick_device("cpu")


# ---- Choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_avx512, has_amx", [(True, False), (False, True), (False, False)])
def test_bf16_is_taken_where_cpu_and_method_allow_it(
    monkeypatch: pytest.MonkeyPatch, has_avx512: bool, has_amx: bool
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_avx512)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: has_amx)
    cpu = pick_device("cpu")
    gpu = replace(cpu, torch_device=torch.device("cuda", 0))
    expected = "bf16" if has_avx512 or has_amx else "fp32"
    assert inference_precision(cpu, "auto", takes_bf16=True) == expected
    assert inference_precision(cpu, "auto", takes_bf16=False) == "fp32"
    assert inference_precision(gpu, "auto", takes_bf16=True) == "fp32"
    assert inference_precision(gpu, "fp16", takes_bf16=False) == "fp16"


def test_bf16_is_refused_where_a_gpu_has_none(monkeypatch: pytest.MonkeyPatch, cpu: Device) -> None:
    old = replace(cpu, torch_device=torch.device("cuda", 0), name="Tesla T4")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(DeviceError, match="--precision bf16: Tesla T4 has none; take fp16"):
        inference_precision(old, "bf16", takes_bf16=True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    assert inference_precision(old, "bf16", takes_bf16=True) == "bf16"


def test_a_batch_has_no_more_voxels_than_32_bits_count(cpu: Device) -> None:
    assert fitting_batch(cpu, 512 * 64 * 64, 1, 16) == 8


def test_the_cpu_is_taken_where_it_is_asked_for(cpu: Device) -> None:
    assert cpu.torch_device == torch.device("cpu")
    assert cpu.name == f"CPU, {torch.get_num_threads()} threads"
    assert cpu.reason == "asked for"
    assert not cpu.is_cuda


@without_gpu
def test_without_a_gpu_the_cpu_is_taken_and_the_reason_said() -> None:
    device = pick_device("auto")
    assert device.torch_device == torch.device("cpu")
    assert re.search(rf"torch {re.escape(torch.__version__)} (is a build without CUDA|says: .+)",
                     device.reason)  # fmt: skip


@without_gpu
def test_a_gpu_that_is_asked_for_and_not_there_is_an_error() -> None:
    with pytest.raises(DeviceError, match=r"^--device cuda: torch .*; use --device auto or mend"):
        pick_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_gpu_that_computes_is_taken_in_full_precision(wanted: str) -> None:
    device = pick_device(wanted)
    assert device.is_cuda
    assert device.name == torch.cuda.get_device_name(0)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_a_network_on_the_cpu_is_laid_out_channels_last(cpu: Device) -> None:
    net = place(nn.Conv3d(4, 4, 3), cpu)
    assert net.weight.is_contiguous(memory_format=torch.channels_last_3d)


# ---- Memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
)
def test_a_lack_of_memory_is_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape '[7]' is invalid"), ValueError("out of memory"), KeyboardInterrupt()],
)
def test_other_errors_are_not_taken_for_a_lack_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_torch_itself_says_so_in_words_that_are_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_there_is_some_free_memory(cpu: Device) -> None:
    assert 1e7 < free_bytes(cpu) < 1e14


def test_a_batch_is_as_large_as_the_memory_with_a_reserve_allows(cpu: Device) -> None:
    room = free_bytes(cpu) * (1 - MEMORY_RESERVE)
    assert fitting_batch(cpu, 1000, int(room / 1000 / 4.5), largest=16) == 4


def test_a_batch_is_never_larger_than_is_useful(cpu: Device) -> None:
    assert fitting_batch(cpu, 1, 1, largest=16) == 16


def test_a_batch_has_at_least_one_patch_even_where_it_may_not_fit(cpu: Device) -> None:
    assert fitting_batch(cpu, 10**9, 10**9, largest=16) == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks the GNU C library")
def test_memory_that_the_c_library_keeps_can_still_be_taken() -> None:
    ask = """
import torch
from model.device import pick_device, place
from model.memory import reusable_bytes
place(torch.nn.Identity(), pick_device("cpu"))  # from here on it keeps what is freed
taken = torch.ones(50_000_000)
while_taken = reusable_bytes()
del taken
print(reusable_bytes() - while_taken)
"""
    said = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, check=True)
    assert int(said.stdout) == pytest.approx(4 * 50_000_000, rel=0.01)


def test_the_peak_of_the_host_is_in_bytes(cpu: Device) -> None:
    host, on_gpu = peak_bytes(cpu)
    assert 5e7 < host < 1e14  # torch alone is more than 50 MB
    assert on_gpu is None


def test_the_peak_of_the_host_is_this_processs_own() -> None:
    held = np.ones(300 * 2**20, np.uint8)  # getrusage would count it as the child's
    ask = "from model.memory import peak_resident_bytes; print(peak_resident_bytes())"
    said = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, check=True)
    assert 2**20 < int(said.stdout) < held.nbytes / 2


def test_a_device_cannot_be_changed_by_accident(cpu: Device) -> None:
    with pytest.raises(AttributeError):
        cpu.name = "GPU"  # type: ignore[misc]
    assert replace(cpu, name="x").name == "x"
