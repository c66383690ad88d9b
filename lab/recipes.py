"""How each method is pretrained: every number of it, on one page."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from model.config import MaskConfig

Sides = tuple[int, int, int]  # [T,H,W]
Precision = Literal["fp32", "bf16"]
Loss = Literal["l1", "l2", "log"]
Objective = Literal["noise2noise", "noise2void", "odd_even", "pairs"]

# What each objective can be measured by. The error of odd_even is half absolute, half squared: l2
# stands for that, and log for its logarithm.
LOSSES: dict[Objective, tuple[Loss, ...]] = {
    "noise2noise": ("l2", "log"),
    "noise2void": ("l2", "log"),
    "odd_even": ("l2", "log"),
    "pairs": ("l1", "l2", "log"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of one pretraining."""

    # (iterations, patch sides): small patches first where time is short, most of what a denoiser
    # learns being local.
    curriculum: tuple[tuple[int, Sides], ...] = ((50_000, (32, 64, 64)),)
    batch: int = 4
    recording: Sides = (300, 128, 128)  # of each simulated one
    warm_up: int = 2000  # of these iterations: L1 to the recording's temporal median
    # noise2void: a hidden voxel's own noisy value is its target. noise2noise: so is another draw of
    # the noise at every voxel, 64 times as many to learn from. Only the simulator has such a draw,
    # recordings of a user's own always go by noise2void. odd_even: every other frame has the next
    # one for target. pairs: a given image with less noise is the target, and nothing is hidden.
    objective: Objective = "noise2noise"
    # The other draw is the mean of so many, for odd_even too. The gradient that a squared error
    # expects of one is the same, its noise is not; an absolute error's target becomes the mean of
    # the noise instead of its median, which lies lower.
    target_draws: int = 64
    hidden_weight: float = 0.25  # of the loss at the hidden voxels beside that at all (noise2noise)
    # log: of the mean squared error of each example, so that a decibel counts as much in the
    # quietest of recordings as in the noisiest.
    loss: Loss = "l2"
    mask: MaskConfig = field(default_factory=MaskConfig)
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    ramp: int = 200  # iterations until the learning rate is reached
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0  # global norm
    average_decay: float = 0.999  # of the moving average of the weights, which is what is saved
    precision: Precision = "fp32"
    # Batch norm goes by the averages that a run starts from, as it does in use. By those of its
    # batch a network learns what nobody will give it: recordings beside each other.
    frozen_norm: bool = False
    seed: int = 0

    @property
    def steps(self) -> int:
        """Iterations in all."""
        return sum(steps for steps, _ in self.curriculum)

    def patch_at(self, step: int) -> Sides:
        """Patch sides [T,H,W] at an iteration."""
        end = 0
        for steps, patch in self.curriculum:
            end += steps
            if step < end:
                return patch
        raise ValueError(f"no iteration {step} beyond the curriculum")

    def learning_rate_at(self, step: int) -> float:
        """Linear ramp, then a cosine down to the final rate."""
        if step < self.ramp:
            return self.learning_rate * (step + 1) / self.ramp
        phase = (step - self.ramp) / max(1, self.steps - self.ramp)
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * phase))

    def average_decay_at(self, step: int) -> float:
        """A young average forgets faster, or it would be made of the random start."""
        return min(self.average_decay, (step + 1) / (step + 10))


_NIDDL = Recipe(
    curriculum=((25_000, (1, 128, 128)),),
    batch=6,
    recording=(40, 128, 128),  # short, as frames are learned one by one
    warm_up=0,
    objective="pairs",
    loss="l1",
    learning_rate=1e-3,
    weight_decay=0.0,
)

RECIPES: dict[str, Recipe] = {
    "restormer3d": Recipe(loss="log"),
    "unet3d": Recipe(
        curriculum=((25_000, (16, 64, 64)),),
        warm_up=0,
        learning_rate=1e-3,
        final_learning_rate=1e-5,
        weight_decay=0.0,
    ),
    # A patch is what the network sees: twice as many frames are read.
    "unet_att": Recipe(
        curriculum=((144_000, (64, 64, 64)),),
        batch=1,
        warm_up=0,
        objective="odd_even",
        learning_rate=5e-5,
        weight_decay=0.0,
    ),
    # A patch is the images of a block: the mean and up to eleven more (lab/factors.py). In a plane
    # of one row it is courses, for the other half of the network; those first, for the images are
    # what is found along them (--start-from).
    "lowrank_unet": Recipe(
        curriculum=((20_000, (12, 24, 24)),),
        batch=16,
        warm_up=0,
        objective="pairs",
        loss="log",
        learning_rate=2e-3,
    ),
    "niddl": _NIDDL,
    "niddl_unet": _NIDDL,
}
