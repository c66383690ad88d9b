"""Courses that the whole field has in common: what is found, and what is made of it."""

import numpy as np

from model.background import measure_background
from model.config import LowRankConfig
from model.wide_courses import CLEARLY, WideCourses, measure_wide_courses, sums_over_cells

CONFIG = LowRankConfig()


def recording(num_frames: int = 300, side: int = 96, wide: float = 0.0) -> np.ndarray:
    """A field in noise of one deviation, whose brightness flickers by that many: [T,H,W]."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(num_frames, side, side))
    return 100.0 + noise + wide * flicker(num_frames)[:, None, None]


def flicker(num_frames: int = 300) -> np.ndarray:
    course = np.convolve(np.random.default_rng(1).normal(size=num_frames), np.ones(8), "same")
    return (course - course.mean()) / course.std()


def measured(frames: np.ndarray) -> WideCourses:
    return measure_wide_courses(frames, measure_background(frames), CONFIG, seed=0)


def test_cells_have_the_noise_of_a_pixel() -> None:
    frames = recording(side=60)
    cells = sums_over_cells(frames, measure_background(frames))
    assert cells.shape == (300, 7, 7)  # what fills no cell is left out
    assert abs(cells.std() - 1) < 0.02


def test_large_fields_have_as_many_cells_as_fit() -> None:
    frames = np.random.default_rng(0).normal(size=(2, 1100, 600))
    cells = sums_over_cells(frames, measure_background(frames))
    assert cells.shape == (2, 84, 46)


def test_in_noise_alone_nothing_is_wide() -> None:
    wide = measured(recording())
    assert wide.basis.shape == (300, 0)
    courses = np.random.default_rng(2).normal(size=(300, 4))
    assert not wide.within(courses).any()


def test_a_small_field_has_no_wide_courses() -> None:
    assert measured(recording(side=80, wide=1.0)).basis.shape == (300, 0)


def test_what_is_active_in_a_few_places_is_not_wide() -> None:
    frames = recording()
    frames[:, 8:32, 40:64] += 3 * flicker()[:, None, None]
    assert measured(frames).basis.shape == (300, 0)
    frames += 0.3 * np.roll(flicker(), 100)[:, None, None]
    (course,) = measured(frames).basis.T
    assert abs(np.corrcoef(course, np.roll(flicker(), 100))[0, 1]) > 0.85


def test_what_flickers_everywhere_is_known_better_than_a_block_knows_it() -> None:
    wide = measured(recording(wide=0.2))
    assert wide.basis.shape == (300, 1)
    np.testing.assert_allclose(wide.basis.T @ wide.basis, 1, rtol=1e-5)
    np.testing.assert_allclose(wide.basis.mean(), 0, atol=1e-4)
    block = recording(wide=0.2)[:, :16, :16]
    course = (block - block.mean(0)).sum((1, 2)) / 16  # along a footprint that is the same all over
    truth = 0.2 * 16 * flicker()
    known = wide.within(course[:, None])[:, 0]
    assert np.square(known - truth).mean() < 0.15 * np.square(course - truth).mean()


def test_a_course_that_has_nothing_wide_has_nothing_known() -> None:
    wide = measured(recording(wide=0.2))
    rng = np.random.default_rng(3)
    other = rng.normal(size=(300, 1))
    other -= wide.basis @ (wide.basis.T @ other)
    assert not wide.within(other + 0.9 * CLEARLY * wide.basis).any()
    assert wide.within(other + 1.1 * CLEARLY * wide.basis).any()


def test_it_is_the_same_for_the_same_seed() -> None:
    frames = recording(wide=0.2)
    np.testing.assert_array_equal(measured(frames).basis, measured(frames).basis)
