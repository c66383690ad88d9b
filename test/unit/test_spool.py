"""Blocks that wait on the disk until all are there."""

import resource
from pathlib import Path

import numpy as np
import pytest

from model.spool import open_spool
from model.stack import StackError

SHAPE = (7, 30, 40)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocks_come_back_as_they_came(dtype: str, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).normal(1e9, 1, SHAPE).astype(dtype)
    blocks = [frames[:3], frames[3:4], frames[4:]]
    with open_spool(SHAPE, np.dtype(dtype), tmp_path / "x.tif") as spool:
        assert list(tmp_path.iterdir()) == []  # nameless, so that nothing can be left behind
        for block in blocks:
            spool.append(block)
        for _ in range(2):
            for found, given in zip(spool, blocks, strict=True):
                np.testing.assert_array_equal(found, given)


def test_a_disk_without_room_is_said_before_the_work(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(StackError, match=r"x\.tif: .* larger than allowed"),
            open_spool(SHAPE, np.dtype(np.float32), tmp_path / "x.tif"),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
