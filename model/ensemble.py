"""The mean of several low-rank decompositions of one recording, in blocks of different sizes.

Small blocks follow what is peculiar to a few pixels, large ones hear more of what a cell or the
neuropil says; what noise they leave differs, so that the mean is nearer to the truth than any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from model.block_images import DenoiseImages, DenoiseMeans
from model.budget import Budget
from model.lowrank import DenoiseCourses, LowRank
from model.memory import available_bytes


class LowRankEnsemble:
    """`LowRank` in blocks of one size, and of others where the configuration has them."""

    def __init__(self, first: LowRank, budget: Budget | None = None) -> None:
        """A recording measured in blocks of one size, and of as many more as the budget is for."""
        others = first.config.other_sizes(first.frames.shape[1:])
        self._budget = budget or Budget(math.inf)
        left = self._budget.remaining()
        # every size takes about as long: fewer blocks that take longer, more that take less
        fit = sum(left >= (2 + number) * first.seconds for number in range(len(others)))
        self.left_out = others[fit:]  # sizes for which there was a
        self.lack = "time"  # or of memory
        self.members = [first, *map(first.in_blocks_of, others[:fit])]

    def find(self, denoise_courses: DenoiseCourses | None = None) -> None:
        """Find the factors of all blocks (`LowRank.find`), of other sizes while there is room.

        Room in memory, and in time as the first size has really taken.
        """
        first, *others = self.members
        time_before = self._budget.remaining()
        first.find(denoise_courses)
        has_limit = not math.isinf(time_before)
        taken = time_before - self._budget.remaining() if has_limit else 0.0
        for number, other in enumerate(others):
            # those of any size take about as much, and their images twice as they are denoised
            has_memory = available_bytes() >= 2 * first.num_bytes
            # finding them is a half of the work on a size at least
            needed = taken + (2 + number) * max(taken, first.seconds - taken)
            if not has_memory or self._budget.remaining() < needed:
                self.members = self.members[: 1 + number]
                too_many = tuple(left.config.block for left in others[number:])
                self.left_out = (*too_many, *self.left_out)
                self.lack = "time" if has_memory else "memory"
                break
            other.find(denoise_courses)

    def denoise_images(
        self, denoiser: DenoiseImages, denoise_means: DenoiseMeans | None = None
    ) -> float:
        """Replace all images by what `denoiser` makes of them (`LowRank.denoise_images`).

        The share of the mean's change that was taken, on average.
        """
        shares = [member.denoise_images(denoiser, denoise_means) for member in self.members]
        return float(np.mean(shares))

    @property
    def num_blocks(self) -> int:
        """Of all sizes."""
        return sum(len(member.factors) for member in self.members)

    @property
    def num_components(self) -> int:
        """Over all blocks, without the mean."""
        return sum(member.num_components for member in self.members)

    def render(self, frames: slice = slice(None)) -> Iterator[np.ndarray]:
        """Denoised frames [n,H,W] in raw units, in order; all, or a stretch."""
        return self.members[0].moved_back(self._render_still(frames), frames)

    def _render_still(self, frames: slice) -> Iterator[np.ndarray]:
        """The mean of the members' blocks, added up in place: these are large."""
        renderings = [member.render_still(frames) for member in self.members]
        for total in renderings[0]:
            for rendering in renderings[1:]:
                total += next(rendering)
            total /= len(renderings)
            yield total
