"""What a recording is once read, what it may hold, and the error for all that goes wrong with it.

Nothing here touches a recording's file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.memory import available_bytes

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
FLOATS = ("float16", "float32", "float64")
BLOCK_VOXELS = 2**24  # looked at or converted at a time: 64 MiB of float32


class StackError(ValueError):
    """A stack that cannot be read, denoised or written; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class StackMetadata:
    """What a recording carries besides its voxels, as found in its file."""

    description: str = ""
    """ImageDescription: ImageJ's lines, OME-XML, tifffile's JSON or any other text."""
    imagej: dict[str, Any] = field(default_factory=dict)
    """ImageJ's binary block: Info, Labels, Ranges, LUTs, ROI and so on."""
    resolution: tuple[tuple[int, int], tuple[int, int]] | None = None
    """Pixels per unit in x and y, as fractions; only if the platform accepts it."""
    resolution_unit: str | None = None
    """INCH or CENTIMETER, or None where there is no resolution."""
    pixel_size_um: tuple[float, float] | None = None
    """In x and y; only if the description says it, for a bare resolution is mostly made up."""
    frame_interval_seconds: float | None = None
    spacing: tuple[float, ...] = ()
    """This and the next two: a .mha file's geometry, in x, y, t."""
    origin: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A recording in memory, or mapped into it."""

    path: Path
    frames: np.ndarray
    """[T,H,W], read-only; memory-mapped if the file allows it."""
    dtype: np.dtype[Any]
    """The file's, in native byte order, and so the result's."""
    is_single_frame: bool
    """The file held [H,W], not [1,H,W]; so will the result."""
    num_replaced: int
    """NaN and infinite voxels, replaced by the median of the others."""
    metadata: StackMetadata

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, rows and columns."""
        num_frames, height, width = self.frames.shape
        return num_frames, height, width


def require_dtype(path: Path, dtype: np.dtype[Any] | None, found: str = "") -> np.dtype[Any]:
    """The dtype in native byte order, if it is one of those that can be denoised."""
    if dtype is None or dtype.name not in INTEGERS + FLOATS:
        raise StackError(
            f"{path.name}: voxels of type {dtype or found or 'unknown'}, expected one of "
            f"{', '.join(INTEGERS + FLOATS)}; convert it, for example to 16-bit"
        )
    return dtype.newbyteorder("=")


def require_memory(path: Path, num_bytes: int) -> None:
    """Refuse a stack that would not fit, before a header's promise is believed."""
    available = available_bytes()
    if num_bytes > available:
        raise StackError(
            f"{path.name}: needs {num_bytes / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are "
            "left; use a machine with more, or split the file"
        )
