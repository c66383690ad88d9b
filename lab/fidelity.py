"""Whether a result shows what was there and nothing else: figures with the limits they are held to.

On simulated recordings, so that what was there is known: a scene in which nothing happens must come
out flat; noise must be all that was taken away; ends must be as good as the middle; no grid or beat
of the windows may show; the mean and the height of events must be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from lab.cases import write_recording
from lab.contenders import run_program
from lab.events import compare_activity
from lab.metrics import mean_bias, stsnr, whiteness
from lab.noise import noise_deviation, noisy_recording
from lab.pure_noise import Flatness
from lab.simulate import SimulationConfig, draw_config, simulate
from model.stack_io import read_stack

SHAPE = (200, 128, 128)  # of a movie that is played three times
NUM_PLAYS = 3
DRIFTING = (600, 128, 128)
FRAME_RATE = 30.0  # Hz, as most recordings have
MOVIES = (0, 3)  # seeds; in both a good many cells fire
END_FRAMES = 32
SCENE = (600, 96, 96), 211  # shape and counts of a scene in which nothing happens
TIME_PERIODS = (16, 32)  # frames from window to window, and a window's length
SPACE_PERIODS = (12, 24, 32, 64)  # pixels

MAX_CORRELATION = 0.05
MAX_BIAS_PERCENT = 0.5  # of a stack's mean
MAX_DRIFT_PERCENT = 1.0  # of the mean of a tenth, where the baseline drifts by a third
MAX_END_LOSS_DB = 0.5
MAX_BEAT = 4.0  # over the periods nearby; by chance once in a thousand
MAX_AMPLITUDE_PERCENT = 10.0  # at level 1

Denoise = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    figure: str
    limit: str
    is_kept: bool


def _below(name: str, figure: float, limit: float, unit: str = "") -> Check:
    """Held to a limit on either side of 0; nan is not below anything."""
    return Check(
        name=name, figure=f"{figure:.3g}{unit}", limit=f"{limit:g}{unit}",
        is_kept=abs(figure) <= limit,
    )  # fmt: skip


# ---- Figures ----------------------------------------------------------------------------------


def _between_phases(profile: np.ndarray, period: int) -> float:
    """Variance between the phases of a period over that within them: 1 where all phases are alike.

    The F statistic of a one-way analysis of variance.
    """
    phase = np.arange(len(profile)) % period
    counts = np.bincount(phase)
    means = np.bincount(phase, profile) / counts
    between = (counts * np.square(means - profile.mean())).sum() / (period - 1)
    within = np.square(profile - means[phase]).sum() / (len(profile) - period)
    return float(between / within)


def beat(energy: np.ndarray, period: int) -> float:
    """How much stronger a profile [N] of energies > 0 follows a period than the periods nearby."""
    profile = np.log(energy)
    ramp = np.linspace(-1, 1, len(profile))
    profile -= np.polyval(np.polyfit(ramp, profile, 2), ramp)
    near = [period + step for step in (-3, -2, -1, 1, 2, 3)]
    return _between_phases(profile, period) / float(
        np.mean([_between_phases(profile, other) for other in near])
    )


def beats(result: np.ndarray, clean: np.ndarray) -> Iterator[tuple[str, float]]:
    """How much the change of the error [T,H,W] along each axis follows the windows' periods."""
    error = result.astype(np.float64) - clean
    for axis, name, periods in (
        (0, "frames", TIME_PERIODS),
        (1, "rows", SPACE_PERIODS),
        (2, "columns", SPACE_PERIODS),
    ):
        others = tuple({0, 1, 2} - {axis})
        energy = np.square(np.diff(error, axis=axis)).mean(axis=others)
        for period in periods:
            if len(energy) >= 3 * period:
                yield f"{period} {name}", beat(energy, period)


def end_losses(clean: np.ndarray, result: np.ndarray) -> tuple[float, float]:
    """How much worse the first and last frames are than the same frames of the middle play [dB]."""
    length = len(clean) // NUM_PLAYS

    def score(start: int) -> float:
        part = slice(start, start + END_FRAMES)
        return stsnr(clean[part], result[part]).stsnr

    last = length - END_FRAMES
    return score(length) - score(0), score(length + last) - score(2 * length + last)


# ---- Checks -----------------------------------------------------------------------------------


