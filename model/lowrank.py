"""Denoises a recording by its own low-rank structure; without a network, or with one for images.

Cells, dendrites and neuropil each have a place and a course in time; in a small block of tissue a
handful of such products is all there is beside the noise. The recording is standardised by its own
noise, each block's principal components above the noise are kept and shrunk, and their courses are
filtered in time. Sees the whole recording at once, which no network with windows does.
What is left of the noise is then in the images of the components and in the mean image: four fifths
of the error. They can be handed, as the recording has them, to a network that knows tissue.
After penalised matrix decomposition (Buchanan et al., bioRxiv 334706, 2018) in spirit; shrinkage
as for spiked matrices (Gavish & Donoho, IEEE Trans. Inf. Theory 63:2137, 2017), Wiener filter from
the smoothed periodogram, spatial scale by Monte-Carlo SURE (Ramani et al., IEEE TIP 17:1540, 2008).

Streams: holds a band of rows and the factors of the blocks, never a second stack.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from model.background import blurred_mean, measure_background
from model.blending import accumulated_weight, hann_window
from model.budget import Budget, plan_stack
from model.config import LowRankConfig
from model.frames import JoinedFrames
from model.progress import Progress
from model.tiling import AxisPlan, plan_axis

logger = logging.getLogger(__name__)

MIN_FRAMES = 16  # fewer have neither a mean worth the name nor courses
FRAMES_AT_A_TIME = 64
WITH_THE_REST = 3.0  # a block's time with reading, images and rendering, over its decomposition
LEAST_COURSE = 0.03  # norm of a course, in deviations of the noise, below which there is none


class LowRankError(RuntimeError):
    """The recording cannot be denoised this way; the message says why."""


# ---- One block --------------------------------------------------------------------------------


def principal_components(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values [K], greatest first, and right singular vectors [P,K] of a block [T,P]."""
    is_tall = block.shape[0] >= block.shape[1]
    gram = block.T @ block if is_tall else block @ block.T
    values, vectors = torch.linalg.eigh(gram)
    singular = values.flip(0).clamp_min(0).sqrt()
    vectors = vectors.flip(1)
    if not is_tall:
        vectors = block.T @ vectors / singular.clamp_min(1e-12)
    return singular, vectors


