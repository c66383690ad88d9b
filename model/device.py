"""Where to compute, how much memory is free there, and what an out-of-memory error looks like."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pynvml
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import Precision
from model.memory import available_bytes, peak_resident_bytes

MEMORY_RESERVE = 0.2  # fraction of what is free that is left alone: fragmentation, the library


# What libraries say of it, whose errors are of no type of their own; cuDNN finds no engine, too,
# where none of its engines fits.
LACK_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "bad_alloc",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "unable to find an engine",
)
MAX_BATCH_VOXELS = 2**24  # of a hundred channels they are about as many as 32 bits count


class DeviceError(ValueError):
    """The device that was asked for cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One place to compute."""

    torch_device: torch.device
    name: str
    reason: str  # why this one
    driver: str | None = None

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.torch_device.type == "cuda"


def _nvidia_gpus() -> tuple[list[str], str | None]:
    """Names of the GPUs that the driver shows, and its version; nothing where there is none."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetName(h) for h in handles], pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return [], None


def _why_cuda_fails() -> str | None:
    """None where a GPU computes, else what is wrong with it, in the library's own words."""
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        probe = torch.ones(1, 2, 4, 4, 4, device="cuda")
        kernel = torch.ones(2, 2, 3, 3, 3, device="cuda")
        functional.conv3d(probe, kernel, padding=1).sum().item()  # by cuDNN
        (probe.view(8, 16) @ probe.view(16, 8)).sum().item()  # by cuBLAS
    except Exception as error:  # some of the driver's are of types of their own
        return f"torch {torch.__version__} says: {str(error).strip().splitlines()[0]}"
    return None


def pick_device(wanted: str) -> Device:
    """The device for "auto", "cpu" or "cuda"; with "auto" a GPU that really computes, else the CPU.

    Raises DeviceError where "cuda" is asked for and does not work.
    """
    _make_deterministic()
    gpus, driver = _nvidia_gpus()
    threads = f"{torch.get_num_threads()} threads"
    if wanted == "cpu":
        return Device(torch_device=torch.device("cpu"), name=f"CPU, {threads}", reason="asked for")
    trouble = _why_cuda_fails()
    if trouble is None:
        # "Full fp32" of the published recipe: both flags, since cudnn's is on by default.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True  # same seed, same machine, same result
        return Device(
            torch_device=torch.device("cuda", 0),
            name=torch.cuda.get_device_name(0),
            reason="asked for" if wanted == "cuda" else "a usable GPU",
            driver=driver,
        )
    if wanted == "cuda":
        raise DeviceError(f"--device cuda: {trouble}; use --device auto or mend the GPU set-up")
    if gpus:
        reason = f"WARNING: {', '.join(gpus)} (driver {driver}) is there but unusable: {trouble}"
    else:
        reason = f"no NVIDIA GPU found; {trouble}"
    return Device(
        torch_device=torch.device("cpu"), name=f"CPU, {threads}", reason=reason, driver=driver
    )


def _keep_freed_memory() -> None:
    """Let the C library reuse large blocks instead of asking the kernel for zeroed ones each time.

    Activations of a window are tens of megabytes each, and a third of the time went into page
    faults: 3.3 against 2.0 s for one window on two cores.
    """
    m_trim_threshold, m_mmap_threshold, most = -1, -3, 2**31 - 1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc: slower, no more
    mallopt(m_mmap_threshold, 2**30)
    mallopt(m_trim_threshold, most)


def place(net: nn.Module, device: Device) -> nn.Module:
    """The network on the device, in the memory layout that is fastest there."""
    if device.is_cuda:
        return net.to(device.torch_device)
    _keep_freed_memory()
    # Twice as fast for a whole Restormer3D, 30 times for a depth-wise convolution alone.
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in net.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.ndim])
    return net


def to_device(values: np.ndarray, device: Device) -> Tensor:
    """The values there. A GPU fetches them in their turn, and nobody waits for it."""
    host = torch.from_numpy(values)
    if not device.is_cuda:
        return host
    return host.pin_memory().to(device.torch_device, non_blocking=True)


def start_to_host(values: Tensor) -> Callable[[], np.ndarray]:
    """Begin to bring values here; what it gives back waits for them, not for what comes after."""
    if not values.is_cuda:
        return values.numpy
    host = torch.empty_like(values, device="cpu", pin_memory=True)
    host.copy_(values, non_blocking=True)
    is_here = torch.cuda.Event()
    is_here.record()

    def arrived() -> np.ndarray:
        is_here.synchronize()
        return host.numpy()

    return arrived


def inference_precision(device: Device, wanted: str, *, takes_bf16: bool) -> Precision:
    """What "auto", "fp32", "bf16" or "fp16" means for a method on a device.

    Raises DeviceError for bf16 on a GPU without.
    """
    if wanted != "auto":
        has_own = not device.is_cuda or torch.cuda.is_bf16_supported(including_emulation=False)
        if wanted == "bf16" and not has_own:
            raise DeviceError(f"--precision bf16: {device.name} has none; take fp16 or auto")
        return cast(Precision, wanted)
    if device.is_cuda or not takes_bf16:
        return "fp32"  # on a GPU nothing was measured yet
    # Without instructions of its own the library emulates bf16, which is slower than fp32.
    has_own = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_own else "fp32"


def in_precision(device: Device, precision: Precision) -> AbstractContextManager[Any]:
    """Compute inside in this precision; what needs it stays in fp32."""
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.torch_device.type, dtype)


def free_bytes(device: Device) -> float:
    """Memory that can still be taken on the device [bytes]."""
    if not device.is_cuda:
        return available_bytes()
    index = device.torch_device.index
    reusable = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    try:
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        free = int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid)).free)
    except (pynvml.NVMLError, AttributeError):
        free = torch.cuda.mem_get_info(index)[0]  # e.g. a partition of a card, which has no handle
    return free + reusable


def usable_bytes(device: Device) -> float:
    """Free memory on the device less a reserve [bytes]."""
    return free_bytes(device) * (1 - MEMORY_RESERVE)


def fitting_batch(device: Device, voxels: int, bytes_per_voxel: int, largest: int) -> int:
    """How many patches of `voxels` voxels fit the free memory: 1 to `largest`."""
    largest = min(largest, MAX_BATCH_VOXELS // voxels)
    return max(1, int(min(largest, usable_bytes(device) / (voxels * bytes_per_voxel))))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that less at a time may still work."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        phrase in str(error) for phrase in LACK_OF_MEMORY
    )


def release_memory(device: Device) -> None:
    """Give cached memory back, so that a smaller attempt does not meet its fragments."""
    if device.is_cuda:
        torch.cuda.empty_cache()


def peak_bytes(device: Device) -> tuple[int, int | None]:
    """Largest memory held so far: this process on the host, and tensors on the GPU."""
    host = peak_resident_bytes()
    return host, torch.cuda.max_memory_allocated(device.torch_device) if device.is_cuda else None


def reset_peak(device: Device) -> None:
    """Start a new peak on the GPU; the host's counter cannot be reset."""
    if device.is_cuda:
        torch.cuda.reset_peak_memory_stats(device.torch_device)


def _make_deterministic() -> None:
    """Ask the GPU's matrix library for one order of summation; before its first use."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
