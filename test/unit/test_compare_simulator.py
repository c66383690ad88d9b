"""Movies whose spectra are known, and what the table and the picture say of them."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lab.compare_simulator import (
    FRAME_BANDS,
    PIXEL_BANDS,
    curve_figure,
    curves,
    spectrum,
    statistics,
    table,
)

SHAPE = (300, 48, 56)
FRAMES, ROWS, COLUMNS = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij", sparse=True)


def movie(contrast: np.ndarray) -> np.ndarray:
    """Counts [T,H,W] around 200."""
    return (200 * (1 + 0.2 * np.broadcast_to(contrast, SHAPE))).astype(np.float32)


def noise(seed: int = 0) -> np.ndarray:
    return movie(np.random.default_rng(seed).standard_normal(SHAPE))


def shares(clean: np.ndarray, name: str, unit: str) -> list[float]:
    """Of the bands of a spectrum, from low to high."""
    numbers = statistics(clean)
    return [v for k, v in numbers.items() if k.startswith(f"{name}, power") and k.endswith(unit)]


@pytest.mark.parametrize(("frequency", "band"), [(0.004, 0), (0.03, 1), (0.083, 1), (0.31, 2)])
def test_a_sine_in_time_has_its_variance_in_its_band(frequency: float, band: int) -> None:
    bands = shares(
        movie(np.sin(2 * np.pi * frequency * FRAMES + 0.1 * ROWS)), "activity", "cycles/frame"
    )
    assert len(bands) == 3
    assert bands[band] > 0.95
    assert sum(bands) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("down", "right", "band"),
    [(0.0, 0.01, 0), (0.06, 0.0, 1), (0.05, 0.05, 1), (0.1, 0.1, 2), (0.2, 0.2, 3), (0.5, 0.5, 3)],
)
def test_a_grating_has_its_variance_in_its_band(down: float, right: float, band: int) -> None:
    grating = np.cos(2 * np.pi * (down * ROWS + right * COLUMNS))
    still = shares(movie(grating - grating.mean()), "mean image", "cycles/px")
    active = shares(movie(grating * np.sin(FRAMES)), "activity", "cycles/px")
    for bands in (still, active):
        assert len(bands) == 4
        assert bands[band] > 0.9
        assert sum(bands) == pytest.approx(1.0)


def test_white_noise_spreads_over_time_by_the_width_of_the_bands() -> None:
    widths = np.diff(FRAME_BANDS) / 0.5
    assert shares(noise(), "activity", "cycles/frame") == pytest.approx(widths, abs=0.01)


@pytest.mark.parametrize("name", ["mean image", "activity"])
def test_white_noise_spreads_over_space_by_the_area_of_the_bands(name: str) -> None:
    disc, ring, wide, corners = shares(noise(), name, "cycles/px")
    areas = [math.pi * (high**2 - low**2) for low, high in pairwise(PIXEL_BANDS[:-1])]
    assert [disc, ring, wide] == pytest.approx(areas, abs=0.05 if name == "mean image" else 0.01)
    assert corners == pytest.approx(1 - sum(areas), abs=0.05)


@pytest.mark.parametrize("num_frames", [64, 65])
def test_every_frequency_weighs_what_it_weighs_in_the_whole_transform(num_frames: int) -> None:
    fields = noise()[:num_frames] - 200
    frequency, share = spectrum(fields, (0,))
    taper = np.sin(np.pi * np.arange(num_frames) / num_frames) ** 2
    power = np.square(np.abs(np.fft.fft(fields * taper[:, None, None], axis=0))).sum((1, 2))
    whole = np.abs(np.fft.fftfreq(num_frames))
    for at, portion in zip(frequency, share, strict=True):
        expected = power[np.isclose(whole, at)].sum() / power.sum()
        assert portion == pytest.approx(expected, rel=1e-4)


def test_a_slow_drift_does_not_look_fast() -> None:
    assert shares(movie(FRAMES / 300 - 0.5), "activity", "cycles/frame")[2] < 1e-4


def test_no_statistic_depends_on_the_scale() -> None:
    scaled = statistics(3 * noise())
    assert scaled == pytest.approx(statistics(noise()), rel=1e-3, abs=1e-4)


def test_a_movie_without_contrast_has_a_finite_spectrum() -> None:
    assert np.isfinite(list(statistics(movie(np.zeros(1))).values())).all()


def test_the_table_marks_each_movie_that_lies_outside_and_counts_the_rest() -> None:
    drawn = [{"within": x, "edge": x, "beyond": x, "below": x} for x in (1.0, 2.0, 3.0)]
    given = {
        "one": {"within": 1.5, "edge": 1.0, "beyond": 2.0, "below": 0.9},
        "two": {"within": 2.5, "edge": 3.0, "beyond": 3.1, "below": 0.8},
    }
    _, *rows, last = table(given, drawn).splitlines()
    assert [row.split()[-2:] for row in rows] == [
        ["yes", "yes"],
        ["yes", "yes"],
        ["yes", "NO"],
        ["NO", "NO"],
    ]
    assert last == "2 of 4 statistics inside the drawn ranges"


def test_the_table_names_every_statistic_the_comparison_is_about() -> None:
    text = table({"noise": statistics(noise())}, [statistics(noise(1))])
    for wanted in (
        "value / mean q50",
        "temporal sd / mean q50",
        "activity, correlation at 1 px",
        "activity, correlation at 1 frames",
        "activity, power at 0.01-0.1 cycles/frame",
        "mean image, power at 0.03-0.1 cycles/px",
    ):
        assert wanted in text


def test_curves_agree_with_the_table() -> None:
    sine = movie(np.sin(2 * np.pi * 0.05 * FRAMES) * np.cos(0.4 * ROWS))
    numbers, drawn = statistics(sine), curves(sine)
    lags, correlation = drawn["activity, correlation over px"]
    assert correlation[0] == pytest.approx(1.0)
    at_4 = numbers["activity, correlation at 4 px"]
    assert correlation[list(lags).index(4)] == pytest.approx(at_4)
    frequency, power = drawn["activity, power over cycles/frame"]
    assert frequency[power.argmax()] == pytest.approx(0.05)
    _, portion = drawn["value / mean, share of voxels"]
    assert portion.sum() == pytest.approx(1.0)


def test_the_picture_of_the_curves_has_draws_in_grey_and_given_movies_in_colour(
    tmp_path: Path,
) -> None:
    picture = curve_figure({"given": curves(noise())}, [curves(noise(1)), curves(noise(2))])
    assert len(picture.axes) == 8
    for panel in picture.axes:
        first, second, given = panel.get_lines()
        assert first.get_color() == second.get_color() == "0.5"
        assert given.get_label() == "given"
    picture.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
