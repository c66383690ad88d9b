"""Where windows lie along each axis, and which voxel stands at a mirrored position.

Pure integers: the geometry of inference without arrays, networks or weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


def tile_starts(length: int, size: int, stride: int) -> list[int]:
    """Starts 0, stride, 2*stride, ... of the windows that cover `length`; the last ends there.

    Where the stride does not lead exactly to the end, one more window is put at the end. A
    length shorter than the window gives the start 0 alone: padding it is the caller's part.
    """
    assert 1 <= stride <= size, f"stride {stride} leaves gaps between windows of {size}"
    if length <= size:
        return [0]
    last = length - size
    starts = list(range(0, last + 1, stride))
    if starts[-1] != last:
        starts.append(last)
    return starts


def mirror_index(length: int, before: int, after: int) -> list[int]:
    """Source positions of an axis that is mirrored at both ends, its edges not repeated.

    A triangle wave, so the padding may be longer than the axis itself; one position repeats.
    """
    if length == 1:
        return [0] * (before + 1 + after)
    period = 2 * (length - 1)
    phases = (position % period for position in range(-before, length + after))
    return [phase if phase < length else period - phase for phase in phases]


@dataclass(frozen=True, kw_only=True)
class AxisPlan:
    """The windows along one axis, in positions of the padded axis."""

    length: int  # of the stack, without padding
    size: int  # of a window
    pad_before: int
    pad_after: int
    starts: tuple[int, ...]

    @property
    def padded_length(self) -> int:
        """Positions that the windows cover."""
        return self.pad_before + self.length + self.pad_after

    @property
    def source_index(self) -> list[int]:
        """For every padded position, the position in the stack whose voxels stand there."""
        return mirror_index(self.length, self.pad_before, self.pad_after)

    @property
    def num_windows(self) -> int:
        """Windows along this axis."""
        return len(self.starts)


def plan_axis(length: int, size: int, overlap_fraction: float, pad: bool) -> AxisPlan:
    """Windows of `size` along an axis, neighbours sharing about `overlap_fraction` of them.

    Args:
        pad: mirror half a window at both ends, so that the ends of the axis lie in the middle of
            a window as every other position does (time). Otherwise an axis is padded only where
            it is shorter than a window, and then at its end, which keeps positions as they are
            (space).
    """
    if not 0 <= overlap_fraction < 1:
        raise ValueError(
            f"windows cannot overlap by {overlap_fraction}; give a fraction from 0 to below 1"
        )
    if pad:
        before = after = size // 2
    else:
        before, after = 0, max(0, size - length)
    # Half a voxel is rounded down: 0.5 of an odd size overlaps by a little more, not less.
    stride = max(1, math.ceil(size * (1 - overlap_fraction) - 0.5))
    return AxisPlan(
        length=length,
        size=size,
        pad_before=before,
        pad_after=after,
        starts=tuple(tile_starts(before + length + after, size, stride)),
    )
