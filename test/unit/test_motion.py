"""Motion of the brain: measured, undone and done again."""

import numpy as np
import pytest
from scipy import ndimage

from lab.metrics import stsnr
from model import lowrank, motion
from model.background import measure_background
from model.components import wiener
from model.config import LowRankConfig, MotionConfig
from model.lowrank import LowRank
from model.motion import Motion, measure_motion, move

NUM_FRAMES, SIDE, MARGIN = 200, 80, 10


def keep(values: np.ndarray) -> np.ndarray:
    return wiener(values, 4.0)


def shifts_of(deviation: float, seed: int = 0) -> np.ndarray:
    """A smooth wander [T,2] of a mean of 0."""
    rng = np.random.default_rng(seed)
    wander = ndimage.gaussian_filter1d(rng.normal(size=(NUM_FRAMES, 2)), 5, axis=0)
    wander -= wander.mean(0)
    return deviation * wander / wander.std()


def cells(seed: int = 1) -> np.ndarray:
    """A clean movie [T,H,W] of cells that fire, with a margin all round."""
    rng = np.random.default_rng(seed)
    side = SIDE + 2 * MARGIN
    movie = np.zeros((NUM_FRAMES, side, side), np.float32)
    movie += 100 * (1 + 0.5 * ndimage.gaussian_filter(rng.normal(size=(side, side)), 1.5))
    rows, columns = np.mgrid[:side, :side]
    for row, column in rng.uniform(0, side, (40, 2)):
        footprint = np.exp(-(np.square(rows - row) + np.square(columns - column)) / 12)
        spikes = rng.uniform(size=NUM_FRAMES) < 0.02
        course = 1 + 2 * np.convolve(spikes, np.exp(-np.arange(60) / 12))[:NUM_FRAMES]
        movie += (150 * course[:, None, None] * footprint).astype(np.float32)
    return movie


def moving(shifts: np.ndarray) -> np.ndarray:
    inside = slice(MARGIN, -MARGIN)
    return np.stack(
        [move(frame, shift)[inside, inside] for frame, shift in zip(cells(), shifts, strict=True)]
    )


def noisy(clean: np.ndarray, gain: float = 40.0) -> np.ndarray:
    return (np.random.default_rng(2).poisson(clean / gain) * gain).astype(np.int16)


def measured(frames: np.ndarray) -> Motion | None:
    return measure_motion(frames, measure_background(frames), keep, MotionConfig())


# ---- Moving ------------------------------------------------------------------------------------


def test_whole_pixels_are_moved_exactly_and_the_rest_is_mirrored_in() -> None:
    frame = np.random.default_rng(0).normal(size=(40, 33)).astype(np.float32)
    moved = move(frame, np.array([3.0, -5.0]))
    np.testing.assert_allclose(moved[3:, :-5], frame[:-3, 5:], atol=1e-5)
    np.testing.assert_allclose(moved[2, :-5], frame[0, 5:], atol=0.1)


def test_half_a_pixel_leaves_noise_white_and_as_strong() -> None:
    frame = np.random.default_rng(0).normal(size=(200, 200)).astype(np.float32)
    moved = move(frame, np.array([0.5, 0.5]))
    assert moved.std() == pytest.approx(frame.std(), rel=0.01)
    assert abs(np.corrcoef(moved[:, 1:].ravel(), moved[:, :-1].ravel())[0, 1]) < 0.02


def test_there_and_back_changes_nothing_far_from_the_border() -> None:
    frame = cells()[0]
    shift = np.array([1.3, -2.7])
    back = move(move(frame, shift), -shift)
    np.testing.assert_allclose(back[10:-10, 10:-10], frame[10:-10, 10:-10], rtol=0.01)


def test_blocks_are_moved_by_the_shifts_of_their_own_frames() -> None:
    found = Motion(shifts=np.arange(12.0).reshape(6, 2))
    still = cells()[:6]
    blocks = list(found.done(iter([still[2:4], still[4:6]]), first=2))
    np.testing.assert_array_equal(blocks[1][0], move(still[4], np.array([8.0, 9.0])))


# ---- Measuring ---------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [0.4, 1.5])
def test_shifts_are_found_to_a_fraction_of_a_pixel(deviation: float) -> None:
    shifts = shifts_of(deviation)
    found = measured(noisy(moving(shifts)))
    assert found is not None
    assert np.sqrt(np.square(found.shifts - shifts).mean()) < 0.15
    assert found.deviation == pytest.approx(deviation, rel=0.15)


def test_a_jump_of_many_pixels_is_followed() -> None:
    shifts = np.zeros((NUM_FRAMES, 2))
    shifts[120:] = 6.0, -4.0
    found = measured(noisy(moving(shifts)))
    assert found is not None
    step = found.shifts[125:].mean(0) - found.shifts[:115].mean(0)
    np.testing.assert_allclose(step, [6.0, -4.0], atol=0.2)


@pytest.mark.parametrize("gain", [1.0, 40.0, 900.0])
def test_cells_that_fire_in_a_brain_at_rest_are_no_motion(gain: float) -> None:
    assert measured(noisy(moving(np.zeros((NUM_FRAMES, 2))), gain)) is None


def test_noise_alone_does_not_move() -> None:
    assert measured(noisy(np.full((NUM_FRAMES, 64, 64), 200.0))) is None


@pytest.mark.parametrize("deviation", [0.0, 1.5])
def test_an_empty_border_does_not_hold_the_rest(deviation: float) -> None:
    """As a detector leaves it that is read beyond its field; bright, it would draw frames to it."""
    shifts = shifts_of(deviation)
    frames = noisy(moving(shifts))
    frames[:, :, :8] = 20_000
    found = measured(frames)
    if deviation:
        assert found is not None
        assert np.sqrt(np.square(found.shifts - shifts).mean()) < 0.15
        aligned = measure_background(found.undone(frames))
        assert aligned.has_noise[:, 8:].all() and not aligned.has_noise[:, :8].any()
        (back,) = found.done(iter([found.undone(frames)]), 0)
        np.testing.assert_array_equal(back[:, :, :8], 20_000)
    else:
        assert found is None


def test_where_an_image_lies_that_is_the_same_everywhere_cannot_be_told() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1000, 64), (64, 64)).astype(np.int16)
    frames = np.stack([ramp] * 40)
    frames[20:] += 50
    assert measured(frames) is None


def test_still_frames_that_would_not_fit_are_not_made_and_the_user_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(motion, "available_bytes", lambda: 4.0 * NUM_FRAMES * SIDE**2)
    assert measured(noisy(moving(np.zeros((NUM_FRAMES, 2))))) is None
    assert not caplog.messages  # there was nothing to align
    found = measured(noisy(moving(shifts_of(1.5))))
    assert found is not None and found.is_left_in
    assert "move by 1." in caplog.text
    assert "give more memory" in caplog.text


def test_frames_too_small_to_tell_are_taken_for_still() -> None:
    assert measured(noisy(moving(shifts_of(1.5)))[:, :20]) is None


# ---- In the low-rank method --------------------------------------------------------------------


def test_a_moving_brain_loses_little(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = moving(shifts_of(1.5))
    frames = noisy(clean)

    def score() -> float:
        found = LowRank(frames, LowRankConfig())
        found.find()
        return stsnr(clean, np.concatenate(list(found.render()))).stsnr

    aligned = score()
    monkeypatch.setattr(lowrank, "measure_motion", lambda *_: None)
    assert aligned > score() + 2
