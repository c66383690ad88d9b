"""What every adapter does the same: read a stack, denoise it, check it, write the result.

The adapters run in environments without this project's packages, so they import none of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Protocol

import numpy as np
import tifffile


class Denoise(Protocol):
    """A peer behind one signature."""

    def __call__(self, noisy: np.ndarray, *, seconds: float, seed: int) -> np.ndarray:
        """A denoised stack of a noisy one [T,H,W], in counts; `seconds` bounds the training."""


def write_result(path: Path, denoised: np.ndarray) -> None:
    """A float32 TIFF [T,H,W], there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    tifffile.imwrite(
        temporary,
        np.asarray(denoised, dtype=np.float32),
        photometric="minisblack",
        metadata={"axes": "TYX"},
    )
    temporary.replace(path)


def run(denoise: Denoise) -> None:
    """The command line of an adapter:  NOISY RESULT --seconds S --seed N."""
    parser = argparse.ArgumentParser(description="Denoise one stack with a published method.")
    parser.add_argument("noisy", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0, help="for training, if any")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    noisy = tifffile.imread(args.noisy)
    if noisy.ndim != 3:
        raise SystemExit(f"{args.noisy.name}: expected a [T,H,W] stack, got shape {noisy.shape}")
    denoised = denoise(noisy, seconds=args.seconds, seed=args.seed)
    if num_bad := np.count_nonzero(~np.isfinite(denoised)):
        raise SystemExit(f"{num_bad} of {denoised.size} voxels came out as NaN or infinite")
    write_result(args.result, denoised)
