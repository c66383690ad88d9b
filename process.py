"""Denoise every two-photon stack in a folder: `python process.py --help`.

Exit code 0: all stacks written; 1: some stack failed; 2: wrong usage, or no stack found.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence

from model.config import RunConfig, UsageError
from model.interrupt import Interrupt


def main(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run one job from the command line; the exit code."""
    started = time.monotonic()
    for stream in (sys.stdout, sys.stderr):  # the platform takes UTF-8 alone; a name may be other
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    try:
        config = RunConfig.parse(argv, env)
    except UsageError as error:
        return _stop(str(error), 2)
    # Progress goes to stdout: on success the platform shows anything on stderr as a warning.
    logging.basicConfig(
        stream=sys.stdout, level=config.log_level.upper(), format="%(message)s", force=True
    )
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a terminal that was closed must not end the job in noise
    interrupt = Interrupt()

    # Only now: loading torch takes seconds, which --help must not, and starts threads.
    from model.job import Job, JobError

    try:
        job = Job(config, started)
        interrupt.clean_up = job.clean_up  # type: ignore[method-assign]
        failures = job.run()
    except JobError as error:
        return _stop(str(error), error.exit_code)
    return _stop("; ".join(failures), 1) if failures else 0


def _stop(message: str, code: int) -> int:
    """Say what is wrong as the last line of stderr, which is the one the platform shows."""
    print(" ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
