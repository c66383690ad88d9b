"""How close a denoised stack is to the truth, as the CIDC25 challenge scores it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

EXACT_DB = 100.0  # a frame or pixel without any error


@dataclass(frozen=True, kw_only=True)
class Score:
    """Signal-to-noise ratios in dB: per frame, per pixel along time, and their mean."""

    spatial: float
    temporal: float

    @property
    def stsnr(self) -> float:
        """The challenge's ranking figure."""
        return 0.5 * (self.spatial + self.temporal)


def _mean_db(signal: np.ndarray, error: np.ndarray) -> float:
    scored = signal > 0
    if not scored.any():
        raise ValueError("the clean stack is zero everywhere, so no ratio to it exists")
    signal, error = signal[scored], error[scored]
    exact = error == 0
    ratio = 10.0 * np.log10(signal / np.where(exact, 1.0, error))
    return float(np.where(exact, EXACT_DB, ratio).mean())


def stsnr(clean: Iterable[np.ndarray], denoised: Iterable[np.ndarray]) -> Score:
    """Score of a denoised against a clean stack [T,H,W], taken frame by frame in float64.

    SNR(y, x) = 10 log10(sum y^2 / sum (y - x)^2) with y clean: averaged over frames, averaged over
    pixels, and the mean of both (https://ai4life-cidc25.grand-challenge.org, Metrics). A frame or
    pixel without error counts 100 dB, one without signal is left out.
    """
    frame_signal, frame_error = [], []
    pixel_signal = pixel_error = np.zeros(())
    for truth, frame in zip(clean, denoised, strict=True):
        truth64 = np.asarray(truth, np.float64)
        error = truth64 - np.asarray(frame, np.float64)
        signal_power, error_power = np.square(truth64), np.square(error)
        frame_signal.append(signal_power.sum())
        frame_error.append(error_power.sum())
        pixel_signal = pixel_signal + signal_power
        pixel_error = pixel_error + error_power
    return Score(
        spatial=_mean_db(np.array(frame_signal), np.array(frame_error)),
        temporal=_mean_db(pixel_signal, pixel_error),
    )
