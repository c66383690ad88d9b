"""Hold the simulator against other clean movies, in numbers and in two pictures.

    python -m lab.compare_simulator NAOMI.npz [NAOMI.npz ...] --draws 40 --out comparison.png

Each row of the table is a statistic: its value for each given movie, its 0, 10, 50, 90 and 100 %
quantiles over random draws of the simulator, and for each given movie whether the draws reach it.
comparison.png shows frames, comparison_curves.png what the statistics are taken from.
"""

from __future__ import annotations

import argparse
import math
import time
from itertools import pairwise
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import fft
from scipy.signal import windows

from lab.movies import load_movie
from lab.picture import side_by_side
from lab.simulate import draw_config, simulate

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
SPATIAL_LAGS = (1, 2, 4, 8)  # pixels
TEMPORAL_LAGS = (1, 5, 15, 60)  # frames
COMPONENTS = (1, 4, 16)
# Edges in cycles per frame, not in Hz: draws have frame rates of their own, and a network sees
# frames. Those of NAOMi at 30 Hz are 0.3 and 3 Hz.
FRAME_BANDS = (0.0, 0.01, 0.1, 0.5)
# In cycles per pixel: uneven brightness, cells, processes, grain. 0.71 is beyond the corner.
PIXEL_BANDS = (0.0, 0.03, 0.1, 0.25, 0.71)
TINY = 1e-20  # a scene without any contrast has statistics of 0
FIGURE_MOVIES = 6  # draws shown

CURVE_PIXELS = (0, 1, 2, 3, 4, 6, 8, 12, 16)  # lags
CURVE_FRAMES = (0, 1, 2, 3, 5, 8, 15, 25, 40, 60, 100)
VALUE_BINS = np.linspace(0, 5, 101)
SPREAD_BINS = np.geomspace(1e-3, 10, 61)
RING_BINS = np.linspace(0, PIXEL_BANDS[-1], 37)

Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # panel: x and y


def _quantiles(name: str, values: np.ndarray) -> dict[str, float]:
    levels = np.quantile(values, QUANTILES)
    return {f"{name} q{100 * q:.0f}": v for q, v in zip(QUANTILES, levels, strict=True)}


def _spatial_correlation(frames: np.ndarray, lag: int) -> float:
    """Correlation between pixels of frames [T,H,W] of mean 0 that lie a lag apart, on both axes."""
    pairs = (
        (frames[:, lag:] * frames[:, : frames.shape[1] - lag]).mean(),
        (frames[:, :, lag:] * frames[:, :, : frames.shape[2] - lag]).mean(),
    )
    return float(np.mean(pairs) / (np.square(frames).mean() + TINY))


def _temporal_correlation(activity: np.ndarray, lag: int) -> float:
    """Correlation between frames of activity [T,H,W] that lie a lag apart."""
    early, late = activity[: max(0, len(activity) - lag)], activity[lag:]
    scale = math.sqrt(np.square(early).sum() * np.square(late).sum())
    return float((early * late).sum() / (scale + TINY))


