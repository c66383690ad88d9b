"""What the network would gain by knowing a movie, on a small one."""

from pathlib import Path

import numpy as np
import pytest

from lab import oracle
from lab.simulate import random_movie


def test_the_rest_of_a_movie_is_all_but_the_corner_that_is_kept() -> None:
    movie = np.arange(2 * 70 * 60).reshape(2, 70, 60)
    parts = oracle.around_the_corner(movie)
    kept = set(movie.ravel()) - set(np.concatenate([part.ravel() for part in parts]))
    assert kept == set(oracle.held_out(movie).ravel())


def test_a_network_that_was_told_the_answer_is_nearer_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(oracle, "DRAWS", 1)
    rng = np.random.default_rng(4)
    movie = np.rint(random_movie(rng, (100, 104, 104)).numpy()).astype(np.int16)
    path = tmp_path / "movie.npz"
    np.savez(path, frame_difference=np.diff(movie, axis=0, prepend=np.zeros_like(movie[:1])))
    oracle.main([str(path), "--iterations", "40"])
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split("|")[1].strip() for row in rows] == [
        "movie, as shipped",
        "movie, taught by the tissue around",
        "movie, taught by the corner itself",
    ]
    shipped, _, corner = ([float(cell) for cell in row.split("|")[2:5]] for row in rows)
    np.testing.assert_array_less(shipped, corner)
