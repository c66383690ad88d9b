"""Runs a network over a stack in overlapping windows and gives the blended frames back in order.

Streams in time: the windows of one time start are finished before the next begins, so no more
than a window's length of frames is ever held, however long the recording.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from model.blending import BlendAccumulator, axis_windows
from model.config import BlendWindow, Precision, TileConfig
from model.device import (
    Device,
    in_precision,
    is_out_of_memory,
    release_memory,
    start_to_host,
    to_device,
)
from model.normalise import IntensityScale
from model.progress import Progress
from model.tiling import AxisPlan, plan_axis

logger = logging.getLogger(__name__)


class InferenceError(RuntimeError):
    """The network gives no usable result; the message says why."""


@dataclass(frozen=True, kw_only=True)
class WindowGrid:
    """All windows over one stack: every combination of a start in time, rows and columns."""

    time: AxisPlan
    rows: AxisPlan
    columns: AxisPlan
    windows: tuple[BlendWindow, BlendWindow, BlendWindow]

    @classmethod
    def over(
        cls,
        shape: tuple[int, int, int],
        tile: TileConfig,
        overlap: float,
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> WindowGrid:
        """The grid for a stack [T,H,W].

        Args:
            overlap: the most that neighbours overlap along any axis, as a part of their size.
            stride: what the sides of a window must be multiples of, should it shrink.
        """
        plans = []
        for axis, (length, size, step) in enumerate(zip(shape, tile.size, stride, strict=True)):
            if tile.shrinks:
                size = min(size, -(-length // step) * step)
            pad = tile.mirror_time and axis == 0
            plans.append(plan_axis(length, size, min(overlap, tile.overlap[axis]), pad=pad))
        time, rows, columns = plans
        return cls(time=time, rows=rows, columns=columns, windows=tile.windows)

    @property
    def num_windows(self) -> int:
        """How often the network runs."""
        return self.time.num_windows * self.rows.num_windows * self.columns.num_windows

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Starts in rows and columns of the windows of one time start."""
        return list(product(self.rows.starts, self.columns.starts))


class _Slabs:
    """Normalised frames under one time start, mirrored where the stack ends, on the device."""

    def __init__(
        self, frames: np.ndarray, scale: IntensityScale, grid: WindowGrid, device: Device
    ) -> None:
        self._frames, self._scale, self._device = frames, scale, device
        self._size = grid.time.size
        self._times = np.asarray(grid.time.source_index)
        self._rows, self._columns = grid.rows.source_index, grid.columns.source_index

    def at(self, start: int) -> Tensor:
        """[t,H,W] float32 from a start in padded time; H and W padded to at least a window."""
        block = self._scale.apply(self._frames[self._times[start : start + self._size]])
        if len(self._rows) != block.shape[1] or len(self._columns) != block.shape[2]:
            block = block[:, self._rows][:, :, self._columns]
        return to_device(block, self._device)


def _cut(slab: Tensor, corners: list[tuple[int, int]], grid: WindowGrid) -> Tensor:
    h, w = grid.rows.size, grid.columns.size
    return torch.stack([slab[None, :, y : y + h, x : x + w] for y, x in corners])  # [b,1,t,h,w]


