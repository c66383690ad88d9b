"""Noise2Void's blind spots: which voxels are hidden, what replaces them, and the loss there.

Source: Krull et al., CVPR 2019, https://arxiv.org/abs/1811.10980. Knows nothing of networks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw_mask(
    shape: tuple[int, ...], cell: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """Voxels to hide in a batch [B,1,T,H,W]: coordinates (b,t,h,w), int64 [M,4], all different.

    Stratified: the patch is tiled with boxes of `cell` voxels and one voxel is drawn in each, so
    that hidden voxels never crowd. A draw in a part of a box that sticks out is dropped; no box is
    longer than the patch, so some are left.
    """
    batch, _, *sides = shape
    steps = [min(side, step) for side, step in zip(sides, cell, strict=True)]
    counts = [math.ceil(side / step) for side, step in zip(sides, steps, strict=True)]
    boxes = torch.cartesian_prod(torch.arange(batch), *(torch.arange(count) for count in counts))
    inside_box = torch.stack(
        [torch.randint(step, (len(boxes),), generator=generator) for step in steps], dim=1
    )
    coords = boxes.clone()
    coords[:, 1:] = boxes[:, 1:] * torch.tensor(steps) + inside_box
    return coords[(coords[:, 1:] < torch.tensor(sides)).all(dim=1)]


def draw_sources(
    coords: Tensor, sides: tuple[int, int, int], radius: int, generator: torch.Generator
) -> Tensor:
    """For every hidden voxel one neighbour within `radius`, never itself: (b,t,h,w), int64 [M,4].

    Uniform over the cube around the voxel without its centre; where that leaves the patch the
    step is mirrored, which keeps it inside and away from the centre. Along a side of less than
    twice the radius the cube is as narrow as that asks for.
    """
    reach = torch.tensor([min(radius, side // 2) for side in sides])
    t, h, w = (2 * reach + 1).tolist()
    assert t * h * w > 1, f"a patch of {sides} has no neighbours"
    number = torch.randint(t * h * w - 1, (len(coords),), generator=generator)
    number += number >= t * h * w // 2  # skips the centre, so every neighbour is equally likely
    step = torch.stack([number // (h * w), number // w % h, number % w], dim=1) - reach
    target = coords[:, 1:] + step
    leaves = (target < 0) | (target >= torch.tensor(sides))
    return torch.cat([coords[:, :1], coords[:, 1:] + torch.where(leaves, -step, step)], dim=1)


def voxels_at(stack: Tensor, coords: Tensor) -> Tensor:
    """Values [M] of a batch [B,1,T,H,W] at coordinates (b,t,h,w)."""
    b, t, h, w = coords.unbind(1)
    return stack[b, 0, t, h, w]


def fill_masked(noisy: Tensor, coords: Tensor, sources: Tensor) -> Tensor:
    """A copy of [B,1,T,H,W] in which every hidden voxel has its neighbour's original value."""
    masked = noisy.clone()
    b, t, h, w = coords.unbind(1)
    masked[b, 0, t, h, w] = voxels_at(noisy, sources)
    return masked


def blindspot_loss(prediction: Tensor, noisy: Tensor, coords: Tensor) -> Tensor:
    """Mean squared error at the hidden voxels alone; batches [B,1,T,H,W].

    The square, not the absolute value: its minimiser is the mean of the noisy values, while the
    median of skewed photon noise lies below it.
    """
    return (voxels_at(prediction, coords) - voxels_at(noisy, coords)).square().mean()
