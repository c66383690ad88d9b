"""How close a denoised stack is to the truth: the CIDC25 challenge's score and what it hides.

Stacks [T,H,W] are taken frame by frame in float64, so any of them may be a memory map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from lab.events import Activity, compare_activity
from model.normalise import fit_scale

EXACT_DB = 100.0  # a frame or pixel without any error
RANGE_PERCENTILES = 3.0, 97.0  # of the clean stack: the challenge's data range

# SSIM as Wang et al., IEEE Trans. Image Processing 13:600 (2004): Gaussian windows of 11x11 pixels
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
SSIM_K1, SSIM_K2 = 0.01, 0.03


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


@dataclass(frozen=True, kw_only=True)
class Psnr:
    """Peak signal-to-noise ratios in dB: per frame, per pixel along time, and their mean."""

    spatial: float
    temporal: float

    @property
    def combined(self) -> float:
        """Both with equal weight, as in the challenge's stSNR."""
        return 0.5 * (self.spatial + self.temporal)


@dataclass(frozen=True, kw_only=True)
class Whiteness:
    """Correlations of the residual, noisy - denoised: 0 where it is nothing but white noise.

    nan where the residual does not vary, as in the noisy stack taken for a result.
    """

    with_result: float  # same voxels of the denoised stack: above 0 where contrast was taken away
    with_next_frame: float  # of the residual: above 0 where structure or activity was taken away


@dataclass(frozen=True, kw_only=True)
class Quality:
    """All figures of one denoised stack against its truth."""

    snr: Score
    psnr: Psnr
    scale_invariant_psnr: float  # [dB]
    ssim: float
    mean_bias: float  # relative
    whiteness: Whiteness
    activity: Activity

    def as_row(self) -> dict[str, float]:
        """One flat mapping from names to figures, for tables and files."""
        return {
            "ssnr_db": self.snr.spatial,
            "tsnr_db": self.snr.temporal,
            "stsnr_db": self.snr.stsnr,
            "spatial_psnr_db": self.psnr.spatial,
            "temporal_psnr_db": self.psnr.temporal,
            "combined_psnr_db": self.psnr.combined,
            "scale_invariant_psnr_db": self.scale_invariant_psnr,
            "ssim": self.ssim,
            "mean_bias": self.mean_bias,
            "residual_with_result": self.whiteness.with_result,
            "residual_with_next_frame": self.whiteness.with_next_frame,
            **asdict(self.activity),
        }


