"""What is told of what was taken out of a recording."""

import numpy as np
import pytest

from model.residual import SIGNAL, Residual, ResidualFigures

NOISE = 40.0
SHAPE = (300, 40, 48)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    scene = np.random.default_rng(0).uniform(100, 500, SHAPE[1:])
    return np.broadcast_to(scene, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(1).normal(0, NOISE, SHAPE)


def figures_of(frames: np.ndarray, denoised: np.ndarray, block: int = 50) -> ResidualFigures:
    residual = Residual(frames)
    for start in range(0, len(frames), block):
        residual.look(denoised[start : start + block])
    figures = residual.figures()
    assert figures
    return figures


def test_noise_alone_is_as_it_should_be(clean: np.ndarray, noise: np.ndarray) -> None:
    figures = figures_of(clean + noise, clean)
    assert figures.over_noise == pytest.approx(1, abs=0.005)
    assert figures.like_last_frame == pytest.approx(0, abs=0.005)
    assert figures.like_next_pixel == pytest.approx(0, abs=0.01)
    assert figures.mean == pytest.approx(0, abs=0.1)
    assert figures.places_with_signal == 0
    assert figures.doubts() == []


def test_a_cell_that_was_taken_out_is_found_where_it_was(
    clean: np.ndarray, noise: np.ndarray, lost: np.ndarray
) -> None:
    """In 2 of 30 places of 8x8 pixels."""
    figures = figures_of(clean + noise + lost, clean)
    assert figures.places_with_signal == pytest.approx(2 / 30)
    (doubt,) = figures.doubts()
    assert "in 6.7% of the field" in doubt
    assert figures_of(clean + noise + lost, clean + lost).doubts() == []


@pytest.fixture(scope="module")
def lost() -> np.ndarray:
    """A cell's activity, half a voxel's noise high."""
    activity = np.zeros(SHAPE)
    for start in (20, 150):
        course = 0.5 * NOISE * np.exp(-np.arange(60) / 15)
        activity[start : start + 60, 8:24, 16:24] = course[:, None, None]
    return activity


def test_a_flash_does_not_hide_what_was_lost(
    clean: np.ndarray, noise: np.ndarray, lost: np.ndarray
) -> None:
    frames = clean + noise + lost
    frames[50] = 65535
    frames[200] += 5 * NOISE
    assert figures_of(frames, clean).places_with_signal == pytest.approx(2 / 30)


def test_nor_does_a_result_that_is_darker(
    clean: np.ndarray, noise: np.ndarray, lost: np.ndarray
) -> None:
    figures = figures_of(clean + noise + lost, clean - NOISE / 2)
    assert figures.places_with_signal == pytest.approx(2 / 30)


def test_no_part_of_the_field_is_left_out(clean: np.ndarray, noise: np.ndarray) -> None:
    """47x43 pixels: a cell in the last corner."""
    rng = np.random.default_rng(2)
    frames = rng.normal(300, NOISE, (300, 47, 43))
    frames[100:160, 40:, 36:] += 0.5 * NOISE
    assert figures_of(frames, np.full(frames.shape, 300, np.float32)).places_with_signal
    residual = Residual(frames)
    residual.look(np.full(frames.shape, 300, np.float32))
    signal = residual.signal()
    assert signal is not None
    assert signal.shape == (47, 43)
    assert np.unravel_index(signal.argmax(), signal.shape) >= (36, 32)


def test_a_correlation_that_is_sure_but_small_is_no_loss() -> None:
    rng = np.random.default_rng(3)
    frames = rng.normal(0, NOISE, (40000, 8, 8)).astype(np.float32)
    frames[1:] += 0.15 * frames[:-1]
    residual = Residual(frames)
    residual.look(np.zeros_like(frames))
    signal, figures = residual.signal(), residual.figures()
    assert signal is not None and figures is not None
    assert signal.min() > SIGNAL
    assert figures.places_with_signal == 0


def test_32_bits_are_told_of_as_exactly_as_16(noise: np.ndarray) -> None:
    near = figures_of(noise + 1e3, np.full(SHAPE, 1e3))
    far = figures_of((noise + 1e3).round().astype(np.uint32) + 10**9, np.full(SHAPE, 1e9 + 1e3))
    assert far.over_noise == pytest.approx(near.over_noise, rel=1e-3)


def test_numbers_beyond_all_measure_are_not_told(noise: np.ndarray) -> None:
    residual = Residual(noise * 1e30)
    residual.look(np.zeros(SHAPE))
    assert residual.figures() is None


def test_detail_that_was_taken_out_is_stronger_than_noise(
    clean: np.ndarray, noise: np.ndarray
) -> None:
    flat = np.full(SHAPE, 300, np.float32)
    figures = figures_of(clean + noise, flat)
    expected = np.sqrt(NOISE**2 + np.square(clean - 300).mean()) / NOISE
    assert figures.over_noise == pytest.approx(expected, rel=0.01)
    assert figures.like_last_frame > 0.5
    assert "times as strong as the noise" in figures.doubts()[0]


def test_noise_that_was_left_shows(clean: np.ndarray, noise: np.ndarray) -> None:
    assert figures_of(clean + noise, clean + noise / 2).over_noise == pytest.approx(0.5, abs=0.01)
    untouched = figures_of(clean + noise, (clean + noise).astype(np.float32))
    assert untouched.over_noise < 1e-3


def test_a_result_that_is_darker_shows(clean: np.ndarray, noise: np.ndarray) -> None:
    assert figures_of(clean + noise, clean - 7).mean == pytest.approx(7, abs=0.1)


def test_noise_that_neighbours_share_is_no_signal(clean: np.ndarray, noise: np.ndarray) -> None:
    shared = (noise + np.roll(noise, 1, axis=2)) / np.sqrt(2)
    figures = figures_of(clean + shared, clean)
    assert figures.like_next_pixel == pytest.approx(0, abs=0.01)
    assert figures.doubts() == []


def test_flashes_and_repeated_frames_change_little(clean: np.ndarray, noise: np.ndarray) -> None:
    frames, denoised = clean + noise, clean.copy()
    frames[50] = 65535
    frames[150:250:2] = frames[151:250:2]
    denoised[150:250:2] = denoised[151:250:2]
    figures = figures_of(frames, denoised)
    assert figures.over_noise == pytest.approx(1, abs=0.01)
    assert figures.doubts() == []


def test_the_size_of_blocks_changes_nothing(clean: np.ndarray, noise: np.ndarray) -> None:
    assert figures_of(clean + noise, clean, 1) == figures_of(clean + noise, clean, 300)


def test_a_short_recording_tells_of_no_places(clean: np.ndarray, noise: np.ndarray) -> None:
    figures = figures_of((clean + noise)[:20], clean[:20])
    assert figures.places_with_signal is None
    assert figures.over_noise == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("shape", [(1, 40, 48), (30, 40, 48)])
def test_where_there_is_no_noise_nothing_is_told(shape: tuple[int, int, int]) -> None:
    frames = np.full(shape, 7, np.uint16)
    residual = Residual(frames)
    residual.look(frames.astype(np.float32))
    assert residual.figures() is None


@pytest.mark.parametrize("shape", [(80, 1, 1), (80, 5, 70), (80, 300, 2)])
def test_a_field_of_any_shape_is_told_of(shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(0).poisson(50, shape).astype(np.uint8)
    figures = figures_of(frames, np.full(shape, 50, np.float32))
    assert figures.over_noise == pytest.approx(1, rel=0.2)
