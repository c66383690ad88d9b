"""The floors every table shows: what costs nothing, and what a denoiser therefore has to beat.

Each takes a noisy stack [T,H,W] of any real dtype and gives float32 [T,H,W]. Beside its result none
holds more than one frame; a memory map is read in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import ndimage


def unprocessed(noisy: np.ndarray) -> np.ndarray:
    """The noisy stack itself."""
    return noisy.astype(np.float32, copy=False)


def temporal_mean(noisy: np.ndarray) -> np.ndarray:
    """The mean over time in every frame; a read-only view that repeats one frame.

    It shows no activity at all and still scores well.
    """
    mean = noisy.mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.broadcast_to(mean, noisy.shape)


def gaussian(noisy: np.ndarray, sigma: tuple[float, float, float]) -> np.ndarray:
    """A Gaussian blur of deviations `sigma` in frames, rows and columns, mirrored at the ends."""
    return np.asarray(ndimage.gaussian_filter(noisy, sigma, output=np.float32))


FLOORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noisy": unprocessed,
    "temporal mean": temporal_mean,
    "Gaussian 3,1,1": partial(gaussian, sigma=(3, 1, 1)),
    "Gaussian 6,1.5,1.5": partial(gaussian, sigma=(6, 1.5, 1.5)),
}
