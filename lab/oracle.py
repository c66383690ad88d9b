"""What lowrank_unet would gain by knowing a movie:  python -m lab.oracle MOVIE.npz [MOVIE.npz ...]

The shipped network has seen simulated recordings alone. Here its half for images goes on learning
from a movie's own clean images: of the tissue around the corner that is kept for judging, as if
there were clean recordings of the same brain; or of that very corner, under other noise, which no
denoiser that has not seen the answer can be expected to reach. StSNR [dB] there, of 600 frames.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from lab.factors import FactorRecording, factors_of
from lab.metrics import stsnr
from lab.movies import HELD_OUT_FROM, held_out, load_movie
from lab.noise import LEVELS, noisy_recording
from lab.parts import METHOD, Halves, denoised_by, shipped_network
from lab.recipes import RECIPES
from lab.trainer import Trainer
from model.config import METHODS, LowRankConfig
from model.device import pick_device
from model.lowrank import LowRank

NUM_FRAMES = 600
DRAWS = 3  # of the noise at each level
LEARNING_RATE = 5e-4
FIRST_SEED = 1000  # of the noise to learn from; that to be judged by has seed 0


@dataclass(frozen=True, kw_only=True)
class FewRecordings:
    """Recordings to learn from, over and over."""

    recordings: list[FactorRecording]

    def recording(self, slot: int, number: int) -> FactorRecording:
        """Of every place in the batch another."""
        return self.recordings[(slot + number) % len(self.recordings)]


def around_the_corner(movie: np.ndarray) -> list[np.ndarray]:
    """What of a movie [T,H,W] is not kept for judging."""
    return [movie[:, :HELD_OUT_FROM], movie[:, HELD_OUT_FROM:, :HELD_OUT_FROM]]


def taught(
    parts: Sequence[np.ndarray], iterations: int, net: Halves, config: LowRankConfig
) -> Halves:
    """The shipped network after its half for images has learned from clean movies [T,H,W]."""
    recordings = []
    for draw, clean, level in product(range(DRAWS), parts, LEVELS):
        noisy = noisy_recording(clean, level, seed=FIRST_SEED + draw)
        recordings.append(factors_of(LowRank(noisy, config), clean, net.courses))
    usual = RECIPES[METHOD]
    recipe = replace(
        usual,
        curriculum=((iterations, usual.patch_at(0)),),
        learning_rate=LEARNING_RATE,
        ramp=min(usual.ramp, iterations // 10),
    )
    source = FewRecordings(recordings=recordings)
    trainer = Trainer(METHOD, recipe, [(source, 1.0)], pick_device("cpu"))
    trainer.start_from(shipped_network())
    for _ in range(iterations):
        trainer.advance()
    return Halves.of(trainer.average)


def main(argv: Sequence[str]) -> None:
    """Learn, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("movies", type=Path, nargs="+", metavar="MOVIE.npz")
    parser.add_argument("--iterations", type=int, default=600)
    args = parser.parse_args(argv)
    net, config = Halves.of(shipped_network()), METHODS[METHOD].low_rank
    assert config is not None
    print("| | " + " | ".join(f"level {level}" for level in LEVELS) + " |")
    print("|---|" + "---|" * len(LEVELS))
    for path in args.movies:
        movie = load_movie(path)[:NUM_FRAMES]
        corner = held_out(movie)
        nets = {
            "as shipped": net,
            "taught by the tissue around": taught(
                around_the_corner(movie), args.iterations, net, config
            ),
            "taught by the corner itself": taught([corner], args.iterations, net, config),
        }
        noisy = [noisy_recording(corner, level, seed=0) for level in LEVELS]
        measured = [LowRank(recording, config) for recording in noisy]
        for name, halves in nets.items():
            scores = [stsnr(corner, denoised_by(found, halves)).stsnr for found in measured]
            cells = " | ".join(f"{score:.2f}" for score in scores)
            print(f"| {path.stem}, {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
