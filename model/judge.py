"""Which of two networks denoises a stack better, told without any truth.

By the error of what would be written, which sees every voxel, and not by Noise2Void's loss at
hidden ones: a network that tells these better may make worse use of the voxels it sees. For noise
of a known variance that error can be estimated without bias from the noisy stack and from how much
the result at a voxel follows the voxel. Source: Stein, Ann. Statist. 9:1135, 1981; by Monte Carlo
as Ramani et al., IEEE TIP 17:1540, 2008.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from model.background import measure_background
from model.config import AdaptConfig
from model.device import Device
from model.normalise import IntensityScale
from model.patches import mirrored, own_sides, sample_patches

SEED_OFFSET = 2**32  # from the adaptation's seed, so that the two never draw alike
MIN_FRAMES = 2  # to tell the noise by
PROBE = 0.1  # by which voxels are moved, in deviations of their noise


def held_out_pixels(
    shape: tuple[int, int], cell: tuple[int, int], generator: torch.Generator
) -> np.ndarray:
    """One random pixel in every cell of a frame: bool [H,W]."""
    (height, width), (rows, columns) = shape, cell
    counts = -(-height // rows), -(-width // columns)
    choice = torch.randint(rows * columns, counts, generator=generator)
    number = torch.arange(rows * columns).view(1, rows, 1, columns)
    chosen = (choice.view(counts[0], 1, counts[1], 1) == number).flatten(2).flatten(0, 1)
    return chosen[:height, :width].numpy()


class Judge:
    """Patches of a stack with pixels that must never be a target of training.

    `held_out` [1,H,W] float32 is 1 at those pixels, in the stack's units: to be cut as an image is.
    """

    def __init__(
        self,
        frames: np.ndarray,
        scale: IntensityScale,
        config: AdaptConfig,
        device: Device,
        seed: int,
    ) -> None:
        """Of a stack [T,H,W] with at least MIN_FRAMES."""
        generator = torch.Generator().manual_seed(seed + SEED_OFFSET)
        _, height, width = frames.shape
        _, *cell = config.mask.cell
        pixels = held_out_pixels((height, width), (cell[0], cell[1]), generator)
        self.held_out = scale.invert(pixels[None].astype(np.float32))
        self.device = device
        deviation = measure_background(frames).deviation[None] / scale.gain
        self.noisy, cuts = sample_patches(
            frames, scale, config.patch, config.judge_patches, generator,
            np.concatenate([self.held_out, scale.invert(deviation.astype(np.float32))]),
        )  # fmt: skip
        assert cuts is not None
        t, h, w = own_sides(frames.shape, config.patch)
        counts = is_held_out(cuts[..., :1, :h, :w]).expand(-1, -1, t, -1, -1)
        signs = 2.0 * torch.randint(2, counts.shape, generator=generator) - 1
        noise = torch.where(counts, cuts[..., 1:, :h, :w] * signs, 0.0)
        # mirror images move with their voxel, but each voxel counts once
        self.noise = mirrored(noise, config.patch)
        self.counts = torch.zeros_like(self.noise, dtype=torch.bool)
        self.counts[..., :t, :h, :w] = counts
        # of a tiny frame no pixel is held out, or every one
        self.can_tell = bool(counts.any()) and not pixels.all()

    @torch.inference_mode()
    def error(self, net: nn.Module) -> float:
        """Estimated mean squared error of the network's answer at held-out pixels, normalised.

        Below 0 where it is smaller than what the estimate is uncertain by.
        """
        was_training = net.training
        net.eval()
        total = 0.0
        for noisy, counts, noise in zip(self.noisy, self.counts, self.noise, strict=True):
            answer, moved = (self._answer(net, patch) for patch in (noisy, noisy + PROBE * noise))
            follows = noise * (moved - answer) / PROBE
            risk = (answer - noisy).square() + 2 * follows - noise.square()
            total += float(risk[counts].sum(dtype=torch.float64))
        net.train(was_training)
        return total / int(self.counts.sum())

    def _answer(self, net: nn.Module, patch: Tensor) -> Tensor:
        """To a patch [1,t,h,w], float32 on the CPU."""
        answer: Tensor = net(patch[None].to(self.device.torch_device))[0]
        return answer.float().cpu()


def is_held_out(cut: Tensor) -> Tensor:
    """Whether a pixel of `Judge.held_out`, cut and normalised, is one of them."""
    return cut > 0.5
