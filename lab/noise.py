"""Detector noise for clean movies in counts: photons with a gain, plus a Gaussian read-out."""

from __future__ import annotations

import numpy as np

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


def noisy_recording(clean: np.ndarray, level: int, seed: int) -> np.ndarray:
    """The int16 recording a challenge-like detector gives of a clean movie [T,H,W]."""
    rng = np.random.default_rng(seed)
    return np.rint(add_noise(clean, *LEVELS[level], rng)).astype(np.int16)
