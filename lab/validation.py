"""The simulated set by which pretraining picks its weights: always the same, never trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lab.metrics import stsnr
from lab.noise import LEVELS, noisy_recording
from lab.recordings import method_scale
from lab.simulate import draw_config, simulate
from model.normalise import IntensityScale

SEED = 2**40  # beyond any that training draws from
NUM_MOVIES = 4
SHAPE = (200, 96, 96)
WINDOW = (slice(84, 116), slice(16, 80), slice(16, 80))  # what is scored: one window of 32x64x64


@dataclass(frozen=True, kw_only=True)
class Case:
    """One window of a noisy recording, and its truth."""

    level: int
    clean: np.ndarray  # [T,H,W] counts
    noisy: np.ndarray  # [T,H,W] counts
    scale: IntensityScale  # of the whole recording


class ValidationSet:
    """Simulated recordings at the challenge's three levels of noise."""

    def __init__(self, method: str) -> None:
        self.cases: list[Case] = []
        for number in range(NUM_MOVIES):
            rng = np.random.default_rng([SEED, number])
            clean = simulate(draw_config(rng, SHAPE), rng).numpy()
            for level in LEVELS:
                noisy = noisy_recording(clean, level, seed=number)
                self.cases.append(
                    Case(
                        level=level,
                        clean=clean[WINDOW].copy(),
                        noisy=noisy[WINDOW].copy(),
                        scale=method_scale(method, noisy),
                    )
                )

    @torch.inference_mode()
    def score(self, net: nn.Module, device: torch.device) -> dict[int, float]:
        """Mean stSNR [dB] at each level."""
        net.eval()
        scores: dict[int, list[float]] = {level: [] for level in LEVELS}
        for case in self.cases:
            window = torch.from_numpy(case.scale.apply(case.noisy))[None, None]
            denoised = net(window.to(device))[0, 0].float().cpu().numpy()
            result = case.scale.invert(denoised)
            scores[case.level].append(stsnr(case.clean, result).stsnr)
        net.train()
        return {level: float(np.mean(found)) for level, found in scores.items()}
