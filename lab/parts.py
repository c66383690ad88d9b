"""What every part of lowrank_unet does:  python -m lab.parts MOVIE.npz [MOVIE.npz ...]

Parts are left out, or told the clean movie. Means of stSNR [dB] over the movies, in the corner that
is kept for judging, at the challenge's three levels of noise; of recordings of several lengths, and
of one whose brain wanders by a pixel.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from torch import nn

from lab.factors import as_guessed, factors_of
from lab.metrics import stsnr
from lab.movies import held_out, load_movie
from lab.noise import LEVELS, noisy_recording
from model.basis import orthonormal_courses
from model.checkpoint import load_network, read_checkpoint
from model.components import Components, Factors
from model.config import METHODS, LowRankConfig
from model.device import pick_device, place
from model.ensemble import LowRankEnsemble
from model.factor_denoiser import FactorDenoiser
from model.job import SHIPPED_WEIGHTS
from model.lowrank import Corner, DenoiseCourses, LowRank
from model.motion import move

METHOD = "lowrank_unet"
LENGTHS = (300, 600, 1500)  # frames
MOVING_LENGTH = 600
WANDER_PIXELS, WANDER_FRAMES = 1.0, 20.0  # standard deviation, and how long it keeps its direction


def wandering(movie: np.ndarray) -> np.ndarray:
    """A movie [T,H,W] of a brain that wanders."""
    rng = np.random.default_rng(0)
    walk = ndimage.gaussian_filter1d(rng.normal(size=(len(movie), 2)), WANDER_FRAMES, axis=0)
    shifts = WANDER_PIXELS * (walk - walk.mean(0)) / walk.std()
    moved = [move(frame, shift) for frame, shift in zip(movie, shifts, strict=True)]
    return np.maximum(np.stack(moved), 0)


def shipped_network() -> nn.Module:
    """The method's, as it is shipped."""
    return load_network(read_checkpoint(SHIPPED_WEIGHTS / f"{METHOD}.safetensors", METHOD))


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Of a network for factors."""

    courses: DenoiseCourses
    images: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, net: nn.Module) -> Halves:
        """Of a whole one, on the CPU."""
        device = pick_device("cpu")
        denoiser = FactorDenoiser(net=place(net, device).eval(), device=device)
        return cls(courses=denoiser.courses, images=denoiser.images)


def _rendered(found: LowRank | LowRankEnsemble) -> np.ndarray:
    return np.concatenate(list(found.render()))


def _found(
    measured: LowRank | LowRankEnsemble,
    courses: DenoiseCourses | None,
    images: Callable[[np.ndarray], np.ndarray] | None,
) -> np.ndarray:
    found = copy(measured)
    found.find(courses)
    if images:
        found.denoise_images(images)
    return _rendered(found)


def denoised_by(measured: LowRank | LowRankEnsemble, net: Halves) -> np.ndarray:
    """What these halves make of a recording: [T,H,W]."""
    return _found(measured, net.courses, net.images)


def _told_courses(measured: LowRank, clean: np.ndarray, net: Halves) -> np.ndarray:
    """The components that were found, with their true courses."""
    found = copy(measured)
    found.find(as_guessed)
    truth = dict(zip(found.factors, factors_of(measured, clean, as_guessed).courses, strict=True))

    def told(corner: Corner, block: np.ndarray, _: Components) -> tuple[Corner, Factors]:
        courses = truth[corner][3].T
        return corner, found.along(orthonormal_courses(courses), block, corner)

    found.factors = dict(found.each_block(told))
    found.denoise_images(net.images)
    return _rendered(found)


def _told_images(measured: LowRank, clean: np.ndarray, net: Halves) -> np.ndarray:
    """The courses that were found, with their true images: what else the error consists of."""
    found = copy(measured)
    found.find(net.courses)
    truth = factors_of(measured, clean, net.courses).target
    for (corner, factors), images in zip(list(found.factors.items()), truth, strict=True):
        found.factors[corner] = Factors(
            courses=factors.courses, footprints=images.reshape(len(images), -1)
        )
    return _rendered(found)


def scores(clean: np.ndarray, level: int, net: Halves, config: LowRankConfig) -> dict[str, float]:
    """StSNR [dB] of every variant on one movie [T,H,W] at one level of noise."""
    noisy = noisy_recording(clean, level, seed=0)
    measured = LowRank(noisy, config)
    in_all_sizes = LowRankEnsemble(measured)
    as_still = replace(config, motion=replace(config.motion, least=np.inf))
    unmoved = LowRank(noisy, as_still) if measured.motion else measured
    once = copy(measured)
    once.looks = replace(measured.looks, others=())
    results = {
        "no network (lowrank)": _found(measured, None, None),
        "network for courses alone": _found(measured, net.courses, None),
        "network for images alone": _found(measured, as_guessed, net.images),
        "both": denoised_by(measured, net),
        "both, components looked for once": denoised_by(once, net),
        "both, in all sizes (lowrank_unet)": denoised_by(in_all_sizes, net),
        "both, motion left in": denoised_by(unmoved, net),
        "told the true courses": _told_courses(measured, clean, net),
        "told the true images": _told_images(measured, clean, net),
    }
    return {name: stsnr(clean, result).stsnr for name, result in results.items()}


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("movies", type=Path, nargs="+", metavar="MOVIE.npz")
    args = parser.parse_args(argv)
    net, config = Halves.of(shipped_network()), METHODS[METHOD].low_rank
    assert config is not None
    movies = [load_movie(path) for path in args.movies]
    cases = {f"{n} frames": [held_out(movie)[:n] for movie in movies] for n in LENGTHS}
    cases[f"{MOVING_LENGTH} frames, moving"] = [
        held_out(wandering(movie[:MOVING_LENGTH])) for movie in movies
    ]
    for case, stacks in cases.items():
        found = [[scores(stack, level, net, config) for stack in stacks] for level in LEVELS]
        print(f"\n| {case} | " + " | ".join(f"level {level}" for level in LEVELS) + " |")
        print("|---|" + "---|" * len(LEVELS))
        for variant in found[0][0]:
            means = [np.mean([scores[variant] for scores in level]) for level in found]
            print(
                f"| {variant} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |", flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1:])
