"""Pretraining: the recipe, and that an interrupted run ends with the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lab.movies import HELD_OUT_FROM, held_out
from lab.noise import LEVELS, add_noise, noisy_recording
from lab.pretrain import PretrainConfig, Run, clean_patch, noisy_pair


@pytest.fixture
def movies() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(50, 600, (40, 120, 120)).astype(np.int16)]


def test_noise_has_the_mean_and_the_variance_of_its_level() -> None:
    clean = np.full((40, 64, 64), 211.0)
    for gain, read in LEVELS.values():
        noisy = add_noise(clean, gain, read, np.random.default_rng(0))
        assert noisy.mean() == pytest.approx(211.0, rel=0.02)
        assert noisy.var() == pytest.approx(211.0 * gain + read**2, rel=0.03)


def test_a_recording_is_int16_and_depends_on_its_seed_alone(movies: list[np.ndarray]) -> None:
    first, again, other = (noisy_recording(movies[0], 2, seed) for seed in (0, 0, 1))
    assert first.dtype == np.int16
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_training_patch_touches_the_held_out_corner(movies: list[np.ndarray]) -> None:
    marked = np.zeros_like(movies[0])
    held_out(marked)[:] = 1
    rng = np.random.default_rng(0)
    for _ in range(300):
        _, patch = clean_patch([marked], (4, 32, 32), rng)
        assert patch.max() == 0
    assert HELD_OUT_FROM == 56


def test_the_two_draws_of_a_pair_share_the_scene_and_not_the_noise(
    movies: list[np.ndarray],
) -> None:
    config = PretrainConfig(gain_range=(15.0, 15.001))
    first, second = noisy_pair(movies, (16, 32, 32), config, np.random.default_rng(0))
    assert first.shape == second.shape == (1, 1, 16, 32, 32)
    together = torch.stack([first.flatten(), second.flatten()])
    assert 0.5 < float(torch.corrcoef(together)[0, 1]) < 0.99


def test_the_learning_rate_rises_then_falls_to_its_end() -> None:
    config = PretrainConfig()
    rates = [config.learning_rate_at(step) for step in range(config.steps)]
    assert max(rates) == pytest.approx(config.learning_rate)
    assert rates.index(max(rates)) in (config.ramp_steps - 1, config.ramp_steps)
    assert rates[-1] == pytest.approx(config.final_learning_rate, rel=0.1)


def test_an_interrupted_run_ends_with_the_same_weights(
    movies: list[np.ndarray], tmp_path: Path
) -> None:
    config = PretrainConfig(curriculum=((4, (6, 8, 8)),))
    whole = Run(config, tmp_path / "whole")
    for _ in range(4):
        whole.advance(movies)
    for steps in (2, 2):
        part = Run(config, tmp_path / "part")
        for _ in range(steps):
            part.advance(movies)
        part.save()
    assert part.step == whole.step == 4
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, part.average.state_dict()[name]), name
