"""Images of the factors of simulated recordings, to learn to denoise them (`lowrank_unet`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lab.noise import apply_detector, averaged, draw_detector
from lab.recordings import Ask, Example, draw_orientation
from lab.simulate import draw_config, simulate
from model.config import METHODS
from model.lowrank import LowRank

NUM_FRAMES = (32, 75, 150, 300, 600, 1000, 1500)  # of a recording, one of these
MAX_VOXELS = 2_500_000  # of a recording,
MAX_SIDE = 96  # whose frames are at most so large
TARGET_DRAWS = 64  # of the noise, that a target is the mean of
# A recording costs seconds, so places in the batch share them: so many are at hand at a time, each
# for so many numbers of its slot.
TRACKS = 8
NUMBERS_PER_RECORDING = 64


@dataclass(frozen=True, kw_only=True)
class FactorRecording:
    """The images [K,h,w] of every block, and what they would be under other noise."""

    noisy: list[np.ndarray]
    target: list[np.ndarray]

    def draw(self, ask: Ask, rng: np.random.Generator) -> Example:
        """The mean and some of the other images of a block, turned and mirrored, of either sign.

        As many as were asked for; images of zeros where there are fewer.
        """
        block = int(rng.integers(len(self.noisy)))
        others = 1 + rng.permutation(len(self.noisy[block]) - 1)[: ask.patch[0] - 1]
        chosen = np.concatenate([[0], others])
        signs = np.where(chosen > 0, rng.choice([-1.0, 1.0], len(chosen)), 1.0)
        turn, is_flipped = draw_orientation(ask.patch, rng)

        def drawn(images: np.ndarray) -> Tensor:
            values = np.rot90(images[chosen] * signs[:, None, None], turn, (1, 2))
            values = values[:, :, ::-1] if is_flipped else values
            padded = np.zeros(ask.patch, np.float32)
            padded[: len(chosen)] = values
            return torch.from_numpy(padded)[None]

        return Example(
            noisy=drawn(self.noisy[block]), target=drawn(self.target[block]), median=None
        )


def images_along(found: LowRank, frames: np.ndarray) -> list[np.ndarray]:
    """What a stack [T,H,W] has along the courses that were found: images [K,h,w] of every block."""
    scaled = frames / found.background.deviation.astype(np.float32)
    images = []
    for corner, factors in found.factors.items():
        rows, columns = found.block_at(*corner)
        block = scaled[:, found.rows.source_index[rows]][:, :, found.columns.source_index[columns]]
        images.append(np.tensordot(factors.courses, block, axes=(0, 0)).astype(np.float32))
    return images


class SimulatedFactors:
    """Recordings of random tissue, activity, length and detectors, decomposed."""

    def __init__(self, method: str, seed: int, device: torch.device) -> None:
        config = METHODS[method].low_rank
        assert config is not None, f"{method} does not decompose"
        self.config, self.seed, self.device = config, seed, device
        self._open = lru_cache(maxsize=3 * TRACKS)(self._decomposed)

    def recording(self, slot: int, number: int) -> FactorRecording:
        """The same for the same seed, slot and number; shared by slots and numbers."""
        return self._open(slot % TRACKS, number // NUMBERS_PER_RECORDING)

    def _decomposed(self, track: int, turn: int) -> FactorRecording:
        rng = np.random.default_rng([self.seed, track, turn])
        num_frames = int(rng.choice(NUM_FRAMES))
        side = min(MAX_SIDE, math.isqrt(MAX_VOXELS // num_frames))
        clean = simulate(draw_config(rng, (num_frames, side, side)), rng, self.device)
        detector = draw_detector(rng)
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        noisy = apply_detector(detector, clean, generator).cpu().numpy()
        target = apply_detector(averaged(detector, TARGET_DRAWS), clean, generator).cpu().numpy()
        found = LowRank(noisy, self.config, keeps_noisy_images=True)
        return FactorRecording(noisy=images_along(found, noisy), target=images_along(found, target))