def spectrum(fields: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in cycles per sample along the axes, and the share of the variance at each.

    The fields [T,H,W] have a mean of 0; the power is summed over the other axes. Of several axes
    the frequency is the radius, so that no direction counts more than another.
    """
    lengths = [fields.shape[axis] for axis in axes]
    for axis, length in zip(axes, lengths, strict=True):
        # Without a window the jump from the end of a slow drift to its start looks fast.
        taper = windows.hann(length, sym=False).astype(fields.dtype)
        fields = fields * np.expand_dims(taper, [a for a in range(fields.ndim) if a != axis])
    power = np.square(np.abs(fft.rfftn(fields, axes=axes)))
    others = tuple(axis for axis in range(fields.ndim) if axis not in axes)
    power = power.sum(others, dtype=np.float64)
    halved = fft.rfftfreq(lengths[-1])  # the last axis, of which rfftn leaves out the negative half
    power *= np.where((halved == 0) | (halved == 0.5), 1, 2)
    each = [*(fft.fftfreq(length) for length in lengths[:-1]), halved]
    radius = np.sqrt(sum(np.square(grid) for grid in np.meshgrid(*each, indexing="ij")))
    return radius, power / (power.sum() + TINY)


def _bands(
    name: str, unit: str, edges: tuple[float, ...], frequency: np.ndarray, share: np.ndarray
) -> dict[str, float]:
    """Shares of the variance between successive edges."""
    sums, _ = np.histogram(frequency, edges, weights=share)
    spans = [f"{low:g}-{high:g}" for low, high in pairwise(edges)]
    return {f"{name}, power at {s} {unit}": float(v) for s, v in zip(spans, sums, strict=True)}


def _parts(movie: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A movie over its mean [T,H,W], its contrast at rest [1,H,W], and its activity [T,H,W]."""
    movie = movie / movie.mean()
    mean_image = movie.mean(0, keepdims=True)
    return movie, mean_image - 1, movie - mean_image


def statistics(movie: np.ndarray) -> dict[str, float]:
    """Named numbers of a clean movie [T,H,W] float32, none of which depends on its scale."""
    movie, still, activity = _parts(movie)
    spread = activity.std(0)
    numbers = _quantiles("value / mean", movie)
    numbers |= _quantiles("mean image / mean", still + 1)
    numbers |= _quantiles("temporal sd / mean", spread)
    skewness = (activity**3).mean(0) / (spread**3 + TINY)
    numbers |= _quantiles("skewness", skewness)
    for lag in SPATIAL_LAGS:
        numbers[f"mean image, correlation at {lag} px"] = _spatial_correlation(still, lag)
    for lag in SPATIAL_LAGS:
        numbers[f"activity, correlation at {lag} px"] = _spatial_correlation(activity, lag)
    for lag in TEMPORAL_LAGS:
        numbers[f"activity, correlation at {lag} frames"] = _temporal_correlation(activity, lag)
    numbers |= _bands("activity", "cycles/frame", FRAME_BANDS, *spectrum(activity, (0,)))
    numbers |= _bands("mean image", "cycles/px", PIXEL_BANDS, *spectrum(still, (1, 2)))
    numbers |= _bands("activity", "cycles/px", PIXEL_BANDS, *spectrum(activity, (1, 2)))
    traces = activity.reshape(len(activity), -1)
    strengths = np.linalg.eigvalsh(traces @ traces.T)[::-1]  # squares of the singular values
    for count in COMPONENTS:
        share = strengths[:count].sum() / (strengths.sum() + TINY)
        numbers[f"variance in {count} components"] = float(share)
    return numbers


def table(given: dict[str, dict[str, float]], drawn: list[dict[str, float]]) -> str:
    """Text of one line per statistic, and one that counts those inside the drawn ranges.

    The last column has a `yes` or a `NO` for each given movie, in their order.
    """
    heads = [*given, "draws: min", "q10", "q50", "q90", "max"]
    lines = [f"{'':40s}" + "".join(f"{head[-12:]:>13s}" for head in heads) + "  inside"]
    num_inside = 0
    names = list(next(iter(given.values())))
    for name in names:
        values = [numbers[name] for numbers in given.values()]
        levels = np.quantile([numbers[name] for numbers in drawn], [0, 0.1, 0.5, 0.9, 1])
        inside = [levels[0] <= value <= levels[-1] for value in values]
        num_inside += all(inside)
        cells = "".join(f"{value:13.4f}" for value in [*values, *levels])
        marks = "".join(f"{'yes' if reached else 'NO':>5s}" for reached in inside)
        lines.append(f"{name:40s}{cells}{marks}")
    lines.append(f"{num_inside} of {len(names)} statistics inside the drawn ranges")
    return "\n".join(lines)


def curves(movie: np.ndarray) -> Curves:
    """The distributions, correlations and spectra of a clean movie [T,H,W] float32."""
    movie, still, activity = _parts(movie)

    def portions(values: np.ndarray, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return bins[:-1], np.histogram(values, bins)[0] / values.size

    def over_pixels(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lags = [lag for lag in CURVE_PIXELS if lag < min(frames.shape[1:])]
        return np.array(lags), np.array([_spatial_correlation(frames, lag) for lag in lags])

    def rings(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        radius, share = spectrum(frames, (1, 2))
        return RING_BINS[:-1], np.histogram(radius, RING_BINS, weights=share)[0]

    lags = [lag for lag in CURVE_FRAMES if lag < len(activity)]
    frequency, share = spectrum(activity, (0,))
    return {
        "value / mean, share of voxels": portions(movie, VALUE_BINS),
        "temporal sd / mean, share of pixels": portions(activity.std(0), SPREAD_BINS),
        "activity, correlation over frames": (
            np.array(lags),
            np.array([_temporal_correlation(activity, lag) for lag in lags]),
        ),
        # as a density, which does not depend on the number of frames; a log axis has no 0
        "activity, power over cycles/frame": (frequency[1:], share[1:] * len(activity)),
        "mean image, correlation over px": over_pixels(still),
        "activity, correlation over px": over_pixels(activity),
        "mean image, power over cycles/px": rings(still),
        "activity, power over cycles/px": rings(activity),
    }


def curve_figure(given: dict[str, Curves], drawn: list[Curves]) -> Figure:
    """A panel of each curve: draws in faint grey, the given movies in colour."""
    picture = Figure(figsize=(20, 9), layout="constrained")
    panels = picture.subplots(2, 4)
    for panel, title in zip(panels.flat, next(iter(given.values())), strict=True):
        for each in drawn:
            panel.plot(*each[title], color="0.5", alpha=0.3, linewidth=0.6)
        for name, each in given.items():
            panel.plot(*each[title], label=name, linewidth=1.8)
        panel.set_title(title)
        if "correlation" not in title:
            panel.set_yscale("log", nonpositive="mask")
            panel.set_ylim(bottom=1e-7)  # below is rounding
        if "sd" in title or "frame" in title:
            panel.set_xscale("symlog" if "correlation" in title else "log")
    panels.flat[0].legend()
    return picture


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
    """Print the speed and the table, write the pictures."""
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
    given_curves = {path.stem: curves(m) for path, m in zip(args.movies, clean, strict=True)}
    drawn: list[dict[str, float]] = []
    drawn_curves: list[Curves] = []
    shown: list[np.ndarray] = []
    speeds: list[float] = []
    for seed in range(args.seed, args.seed + args.draws):
        rng = np.random.default_rng(seed)
        config = draw_config(rng, clean[0].shape)
        started = time.perf_counter()
        movie = simulate(config, rng, device).cpu().numpy()  # .cpu() waits for a GPU to finish
        speeds.append(movie.size / (time.perf_counter() - started))
        drawn.append(statistics(movie))
        drawn_curves.append(curves(movie))
        if len(shown) < FIGURE_MOVIES:
            shown.append(movie)
    print(
        f"{device}, {torch.get_num_threads()} threads: {np.median(speeds) / 1e6:.1f} million "
        f"voxels a second (median), slowest draw {min(speeds) / 1e6:.1f}"
    )
    print(table(given, drawn))
    args.out.write_bytes(imagecodecs.png_encode(figure([*clean, *shown])))
    curve_figure(given_curves, drawn_curves).savefig(args.out.with_stem(f"{args.out.stem}_curves"))


if __name__ == "__main__":
    main()
