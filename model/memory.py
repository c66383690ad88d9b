"""How much memory this process has taken on the host, and how much it still may."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from pathlib import Path


def _kibibytes(table: str, key: str) -> float:
    """A line such as `MemAvailable:  123 kB` of a file under /proc; infinite if it is not there."""
    with suppress(OSError):
        for line in Path(table).read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return float(value.split()[0])
    return float("inf")


def peak_resident_bytes() -> int:
    """The most memory this process has held; unlike getrusage's, nothing of who started it."""
    kept = _kibibytes("/proc/self/status", "VmHWM")
    if kept == float("inf"):  # not Linux
        kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(kept * 1024)


class _Heap(ctypes.Structure):
    """The C library's account of its memory: glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def reusable_bytes() -> int:
    """What this process has freed and the C library keeps for it."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return 0  # not glibc, or one before 2.33
    ask.restype = _Heap
    return int(ask().fordblks)


def available_bytes() -> float:
    """The least of what the machine, the container and this process's data limit leave.

    With what is kept for reuse: else a stack would seem to have less room for the one before it.
    """
    reusable = reusable_bytes()
    limits = [_kibibytes("/proc/meminfo", "MemAvailable") * 1024 + reusable]
    with suppress(OSError, ValueError):  # no such file, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    data_limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    used = _kibibytes("/proc/self/status", "VmData") * 1024
    if data_limit != resource.RLIM_INFINITY and used < float("inf"):
        limits.append(data_limit - used + reusable)
    return max(0, min(limits))
