"""The mean image of a result: the recording's own, as far as its noise allows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from model import mean_image
from model.mean_image import with_mean_of
from model.report import StackRecord
from model.stack import StackError

NOISE = 40.0
SHAPE = (200, 48, 52)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    """A scene with fine detail, and something that changes."""
    rng = np.random.default_rng(0)
    scene = 300 + 30 * ndimage.gaussian_filter(rng.normal(size=SHAPE[1:]), 0.7) / 0.4
    change = np.sin(np.arange(SHAPE[0]) / 7)[:, None, None] * np.linspace(0, 50, SHAPE[2])
    return scene + change


@pytest.fixture(scope="module")
def noisy(clean: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).normal(clean, NOISE).round().astype(np.int16)


@pytest.fixture
def record() -> StackRecord:
    return StackRecord(file="x.tif")


def result(
    noisy: np.ndarray, denoised: np.ndarray, folder: Path, record: StackRecord, size: int = 16
) -> np.ndarray:
    blocks: Iterator[np.ndarray] = (
        denoised[start : start + size].astype(np.float32) for start in range(0, len(noisy), size)
    )
    return np.concatenate(list(with_mean_of(noisy, blocks, folder / "x.tif", record)))


def error(denoised: np.ndarray, clean: np.ndarray) -> float:
    return float(np.square(denoised - clean).mean())


def test_detail_that_every_frame_lacks_comes_back(
    clean: np.ndarray, noisy: np.ndarray, tmp_path: Path, record: StackRecord
) -> None:
    smooth = ndimage.gaussian_filter(clean, (0, 2, 2)) - 5
    mended = result(noisy, smooth, tmp_path, record)
    assert error(mended, clean) < 0.05 * error(smooth, clean)
    assert record.mean_blur is not None
    # the same image in all frames: what changes is left to the network
    np.testing.assert_allclose(
        mended - smooth, np.broadcast_to(mended[0] - smooth[0], SHAPE), atol=1e-3
    )
    assert list(tmp_path.iterdir()) == []


def test_what_is_right_stays_nearly_so(
    clean: np.ndarray, noisy: np.ndarray, tmp_path: Path, record: StackRecord
) -> None:
    """The noise of the recording's mean, 1/200 of a frame's, is not taken over."""
    mended = result(noisy, clean, tmp_path, record)
    assert error(mended, clean) < 0.1 * NOISE**2 / len(noisy)


def test_the_less_noise_the_less_blur(clean: np.ndarray, tmp_path: Path) -> None:
    smooth = ndimage.gaussian_filter(clean, (0, 2, 2))
    blurs = []
    for noise in (10.0, 200.0, 600.0):
        record = StackRecord(file="x.tif")
        result(np.random.default_rng(1).normal(clean, noise), smooth, tmp_path, record)
        blurs.append(record.mean_blur)
    assert None not in blurs
    assert blurs == sorted(blurs)
    assert blurs[0] < blurs[-1]


def test_a_spike_is_no_part_of_the_mean(
    clean: np.ndarray, noisy: np.ndarray, tmp_path: Path, record: StackRecord
) -> None:
    spiked = noisy.astype(np.float32)
    spiked[70, 20, 20] = 65535.0
    mended = result(spiked, clean, tmp_path, record)
    assert np.abs(mended - clean).max() < NOISE / 4


def test_photons_are_no_spikes_where_they_are_few(tmp_path: Path, record: StackRecord) -> None:
    frames = np.random.default_rng(0).poisson(0.005, (2000, 32, 32)).astype(np.uint8)
    mended = result(frames, np.full(frames.shape, 0.005), tmp_path, record)
    assert mended.mean() == pytest.approx(frames.mean(), rel=0.02)


def test_32_bits_keep_their_precision(
    clean: np.ndarray, tmp_path: Path, record: StackRecord
) -> None:
    far = np.random.default_rng(1).normal(clean, NOISE).round().astype(np.uint32) + 10**9
    blocks = iter([clean[:100] + 1e9, clean[100:] + 1e9])
    mended = np.concatenate(list(with_mean_of(far, blocks, tmp_path / "x.tif", record)))
    assert error(mended, clean + 1e9) < 0.1 * NOISE**2 / len(far)


def test_a_single_frame_has_no_mean_to_tell(
    clean: np.ndarray, noisy: np.ndarray, tmp_path: Path, record: StackRecord
) -> None:
    mended = result(noisy[:1], clean[:1] - 20, tmp_path, record)
    np.testing.assert_array_equal(mended, (clean[:1] - 20).astype(np.float32))
    assert record.mean_blur is None


def test_the_size_of_blocks_changes_nothing(
    clean: np.ndarray, noisy: np.ndarray, tmp_path: Path, record: StackRecord
) -> None:
    smooth = ndimage.gaussian_filter(clean, (0, 2, 2))
    whole = result(noisy, smooth, tmp_path, record, len(noisy))
    np.testing.assert_allclose(result(noisy, smooth, tmp_path, record, 7), whole, rtol=1e-6)


def test_a_full_disk_costs_the_mean_and_not_the_result(
    clean: np.ndarray,
    noisy: np.ndarray,
    tmp_path: Path,
    record: StackRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_room(*_: object) -> None:
        raise StackError("x.tif: the result cannot be written: the disk is full")

    monkeypatch.setattr(mean_image, "open_spool", no_room)
    np.testing.assert_array_equal(result(noisy, clean, tmp_path, record), clean.astype(np.float32))
    assert record.mean_blur is None
    assert record.shortened == ["mean image left as it came for lack of room on the disk"]
