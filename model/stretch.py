"""The published UNet-Att's units: the result's least and greatest voxel become 0 and 65535."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from model.report import StackRecord
from model.result_writer import write_failures_named

BRIGHTEST = float(np.iinfo(np.uint16).max)


def stretched(
    blocks: Iterator[np.ndarray], shape: tuple[int, int, int], target: Path, record: StackRecord
) -> Iterator[np.ndarray]:
    """Blocks [n,H,W] of a result [T,H,W], made to span 0 to 65535; `record` gets what they spanned.

    Both ends are known only when all blocks are, so these wait in a nameless file beside the
    target. Raises StackError where the disk has no room for it.
    """
    with TemporaryFile(dir=target.parent) as file:
        num_bytes = int(np.prod(shape)) * np.dtype(np.float32).itemsize
        with write_failures_named(target):
            os.posix_fallocate(file.fileno(), 0, num_bytes)  # or writing to the map would kill
        waiting = np.memmap(file, np.float32, "r+", shape=shape)
        starts = [0]
        low, high = np.inf, -np.inf
        for block in blocks:
            waiting[starts[-1] : starts[-1] + len(block)] = block
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            starts.append(starts[-1] + len(block))
        record.stretched_from = (low, high)
        gain = BRIGHTEST / (high - low) if high > low else 0.0
        for start, end in pairwise(starts):
            yield (waiting[start:end] - np.float32(low)) * np.float32(gain)
