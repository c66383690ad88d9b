"""What a recording's owner is told of it."""

import numpy as np
import pytest
from scipy import ndimage

from model.doubts import doubts_about_time, doubts_about_units

NUM_FRAMES = 200


def blocks(noise: np.ndarray, strength: float = 1.0, decay: float = 12.0) -> list[np.ndarray]:
    """Noise [T,h,w] of a variance of 1, with a cell in it; and the same without."""
    rng = np.random.default_rng(1)
    spikes = rng.random(NUM_FRAMES) < 0.05
    course = np.convolve(spikes, np.exp(-np.arange(60) / decay))[:NUM_FRAMES]
    noise = noise / np.diff(noise, axis=0).std() * np.sqrt(2)
    cell = np.outer(np.hanning(16), np.hanning(16))
    return [noise + strength * course[:, None, None] * cell, noise]


def white() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NUM_FRAMES, 16, 16))


@pytest.mark.parametrize("strength", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("decay", [2.0, 12.0])
def test_there_is_none_about_noise_and_activity(strength: float, decay: float) -> None:
    assert doubts_about_time(blocks(white(), strength, decay)) == []


@pytest.mark.parametrize("strength", [0.0, 3.0])
@pytest.mark.parametrize("frames", [2, 3, 4])
def test_noise_that_lasts_is_noticed(frames: int, strength: float) -> None:
    averaged = ndimage.uniform_filter1d(white(), frames, axis=0)
    (doubt,) = doubts_about_time(blocks(averaged, strength))
    assert "have noise in common" in doubt


@pytest.mark.parametrize("planes", [2, 3, 5])
def test_planes_that_take_turns_are_noticed(planes: int) -> None:
    images = np.random.default_rng(2).normal(size=(planes, 16, 16))
    frames = white() + images[np.arange(NUM_FRAMES) % planes]
    (doubt,) = doubts_about_time([frames])
    assert f"those {planes} further on" in doubt


def test_of_few_frames_nothing_is_said() -> None:
    assert doubts_about_time([ndimage.uniform_filter1d(white()[:40], 4, axis=0)]) == []


@pytest.mark.parametrize(
    ("deviation", "dtype", "is_told"),
    [(0.4, "uint8", True), (0.4, "float32", False), (1.5, "int16", False)],
)
def test_units_that_are_too_coarse_are_noticed(deviation: float, dtype: str, is_told: bool) -> None:
    assert bool(doubts_about_units(deviation, np.dtype(dtype))) == is_told
