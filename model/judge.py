"""Which of two networks denoises a stack better, told without any truth.

Noise2Void's loss is the error at a voxel plus the noise of that voxel, which nobody can predict. On
the same hidden voxels the noise is the same for both networks, and what differs is the error.
Source: Krull et al., CVPR 2019, https://arxiv.org/abs/1811.10980.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from model.blindspot import draw_sources, fill_masked, voxels_at
from model.config import AdaptConfig
from model.device import Device
from model.normalise import IntensityScale
from model.patches import sample_patches

SEED_OFFSET = 2**32  # from the adaptation's seed, so that the two never draw alike


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


class BlindspotJudge:
    """Patches of a stack with pixels that must never be a target of training.

    `held_out` [H,W] float32 is 1 at those pixels, in the stack's units: to be cut as an image is.
    """

    def __init__(
        self,
        frames: np.ndarray,
        scale: IntensityScale,
        config: AdaptConfig,
        device: Device,
        seed: int,
    ) -> None:
        patch, mask = config.patch, config.mask
        generator = torch.Generator().manual_seed(seed + SEED_OFFSET)
        _, *plane = frames.shape
        step, *cell = mask.cell
        pixels = held_out_pixels((plane[0], plane[1]), (cell[0], cell[1]), generator)
        self.held_out = scale.invert(pixels.astype(np.float32))
        self.device = device
        noisy, cut = sample_patches(
            frames, scale, patch, config.judge_patches, generator, self.held_out
        )
        assert cut is not None
        # every held-out pixel is hidden in one frame of each `step`
        b, _, _, h, w = torch.nonzero(is_held_out(cut)).unbind(1)
        groups = torch.arange(max(1, patch[0] // step))
        t = step * groups + torch.randint(step, (len(b), len(groups)), generator=generator)
        each = torch.stack(torch.broadcast_tensors(b[:, None], t, h[:, None], w[:, None]), dim=-1)
        self.coords = each.flatten(0, 1)
        self.coords = self.coords[self.coords[:, 1] < patch[0]]
        sources = draw_sources(self.coords, patch, mask.radius, generator)
        self.masked = fill_masked(noisy, self.coords, sources)
        self.wanted = voxels_at(noisy, self.coords)

    @torch.inference_mode()
    def loss(self, net: nn.Module) -> float:
        """Mean squared difference to the noisy values of the hidden voxels."""
        was_training = net.training
        net.eval()
        answers = [
            net(patch[None].to(self.device.torch_device)).float().cpu() for patch in self.masked
        ]
        net.train(was_training)
        found = voxels_at(torch.cat(answers), self.coords)
        return float((found - self.wanted).square().mean(dtype=torch.float64))


def is_held_out(cut: Tensor) -> Tensor:
    """Whether a pixel of `BlindspotJudge.held_out`, cut and normalised, is one of them."""
    return cut > 0.5
