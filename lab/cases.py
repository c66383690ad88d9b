"""What an evaluation is made of: clean stacks on disk, and noisy recordings drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import tifffile

from lab.movies import held_out, load_movie
from lab.noise import LEVELS, noisy_recording
from model.stack import StackError
from model.stack_io import read_stack

MIN_SIDE = 11  # of a frame: SSIM's window
MIN_FRAMES = 2


class CaseError(ValueError):
    """A clean stack that cannot be evaluated on; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One clean stack at one noise level, and which part of it."""

    stack: Path
    level: int
    frames: tuple[int, int]  # first, and end
    held_out: bool
    seed: int  # of the noise

    @property
    def name(self) -> str:
        """Of files and columns."""
        return f"{self.stack.stem}_{self.level}"

    def clean(self) -> np.ndarray:
        """The truth [T,H,W] in counts; CaseError where it is none."""
        stack = _read_clean(self.stack)
        if self.held_out:
            stack = held_out(stack)
        first, end = self.frames
        stack = stack[first:end]
        _require_truth(self.stack, stack, self.level)
        return stack

    def noisy(self, clean: np.ndarray) -> np.ndarray:
        """The int16 recording [T,H,W] of `clean()`; the same one for every evaluation."""
        return noisy_recording(clean, self.level, self.seed)


def _read_clean(path: Path) -> np.ndarray:
    """All of a clean movie: differences in a `.npz`, or a stack of any format that can be read."""
    if path.suffix == ".npz":
        try:
            return load_movie(path)
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise CaseError(
                f"{path}: not a movie of lab.movies ({error}); a clean stack may also be a .tif"
            ) from error
    try:
        stack = read_stack(path)
    except StackError as error:
        raise CaseError(str(error)) from error
    if stack.num_replaced:
        raise CaseError(f"{path}: {stack.num_replaced} voxels are NaN or infinite, so no truth")
    return stack.frames


def brightest(level: int) -> int:
    """The largest clean count whose recording fits int16, six deviations of the noise included."""
    gain, read_deviation = LEVELS[level]
    counts = np.arange(np.iinfo(np.int16).max)
    noisy = counts + 6 * np.sqrt(counts * gain + read_deviation**2)
    return int(np.searchsorted(noisy, np.iinfo(np.int16).max))


def _require_truth(path: Path, clean: np.ndarray, level: int) -> None:
    """Refuse what the noise or the scores are not made for, before hours are spent on it."""
    if len(clean) < MIN_FRAMES or min(clean.shape[1:]) < MIN_SIDE:
        raise CaseError(
            f"{path}: the part to evaluate is {clean.shape}, expected [T,H,W] of at least "
            f"{(MIN_FRAMES, MIN_SIDE, MIN_SIDE)}; choose other --frames, or leave out --held-out"
        )
    low, high = float(clean.min()), float(clean.max())
    if low < 0 or low == high:
        raise CaseError(
            f"{path}: values from {low:g} to {high:g}, expected counts of 0 or more that vary; "
            "subtract the offset of the detector"
        )
    if high > brightest(level):
        raise CaseError(
            f"{path}: values up to {high:g}, too bright for a 16-bit recording at noise level "
            f"{level}; scale the stack to a mean of about 200"
        )


def make_cases(
    stacks: Sequence[Path],
    levels: Sequence[int],
    *,
    frames: tuple[int, int],
    held_out: bool,
    seed: int,
) -> list[Case]:
    """Every stack at every level; CaseError for one that is missing, unfit or named twice."""
    if missing := [str(path) for path in stacks if not path.is_file()]:
        raise CaseError(f"no such file: {', '.join(missing)}")
    if not 0 <= frames[0] < frames[1]:
        raise CaseError(f"--frames {frames[0]} {frames[1]}: expected a first frame and a later end")
    cases = [
        Case(stack=path, level=level, frames=frames, held_out=held_out, seed=seed)
        for path in stacks
        for level in levels
    ]
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CaseError(f"named twice: {', '.join(twice)}; results are kept by name, so rename one")
    for case in cases:
        case.clean()  # better refused now than after hours of the cases before
    return cases


def write_recording(path: Path, noisy: np.ndarray) -> None:
    """Write a recording [T,H,W] as TIFF, whole, and not compressed so that it can be mapped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    tifffile.imwrite(temporary, noisy, photometric="minisblack", metadata={"axes": "TYX"})
    temporary.replace(path)
