"""The run's record `denoising.json`: what was done to every stack, with what, and how long it took.

Rewritten after every stack, so that a job that is stopped leaves the record of what it finished.
What other jobs tell of their results in the same folder is kept, whether they came before or are
under way at the same time.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RECORD_NAME = "denoising.json"
MAX_CURVE_POINTS = 200
LOCK_ATTEMPTS = 20  # a twentieth of a second apart


@dataclass(kw_only=True)
class StackRecord:
    """One stack; fields stay None where the run did not get that far."""

    file: str
    method: str | None = None
    checkpoint_sha256: str | None = None  # of the network that denoised it, or was adapted to it
    status: str = "failed"  # "denoised", "unchanged" (constant stack) or "failed"
    error: str | None = None
    result: str | None = None
    input_sha256: str | None = None
    result_sha256: str | None = None
    is_from_before: bool = False  # an earlier job made the result, with the same settings
    together: list[str] | None = None  # the files that were taken for parts of one recording
    time_limit: float | None = None  # of the job that made the result, in seconds
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    voxels_replaced: int | None = None  # not finite in the input
    percentiles: dict[str, float] | None = None  # of the whole stack, in its own units
    steps_asked: int | None = None
    steps_done: int | None = None
    steps_skipped: int | None = None  # loss not finite
    stopped_by: str | None = None
    # Estimated squared error, normalised, of the checkpoint and of what was adapted from it; the
    # better of the two denoised the stack.
    judged: tuple[float, float] | None = None
    is_adapted: bool | None = None
    patch: tuple[int, int, int] | None = None
    recomputed_levels: int | None = None  # of the network in training, where memory was short
    loss_curve: list[float] | None = None  # means of equal stretches, at most 200
    overlap: float | None = None
    windows: int | None = None
    precision: str | None = None  # of inference
    motion: float | None = None  # of the frames, in pixels; None: they were taken for still
    mean_share: float | None = None  # of what the network would change in the mean image, taken
    stretched_from: tuple[float, float] | None = None  # what 0 and 65535 stand for, if asked for
    shortened: list[str] = field(default_factory=list)  # what a lack of time or memory took away
    seconds: dict[str, float] = field(default_factory=dict)  # per stage
    peak_host_bytes: int | None = None  # of the process so far
    peak_device_bytes: int | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage's seconds."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - begin
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + taken, 3)


@dataclass(kw_only=True)
class JobRecord:
    """The whole job."""

    method: str
    seed: int
    time_limit: float | None  # seconds
    device: str
    device_reason: str
    driver: str | None
    torch_version: str
    checkpoint: str | None = None  # file; None: trained from scratch on every stack
    checkpoint_sha256: str | None = None
    checkpoint_provenance: dict[str, Any] | None = None
    # All that a result depends on beside its recording.
    settings: dict[str, Any] = field(default_factory=dict)
    stopped_by: str | None = None  # a signal, where one ended the job
    stacks: list[StackRecord] = field(default_factory=list)
    # Records like this one, without this field, of jobs with other results in the same folder.
    other_jobs: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Replace the record in a folder, whole or not at all."""
        temporary = folder / f".{RECORD_NAME}.tmp"
        with _alone_in(folder):
            self.other_jobs = self._others_in(folder)
            text = json.dumps(asdict(self), indent=1) + "\n"
            try:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(folder / RECORD_NAME)
            except OSError:
                with suppress(OSError):
                    temporary.unlink()
                raise

    def _others_in(self, folder: Path) -> list[dict[str, Any]]:
        """What the folder's record tells of results, or failures, that this job did not touch."""
        files = {stack.file for stack in self.stacks}
        results = {stack.result for stack in self.stacks if stack.result}

        def is_still_true(stack: dict[str, Any]) -> bool:
            file, result = stack["file"], stack["result"]
            return file not in files and result not in results and Path(result or file).exists()

        others = []
        with suppress(*UNREADABLE):
            for job in read_jobs(folder):
                stacks = [stack for stack in job["stacks"] if is_still_true(stack)]
                if stacks:
                    others.append({**job, "stacks": stacks})
        return others


UNREADABLE = OSError, ValueError, KeyError, TypeError, AttributeError  # ends reading no record


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """The jobs of a folder's record, the last to write first; one of `UNREADABLE` if it is none."""
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    others = record.pop("other_jobs", [])
    return [record, *others]


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """While no other job writes its record there, unless one hangs."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(LOCK_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
            else:
                break
        yield
    finally:
        os.close(descriptor)


def thinned(values: list[float]) -> list[float]:
    """At most 200 means of equal stretches of a curve, rounded to six digits."""
    length = max(1, -(-len(values) // MAX_CURVE_POINTS))
    parts = [values[i : i + length] for i in range(0, len(values), length)]
    return [float(f"{sum(part) / len(part):.6g}") for part in parts]
