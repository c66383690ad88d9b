from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from model.normalise import IntensityScale, _sample, fit_scale, temporal_median

DTYPES = ["u1", "<u2", ">u2", "<i2", ">i2", "<i4", ">i4", "<u4", "<f4", ">f4", "<f8", ">f8"]


def random_stack(dtype: str, shape: tuple[int, int, int] = (7, 11, 13)) -> np.ndarray:
    rng = np.random.default_rng(0)
    low = 0 if np.dtype(dtype).kind == "u" else -100
    return rng.integers(low, 200, shape).astype(dtype)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.5, 99.5, (4.995, 994.005)), (3, 97, (29.97, 969.03)), (0, 100, (0, 999))],
)
@pytest.mark.parametrize("dtype", ["<i2", "<i4", "<f8"])
def test_percentiles_of_0_to_999_are_the_published_ones(
    dtype: str, low: float, high: float, expected: tuple[float, float]
) -> None:
    frames = np.arange(1000).reshape(10, 10, 10).astype(dtype)
    scale = fit_scale(frames, low, high)
    assert (scale.low, scale.high) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_percentiles_equal_those_of_numpy_for_every_dtype(dtype: str) -> None:
    frames = random_stack(dtype)
    scale = fit_scale(frames)
    expected = np.percentile(frames.astype(np.float64), [0.5, 99.5])
    assert [scale.low, scale.high] == pytest.approx(expected, abs=1e-4 if "f4" in dtype else 1e-9)


@pytest.mark.parametrize("dtype", ["<u2", "<i2"])
def test_percentiles_reach_both_ends_of_16_bits(dtype: str) -> None:
    limits = np.iinfo(dtype)
    frames = np.array([limits.min, limits.max], dtype).reshape(2, 1, 1)
    scale = fit_scale(frames, 0, 100)
    assert (scale.low, scale.high) == (limits.min, limits.max)


def test_the_histogram_is_summed_over_blocks() -> None:
    # Above one block of 2**20 voxels, with the rare high values in the last one.
    frames = np.zeros((17, 256, 256), np.int16)
    frames[-1] = -5
    frames[-1, 0] = 900
    scale = fit_scale(frames, 1, 99.99)
    assert [scale.low, scale.high] == pytest.approx(np.percentile(frames, [1, 99.99]), abs=1e-9)


def test_a_read_only_memory_map_can_be_fitted(tmp_path: Path) -> None:
    path = tmp_path / "stack.raw"
    expected = random_stack(">i2")
    expected.tofile(path)
    frames = np.memmap(path, dtype=">i2", mode="r", shape=expected.shape)
    assert fit_scale(frames) == fit_scale(expected)
    assert np.array_equal(temporal_median(frames), np.median(expected, axis=0))
    assert type(fit_scale(frames).apply(frames)) is np.ndarray


@pytest.mark.parametrize("dtype", ["<i2", "<f4"])
def test_views_with_other_strides_can_be_fitted(dtype: str) -> None:
    frames = random_stack(dtype).transpose(0, 2, 1)[:, ::2, ::-1]
    expected = frames.copy()
    assert fit_scale(frames) == fit_scale(expected)
    assert np.array_equal(temporal_median(frames), temporal_median(expected))


def test_fitting_leaves_the_stack_as_it_is() -> None:
    frames = random_stack("<f4")
    before = frames.copy()
    fit_scale(frames)
    temporal_median(frames)
    assert np.array_equal(frames, before)


@pytest.mark.parametrize("step", [2, 3, 7])
def test_the_sample_takes_every_pixel_once_in_as_many_frames_as_its_step(step: int) -> None:
    pixels = np.arange(6 * 12).reshape(1, 6, 12)
    sample = _sample(np.broadcast_to(pixels, (step, 6, 12)), step)
    assert np.sort(sample).tolist() == list(range(6 * 12))


