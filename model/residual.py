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
LEAST_CORRELATION = 0.2  # summed over these frames: less is no loss, however sure it is
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
                "frame to frame: look at the recording less the result for activity in it, if "
                "frames have no noise in common"
            )
        return found


class Residual:
    """Looks once at the frames [T,H,W] of a recording beside their results, in order."""

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames
        self._work = np.result_type(frames.dtype, np.float32)  # which 32-bit integers do not fit
        self._num_looked_at = 0
        self._before: tuple[np.ndarray, np.ndarray] | None = None  # last frame and its residual
        self._told: list[tuple[float, ...]] = []  # by every frame that is not as the last one
        self._rows, self._columns = (
            np.linspace(0, side, min(MAX_PLACES, max(1, side // LEAST_SIDE)) + 1).astype(int)
            for side in frames.shape[1:]
        )
        places = len(self._rows) - 1, len(self._columns) - 1
        # means of places, in deviations of their frame's residual: of the first frames, of the
        # last ones (the last first), their sum over all, and their products so many frames apart
        self._first: list[np.ndarray] = []
        self._past: deque[np.ndarray] = deque(maxlen=LAGS + 1)
        self._sum = np.zeros(places)
        self._products = np.zeros((LAGS + 1, *places))

    def look(self, denoised: np.ndarray) -> None:
        """At the next frames' results [n,H,W], in the recording's units."""
        for result in denoised:
            frame = self._frames[self._num_looked_at].astype(self._work)
            self._num_looked_at += 1
            with np.errstate(over="ignore", invalid="ignore"):  # figures tell no more then
                self._look_at(frame, (frame - result).astype(np.float32))

    def _look_at(self, frame: np.ndarray, residual: np.ndarray) -> None:
        before, self._before = self._before, (frame, residual)
        if before is None:
            return
        change = (frame - before[0]).astype(np.float32)
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
        self._compare_places(residual, np.sqrt(products[0]) or 1.0)

    def _compare_places(self, residual: np.ndarray, deviation: float) -> None:
        """With the frames before; each in deviations of its own, so that a flash counts little."""
        rows, columns = self._rows, self._columns
        sums = np.add.reduceat(residual, rows[:-1], axis=0, dtype=np.float64)
        sums = np.add.reduceat(sums, columns[:-1], axis=1)
        means = sums / np.outer(np.diff(rows), np.diff(columns)) / deviation
        if len(self._first) < LAGS:
            self._first.append(means)
        self._sum += means
        self._past.appendleft(means)
        for lag, past in enumerate(self._past):
            self._products[lag] += means * past

    def figures(self) -> ResidualFigures | None:
        """Of the frames that were looked at; None where these have no noise."""
        if not self._told:
            return None
        # medians over frames, so that a flash does not count
        told = np.median(self._told, axis=0)
        mean, square, with_last, with_next, change, change_next = told
        if not change or not np.isfinite(told).all():
            return None
        square_or_1 = square or 1.0  # where nothing was taken out
        lasts = self._correlations()
        return ResidualFigures(
            over_noise=float(np.sqrt(square / (change / 2))),
            like_last_frame=float(with_last / square_or_1),
            like_next_pixel=float(with_next / square_or_1 - change_next / change),
            mean=float(mean),
            places_with_signal=None
            if lasts is None
            else float(((lasts > LEAST_CORRELATION) & (self._deviations(lasts) > SIGNAL)).mean()),
        )

    def _correlations(self) -> np.ndarray | None:
        """Of every place, the sum of its course's correlations with its past; None: too short."""
        num_frames = len(self._told)
        if num_frames < MIN_FRAMES:
            return None
        covariances = [self._products[0] / num_frames - np.square(self._sum / num_frames)]
        for lag in range(1, LAGS + 1):
            num_pairs = num_frames - lag
            later = self._sum - sum(self._first[:lag])
            earlier = self._sum - sum(list(self._past)[:lag])
            product = self._products[lag] - later * earlier / num_pairs
            covariances.append(product / num_pairs)
        variance, *past = covariances
        return np.divide(sum(past), variance, np.zeros_like(variance), where=variance > 0)

    def _deviations(self, correlations: np.ndarray) -> np.ndarray:
        """These in deviations of what they are for white noise."""
        return np.asarray(correlations / np.sqrt(LAGS / len(self._told)))

    def signal(self) -> np.ndarray | None:
        """How much of what was taken out lasts from frame to frame, [H,W]; None: too short.

        In deviations of what white noise reaches; the same for all pixels of a place.
        """
        correlations = self._correlations()
        if correlations is None:
            return None
        large = self._deviations(correlations).repeat(np.diff(self._rows), axis=0)
        return large.repeat(np.diff(self._columns), axis=1)
