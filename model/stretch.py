"""The published UNet-Att's units: the result's least and greatest voxel become 0 and 65535."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from model.report import StackRecord
from model.spool import open_spool

BRIGHTEST = float(np.iinfo(np.uint16).max)


def stretched(
    blocks: Iterator[np.ndarray], shape: tuple[int, int, int], target: Path, record: StackRecord
) -> Iterator[np.ndarray]:
    """Blocks [n,H,W] of a result [T,H,W], made to span 0 to 65535; `record` gets what they spanned.

    Raises StackError where the disk has no room for them to wait until both ends are known.
    """
    with open_spool(shape, np.dtype(np.float32), target) as spool:
        low, high = np.inf, -np.inf
        for block in blocks:
            spool.append(block)
            low, high = min(low, float(block.min())), max(high, float(block.max()))
        record.stretched_from = (low, high)
        gain = BRIGHTEST / (high - low) if high > low else 0.0
        for block in spool:
            yield (block - np.float32(low)) * np.float32(gain)
