"""Limits on what a process may hold in memory, set from within."""

from __future__ import annotations

import resource
from pathlib import Path

DATA_BYTES = 12 * 2**30  # that any stack must do with; the platform has 15 GiB


def limit_data() -> None:
    """From here on, DATA_BYTES in all."""
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, resource.RLIM_INFINITY))


def limit_more_data(extra_bytes: int) -> None:
    """From here on, so many bytes more than now."""
    status = Path("/proc/self/status").read_text()
    used = 1024 * int(status.split("VmData:")[1].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (used + extra_bytes, resource.RLIM_INFINITY))
