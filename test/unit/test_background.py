"""What a recording tells of its own mean and noise."""

import numpy as np
import pytest

from model.background import blurred_mean, measure_background

GAIN, READ = 50.0, 20.0


def recorded(clean: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    return GAIN * rng.poisson(clean / GAIN) + rng.normal(0, READ, clean.shape)


@pytest.fixture(scope="module")
def two_halves() -> np.ndarray:
    """A scene [T,H,W] that is dark on its left and bright on its right."""
    clean = np.full((400, 32, 32), 200.0)
    clean[:, :, 16:] = 800.0
    return clean


@pytest.mark.parametrize("side, value", [(slice(0, 10), 200.0), (slice(22, 32), 800.0)])
def test_the_noise_is_measured_from_the_recording_itself(
    two_halves: np.ndarray, side: slice, value: float
) -> None:
    deviation = measure_background(recorded(two_halves)).deviation
    expected = np.sqrt(value * GAIN + READ**2)
    assert deviation[:, side].mean() == pytest.approx(expected, rel=0.03)


def test_what_rises_slowly_is_no_noise() -> None:
    frames = np.linspace(0, 1e4, 400)[:, None, None] + recorded(np.full((400, 16, 16), 200.0))
    background = measure_background(frames)
    assert background.deviation.mean() == pytest.approx(np.sqrt(200 * GAIN + READ**2), rel=0.03)
    np.testing.assert_allclose(background.mean, frames.mean(axis=0))


def test_the_noise_of_a_single_frame_is_told_by_its_pixels() -> None:
    rows, columns = np.mgrid[:64, :48]
    tissue = 500 + 20 * rows - 10 * columns + 100 * np.sin(rows / 6)
    frame = tissue + np.random.default_rng(0).normal(0, 30, tissue.shape)
    background = measure_background(frame[None])
    np.testing.assert_array_equal(background.mean, frame)
    np.testing.assert_allclose(background.deviation, 30, rtol=0.15)


@pytest.mark.parametrize("shape", [(1, 1, 50), (1, 50, 1), (1, 1, 1)])
def test_a_single_line_has_noise_to_divide_by_too(shape: tuple[int, int, int]) -> None:
    background = measure_background(np.random.default_rng(0).normal(500, 30, shape))
    assert (background.deviation > 0).all() and np.isfinite(background.deviation).all()


@pytest.mark.parametrize("num_frames", [2, 4, 9])
def test_of_few_frames_the_noise_is_averaged_wider(num_frames: int) -> None:
    frames = np.random.default_rng(0).normal(500, 30, (num_frames, 64, 64))
    assert measure_background(frames).deviation.std() < 30 * 0.08


def test_a_constant_stack_has_some_noise_to_divide_by() -> None:
    assert (measure_background(np.full((3, 8, 8), 7)).deviation > 0).all()


def test_the_mean_is_blurred_as_far_as_its_own_noise_is_worth_it(two_halves: np.ndarray) -> None:
    few = two_halves[:20]
    background = measure_background(recorded(few))
    blurred = blurred_mean(background, len(few), (0.0, 0.5, 1.0, 4.0))
    error = np.square(blurred - few[0]).mean()
    assert error < 0.7 * np.square(background.mean - few[0]).mean()
    # without noise there is nothing to gain
    clean = measure_background(few)
    np.testing.assert_array_equal(blurred_mean(clean, len(few), (0.0, 0.5, 1.0)), few[0])


def test_beside_an_empty_border_the_noise_is_as_strong_as_elsewhere() -> None:
    frames = np.zeros((400, 40, 40))
    frames[:, :, 10:] = np.random.default_rng(0).normal(500, 30, (400, 40, 30))
    deviation = measure_background(frames).deviation
    np.testing.assert_allclose(deviation[:, 10:], 30, rtol=0.1)
    assert (deviation[:, :4] < 0.1).all()


def test_a_dead_pixel_does_not_count_as_a_border() -> None:
    frames = np.random.default_rng(0).normal(500, 30, (400, 20, 20))
    frames[:, 7, 9] = 3.0
    np.testing.assert_allclose(measure_background(frames).deviation, 30, rtol=0.1)


@pytest.mark.parametrize("num_frames, rate", [(600, 1e-3), (100, 2e-3), (1500, 3e-4), (200, 2e-2)])
def test_still_pixels_among_rare_photons_are_quiet_ones(num_frames: int, rate: float) -> None:
    frames = np.random.default_rng(0).poisson(rate, (num_frames, 48, 48))
    deviation = measure_background(frames).deviation
    assert np.sqrt(np.square(deviation).mean()) == pytest.approx(rate**0.5, rel=0.1)


def test_a_spike_in_one_voxel_is_no_noise() -> None:
    frames = np.random.default_rng(0).normal(500, 30, (400, 40, 40))
    frames[200, 20, 20] = 65535
    np.testing.assert_allclose(measure_background(frames).deviation, 30, rtol=0.1)


@pytest.mark.parametrize("rate, gain, read", [(0.2, 1000, 5), (0.1, 300, 2), (2e-3, 1000, 5)])
def test_few_photons_are_no_spikes(rate: float, gain: float, read: float) -> None:
    rng = np.random.default_rng(0)
    frames = gain * rng.poisson(rate, (300, 48, 48)) + rng.normal(0, read, (300, 48, 48))
    deviation = measure_background(frames).deviation
    expected = np.sqrt(rate * gain**2 + read**2)
    assert np.sqrt(np.square(deviation).mean()) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("value", [0.0, 4095.0])
def test_what_is_constant_has_no_noise_up_to_its_edge(value: float) -> None:
    frames = np.random.default_rng(0).normal(500, 30, (400, 40, 40))
    frames[:, :, :10] = value
    frames[:, 20, 30] = value  # but a single dead pixel is one of the others
    has_noise = measure_background(frames).has_noise
    assert has_noise[:, 10:].all() and not has_noise[:, :10].any()


@pytest.mark.parametrize("offset", [-32768.0, -1000.0, 0.0, 1000.0, 32768.0])
def test_an_offset_is_taken_for_one(two_halves: np.ndarray, offset: float) -> None:
    background = measure_background(recorded(two_halves) + offset)
    darkest = background.mean.min() - background.dark_level
    assert abs(darkest) < 3.2 * np.median(background.deviation)
    assert (background.dark_level == 0) == (offset == 0)
