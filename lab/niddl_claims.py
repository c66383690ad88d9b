"""Measure what NIDDL's article claims, on simulated pairs:  python -m lab.niddl_claims [CLAIM ...].

Claims by their names below; all of them by default. Planes of 64x64 of random tissue, each with two
recordings, at few photons and at 50 times as many. Errors are root mean squares in per cent of the
clean planes' range (97th less 3rd percentile), on planes of tissue that no training saw.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from skimage.restoration import denoise_nl_means
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lab.baselines import VanillaUNet
from lab.events import active_places, place_traces
from lab.noise import DetectorConfig, apply_detector, averaged
from lab.pairs import PairRecording
from lab.recipes import RECIPES
from lab.recordings import method_scale
from lab.simulate import random_movie
from lab.trainer import Trainer
from model.architectures import build
from model.device import pick_device, place

METHOD = "niddl"
SIDE = 64
PHOTONS = 20.0  # per pixel on average, where a claim does not vary it
BRIGHTER = 50  # times as much light in the clean recording
NUM_TEST = 100
TEST_SEED = 10**6
STEPS = 500
NUM_PAIRS = 500  # where a claim does not vary it
MOVIE = (200, 96, 96)
CPU = pick_device("cpu")


@dataclass(frozen=True)
class PlanePairs:
    """Planes [N,H,W] at low light and at high."""

    noisy: np.ndarray
    clean: np.ndarray


@cache
def clean_plane(seed: int, number: int) -> Tensor:
    """One plane [H,W] of a movie of its own, in units of its mean."""
    rng = np.random.default_rng([seed, number])
    movie = random_movie(rng, (40, SIDE, SIDE))
    return movie[int(rng.integers(len(movie)))] / movie.mean()


def record_twice(clean: Tensor, photons: float, seed: int) -> PlanePairs:
    """Planes with so many photons a pixel on average and a read-out of one photon, and brighter."""
    detector = DetectorConfig(gain=1.0, read_deviation=1.0)
    generator = torch.Generator().manual_seed(seed)
    noisy, bright = (
        apply_detector(d, clean * photons, generator).numpy()
        for d in (detector, averaged(detector, BRIGHTER))
    )
    return PlanePairs(noisy, bright)


def make_pairs(count: int, photons: float, seed: int) -> PlanePairs:
    """Pairs of planes of different tissue."""
    clean = torch.stack([clean_plane(seed, number) for number in range(count)])
    return record_twice(clean, photons, seed)


class FixedPairs:
    """A source that knows one set of pairs."""

    def __init__(self, pairs: PlanePairs, method: str) -> None:
        scale = method_scale(method, pairs.noisy)
        self.pairs = PairRecording(noisy=pairs.noisy, clean=pairs.clean, scale=scale)

    def recording(self, slot: int, number: int) -> PairRecording:
        """The same for all."""
        return self.pairs


@cache
def trained(
    count: int = NUM_PAIRS, photons: float = PHOTONS, loss: Literal["l1", "l2"] = "l1"
) -> nn.Module:
    """The method's network, trained on pairs to the recipe but for its length and patches."""
    recipe = replace(RECIPES[METHOD], curriculum=((STEPS, (1, SIDE, SIDE)),), loss=loss)
    source = FixedPairs(make_pairs(count, photons, 0), METHOD)
    trainer = Trainer(METHOD, recipe, [(source, 1.0)], CPU)
    while trainer.step < STEPS:
        trainer.advance()
    return trainer.average.eval()


def denoise(net: nn.Module, noisy: np.ndarray) -> np.ndarray:
    """Planes [N,H,W], each by itself."""
    scale = method_scale(METHOD, noisy)
    with torch.inference_mode():
        denoised = net(torch.from_numpy(scale.apply(noisy))[None, None])[0, 0]
    return scale.invert(denoised.numpy())


def error(clean: np.ndarray, denoised: np.ndarray) -> float:
    """Root mean square error in per cent of the clean range."""
    low, high = np.percentile(clean, [3, 97])
    return float(100 * np.sqrt(np.square(clean - denoised).mean()) / (high - low))


# ---- The claims -------------------------------------------------------------------------------


def pairs_needed() -> list[str]:
    """The error levels off at 500 to 600 pairs."""
    test = make_pairs(NUM_TEST, PHOTONS, TEST_SEED)
    lines = []
    for count in (50, 500, 1000):
        denoised = denoise(trained(count), test.noisy)
        lines.append(f"{count:>5} pairs: error {error(test.clean, denoised):.2f} %")
    return lines


