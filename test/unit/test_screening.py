"""Frames that show no tissue, or light that is not its own, and frames that are there twice."""

from collections.abc import Iterator

import numpy as np
import pytest

from model import screening
from model.screening import MIN_FRAMES, Screening, screen

NUM_FRAMES = 120
EVENT = 60  # begins there


def recorded(decay: float = 12.0) -> np.ndarray:
    """A recording [T,H,W] of one large cell that is active once and decays in so many frames."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :36]
    cell = np.exp(-(np.square(rows - 20) + np.square(columns - 18)) / 200)
    course = np.where(np.arange(NUM_FRAMES) < EVENT, 0, np.exp(-np.arange(-EVENT, 60) / decay))
    clean = 100 + 60 * np.sin(rows / 5) + 2000 * course[:, None, None] * cell
    return clean + rng.normal(0, 20, clean.shape)


def apart(frames: np.ndarray) -> list[int]:
    return np.flatnonzero(screen(frames).source < 0).tolist()


@pytest.mark.parametrize("decay", [0.5, 1.0, 3.0, 12.0])
def test_activity_is_none_however_fast_and_strong(decay: float) -> None:
    assert apart(recorded(decay)) == []


def test_bleaching_is_none() -> None:
    fading = np.exp(-np.arange(NUM_FRAMES) / 90)[:, None, None]
    assert apart(100 * recorded() * fading) == []


def test_a_step_of_the_laser_is_none() -> None:
    frames = recorded()
    frames[30:] *= 2
    assert apart(frames) == []


def test_noise_alone_is_none() -> None:
    assert apart(np.random.default_rng(0).normal(0, 1, (1500, 16, 16))) == []


@pytest.mark.parametrize("num_frames", [EVENT + 1, EVENT + 2, EVENT + 3])
def test_activity_with_which_a_recording_ends_is_none(num_frames: int) -> None:
    assert apart(recorded()[:num_frames]) == []


def test_a_moment_out_of_focus_is_none() -> None:
    frames = recorded()
    frames[[30, 31, 90]] *= 0.8
    assert apart(frames) == []


@pytest.mark.parametrize("value", [4095.0, 1000.0])
@pytest.mark.parametrize("where", [[0], [50], [40, 80, 81, 82, 118], [20, 22, 25, 28, 29, 31]])
def test_a_flash_stands_apart(value: float, where: list[int]) -> None:
    frames = recorded()
    frames[where] += value
    assert apart(frames) == where


def test_a_closed_shutter_stands_apart() -> None:
    frames = recorded()
    closed = list(range(70, 110))
    frames[closed] = np.random.default_rng(1).normal(0, 2, (40, 40, 36))
    assert apart(frames) == closed


def test_of_large_frames_a_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "MAX_PIXELS", 500)
    frames = recorded()
    frames[[30, 90]] += 1000
    frames[50:60] = 0
    assert apart(frames) == [30, *range(50, 60), 90]


def test_repeated_frames_are_kept_once() -> None:
    frames = np.repeat(recorded(), 2, axis=0)
    found = screen(frames)
    np.testing.assert_array_equal(found.source, np.arange(2 * NUM_FRAMES) // 2)
    assert (found.num_apart, found.num_repeated) == (0, NUM_FRAMES)
    np.testing.assert_array_equal(list(found.chosen(frames)), frames[::2])


def test_empty_frames_where_photons_are_few_are_all_kept() -> None:
    frames = np.random.default_rng(0).poisson(1e-3, (400, 16, 16))
    assert (frames[1:] == frames[:-1]).all(axis=(1, 2)).sum() > 100
    assert screen(frames).kept.all()


def test_all_frames_are_kept_where_too_few_would_be() -> None:
    frames = np.repeat(recorded()[: MIN_FRAMES - 1], 10, axis=0)
    assert screen(frames).kept.all()


def minus(frames: np.ndarray, found: Screening, span: slice) -> np.ndarray:
    """What is restored of a stretch where the kept frames were denoised into their negatives."""
    kept = -np.stack(list(found.chosen(frames)))

    def render(part: slice) -> Iterator[np.ndarray]:
        for start in range(*part.indices(len(kept)))[::7]:
            yield kept[start : min(start + 7, part.stop)]

    return np.concatenate(list(found.restored(render, frames, span)))


@pytest.mark.parametrize("span", [slice(None), slice(3, 40), slice(21, 30), slice(39, 120)])
def test_every_frame_gets_a_result_in_its_place(span: slice) -> None:
    frames = recorded()
    flashes = [0, 24, 25, 77]
    frames[flashes] += 3000
    frames[20:24] = frames[19]
    frames[26] = frames[25]  # of a flash
    found = screen(frames)
    expected = -frames
    expected[[*flashes, 26]] = minus(frames, found, slice(None))[[*flashes, 26]]
    np.testing.assert_array_equal(minus(frames, found, span), expected[span])
    # of a flash the frame itself is left, and little of its noise
    there = expected[24] - recorded()[24] - 3000
    assert there.std() == pytest.approx(20, rel=0.1)  # the recording's own
    assert (expected[24] - 3000 - recorded()[23:26].mean(0)).std() < 25
