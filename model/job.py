"""A whole job: finds the stacks, shares the time, denoises one by one, keeps the record."""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from model.budget import Budget
from model.checkpoint import (
    Checkpoint,
    CheckpointError,
    expected_sum,
    find_checkpoint,
    read_checkpoint,
)
from model.config import AUTO, METHODS, PLATFORM_SECONDS, RunConfig
from model.device import (
    Device,
    DeviceError,
    inference_precision,
    pick_device,
)
from model.pipeline import Denoiser
from model.progress import clock_text
from model.report import JobRecord, StackRecord
from model.result_writer import (
    discard_unfinished,
    remove_stray_temporaries,
    write_failures_named,
)
from model.resume import code_sum, finished_before
from model.stack import StackError
from model.stack_io import StackPaths, find_stacks, is_platform_layout, peek_shape
from model.together import recordings

logger = logging.getLogger(__name__)

# A checkpoint that was uploaded beside the image wins over the one in it.
MOUNTED_WEIGHTS = Path("/opt/ml/model")
PICTURES = "pictures"  # folder in that of the results
SHIPPED_WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


class JobError(ValueError):
    """A job that cannot be done as a whole; carries the exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _find(config: RunConfig) -> list[StackPaths]:
    if not config.input_dir.is_dir():
        raise JobError(f"{config.input_dir}: no such folder; name it with --input-dir", 2)
    try:
        stacks = find_stacks(config.input_dir, config.output_dir)
    except StackError as error:  # input and output are one folder
        raise JobError(str(error), 2) from error
    if not stacks:
        raise JobError(
            f"{config.input_dir}: no stack found (.tif, .tiff, .btf, .tf8 or .mha, at any depth); "
            f"check --input-dir, or the folder that is mounted there", 2,
        )  # fmt: skip
    return stacks


def _check_writable(folder: Path) -> None:
    """Hours of work must not end at a folder that cannot be written."""
    probe = folder / ".denoise-probe.tmp"
    try:
        with write_failures_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink(missing_ok=True)  # another job may look at the same moment
    except StackError as error:
        raise JobError(str(error), 1) from error


def _chosen_method(config: RunConfig, folders: list[Path]) -> str:
    """The method by name; of those of "auto" the one the first folder with either has."""
    if config.method != "auto":
        return config.method
    if config.steps is not None or config.precision != "auto":
        return AUTO[1]
    for folder in folders:
        for name in AUTO:
            path = folder / f"{name}.safetensors"
            if path.is_file() or expected_sum(path) is not None:
                return name
    return AUTO[1]


def _read_weights(name: str, folders: list[Path]) -> tuple[Path, Checkpoint] | None:
    method = METHODS[name]
    if method.checkpoint == "never":
        return None
    path = find_checkpoint(name, folders)
    if path:
        return path, read_checkpoint(path, name)
    if method.checkpoint == "required":
        raise CheckpointError(
            f"{name} needs a checkpoint and {folders[-1]} holds no {name}.safetensors; train one: "
            f"python -m lab.pretrain {name} --out {folders[-1] / name}.safetensors"
        )
    return None


def _say_if_passed_over(folder: Path, taken: Path) -> None:
    """That weights were brought, and are not those that were wanted or not where they should be."""
    brought: list[str] = []
    with suppress(OSError):  # for it is not there, or may not be listed
        brought = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
    if brought and taken.parent != folder:
        logger.warning(
            "WARNING: %s holds %s, but no %s: %s is used", folder, ", ".join(brought[:5]),
            taken.name, taken,
        )  # fmt: skip


def _shape(paths: StackPaths) -> tuple[int, int, int]:
    """[T,H,W] of a stack by its header; of one that cannot be read, which takes no time, zeros."""
    try:
        return (0, 0, 0) if paths.problem else peek_shape(paths.source)
    except StackError:
        return 0, 0, 0


class Job:
    """One run over a folder.

    Raises JobError where nothing can be done at all: no input, no output folder, no device,
    unusable weights.
    """

    def __init__(self, config: RunConfig, started: float) -> None:
        """`started` is the moment on the monotonic clock from which the time limit counts."""
        self.config = config
        self._record_lock = threading.Lock()
        self.stacks = _find(config)
        limit = config.time_limit
        if limit is None:
            limit = PLATFORM_SECONDS if is_platform_layout(config.input_dir) else 0.0
        self.budget = Budget(limit - (time.monotonic() - started) if limit else math.inf)
        try:
            device = pick_device(config.device)
        except DeviceError as error:
            raise JobError(str(error), 2) from error
        _say_device(device)
        _check_writable(config.output_dir)
        remove_stray_temporaries(config.output_dir)
        self.device = device
        self.pictures = config.output_dir / PICTURES if config.pictures else None
        if self.pictures and is_platform_layout(config.input_dir):
            logger.warning("WARNING: no pictures in the platform's layout, which takes one image")
            self.pictures = None
        self.folders = [config.weights] if config.weights else [MOUNTED_WEIGHTS, SHIPPED_WEIGHTS]
        method = _chosen_method(config, self.folders)
        self.record = JobRecord(
            method=method,
            seed=config.seed,
            time_limit=limit or None,
            device=device.name,
            device_reason=device.reason,
            driver=device.driver,
            torch_version=torch.__version__,
        )
        try:
            path, self.denoiser = self._denoiser(method, self.folders)
        except CheckpointError as error:
            raise JobError(f"no stack was denoised: {error}", 1) from error
        except DeviceError as error:
            raise JobError(str(error), 2) from error
        checkpoint = self.denoiser.checkpoint
        if checkpoint and path and MOUNTED_WEIGHTS in self.folders:
            _say_if_passed_over(MOUNTED_WEIGHTS, path)
        if checkpoint:
            self.record.checkpoint = str(path)
            self.record.checkpoint_sha256 = checkpoint.sha256
            self.record.checkpoint_provenance = dict(checkpoint.provenance)
        self.record.settings = self._settings()
        if not METHODS[method].low_rank and not device.is_cuda:
            logger.info(
                "without a GPU, --method lowrank_unet takes minutes and not hours: see the README"
            )

    def _denoiser(self, name: str, folders: list[Path]) -> tuple[Path | None, Denoiser]:
        """What denoises by a method, and where its checkpoint lies."""
        config, method = self.config, METHODS[name]
        path, checkpoint = _read_weights(name, folders) or (None, None)
        if checkpoint:
            logger.info("method %s, checkpoint %s", name, path)
        elif method.checkpoint == "never":
            logger.info("method %s, which needs no checkpoint", name)
        else:
            logger.warning(
                "WARNING: NO CHECKPOINT for %s: every stack is learned from scratch, which takes "
                "far longer and gives less", name,
            )  # fmt: skip
        return path, Denoiser(
            method=method,
            checkpoint=checkpoint,
            device=self.device,
            seed=config.seed,
            steps=config.steps,
            precision=inference_precision(
                self.device, config.precision, takes_bf16=method.takes_bf16
            ),
            keeps_brightness=config.keep_brightness,
            takes_mean=config.mean_image == "recording",
            pictures=self.pictures,
            stretches=config.stretch_16bit,
        )

    def run(self) -> list[str]:
        """Denoise every stack; the error messages of those that failed."""
        logger.info(
            "%d stacks, time limit %s", len(self.stacks),
            f"{self.record.time_limit:.0f} s" if self.record.time_limit else "none",
        )  # fmt: skip
        together = self.config.normalise_together
        self._groups = recordings(self.stacks) if together else [[each] for each in self.stacks]
        there = self._take_over()
        todo = [group for group in self._groups if group[0].source not in there]
        voxels = [sum(math.prod(_shape(paths)) for paths in group) for group in todo]
        failures: list[str] = []
        for number, paths in enumerate(self.stacks):
            if paths.source in there:
                logger.info("[%d/%d] %s", number + 1, len(self.stacks), paths.source.name)
                logger.info("  already there, of the same recording and settings: left as it is")
        for number, group in enumerate(todo):
            share = self.budget.share(voxels[number], sum(voxels[number:]))
            failures += self._run_group(group, share)
        logger.info("%d of %d stacks written", len(self.stacks) - len(failures), len(self.stacks))
        return failures

    def _run_group(self, group: list[StackPaths], share: Budget) -> list[str]:
        """Denoise the stacks of one recording, mostly one; the errors of those that failed."""
        failures = []
        recording = problem = None
        for paths in group:
            number = 1 + self.stacks.index(paths)
            logger.info("[%d/%d] %s", number, len(self.stacks), paths.source.name)
            stack = StackRecord(
                file=str(paths.source),
                method=self.record.method,
                time_limit=self.record.time_limit,
            )
            self.record.stacks.append(stack)
            begin = time.monotonic()
            try:
                if problem:
                    raise problem
                if len(group) > 1 and not recording:
                    logger.info("  one recording in %d files", len(group))
                    try:
                        recording = self.denoiser.join(group, share, stack)
                    except StackError as error:
                        problem = error
                        raise
                self.denoiser.denoise(paths, share, stack, recording)
            except StackError as error:
                stack.error = str(error)
                failures.append(stack.error)
                logger.error("  FAILED: %s", error)
            else:
                took = clock_text(time.monotonic() - begin)
                logger.info("  written to %s after %s", paths.target, took)
            self._write_record()
        return failures

    def _settings(self) -> dict[str, Any]:
        """All that a result depends on beside its recording, the device and the time."""
        config = self.config
        return {
            "program": code_sum(),
            "method": self.record.method,
            "checkpoint": self.record.checkpoint_sha256,
            "steps": config.steps,
            "seed": config.seed,
            "precision": self.denoiser.precision,
            "keep_brightness": config.keep_brightness,
            "mean_image": config.mean_image,
            "stretch_16bit": config.stretch_16bit,
            "normalise_together": config.normalise_together,
        }

    def _take_over(self) -> set[Path]:
        """The stacks that an earlier job finished; they stand in the record before all others.

        From the start, so that a job that is stopped in the middle forgets none of them.
        """
        if self.config.overwrite:
            return set()
        found = finished_before(
            self.config.output_dir,
            self.stacks,
            self.record.settings,
            self.record.time_limit,
        )
        for group in self._groups:  # of a recording in several files, all or none
            parts = [str(paths.source) for paths in group] if len(group) > 1 else None
            known = [found[paths.source].together for paths in group if paths.source in found]
            if known != [parts] * len(group):
                for paths in group:
                    found.pop(paths.source, None)
        for stack in found.values():
            stack.is_from_before = True
            self.record.stacks.append(stack)
        if found:
            self._write_record()
        return set(found)

    def clean_up(self, signal_name: str) -> str:
        """Remove what is half-written, complete the record; the last line for stderr."""
        discard_unfinished()
        num_done = sum(stack.status != "failed" for stack in self.record.stacks)
        unfinished = [s.file for s in self.record.stacks if s.status == "failed" and not s.error]
        message = (
            f"stopped by {signal_name}: {num_done} of {len(self.stacks)} stacks written"
            + (f", {Path(unfinished[0]).name} unfinished" if unfinished else "")
            + "; allow more time, or lower --time-limit or --steps so that the job ends by itself"
        )
        self.record.stopped_by = signal_name
        self._write_record()
        return message

    def _write_record(self) -> None:
        try:
            with self._record_lock:  # a signal's thread may write at the same moment
                self.record.write(self.config.output_dir)
        except OSError as error:
            # The stacks matter more than their record, so this ends nothing.
            logger.warning("  the record could not be written: %s", error.strerror)


def _say_device(device: Device) -> None:
    logger.info(
        "computing on %s (%s); driver %s, torch %s",
        device.name, device.reason, device.driver or "none", torch.__version__,
    )  # fmt: skip