def light() -> list[str]:
    """More light is better, and training at another light is worse than at the test's own."""
    lines = []
    lights = (20.0, 100.0, 1000.0)
    for photons in lights:
        test = make_pairs(NUM_TEST, photons, TEST_SEED)
        denoised = {own: denoise(trained(photons=own), test.noisy) for own in lights}
        errors = [
            f"{error(test.clean, planes):.2f} % trained at {own:g}"
            for own, planes in denoised.items()
        ]
        noisy = error(test.clean, test.noisy)
        lines.append(f"{photons:>5g} photons: error {', '.join(errors)}; noisy {noisy:.2f} %")
    return lines


def classical() -> list[str]:
    """Better than median, Gaussian and non-local means."""
    test = make_pairs(NUM_TEST, PHOTONS, TEST_SEED)
    others: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "noisy": lambda plane: plane,
        "median 3x3": lambda plane: ndimage.median_filter(plane, 3),
        "Gaussian 1": lambda plane: ndimage.gaussian_filter(plane, 1),
        "Gaussian 2": lambda plane: ndimage.gaussian_filter(plane, 2),
        "non-local means": lambda plane: denoise_nl_means(
            plane, h=0.8 * float(np.sqrt(plane.mean())), patch_size=5, patch_distance=6
        ),
    }
    lines = [
        f"{name:<16} error {error(test.clean, np.stack([f(plane) for plane in test.noisy])):.2f} %"
        for name, f in others.items()
    ]
    own = error(test.clean, denoise(trained(), test.noisy))
    return [*lines, f"{METHOD:<16} error {own:.2f} %"]


def traces() -> list[str]:
    """Traces of single places have a smaller error and a higher correlation than the noisy."""
    rng = np.random.default_rng([TEST_SEED, 0])
    movie = random_movie(rng, MOVIE)
    movie = movie / movie.mean()
    noisy = record_twice(movie, PHOTONS, TEST_SEED).noisy
    clean = PHOTONS * movie.numpy()
    places = active_places(clean)
    wanted = place_traces(clean, places)
    lines = []
    for name, stack in (("noisy", noisy), (METHOD, denoise(trained(), noisy))):
        found = place_traces(stack, places)
        correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(wanted, found, strict=True)])
        lines.append(
            f"{name:<6} mean absolute error {np.abs(found - wanted).mean():.3f} photons, "
            f"correlation {correlation:.3f}, {len(places)} places of 3x3"
        )
    return lines


def losses() -> list[str]:
    """L1 has the smaller error, L2 nearly the same."""
    test = make_pairs(NUM_TEST, PHOTONS, TEST_SEED)
    lines = []
    for loss in ("l1", "l2"):
        denoised = denoise(trained(loss=loss), test.noisy)
        lines.append(f"{loss}: error {error(test.clean, denoised):.2f} %")
    return lines


def speed() -> list[str]:
    """Both networks against a vanilla U-Net of 32 to 512 channels, one 512x512 plane."""
    plane = torch.rand(1, 1, 512, 512)
    nets = {
        "unet_fixed": build("niddl", arch="unet_fixed").planes,
        "hourglass_wres": build("niddl").planes,
        "vanilla U-Net": VanillaUNet(),
    }
    cost = {}  # parameters, operations and seconds
    with torch.inference_mode():
        for name, net in nets.items():
            placed = place(net.eval(), CPU)  # type: ignore[union-attr]
            with FlopCounterMode(display=False) as counter:
                placed(plane)
            begin = time.perf_counter()
            for _ in range(3):
                placed(plane)
            seconds = (time.perf_counter() - begin) / 3
            size = sum(parameter.numel() for parameter in placed.parameters())
            cost[name] = size, counter.get_total_flops(), seconds
    size, flop, seconds = cost["vanilla U-Net"]
    lines = [
        f"{name:<15}{own[0]:>11,} parameters, {own[1] / 1e9:5.1f} GFLOP, {own[2]:5.2f} s; the "
        f"vanilla U-Net: {size / own[0]:.1f}, {flop / own[1]:.2f} and {seconds / own[2]:.2f} times"
        for name, own in cost.items()
    ]
    ratio = cost["hourglass_wres"][2] / cost["unet_fixed"][2]
    return [*lines, f"hourglass_wres takes {ratio:.2f} times as long as unet_fixed"]


CLAIMS = {f.__name__: f for f in (speed, classical, traces, losses, pairs_needed, light)}


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=", ".join(CLAIMS))
    args = parser.parse_args(argv)
    for name in args.claims or CLAIMS:
        if name not in CLAIMS:
            parser.error(f"unknown claim {name!r}; known: {', '.join(CLAIMS)}")
        measure = CLAIMS[name]
        print(f"{name}: {measure.__doc__}", flush=True)
        for line in measure():
            print(f"  {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
