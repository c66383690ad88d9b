"""Images and courses of simulated recordings' factors: what `lowrank_unet` learns from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from lab.noise import apply_detector, averaged, draw_detector
from lab.recordings import Ask, Example, draw_orientation
from lab.simulate import random_movie
from model.basis import orthonormal_courses, weighed_by_noise
from model.components import Components
from model.config import METHODS
from model.lowrank import Corner, DenoiseCourses, LowRank
from model.wide_courses import no_wide_courses

NUM_FRAMES = (32, 75, 150, 300, 600, 1000, 1500)  # of a recording, one of these
MAX_VOXELS = 8_000_000  # of a recording,
MAX_SIDE = 192  # whose frames are at most so large,
LEAST_SHARE = 0.5  # and at least that part of it: the wider, the better wide courses are known
WITHOUT_WIDE = 0.25  # of the recordings, none of whose courses counts as wide, as in small fields
SAMPLED_BLOCKS = 4  # on which the spatial blur is chosen: fewer than for a result
TARGET_DRAWS = 64  # of the noise, that a target is the mean of
# A recording costs seconds, so places in the batch share them: so many are at hand at a time, each
# for so many numbers of its slot.
TRACKS = 8
NUMBERS_PER_RECORDING = 24


@dataclass(frozen=True, kw_only=True)
class FactorRecording:
    """The images [K,h,w] of every block, its courses, and what they would be under other noise."""

    noisy: list[np.ndarray]
    target: list[np.ndarray]
    courses: list[np.ndarray]  # [4,K,T]: noisy, a guess, what of it is known, target

    @cached_property
    def all_courses(self) -> np.ndarray:
        """Of all blocks: [4,N,T]."""
        return np.concatenate(self.courses, axis=1)

    def draw(self, ask: Ask, rng: np.random.Generator) -> Example:
        """Factors of either sign, as many as were asked for; zeros where there are fewer.

        Images [K,h,w], the mean first, of one block, turned and mirrored; or, where the plane has
        one row, courses [K,1,T] of any.
        """
        return self._draw_courses(ask, rng) if ask.patch[1] == 1 else self._draw_images(ask, rng)

    def _draw_images(self, ask: Ask, rng: np.random.Generator) -> Example:
        block = int(rng.integers(len(self.noisy)))
        others = 1 + rng.permutation(len(self.noisy[block]) - 1)[: ask.patch[0] - 1]
        chosen = np.concatenate([[0], others])
        signs = np.where(chosen > 0, rng.choice([-1.0, 1.0], len(chosen)), 1.0)
        way = draw_orientation(ask.patch, rng)

        def drawn(images: np.ndarray) -> Tensor:
            padded = np.zeros(ask.patch, np.float32)
            padded[: len(chosen)] = way.seen(images[chosen] * signs[:, None, None])
            return torch.from_numpy(padded)[None]

        return Example(
            noisy=drawn(self.noisy[block]), target=drawn(self.target[block]), median=None
        )

    def _draw_courses(self, ask: Ask, rng: np.random.Generator) -> Example:
        count, _, length = ask.patch
        _, num_courses, num_frames = self.all_courses.shape
        chosen = rng.permutation(num_courses)[:count]
        first = int(rng.integers(max(0, num_frames - length) + 1))
        drawn = self.all_courses[:, chosen, first : first + length]
        drawn = drawn * rng.choice(np.array([-1, 1], np.float32), len(chosen))[:, None]
        lacking = (0, count - len(chosen)), (0, length - drawn.shape[2])
        drawn = np.pad(drawn, ((0, 0), (0, 0), lacking[1]), mode="symmetric")
        drawn = np.pad(drawn, ((0, 0), lacking[0], (0, 0)))
        values = torch.from_numpy(np.ascontiguousarray(drawn, np.float32))[:, :, None]
        return Example(noisy=values[:3], target=values[3:], median=None)


def as_guessed(courses: np.ndarray, guess: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The guess [T,K], where no network is at hand."""
    del courses, known
    return guess


def factors_of(
    found: LowRank, target: np.ndarray, denoise_courses: DenoiseCourses
) -> FactorRecording:
    """Factors of a recording that was measured, and what `target` [T,H,W] has in their place."""
    still = found.removed.undone(target) if found.removed else target
    scaled = ((still - found.dark) / found.background.deviation).astype(np.float32)
    num_frames = len(target)

    def of_block(
        corner: Corner, block: np.ndarray, components: Components
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        guess, known = found.guessed(components)
        courses = orthonormal_courses(denoise_courses(components.courses, guess, known))
        readers = weighed_by_noise(courses, block).readers
        rows, columns = found.block_at(*corner)
        truth = scaled[:, found.rows.source_index[rows]][:, :, found.columns.source_index[columns]]
        change = (truth - truth.mean(0)).reshape(num_frames, -1) @ components.footprints.T
        change /= components.scale
        return (
            found.read(readers, block, corner).reshape(-1, *block.shape[1:]),
            np.tensordot(readers, truth, axes=(0, 0)).astype(np.float32),
            np.stack([components.courses.T, guess.T, known.T, change.T]).astype(np.float32),
        )

    noisy, targets, courses = map(list, zip(*found.each_block(of_block), strict=True))
    return FactorRecording(noisy=noisy, target=targets, courses=courses)


class SimulatedFactors:
    """Recordings of random tissue, activity, length and detectors, decomposed."""

    def __init__(
        self,
        method: str,
        seed: int,
        device: torch.device,
        denoise_courses: DenoiseCourses = as_guessed,
    ) -> None:
        """Images are those along courses that `denoise_courses` makes."""
        config = METHODS[method].low_rank
        assert config is not None, f"{method} does not decompose"
        # blocks that overlap less show as much tissue in less time
        self.config = replace(config, sampled_blocks=SAMPLED_BLOCKS, overlaps=config.overlaps[-1:])
        self.seed, self.device, self.denoise_courses = seed, device, denoise_courses
        self._open = lru_cache(maxsize=3 * TRACKS)(self._decomposed)

    def recording(self, slot: int, number: int) -> FactorRecording:
        """The same for the same seed, slot and number; shared by slots and numbers."""
        return self._open(slot % TRACKS, number // NUMBERS_PER_RECORDING)

    def _decomposed(self, track: int, turn: int) -> FactorRecording:
        rng = np.random.default_rng([self.seed, track, turn])
        num_frames = int(rng.choice(NUM_FRAMES))
        largest = min(MAX_SIDE, math.isqrt(MAX_VOXELS // num_frames))
        side = int(rng.integers(math.ceil(LEAST_SHARE * largest), largest + 1))
        clean = random_movie(rng, (num_frames, side, side), self.device)
        detector = draw_detector(rng)
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        noisy = apply_detector(detector, clean, generator).cpu().numpy()
        target = apply_detector(averaged(detector, TARGET_DRAWS), clean, generator).cpu().numpy()
        found = LowRank(noisy, self.config)
        if rng.uniform() < WITHOUT_WIDE:
            found.wide = no_wide_courses(num_frames)
        return factors_of(found, target, self.denoise_courses)
