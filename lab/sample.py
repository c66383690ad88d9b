"""Make the sample that ships: a noisy piece of a simulated movie in the platform's layout.

    python -m lab.sample MOVIE.npz [TEST_FOLDER]

Taken from the corner of the tissue that is kept for judging.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import tifffile

from lab.movies import held_out, load_movie
from lab.noise import noisy_recording
from model.stack_io import PLATFORM_INPUT

NAME = "naomi_level2.tif"
LEVEL = 2
FRAMES = slice(60, 316)  # of 30 Hz: eight and a half seconds with several transients
SEED = 2


def write_tiff(path: Path, frames: np.ndarray) -> None:
    """A compressed stack [T,H,W] with the tags that the platform asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path, frames, photometric="minisblack", metadata={"axes": "TYX"}, compression="zlib",
        compressionargs={"level": 9}, predictor=True, rowsperstrip=frames.shape[1],
        resolution=(10000, 10000), resolutionunit="CENTIMETER",  # 1 um pixels
    )  # fmt: skip


def main() -> None:
    """Write the noisy input and its clean truth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("movie", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("test"))
    args = parser.parse_args()
    clean = held_out(load_movie(args.movie))[FRAMES]
    write_tiff(args.folder / "input" / PLATFORM_INPUT / NAME, noisy_recording(clean, LEVEL, SEED))
    write_tiff(args.folder / "expected" / NAME, clean)
    slug = Path(PLATFORM_INPUT).name
    sockets = [
        {
            "file": None,
            "image": {"name": NAME},
            "value": None,
            "interface": {
                "slug": slug, "relative_path": PLATFORM_INPUT, "kind": "Image",
                "super_kind": "Image",
            },
        }
    ]  # fmt: skip
    (args.folder / "input" / "inputs.json").write_text(json.dumps(sockets, indent=1) + "\n")


if __name__ == "__main__":
    main()
