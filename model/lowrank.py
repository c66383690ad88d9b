"""Denoises a recording by its own low-rank structure; without a network, or with one for factors.

Cells, dendrites and neuropil each have a place and a course in time; in a small block of tissue a
handful of such products is all there is beside the noise. Frames are aligned where the brain moves,
the recording is standardised by its own noise, each block's principal components above the noise
are kept and shrunk, and their courses are filtered in time. Components are looked for again and
again, each time in what is left (`model.looks`). Sees the whole recording at once, which no network
with windows does.
What is left of the noise is in the courses, and most of it in the images of the components and in
the mean image. They can be handed, as the recording has them, to networks that know what cells do
and what tissue looks like.
After penalised matrix decomposition (Buchanan et al., bioRxiv 334706, 2018) in spirit.

Streams: holds a band of rows and the factors of the blocks, and aligned frames if it aligns them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from model.background import blurred_mean, measure_background
from model.basis import orthonormal_courses, weighed_by_noise
from model.blending import accumulated_weight, hann_window
from model.block_images import BlockImages, DenoiseImages, DenoiseMeans, blocks_at_a_time
from model.block_matrix import flattened
from model.blur import TRUNCATE
from model.budget import Budget, plan_stack
from model.components import (
    Components,
    Factors,
    Looks,
    decompose,
    filtered_and_shrunk,
    noise_only,
    shrunk,
    wiener,
)
from model.config import LowRankConfig
from model.doubts import doubts_about_time, doubts_about_units
from model.frames import ChosenFrames, Frames
from model.looks import SHORTEST, Sample, choose_looks, measured_anew, samples_of
from model.memory import available_bytes
from model.motion import measure_motion
from model.parallel import in_parallel, workers
from model.progress import Progress
from model.tiling import AxisPlan, plan_axis
from model.wide_courses import measure_wide_courses

logger = logging.getLogger(__name__)

FRAMES_AT_A_TIME = 64  # rendered; fewer where they would have more voxels than
VOXELS_AT_A_TIME = 2**25
SAMPLE_BYTES = 2**29  # of sampled blocks, their noise not counted: long recordings have fewer
MEMORY = 0.8  # of what is left, that factors are expected to take at most
BANDS = 2  # a row of blocks, smoothed, and its parts in work, in rows of blocks
WITH_THE_REST = 3.0  # a block's time with its courses, reading and rendering, over that without
BRIGHT = 5.0  # deviations of the noise, that images are bright by to time a network

Corner = tuple[int, int]  # row and column of a block, in positions of the padded axes
Made = TypeVar("Made")
# Courses [T,K] in noise of variance 1, a guess of what they are without, and what the guess has of
# courses that the whole field has in common, to what they are without.
DenoiseCourses = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class LowRankError(RuntimeError):
    """The recording cannot be denoised this way; the message says why."""


def image_scale(scales: Sequence[float]) -> float:
    """What the noise in images is taken for, by its deviations in courses: `Components.scale`.

    Only what is wide in an image has as much noise as the courses: half-way, in decibels, has
    nearly the least error and keeps more of the signals.
    """
    return math.sqrt(float(np.median(scales))) if len(scales) else 1.0


class LowRank:
    """The factors of all blocks of one recording."""

    def __init__(
        self,
        frames: Frames,
        config: LowRankConfig,
        seed: int = 0,
        *,
        budget: Budget | None = None,
        denoise_images: DenoiseImages | None = None,
    ) -> None:
        """Measure a stack [T,H,W] of any real dtype.

        Blocks overlap as far as fits into the budget, with the time that `denoise_images` will take
        where there is such a network; it is passed where not even the least overlap does.
        """
        config = replace(config, time_sigma=min(config.time_sigma, len(frames) / SHORTEST))
        self.frames, self.config = frames, config
        self._seed, self._rng = seed, np.random.default_rng(seed)
        self._overlap_by(config.overlaps[0])
        self.background = measure_background(frames)
        keep = partial(wiener, smoothing=config.spectrum_smoothing)
        self.motion = measure_motion(frames, self.background, keep, config.motion)
        # the motion that is taken out, and put back at the end
        self.removed = None if self.motion is None or self.motion.is_left_in else self.motion
        if self.removed:
            self.frames = self.removed.undone(frames)
            self.background = measure_background(self.frames)
        self.wide = measure_wide_courses(self.frames, self.background, config, seed)
        # [H,W] of what is no light from tissue, and would hide the mean image from a network
        self.dark = np.where(
            self.background.has_noise, self.background.dark_level, self.background.mean
        )
        # whether the recording is what it should be
        deviation = float(np.median(self.background.deviation[self.background.has_noise]))
        self.doubts = doubts_about_units(deviation, next(iter(frames)).dtype)
        self.looks = self._choose()
        overlaps = self._overlaps_in_memory()
        self._overlap_by(overlaps[0])
        self.seconds = 0.0  # that it will take from here, if there is a limit to fit into,
        self.is_late = False  # and whether that is longer
        if budget and not math.isinf(budget.remaining()):
            self._fit_into(budget, overlaps, denoise_images)
        self.factors: dict[Corner, Factors] = {}
        self._offset: np.ndarray | float = 0.0
        self._has_mean_images = False
        self._image_scale = 1.0  # what the noise in images is taken for, in deviations

    def _axes(self, overlap: float) -> tuple[AxisPlan, AxisPlan]:
        """Where blocks lie along rows and columns."""
        height, width = self.frames.shape[1:]
        size = self.config.block
        rows, columns = (plan_axis(n, size, overlap, pad=False) for n in (height, width))
        return rows, columns

    def _overlap_by(self, overlap: float) -> None:
        """Lay neighbouring blocks so far over each other, as a part of their size."""
        self.overlap = overlap
        self.rows, self.columns = self._axes(overlap)

    def _num_blocks(self, overlap: float) -> int:
        rows, columns = self._axes(overlap)
        return rows.num_windows * columns.num_windows

    def _overlaps_in_memory(self) -> tuple[float, ...]:
        """Those of the configuration with which the factors of all blocks fit into what is left.

        The least if only just. LowRankError where not even that.
        """
        overlaps, size, num_frames = self.config.overlaps, self.config.block, len(self.frames)
        band = 4 * num_frames * size * self.frames.shape[2]
        # images are there twice while they are denoised
        block = 4 * (self._usual_components + 1) * (num_frames + 2 * size**2)
        left = available_bytes()
        room = left - BANDS * band  # for factors
        fit = tuple(each for each in overlaps if self._num_blocks(each) * block <= MEMORY * room)
        least = self._num_blocks(overlaps[-1]) * block
        if not fit and least > room:
            raise LowRankError(
                f"{num_frames} frames need about {(least + BANDS * band) / 1e9:.1f} GB, and "
                f"{left / 1e9:.1f} GB are left; cut the recording into shorter files, or use a "
                "machine with more memory"
            )
        return fit or overlaps[-1:]

    def _fit_into(
        self,
        budget: Budget,
        overlaps: Sequence[float],
        denoise_images: DenoiseImages | None,
    ) -> None:
        """Take the largest of these for which time is left, by the seconds that one block takes."""
        block = self._standardised(*self.block_at(self.rows.starts[0], self.columns.starts[0]))

        def decomposed(_: int) -> Factors:
            found = decompose(block, self.looks.first.at(block), self.looks)
            return filtered_and_shrunk(found, self.config)

        each = WITH_THE_REST * _seconds_of(decomposed)
        if denoise_images:
            size, count = self.config.block, 1 + math.ceil(self._usual_components)
            shape = blocks_at_a_time(count, size), count, size, size
            drawn = np.random.default_rng(self._seed).standard_normal(shape)
            bright = (BRIGHT * drawn).astype(np.float32)
            denoise_images(bright)  # a GPU takes seconds to prepare itself
            each += _seconds_of(lambda _: denoise_images(bright)) / len(bright)
        plan = plan_stack(budget.remaining(), each, self._num_blocks, overlaps)
        self.seconds, self.is_late = plan.inference_seconds, plan.is_late
        self._overlap_by(plan.overlap)

    def in_blocks_of(self, size: int) -> LowRank:
        """The same recording in blocks of another size, to be found anew."""
        other = copy(self)
        other.config = replace(self.config, block=size)
        other.rows, other.columns = other._axes(self.overlap)
        other._look_anew()
        return other

    def of_some(self, is_chosen: np.ndarray) -> LowRank:
        """Some frames of the same recording, as `is_chosen` [T] says, to be found anew.

        With the background of all.
        """
        other = copy(self)
        other.frames = ChosenFrames(self.frames, is_chosen)
        other.wide = measure_wide_courses(other.frames, self.background, self.config, self._seed)
        other._look_anew()
        return other

    def _look_anew(self) -> None:
        """Measure what noise alone would reach, with the looks that were chosen before."""
        self._rng = np.random.default_rng(self._seed)
        self.looks = measured_anew(self.looks, self._samples(), self.config)
        self.factors = {}

    def block_at(self, row: int, column: int) -> tuple[slice, slice]:
        """Rows and columns of the block that starts there, in positions of the padded axes."""
        size = self.config.block
        return slice(row, row + size), slice(column, column + size)

    def band_at(self, row: int) -> np.ndarray:
        """The standardised recording [T,h,W] as wide as the blocks that start at a row."""
        return self._standardised(self.block_at(row, 0)[0], slice(None))

    def _part(self, rows: slice, columns: slice) -> tuple[np.ndarray, ...]:
        """Index of the pixels [h,w] that stand at positions of the padded axes."""
        return np.ix_(self.rows.source_index[rows], self.columns.source_index[columns])

    def _standardised(self, rows: slice, columns: slice) -> np.ndarray:
        """A part of the recording, in positions of the padded axes: [T,h,w] float32."""
        part = self._part(rows, columns)
        mean, deviation = self.background.mean[part], self.background.deviation[part]
        band = np.empty((len(self.frames), *mean.shape), np.float32)
        for number, frame in enumerate(self.frames):
            band[number] = (frame[part] - mean) / deviation
        return band

    def _samples(self) -> list[Sample]:
        """Some blocks, with what is measured on them."""
        config = self.config
        places = [
            self.block_at(row, column) for row in self.rows.starts for column in self.columns.starts
        ]
        # of a field with an empty border, say, the noise is measured where there is most of it
        has_noise = self.background.has_noise[self._part(slice(None), slice(None))]
        lit = np.array([has_noise[place].mean() for place in places])
        fit = SAMPLE_BYTES // (4 * len(self.frames) * config.block**2)
        order = self._rng.permutation(len(places))
        # where there are few blocks each stands in several times, with its noise in another order
        few = np.resize(
            order[lit[order] >= 0.9 * lit.max()], max(1, min(config.sampled_blocks, fit))
        )
        blocks = [self._standardised(*places[i]) for i in few]
        noises = [noise_only(block, self._rng) for block in blocks]
        return samples_of(blocks, noises, config, self._seed)

    def _choose(self) -> Looks:
        """With the spatial scale of least estimated risk on some blocks."""
        samples = self._samples()
        self.doubts += doubts_about_time([sample.block for sample in samples])
        looks, self._usual_components = choose_looks(samples, self.config, self._rng)
        return looks

    def each_block(
        self,
        work: Callable[[Corner, np.ndarray, Components], Made],
        rows: Sequence[int] | None = None,
    ) -> Iterator[Made]:
        """What `work` makes of every block's corner, standardised values and components, in order.

        On all cores at once. Of the blocks that start at some `rows`, or of all.
        """
        with workers() as pool:
            for row in self.rows.starts if rows is None else rows:
                band = self.band_at(row)
                starts = range(0, band.shape[2], self.config.block)
                parts = pool.map(partial(self._smoothed_part, band), starts)
                smoothed = np.concatenate(list(parts), axis=2)
                made = partial(self._made_of_block, work, band, smoothed, row)
                yield from pool.map(made, self.columns.starts)

    def _made_of_block(
        self,
        work: Callable[[Corner, np.ndarray, Components], Made],
        band: np.ndarray,
        smoothed: np.ndarray,
        row: int,
        column: int,
    ) -> Made:
        columns = self.block_at(row, column)[1]
        block = np.ascontiguousarray(band[:, :, columns])
        seen = np.ascontiguousarray(smoothed[:, :, columns])
        rng = np.random.default_rng([self._seed, self.config.block, row, column])
        found = decompose(block, seen, self.looks).with_signs(rng)
        return work((row, column), block, found)

    def _smoothed_part(self, band: np.ndarray, first: int) -> np.ndarray:
        """A block's width of a smoothed band [T,h,W], from column `first` on."""
        end = first + self.config.block
        halo = math.ceil(TRUNCATE * self.looks.first.space_sigma) + 1
        left = min(first, halo)
        part = self.looks.first.at(band[:, :, first - left : end + halo])
        return part[:, :, left : left + min(end, band.shape[2]) - first]

    def find(self, denoise_courses: DenoiseCourses | None = None) -> None:
        """Find the factors of all blocks, which can be rendered then.

        With `denoise_courses` the images are what the recording itself has along the courses, made
        orthonormal, the constant one first: the mean is an image, too, and the noise in all of them
        is white and of variance 1, for `denoise_images`.
        """
        self._has_mean_images = denoise_courses is not None
        self._offset = (
            self.dark
            if denoise_courses
            else blurred_mean(self.background, len(self.frames), self.config.mean_sigmas)
        )

        def factors_of(
            corner: Corner, block: np.ndarray, found: Components
        ) -> tuple[Corner, Factors, np.ndarray]:
            if not denoise_courses:
                guess, _ = self.guessed(found)
                return corner, shrunk(found, guess), found.scale
            return corner, self.along_components(found, denoise_courses, block, corner), found.scale

        self.factors, scales = {}, []
        progress = Progress(
            "decomposing", self.rows.num_windows * self.columns.num_windows, "blocks"
        )
        for corner, factors, scale in self.each_block(factors_of):
            self.factors[corner] = factors
            scales += scale.tolist()
            progress.update(len(self.factors))
        self._image_scale = image_scale(scales)

    def along_components(
        self, found: Components, denoise_courses: DenoiseCourses, block: np.ndarray, corner: Corner
    ) -> Factors:
        """What a standardised block [T,h,w] has along its components' courses, once denoised."""
        guess, known = self.guessed(found)
        courses = denoise_courses(found.courses, guess, known)
        return self.along(orthonormal_courses(courses), block, corner)

    def guessed(self, found: Components) -> tuple[np.ndarray, np.ndarray]:
        """Of components' courses what they would be without noise, and how much of it is wide."""
        known = self.wide.within(found.courses)
        return known + wiener(found.courses - known, self.config.spectrum_smoothing), known

    def along(self, courses: np.ndarray, block: np.ndarray, corner: Corner) -> Factors:
        """What the recording has along orthonormal courses in a standardised block [T,h,w]."""
        basis = weighed_by_noise(courses, block)
        return Factors(courses=basis.courses, footprints=self.read(basis.readers, block, corner))

    def read(self, readers: np.ndarray, block: np.ndarray, corner: Corner) -> np.ndarray:
        """Images [K,h*w] float32 that readers [T,K] (`Basis`) find in a standardised block."""
        images = (torch.from_numpy(readers).T @ flattened(block)).numpy()
        # the block is without its mean
        part = self._part(*self.block_at(*corner))
        mean = (self.background.mean - self.dark)[part] / self.background.deviation[part]
        images[0] += np.sqrt(len(block)) * mean.ravel()
        return images.astype(np.float32)

    def denoise_images(
        self, denoiser: DenoiseImages, denoise_means: DenoiseMeans | None = None
    ) -> float:
        """Replace every block's images [K,h,w] by what `denoiser` makes of them (`BlockImages`).

        The brightness of every block stays as it was recorded. The share of what else is changed in
        the mean that is followed, from 0 to 1. `denoise_means` gives what it makes of the means,
        should that take less time.
        """
        size = self.config.block
        noisy = [each.footprints.reshape(-1, size, size) for each in self.factors.values()]
        images = BlockImages(noisy=noisy, deviation=self._image_scale, seed=self._seed)
        found = []
        progress = Progress("denoising", len(noisy), "blocks")
        for result in images.denoised(denoiser):
            found.append(result)
            progress.update(len(found))
        share = images.share_of_mean(
            [result[0] for result in found],
            denoise_means or (lambda images: denoiser(images)[:, 0]),
            self.config.probe,
        )
        for corner, recorded, result in zip(self.factors, noisy, found, strict=True):
            result[0] = recorded[0] + share * (result[0] - recorded[0])
            self.factors[corner] = Factors(
                courses=self.factors[corner].courses,
                footprints=result.reshape(len(result), size**2),
            )
        return share

    @property
    def num_components(self) -> int:
        """Over all blocks, without the mean."""
        kept = sum(len(factors.footprints) for factors in self.factors.values())
        return kept - (len(self.factors) if self._has_mean_images else 0)

    @property
    def num_bytes(self) -> int:
        """That the factors of all blocks take."""
        return sum(f.courses.nbytes + f.footprints.nbytes for f in self.factors.values())

    def render(self, frames: slice = slice(None)) -> Iterator[np.ndarray]:
        """Denoised frames [n,H,W] in raw units, in order; all, or a stretch."""
        return self.moved_back(self.render_still(frames), frames)

    def moved_back(self, blocks: Iterator[np.ndarray], frames: slice) -> Iterator[np.ndarray]:
        """The blocks of a rendered stretch, with the motion that was taken out of the recording."""
        first, _, _ = frames.indices(len(self.frames))
        return self.removed.done(blocks, first) if self.removed else blocks

    def render_still(self, frames: slice = slice(None)) -> Iterator[np.ndarray]:
        """As they would be had nothing moved."""
        first, end, _ = frames.indices(len(self.frames))
        size = self.config.block
        window = hann_window(size)
        step = max(1, min(FRAMES_AT_A_TIME, VOXELS_AT_A_TIME // math.prod(self.frames.shape[1:])))
        frame_weight = np.outer(_weight(window, self.rows), _weight(window, self.columns))
        weight = np.outer(window, window).ravel()  # [h*w]
        height, width = self.frames.shape[1:]
        for start in range(first, end, step):
            part = slice(start, min(start + step, end))
            blend = np.zeros((part.stop - part.start, *frame_weight.shape), np.float32)
            for (row, column), factors in self.factors.items():
                block = factors.courses[part] @ (factors.footprints * weight)
                blend[:, row : row + size, column : column + size] += block.reshape(-1, size, size)
            change = (blend / frame_weight)[:, :height, :width]
            yield change * self.background.deviation + self._offset


def _seconds_of(work: Callable[[int], object]) -> float:
    """That a piece of work takes, with all cores at such pieces."""
    copies = 2 * torch.get_num_threads()  # one for every core, twice
    begin = time.perf_counter()
    for _ in in_parallel(work, range(copies)):
        pass
    return (time.perf_counter() - begin) / copies


def _weight(window: torch.Tensor, plan: AxisPlan) -> np.ndarray:
    return accumulated_weight(window, plan).numpy()