def _at_rest(
    rng: np.random.Generator, shape: tuple[int, int, int], frame_rate: float
) -> SimulationConfig:
    """A random recording of a brain that keeps still; nothing bleaches."""
    config = draw_config(rng, shape)
    return replace(config, motion_pixels=0.0, bleached_fraction=0.0, frame_rate=frame_rate)


def movie(number: int, frame_rate: float = FRAME_RATE) -> np.ndarray:
    """A clean movie [T,H,W] that is played three times, of a brain that keeps still."""
    rng = np.random.default_rng([7, number])
    return np.concatenate([simulate(_at_rest(rng, SHAPE, frame_rate), rng).numpy()] * NUM_PLAYS)


def _movie_checks(
    number: int, level: int, denoise: Denoise, frame_rate: float = FRAME_RATE
) -> Iterator[Check]:
    clean = movie(number, frame_rate)
    noisy = noisy_recording(clean, level, seed=number)
    result = denoise(noisy).astype(np.float32)
    named = partial("movie {}, level {}: {}".format, number, level)
    white = whiteness(noisy, result)
    yield _below(named("residual with result"), white.with_result, MAX_CORRELATION)
    yield _below(named("residual with next frame"), white.with_next_frame, MAX_CORRELATION)
    yield _below(named("mean"), 100 * mean_bias(noisy, result), MAX_BIAS_PERCENT, " %")
    for where, loss in zip(("first", "last"), end_losses(clean, result), strict=True):
        figure = f"{loss:+.2f} dB"
        yield Check(
            name=named(f"{where} {END_FRAMES} frames worse by"), figure=figure,
            limit=f"{MAX_END_LOSS_DB:g} dB", is_kept=loss <= MAX_END_LOSS_DB,
        )  # fmt: skip
    for period, strength in beats(result, clean):
        yield _below(named(f"beat of {period}"), strength, MAX_BEAT)
    if level == 1:
        bias = compare_activity(clean, result).height_bias
        yield _below(named("height of all events"), 100 * bias, MAX_AMPLITUDE_PERCENT, " %")


def _drift_checks(level: int, denoise: Denoise, frame_rate: float) -> Iterator[Check]:
    """A baseline that bleaches and wanders is not noise, and must come out as it went in."""
    rng = np.random.default_rng(8)
    config = replace(
        _at_rest(rng, DRIFTING, frame_rate), bleached_fraction=0.3, bleaching_seconds=10.0
    )
    clean = simulate(replace(config, drift=0.03, drift_seconds=3.0), rng).numpy()
    result = denoise(noisy_recording(clean, level, seed=9))
    named = partial("drifting baseline, level {}: {}".format, level)
    tenth = len(clean) // 10
    for name, part in (("first", slice(tenth)), ("last", slice(-tenth, None))):
        bias = 100 * mean_bias(clean[part], result[part])
        yield _below(named(f"mean of the {name} tenth"), bias, MAX_DRIFT_PERCENT, " %")


def _scene_checks(level: int, denoise: Denoise) -> Iterator[Check]:
    """Nothing may happen, and the mean image may hold no more than its own noise."""
    shape, counts = SCENE
    noisy = noisy_recording(np.full(shape, counts, np.int16), level, seed=3)
    noise = noise_deviation(counts, level)
    flat = Flatness.of(denoise(noisy), float(counts), noise)
    named = partial("constant scene, level {}: {}".format, level)
    left = 100 * noise / counts / np.sqrt(len(noisy))
    yield _below(named("events"), flat.num_events, 0)
    yield _below(named("sd in time"), flat.temporal_percent, left, " %")
    yield _below(named("sd of the mean image"), flat.image_percent, left, " %")
    yield _below(named("mean"), flat.bias_percent, MAX_BIAS_PERCENT, " %")


def checks(
    flags: Sequence[str], folder: Path, levels: Sequence[int], frame_rate: float = FRAME_RATE
) -> Iterator[Check]:
    """Every check of what process.py makes with these flags; files go into the folder."""

    def denoise(noisy: np.ndarray) -> np.ndarray:
        source, target = folder / "noisy.tif", folder / "denoised.tif"
        write_recording(source, noisy)
        run_program(source, target, flags)
        return np.array(read_stack(target).frames)

    for level in levels:
        yield from _scene_checks(level, denoise)
        yield from _drift_checks(level, denoise, frame_rate)
        for number in MOVIES:
            yield from _movie_checks(number, level, denoise, frame_rate)
