"""Joins overlapping windows into one stack without seams: window weights and their running sum.

Streams in time; where the windows lie is decided in `tiling`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.config import BlendWindow
from model.tiling import AxisPlan


def hann_window(size: int) -> Tensor:
    """Hann weights, float32 [size]: at a hop of size/2 they sum to one.

    Sampled half a step off the ends, so that no weight is zero: the first and the last position
    of the axis lie in one window only and are divided by its weight.
    """
    positions = torch.arange(size, dtype=torch.float64)
    return torch.sin(math.pi * (positions + 0.5) / size).square().float()


def gaussian_window(size: int, sigma_fraction: float = 0.125, floor: float = 1e-3) -> Tensor:
    """Gaussian weights around the window's centre, float32 [size].

    Args:
        sigma_fraction: standard deviation as a fraction of the size.
        floor: smallest weight as a fraction of the greatest; above zero for the stack's corners,
            which only the rim of one window reaches.
    """
    positions = torch.arange(size, dtype=torch.float64)
    offsets = (positions - (size - 1) / 2) / (sigma_fraction * size)
    weights = torch.exp(-offsets.square() / 2)
    return weights.clamp(min=floor * float(weights.max())).float()


def centre_windows(plan: AxisPlan) -> Tensor:
    """Weights 0 and 1, float32 [starts,size]: every position is taken from one window alone.

    Neighbours share their overlap equally; the last window, which may overlap by more, keeps its
    share of it all.
    """
    trim = (plan.size - (plan.starts[1] - plan.starts[0])) // 2 if plan.num_windows > 1 else 0
    owner = torch.zeros(plan.padded_length, dtype=torch.int64)
    for number, start in enumerate(plan.starts):
        owner[start + (trim if number else 0) :] = number
    return torch.stack(
        [
            (owner[start : start + plan.size] == number).float()
            for number, start in enumerate(plan.starts)
        ]
    )


def axis_windows(kind: BlendWindow, plan: AxisPlan) -> Tensor:
    """Weights of the windows along an axis, float32: [size] for all, or [starts,size]."""
    if kind == "centre":
        return centre_windows(plan)
    if kind == "flat":
        return torch.ones(plan.size)
    return hann_window(plan.size) if kind == "hann" else gaussian_window(plan.size)


def accumulated_weight(windows: Tensor, plan: AxisPlan) -> Tensor:
    """Sum of the windows at all starts of an axis, float32 [padded length]; positive everywhere."""
    total = torch.zeros(plan.padded_length, dtype=torch.float64)
    for start, window in zip(plan.starts, windows.expand(plan.num_windows, -1).cpu(), strict=True):
        total[start : start + plan.size] += window
    return total.float().to(windows.device)


class BlendAccumulator:
    """Weighted sum of overlapping windows, given back frame by frame as soon as it is final.

    The windows of one time start come in any order, then `advance` closes that start and returns
    the frames which no later window can touch. The starts form a full grid, so the sum of all
    weights at a voxel is a product of three one-dimensional sums and needs no volume of its own.
    Holds two window lengths of frames, however long the stack.
    """

    def __init__(
        self,
        time: AxisPlan,
        rows: AxisPlan,
        columns: AxisPlan,
        weights: tuple[Tensor, Tensor, Tensor],
        device: torch.device | str,
    ) -> None:
        """`weights` along each axis: [size] for all windows, or [starts,size]."""
        self._time, self._rows, self._columns = time, rows, columns
        in_time, in_rows, in_columns = (
            windows.to(device).expand(plan.num_windows, plan.size)
            for plan, windows in zip((time, rows, columns), weights, strict=True)
        )
        self._time_windows = in_time[:, :, None, None]  # [starts,t,1,1]
        self._row_windows = dict(zip(rows.starts, in_rows, strict=True))  # [h] by start
        self._column_windows = dict(zip(columns.starts, in_columns, strict=True))
        self._time_weight = accumulated_weight(in_time, time)[:, None, None]
        self._frame_weight = torch.outer(
            accumulated_weight(in_rows, rows), accumulated_weight(in_columns, columns)
        )
        shape = (time.size, rows.padded_length, columns.padded_length)
        # Windows of the current time start, weighted in space only: the weight in time is the
        # same for all of them and follows once, in `advance`.
        self._current = torch.zeros(shape, device=device)  # [t,H,W]
        # All starts so far, weighted in space and time; begins at the current start.
        self._blended = torch.zeros(shape, device=device)  # [t,H,W]
        self._num_closed = 0  # time starts
        self._num_added = 0  # windows of the current one

    def add(self, row_start: int, column_start: int, values: Tensor) -> None:
        """Add one window [t,h,w] of the current time start."""
        _, height, width = values.shape
        place = self._current[
            :, row_start : row_start + height, column_start : column_start + width
        ]
        place.addcmul_(values.to(place), self._frame_window(row_start, column_start))
        self._num_added += 1

    def _frame_window(self, row_start: int, column_start: int) -> Tensor:
        """Weights [h,w] of a window."""
        return torch.outer(self._row_windows[row_start], self._column_windows[column_start])

    def weight_of(self, number: int, row_start: int, column_start: int) -> Tensor:
        """Weights [t,h,w] of the window at the time start of this number."""
        return self._time_windows[number] * self._frame_window(row_start, column_start)

    def advance(self) -> Tensor | None:
        """Close the current time start; the frames [n,H,W] float32 that this makes final, if any.

        Normalised, without padding, in order. The last start returns all that is left.
        """
        starts = self._time.starts
        expected = self._rows.num_windows * self._columns.num_windows
        assert self._num_closed < len(starts), "all time starts are closed"
        assert self._num_added == expected, f"{self._num_added} windows of {expected} were added"
        self._blended.addcmul_(self._current, self._time_windows[self._num_closed])
        start = starts[self._num_closed]
        self._num_closed += 1
        self._num_added = 0
        is_last = self._num_closed == len(starts)
        num_final = self._time.size if is_last else starts[self._num_closed] - start
        finished = self._normalised(start, num_final)
        if not is_last:
            self._current.zero_()
            # clone: source and target may overlap
            self._blended[:-num_final] = self._blended[num_final:].clone()
            self._blended[-num_final:] = 0
        return finished

    def _normalised(self, start: int, num_final: int) -> Tensor | None:
        """The first frames of the blend, from padded time `start`, as far as the stack goes."""
        time, rows, columns = self._time, self._rows, self._columns
        first = max(start, time.pad_before)
        end = min(start + num_final, time.pad_before + time.length)
        if first >= end:
            return None  # padding only
        height = slice(rows.pad_before, rows.pad_before + rows.length)
        width = slice(columns.pad_before, columns.pad_before + columns.length)
        frames = self._blended[first - start : end - start, height, width]
        finished = frames / self._frame_weight[height, width]  # [n,H,W]
        return finished.div_(self._time_weight[first:end])
