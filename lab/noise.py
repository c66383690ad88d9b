"""Detector noise for clean movies in counts: photons with a gain, plus a Gaussian read-out.

`add_noise` is the challenge's noise at its three levels; `draw_detector` and `apply_detector` are
detectors of every kind, for training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

# Gain [counts per photon] and read-out deviation [counts] of the challenge's three levels, as its
# entrants estimated them.
LEVELS: dict[int, tuple[float, float]] = {1: (27.6, 50.0), 2: (255.0, 51.0), 3: (991.0, 52.0)}


def add_noise(
    clean: np.ndarray, gain: float, read_deviation: float, rng: np.random.Generator
) -> np.ndarray:
    """A noisy float32 version of clean counts, not rounded."""
    photons = rng.poisson(np.maximum(clean, 0) / gain)
    noisy = photons * gain + rng.normal(0.0, read_deviation, clean.shape)
    return noisy.astype(np.float32)


def noise_variance(counts: np.ndarray, level: int) -> np.ndarray:
    """Of voxels in which so many counts are expected, at one of the challenge's levels."""
    gain, read_deviation = LEVELS[level]
    return np.maximum(counts, 0) * gain + read_deviation**2


def noise_deviation(counts: float, level: int) -> float:
    """Of one such voxel."""
    return float(np.sqrt(noise_variance(np.array(counts), level)))


def noisy_recording(clean: np.ndarray, level: int, seed: int) -> np.ndarray:
    """The int16 recording a challenge-like detector gives of a clean movie [T,H,W]."""
    rng = np.random.default_rng(seed)
    return np.rint(add_noise(clean, *LEVELS[level], rng)).astype(np.int16)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """A detector. With N photons expected, a voxel has, before bleed, line noise and drift,

    mean gain * (N + dark) + offset
    variance gain^2 * (1 + gain_spread^2) * (N + dark) + read_deviation^2.
    """

    gain: float  # counts per photon
    gain_spread: float = 0.0  # standard deviation of one photon's gain over its mean; log-normal
    dark_photons: float = 0.0  # per voxel, on top of the scene's
    read_deviation: float = 0.0  # counts
    bleed: float = 0.0  # the largest share of a voxel that the next one along its line receives
    offset: float = 0.0  # counts
    line_deviation: float = 0.0  # counts, one draw per line
    drift_deviation: float = 0.0  # counts, of a slow wander of the offset
    drift_frames: float = 100.0  # correlation time of that wander
    saturation: float = math.inf  # the largest count that can be recorded


# The detector of the NAOMi simulator (Song et al. 2021) with its default numbers: a photon gives
# 100 counts with variance 2300.
NAOMI = DetectorConfig(
    gain=100.0, gain_spread=math.sqrt(0.23), dark_photons=0.05, read_deviation=2.7, bleed=0.4
)
BLEED_THRESHOLD = 0.7  # three voxels of ten bleed (NAOMi)


def draw_detector(rng: np.random.Generator) -> DetectorConfig:
    """A random detector, from far below the challenge's level 1 to beyond its level 3."""

    def sometimes(probability: float, low: float, high: float) -> float:
        return rng.uniform(low, high) if rng.uniform() < probability else 0.0

    return DetectorConfig(
        gain=math.exp(rng.uniform(math.log(5.0), math.log(2000.0))),
        gain_spread=sometimes(0.3, 0.1, 0.7),
        dark_photons=sometimes(0.3, 0.0, 0.1),
        read_deviation=rng.uniform(0.0, 100.0),
        bleed=sometimes(0.2, 0.1, 0.5),
        offset=sometimes(0.5, -100.0, 400.0),
        line_deviation=sometimes(0.3, 0.0, 15.0),
        drift_deviation=sometimes(0.3, 0.0, 10.0),
        drift_frames=rng.uniform(30.0, 300.0),
        # No lower: a clipped target would teach a bias wherever cells are bright.
        saturation=sometimes(0.2, 4095.0, 32767.0) or math.inf,
    )


def averaged(detector: DetectorConfig, count: int) -> DetectorConfig:
    """The mean of `count` recordings by a detector, itself in the form of a detector.

    Exact but for saturation, which it applies to the mean, and for bleed, which it draws once.
    """
    noise = 1 / math.sqrt(count)
    return replace(
        detector,
        gain=detector.gain / count,
        dark_photons=detector.dark_photons * count,
        read_deviation=detector.read_deviation * noise,
        line_deviation=detector.line_deviation * noise,
        drift_deviation=detector.drift_deviation * noise,
    )


def _bleed_along_lines(counts: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Counts [T,H,W] of which voxels hand a random share to the next one on their line (NAOMi).

    Unlike NAOMi's, the first voxel of a line keeps its share, having nobody to receive from: its
    mean would lie a few per cent too low.
    """
    draw = torch.rand(counts.shape, generator=generator, device=counts.device)
    share = most / (1 - BLEED_THRESHOLD) * (draw - BLEED_THRESHOLD).clamp_min(0)
    given = share * counts
    kept = counts - given
    kept[..., 1:] += given[..., :-1]
    kept[..., 0] += given[..., 0]
    return kept


def _wander(num_frames: int, correlation: float, generator: torch.Generator) -> Tensor:
    """Smooth noise [T] of unit variance over realisations, on the generator's device."""
    reach = math.ceil(3 * correlation)
    white = torch.randn(1, 1, num_frames + 2 * reach, generator=generator, device=generator.device)
    lags = torch.arange(-reach, reach + 1, device=generator.device)
    kernel = torch.exp(-2 * (lags / correlation) ** 2)
    return torch.nn.functional.conv1d(white, (kernel / kernel.norm())[None, None])[0, 0]


def apply_detector(detector: DetectorConfig, clean: Tensor, generator: torch.Generator) -> Tensor:
    """A recording [T,H,W] float32, not rounded, of clean counts [T,H,W] on the same device.

    The generator lives on that device too.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=clean.device)

    expected = clean.float().clamp_min(0) / detector.gain + detector.dark_photons
    photons = torch.poisson(expected, generator=generator)
    counts = photons * detector.gain
    if detector.gain_spread:
        # The sum over n photons as one log-normal of the same mean and variance.
        log_variance = torch.log1p(detector.gain_spread**2 / photons.clamp_min(1))
        counts *= torch.exp(log_variance.sqrt() * normal(*clean.shape) - log_variance / 2)
    counts += detector.read_deviation * normal(*clean.shape)
    if detector.bleed:
        counts = _bleed_along_lines(counts, detector.bleed, generator)
    counts += detector.offset
    if detector.line_deviation:
        counts += detector.line_deviation * normal(*clean.shape[:2], 1)
    if detector.drift_deviation:
        drift = _wander(len(clean), detector.drift_frames, generator)
        counts += detector.drift_deviation * drift[:, None, None]
    return counts.clamp_max(detector.saturation)
