"""How well heights of events can be known: against estimates of one who is told all but them."""

import math
from pathlib import Path

import numpy as np
import pytest

from lab import heights
from lab.noise import LEVELS, add_noise

EVENT, LENGTH = 100, 300


def one_event(amplitude: float = 150.0) -> np.ndarray:
    """A movie [T,H,W] of one cell of 5x5 pixels that fires once."""
    since = np.arange(LENGTH) - EVENT
    movie = np.full((LENGTH, 75, 75), 200.0)
    course = amplitude * np.exp(-since / 12.0) * (since >= 0)
    movie[:, 64:69, 66:71] += course[:, None, None]
    return movie


@pytest.mark.parametrize("level", LEVELS)
def test_no_estimate_of_one_who_is_told_all_but_the_height_errs_less(level: int) -> None:
    movie = one_event()
    (strength,) = heights.event_strengths(movie, level)
    gain, read_deviation = LEVELS[level]
    part = movie[EVENT - 1 : EVENT + 31, 64:69, 66:71]  # the rest does not change
    shape = part - part[0]
    weight = shape / (part * gain + read_deviation**2)
    rng = np.random.default_rng(level)
    factors = [
        (weight * (add_noise(part, gain, read_deviation, rng) - part[0])).sum()
        / (weight * shape).sum()
        for _ in range(3000)
    ]
    error = np.abs(np.array(factors) - 1).mean()
    assert heights.least_amplitude_error(np.array([strength])) == pytest.approx(error, rel=0.05)


def test_a_movie_without_events_has_no_error() -> None:
    nothing = heights.event_strengths(np.full((60, 20, 20), 200.0), 1)
    assert len(nothing) == 0
    assert math.isnan(heights.least_amplitude_error(nothing))


def test_it_prints_the_events_of_the_corner_that_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie = one_event().astype(np.int16)
    path = tmp_path / "movie.npz"
    np.savez(path, frame_difference=np.diff(movie, axis=0, prepend=np.zeros_like(movie[:1])))
    heights.main([str(path)])
    _, _, row = capsys.readouterr().out.splitlines()
    name, count, *errors = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, count) == ("movie", "1")
    percent = [float(error.rstrip("%")) for error in errors]
    assert percent == sorted(percent)
    assert 0 < percent[0] < percent[-1]