@pytest.mark.parametrize("axis", [1, 2])
def test_the_sample_of_a_single_frame_has_its_share_of_every_row_and_column(axis: int) -> None:
    # 12 is a multiple of the step: a plain stride would take every third column whole.
    position = np.indices((1, 12, 12))[axis]
    assert np.bincount(_sample(position, 3)).tolist() == [4] * 12


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_sample_of_a_large_stack_sees_every_stripe(axis: int) -> None:
    # 6.9e7 voxels, so every third is taken, and all three sides are multiples of three: a plain
    # stride would see columns of one brightness only. A broadcast stripe takes no memory.
    shape = (300, 480, 480)
    stripes = (np.arange(shape[axis]) % 3).astype(np.float32)
    stripes[-1] = 3
    stripes = stripes.reshape([-1 if i == axis else 1 for i in range(3)])
    frames = np.broadcast_to(stripes, shape)
    for percent in (10, 50, 90):
        assert fit_scale(frames, percent, 100) == IntensityScale(
            offset=float(np.percentile(stripes, percent)),
            gain=3 - float(np.percentile(stripes, percent)),
        )


def test_the_sample_of_a_large_stack_comes_close_to_all_of_it() -> None:
    # One period of noise seen 60 times through a view without memory of its own.
    noise = np.random.default_rng(0).normal(100, 20, (1, 1000, 1000)).astype(np.float32)
    scale = fit_scale(np.broadcast_to(noise, (60, 1000, 1000)))
    expected = np.percentile(noise, [0.5, 99.5])
    assert [scale.low, scale.high] == pytest.approx(expected, abs=0.01)


def test_the_percentiles_become_zero_and_one() -> None:
    scale = IntensityScale(offset=-50.0, gain=200.0)
    normalised = scale.apply(np.array([-50, 50, 150], np.int16))
    assert normalised.dtype == np.float32
    assert normalised.tolist() == [0, 0.5, 1]


def test_values_beyond_the_percentiles_are_not_clipped() -> None:
    scale = IntensityScale(offset=0.0, gain=10.0)
    assert scale.apply(np.array([-20, 300], np.int16)).tolist() == [-2, 30]
    assert scale.invert(np.array([-2, 30], np.float32)).tolist() == [-20, 300]


@pytest.mark.parametrize("value", [0, 1000, -30000])
def test_a_stack_of_one_value_is_constant(value: int) -> None:
    assert fit_scale(np.full((3, 4, 5), value, np.int16)).is_constant


@pytest.mark.parametrize("dtype", ["<u2", "<f4"])
def test_sparse_photon_counts_are_scaled_by_their_range_and_not_taken_for_constant(
    dtype: str,
) -> None:
    frames = np.zeros((10, 20, 20), dtype)
    frames[3, 4, 5] = 7  # far fewer than one voxel in 200
    scale = fit_scale(frames)
    assert (scale.low, scale.high) == (0, 7)
    assert not scale.is_constant


def test_contrast_below_a_millionth_of_the_brightness_counts_as_constant() -> None:
    assert IntensityScale(offset=1e6, gain=1.0).is_constant
    assert not IntensityScale(offset=1e6, gain=1.1).is_constant
    assert IntensityScale(offset=0.0, gain=0.0).is_constant
    assert not IntensityScale(offset=0.0, gain=1e-12).is_constant  # whatever the unit


def test_a_scale_cannot_be_changed() -> None:
    scale = IntensityScale(offset=0.0, gain=1.0)
    with pytest.raises(FrozenInstanceError):
        scale.gain = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_temporal_median_equals_that_of_numpy(dtype: str, num_frames: int) -> None:
    frames = random_stack(dtype, (num_frames, 5, 6))
    median = temporal_median(frames)
    assert median.dtype == np.float32
    assert np.array_equal(median, np.median(frames.astype(np.float64), axis=0))


def test_the_mean_of_the_middle_two_does_not_overflow() -> None:
    frames = np.array([32766, 32767], np.int16).reshape(2, 1, 1)
    assert temporal_median(frames).item() == 32766.5


@pytest.mark.parametrize("max_block_bytes", [1, 7 * 13 * 2, 3 * 7 * 13 * 2 + 1, 1 << 20])
def test_the_temporal_median_does_not_depend_on_the_block_size(max_block_bytes: int) -> None:
    frames = random_stack("<i2")
    assert np.array_equal(temporal_median(frames, max_block_bytes), np.median(frames, axis=0))