def wiener(courses: np.ndarray, smoothing: float) -> np.ndarray:
    """Courses [T,K] in noise of variance 1, filtered by what their own spectra show above it."""
    num_frames = len(courses)
    # mirrored, so that the ends do not jump
    spectrum = np.fft.rfft(np.concatenate([courses, courses[::-1]]), axis=0)
    power = np.square(np.abs(spectrum)) / (2 * num_frames)
    power = ndimage.gaussian_filter1d(power, smoothing, axis=0)
    gain = np.maximum(power - 1, 0) / np.maximum(power, 1e-12)
    return np.fft.irfft(spectrum * gain, 2 * num_frames, axis=0)[:num_frames]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A block [T,h,w] as a product."""

    courses: np.ndarray  # [T,K] float32
    footprints: np.ndarray  # [K,h*w] float32


def decompose(
    block: np.ndarray, smoothed: np.ndarray, threshold: float, config: LowRankConfig
) -> Factors:
    """Factors of a standardised block [T,h,w].

    Components are those of the smoothed block that stand above `threshold`, the greatest singular
    value that noise alone would have; their courses come from the block as it is.
    """
    num_frames = len(block)
    singular, vectors = principal_components(torch.from_numpy(smoothed.reshape(num_frames, -1)))
    kept = int((singular > threshold).sum())
    footprints = vectors[:, :kept].numpy()  # [P,K]
    strength = singular[:kept].numpy()
    shrunk = np.sqrt(1 - np.square(threshold / strength))
    courses = wiener(block.reshape(num_frames, -1) @ footprints, config.spectrum_smoothing)
    return Factors(
        courses=(courses * shrunk).astype(np.float32), footprints=footprints.T.astype(np.float32)
    )


def orthonormal_courses(courses: np.ndarray) -> np.ndarray:
    """The constant course and a basis [T,K+1] float32 of what `courses` [T,K] add to it."""
    num_frames = len(courses)
    constant = np.full((num_frames, 1), num_frames**-0.5)
    there = np.linalg.norm(courses, axis=0) > LEAST_COURSE
    basis, _ = np.linalg.qr(np.concatenate([constant, courses[:, there]], axis=1))
    return (basis * np.sign(basis[:1, :1])).astype(np.float32)


# ---- The recording ----------------------------------------------------------------------------


def _smooth(block: np.ndarray, space_sigma: float, config: LowRankConfig) -> np.ndarray:
    sigma = (config.time_sigma, space_sigma, space_sigma)
    return ndimage.gaussian_filter(block, sigma, truncate=3.0)


def _noise_only(block: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A block [T,h,w] of noise alone: differences of neighbouring frames in a random order.

    With the noise's own correlations within a frame, which a formula would not know.
    """
    pairs = [(block[first + 1 :: 2][:n] - block[first::2][:n]) / np.sqrt(2)
             for first, n in ((0, len(block) // 2), (1, (len(block) - 1) // 2))]  # fmt: skip
    noise = np.concatenate(pairs)
    noise = noise[rng.permutation(len(noise))]
    return np.concatenate([noise, noise[: len(block) - len(noise)]])


class LowRank:
    """The factors of all blocks of one recording."""

    def __init__(
        self,
        frames: np.ndarray | JoinedFrames,
        config: LowRankConfig,
        seed: int = 0,
        *,
        keeps_noisy_images: bool = False,
        budget: Budget | None = None,
    ) -> None:
        """Decompose a stack [T,H,W] of any real dtype; LowRankError where it is too short.

        Args:
            budget: blocks overlap as far as fits into this time; it is passed where not even the
                least overlap does.
            keeps_noisy_images: keep what the recording itself has along orthonormal courses, the
                constant one first, and render that: the mean, too, is then an image for
                `denoise_images`. Their noise is white and of variance 1.
        """
        if len(frames) < MIN_FRAMES:
            raise LowRankError(
                f"{len(frames)} frames are too few for the low-rank method: at least {MIN_FRAMES} "
                "are needed; choose another --method"
            )
        self.frames, self.config = frames, config
        self._seed, self._rng = seed, np.random.default_rng(seed)
        self.overlap = config.overlaps[0]  # of neighbouring blocks
        self.rows, self.columns = self._axes(self.overlap)
        self.background = measure_background(frames)
        self._keeps_noisy_images = keeps_noisy_images
        self._offset: np.ndarray | float = (
            0.0
            if keeps_noisy_images
            else blurred_mean(self.background, len(frames), config.mean_sigmas)
        )
        self.space_sigma, self.threshold = self._choose()
        if budget and not math.isinf(budget.remaining()):
            self._fit_into(budget)
        self.factors = self._decompose_all()

    def _axes(self, overlap: float) -> tuple[AxisPlan, AxisPlan]:
        """Where blocks lie along rows and columns."""
        height, width = self.frames.shape[1:]
        size = self.config.block
        rows, columns = (plan_axis(n, size, overlap, pad=False) for n in (height, width))
        return rows, columns

    def _fit_into(self, budget: Budget) -> None:
        """Take the largest overlap for which time is left, by the seconds that one block takes."""
        block = self._standardised(*self.block_at(self.rows.starts[0], self.columns.starts[0]))
        begin = time.perf_counter()
        decompose(block, _smooth(block, self.space_sigma, self.config), self.threshold, self.config)
        each = WITH_THE_REST * (time.perf_counter() - begin)

        def count_blocks(overlap: float) -> int:
            rows, columns = self._axes(overlap)
            return rows.num_windows * columns.num_windows

        plan = plan_stack(budget.remaining(), each, count_blocks, self.config.overlaps)
        self.overlap = plan.overlap
        self.rows, self.columns = self._axes(plan.overlap)

    def block_at(self, row: int, column: int) -> tuple[slice, slice]:
        """Rows and columns of the block that starts there, in positions of the padded axes."""
        size = self.config.block
        return slice(row, row + size), slice(column, column + size)

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

    def _choose(self) -> tuple[float, float]:
        """Spatial scale of least estimated risk on some blocks, and its threshold of noise."""
        config = self.config
        corners = [(row, column) for row in self.rows.starts for column in self.columns.starts]
        few = self._rng.permutation(len(corners))[: config.sampled_blocks]
        blocks = [self._standardised(*self.block_at(*corners[i])) for i in few]
        noises = [_noise_only(block, self._rng) for block in blocks]
        probes = [
            config.probe * self._rng.standard_normal(b.shape, dtype=np.float32) for b in blocks
        ]
        best, least = (config.space_sigmas[0], np.inf), np.inf
        for sigma in config.space_sigmas:
            tops = [
                float(principal_components(_flat(_smooth(n, sigma, config)))[0][0]) for n in noises
            ]
            threshold = config.threshold_margin * max(tops)
            risks = [
                self._risk(block, probe, sigma, threshold)
                for block, probe in zip(blocks, probes, strict=True)
            ]
            risk = sum(risks) / len(risks)
            logger.debug("  spatial scale %.1f: estimated risk %.5f", sigma, risk)
            if risk < least:
                best, least = (sigma, threshold), risk
        return best

    def _risk(self, block: np.ndarray, probe: np.ndarray, sigma: float, threshold: float) -> float:
        """Stein's estimate of the mean squared error, up to a constant, in units of the noise."""

        def estimate(noisy: np.ndarray) -> np.ndarray:
            smoothed = _smooth(noisy, sigma, self.config)
            factors = decompose(noisy, smoothed, threshold, self.config)
            return (factors.courses @ factors.footprints).reshape(noisy.shape)

        denoised = estimate(block)
        divergence = (probe * (estimate(block + probe) - denoised)).mean() / self.config.probe**2
        return float(np.square(denoised - block).mean() + 2 * divergence)

    def _decompose_all(self) -> dict[tuple[int, int], Factors]:
        factors = {}
        progress = Progress(
            "decomposing", self.rows.num_windows * self.columns.num_windows, "blocks"
        )
        for row in self.rows.starts:
            band = self._standardised(self.block_at(row, 0)[0], slice(None))
            smoothed = _smooth(band, self.space_sigma, self.config)
            for column in self.columns.starts:
                columns = self.block_at(row, column)[1]
                block = np.ascontiguousarray(band[:, :, columns])
                found = decompose(
                    block,
                    np.ascontiguousarray(smoothed[:, :, columns]),
                    self.threshold,
                    self.config,
                )
                if self._keeps_noisy_images:
                    found = self._along(orthonormal_courses(found.courses), block, row, column)
                factors[row, column] = found
                progress.update(len(factors))
        return factors

    def _along(self, courses: np.ndarray, block: np.ndarray, row: int, column: int) -> Factors:
        """What the recording has along orthonormal courses in a standardised block [T,h,w]."""
        images = courses.T @ block.reshape(len(block), -1)
        # the block is without its mean
        part = self._part(*self.block_at(row, column))
        mean = self.background.mean[part] / self.background.deviation[part]
        images[0] += np.sqrt(len(block)) * mean.ravel()
        return Factors(courses=courses, footprints=images.astype(np.float32))

    def denoise_images(self, denoiser: Callable[[np.ndarray], np.ndarray]) -> float:
        """Replace every block's images [K,h,w] by what `denoiser` makes of them.

        The brightness of every block stays as it was recorded. Of what else is changed in the mean,
        that share alone which the estimated error is least with: tissue unlike any it has seen
        keeps its detail. The share, from 0 to 1. (Not so the other images, whose noise is not quite
        independent of the courses: the estimate fails there.)
        """
        noisy = {corner: factors.footprints for corner, factors in self.factors.items()}
        rng = np.random.default_rng(self._seed)
        changed = followed = 0.0
        progress = Progress("denoising", len(noisy), "blocks")

        def denoised(images: np.ndarray) -> np.ndarray:
            found = denoiser(images)
            found[0] += (images[0] - found[0]).mean()
            return found

        for number, (corner, flat) in enumerate(noisy.items()):
            images = flat.reshape(-1, self.config.block, self.config.block)
            result = denoised(images)
            changed += float(np.square(result[0] - images[0]).mean())
            signs = rng.choice(np.array([-1, 1], np.float32), images.shape[1:])
            moved = images.copy()
            moved[0] += self.config.probe * signs
            follows = signs * (denoised(moved)[0] - result[0]) / self.config.probe
            followed += float(follows.mean())
            courses = self.factors[corner].courses
            self.factors[corner] = Factors(courses=courses, footprints=result.reshape(flat.shape))
            progress.update(number + 1)
        # Stein's estimate of the error is a parabola in the share, for noise of variance 1.
        share = (len(noisy) - followed) / changed if changed > 0 else 1.0
        share = min(1.0, max(0.0, share))
        for corner, flat in noisy.items():
            footprints = self.factors[corner].footprints
            footprints[0] = flat[0] + share * (footprints[0] - flat[0])
        return share

    @property
    def num_components(self) -> int:
        """Over all blocks, without the mean."""
        kept = sum(len(factors.footprints) for factors in self.factors.values())
        return kept - (len(self.factors) if self._keeps_noisy_images else 0)

    def render(self, frames: slice = slice(None)) -> Iterator[np.ndarray]:
        """Denoised frames [n,H,W] in raw units, in order; all, or a stretch."""
        size = self.config.block
        window = hann_window(size)
        frame_weight = np.outer(_weight(window, self.rows), _weight(window, self.columns))
        weight = np.outer(window, window).ravel()  # [h*w]
        height, width = self.frames.shape[1:]
        first, end, _ = frames.indices(len(self.frames))
        for start in range(first, end, FRAMES_AT_A_TIME):
            part = slice(start, min(start + FRAMES_AT_A_TIME, end))
            blend = np.zeros((part.stop - part.start, *frame_weight.shape), np.float32)
            for (row, column), factors in self.factors.items():
                block = factors.courses[part] @ (factors.footprints * weight)
                blend[:, row : row + size, column : column + size] += block.reshape(-1, size, size)
            change = (blend / frame_weight)[:, :height, :width]
            yield change * self.background.deviation + self._offset


def _flat(block: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(block.reshape(len(block), -1))


def _weight(window: torch.Tensor, plan: AxisPlan) -> np.ndarray:
    return accumulated_weight(window, plan).numpy()
