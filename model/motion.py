"""How a brain moves under the microscope: rigid shifts of frames, measured, undone and done again.

A component's image must keep its place, or it smears over others. Shifts are found by matched
filtering to a pixel, and by least squares below (Lucas & Kanade, IJCAI 1981), whose error is known:
a Wiener filter over time then keeps what stands above it. Frames are moved in the Fourier domain,
which leaves white noise white.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import fft, ndimage

from model.background import FEWEST_FRAMES, Background
from model.config import MotionConfig
from model.frames import Frames
from model.memory import available_bytes
from model.parallel import in_parallel

logger = logging.getLogger(__name__)

# Values [T,K] in noise of variance 1 to what stands above it.
Filter = Callable[[np.ndarray], np.ndarray]

RINGING = 8  # pixels of mirrored surroundings beyond the largest shift


def _closed(frame: np.ndarray, axis: int, margin: int) -> np.ndarray:
    """A frame made longer along an axis by what both ends mirror, one blended into the other.

    So that it goes round without a jump, which would ring.
    """
    side = frame.shape[axis]
    gap = fft.next_fast_len(side + 2 * margin, real=True) - side
    wide = np.moveaxis(frame, axis, 0)
    rest = ((0, 0),) * (frame.ndim - 1)
    behind = np.pad(wide, ((0, gap), *rest), mode="symmetric")[side:]
    before = np.pad(wide, ((gap, 0), *rest), mode="symmetric")[:gap]
    share = np.square(np.sin(np.pi / 2 * np.linspace(0, 1, gap, dtype=np.float32)))[:, None]
    return np.moveaxis(np.concatenate([wide, (1 - share) * behind + share * before]), 0, axis)


def move(frame: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """A frame [H,W] whose content is moved by `shift` rows and columns, mirrored in from outside.

    As float32.
    """
    margin = math.ceil(float(np.abs(shift).max())) + RINGING
    closed = _closed(_closed(frame.astype(np.float32), 0, margin), 1, margin)
    spectrum = fft.rfft2(closed)
    rows, columns = fft.fftfreq(closed.shape[0])[:, None], fft.rfftfreq(closed.shape[1])
    turn = np.exp(-2j * np.pi * (shift[0] * rows + shift[1] * columns)).astype(np.complex64)
    moved: np.ndarray = fft.irfft2(spectrum * turn, closed.shape)
    return moved[: frame.shape[0], : frame.shape[1]]


@dataclass(frozen=True, kw_only=True)
class Border:
    """Pixels that stand still whatever moves: beyond a detector's field, say."""

    is_tissue: np.ndarray  # [H,W] bool
    values: np.ndarray  # [H,W] of the mean image
    filling: float  # as bright as the tissue

    @classmethod
    def of(cls, background: Background) -> Border | None:
        """Of what has no noise; None where all has."""
        is_tissue = background.has_noise
        if is_tissue.all():
            return None
        filling = float(background.mean[is_tissue].mean())
        return cls(is_tissue=is_tissue, values=background.mean, filling=filling)

    def filled(self, frame: np.ndarray) -> np.ndarray:
        """A frame [H,W] without it."""
        return np.where(self.is_tissue, frame, self.filling)

    def restored(self, frame: np.ndarray) -> np.ndarray:
        """A frame [H,W] with it."""
        return np.where(self.is_tissue, frame, self.values)


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Where the content of every frame lies."""

    shifts: np.ndarray  # [T,2] rows and columns by which it is off its mean place
    border: Border | None = None
    is_left_in: bool = False  # there is too little memory for frames without it

    @property
    def deviation(self) -> float:
        """Root of the mean squared shift along an axis [pixels]."""
        return float(np.sqrt(np.square(self.shifts).mean()))

    def undone(self, frames: Frames) -> np.ndarray:
        """Frames [T,H,W] with their content in its mean place, float32."""
        still = np.empty(frames.shape, np.float32)

        def undo(frame: np.ndarray, shift: np.ndarray) -> np.ndarray:
            if not self.border:
                return move(frame, -shift)
            # again where it was, or it would be tissue that hardly has noise
            return self.border.filled(move(self.border.filled(frame), -shift))

        for number, frame in enumerate(in_parallel(undo, frames, self.shifts)):
            still[number] = frame
        return still

    def done(self, blocks: Iterator[np.ndarray], first: int) -> Iterator[np.ndarray]:
        """Blocks [n,H,W] of still frames, the first of them number `first`, moved as they were."""
        for block in blocks:
            shifts = self.shifts[first : first + len(block)]
            moved = in_parallel(move, block, shifts)
            if self.border:
                moved = map(self.border.restored, moved)
            yield np.stack(list(moved))
            first += len(block)


class _Tracker:
    """Shifts of frames against an image [H,W], by all pixels and by each of two halves of them."""

    def __init__(self, image: np.ndarray, background: Background, config: MotionConfig) -> None:
        self.config, self.border = config, Border.of(background)
        is_tissue, deviation = background.has_noise, background.deviation
        image = self._tissue(image)
        self.reach = [min(config.largest, side // 8) for side in image.shape]
        self._inside = tuple(slice(r, -r or None) for r in self.reach)
        self._place(image, deviation, is_tissue * np.square(deviation.mean() / deviation))
        self._match(image, deviation, is_tissue)

    def _place(self, image: np.ndarray, deviation: np.ndarray, scale: np.ndarray) -> None:
        """Regression of a frame on the image, its two derivatives and a constant.

        By pixels weighted with `scale`.
        """
        rows, columns = np.indices(image.shape) // self.config.tile
        halves = (rows + columns) % 2
        slopes = np.gradient(image)
        regressors = np.stack([image, -slopes[0], -slopes[1], np.ones_like(image)])
        # both sides blurred, so that the image's own noise hardly has a slope
        blurred = ndimage.gaussian_filter(regressors, (0, self.config.blur, self.config.blur))
        self._filters, self.deviations = [], []
        for mask in (np.ones_like(scale), halves, 1 - halves):
            weight = np.zeros_like(scale)
            weight[self._inside] = (scale * mask)[self._inside]
            seen = (blurred * weight)[:, *self._inside].reshape(4, -1)
            known = regressors[:, *self._inside].reshape(4, -1)
            filters = np.linalg.solve(seen @ known.T, seen)  # [4,P]
            noise = deviation[self._inside].ravel()
            self._filters.append(filters[:3])
            self.deviations.append(np.sqrt(np.square(filters[1:3] * noise).sum(1)))

    def _tissue(self, frame: np.ndarray) -> np.ndarray:
        return self.border.filled(frame) if self.border else frame

    def _match(self, image: np.ndarray, deviation: np.ndarray, is_tissue: np.ndarray) -> None:
        """Matched filter for shifts of whole pixels: the image without what is wide in it."""
        detail = image - ndimage.gaussian_filter(image, self.config.wide)
        matched = np.zeros_like(detail)
        matched[self._inside] = (is_tissue * detail / np.square(deviation))[self._inside]
        self._matched = np.conj(fft.rfft2(matched))
        self._match_noise = float(np.sqrt(np.square(matched * deviation).sum()))

    def whole(self, frames: Frames) -> np.ndarray:
        """Shifts [T,2] to a pixel; where noise leaves a doubt, the one that holds for long."""
        steps = [np.arange(-r, r + 1) for r in self.reach]

        def matches(frame: np.ndarray) -> np.ndarray:
            spectrum = fft.rfft2(self._tissue(frame).astype(np.float32))
            found = fft.irfft2(spectrum * self._matched, frame.shape)
            return found[np.ix_(steps[0], steps[1])]

        maps = np.stack(list(in_parallel(matches, frames)))
        steady = ndimage.gaussian_filter1d(maps, self.config.steady_frames, axis=0)
        usual = steady.reshape(len(maps), -1).argmax(1)
        flat = maps.reshape(len(maps), -1)
        best, every = flat.argmax(1), np.arange(len(flat))
        doubt = self.config.doubt * self._match_noise
        is_clear = flat[every, best] - flat[every, usual] > doubt
        row, column = np.unravel_index(np.where(is_clear, best, usual), maps.shape[1:])
        return np.stack([steps[0][row], steps[1][column]], axis=1)

    def measure(self, frames: Frames) -> np.ndarray:
        """Shifts [3,T,2] by all pixels and by either half, each with its noise."""
        rows, columns = self._inside

        def below(frame: np.ndarray, whole: np.ndarray) -> np.ndarray:
            down, right = whole
            there = self._tissue(frame)[
                rows.start + down : frame.shape[0] - rows.start + down,
                columns.start + right : frame.shape[1] - columns.start + right,
            ].ravel()
            found = np.empty((3, 2))
            for part, filters in enumerate(self._filters):
                strength, *change = filters @ there
                # of a frame much dimmer than the image nothing can be told
                found[part] = np.divide(change, max(strength, self.config.least_strength))
            return found

        whole = self.whole(frames)
        return np.stack(list(in_parallel(below, frames, whole)), axis=1) + whole

    def filtered(self, shifts: np.ndarray, part: int, keep: Filter) -> np.ndarray:
        """What of shifts [T,2] by a part of the pixels stands above their noise; mean 0."""
        noise = self.deviations[part]
        steps = (shifts - shifts.mean(0)) / noise
        kept: np.ndarray = keep(steps) * noise
        return kept - kept.mean(0)


def measure_motion(
    frames: Frames, background: Background, keep: Filter, config: MotionConfig
) -> Motion | None:
    """The motion in a stack [T,H,W]; None where there is hardly any, or none that can be told.

    Both halves of the pixels must tell of the same: what cells do moves nothing else. `keep` is a
    Wiener filter. Where memory is too short for aligned frames, it says so.
    """
    if len(frames) < FEWEST_FRAMES or min(frames.shape[1:]) < config.least_side:
        return None  # a cell that is active in most of a few frames would be motion
    try:
        tracker = _Tracker(background.mean, background, config)
    except np.linalg.LinAlgError:
        return None  # an image without detail along an axis looks the same wherever it lies
    measured = tracker.measure(frames)
    one, other = (tracker.filtered(measured[part], part, keep) for part in (1, 2))
    common = float((one * other).mean())
    apart = float(np.sqrt(np.square(one).mean() * np.square(other).mean()))
    shifts = tracker.filtered(measured[0], 0, keep)
    is_sane = np.abs(shifts).max() <= 2 * config.largest  # not so nan
    if not is_sane or common < max(config.least**2, config.agreement * apart):
        return None
    motion = Motion(shifts=shifts, border=tracker.border)
    needed = 4 * math.prod(frames.shape)
    if needed > config.memory_share * available_bytes():
        logger.warning(
            "  frames move by %.1f pixels and are not aligned: that would take %.1f GB; align them "
            "before, or give more memory",
            motion.deviation,
            needed / 1e9,
        )
        return replace(motion, is_left_in=True)
    # again, against an image that is not smeared
    still = motion.undone(frames)
    tracker = _Tracker(still.mean(0, dtype=np.float64), background, config)
    return replace(motion, shifts=tracker.filtered(tracker.measure(frames)[0], 0, keep))