def _run(
    net: nn.Module,
    slab: Tensor,
    corners: list[tuple[int, int]],
    grid: WindowGrid,
    device: Device,
    precision: Precision,
) -> Tensor | None:
    """The network's answer [b,1,t,h,w] float32 to some windows; None where they do not fit memory.

    Raises InferenceError where not even one does.
    """
    try:
        with in_precision(device, precision):
            return net(_cut(slab, corners, grid)).float()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(corners) == 1:
            raise InferenceError(
                f"out of memory with one window of {slab.shape[0]}x{grid.rows.size}x"
                f"{grid.columns.size} on {device.name}; free memory there or use --device cpu"
            ) from error
    release_memory(device)  # only here: the error above keeps its tensors alive
    logger.warning("  out of memory: %d windows at a time from here on", len(corners) // 2)
    return None


@torch.inference_mode()
def seconds_per_window(
    net: nn.Module,
    frames: np.ndarray,
    scale: IntensityScale,
    grid: WindowGrid,
    device: Device,
    tile_batch: int,
    precision: Precision = "fp32",
) -> float:
    """Measured on the stack's own first windows, after as many that only warm up.

    Raises InferenceError where not even one window fits the memory.
    """
    slab = _Slabs(frames, scale, grid, device).at(0)
    net.eval()
    corners = grid.corners[:tile_batch]
    is_warm = False  # a GPU prepares itself anew for every number of windows
    while True:
        begin = time.perf_counter()
        denoised = _run(net, slab, corners, grid, device, precision)
        if denoised is None:
            corners, is_warm = corners[: len(corners) // 2], False
            continue
        denoised.sum().item()  # the sum waits for the GPU
        if is_warm:
            return (time.perf_counter() - begin) / len(corners)
        is_warm = True


def _brightness_gain(noisy: Tensor, denoised: Tensor, weight: Tensor) -> Tensor:
    """The published UNet-Att's gain [1] of one window [1,t,h,w] over the piece that is kept of it.

    sqrt(sum of the noisy voxels / sum of the denoised ones); 1 where that is no number.
    """
    ratio = (noisy * weight).sum() / (denoised * weight).sum()
    return torch.where(ratio > 0, ratio, torch.ones_like(ratio)).sqrt()


@torch.inference_mode()
def infer(
    net: nn.Module,
    frames: np.ndarray,
    scale: IntensityScale,
    grid: WindowGrid,
    *,
    device: Device,
    tile_batch: int,
    precision: Precision = "fp32",
    keeps_brightness: bool = False,
) -> Iterator[np.ndarray]:
    """Denoised frames [n,H,W] float32 in the network's units, in order, each exactly once.

    Windows are weighted as the grid says and divided by the accumulated weight. Out of memory
    halves the number of windows at a time.

    Args:
        keeps_brightness: multiply every window by the published UNet-Att's gain (optional there,
            too: each window has its own, which can make seams).

    Raises InferenceError where not even one window fits, or the network gives NaN or Inf.
    """
    net.eval()
    in_time, in_rows, in_columns = (
        axis_windows(kind, plan)
        for kind, plan in zip(grid.windows, (grid.time, grid.rows, grid.columns), strict=True)
    )
    weights = in_time, in_rows, in_columns
    blend = BlendAccumulator(grid.time, grid.rows, grid.columns, weights, device.torch_device)
    slabs = _Slabs(frames, scale, grid, device)
    corners = grid.corners
    progress = Progress("denoising", grid.num_windows, "windows")
    num_done = 0
    # Frames are given away after the next windows are queued: a GPU goes on while they are written.
    on_its_way: Callable[[], np.ndarray] | None = None
    for number, start in enumerate(grid.time.starts):
        slab = slabs.at(start)
        position = 0
        while position < len(corners):
            batch = corners[position : position + tile_batch]
            denoised = _run(net, slab, batch, grid, device, precision)  # [b,1,t,h,w]
            if denoised is None:
                tile_batch = len(batch) // 2
                continue
            for (y, x), values in zip(batch, denoised, strict=True):
                if keeps_brightness:
                    weight = blend.weight_of(number, y, x)
                    values *= _brightness_gain(_cut(slab, [(y, x)], grid)[0], values, weight)
                blend.add(y, x, values[0])
            position += len(batch)
            num_done += len(batch)
            progress.update(num_done)
        finished = blend.advance()
        if on_its_way:
            yield _finite(on_its_way(), precision)
        on_its_way = start_to_host(finished) if finished is not None else None
    if on_its_way:
        yield _finite(on_its_way(), precision)


def _finite(denoised: np.ndarray, precision: Precision) -> np.ndarray:
    if not np.isfinite(denoised).all():
        remedy = (
            "--steps 0, which leaves the checkpoint as it is, and report the stack"
            if precision == "fp32"
            else "--precision fp32"
        )
        raise InferenceError(f"the network gave values that are not finite; try {remedy}")
    return denoised
