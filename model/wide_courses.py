"""Courses in time that much of the field has in common.

Neuropil that is active as a whole, bleaching, brightness that wanders: every block of tissue has
some of it, but hears it through its own pixels alone, in their noise. The whole field knows it far
better. So it is looked for in sums over coarse cells of the field, as components are in a block,
and what a block's courses have of it need not be told from noise a second time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from model.background import Background
from model.basis import orthonormal_courses
from model.block_matrix import flattened
from model.blur import smooth_in_time
from model.components import (
    PrincipalComponents,
    greatest_beside,
    noise_along,
    noise_only,
    wiener,
)
from model.config import LowRankConfig
from model.frames import Frames

CELL = 8  # pixels, the least side of a cell
MOST_CELLS = 4096  # of a field; beyond, cells are larger
LEAST_CELLS = 128  # with fewer, a handful of sources would be most of the field
SPREAD = 0.2  # of the field, over which a course is wide: what noise alone has is a third
CLEARLY = 3.0  # deviations of its noise, by which a course has some of a wide one


@dataclass(frozen=True, kw_only=True)
class WideCourses:
    """Orthonormal courses [T,R] float32 without a mean; R may be 0."""

    basis: np.ndarray

    def within(self, courses: np.ndarray) -> np.ndarray:
        """What courses [T,K] in noise of variance 1 clearly have of the wide ones: float32."""
        parts = self.basis.T @ courses
        parts[np.abs(parts) < CLEARLY] = 0
        return self.basis @ parts


def no_wide_courses(num_frames: int) -> WideCourses:
    """Of a field that has none."""
    return WideCourses(basis=np.zeros((num_frames, 0), np.float32))


def measure_wide_courses(
    frames: Frames, background: Background, config: LowRankConfig, seed: int
) -> WideCourses:
    """Those of a stack [T,H,W] that stand above the noise of its cells."""
    _, rows, columns = _cells_in(frames)
    if rows * columns < LEAST_CELLS:
        return no_wide_courses(len(frames))
    cells = sums_over_cells(frames, background)
    found = _above_noise(cells, config, np.random.default_rng(seed))
    denoised = wiener(found, config.spectrum_smoothing)
    return WideCourses(basis=orthonormal_courses(denoised)[:, 1:])


def sums_over_cells(frames: Frames, background: Background) -> np.ndarray:
    """A standardised stack in cells [T,h,w] float32, whose noise has variance 1 as the pixels'."""
    cell, rows, columns = _cells_in(frames)
    inner = slice(0, rows * cell), slice(0, columns * cell)
    mean, scale = background.mean[inner], background.deviation[inner] * cell
    cells = np.empty((len(frames), rows, columns), np.float32)
    for number, frame in enumerate(frames):
        values = (frame[inner] - mean) / scale
        cells[number] = values.reshape(rows, cell, columns, cell).sum((1, 3))
    return cells


def _cells_in(frames: Frames) -> tuple[int, int, int]:
    """Side of a cell in pixels, and how many there are down and across a field."""
    height, width = frames.shape[1:]
    cell = max(CELL, math.ceil(math.sqrt(height * width / MOST_CELLS)))
    return cell, height // cell, width // cell


def _above_noise(cells: np.ndarray, config: LowRankConfig, rng: np.random.Generator) -> np.ndarray:
    """Courses [T,R] of the wide components of cells [T,h,w], in noise of variance 1."""
    noise = smooth_in_time(noise_only(cells, rng), config.time_sigma)
    principal = PrincipalComponents(flattened(smooth_in_time(cells, config.time_sigma)))
    threshold = math.inf
    for _ in range(config.threshold_rounds):
        threshold = config.wide_margin * greatest_beside(noise, principal, threshold)
    _, footprints = principal.above(threshold)
    footprints = footprints[:, spread(footprints) >= SPREAD]
    scale = noise_along(footprints.T.numpy(), cells)
    return (flattened(cells) @ footprints).numpy() / scale


def spread(footprints: torch.Tensor) -> torch.Tensor:
    """Over what part of their pixels footprints [P,K] of norm 1 spread: [K], 1 for an even one."""
    return 1 / (footprints.pow(4).sum(0) * len(footprints))
