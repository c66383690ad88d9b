"""Score a result against the truth:  python -m lab.score CLEAN.tif NOISY.tif DENOISED.tif."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from lab.metrics import Score, stsnr
from model.stack import StackError
from model.stack_io import read_stack


def table(clean: np.ndarray, noisy: np.ndarray, denoised: np.ndarray) -> str:
    """Scores of three stacks [T,H,W]: the recording, its own temporal mean, and the result.

    The mean shows no activity at all and still scores well; a result below it is worth nothing.
    """
    mean = np.broadcast_to(noisy.mean(axis=0, dtype=np.float64), noisy.shape)
    rows: dict[str, Score] = {
        "noisy": stsnr(clean, noisy),
        "temporal mean": stsnr(clean, mean),
        "denoised": stsnr(clean, denoised),
    }
    lines = [f"{'[dB]':<14}{'sSNR':>8}{'tSNR':>8}{'stSNR':>8}"]
    lines += [
        f"{name:<14}{s.spatial:>8.2f}{s.temporal:>8.2f}{s.stsnr:>8.2f}" for name, s in rows.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table for three files."""
    parser = argparse.ArgumentParser(description="Score a denoised stack against its clean truth.")
    for name in ("clean", "noisy", "denoised"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    try:
        stacks = [read_stack(path) for path in (args.clean, args.noisy, args.denoised)]
    except StackError as error:
        parser.exit(1, f"{error}\n")
    if len({stack.shape for stack in stacks}) > 1:
        shapes = ", ".join(f"{s.path.name} {s.shape}" for s in stacks)
        parser.exit(1, f"the three stacks must have one shape: {shapes}\n")
    print(table(*(stack.frames for stack in stacks)))


if __name__ == "__main__":
    main()
