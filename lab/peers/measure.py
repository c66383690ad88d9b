"""Run a command; print its exit code, wall seconds and peak of memory [bytes] as JSON.

A program of its own, and a small one: Linux starts the peak of a new process at that of the process
that started it, so a caller holding a large stack would see its own memory as the command's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


def main(command: list[str]) -> None:
    """Run the command, its stdout silenced, its stderr passed on."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    code = os.waitstatus_to_exitcode(status)
    print(json.dumps({"code": code, "seconds": seconds, "peak_bytes": usage.ru_maxrss * unit}))


if __name__ == "__main__":
    main(sys.argv[1:])
