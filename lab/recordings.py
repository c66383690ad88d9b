"""Noisy recordings to learn from: simulated ones without end, and those of a user's own folders.

What is drawn depends on the recipe's seed, the iteration and the place in the batch alone, so that
a run that was interrupted, or spread over several machines, sees what it would have seen anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lab.noise import DetectorConfig, apply_detector, averaged, draw_detector
from lab.recipes import Sides
from lab.simulate import random_movie
from model.config import METHODS
from model.normalise import IntensityScale, fit_scale, temporal_median
from model.orientation import Orientation
from model.patches import own_sides, sample_patches
from model.stack import StackError
from model.stack_io import find_stacks, read_stack

logger = logging.getLogger(__name__)

# A pool of recordings is at hand for every place in the batch; its oldest gives way to a new one
# every few iterations. Bounds memory, and spreads what a recording costs over many patches.
POOL_SIZE = 16
STEPS_PER_RECORDING = 4
FRAMES_PER_SCALED_ONE = 8  # percentiles of a simulated recording are taken from one frame in eight


class DataError(ValueError):
    """There is nothing to train on; the message says what was looked for and where."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One patch of a recording, normalised as the program would normalise the recording."""

    noisy: Tensor  # [1,t,h,w]
    target: Tensor | None  # [1,t,h,w], the same scene under other noise; None: there is none
    median: Tensor | None  # [1,1,h,w], the recording's temporal median there; None: not asked for
    own: Sides | None = None  # what the patch has of a shorter recording; None: all of it

    def on(self, device: torch.device) -> Example:
        """The same there: simulated ones are made on a GPU, those from disk are not."""

        def moved(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device)

        return replace(
            self,
            noisy=self.noisy.to(device),
            target=moved(self.target),
            median=moved(self.median),
        )


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What an iteration wants of a recording."""

    patch: Sides
    target_draws: int  # that the target is the mean of; 0: no target
    median: bool


class Recording(Protocol):
    """Something that patches can be drawn from."""

    def draw(self, ask: Ask, rng: np.random.Generator) -> Example:
        """A random patch, turned and mirrored in the plane."""


class Source(Protocol):
    """An endless sequence of recordings."""

    def recording(self, slot: int, number: int) -> Recording:
        """Number `number` of those meant for place `slot` in the batch."""


def method_scale(method: str, frames: np.ndarray) -> IntensityScale:
    """The scale that the program itself would give a recording [T,H,W]."""
    percentiles = METHODS[method].normalise
    return fit_scale(frames, percentiles.low_percentile, percentiles.high_percentile)


def draw_orientation(patch: Sides, rng: np.random.Generator) -> Orientation:
    """Of patches in the plane: one of eight, or four where they are not square."""
    turns = [0, 1, 2, 3] if patch[1] == patch[2] else [0, 2]
    return Orientation(quarter_turns=int(rng.choice(turns)), is_mirrored=bool(rng.integers(2)))


def _generator(rng: np.random.Generator, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(rng.integers(2**62)))


# ---- Simulated --------------------------------------------------------------------------------


@dataclass
class SimulatedRecording:
    """A clean movie and a detector, which gives a new recording of it every time it is asked."""

    method: str
    clean: Tensor  # [T,H,W] counts
    detector: DetectorConfig
    seed: int

    @cached_property
    def scale(self) -> IntensityScale:
        """Of the recording that the detector would make."""
        return method_scale(self.method, self._recorded(FRAMES_PER_SCALED_ONE))

    @cached_property
    def median(self) -> Tensor:
        """Temporal median [H,W] of one recording, in counts."""
        return torch.from_numpy(temporal_median(self._recorded(1))).to(self.clean.device)

    def _recorded(self, every: int) -> np.ndarray:
        generator = _generator(np.random.default_rng(self.seed), self.clean.device)
        return apply_detector(self.detector, self.clean[::every], generator).cpu().numpy()

    def _normalised(self, counts: Tensor) -> Tensor:
        return ((counts - self.scale.offset) / self.scale.gain)[None]

    def draw(self, ask: Ask, rng: np.random.Generator) -> Example:
        """A random patch; its target is the same under other noise."""
        patch = ask.patch
        t, h, w = (
            int(rng.integers(side - size + 1))
            for side, size in zip(self.clean.shape, patch, strict=True)
        )
        way = draw_orientation(patch, rng)

        def oriented(values: Tensor) -> Tensor:
            values = values[..., h : h + patch[1], w : w + patch[2]]
            values = values.rot90(way.quarter_turns, (-2, -1))
            return values.flip(-1) if way.is_mirrored else values

        # turned before the noise, whose bleed and line noise keep to the lines
        clean = oriented(self.clean[t : t + patch[0]])
        generator = _generator(rng, self.clean.device)

        def recorded(detector: DetectorConfig) -> Tensor:
            return self._normalised(apply_detector(detector, clean, generator))

        draws = ask.target_draws
        return Example(
            noisy=recorded(self.detector),
            target=recorded(averaged(self.detector, draws)) if draws else None,
            median=self._normalised(oriented(self.median[None])) if ask.median else None,
        )


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """Recordings of random tissue, activity and detectors."""

    method: str
    seed: int
    device: torch.device
    shape: Sides

    def recording(self, slot: int, number: int) -> SimulatedRecording:
        """The same for the same seed, slot and number."""
        rng = np.random.default_rng([self.seed, slot, number])
        clean = random_movie(rng, self.shape, self.device)
        detector = draw_detector(rng)
        return SimulatedRecording(self.method, clean, detector, int(rng.integers(2**62)))


def shuffled(count: int, seed: int, slot: int, number: int) -> int:
    """Position `number` of an endless sequence of shuffled rounds of `count`."""
    turn, place = divmod(number, count)
    return int(np.random.default_rng([seed, slot, turn]).permutation(count)[place])


# ---- A user's own -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OwnRecording:
    """A noisy stack from disk."""

    frames: np.ndarray  # [T,H,W]
    scale: IntensityScale

    @cached_property
    def median(self) -> np.ndarray:
        """Temporal median [1,H,W], in raw units."""
        return temporal_median(self.frames)[None]

    def draw(self, ask: Ask, rng: np.random.Generator) -> Example:
        """A random patch; there is no other draw of its noise."""
        generator = _generator(rng, torch.device("cpu"))
        images = self.median if ask.median else None
        noisy, median = sample_patches(self.frames, self.scale, ask.patch, 1, generator, images)
        return Example(
            noisy=noisy[0],
            target=None,
            median=median[0] if median is not None else None,
            own=own_sides(self.frames.shape, ask.patch),
        )


class Folders:
    """The stacks in a user's folders, of any shapes and dtypes, in a random order without end."""

    def __init__(self, folders: Sequence[Path], method: str, seed: int) -> None:
        self.method = method
        self.seed = seed
        self.paths: list[Path] = []
        for folder in folders:
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; name one with noisy stacks")
            self.paths += [found.source for found in find_stacks(folder, folder / ".nowhere")]
        if not self.paths:
            looked_in = ", ".join(map(str, folders))
            raise DataError(f"{looked_in}: no .tif, .tiff, .btf, .tf8 or .mha stack at any depth")
        self.paths = [path for path in self.paths if self._is_readable(path)]
        if not self.paths:
            raise DataError(f"{', '.join(map(str, folders))}: none of the stacks can be read")
        self._open = lru_cache(maxsize=POOL_SIZE)(self._read)

    def _is_readable(self, path: Path) -> bool:
        try:
            read_stack(path)
        except StackError as error:
            logger.warning("left out: %s", error)
            return False
        return True

    def _read(self, path: Path) -> OwnRecording:
        frames = read_stack(path).frames
        return OwnRecording(frames=frames, scale=method_scale(self.method, frames))

    def recording(self, slot: int, number: int) -> OwnRecording:
        """Every stack once in a random order, then in another."""
        return self._open(self.paths[shuffled(len(self.paths), self.seed, slot, number)])


# ---- Drawing ----------------------------------------------------------------------------------


class Pool:
    """Draws the example for one place in the batch at each iteration."""

    def __init__(self, slot: int, seed: int, sources: Sequence[tuple[Source, float]]) -> None:
        self.slot = slot
        self.seed = seed
        self.sources = sources  # each with its share of the examples
        self._kept: dict[tuple[int, int], Recording] = {}  # by source and number

    def draw(self, step: int, ask: Ask) -> tuple[Example, int]:
        """The example of an iteration, and a seed for all else that is random about it."""
        rng = np.random.default_rng([self.seed, self.slot, step, 1])
        shares = np.array([share for _, share in self.sources])
        which = int(rng.choice(len(shares), p=shares / shares.sum()))
        oldest = step // STEPS_PER_RECORDING
        number = oldest + int(rng.integers(POOL_SIZE))
        self._kept = {key: kept for key, kept in self._kept.items() if key[1] >= oldest}
        if (which, number) not in self._kept:
            self._kept[which, number] = self.sources[which][0].recording(self.slot, number)
        example = self._kept[which, number].draw(ask, rng)
        return example, int(rng.integers(2**62))
