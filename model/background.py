"""What does not change in a recording: its mean image, and the noise of every pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from model.frames import Frames

FEWEST_FRAMES = 16  # with fewer, nothing is taken for slow from one to the next
NOISE_SIGMA = 2.0  # pixels over which the noise's variance is averaged, or more in few frames:
LEAST_SAMPLES = 64.0  # its square times the changes from frame to frame, at least
HOLE = np.ones((5, 5))  # still pixels that fit in no such square lie among changing ones
LEAST_NOISE = 0.01  # of a pixel that has some, over the usual
SPIKE = 1e4  # a change squared, over the usual one, that is no noise of the microscope's
SPIKES = 1e-5  # of all changes at most; more are photons, where there are few
SPIKE_SAMPLES = 64  # along an axis, that tell what is usual
DARKEST = 1.0  # percent of the pixels
NEAR_DARK = 3.0  # deviations of a voxel's noise
LEAST_WEIGHT = 0.02  # in that average, of pixels that change at all; with less there is no noise


@dataclass(frozen=True, kw_only=True)
class Background:
    """Per pixel [H,W] float64, in the stack's units."""

    mean: np.ndarray  # over time
    deviation: np.ndarray  # of the noise of a single voxel; above 0
    has_noise: np.ndarray  # bool; not in an empty border; true of all where none has any

    @property
    def variance(self) -> float:
        """Of the noise of a single voxel, in the mean over pixels."""
        return float(np.square(self.deviation).mean())

    @property
    def dark_level(self) -> float:
        """What is to be taken off the mean, so that its darkest pixels are near 0, not below.

        Nothing, where they are as near as their noise makes likely.
        """
        darkest = float(np.percentile(self.mean[self.has_noise], DARKEST))
        near = NEAR_DARK * float(np.median(self.deviation[self.has_noise]))
        return darkest - min(max(darkest, 0), near)


def measure_background(frames: Frames) -> Background:
    """Mean and noise of a stack [T,H,W], the noise from differences of neighbouring frames.

    Half the squared difference has the noise's variance wherever nothing moves that fast. Few
    frames may be far apart in time, and a single one has no neighbour: there only what differs
    from pixel to pixel counts, in their differences or in that frame.
    """
    num_frames = len(frames)
    is_short = num_frames < FEWEST_FRAMES
    some = tuple(slice(None, None, max(1, side // SPIKE_SAMPLES)) for side in frames.shape[1:])
    total = np.zeros(frames.shape[1:])
    squares, spikes = np.zeros(frames.shape[1:]), np.zeros(frames.shape[1:])
    num_spikes = 0
    before = None
    for frame in frames:
        frame = frame.astype(np.float64)
        total += frame
        if before is not None:
            change = _white_in(frame - before) if is_short else np.square(frame - before)
            squares += change
            usual = float(np.median(change[some]))
            is_spike = change > SPIKE * usual
            if is_spike.any():
                spikes[is_spike] += change[is_spike] - usual
                num_spikes += int(is_spike.sum())
        before = frame
    if num_spikes <= SPIKES * squares.size * num_frames:
        squares -= spikes
    num_changes = max(1, num_frames - 1)
    squares = squares / (2 * num_changes) if num_frames > 1 else _white_in(total)
    sigma = max(NOISE_SIGMA, math.sqrt(LEAST_SAMPLES / num_changes))
    variance = ndimage.gaussian_filter(squares, sigma)
    changes = squares > 0
    if not changes.all():  # an empty border must not count as quiet in the average beside it
        # but pixels of few photons, that happen to be still among others, do
        changes |= ndimage.binary_closing(np.pad(changes, 9, "symmetric"), HOLE)[9:-9, 9:-9]
        weight = ndimage.gaussian_filter(changes.astype(np.float64), sigma)
        variance = np.where(weight > LEAST_WEIGHT, variance / np.maximum(weight, LEAST_WEIGHT), 0)
    variance = np.maximum(variance, 1e-6 * (float(variance.mean()) or 1.0))
    deviation = np.sqrt(variance)
    has_noise = changes & (deviation >= LEAST_NOISE * np.sqrt(variance.mean()))
    return Background(
        mean=total / num_frames,
        deviation=deviation,
        has_noise=has_noise if has_noise.any() else np.ones_like(has_noise),
    )


def _white_in(frame: np.ndarray) -> np.ndarray:
    """What every pixel of a frame [H,W] tells of the variance of white noise in it: [H,W].

    By the pixels below, beside and across: what rises steadily in any direction has none of it.
    """
    change = frame
    for axis, side in enumerate(frame.shape):
        if side > 1:
            change = np.diff(change, axis=axis) / math.sqrt(2)
    lacking = [(0, side - left) for side, left in zip(frame.shape, change.shape, strict=True)]
    return np.pad(np.square(change), lacking, "edge")


def blurred_mean(background: Background, num_frames: int, sigmas: Sequence[float]) -> np.ndarray:
    """The mean image [H,W] of so many frames, blurred as far as its own noise makes worthwhile."""
    return blur_of_least_risk(background.mean, background.variance / num_frames, sigmas)[0]


def blur_of_least_risk(
    image: np.ndarray, variance: float, sigmas: Sequence[float]
) -> tuple[np.ndarray, float, float]:
    """An image [H,W] with white noise of a variance, blurred: it, the blur's width and its risk.

    The width is that of least mean squared error, as Stein estimates it; exact for a blur. The risk
    is that error and the noise's variance.
    """
    impulse = np.zeros((33, 33))
    impulse[16, 16] = 1
    best, width, least = image, 0.0, np.inf
    for sigma in sigmas:
        blurred = ndimage.gaussian_filter(image, sigma)
        centre = ndimage.gaussian_filter(impulse, sigma)[16, 16]
        risk = float(np.square(image - blurred).mean() + 2 * variance * centre)
        if risk < least:
            best, width, least = blurred, sigma, risk
    return best, width, least
