"""The simulated set by which pretraining picks its weights: always the same, never trained on."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lab.metrics import stsnr
from lab.noise import LEVELS, noisy_recording
from lab.recordings import method_scale
from lab.simulate import random_movie
from model.config import METHODS
from model.device import Device
from model.factor_denoiser import FactorDenoiser
from model.lowrank import LowRank
from model.normalise import IntensityScale

SEED = 2**40  # beyond any that training draws from
NUM_MOVIES = 4
SHAPE = (200, 96, 96)
WINDOW = (slice(84, 116), slice(16, 80), slice(16, 80))  # what is scored: one window of 32x64x64


@dataclass(frozen=True, kw_only=True)
class WindowCase:
    """One window of a recording, which a network denoises at once."""

    level: int
    clean: np.ndarray  # [T,H,W] counts
    noisy: np.ndarray  # [T,H,W] counts
    scale: IntensityScale  # of the whole recording

    def score(self, net: nn.Module, device: Device) -> float:
        """Of the window."""
        window = torch.from_numpy(self.scale.apply(self.noisy))[None, None]
        denoised = net(window.to(device.torch_device))[0, 0].float().cpu().numpy()
        return stsnr(self.clean, self.scale.invert(denoised)).stsnr


@dataclass(frozen=True, kw_only=True)
class FactorCase:
    """A whole recording, whose factors a network denoises."""

    level: int
    clean: np.ndarray  # [T,H,W] counts
    found: LowRank

    def score(self, net: nn.Module, device: Device) -> float:
        """Of the recording; what was measured stays as it is."""
        found = copy(self.found)
        denoiser = FactorDenoiser(net=net, device=device)
        found.find(denoiser.courses)
        found.denoise_images(denoiser.images, denoiser.means)
        return stsnr(self.clean, np.concatenate(list(found.render()))).stsnr


class ValidationSet:
    """Simulated recordings at the challenge's three levels of noise."""

    def __init__(self, method: str) -> None:
        self.cases: list[WindowCase | FactorCase] = []
        low_rank = METHODS[method].low_rank
        for number in range(NUM_MOVIES):
            rng = np.random.default_rng([SEED, number])
            clean = random_movie(rng, SHAPE).numpy()
            for level in LEVELS:
                noisy = noisy_recording(clean, level, seed=number)
                if low_rank:
                    found = LowRank(noisy, low_rank)
                    self.cases.append(FactorCase(level=level, clean=clean, found=found))
                    continue
                self.cases.append(
                    WindowCase(
                        level=level,
                        clean=clean[WINDOW].copy(),
                        noisy=noisy[WINDOW].copy(),
                        scale=method_scale(method, noisy),
                    )
                )

    @torch.inference_mode()
    def score(self, net: nn.Module, device: Device) -> dict[int, float]:
        """Mean stSNR [dB] at each level."""
        net.eval()
        scores: dict[int, list[float]] = {level: [] for level in LEVELS}
        for case in self.cases:
            scores[case.level].append(case.score(net, device))
        net.train()
        return {level: float(np.mean(found)) for level, found in scores.items()}
