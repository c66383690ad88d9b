"""What was taken out of a recording: whether it looks like noise, as it should, told without truth.

Noise is new in every frame. So what was taken out should be as strong as the noise is, should not
follow its own past, and should be nothing on the average.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

MAX_PLACES = 32  # along an axis
LEAST_SIDE = 8  # pixels, of a place; about a cell
LAGS = 8  # frames back, that a place's course is compared with
MIN_FRAMES = 64  # for these to tell
SIGNAL = 6.0  # deviations of what noise reaches there, beyond which a place has lost a signal
STRENGTH = 1.15  # times the noise, beyond which more than noise was taken out


@dataclass(frozen=True, kw_only=True)
class ResidualFigures:
    """Of a recording less its result; 1, 0, 0, 0 and 0 where nothing but noise was taken out."""

    over_noise: float  # its deviation over that of the noise
    like_last_frame: float  # its correlation with itself a frame before
    like_next_pixel: float  # and with the column beside, less that of the noise
    mean: float  # in the stack's units
    places_with_signal: float | None  # share of places where it follows its past; None: too short

    def doubts(self) -> list[str]:
        """What of it is to be told to the recording's owner."""
        found = []
        if self.over_noise > STRENGTH:
            found.append(
                f"what was taken out is {self.over_noise:.2f} times as strong as the noise: look "
                "at the recording less the result for what is missing"
            )
        if self.places_with_signal:
            found.append(
                f"in {self.places_with_signal:.1%} of the field what was taken out lasts from "
                "frame to frame: look at the recording less the result for activity in it"
            )
        return found


class Residual:
    """Looks once at the frames [T,H,W] of a recording beside their results, in order."""

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames
        self._num_looked_at = 0
        self._before: tuple[np.ndarray, np.ndarray] | None = None  # last frame and its residual
        self._told: list[tuple[float, ...]] = []  # by every frame that is not as the last one
        self._shape = height, width = frames.shape[1:]
        self._rows, self._columns = (
            min(length, max(LEAST_SIDE, -(-length // MAX_PLACES))) for length in (height, width)
        )
        places = height // self._rows, width // self._columns
        self._past: deque[np.ndarray] = deque(maxlen=LAGS + 1)  # means of places, the last first
        self._sum = np.zeros(places)  # over frames, of every place's mean
        self._products = np.zeros((LAGS + 1, *places))  # with itself so many frames before

    def look(self, denoised: np.ndarray) -> None:
        """At the next frames' results [n,H,W], in the recording's units."""
        for result in denoised:
            frame = self._frames[self._num_looked_at].astype(np.float32)
            self._num_looked_at += 1
            self._look_at(frame, frame - result)

    def _look_at(self, frame: np.ndarray, residual: np.ndarray) -> None:
        before, self._before = self._before, (frame, residual)
        if before is None:
            return
        change = frame - before[0]
        if not change.any():  # stored twice: no noise of its own
            return
        pairs = (
            (residual, residual),
            (residual, before[1]),
            (residual[:, 1:], residual[:, :-1]),
            (change, change),
            (change[:, 1:], change[:, :-1]),
        )
        products = [float((one * other).mean()) if one.size else 0.0 for one, other in pairs]
        self._told.append((float(residual.mean()), *products))
        rows, columns = self._sum.shape
        inside = residual[: rows * self._rows, : columns * self._columns]
        means = inside.reshape(rows, self._rows, columns, self._columns).mean((1, 3), np.float64)
        self._sum += means
        self._past.appendleft(means)
        for lag, past in enumerate(self._past):
            self._products[lag] += means * past

    def figures(self) -> ResidualFigures | None:
        """Of the frames that were looked at; None where these have no noise."""
        if not self._told:
            return None
        # medians over frames, so that a flash does not count
        mean, square, with_last, with_next, change, change_next = np.median(self._told, axis=0)
        if not change:
            return None
        square_or_1 = square or 1.0  # where nothing was taken out
        signal = self._signal_of_places()
        return ResidualFigures(
            over_noise=float(np.sqrt(square / (change / 2))),
            like_last_frame=float(with_last / square_or_1),
            like_next_pixel=float(with_next / square_or_1 - change_next / change),
            mean=float(mean),
            places_with_signal=None if signal is None else float((signal > SIGNAL).mean()),
        )

    def _signal_of_places(self) -> np.ndarray | None:
        """Of every place, the sum of its course's correlations with its past.

        In deviations of that sum for white noise; None where the recording is too short.
        """
        num_frames = len(self._told)
        if num_frames < MIN_FRAMES:
            return None
        variance, *past = self._products / num_frames - np.square(self._sum / num_frames)
        correlation = np.divide(sum(past), variance, np.zeros_like(variance), where=variance > 0)
        return np.asarray(correlation / np.sqrt(LAGS / num_frames))

    def signal(self) -> np.ndarray | None:
        """How much of what was taken out lasts from frame to frame, [H,W]; None: too short.

        In deviations of what white noise reaches; the same for all pixels of a place.
        """
        places = self._signal_of_places()
        if places is None:
            return None
        large = places.repeat(self._rows, 0).repeat(self._columns, 1)
        rest = [(0, side - there) for side, there in zip(self._shape, large.shape, strict=True)]
        return np.pad(large, rest, "edge")
