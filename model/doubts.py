"""What in a recording is not as it is assumed to be, to be told to its owner.

Noise is taken to be new in every frame, frames to follow one another, and a voxel's unit to be
finer than its noise. Nothing is done about it: the result is as good as it can be, and the log says
why that may not be good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LARGEST_LAG = 8  # frames
FEWEST_FRAMES = 64  # to compare frames so far apart
TURNS = 0.9  # of the difference between neighbours, of frames of one plane where planes take turns
AVERAGED = 1.5  # times that frames four apart differ more than neighbours, where noise lasts
GROWING = 1.25  # times that frames eight apart differ more yet, where it is activity
COARSE = 1.0  # deviation of the noise in units


def doubts_about_time(blocks: Sequence[np.ndarray]) -> list[str]:
    """Of a recording's standardised blocks [T,h,w], float32."""
    if not blocks or len(blocks[0]) < FEWEST_FRAMES:
        return []
    # mean squared difference of frames 1, 2 and so on apart, in each block
    differences = [
        np.array([np.square(block[lag:] - block[:-lag]).mean() for block in blocks])
        for lag in range(1, LARGEST_LAG + 1)
    ]
    usual = np.median(differences, axis=1)
    found = []
    likest = usual < 0.5 * (usual[0] + usual.min())  # and their multiples
    if usual.min() < TURNS * usual[0]:
        found.append(
            f"frames are more like those {1 + int(likest.argmax())} further on than like their "
            "neighbours: if they are planes or channels that take turns, save each on its own"
        )
    # activity makes frames differ the more the further apart; noise that lasts does so at first
    next_ones, fourth, eighth = (differences[lag - 1] for lag in (1, 4, 8))
    lasts = (fourth > AVERAGED * next_ones) & (eighth < GROWING * fourth)
    if lasts.all():
        found.append(
            "neighbouring frames seem to have noise in common, so that much of it is left: denoise "
            "the recording as the microscope made it, before it is averaged, smoothed or resampled"
        )
    return found


def doubts_about_units(deviation: float, dtype: np.dtype[Any]) -> list[str]:
    """Of a recording whose voxels have noise of such a deviation."""
    if dtype.kind == "f" or deviation >= COARSE:
        return []
    return [
        f"its noise is {deviation:.2f} units of {dtype}, so that rounding takes away what is faint "
        "in the result: save it as 32-bit float"
    ]
