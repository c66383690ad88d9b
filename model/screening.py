"""Which frames of a recording show the tissue, each with a noise of its own.

While a shutter is closed there is nothing to see, in a flash of light something else, and a frame
that was stored twice has no noise of its own. Taken for the others, they would be motion, noise or
signals of all pixels at once. They stand apart: a repeated frame gets the other's result, and what
shows no tissue is blurred by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy import ndimage

from model.frames import ChosenFrames, Frames

MAX_PIXELS = 2**18  # of a frame that are looked at: of large ones every so many rows
MAX_TILE = 8  # pixels over which brightness is averaged before contrast is taken
MIN_TILES = 64  # of a frame; of fewer the contrast is too uncertain
LEAST_CONTRAST = 0.02  # of the usual variance between tiles; a laser at a seventh leaves more
STEADY = 1.7  # times that the variance of the next frame mostly is, at most, where it tells
FLASH_FRAMES = 3  # which a flash lasts at most
FLASH_DEVIATIONS = 20.0  # of the usual change in a frame's brightness, that a flash begins with,
FLASH_LIGHT = 3.0  # of a voxel's noise, and of the contrast in a frame: more than tissue gives
MIN_FRAMES = 16  # of fewer nobody can tell what is usual
BLUR = 2.0  # pixels, of what stands apart


@dataclass(frozen=True, kw_only=True)
class Screening:
    """What becomes of each frame."""

    source: np.ndarray
    """[T] whose result it gets, as a number among those that are kept; -1: it stands apart."""
    kept: np.ndarray
    """[T] bool: denoised, together with the others of these."""

    @property
    def num_apart(self) -> int:
        """Frames that show no tissue."""
        return int((self.source < 0).sum())

    @property
    def num_repeated(self) -> int:
        """Frames that are the same as the one before."""
        return len(self.kept) - int(self.kept.sum()) - self.num_apart

    def chosen(self, frames: Frames) -> Frames:
        """Those of the frames that are kept; all as they are where nothing stands apart."""
        return frames if self.kept.all() else ChosenFrames(frames, self.kept)

    def restored(
        self, render: Callable[[slice], Iterator[np.ndarray]], frames: Frames, span: slice
    ) -> Iterator[np.ndarray]:
        """Blocks [n,H,W] of a stretch of all frames; `render` gives those of a stretch of the kept.

        Of what stands apart, the frame itself, blurred.
        """
        if self.kept.all():
            yield from render(span)
            return
        first, end, _ = span.indices(len(self.source))
        wanted = self.source[first:end]
        position = int(wanted[wanted >= 0].min(initial=len(self.source))) - 1
        blocks = render(slice(position + 1, int(wanted.max(initial=-1)) + 1))
        results = (result for block in blocks for result in block)
        result: np.ndarray | None = None
        for frame, number in zip(islice(frames, first, end), wanted, strict=True):
            if number < 0:
                yield ndimage.gaussian_filter(frame.astype(np.float32), BLUR)[None]
                continue
            while position < number:
                result, position = next(results), position + 1
            assert result is not None
            yield result[None]


def screen(frames: Frames) -> Screening:
    """Look at every frame of a stack [T,H,W] once.

    Where fewer than MIN_FRAMES would be kept, all are.
    """
    if len(frames) < MIN_FRAMES:
        return Screening(source=np.arange(len(frames)), kept=np.ones(len(frames), bool))
    brightness, contrast, change = _measured(frames)
    # an empty frame may be like the one before by chance, where photons are few
    is_repeated = (change == 0) & (contrast > 0)
    is_flash = np.zeros(len(is_repeated), bool)
    is_flash[~is_repeated] = _is_flash(
        brightness[~is_repeated], change[~is_repeated], math.sqrt(float(np.median(contrast)))
    )
    is_apart = is_flash | _is_blank(contrast, frames.shape)
    first = np.maximum.accumulate(np.where(is_repeated, 0, np.arange(len(is_repeated))))
    is_apart = is_apart[first]  # the same frame, the same reason
    kept = ~is_apart & ~is_repeated
    source = np.where(is_apart, -1, np.cumsum(kept) - 1)
    if kept.sum() < MIN_FRAMES:
        source, kept = np.arange(len(kept)), np.ones_like(kept)
    return Screening(source=source, kept=kept)


def _measured(frames: Frames) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every frame: mean, variance between tiles, mean squared change from the one before.

    The first has changed from nothing.
    """
    num_frames, height, width = frames.shape
    step = -(-height * width // MAX_PIXELS)
    height = -(-height // step)
    side = int(np.clip(np.sqrt(height * width / MIN_TILES), 1, MAX_TILE))
    side = min(side, height, width)
    rows, columns = height // side, width // side
    told = np.zeros((3, num_frames))
    before = None
    for number, frame in enumerate(frames):
        values = frame[::step].astype(np.float64)
        tiles = values[: rows * side, : columns * side].reshape(rows, side, columns, side)
        told[0, number] = values.mean()
        told[1, number] = tiles.mean((1, 3)).var()
        told[2, number] = np.inf if before is None else np.square(values - before).mean()
        before = values
    brightness, contrast, change = told
    return brightness, contrast, change


def _is_blank(contrast: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Whether the tissue is not to be seen: dark, or all light."""
    if shape[1] * shape[2] < MIN_TILES:
        return np.zeros(len(contrast), bool)
    usual = float(np.median(contrast))
    is_blank: np.ndarray = contrast < LEAST_CONTRAST * usual
    if is_blank.any():
        # of few photons a frame may show none by chance
        changes = np.abs(np.diff(np.log(contrast + 0.01 * usual)))
        is_blank &= np.median(changes) <= math.log(STEADY)
    return is_blank


def _is_flash(brightness: np.ndarray, change: np.ndarray, contrast: float) -> np.ndarray:
    """Whether a frame is, as few beside it, far brighter than before and after.

    `contrast` is a frame's usual deviation between tiles.
    """
    is_flash = np.zeros(len(brightness), bool)
    if len(brightness) < 2:
        return is_flash
    noise = math.sqrt(float(np.median(change[1:])) / 2)  # of a voxel
    if not noise:  # mostly empty: a single photon is a jump then
        return is_flash
    level = np.append(np.median(brightness), brightness)  # as it usually is, before the first
    jumps = np.diff(level)  # to each frame
    usual = 1.5 * float(np.median(np.abs(jumps)))
    least = max(FLASH_DEVIATIONS * usual, FLASH_LIGHT * noise, FLASH_LIGHT * contrast)
    for first in np.flatnonzero(jumps > least).tolist():
        jump = jumps[first]
        for after in range(first + 1, min(first + 1 + FLASH_FRAMES, len(brightness))):
            is_back = abs(brightness[after] - level[first]) < 0.1 * jump
            if is_back and -jumps[after] > 0.5 * jump:  # at once, as hardly an indicator would
                is_flash[first:after] = True
                break
    return is_flash
