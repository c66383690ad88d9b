"""Hold the simulator against other clean movies, in numbers and in a picture.

    python -m lab.compare_simulator NAOMI.npz [NAOMI.npz ...] --draws 40 --out comparison.png

Each row of the table is a statistic: its value for each given movie, its 0, 10, 50, 90 and 100 %
quantiles over random draws of the simulator, and whether the draws cover all the given ones.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import imagecodecs
import numpy as np
import torch

from lab.movies import load_movie
from lab.picture import side_by_side
from lab.simulate import draw_config, simulate

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
SPATIAL_LAGS = (1, 2, 4, 8)  # pixels
TEMPORAL_LAGS = (1, 5, 15, 60)  # frames
COMPONENTS = (1, 4, 16)
TINY = 1e-20  # a scene without any contrast has statistics of 0
FIGURE_MOVIES = 6  # draws shown


def _quantiles(name: str, values: np.ndarray) -> dict[str, float]:
    levels = np.quantile(values, QUANTILES)
    return {f"{name} q{100 * q:.0f}": v for q, v in zip(QUANTILES, levels, strict=True)}


def _spatial_correlation(frames: np.ndarray, lag: int) -> float:
    """Correlation between pixels of frames [T,H,W] of mean 0 that lie a lag apart, on both axes."""
    pairs = (
        (frames[:, lag:] * frames[:, :-lag]).mean(),
        (frames[:, :, lag:] * frames[:, :, :-lag]).mean(),
    )
    return float(np.mean(pairs) / (np.square(frames).mean() + TINY))


def statistics(movie: np.ndarray) -> dict[str, float]:
    """Named numbers of a clean movie [T,H,W] float32, none of which depends on its scale."""
    movie = movie / movie.mean()
    mean_image = movie.mean(0)
    activity = movie - mean_image  # [T,H,W]
    spread = activity.std(0)
    numbers = _quantiles("value / mean", mean_image)
    numbers |= _quantiles("temporal sd / mean", spread)
    skewness = (activity**3).mean(0) / (spread**3 + TINY)
    numbers |= _quantiles("skewness", skewness)
    for lag in SPATIAL_LAGS:
        still = mean_image[None] - 1
        numbers[f"mean image, correlation at {lag} px"] = _spatial_correlation(still, lag)
    for lag in SPATIAL_LAGS:
        numbers[f"activity, correlation at {lag} px"] = _spatial_correlation(activity, lag)
    for lag in TEMPORAL_LAGS:
        early, late = activity[:-lag], activity[lag:]
        scale = math.sqrt(np.square(early).sum() * np.square(late).sum())
        numbers[f"activity, correlation at {lag} frames"] = float(
            (early * late).sum() / (scale + TINY)
        )
    traces = activity.reshape(len(activity), -1)
    strengths = np.linalg.eigvalsh(traces @ traces.T)[::-1]  # squares of the singular values
    for count in COMPONENTS:
        share = strengths[:count].sum() / (strengths.sum() + TINY)
        numbers[f"variance in {count} components"] = float(share)
    return numbers


def table(given: dict[str, dict[str, float]], drawn: list[dict[str, float]]) -> str:
    """Text of one line per statistic."""
    heads = [*given, "draws: min", "q10", "q50", "q90", "max", "covered"]
    lines = [f"{'':36s}" + "".join(f"{head[-12:]:>13s}" for head in heads)]
    for name in next(iter(given.values())):
        values = [numbers[name] for numbers in given.values()]
        levels = np.quantile([numbers[name] for numbers in drawn], [0, 0.1, 0.5, 0.9, 1])
        covered = levels[0] <= min(values) and max(values) <= levels[-1]
        cells = "".join(f"{value:13.4f}" for value in [*values, *levels])
        lines.append(f"{name:36s}{cells}{'yes' if covered else 'NO':>13s}")
    return "\n".join(lines)


def figure(movies: list[np.ndarray]) -> np.ndarray:
    """Picture [H,W] uint8: above each movie's mean image, below its temporal deviation."""
    side = min(min(movie.shape[1:]) for movie in movies)

    def row(images: list[np.ndarray]) -> np.ndarray:
        greys = []
        for image in images:
            low, high = np.percentile(image, [1.0, 99.8])
            greys.append(np.clip((image[:side, :side] - low) / (high - low + 1e-12), 0, 1))
        greys[-1].flat[:2] = 0, 1
        return side_by_side(greys)

    return np.vstack([row([m.mean(0) for m in movies]), row([m.std(0) for m in movies])])


def main() -> None:
    """Print the table and the speed, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("movies", type=Path, nargs="+", help=".npz movies of lab.movies")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--frames", type=int, default=300, help="of each movie")
    parser.add_argument("--start", type=int, default=0, help="first frame of the given movies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("comparison.png"))
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    cut = slice(args.start, args.start + args.frames)
    clean = [load_movie(path)[cut].astype(np.float32) for path in args.movies]
    given = {path.stem: statistics(movie) for path, movie in zip(args.movies, clean, strict=True)}
    drawn: list[dict[str, float]] = []
    shown: list[np.ndarray] = []
    speeds: list[float] = []
    for seed in range(args.seed, args.seed + args.draws):
        rng = np.random.default_rng(seed)
        config = draw_config(rng, clean[0].shape)
        started = time.perf_counter()
        movie = simulate(config, rng, device).cpu().numpy()  # .cpu() waits for a GPU to finish
        speeds.append(movie.size / (time.perf_counter() - started))
        drawn.append(statistics(movie))
        if len(shown) < FIGURE_MOVIES:
            shown.append(movie)
    print(table(given, drawn))
    print(
        f"{device}, {torch.get_num_threads()} threads: {np.median(speeds) / 1e6:.1f} million "
        f"voxels a second (median), slowest draw {min(speeds) / 1e6:.1f}"
    )
    args.out.write_bytes(imagecodecs.png_encode(figure([*clean, *shown])))


if __name__ == "__main__":
    main()
