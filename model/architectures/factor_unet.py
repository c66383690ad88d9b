"""FactorUNet: denoises the images of a recording's factors, in a block of tissue at a time.

A block's recording is a sum of products of a course in time and an image. With orthonormal courses
the noise of every image is white and of unit variance, however noisy the recording: what is left to
do is to tell tissue from white noise, in a few images instead of a thousand frames.
Our own. Without any bias, so that what it does for one strength of the signal carries over to all
others (Mohan et al., ICLR 2020, https://arxiv.org/abs/1906.05478), and told the noise's level;
residual blocks in a U-Net as in DRUNet (Zhang et al., IEEE TPAMI 44:6360, 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


class ResidualBlock(nn.Module):
    """Adds what two 3x3 convolutions find in [N,C,H,W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = _conv(width, width)

    def forward(self, values: Tensor) -> Tensor:
        """To the same shape."""
        return values + self.second(functional.relu(self.first(values)))


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(count)))


class FactorUNet(nn.Module):
    """Maps the noisy images [B,1,K,H,W] of K factors to clean ones of the same shape.

    The first image is that of the constant course, which is the mean. Every image is denoised by
    itself, beside the mean and the activity (the root of the others' sum of squares), which tell
    where there is something. Images of zeros stay zeros and change nothing.
    """

    def __init__(self, width: int = 32) -> None:
        """`width` channels on the finest of three levels; each coarser one has twice as many."""
        super().__init__()
        fine, middle, coarse = (width * 2**level for level in range(3))
        self.enter = _conv(4, fine)
        self.encode_fine = _blocks(fine, 2)
        self.down_fine = nn.Conv2d(fine, middle, 2, stride=2, bias=False)
        self.encode_middle = _blocks(middle, 2)
        self.down_middle = nn.Conv2d(middle, coarse, 2, stride=2, bias=False)
        self.coarse = _blocks(coarse, 2)
        self.up_middle = nn.ConvTranspose2d(coarse, middle, 2, stride=2, bias=False)
        self.decode_middle = _blocks(middle, 1)
        self.up_fine = nn.ConvTranspose2d(middle, fine, 2, stride=2, bias=False)
        self.decode_fine = _blocks(fine, 2)
        self.out = _conv(fine, 1)
        nn.init.zeros_(self.out.weight)  # begins with the images as they are

    @property
    def stride(self) -> tuple[int, int, int]:
        """Sides [K,H,W] must be multiples of this."""
        return 1, 4, 4

    def forward(self, noisy: Tensor, wanted: slice | None = None) -> Tensor:
        """Denoise [B,1,K,H,W], of the K images those that are wanted: the others stay noisy."""
        if any(side % step for side, step in zip(noisy.shape[2:], self.stride, strict=True)):
            raise ValueError(f"images {tuple(noisy.shape[2:])} are no multiple of {self.stride}")
        images = noisy.transpose(1, 2)  # [B,K,1,H,W]
        # a root has no slope at 0, where nothing is active
        activity = (images[:, 1:].square().sum(1, keepdim=True) + 1e-12).sqrt()
        beside = (images[:, :1], activity * (activity > 1e-5))
        level = torch.ones_like(images)  # deviation of the noise
        seen = torch.cat([images, *(image.expand_as(images) for image in beside), level], dim=2)
        is_there = images.flatten(2).any(dim=2)  # the rest are zeros, as are their answers
        if wanted is not None:
            is_wanted = torch.zeros_like(is_there)
            is_wanted[:, wanted] = True
            is_there &= is_wanted
        noise = torch.zeros_like(images)
        noise[is_there] = self._noise(seen[is_there]).to(noise.dtype)
        return (images - noise).transpose(1, 2)

    def _noise(self, seen: Tensor) -> Tensor:
        """What is noise [N,1,H,W] in the first channel of [N,4,H,W]."""
        fine = self.encode_fine(self.enter(seen))
        middle = self.encode_middle(self.down_fine(fine))
        coarse = self.coarse(self.down_middle(middle))
        middle = self.decode_middle(middle + self.up_middle(coarse))
        fine = self.decode_fine(fine + self.up_fine(middle))
        noise: Tensor = self.out(fine)
        return noise
