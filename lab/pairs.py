"""Pairs of images with a low and a high signal, to learn from with supervision (NIDDL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lab.recordings import (
    POOL_SIZE,
    Ask,
    DataError,
    Example,
    draw_orientation,
    method_scale,
    shuffled,
)
from model.normalise import IntensityScale
from model.patches import cut_patch, mirrored, own_sides
from model.stack import StackError
from model.stack_io import find_stacks, peek_shape, read_stack


@dataclass(frozen=True, kw_only=True)
class PairRecording:
    """The same planes with a low and a high signal, in the same units."""

    noisy: np.ndarray  # [T,H,W], planes or frames
    clean: np.ndarray  # [T,H,W]
    scale: IntensityScale  # of the noisy one

    def draw(self, ask: Ask, rng: np.random.Generator) -> Example:
        """A random patch; its target is the clean one at the same place."""
        patch = ask.patch
        t, h, w = (
            int(rng.integers(max(1, length - side + 1)))
            for length, side in zip(self.noisy.shape, patch, strict=True)
        )
        own = own_sides(self.noisy.shape, patch)
        way = draw_orientation(patch, rng)

        def cut(frames: np.ndarray) -> Tensor:
            values = torch.from_numpy(self.scale.apply(cut_patch(frames, (t, h, w), own)))
            return torch.from_numpy(way.seen(mirrored(values, patch).numpy()))[None]

        return Example(noisy=cut(self.noisy), target=cut(self.clean), median=None)


class Pairs:
    """Folders with `noisy_imgs/` and `gt_imgs/`, which hold files of the same names and shapes."""

    def __init__(self, folders: Sequence[Path], method: str, seed: int) -> None:
        self.method = method
        self.seed = seed
        self.pairs = [pair for folder in folders for pair in find_pairs(folder)]
        self._open = lru_cache(maxsize=POOL_SIZE)(self._read)

    def _read(self, number: int) -> PairRecording:
        noisy, clean = (read_stack(path).frames for path in self.pairs[number])
        return PairRecording(noisy=noisy, clean=clean, scale=method_scale(self.method, noisy))

    def recording(self, slot: int, number: int) -> PairRecording:
        """Every pair once in a random order, then in another."""
        return self._open(shuffled(len(self.pairs), self.seed, slot, number))


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Noisy and clean file of every pair; DataError where they do not match in name or shape."""
    noisy_dir, clean_dir = folder / "noisy_imgs", folder / "gt_imgs"
    for part in (noisy_dir, clean_dir):
        if not part.is_dir():
            raise DataError(f"{part}: no such folder; pairs lie in noisy_imgs/ and gt_imgs/")
    names = {
        part: {found.source.relative_to(part) for found in find_stacks(part, part / ".nowhere")}
        for part in (noisy_dir, clean_dir)
    }
    if lone := sorted(map(str, names[noisy_dir] ^ names[clean_dir])):
        raise DataError(
            f"{folder}: {len(names[noisy_dir])} files in noisy_imgs/, {len(names[clean_dir])} in "
            f"gt_imgs/; without a partner of the same name: {', '.join(lone[:5])}"
        )
    if not names[noisy_dir]:
        raise DataError(f"{folder}: no .tif, .tiff, .btf, .tf8 or .mha file in noisy_imgs/")
    pairs = [(noisy_dir / name, clean_dir / name) for name in sorted(names[noisy_dir])]
    for noisy, clean in pairs:
        try:
            shapes = peek_shape(noisy), peek_shape(clean)
        except StackError as error:
            raise DataError(str(error)) from error
        if shapes[0] != shapes[1]:
            raise DataError(f"{noisy}: {shapes[0]} and its partner in gt_imgs/ {shapes[1]}")
    return pairs
