"""Maps a stack's intensities to about 0..1 and back, and finds its temporal median image.

Plain numpy, in blocks: the frames may be a memory map far larger than the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Voxels counted at a time. numpy counts in 64-bit integers, so this is 8 MB a block.
_COUNTED_VOXELS = 1 << 20
# Up to here percentiles of wide integers and floats are exact, from one copy of the stack.
_EXACT_VOXELS = 50_000_000
# Size of the sample above that: a little more than the 2e7 that is promised, because how many
# voxels of a frame fall on the lattice varies by a few.
_SAMPLED_VOXELS = 20_500_000


@dataclass(frozen=True, kw_only=True)
class IntensityScale:
    """`normalised = (raw - offset) / gain`: the low percentile becomes 0 and the high one 1."""

    offset: float
    gain: float

    @property
    def low(self) -> float:
        """The low percentile, in raw units."""
        return self.offset

    @property
    def high(self) -> float:
        """The high percentile, in raw units."""
        return self.offset + self.gain

    @property
    def is_constant(self) -> bool:
        """Whether the stack has no contrast to scale by, up to the digits of its values.

        A millionth of them, and not of 1: a recording in amperes has contrast.
        """
        return self.gain <= 1e-6 * abs(self.high)

    def apply(self, block: np.ndarray) -> np.ndarray:
        """Normalised float32 array of the same shape; not clipped, bright transients exceed 1."""
        normalised = np.empty(block.shape, np.float32)
        # The difference is taken in float64: an offset far above the gain would eat the digits.
        np.subtract(block, self.offset, out=normalised, dtype=np.float64, casting="same_kind")
        np.divide(normalised, self.gain, out=normalised, dtype=np.float64, casting="same_kind")
        return normalised

    def invert(self, block: np.ndarray) -> np.ndarray:
        """Raw units again, float64 array of the same shape; neither clipped nor rounded.

        float64 since 32-bit integers and large offsets need it: twice the memory, so go in blocks.
        """
        raw = np.empty(block.shape, np.float64)
        np.multiply(block, self.gain, out=raw, dtype=np.float64)
        raw += self.offset
        return raw


def _histogram_percentiles(counts: np.ndarray, percents: list[float]) -> list[float]:
    """Percentiles of values 0, 1, 2, ..., each of which occurs `counts` times."""
    cumulated = np.cumsum(counts)
    percentiles = []
    for percent in percents:
        rank = percent / 100 * (int(cumulated[-1]) - 1)  # linear interpolation between two ranks
        below = int(rank)
        lower, upper = np.searchsorted(cumulated, [below, below + 1], side="right")
        percentiles.append(float(lower + (rank - below) * (upper - lower)))
    return percentiles


def _counted_percentiles(parts: Sequence[np.ndarray], percents: list[float]) -> list[float]:
    """Exact percentiles of 8- or 16-bit integers, from their histogram."""
    native = parts[0].dtype.newbyteorder("=")
    num_levels = 1 << (8 * native.itemsize)
    counts = np.zeros(num_levels, np.int64)
    for frames in parts:
        _count(frames, counts)
    if native.kind == "i":
        counts = np.roll(counts, num_levels // 2)  # as unsigned, the negative half came last
    lowest = int(np.iinfo(native).min)
    return [lowest + level for level in _histogram_percentiles(counts, percents)]


def _count(frames: np.ndarray, counts: np.ndarray) -> None:
    """Add to `counts` how often each value occurs, as an unsigned integer."""
    native = frames.dtype.newbyteorder("=")
    unsigned = np.dtype(f"u{native.itemsize}")
    # nditer gives flat blocks of any layout, in the order of memory, and swaps bytes on the way.
    blocks = np.nditer(
        frames,
        flags=["external_loop", "buffered"],
        op_dtypes=[native],
        casting="equiv",
        buffersize=_COUNTED_VOXELS,
    )
    for block in blocks:
        counts += np.bincount(np.asarray(block).view(unsigned), minlength=len(counts))


def _sample(frames: np.ndarray, step: int) -> np.ndarray:
    """One voxel in `step` of [T,H,W], flat: those where t + h + w is a multiple of `step`.

    A plain stride over the flat stack would visit the same few columns again and again wherever
    it divides the row length, and so see some stripes of the scanner and miss others. On these
    diagonals every row, every column and every frame gives its share, and in `step` frames every
    pixel is taken exactly once.
    """
    num_frames, height, width = frames.shape
    diagonals = (np.arange(height)[:, None] + np.arange(width)) % step
    # A last, incomplete round of `step` frames takes every pixel at most once.
    most = frames.size // step + height * width
    sample = np.empty(most, frames.dtype.newbyteorder("="))
    filled = 0
    for phase in range(min(step, num_frames)):
        positions = np.flatnonzero(diagonals == (-phase) % step)
        for frame in frames[phase::step]:
            sample[filled : filled + len(positions)] = frame.reshape(-1).take(positions)
            filled += len(positions)
    return sample[:filled]


def fit_scale(
    stack: np.ndarray | Sequence[np.ndarray], low: float = 0.5, high: float = 99.5
) -> IntensityScale:
    """Scale between two percentiles of all voxels of a stack [T,H,W], of any real dtype.

    Or of the parts of one, [T,H,W] of one dtype each.
    Between the least and the greatest voxel where both percentiles are one value.
    Exact for 8- and 16-bit integers and up to 5e7 voxels of anything else; above that from a
    fixed sample of at least 2e7 voxels.
    """
    parts = [stack] if isinstance(stack, np.ndarray) else list(stack)
    dtype, size = parts[0].dtype, sum(part.size for part in parts)
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        p_low, p_high = _counted_percentiles(parts, [low, high])
    else:
        step = 1 if size <= _EXACT_VOXELS else size // _SAMPLED_VOXELS
        native = dtype.newbyteorder("=")
        values = np.concatenate(
            [
                np.array(part, dtype=native).reshape(-1) if step == 1 else _sample(part, step)
                for part in parts
            ]
        )
        p_low, p_high = map(float, np.percentile(values, [low, high], overwrite_input=True))
    if p_low == p_high:
        # Sparse photon counts: nearly all voxels have one value, yet the others are the recording.
        p_low = float(min(part.min() for part in parts))
        p_high = float(max(part.max() for part in parts))
    return IntensityScale(offset=p_low, gain=p_high - p_low)


def _median_over_time(frames: np.ndarray) -> np.ndarray:
    """Median of every pixel of [T,h,W]: float64 [h,W]."""
    middle = len(frames) // 2
    # Each pixel's course in one run of memory: about a tenth less time than a partition
    # along the first axis, this copy included.
    courses = np.array(frames.transpose(1, 2, 0), frames.dtype.newbyteorder("="), order="C")
    courses.partition(middle, axis=-1)  # [h,W,T]
    centre = courses[..., middle].astype(np.float64)
    if len(frames) % 2 == 0:
        # The other middle value is the greatest of the lower half: cheaper than a second pivot.
        centre = (centre + courses[..., :middle].max(axis=-1)) / 2
    return centre


def temporal_median(frames: np.ndarray, max_block_bytes: int = 256 << 20) -> np.ndarray:
    """Median over time of every pixel of a stack [T,H,W]: float32 [H,W], in raw units.

    Held at once: as many whole rows as fit `max_block_bytes`, at least one.
    """
    num_frames, height, width = frames.shape
    num_rows = max(1, max_block_bytes // (num_frames * width * frames.dtype.itemsize))
    median = np.empty((height, width), np.float32)
    for start in range(0, height, num_rows):
        median[start : start + num_rows] = _median_over_time(frames[:, start : start + num_rows])
    return median
