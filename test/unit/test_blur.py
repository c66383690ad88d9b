import numpy as np
import pytest
from scipy import ndimage

from model.blur import (
    TRUNCATE,
    blur_in_space,
    blur_in_time,
    noise_left,
    positions_apart,
    smooth_in_space,
    smooth_in_time,
)

BLOCK = np.random.default_rng(0).standard_normal((70, 9, 6)).astype(np.float32)


def filtered(block: np.ndarray, *sigmas: float) -> np.ndarray:
    """By scipy, in float64."""
    return ndimage.gaussian_filter(block.astype(np.float64), sigmas, truncate=TRUNCATE)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 4.0, 7.94, 40.0])
@pytest.mark.parametrize("num_frames", [1, 2, 16, 17, 70])
def test_blur_in_time_is_scipys_filter_of_the_frames_that_are_kept(
    num_frames: int, sigma: float
) -> None:
    block = BLOCK[:num_frames]
    for every in (1, 3, 8):
        blurred = blur_in_time(block, sigma, every)
        assert blurred.dtype == np.float32
        np.testing.assert_allclose(blurred, filtered(block, sigma, 0, 0)[::every], atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.4, 4.0])
def test_smooth_in_space_is_scipys_filter_of_every_frame(sigma: float) -> None:
    smooth = smooth_in_space(BLOCK, sigma)
    assert smooth.dtype == np.float32
    np.testing.assert_allclose(smooth, filtered(BLOCK, 0, sigma, sigma), atol=1e-6)


def test_blur_in_space_keeps_some_rows_and_columns() -> None:
    np.testing.assert_allclose(
        blur_in_space(BLOCK, 2.0, 2), smooth_in_space(BLOCK, 2.0)[:, ::2, ::2], atol=1e-6
    )


@pytest.mark.parametrize(("length", "sigma", "every"), [(70, 3.0, 3), (9, 2.0, 1), (2, 4.0, 1)])
def test_noise_left_is_what_a_blur_leaves_of_white_noise(
    length: int, sigma: float, every: int
) -> None:
    one_each = np.eye(length, dtype=np.float32)[:, None]  # what every value becomes: [T,1,length]
    variance = np.square(blur_in_time(one_each, sigma, every)).sum((1, 2))
    np.testing.assert_allclose(np.square(noise_left(length, sigma, every)), variance, rtol=1e-5)


@pytest.mark.parametrize(("sigma", "apart"), [(0.0, 1), (0.5, 1), (2.9, 2), (32.0, 32)])
def test_frames_are_kept_as_far_apart_as_the_blur_allows(sigma: float, apart: int) -> None:
    assert positions_apart(sigma) == apart
    assert len(smooth_in_time(BLOCK, sigma)) == -(-len(BLOCK) // apart)


def test_a_part_of_a_block_is_blurred_as_if_it_lay_by_itself() -> None:
    part = BLOCK[:, 2:7, 1:5]
    for smooth in (smooth_in_time, smooth_in_space):
        np.testing.assert_allclose(smooth(part, 2.0), smooth(part.copy(), 2.0), atol=1e-6)
