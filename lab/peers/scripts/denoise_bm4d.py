"""BM4D (https://webpages.tuni.fi/foi/GCF-BM3D) on the generalised Anscombe transform of a stack.

The noise is taken to be Poisson with a gain plus a Gaussian read-out, both measured in the stack;
the inverse is the exact unbiased one of Makitalo & Foi, IEEE Trans. Image Processing 22:91 (2013).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import adapter  # type: ignore[import-not-found]
import numpy as np
from bm4d import bm4d  # type: ignore[import-not-found]
from scipy import stats

MAX_VOXELS = 4_500_000  # at once: BM4D takes about 1 kB each
OVERLAP = 12  # frames that neighbouring chunks share; its blocks look 7 frames and a block around
NUM_BLOCKS = 1000  # of pixels, over which the noise is measured
NUM_INTENSITIES = 400  # of the inverse's table
READ_NODES = 41  # of the quadrature over the read-out's Gaussian


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A detector: counts = gain * photons + offset + a Gaussian of deviation gain * read."""

    gain: float  # counts per photon
    read: float  # photons
    offset: float  # counts


# ---- Noise of the stack -------------------------------------------------------------------------


def _block_means(image: np.ndarray) -> np.ndarray:
    """Means over square blocks [N] of an image [H,W]; rows and columns left over are dropped."""
    height, width = image.shape
    edge = min(height, width, max(4, round((height * width / NUM_BLOCKS) ** 0.5)))
    rows, columns = height // edge, width // edge
    blocks = image[: rows * edge, : columns * edge].reshape(rows, edge, columns, edge)
    return np.asarray(blocks.mean(axis=(1, 3)).ravel())


def measure_noise(noisy: np.ndarray) -> Noise:
    """The noise of a stack [T,H,W] from its photon transfer: variance = gain * mean + rest.

    Means over blocks obey the same line as pixels do, with little error along the mean, which would
    flatten it; the median of the slopes ignores blocks where activity adds to the variance.
    """
    mean = noisy.mean(axis=0, dtype=np.float64)
    variance = sum(
        np.square(after.astype(np.float64) - before) for before, after in pairwise(noisy)
    ) / (2 * (len(noisy) - 1))  # of differences in time: slow activity cancels
    gain, rest, *_ = stats.theilslopes(_block_means(variance), _block_means(mean))
    if not gain > 0:
        raise SystemExit(f"the noise does not grow with brightness (slope {gain:.3g}): not photons")
    # rest = read variance - gain * offset: one number for two. The smaller detector explains it.
    return Noise(gain=gain, read=max(rest, 0) ** 0.5 / gain, offset=max(-rest, 0) / gain)


# ---- Generalised Anscombe transform -------------------------------------------------------------


def stabilise(photons: np.ndarray, read: float) -> np.ndarray:
    """Values of about unit variance for recordings in units of photons."""
    return 2 * np.sqrt(np.maximum(photons + 3 / 8 + read**2, 0))


def _expected_values(intensities: np.ndarray, read: float) -> np.ndarray:
    """What stabilised recordings of so many photons are on average [N], by summation."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(READ_NODES)
    weights = weights / weights.sum()
    expected = []
    for intensity in intensities:
        reach = 8 * intensity**0.5 + 20
        counts = np.arange(max(0, int(intensity - reach)), int(intensity + reach))
        chance = stats.poisson.pmf(counts, intensity)
        values = stabilise(counts[:, None] + read * nodes, read) @ weights
        expected.append(chance @ values / chance.sum())
    return np.array(expected)


def unbias(stabilised: np.ndarray, read: float) -> np.ndarray:
    """Photons whose stabilised recordings average to these values; at least none."""
    most = float(stabilised.max()) ** 2 / 4 + 1
    # The steps grow with the intensity, as its square root changes ever less.
    intensities = np.linspace(0, most**0.5, NUM_INTENSITIES) ** 2
    return np.interp(stabilised, _expected_values(intensities, read), intensities)


# ---- Denoising ----------------------------------------------------------------------------------


def chunk_starts(num_frames: int, size: int) -> list[int]:
    """Starts of evenly spread chunks of `size` frames that cover a stack and overlap."""
    if num_frames <= size:
        return [0]
    num_gaps = -(-(num_frames - size) // (size - OVERLAP))
    return [round(i * (num_frames - size) / num_gaps) for i in range(num_gaps + 1)]


def denoise_chunks(stabilised: np.ndarray) -> np.ndarray:
    """BM4D for noise of deviation 1, over chunks of frames that fade into one another."""
    num_frames, height, width = stabilised.shape
    size = min(num_frames, max(3 * OVERLAP, MAX_VOXELS // (height * width)))
    position = np.arange(size)
    fade = np.minimum(np.minimum(position, position[::-1]) + 1, OVERLAP)[:, None, None]
    total, weight = np.zeros(stabilised.shape), np.zeros((num_frames, 1, 1))
    for start in chunk_starts(num_frames, size):
        chunk = slice(start, start + size)
        total[chunk] += fade * bm4d(stabilised[chunk], 1.0)
        weight[chunk] += fade
    return total / weight


def denoise(noisy: np.ndarray, *, seconds: float, seed: int) -> np.ndarray:
    """Measure the noise, stabilise it, BM4D, and back; nothing is trained or drawn."""
    noise = measure_noise(noisy)
    photons = (noisy - noise.offset) / noise.gain
    denoised = denoise_chunks(stabilise(photons, noise.read))
    return unbias(denoised, noise.read) * noise.gain + noise.offset


if __name__ == "__main__":
    adapter.run(denoise)
