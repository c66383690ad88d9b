"""What every part of lowrank_unet does, on a small movie."""

from pathlib import Path

import numpy as np
import pytest

from lab import parts
from lab.simulate import random_movie


def test_every_variant_is_scored_and_the_truth_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "LENGTHS", (100,))
    monkeypatch.setattr(parts, "MOVING_LENGTH", 100)
    rng = np.random.default_rng(4)
    movie = np.rint(random_movie(rng, (100, 104, 104)).numpy()).astype(np.int16)
    path = tmp_path / "movie.npz"
    np.savez(path, frame_difference=np.diff(movie, axis=0, prepend=np.zeros_like(movie[:1])))
    parts.main([str(path)])
    printed = capsys.readouterr().out
    assert "| 100 frames, moving | level 1 | level 2 | level 3 |" in printed
    rows = {
        cells[1].strip(): [float(cell) for cell in cells[2:5]]
        for line in reversed(printed.splitlines())  # of the brain that keeps still
        if (cells := line.split("|")) and len(cells) == 6 and "." in cells[2]
    }
    assert len(rows) == 9
    np.testing.assert_array_less(rows["no network (lowrank)"], rows["both"])
    np.testing.assert_array_less(rows["both"], rows["both, in all sizes (lowrank_unet)"])
    np.testing.assert_array_less(rows["both"], rows["told the true images"])
