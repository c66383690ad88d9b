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


def _number_in(path: Path) -> float:
    """A file's only number; infinite if there is none ("max", or no file)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return float("inf")


def _left_in_group(folder: Path, limit: str, usage: str, prefix: str) -> float:
    """What one control group leaves; files it has read, which the kernel may forget, do not count.

    Active ones neither: a recording that was mapped is among them long after.
    """
    most, used = _number_in(folder / limit), _number_in(folder / usage)
    if float("inf") in (most, used):
        return float("inf")
    with suppress(OSError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in (f"{prefix}active_file", f"{prefix}inactive_file"):
                used -= int(value)
    return most - used


def left_by_groups(root: Path, membership: str) -> float:
    """What the memory limits of this process's control groups leave, of those above it too.

    `membership` is its /proc/self/cgroup, `root` where groups of both versions are mounted: a
    container's own, or those a job of a cluster is in. Infinite if there is no limit.
    """
    left = float("inf")
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            base, files = root, ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            base = root / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        # in a container the path may be the host's: then the base alone is there
        inner = base / path.lstrip("/")
        groups = [inner, *inner.parents][: len(inner.parts) - len(base.parts) + 1]
        left = min([left, *(_left_in_group(group, *files) for group in groups)])
    return left


def available_bytes() -> float:
    """The least of what the machine, the container and this process's data limit leave.

    With what is kept for reuse: else a stack would seem to have less room for the one before it.
    """
    reusable = reusable_bytes()
    limits = [_kibibytes("/proc/meminfo", "MemAvailable") * 1024 + reusable]
    with suppress(OSError):  # not Linux
        membership = Path("/proc/self/cgroup").read_text()
        limits.append(left_by_groups(Path("/sys/fs/cgroup"), membership) + reusable)
    data_limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    used = _kibibytes("/proc/self/status", "VmData") * 1024
    if data_limit != resource.RLIM_INFINITY and used < float("inf"):
        limits.append(data_limit - used + reusable)
    return max(0, min(limits))