def _frame_pairs(
    first: Iterable[np.ndarray], second: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for one, other in zip(first, second, strict=True):
        yield np.asarray(one, np.float64), np.asarray(other, np.float64)


def _psnr_db(squared_error: np.ndarray, data_range: float) -> np.ndarray:
    # a floor under the error, so that one and the same limit holds for rounded and for exact zeros
    floor = data_range**2 * 10.0 ** (-EXACT_DB / 10)
    return 10.0 * np.log10(data_range**2 / np.maximum(squared_error, floor))


def data_range(clean: np.ndarray) -> float:
    """Distance of the 97th from the 3rd percentile of a clean stack [T,H,W], in its units.

    The challenge's data range for all but stSNR. Exact for 8- and 16-bit integers, from a fixed
    sample above 5e7 voxels of anything else; from least to greatest where the two are one value.
    """
    found = fit_scale(clean, *RANGE_PERCENTILES).gain
    if found <= 0:
        raise ValueError("the clean stack is constant, so it gives no data range")
    return found


def psnr(clean: Iterable[np.ndarray], denoised: Iterable[np.ndarray], data_range: float) -> Psnr:
    """Peak signal-to-noise ratio of a denoised against a clean stack [T,H,W].

    PSNR = 10 log10(R^2 / MSE) with R the data range: of every frame and of every pixel along time,
    each averaged in dB. At most 100 dB a frame or pixel.
    """
    frame_errors = []
    pixel_error = np.zeros(())
    for truth, frame in _frame_pairs(clean, denoised):
        error = np.square(truth - frame)
        frame_errors.append(error.mean())
        pixel_error = pixel_error + error
    return Psnr(
        spatial=float(_psnr_db(np.array(frame_errors), data_range).mean()),
        temporal=float(_psnr_db(pixel_error / len(frame_errors), data_range).mean()),
    )


def scale_invariant_psnr(
    clean: Iterable[np.ndarray], denoised: Iterable[np.ndarray], data_range: float
) -> float:
    """Mean PSNR in dB of the frames of [T,H,W] after the best gain and offset for each frame.

    10 log10(R^2 / min over a, b of mean (y - a x - b)^2), y clean and x denoised: the least-squares
    fit of CARE (Weigert et al., Nature Methods 15:1090, 2018) and CAREamics, frame by frame as
    they do it, but with the one data range R of the stack for all frames. At most 100 dB a frame.
    """
    errors = []
    for truth, frame in _frame_pairs(clean, denoised):
        truth_change, frame_change = truth - truth.mean(), frame - frame.mean()
        power = np.square(frame_change).sum()
        gain = (truth_change * frame_change).sum() / power if power > 0 else 0.0
        errors.append(np.square(truth_change - gain * frame_change).mean())
    return float(_psnr_db(np.array(errors), data_range).mean())


def _window_mean(image: np.ndarray) -> np.ndarray:
    mean = ndimage.gaussian_filter(image, SSIM_SIGMA, radius=SSIM_RADIUS)
    inside = slice(SSIM_RADIUS, -SSIM_RADIUS)  # where the whole window lies on the image
    return np.asarray(mean[inside, inside])


def _frame_ssim(truth: np.ndarray, frame: np.ndarray, data_range: float) -> float:
    truth_mean, frame_mean = _window_mean(truth), _window_mean(frame)
    truth_variance = _window_mean(np.square(truth)) - np.square(truth_mean)
    frame_variance = _window_mean(np.square(frame)) - np.square(frame_mean)
    covariance = _window_mean(truth * frame) - truth_mean * frame_mean
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    likeness = (2 * truth_mean * frame_mean + c1) * (2 * covariance + c2)
    largest = (np.square(truth_mean) + np.square(frame_mean) + c1) * (
        truth_variance + frame_variance + c2
    )
    return float((likeness / largest).mean())


def ssim(clean: Iterable[np.ndarray], denoised: Iterable[np.ndarray], data_range: float) -> float:
    """Mean structural similarity of the frames of [T,H,W], each taken in 2-D; 1 is identity.

    Wang et al. 2004, equation 13 and section III.C: Gaussian windows of deviation 1.5 in 11x11
    pixels that lie wholly on the frame, variances not corrected for the sample.
    """
    similarities = []
    for truth, frame in _frame_pairs(clean, denoised):
        if min(truth.shape) <= 2 * SSIM_RADIUS:
            raise ValueError(f"SSIM needs frames of 11x11 or more, got {truth.shape}")
        similarities.append(_frame_ssim(truth, frame, data_range))
    return float(np.mean(similarities))


def mean_bias(clean: Iterable[np.ndarray], denoised: Iterable[np.ndarray]) -> float:
    """(mean denoised - mean clean) / mean clean over [T,H,W]; 0.01 is 1 % too much."""
    signal = excess = 0.0
    for truth, frame in _frame_pairs(clean, denoised):
        signal += float(truth.sum())
        excess += float((frame - truth).sum())
    if signal == 0:
        raise ValueError("the clean stack has mean 0, so no bias relative to it exists")
    return excess / signal


def _correlation(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Pearson's coefficient over all elements of pairs of equal arrays; nan where one is still."""
    num = 0
    sums, products = np.zeros(2), np.zeros((2, 2))
    origin: np.ndarray | None = None
    for pair in pairs:
        values = np.stack([array.ravel() for array in pair])  # [2,N]
        if origin is None:
            origin = values[:, :1].copy()  # keeps the sums' digits; a constant then sums to exact 0
        values -= origin
        num += values.shape[1]
        sums += values.sum(axis=1)
        products += values @ values.T
    if num == 0:
        return math.nan
    covariance = products / num - np.outer(sums / num, sums / num)
    power = covariance[0, 0] * covariance[1, 1]
    return float(covariance[0, 1] / math.sqrt(power)) if power > 0 else math.nan


def whiteness(noisy: np.ndarray, denoised: np.ndarray) -> Whiteness:
    """How much more than white noise was taken out of a noisy stack [T,H,W]; needs no truth."""

    def residuals() -> Iterator[np.ndarray]:
        for recorded, result in _frame_pairs(noisy, denoised):
            yield recorded - result

    return Whiteness(
        with_result=_correlation(_frame_pairs(residuals(), denoised)),
        with_next_frame=_correlation(itertools.pairwise(residuals())),
    )


def judge(clean: np.ndarray, noisy: np.ndarray, denoised: np.ndarray) -> Quality:
    """Every figure of a denoised stack; the three stacks [T,H,W] have one shape and one unit."""
    if not clean.shape == noisy.shape == denoised.shape or clean.ndim != 3:
        shapes = f"{clean.shape}, {noisy.shape}, {denoised.shape}"
        raise ValueError(f"clean, noisy and denoised must be [T,H,W] of one shape: {shapes}")
    bias = mean_bias(clean, denoised)
    if not math.isfinite(bias):
        raise ValueError("a stack to judge holds values that are not finite")
    span = data_range(clean)
    return Quality(
        snr=stsnr(clean, denoised),
        psnr=psnr(clean, denoised, span),
        scale_invariant_psnr=scale_invariant_psnr(clean, denoised, span),
        ssim=ssim(clean, denoised, span),
        mean_bias=bias,
        whiteness=whiteness(noisy, denoised),
        activity=compare_activity(clean, denoised),
    )
