"""Random patches of a stack, as networks are trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.normalise import IntensityScale
from model.tiling import mirror_index


def cut_patch(
    frames: np.ndarray, start: tuple[int, int, int], size: tuple[int, int, int]
) -> np.ndarray:
    """A patch that lies within a stack [T,H,W]; a view."""
    return frames[tuple(slice(at, at + side) for at, side in zip(start, size, strict=True))]


def own_sides(shape: tuple[int, ...], size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sides (t,h,w) of what a patch of this size has of a stack [T,H,W].

    It begins with that; what follows are mirror images.
    """
    t, h, w = (min(length, side) for length, side in zip(shape, size, strict=True))
    return t, h, w


def mirrored(own: Tensor, size: tuple[int, int, int]) -> Tensor:
    """[...,t,h,w] continued by mirror images at its ends, up to (at least) this size."""
    for axis, side in zip((-3, -2, -1), size, strict=True):
        length = own.shape[axis]
        if length < side:
            index = torch.tensor(mirror_index(length, 0, side - length), device=own.device)
            own = own.index_select(axis, index)
    return own


def sample_patches(
    frames: np.ndarray,
    scale: IntensityScale,
    size: tuple[int, int, int],
    batch: int,
    generator: torch.Generator,
    images: np.ndarray | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Random normalised patches [B,1,t,h,w] of a stack, turned and mirrored in the plane.

    Never reversed in time: transients rise fast and decay slowly. Where the stack is shorter they
    begin with what they have of it, `own_sides`, and go on with mirror images. With `images`
    [K,H,W] also their cuts at the same places, turned alike, [B,1,K,h,w].
    """
    patches, cuts = [], []
    own = own_sides(frames.shape, size)
    turns = (0, 1, 2, 3) if size[1] == size[2] and own[1] == own[2] else (0, 2)
    for _ in range(batch):
        t, h, w = (
            int(torch.randint(max(1, length - side + 1), (), generator=generator))
            for length, side in zip(frames.shape, size, strict=True)
        )
        turn = turns[int(torch.randint(len(turns), (), generator=generator))]
        is_flipped = bool(torch.randint(2, (), generator=generator))

        def oriented(values: np.ndarray, turn: int = turn, is_flipped: bool = is_flipped) -> Tensor:
            values = np.rot90(scale.apply(values), turn, axes=(1, 2))
            values = values[:, :, ::-1] if is_flipped else values
            whole = (len(values), *size[1:])
            return mirrored(torch.from_numpy(values.copy())[None], whole)

        patch = oriented(cut_patch(frames, (t, h, w), own))  # [1,t,h,w]
        patches.append(mirrored(patch, size))
        if images is not None:
            cuts.append(oriented(cut_patch(images, (0, h, w), (len(images), *own[1:]))))
    return torch.stack(patches), torch.stack(cuts) if cuts else None
