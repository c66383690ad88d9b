"""Blocks of a result that wait until all are there, for what can be done to them only then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from model.result_writer import write_failures_named


class Spool:
    """Takes blocks [n,H,W] in order and gives them back as they came; made by `open_spool`."""

    def __init__(self, waiting: np.ndarray) -> None:
        self._waiting = waiting  # [T,H,W] float32
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
def open_spool(shape: tuple[int, ...], target: Path) -> Iterator[Spool]:
    """Room for a result [T,H,W] in float32, in a nameless file beside `target`.

    Raises StackError where the disk has none.
    """
    with write_failures_named(target):
        file = TemporaryFile(dir=target.parent)  # noqa: SIM115
    with file:
        num_bytes = int(np.prod(shape)) * np.dtype(np.float32).itemsize
        with write_failures_named(target):
            os.posix_fallocate(file.fileno(), 0, num_bytes)  # or writing to the map would kill
        yield Spool(np.memmap(file, np.float32, "r+", shape=shape))
