"""A whole job: finds the stacks, shares the time, denoises one by one, keeps the record."""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path
from typing import Any

import torch

from model.budget import Budget
from model.checkpoint import Checkpoint, CheckpointError, find_checkpoint, read_checkpoint
from model.config import METHODS, PLATFORM_SECONDS, Precision, RunConfig
from model.device import (
    Device,
    DeviceError,
    inference_precision,
    make_deterministic,
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
from model.resume import finished_before
from model.stack import StackError
from model.stack_io import StackPaths, find_stacks, is_platform_layout, peek_shape

logger = logging.getLogger(__name__)

# A checkpoint that was uploaded beside the image wins over the one in it.
MOUNTED_WEIGHTS = Path("/opt/ml/model")
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
            probe.unlink()
    except StackError as error:
        raise JobError(str(error), 1) from error


def _read_weights(config: RunConfig) -> tuple[Path, Checkpoint] | None:
    method = METHODS[config.method]
    if method.checkpoint == "never":
        return None
    folders = [config.weights] if config.weights else [MOUNTED_WEIGHTS, SHIPPED_WEIGHTS]
    try:
        path = find_checkpoint(config.method, folders)
        if path:
            return path, read_checkpoint(path, config.method)
    except CheckpointError as error:
        raise JobError(f"no stack was denoised: {error}", 1) from error
    if method.checkpoint == "required":
        raise JobError(
            f"no stack was denoised: {config.method} needs a checkpoint and {folders[-1]} holds no "
            f"{config.method}.safetensors; train one: python -m lab.pretrain {config.method} "
            f"--out {folders[-1] / config.method}.safetensors", 1,
        )  # fmt: skip
    return None


def _voxels(paths: StackPaths) -> int:
    """Size of a stack by its header; one that cannot be read takes no time."""
    try:
        return 0 if paths.problem else math.prod(peek_shape(paths.source))
    except StackError:
        return 0


class Job:
    """One run over a folder.

    Raises JobError where nothing can be done at all: no input, no output folder, no device,
    unusable weights.
    """

    def __init__(self, config: RunConfig, started: float) -> None:
        """`started` is the moment on the monotonic clock from which the time limit counts."""
        make_deterministic()
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
        precision = inference_precision(
            device, config.precision, takes_bf16=METHODS[config.method].takes_bf16
        )
        self.record = JobRecord(
            method=config.method,
            seed=config.seed,
            time_limit=limit or None,
            device=device.name,
            device_reason=device.reason,
            driver=device.driver,
            torch_version=torch.__version__,
            settings={},
        )
        found = _read_weights(config)
        if found:
            path, checkpoint = found
            self.record.checkpoint = str(path)
            self.record.checkpoint_sha256 = checkpoint.sha256
            self.record.checkpoint_provenance = dict(checkpoint.provenance)
            logger.info("method %s, checkpoint %s", config.method, path)
        elif METHODS[config.method].checkpoint == "never":
            checkpoint = None
            logger.info("method %s, which needs no checkpoint", config.method)
        else:
            checkpoint = None
            logger.warning(
                "WARNING: NO CHECKPOINT for %s: every stack is learned from scratch, which takes "
                "far longer and gives less", config.method,
            )  # fmt: skip
        if not METHODS[config.method].low_rank and not device.is_cuda:
            logger.info(
                "without a GPU, --method lowrank_unet takes minutes and not hours: see the README"
            )
        self.record.settings = self._settings(precision)
        self.denoiser = Denoiser(
            method=METHODS[config.method],
            checkpoint=checkpoint,
            device=device,
            seed=config.seed,
            steps=config.steps,
            precision=precision,
            keeps_brightness=config.keep_brightness,
            stretches=config.stretch_16bit,
        )

    def run(self) -> list[str]:
        """Denoise every stack; the error messages of those that failed."""
        logger.info(
            "%d stacks, time limit %s", len(self.stacks),
            f"{self.record.time_limit:.0f} s" if self.record.time_limit else "none",
        )  # fmt: skip
        there = self._take_over()
        voxels = [0 if paths.source in there else _voxels(paths) for paths in self.stacks]
        failures = []
        for number, paths in enumerate(self.stacks):
            logger.info("[%d/%d] %s", number + 1, len(self.stacks), paths.source.name)
            if paths.source in there:
                logger.info("  already there, of the same recording and settings: left as it is")
                continue
            stack = StackRecord(file=str(paths.source), time_limit=self.record.time_limit)
            self.record.stacks.append(stack)
            begin = time.monotonic()
            try:
                share = self.budget.share(voxels[number], sum(voxels[number:]))
                self.denoiser.denoise(paths, share, stack)
            except StackError as error:
                stack.error = str(error)
                failures.append(stack.error)
                logger.error("  FAILED: %s", error)
            else:
                took = clock_text(time.monotonic() - begin)
                logger.info("  written to %s after %s", paths.target, took)
            self._write_record()
        logger.info("%d of %d stacks written", len(self.stacks) - len(failures), len(self.stacks))
        return failures

    def _settings(self, precision: Precision) -> dict[str, Any]:
        """All that a result depends on beside its recording, the device and the time."""
        config = self.config
        return {
            "method": config.method,
            "checkpoint": self.record.checkpoint_sha256,
            "steps": config.steps,
            "seed": config.seed,
            "precision": precision,
            "keep_brightness": config.keep_brightness,
            "stretch_16bit": config.stretch_16bit,
        }

    def _take_over(self) -> set[Path]:
        """The stacks that an earlier job finished; they stand in the record before all others.

        From the start, so that a job that is stopped in the middle forgets none of them.
        """
        if self.config.overwrite:
            return set()
        found = finished_before(
            self.config.output_dir, self.stacks, self.record.settings, self.record.time_limit
        )
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
