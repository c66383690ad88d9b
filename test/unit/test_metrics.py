"""The challenge's score against values worked out by hand."""

import numpy as np
import pytest

from lab.metrics import stsnr

CLEAN = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])  # [T,H,W] = [2,1,2]
ERROR = np.array([[[1.0, 0.0]], [[1.0, 1.0]]])


def test_the_worked_example_scores_8_979_and_10_db() -> None:
    score = stsnr(CLEAN, CLEAN + ERROR)
    assert score.spatial == pytest.approx(8.979400, abs=1e-6)
    assert score.temporal == pytest.approx(10.0, abs=1e-6)
    assert score.stsnr == pytest.approx(9.489700, abs=1e-6)


def test_a_perfect_result_counts_100_db() -> None:
    assert stsnr(CLEAN, CLEAN).stsnr == 100.0


def test_frames_and_pixels_without_signal_are_left_out() -> None:
    padded = np.concatenate([CLEAN, np.zeros((1, 1, 2))])
    wrong = np.concatenate([CLEAN + ERROR, np.zeros((1, 1, 2))])
    assert stsnr(padded, wrong).spatial == pytest.approx(8.979400, abs=1e-6)


def test_a_truth_of_zeros_has_no_score() -> None:
    with pytest.raises(ValueError, match="zero everywhere"):
        stsnr(np.zeros((2, 2, 2)), np.ones((2, 2, 2)))


def test_stacks_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        stsnr(CLEAN, CLEAN[:1])


def test_integers_are_scored_without_overflow() -> None:
    clean = np.full((2, 4, 4), 30000, np.int16)
    assert stsnr(clean, clean - 300).stsnr == pytest.approx(40.0)
