"""The laboratory's figures: that each shows what it is given, whole, and without a warning."""

import math
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from lab.figures import View, case_figure, curve_figure, most_active_moment


def image(path: Path) -> np.ndarray:
    return imagecodecs.png_decode(path.read_bytes())


def curve(num_rows: int) -> list[dict[str, float]]:
    return [
        {"step": 100.0 * i, "loss": 1 / (i + 1), "stsnr_1": 20 + i, "stsnr_2": 15, "stsnr_3": 11}
        for i in range(num_rows)
    ]


@pytest.mark.parametrize("num_rows", [0, 1])
def test_a_training_curve_of_any_length_is_drawn(num_rows: int, tmp_path: Path) -> None:
    curve_figure(curve(num_rows), tmp_path / "new" / "curve.png")
    drawn = image(tmp_path / "new" / "curve.png")
    assert drawn.shape[0] > 400
    assert [path.name for path in tmp_path.rglob("*.*")] == ["curve.png"]  # no temporary is left


def test_steps_that_were_not_validated_leave_no_hole_in_the_curve(tmp_path: Path) -> None:
    rows = curve(9)
    curve_figure(rows, tmp_path / "whole.png")
    between = [row | {"stsnr_1": math.nan} for row in rows]
    sparse = [rows[0], *between[1:-1], rows[-1]]  # stsnr_1 is a straight line
    del sparse[4]["stsnr_1"]
    curve_figure(sparse, tmp_path / "sparse.png")
    whole, found = image(tmp_path / "whole.png"), image(tmp_path / "sparse.png")
    assert (whole != found).any(axis=2).mean() < 0.003  # the markers alone are missing


def views(num_places: int) -> list[View]:
    rng = np.random.default_rng(0)
    clean = np.full((30, 24, 20), 100.0)
    clean[12:, 5:9, 5:9] += 300
    noisy = clean + rng.normal(0, 40, clean.shape)
    places = np.array([[7, 7], [15, 12], [7, 15], [18, 3], [2, 2]][:num_places], np.intp)
    places = places.reshape(-1, 2)
    return [
        View.of(name, stack, 20, places, is_traced=name != "flat")
        for name, stack in {"clean": clean, "noisy": noisy, "flat": clean * 0 + 90}.items()
    ]


def test_a_view_holds_the_frame_the_mean_and_the_traces_of_its_stack() -> None:
    stack = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    view = View.of("ramp", stack, 2, np.array([[1, 1]]), is_traced=True)
    assert np.array_equal(view.frame, stack[2])
    assert np.array_equal(view.mean, stack.mean(0))
    assert np.array_equal(view.traces, stack[:, 1, 1][None])  # a ramp's 3x3 mean is its middle


def test_the_most_active_moment_is_the_one_that_differs_most_from_the_mean() -> None:
    clean = np.zeros((9, 4, 4), np.int16)
    clean[6, 2, 2] = 300
    clean[3, 2, 2] = 100
    assert most_active_moment(clean) == 6


def test_columns_grow_with_the_results_and_rows_with_the_places(tmp_path: Path) -> None:
    for num_places, num_results in ((0, 3), (2, 4)):
        clean, noisy, flat = views(num_places)
        results = [flat] * num_results
        case_figure("a case", clean, noisy, results, tmp_path / f"{num_places}.png")
    small, large = image(tmp_path / "0.png"), image(tmp_path / "2.png")
    assert large.shape[0] > small.shape[0]
    assert large.shape[1] > small.shape[1]
    assert small[..., :3].std() > 10


def test_a_result_as_clean_as_the_truth_leaves_the_scale_alone(tmp_path: Path) -> None:
    clean, _, _ = views(1)
    case_figure("no noise at all", clean, clean, [clean], tmp_path / "case.png")
    assert (tmp_path / "case.png").stat().st_size > 1000
