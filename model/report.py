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
LOCK_SECONDS = 5.0  # that another job may take to write its record; then it is taken to hang


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
    mean_blur: float | None = None  # pixels, of the recording's mean image where it was taken over
    # see model.residual; None: no noise to tell it by, or a result in other units
    residual: dict[str, float | None] | None = None
    # Of all parts of a recording, in the first one's record:
    frames_apart: int | None = None  # that show no tissue, or light that is not its own: blurred
    frames_repeated: int | None = None  # the same as the one before, and so their results
    motion: float | None = None  # of the frames, in pixels; None: they were taken for still
    mean_share: float | None = None  # of what the network would change in the mean image, taken
    doubts: list[str] = field(default_factory=list)  # about recording and result, as in the log
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

    def write(self, folder: Path) -> None:
        """Replace the record in a folder, whole or not at all.

        `other_jobs` in it are records like this one of jobs with other results in the folder.
        """
        # one name for all jobs, so that what one that was killed has left is written over
        temporary = folder / f".{RECORD_NAME}.tmp"
        with _alone_in(folder):
            record = {**asdict(self), "other_jobs": self._others_in(folder)}
            text = json.dumps(record, indent=1) + "\n"
            try:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(folder / RECORD_NAME)
            except OSError:
                with suppress(OSError):
                    temporary.unlink()
                raise

    def _others_in(self, folder: Path) -> list[dict[str, Any]]:
        """What the folder's record tells of results that this job did not make, and of failures.

        As long as these results, or the recordings that failed, are not known to be gone.
        """
        files = {stack.file for stack in self.stacks}
        results = {os.path.realpath(stack.result) for stack in self.stacks if stack.result}

        def is_still_true(stack: dict[str, Any]) -> bool:
            result = stack["result"]
            is_replaced = os.path.realpath(result) in results if result else stack["file"] in files
            return not is_replaced and not _is_gone(Path(result or stack["file"]))

        try:
            jobs = read_jobs(folder)
        except (OSError, ValueError):
            return []
        others = [{**job, "stacks": list(filter(is_still_true, job["stacks"]))} for job in jobs]
        return [job for job in others if job["stacks"]]


def _is_gone(path: Path) -> bool:
    """Whether a folder lacks a file; not so where the folder itself has another name here."""
    try:
        return path.parent.is_dir() and not path.exists()
    except OSError:  # not for us to see
        return False


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """The jobs that a folder's record tells of, the last to write it first.

    Each has `settings` and `stacks`, each of which has `file` and `result`. OSError or ValueError
    where there is no record, or one of something else.
    """
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    if not _is_job(record):
        raise ValueError("no record of a job")
    others = record.pop("other_jobs", [])
    return [record, *filter(_is_job, others if isinstance(others, list) else [])]


def _is_job(job: object) -> bool:
    return (
        isinstance(job, dict)
        and isinstance(job.get("settings"), dict)
        and isinstance(job.get("stacks"), list)
        and all(map(_is_stack, job["stacks"]))
    )


def _is_stack(stack: object) -> bool:
    return (
        isinstance(stack, dict)
        and isinstance(stack.get("file"), str)
        and isinstance(stack.get("result", 0), str | None)
    )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """While no other job on this machine writes its record there, unless one hangs."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder that may not be listed may still be written
        yield
        return
    try:
        end = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < end:
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
