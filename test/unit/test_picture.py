"""The picture of one stack."""

import errno
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from model.picture import GAP, Picture
from model.residual import Residual

SHAPE = (130, 256, 264)


def drawn(path: Path, frames: np.ndarray, denoised: np.ndarray, block: int = 50) -> np.ndarray:
    picture, residual = Picture(frames), Residual(frames)
    for start in range(0, len(frames), block):
        picture.look(denoised[start : start + block])
        residual.look(denoised[start : start + block])
    picture.write(path, residual)
    return imagecodecs.png_decode(path.read_bytes())


def panels(image: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    assert image.shape == (2 * height + GAP, 3 * width + 2 * GAP)
    return [
        image[row : row + height, column : column + width].astype(float)
        for row in (0, height + GAP)
        for column in range(0, 3 * (width + GAP), width + GAP)
    ]


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_every_panel_shows_what_it_is_said_to(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scene = rng.uniform(100, 300, SHAPE[1:])
    active = np.zeros(SHAPE[1:])
    active[40:80, 40:80] = 1
    lost = np.zeros(SHAPE[1:])
    lost[160:200, 160:200] = 1
    course = 40 * np.sin(np.arange(SHAPE[0]) / 9)[:, None, None]
    clean = scene + course * active
    frames = (rng.normal(clean + course * lost, 30)).astype(np.float32)
    recorded, denoised, difference, mean, deviation, signal = panels(
        drawn(tmp_path / "x.png", frames, clean.astype(np.float32)), *SHAPE[1:]
    )
    middle = SHAPE[0] // 2
    assert correlation(recorded, frames[middle]) > 0.95
    assert correlation(denoised, clean[middle]) > 0.99
    assert correlation(difference, frames[middle] - clean[middle]) > 0.99
    assert difference.mean() == pytest.approx(127.5, abs=3)
    assert correlation(mean, scene) > 0.98
    assert deviation[50:70, 50:70].min() > 200
    assert deviation[100:, 100:].max() < 20
    assert signal[168:192, 168:192].min() == 255
    assert signal[:150].max() < 255
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_small_frames_are_enlarged_and_the_size_of_blocks_changes_nothing(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(50, (20, 30, 100)).astype(np.uint8)
    denoised = np.full(frames.shape, 50, np.float32)
    image = drawn(tmp_path / "x.png", frames, denoised)
    assert image.shape == (2 * 90 + GAP, 3 * 300 + 2 * GAP)
    np.testing.assert_array_equal(drawn(tmp_path / "y.png", frames, denoised, 7), image)


def test_a_single_frame_has_a_picture_too(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(50, (1, 256, 256)).astype(np.uint16)
    image = drawn(tmp_path / "x.png", frames, frames.astype(np.float32))
    assert len(np.unique(panels(image, 256, 256)[0])) > 10


def test_where_nothing_was_taken_out_or_little_is_known_it_is_grey(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(50, (20, 256, 256)).astype(np.uint16)
    image = drawn(tmp_path / "x.png", frames, frames.astype(np.float32))
    _, _, difference, _, _, signal = panels(image, 256, 256)
    assert set(np.unique([difference, signal])) <= {127, 128}


def test_a_picture_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_bytes", full)
    frames = np.zeros((2, 8, 8), np.uint8)
    with pytest.raises(OSError, match="full"):
        drawn(tmp_path / "x.png", frames, frames.astype(np.float32))
    assert list(tmp_path.iterdir()) == []
