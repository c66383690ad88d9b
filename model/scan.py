"""Looks for single events in a block of tissue that are too small for its principal components.

All the noise in a block goes into the least component that stands out of it. An event in a few
pixels and frames can be far below that, and yet stand far above the noise at its own place, behind
a blur of its own size. So what the components leave is searched place by place: a matched filter,
whose fourth powers add up over time. Noise grows with light, so it is measured at every place and
time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from model.block_matrix import without
from model.blur import blur_in_space, blur_in_time, noise_left, positions_apart, smooth_in_space

# Gaussian over which the noise is measured,
LOCAL_FRAMES, LOCAL_PIXELS = 4.0, 3.0
LEAST_VARIANCE = 0.25  # and the least that it is taken for, in variances of the usual noise
APART = 5  # pixels that places where something is found are apart, at least
REACH = 2.0  # Gaussian in which a footprint lies: so many times the blur's, and a pixel


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something is above a threshold."""

    factor: float  # by which it is
    blur: int  # behind which of a scan's
    row: int
    column: int

    def distance_to(self, other: Place) -> float:
        """In pixels."""
        return math.hypot(self.row - other.row, self.column - other.column)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Behind which blurs events are looked for, and what noise does not reach there."""

    time_sigma: float  # frames
    space_sigmas: tuple[float, ...]  # pixels
    thresholds: tuple[float, ...] = ()  # one for each

    def reached(self, block: np.ndarray) -> list[np.ndarray]:
        """Behind each blur in a block [T,h,w] of which nothing is known: by place."""
        nothing = torch.empty(block[0].size, 0)
        return [seen.reached for seen in self._seen(block, nothing)]

    def above(self, reached: Sequence[np.ndarray]) -> list[Place]:
        """Where something is above the thresholds, the clearest first, each once."""
        found = []
        for number, (values, threshold) in enumerate(zip(reached, self.thresholds, strict=True)):
            step = positions_apart(self.space_sigmas[number])
            factors = values / threshold
            found += [
                Place(factor=float(factors[row, column]), blur=number,
                      row=int(row) * step, column=int(column) * step)
                for row, column in np.argwhere(factors > 1)
            ]  # fmt: skip
        taken: list[Place] = []
        for place in sorted(found, key=lambda one: -one.factor):
            if all(place.distance_to(other) > APART for other in taken):
                taken.append(place)
        return taken

    def footprints(
        self, block: np.ndarray, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is above the thresholds in a block [T,h,w], beside orthonormal columns [h*w,K].

        Footprints [h*w,N] of norm 1, the clearest first, and by how much they are above, as a
        factor [N].
        """
        blurs = self._seen(block, known)
        places = self.above([seen.reached for seen in blurs])
        if not places:
            return known.new_empty(len(known), 0), known.new_empty(0)
        images = [blurs[each.blur].footprint(each.row, each.column).ravel() for each in places]
        factors = torch.tensor([each.factor for each in places], dtype=torch.float64)
        return torch.from_numpy(np.stack(images, axis=1)), factors

    def _seen(self, block: np.ndarray, known: torch.Tensor) -> list[_Seen]:
        apart = positions_apart(self.time_sigma)
        some = without(np.ascontiguousarray(block[::apart]), known)
        near = blur_in_time(np.square(some), LOCAL_FRAMES / apart, 1)
        variance = np.maximum(smooth_in_space(near, LOCAL_PIXELS), LEAST_VARIANCE)
        left = noise_left(len(block), self.time_sigma, apart)
        weight = 1 / (np.sqrt(variance) * left[:, None, None])
        rest = without(blur_in_time(block, self.time_sigma, apart), known)
        return [_Seen(rest=rest, weight=weight, sigma=sigma) for sigma in self.space_sigmas]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a scan sees of a block behind one of its blurs."""

    rest: np.ndarray  # [t,h,w] blurred in time
    weight: np.ndarray  # [t,h,w] by which it is in deviations of the noise
    sigma: float  # pixels, of the blur in space

    @property
    def step(self) -> int:
        """Pixels from place to place."""
        return positions_apart(self.sigma)

    @cached_property
    def shows(self) -> np.ndarray:
        """In deviations of the noise at every place: [t,y,x]."""
        rows, columns = (noise_left(side, self.sigma, self.step) for side in self.rest.shape[1:])
        blurred = blur_in_space(self.rest, self.sigma, self.step)
        blurred *= self.weight[:, :: self.step, :: self.step]
        blurred /= np.outer(rows, columns)
        return blurred

    @cached_property
    def reached(self) -> np.ndarray:
        """Over all frames: [y,x]."""
        up = torch.from_numpy(self.shows).clamp_min(0)
        return up.square_().square_().sum(0).sqrt_().sqrt_().numpy()

    def footprint(self, row: int, column: int) -> np.ndarray:
        """Of norm 1 [h,w]: what is brighter when the place at a pixel shows something."""
        shows = self.shows[:, row // self.step, column // self.step]
        frames = np.maximum(shows, 0) ** 3  # as much as each has added to what was reached
        image = smooth_in_space(np.tensordot(frames, self.rest, 1)[None], self.sigma)[0]
        rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
        square = np.square(rows - row) + np.square(columns - column)
        near = np.exp(-0.5 * square / (REACH * self.sigma + 1) ** 2)
        image = np.maximum(image * near, 0)
        return (image / np.linalg.norm(image)).astype(np.float32)
