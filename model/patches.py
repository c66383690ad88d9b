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
    """A patch of a stack [T,H,W]; where the stack is shorter than the patch it is mirrored."""
    for axis, (length, side) in enumerate(zip(frames.shape, size, strict=True)):
        if length >= side:
            index = slice(start[axis], start[axis] + side)
            frames = frames[(slice(None),) * axis + (index,)]
        else:
            frames = frames.take(mirror_index(length, 0, side - length), axis=axis)
    return frames


def sample_patches(
    frames: np.ndarray,
    scale: IntensityScale,
    size: tuple[int, int, int],
    batch: int,
    generator: torch.Generator,
    images: np.ndarray | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Random normalised patches [B,1,t,h,w] of a stack, turned and mirrored in the plane.

    Never reversed in time: transients rise fast and decay slowly. With `images` [K,H,W] also
    their cuts at the same places, turned alike, [B,1,K,h,w].
    """
    patches, cuts = [], []
    turns = (0, 1, 2, 3) if size[1] == size[2] else (0, 2)
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
            return torch.from_numpy(np.ascontiguousarray(values))[None]  # [1,t,h,w]

        patches.append(oriented(cut_patch(frames, (t, h, w), size)))
        if images is not None:
            cuts.append(oriented(cut_patch(images, (0, h, w), (len(images), *size[1:]))))
    return torch.stack(patches), torch.stack(cuts) if cuts else None
