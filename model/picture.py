"""A picture of one stack for a person to look at: recorded, denoised, and what was taken out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np

from model.residual import SIGNAL, Residual

LEAST_SIDE = 256  # screen pixels of a frame; smaller ones are enlarged
GAP = 4  # screen pixels between frames
DARKEST, BRIGHTEST = 1.0, 99.8  # percentiles of a frame that become black and white
NOISE_RANGE = 3.0  # deviations of what was taken out that become black and white


class Picture:
    """Looks once at the frames [T,H,W] of a recording beside their results, in order.

    Above: the frame in the middle as it was recorded, as it was denoised (both in the grey scale of
    the second), and the first less the second, grey where nothing was taken out. Below: the mean of
    the recording over time, the deviation of the result over time, which shows what was active, and
    where what was taken out lasts from frame to frame, white where that is no noise, grey where the
    recording is too short to tell.
    """

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames
        self._num_looked_at = 0
        self._recorded, self._denoised, self._squares = np.zeros((3, *frames.shape[1:]))
        self._moment = np.zeros((2, *frames.shape[1:]))

    def look(self, denoised: np.ndarray) -> None:
        """At the next frames' results [n,H,W], in the recording's units."""
        for result in denoised:
            recorded = self._frames[self._num_looked_at]
            self._recorded += recorded
            self._denoised += result
            self._squares += np.square(result, dtype=np.float64)
            if self._num_looked_at == len(self._frames) // 2:
                self._moment = np.stack([recorded, result]).astype(np.float64)
            self._num_looked_at += 1

    def write(self, path: Path, residual: Residual) -> None:
        """As a PNG, with what `residual` tells of the places; whole or not at all."""
        num_frames = max(1, self._num_looked_at)
        mean = self._denoised / num_frames
        deviation = np.sqrt(np.maximum(self._squares / num_frames - np.square(mean), 0))
        recorded, denoised = self._moment
        difference = recorded - denoised
        limit = NOISE_RANGE * float(difference.std())
        signal = residual.signal()
        if signal is None:
            signal = np.full_like(mean, SIGNAL / 2)
        times = -(-LEAST_SIDE // max(mean.shape))
        rows = (
            (
                grey(recorded, *range_of(denoised), times),
                grey(denoised, *range_of(denoised), times),
                grey(difference, -limit, limit, times),
            ),
            (
                grey(self._recorded, *range_of(self._recorded), times),
                grey(deviation, 0.0, range_of(deviation)[1], times),
                grey(signal, 0.0, SIGNAL, times),
            ),
        )
        image = beside([beside(row, 1, GAP) for row in rows], 0, GAP)
        temporary = path.with_name(f".{path.name}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(imagecodecs.png_encode(image))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def range_of(frame: np.ndarray) -> tuple[float, float]:
    """What becomes black and white of a frame: nearly its extremes."""
    low, high = np.percentile(frame, [DARKEST, BRIGHTEST])
    return float(low), float(high)


def grey(frame: np.ndarray, low: float, high: float, times: int) -> np.ndarray:
    """A frame [H,W] as uint8, from `low` to `high`, every pixel so many times as wide and high."""
    scaled = (
        np.clip((frame - low) / (high - low), 0, 1) if high > low else np.full(frame.shape, 0.5)
    )
    return np.rint(255 * scaled).astype(np.uint8).repeat(times, 0).repeat(times, 1)


def beside(parts: Sequence[np.ndarray], axis: int, gap: int) -> np.ndarray:
    """Images uint8 one after the other along an axis, with so many white pixels between."""
    shape = list(parts[0].shape)
    shape[axis] = gap
    white = np.full(shape, 255, np.uint8)
    joined = [each for part in parts for each in (white, part)][1:]
    return np.ascontiguousarray(np.concatenate(joined, axis))
