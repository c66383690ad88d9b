"""Blocks of a result that wait until all are there, for what can be done to them only then."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from model.result_writer import write_failures_named


class Spool:
    """Takes blocks [n,H,W] in order and gives them back as they came; made by `open_spool`."""

    def __init__(self, waiting: np.ndarray) -> None:
        self._waiting = waiting  # [T,H,W]
        self._starts = [0]

    def append(self, block: np.ndarray) -> None:
        """The next block."""
        start = self._starts[-1]
        self._waiting[start : start + len(block)] = block
        self._starts.append(start + len(block))

    def __iter__(self) -> Iterator[np.ndarray]:
        for start, end in pairwise(self._starts):
            yield self._waiting[start:end]


@contextmanager
def open_spool(shape: tuple[int, ...], dtype: np.dtype[Any], target: Path) -> Iterator[Spool]:
    """Room for a result [T,H,W] of a dtype, in a nameless file beside `target`.

    Raises StackError where the disk has none.
    """
    with write_failures_named(target):
        file = TemporaryFile(dir=target.parent)  # noqa: SIM115
    with file:
        with write_failures_named(target):
            # or writing to the map would kill
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
            waiting = np.memmap(file, dtype, "r+", shape=shape)
        yield Spool(waiting)
