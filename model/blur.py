"""Gaussian blurs of small blocks in time and in space, as products with matrices.

A filter that passes along an axis value by value takes three to ten times as long, and would blur
frames, too, that nobody keeps.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

TRUNCATE = 3.0  # deviations, where a Gaussian ends
AT_A_TIME = 16  # frames that are kept: more of them have more frames around that say nothing of one

# Which positions are made of which, by what weights [kept,seen].
Part = tuple[slice, slice, torch.Tensor]


def positions_apart(sigma: float) -> int:
    """How far frames or pixels can be apart that a blur of so many leaves something to say.

    What changes faster has less than a hundredth of its amplitude then.
    """
    return max(1, int(sigma))


def smooth_in_time(block: np.ndarray, sigma: float) -> np.ndarray:
    """A block [T,h,w] float32 blurred by `sigma` frames: [t,h,w], those with something to say."""
    return blur_in_time(block, sigma, positions_apart(sigma))


def blur_in_time(block: np.ndarray, sigma: float, every: int) -> np.ndarray:
    """Every so many frames of a block [T,h,w] float32 blurred by `sigma` frames: [t,h,w]."""
    if not sigma:
        return np.ascontiguousarray(block[::every])
    num_frames, height, width = block.shape
    seen = torch.from_numpy(block).reshape(num_frames, -1)
    blurred = seen.new_empty(-(-num_frames // every), height * width)
    for kept, around, weights in _parts(num_frames, sigma, every, AT_A_TIME):
        torch.mm(weights, seen[around], out=blurred[kept])
    return blurred.numpy().reshape(-1, height, width)


def smooth_in_space(block: np.ndarray, sigma: float) -> np.ndarray:
    """A block [T,h,w] float32 blurred by `sigma` pixels."""
    return blur_in_space(block, sigma, 1) if sigma else block


def blur_in_space(block: np.ndarray, sigma: float, every: int) -> np.ndarray:
    """Every so many rows and columns of a block [T,h,w] float32 blurred by `sigma` > 0 pixels."""
    down, across = (_parts(side, sigma, every, side)[0][2] for side in block.shape[1:])
    frames = torch.from_numpy(block)
    return torch.matmul(down, frames @ across.T).numpy()


@lru_cache(maxsize=256)
def noise_left(length: int, sigma: float, every: int) -> np.ndarray:
    """Deviation that white noise of 1 has behind a blur along an axis, at every so many positions.

    More at the ends, which see the same values twice.
    """
    parts = _parts(length, sigma, every, AT_A_TIME)
    return torch.cat([weights.norm(dim=1) for _, _, weights in parts]).numpy()


@lru_cache(maxsize=256)
def _parts(length: int, sigma: float, every: int, at_a_time: int) -> tuple[Part, ...]:
    """What every so many positions of an axis are made of, which goes on mirrored at its ends."""
    reach = int(TRUNCATE * sigma + 0.5)
    steps = np.arange(-reach, reach + 1)
    gaussian = np.exp(-0.5 * np.square(steps / sigma))
    gaussian /= gaussian.sum()
    parts = []
    centres = np.arange(0, length, every)
    for first in range(0, len(centres), at_a_time):
        some = centres[first : first + at_a_time]
        # the last position comes again: 0 1 2 2 1 0 0 1 ...
        phase = (some[:, None] + steps) % (2 * length)
        source = np.minimum(phase, 2 * length - 1 - phase)
        start, end = source.min(), source.max() + 1
        weights = np.zeros((len(some), end - start), np.float64)
        np.add.at(weights, (np.arange(len(some))[:, None], source - start), gaussian)
        around = slice(int(start), int(end))
        kept = slice(first, first + len(some))
        parts.append((kept, around, torch.from_numpy(weights.astype(np.float32))))
    return tuple(parts)
