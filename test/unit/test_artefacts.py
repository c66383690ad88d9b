"""What microscopes and programs before ours do to a recording, and what it may cost at most."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from lab.parts import METHOD
from model.budget import Budget
from model.checkpoint import read_checkpoint
from model.config import METHODS
from model.device import pick_device
from model.job import SHIPPED_WEIGHTS
from model.pipeline import Denoiser
from model.report import StackRecord
from model.stack_io import StackPaths

SHAPE = NUM_FRAMES, SIDE, _ = 300, 48, 48
NOISE = 6.0  # times the root of the brightness
FLASHES = [20, 100, 101, 102, 250]
CLOSED = slice(130, 200)


def clean_movie() -> np.ndarray:
    """Textured ground, neuropil that wanders, and twelve cells with events: [T,H,W]."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    texture = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 2)
    movie = np.full(SHAPE, 100 * np.exp(0.25 * texture / texture.std()))
    neuropil = ndimage.gaussian_filter1d(rng.normal(size=NUM_FRAMES), 10)
    movie *= 1 + 0.03 * (neuropil / neuropil.std())[:, None, None]
    for row, column in rng.uniform(4, SIDE - 4, (12, 2)):
        spikes = (rng.random(NUM_FRAMES) < 0.012) * rng.uniform(0.5, 1.5, NUM_FRAMES)
        course = np.convolve(spikes, np.exp(-np.arange(60) / 12))[:NUM_FRAMES]
        cell = np.exp(-np.square((np.square(rows - row) + np.square(columns - column)) / 18))
        movie += 80 * course[:, None, None] * cell
    return movie


CLEAN = clean_movie()
DRAWN = np.random.default_rng(1).normal(size=SHAPE)


def recorded(noise: np.ndarray = DRAWN) -> np.ndarray:
    return CLEAN + NOISE * np.sqrt(CLEAN) * noise


def denoised(frames: np.ndarray, folder: Path) -> tuple[np.ndarray, StackRecord]:
    """By the default method, in blocks of one size, with a fourth of its iterations."""
    method = METHODS[METHOD]
    assert method.low_rank is not None and method.low_rank.teach is not None
    teach = replace(method.low_rank.teach, steps=20)
    shipped = read_checkpoint(SHIPPED_WEIGHTS / f"{METHOD}.safetensors", METHOD)
    denoiser = Denoiser(
        method=replace(method, low_rank=replace(method.low_rank, other_blocks=(), teach=teach)),
        checkpoint=shipped,
        device=pick_device("cpu"),
        seed=0,
        steps=None,
    )
    paths = StackPaths(source=folder / "x.tif", target=folder / "out" / "x.tif")
    tifffile.imwrite(paths.source, frames.astype(np.float32), photometric="minisblack")
    record = StackRecord(file="x.tif")
    denoiser.denoise(paths, Budget(math.inf), record)
    return tifffile.imread(paths.target).astype(np.float64), record


def kept(result: np.ndarray, frames: slice | np.ndarray, part: tuple[slice, slice]) -> float:
    """Of the activity there, in decibels over the error in it."""
    clean, found = CLEAN[frames][:, *part], result[frames][:, *part]
    activity = clean - clean.mean(0)
    error = found - found.mean(0) - activity
    return float(10 * np.log10(np.square(activity).sum() / np.square(error).sum()))


EVERYWHERE = (slice(None), slice(None))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The result where nothing went wrong."""
    result, record = denoised(recorded(), tmp_path_factory.mktemp("usual"))
    assert (record.frames_apart, record.frames_repeated, record.motion) == (0, 0, None)
    assert kept(result, slice(None), EVERYWHERE) > 9
    return result


def flashes(frames: np.ndarray) -> None:
    frames[FLASHES] = 4095


def one_broken_frame(frames: np.ndarray) -> None:
    frames[150] = 65535


def closed_shutter(frames: np.ndarray) -> None:
    frames[CLOSED] = 2 * DRAWN[CLOSED]


def bright_border(frames: np.ndarray) -> None:
    frames[:, :, :6] = 4095


def moving_border(frames: np.ndarray) -> None:
    for frame, width in zip(
        frames, np.random.default_rng(5).integers(0, 5, NUM_FRAMES), strict=True
    ):
        frame[:, :width] = 0


@pytest.mark.parametrize(
    ("break_it", "apart", "part", "loss"),
    [
        (flashes, FLASHES, EVERYWHERE, 0.3),
        (one_broken_frame, [150], EVERYWHERE, 0.3),
        (closed_shutter, list(range(NUM_FRAMES))[CLOSED], EVERYWHERE, 1.0),
        (bright_border, [], (slice(None), slice(8, None)), 0.3),
        (moving_border, [], (slice(None), slice(16, None)), 1.0),
    ],
)
def test_what_is_broken_spoils_nothing_else(
    break_it: Callable[[np.ndarray], None],
    apart: list[int],
    part: tuple[slice, slice],
    loss: float,
    usual: np.ndarray,
    tmp_path: Path,
) -> None:
    frames = recorded()
    break_it(frames)
    result, record = denoised(frames, tmp_path)
    assert record.frames_apart == len(apart)
    assert record.motion is None
    whole = np.setdiff1d(np.arange(NUM_FRAMES), apart)
    assert kept(result, whole, part) > kept(usual, whole, part) - loss
    for number in apart:
        assert result[number].mean() == pytest.approx(frames[number].mean(), abs=1)


@pytest.mark.parametrize("offset", [-32768, -1000, 300, 3000, 32768])
def test_an_offset_changes_little(offset: int, usual: np.ndarray, tmp_path: Path) -> None:
    result, _ = denoised(recorded() + offset, tmp_path)
    assert kept(result, slice(None), EVERYWHERE) > kept(usual, slice(None), EVERYWHERE) - 0.5
    np.testing.assert_allclose(result.mean() - offset, usual.mean(), atol=1)


def test_frames_that_are_there_twice_get_the_same_result(usual: np.ndarray, tmp_path: Path) -> None:
    result, record = denoised(np.repeat(recorded(), 2, axis=0), tmp_path)
    assert (record.frames_apart, record.frames_repeated) == (0, NUM_FRAMES)
    np.testing.assert_array_equal(result, np.repeat(usual, 2, axis=0))


def test_noise_that_pixels_have_in_common_is_taken_out_too(tmp_path: Path) -> None:
    """Of a recording that was registered or enlarged by interpolation."""
    noise = ndimage.gaussian_filter(DRAWN, (0, 0.6, 0.6))
    result, _ = denoised(recorded(noise / noise.std()), tmp_path)
    assert kept(result, slice(None), EVERYWHERE) > 5
