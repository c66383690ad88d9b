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
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from skimage.restoration import denoise_nl_means
from torch import Tensor, nn

from lab.baselines import VanillaUNet
from lab.noise import DetectorConfig, apply_detector, averaged
from lab.pairs import PairRecording
from lab.recipes import RECIPES, Recipe
from lab.recordings import method_scale
from lab.simulate import draw_config, simulate
from lab.trainer import Trainer
from model.architectures import build
from model.device import pick_device, place

SIDE = 64
PHOTONS = 20.0  # per pixel on average, where a claim does not vary it
BRIGHTER = 50  # times as much light in the clean recording
NUM_TEST = 100
TEST_SEED = 10**6
STEPS = 1500
CPU = pick_device("cpu")


@dataclass(frozen=True)
class PlanePairs:
    """Planes [N,H,W] at low light and at high."""

    noisy: np.ndarray
    clean: np.ndarray


@lru_cache(maxsize=4)
def clean_planes(count: int, seed: int) -> Tensor:
    """One plane [N,H,W] of each of so many movies, in units of their mean."""
    planes = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        movie = simulate(draw_config(rng, (40, SIDE, SIDE)), rng)
        planes.append(movie[int(rng.integers(len(movie)))] / movie.mean())
    return torch.stack(planes)


def make_pairs(count: int, photons: float, seed: int) -> PlanePairs:
    """Pairs with so many photons a pixel on average, and a read-out of one photon."""
    detector = DetectorConfig(gain=1.0, read_deviation=1.0)
    generator = torch.Generator().manual_seed(seed)
    light = clean_planes(count, seed) * photons
    noisy, clean = (
        apply_detector(d, light, generator).numpy()
        for d in (detector, averaged(detector, BRIGHTER))
    )
    return PlanePairs(noisy, clean)


class FixedPairs:
    """A source that knows one set of pairs."""

    def __init__(self, pairs: PlanePairs, method: str) -> None:
        scale = method_scale(method, pairs.noisy)
        self.pairs = PairRecording(noisy=pairs.noisy, clean=pairs.clean, scale=scale)

    def recording(self, slot: int, number: int) -> PairRecording:
        """The same for all."""
        return self.pairs


def train(
    pairs: PlanePairs, *, method: str = "niddl", steps: int = STEPS, **changes: object
) -> nn.Module:
    """A network of the method, trained on pairs to the recipe but for its length."""
    recipe: Recipe = replace(
        RECIPES[method],
        curriculum=((steps, (1, SIDE, SIDE)),),
        **changes,  # type: ignore[arg-type]
    )
    trainer = Trainer(method, recipe, [(FixedPairs(pairs, method), 1.0)], CPU)
    while trainer.step < steps:
        trainer.advance()
    return trainer.average.eval()


def denoise(net: nn.Module, noisy: np.ndarray, method: str = "niddl") -> np.ndarray:
    """Planes [N,H,W], each by itself."""
    scale = method_scale(method, noisy)
    with torch.inference_mode():
        denoised = net(torch.from_numpy(scale.apply(noisy))[None, None])[0, 0]
    return scale.invert(denoised.numpy())


def error(clean: np.ndarray, denoised: np.ndarray) -> float:
    """Root mean square error in per cent of the clean range."""
    low, high = np.percentile(clean, [3, 97])
    return float(100 * np.sqrt(np.square(clean - denoised).mean()) / (high - low))


# ---- The claims -------------------------------------------------------------------------------


def pairs_needed() -> list[str]:
    """C14: the error levels off at 500 to 600 pairs."""
    test = make_pairs(NUM_TEST, PHOTONS, TEST_SEED)
    lines = []
    for count in (50, 500, 1000):
        net = train(make_pairs(count, PHOTONS, 0))
        lines.append(f"{count:>5} pairs: error {error(test.clean, denoise(net, test.noisy)):.2f} %")
    return lines


def light() -> list[str]:
    """C16: more light is better, and training at another light is worse than at the test's own."""
    lines = []
    nets = {photons: train(make_pairs(500, photons, 0)) for photons in (20, 100, 1000)}
    for photons in (20, 100, 1000):
        test = make_pairs(NUM_TEST, photons, TEST_SEED)
        errors = (
            f"{error(test.clean, denoise(net, test.noisy)):.2f} % trained at {trained}"
            for trained, net in nets.items()
        )
        lines.append(f"{photons:>5} photons: error {', '.join(errors)}")
    return lines


def classical() -> list[str]:
    """C17: better than median, Gaussian and non-local means."""
    test = make_pairs(NUM_TEST, PHOTONS, TEST_SEED)
    net = train(make_pairs(500, PHOTONS, 0))
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
    return [*lines, f"{'niddl':<16} error {error(test.clean, denoise(net, test.noisy)):.2f} %"]


def losses() -> list[str]:
    """C15: L1 has the smaller error, L2 nearly the same."""
    test, given = make_pairs(NUM_TEST, PHOTONS, TEST_SEED), make_pairs(500, PHOTONS, 0)
    return [
        f"{loss}: error {error(test.clean, denoise(train(given, loss=loss), test.noisy)):.2f} %"
        for loss in ("l1", "l2")
    ]


def speed() -> list[str]:
    """C12, C13: both networks against a vanilla U-Net of 32 to 512 channels, one 512x512 plane."""
    plane = torch.rand(1, 1, 512, 512)
    nets = {
        "unet_fixed": build("niddl", arch="unet_fixed").planes,
        "hourglass_wres": build("niddl").planes,
        "vanilla U-Net": VanillaUNet(),
    }
    seconds = {}
    with torch.inference_mode():
        for name, net in nets.items():
            placed = place(net.eval(), CPU)  # type: ignore[union-attr]
            placed(plane)
            begin = time.perf_counter()
            for _ in range(3):
                placed(plane)
            seconds[name] = (time.perf_counter() - begin) / 3
    return [
        f"{name:<16}{taken:6.2f} s, {seconds['vanilla U-Net'] / taken:.2f} times as fast as vanilla"
        for name, taken in seconds.items()
    ]


CLAIMS = {f.__name__: f for f in (pairs_needed, light, classical, losses, speed)}


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
