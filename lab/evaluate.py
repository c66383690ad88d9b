"""Score the program on tissue it never saw:  python -m lab.evaluate MOVIE.npz [MOVIE.npz ...].

Draws the challenge's noise over the held-out corner of simulated movies, runs `process.py` on it as
any user would, and prints stSNR beside the floors that every result has to beat.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import tifffile

from lab.floors import FLOORS
from lab.metrics import stsnr
from lab.movies import held_out, load_movie
from lab.noise import LEVELS, noisy_recording
from lab.sample import write_tiff

PROGRAM = Path(__file__).resolve().parent.parent / "process.py"


def main() -> None:
    """Print one table: rows are the floors and the program, columns movies and noise levels."""
    parser = argparse.ArgumentParser(description="stSNR on held-out simulated tissue.")
    parser.add_argument("movies", type=Path, nargs="+")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 3], choices=LEVELS)
    parser.add_argument("--frames", type=int, nargs=2, default=[60, 316], help="first, and end")
    parser.add_argument("--seed", type=int, default=2, help="of the noise")
    # What is left belongs to process.py: --steps 0 --method ...
    args, flags = parser.parse_known_args()
    cases = {
        f"{path.stem}_{level}": (held_out(load_movie(path))[slice(*args.frames)], level)
        for path in args.movies
        for level in args.levels
    }
    rows: dict[str, list[float]] = {name: [] for name in (*FLOORS, "process.py")}
    with tempfile.TemporaryDirectory() as folder:
        noisy_dir, result_dir = Path(folder) / "noisy", Path(folder) / "denoised"
        for name, (clean, level) in cases.items():
            write_tiff(noisy_dir / f"{name}.tif", noisy_recording(clean, level, args.seed))
        command = [sys.executable, str(PROGRAM), "--input-dir", str(noisy_dir)]
        subprocess.run([*command, "--output-dir", str(result_dir), *flags], check=True)  # noqa: S603
        for name, (clean, _) in cases.items():
            noisy = tifffile.imread(noisy_dir / f"{name}.tif")
            for floor, estimate in FLOORS.items():
                rows[floor].append(stsnr(clean, estimate(noisy)).stsnr)
            denoised = tifffile.imread(result_dir / f"{name}.tif")
            rows["process.py"].append(stsnr(clean, denoised).stsnr)
    print(f"\n{'stSNR [dB]':<22}" + "".join(f"{name:>18}" for name in cases))
    for row, scores in rows.items():
        print(f"{row:<22}" + "".join(f"{score:>18.2f}" for score in scores))


if __name__ == "__main__":
    main()
