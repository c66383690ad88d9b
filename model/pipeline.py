"""Denoises a stack, or a part of one, from file to file: the only place where stages meet."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.adapt import AdaptError, AdaptReport, adapt, fit_training
from model.architectures import build, stride_of
from model.budget import Budget, StackPlan, plan_stack
from model.checkpoint import Checkpoint, load_network
from model.config import LowRankConfig, Method, Precision, Stage
from model.device import (
    Device,
    fitting_batch,
    is_out_of_memory,
    peak_bytes,
    place,
    release_memory,
    reset_peak,
)
from model.ensemble import LowRankEnsemble
from model.factor_denoiser import FactorDenoiser
from model.frames import Frames, JoinedFrames
from model.inference import (
    InferenceError,
    WindowGrid,
    infer,
    seconds_per_window,
)
from model.lowrank import LowRank, LowRankError
from model.mean_image import with_mean_of
from model.normalise import IntensityScale, fit_scale
from model.picture import Picture
from model.progress import Progress, clock_text
from model.report import StackRecord, thinned
from model.residual import Residual
from model.result_writer import ResultWriter, open_result
from model.resume import file_sum
from model.screening import screen
from model.stack import Stack, StackError
from model.stack_io import StackPaths, read_stack
from model.stretch import stretched
from model.teach import teach
from model.together import require_alike

logger = logging.getLogger(__name__)

# Blocks [n,H,W] of a stretch of denoised frames, in order.
Render = Callable[[slice], Iterator[np.ndarray]]
# Takes each block [n,H,W] of a result, in order.
Look = Callable[[np.ndarray], None]

# A voxel, for its mean image and the looks at what was taken out: twice what was measured.
SECONDS_AROUND = 60e-9
# Times what the low-rank method takes in all, that must be left where components are found if its
# network is to be adapted,
TIMES_AS_LONG = 1.5
TEACHING_SHARE = 8.0  # which may take one such part of what is left
CONSTANT_BLOCK = 64  # frames at a time when a constant stack is copied


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What is found once of a recording in several files."""

    stacks: dict[Path, Stack]  # of the files that could be read, in order
    spans: dict[Path, slice]  # where each one's frames lie
    scale: IntensityScale
    render: Render | None  # its denoised frames, where all are denoised at once

    @property
    def files(self) -> list[str]:
        """Their paths, in order."""
        return [str(path) for path in self.stacks]


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Everything that is the same for all stacks of a job."""

    method: Method
    checkpoint: Checkpoint | None
    device: Device
    seed: int
    steps: int | None  # the operator's, instead of the method's
    precision: Precision = "fp32"  # of inference
    keeps_brightness: bool = False  # see model.inference.infer
    takes_mean: bool = True  # the recording's; see model.mean_image
    stretches: bool = False  # see model.stretch
    pictures: Path | None = None  # folder in that of the results; see model.picture

    def stages(self) -> tuple[Stage, ...]:
        """The adaptation of one stack; with `steps` the stages keep their proportions."""
        stages = self.method.stages if self.checkpoint else self.method.scratch_stages
        if self.steps is None:
            return stages
        # where the method does not adapt unless asked to, all stages count alike
        shares = (
            [stage.steps for stage in stages] if any(s.steps for s in stages) else [1] * len(stages)
        )
        ends = np.cumsum([0, *shares]) * self.steps / max(1, sum(shares))
        counts = np.diff(np.rint(ends).astype(int)).tolist()
        return tuple(replace(stage, steps=n) for stage, n in zip(stages, counts, strict=True))

    def join(
        self, files: Sequence[StackPaths], budget: Budget, record: StackRecord
    ) -> Recording | None:
        """Find what several files, parts of one recording, have in common; None: nothing.

        Files that cannot be read are left out: their own turn says why. The time it takes is noted
        in `record`. StackError where the others are no parts of one recording.
        """
        with self._failures_named(record.file):
            with record.timed("read"):
                stacks = []
                for paths in files:
                    with suppress(StackError):
                        stacks.append(_read(paths))
            if not stacks:
                return None
            require_alike(stacks)
            frames = JoinedFrames([stack.frames for stack in stacks])
            with record.timed("normalise"):
                scale = self._scale([stack.frames for stack in stacks])
            render = None
            if self.method.low_rank and not scale.is_constant:
                render = self._by_factors(frames, self.method.low_rank, budget, record)
            sources = [stack.path for stack in stacks]
            return Recording(
                stacks=dict(zip(sources, stacks, strict=True)),
                spans=dict(zip(sources, frames.spans(), strict=True)),
                scale=scale,
                render=render,
            )

    def denoise(
        self,
        paths: StackPaths,
        budget: Budget,
        record: StackRecord,
        recording: Recording | None = None,
    ) -> None:
        """Read, adapt, denoise and write one stack, noting in `record` what was done.

        As a part of a recording where one is given. Raises StackError with what is wrong and what
        to do; then nothing was written.
        """
        with self._failures_named(str(paths.source)):
            self._denoise(paths, budget, record, recording)

    @contextmanager
    def _failures_named(self, file: str) -> Iterator[None]:
        """Turn whatever goes wrong inside into a StackError about a file."""
        name = Path(file).name
        try:
            yield
        except StackError:
            raise
        except (AdaptError, InferenceError, LowRankError) as error:
            raise StackError(f"{name}: {error}") from error
        except Exception as error:
            if is_out_of_memory(error):
                raise StackError(
                    f"{name}: out of memory on {self.device.name}; give the job more, use another "
                    f"--device, or cut the recording into shorter files"
                ) from error
            # Whatever this is, it must not take the other stacks of a night's job with it.
            logger.error("  unexpected:", exc_info=True)
            raise StackError(
                f"{name}: unexpected {type(error).__name__}: {error}; this is a fault of the "
                f"program: please report it with the log"
            ) from error

    def _scale(self, frames: np.ndarray | Sequence[np.ndarray]) -> IntensityScale:
        percentiles = self.method.normalise
        return fit_scale(frames, percentiles.low_percentile, percentiles.high_percentile)

    def _denoise(
        self,
        paths: StackPaths,
        budget: Budget,
        record: StackRecord,
        recording: Recording | None,
    ) -> None:
        reset_peak(self.device)
        with record.timed("read"):
            known = recording.stacks.get(paths.source) if recording else None
            stack = known or _read(paths)
            record.input_sha256 = file_sum(paths.source)
        record.checkpoint_sha256 = self.checkpoint.sha256 if self.checkpoint else None
        record.shape, record.dtype = stack.shape, str(stack.dtype)
        record.voxels_replaced = stack.num_replaced
        logger.info("  %s %s", "x".join(map(str, stack.shape)), stack.dtype)
        if stack.num_replaced:
            logger.warning(
                "  %d voxels are NaN or infinite: replaced by the median", stack.num_replaced
            )
        if recording and not known:
            raise StackError(
                f"{paths.source.name}: it could not be read with the other parts of its recording; "
                "run the job again"
            )
        with record.timed("normalise"):
            scale = recording.scale if recording else self._scale(stack.frames)
        if scale.is_constant and scale.gain > 0:
            raise StackError(
                f"{paths.source.name}: its voxels lie between {scale.low} and {scale.high}, too "
                "near each other for that offset; subtract it, and store what is left as floats"
            )
        percentiles = self.method.normalise
        record.percentiles = {
            f"p{percentiles.low_percentile:g}": scale.low,
            f"p{percentiles.high_percentile:g}": scale.high,
        }
        looks: list[Look] = []
        residual = picture = None
        if not self.stretches and not scale.is_constant:  # in the recording's units, and with noise
            residual = Residual(stack.frames)
            picture = Picture(stack.frames) if self.pictures else None
            looks = [each.look for each in (residual, picture) if each]
        # Opened before the work, not after it: a full disk must not cost a night.
        with open_result(paths.target, self._as_written(stack, scale)) as result:
            if scale.is_constant:
                logger.warning("  every voxel has the same value: written unchanged")
                for start in range(0, len(stack.frames), CONSTANT_BLOCK):
                    result.append(stack.frames[start : start + CONSTANT_BLOCK].astype(np.float64))
            elif recording and recording.render:
                blocks = recording.render(recording.spans[paths.source])
                _write_all(_counted(blocks, stack), "render", result, record, looks)
            elif self.method.low_rank:
                render = self._by_factors(stack.frames, self.method.low_rank, budget, record)
                blocks = _counted(render(slice(None)), stack)
                _write_all(blocks, "render", result, record, looks)
            else:
                self._adapt_and_infer(result, stack, scale, budget, record, paths.target, looks)
        if residual:
            _note_residual(residual, record)
            if picture and self.pictures:
                name = paths.target.relative_to(self.pictures.parent)
                with record.timed("picture"):
                    _draw(picture, self.pictures / f"{name}.png", residual)
        with record.timed("write"):
            record.result_sha256 = file_sum(paths.target)
        record.status = "unchanged" if scale.is_constant else "denoised"
        record.result = str(paths.target)
        record.together = recording.files if recording else None
        record.peak_host_bytes, record.peak_device_bytes = peak_bytes(self.device)

    def _as_written(self, stack: Stack, scale: IntensityScale) -> Stack:
        """The stack with the dtype of its result, which is its own unless asked otherwise."""
        if not self.stretches or scale.is_constant:
            return stack
        return replace(stack, dtype=np.dtype(np.uint16))

    def _by_factors(
        self, frames: Frames, config: LowRankConfig, budget: Budget, record: StackRecord
    ) -> Render:
        """A recording [T,H,W] by its factors, which are denoised where there is a network."""
        with record.timed("screen"):
            screening = screen(frames)
        record.frames_apart, record.frames_repeated = screening.num_apart, screening.num_repeated
        if screening.num_apart:
            logger.warning(
                "  %d frames show no tissue, or a flash: blurred, each by itself",
                screening.num_apart,
            )
        if screening.num_repeated:
            logger.info("  %d frames are the same as the one before", screening.num_repeated)
        found = self._factors(screening.chosen(frames), config, budget, record)
        return partial(screening.restored, found.render, frames)

    def _factors(
        self, frames: Frames, config: LowRankConfig, budget: Budget, record: StackRecord
    ) -> LowRankEnsemble:
        """The factors of frames [T,H,W], denoised where there is a network."""
        denoiser = self._factor_denoiser(self.checkpoint) if self.checkpoint else None
        if denoiser:
            record.precision = denoiser.precision
        with record.timed("decompose"):
            measured = LowRank(
                frames, config, self.seed, budget=budget,
                denoise_images=denoiser.images if denoiser else None,
            )  # fmt: skip
            _note_doubts(measured.doubts, record)
            if measured.is_late:
                _note_lateness(measured.seconds, budget, record)
            found = LowRankEnsemble(measured, budget)
            found.find(denoiser.courses if denoiser else None)
        if measured.motion:
            record.motion = measured.motion.deviation
            if measured.removed:
                logger.info("  frames are %.2f pixels off their mean place: aligned", record.motion)
            else:
                record.shortened.append("motion left in for lack of memory")
        logger.info(
            "  %d components in %d blocks, spatial scale %g",
            found.num_components, found.num_blocks, measured.looks.first.space_sigma,
        )  # fmt: skip
        record.overlap = measured.overlap
        if measured.overlap != config.overlaps[0]:
            record.shortened.append(f"overlap {config.overlaps[0]} lowered to {measured.overlap}")
        if found.left_out:
            sizes = " and ".join(map(str, found.left_out))
            _note_shortened(f"blocks of {sizes} pixels left out for lack of {found.lack}", record)
        if denoiser:
            with record.timed("adapt"):
                self._teach(denoiser, measured, budget, record)
            with record.timed("denoise images"):
                record.mean_share = found.denoise_images(denoiser.images, denoiser.means)
        return found

    def _factor_denoiser(self, checkpoint: Checkpoint) -> FactorDenoiser:
        """Fresh for every stack, for it learns."""
        return FactorDenoiser(
            net=place(load_network(checkpoint), self.device).eval(),
            device=self.device,
            spare=load_network(checkpoint).eval() if self.device.is_cuda else None,
            precision=self.precision,
        )

    def _teach(
        self,
        denoiser: FactorDenoiser,
        measured: LowRank,
        budget: Budget,
        record: StackRecord,
    ) -> None:
        """Teach a network for factors by the recording itself, where that helps."""
        config = measured.config
        if not config.teach or self.steps == 0 or measured.doubts:
            return  # doubtful noise may be in both halves of the frames
        num_sizes = 1 + len(config.other_sizes(measured.frames.shape[1:]))
        needed = TIMES_AS_LONG * num_sizes * measured.seconds
        if not math.isinf(budget.remaining()) and needed > budget.remaining():
            _note_shortened("the network left as it is for lack of time", record)
            return
        share = budget.share(1.0, TEACHING_SHARE)
        try:
            report = teach(denoiser, measured, config.teach, share, self.seed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory(self.device)
            _note_shortened("the network left as it is for lack of memory", record)
            return
        if not report:
            return
        record.steps_asked, record.steps_done = config.teach.steps, report.steps
        if report.steps < config.teach.steps:
            _note_cut(record)
        record.judged, record.is_adapted = report.judged, report.has_helped
        logger.info(
            "  squared difference to frames that were left out: %.4g as it came, %.4g adapted; %s",
            *report.judged, "the adapted network denoises" if report.has_helped else
            "it stays as it is",
        )  # fmt: skip

    def _adapt_and_infer(
        self,
        result: ResultWriter,
        stack: Stack,
        scale: IntensityScale,
        budget: Budget,
        record: StackRecord,
        target: Path,
        looks: Sequence[Look],
    ) -> None:
        method, device = self.method, self.device
        # Fresh for every stack, random weights too: no stack teaches the next.
        torch.manual_seed(self.seed)
        if self.checkpoint:
            net = load_network(self.checkpoint)
        else:
            net = build(method.network, **method.network_config)
        net = place(net, device)
        tile_batch = fitting_batch(
            device, math.prod(method.tile.size), method.inference_bytes_per_voxel,
            method.tile.largest_batch if device.is_cuda else 1,
        )  # fmt: skip
        with record.timed("plan"):
            plan = self._plan(net, stack, scale, budget, tile_batch, record)
        with record.timed("adapt"):
            report = adapt(
                net,
                stack.frames,
                scale,
                stages=self.stages(),
                config=method.adapt,
                device=device,
                budget=Budget(plan.adapt_seconds),
                seed=self.seed,
                micro_batch=fit_training(
                    net, device, math.prod(method.adapt.patch), method.training_bytes_per_voxel,
                    method.adapt.batch,
                ),
                is_pretrained=self.checkpoint is not None,
            )  # fmt: skip
        _note_adaptation(record, report)
        grid = WindowGrid.over(stack.shape, method.tile, plan.overlap, stride_of(net))
        record.overlap, record.windows = plan.overlap, grid.num_windows
        record.precision = self.precision
        blocks = infer(
            net, stack.frames, scale, grid, device=device, tile_batch=tile_batch,
            precision=self.precision, keeps_brightness=self.keeps_brightness,
        )  # fmt: skip
        blocks = map(scale.invert, blocks)
        if self.takes_mean:
            blocks = with_mean_of(stack.frames, blocks, target, record)
        if self.stretches:
            blocks = stretched(blocks, stack.shape, target, record)
        _write_all(blocks, "infer", result, record, looks)

    def _plan(
        self,
        net: nn.Module,
        stack: Stack,
        scale: IntensityScale,
        budget: Budget,
        tile_batch: int,
        record: StackRecord,
    ) -> StackPlan:
        """How the time that is left for this stack is spent; without a limit nothing is timed."""
        tile = self.method.tile
        full = tile.largest_overlap
        if math.isinf(budget.remaining()):
            return StackPlan(overlap=full, inference_seconds=0.0, adapt_seconds=math.inf)
        grid = WindowGrid.over(stack.shape, tile, full, stride_of(net))
        each = seconds_per_window(
            net, stack.frames, scale, grid, self.device, tile_batch, self.precision
        )
        plan = plan_stack(
            budget.remaining() - SECONDS_AROUND * stack.frames.size,
            each,
            lambda overlap: WindowGrid.over(stack.shape, tile, overlap, stride_of(net)).num_windows,
            (full, *(overlap for overlap in tile.reduced_overlaps if overlap < full)),
        )
        logger.info(
            "  %s for this stack: about %s to denoise it, %s to adapt",
            clock_text(budget.remaining()),
            clock_text(plan.inference_seconds),
            clock_text(max(0.0, plan.adapt_seconds)),
        )
        if plan.overlap != full:
            record.shortened.append(f"overlap {full} lowered to {plan.overlap}")
        if plan.is_late:
            _note_lateness(plan.inference_seconds, budget, record)
        return plan


def _read(paths: StackPaths) -> Stack:
    if paths.problem is not None:
        raise StackError(paths.problem)
    return read_stack(paths.source)


def _counted(blocks: Iterator[np.ndarray], stack: Stack) -> Iterator[np.ndarray]:
    """The same blocks, with their progress told."""
    progress, done = Progress("rendering", len(stack.frames), "frames"), 0
    for block in blocks:
        yield block
        done += len(block)
        progress.update(done)


def _write_all(
    blocks: Iterator[np.ndarray],
    stage: str,
    result: ResultWriter,
    record: StackRecord,
    looks: Sequence[Look],
) -> None:
    """Write blocks [n,H,W] as they are made, and show them to all that look at them, all timed."""
    while True:
        with record.timed(stage):
            block = next(blocks, None)
        if block is None:
            return
        with record.timed("write"):
            result.append(block)
        with record.timed("check"):
            for look in looks:
                look(block)


def _note_residual(residual: Residual, record: StackRecord) -> None:
    if figures := residual.figures():
        record.residual = asdict(figures)
        logger.info("  taken out: %.3f times the noise", figures.over_noise)
        _note_doubts(figures.doubts(), record)


def _draw(picture: Picture, path: Path, residual: Residual) -> None:
    try:
        picture.write(path, residual)
    except Exception as error:  # whatever it is, the result matters more
        logger.warning("  no picture at %s: %s", path, error)


def _note_doubts(doubts: list[str], record: StackRecord) -> None:
    record.doubts += doubts
    for doubt in doubts:
        logger.warning("  WARNING: %s", doubt)


def _note_lateness(seconds: float, budget: Budget, record: StackRecord) -> None:
    record.shortened.append("inference alone takes longer than the time limit")
    logger.warning(
        "  WARNING: denoising alone needs about %s, %s are left; going on all the same",
        clock_text(seconds), clock_text(budget.remaining()),
    )  # fmt: skip


def _note_shortened(what: str, record: StackRecord) -> None:
    record.shortened.append(what)
    logger.info("  %s", what)


def _note_cut(record: StackRecord) -> None:
    record.shortened.append(f"adaptation {record.steps_asked} to {record.steps_done} iterations")


def _note_adaptation(record: StackRecord, report: AdaptReport) -> None:
    record.steps_asked, record.steps_done = report.steps_asked, report.steps
    record.steps_skipped, record.stopped_by = report.bad_steps, report.stopped_by
    record.patch, record.recomputed_levels = report.patch, report.recomputed_levels
    record.loss_curve = thinned(report.losses)
    record.judged, record.is_adapted = report.judged, report.is_adapted and bool(report.losses)
    if report.stopped_by == "time limit":
        _note_cut(record)
    if report.steps_asked:
        logger.info(
            "  adapted %d of %d iterations, stopped by: %s",
            report.steps, report.steps_asked, report.stopped_by,
        )  # fmt: skip
    if report.judged:
        logger.info(
            "  estimated squared error: %.4g as it came, %.4g adapted; %s", *report.judged,
            "the adapted one denoises" if report.is_adapted else "going back to the checkpoint",
        )  # fmt: skip
