"""Put frames side by side as a PNG:  python -m lab.picture OUT.png FRAME STACK.tif [STACK.tif ...].

All in one grey scale, that of the last stack, which is the truth or the best there is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imagecodecs
import numpy as np

from model.picture import beside, grey, range_of
from model.stack_io import read_stack

ENLARGED = 4  # screen pixels per voxel
GAP = 8  # screen pixels between frames


def side_by_side(frames: list[np.ndarray]) -> np.ndarray:
    """Frames [H,W] as one uint8 image, black and white being nearly the last one's extremes."""
    low, high = range_of(frames[-1])
    return beside([grey(frame, low, high, ENLARGED) for frame in frames], 1, GAP)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Frames of several stacks side by side.")
    parser.add_argument("out", type=Path)
    parser.add_argument("frame", type=int)
    parser.add_argument("stacks", type=Path, nargs="+")
    args = parser.parse_args()
    frames = [read_stack(path).frames[args.frame].astype(np.float64) for path in args.stacks]
    args.out.write_bytes(imagecodecs.png_encode(side_by_side(frames)))


if __name__ == "__main__":
    main()
