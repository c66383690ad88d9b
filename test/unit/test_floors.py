"""The floors of every table: what they are, and that a long recording fits the memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lab.floors import FLOORS, gaussian, temporal_mean, unprocessed

NOISY = np.random.default_rng(0).integers(-200, 3000, (20, 9, 11)).astype(np.int16)


def test_the_tables_show_four_floors() -> None:
    assert list(FLOORS) == ["noisy", "temporal mean", "Gaussian 3,1,1", "Gaussian 6,1.5,1.5"]


@pytest.mark.parametrize("name", FLOORS)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32, np.float64, ">i2"])
def test_every_floor_is_float32_of_the_same_shape(name: str, dtype: str) -> None:
    noisy = np.abs(NOISY).astype(dtype)
    floor = FLOORS[name](noisy)
    assert floor.dtype == np.float32
    assert floor.shape == noisy.shape
    assert floor.mean() == pytest.approx(noisy.mean(), rel=0.05)


def test_the_noisy_floor_is_the_recording_itself() -> None:
    assert np.array_equal(unprocessed(NOISY), NOISY)


def test_the_temporal_mean_is_the_same_in_every_frame() -> None:
    mean = temporal_mean(np.array([[[1, 30000]], [[4, 30000]]], np.int16))
    assert np.array_equal(mean, [[[2.5, 30000.0]], [[2.5, 30000.0]]])


def test_a_voxel_is_spread_as_the_product_of_three_gaussians() -> None:
    spot = np.zeros((61, 31, 31), np.uint16)
    spot[30, 15, 15] = 60000
    blurred = gaussian(spot, (6, 1.5, 1.5))
    # in time, rows and columns 6, 3 and 0 from the centre: 1, 2 and 0 deviations
    expected = np.exp(-0.5 - 2.0) * blurred[30, 15, 15]
    assert blurred[36, 18, 15] == pytest.approx(expected, rel=1e-4)
    assert blurred.sum() == pytest.approx(60000, rel=1e-4)


def test_the_ends_are_mirrored_so_a_still_scene_stays_as_it_is() -> None:
    still = np.full((5, 8, 8), 300, np.int16)
    for name, floor in FLOORS.items():
        assert floor(still) == pytest.approx(300.0, rel=1e-6), name


@pytest.mark.parametrize("name", FLOORS)
def test_a_floor_of_a_memory_map_holds_little_more_than_its_result(
    name: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "noisy.npy", np.tile(NOISY, (20, 6, 6)))
    noisy = np.load(tmp_path / "noisy.npy", mmap_mode="r")
    result_bytes = noisy.size * 4
    tracemalloc.start()
    FLOORS[name](noisy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < result_bytes + 0.1 * result_bytes
