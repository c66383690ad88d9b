"""Figures of trust on results that are known to keep or to break what is promised."""

import numpy as np
import pytest

from lab import fidelity, load, trust
from lab.fidelity import MAX_BEAT, NUM_PLAYS, Check, beat, beats, end_losses

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 10, shape)


@pytest.mark.parametrize("period", [12, 16, 24, 32])
def test_a_beat_stands_out_at_its_own_period_alone(period: int) -> None:
    profile = 100 + RNG.normal(0, 10, 600)
    assert beat(profile, period) < MAX_BEAT
    profile += 8 * np.sin(2 * np.pi * np.arange(600) / period)
    assert beat(profile, period) > MAX_BEAT
    assert beat(profile, period + 5) < MAX_BEAT


@pytest.mark.parametrize(("length", "period"), [(600, 16), (600, 32), (127, 12), (127, 32)])
def test_chance_hardly_ever_looks_like_a_beat(length: int, period: int) -> None:
    found = [beat(100 + RNG.normal(0, 10, length), period) for _ in range(2000)]
    assert np.mean(np.array(found) > MAX_BEAT) < 2e-3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_windows_that_are_not_blended_are_found(axis: int) -> None:
    """Every window has an error of its own, so the error jumps where they meet."""
    clean = np.zeros((200, 128, 128))
    size = 32
    steps = np.resize(np.repeat([-5.0, 5.0], size), clean.shape[axis])
    shape = [1, 1, 1]
    shape[axis] = -1
    seamed = noise(*clean.shape) + steps.reshape(shape)
    name = ("frames", "rows", "columns")[axis]
    assert dict(beats(seamed, clean))[f"{size} {name}"] > MAX_BEAT
    assert max(dict(beats(noise(*clean.shape), clean)).values()) < MAX_BEAT


def test_ends_are_compared_with_the_same_frames_of_the_middle_play() -> None:
    clean = np.concatenate([100 + 50 * np.random.default_rng(3).random((80, 20, 20))] * NUM_PLAYS)
    result = clean + noise(*clean.shape)
    assert max(map(abs, end_losses(clean, result))) < 0.3
    result[:10] += 3 * noise(10, 20, 20)
    first, last = end_losses(clean, result)
    assert first > 2
    assert abs(last) < 0.3


def kept(found: list[Check]) -> dict[str, bool]:
    return {check.name.split(": ")[1]: check.is_kept for check in found}


def test_a_gaussian_loses_events_and_leaves_the_scene_unquiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fidelity, "SHAPE", (80, 40, 40))
    monkeypatch.setattr(fidelity, "SCENE", ((100, 40, 40), 211))

    def mean_of_all(noisy: np.ndarray) -> np.ndarray:
        return np.broadcast_to(noisy.mean(0, keepdims=True), noisy.shape)

    still = kept(list(fidelity._movie_checks(0, 1, mean_of_all)))
    assert not still["height of all events"]
    assert still["mean"]
    darker = kept(list(fidelity._movie_checks(0, 1, lambda noisy: 0.98 * mean_of_all(noisy))))
    assert not darker["mean"]
    scene = kept(list(fidelity._scene_checks(1, lambda noisy: noisy)))
    assert not scene["sd in time"]
    assert kept(list(fidelity._scene_checks(1, lambda noisy: np.full(noisy.shape, 211.0)))) == {
        "events": True, "sd in time": True, "sd of the mean image": True, "mean": True,
    }  # fmt: skip


def test_loads_of_small_size_are_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MANY", 3)
    monkeypatch.setattr(load, "NUM_OTHERS", 200)
    monkeypatch.setattr(load, "LONG_TILE", (30, 24, 24))
    monkeypatch.setattr(load, "LONG_TILES", (4, 2, 1))
    found = list(load.checks(("--device", "cpu", "--method", "lowrank")))
    assert [check.is_kept for check in found] == [True, True, True]
    assert found[0].figure.startswith("3 written")
    assert "(120, 48, 24)" in found[2].name


def test_the_table_says_what_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Check(name="the moon", figure="cheese", limit="stone", is_kept=False)
    monkeypatch.setattr(trust, "PARTS", {"fuzz": lambda _: iter([bad])})
    assert trust.main(["--only", "fuzz"]) == 1
    assert "cheese" in (shown := capsys.readouterr().out)
    assert "NOT KEPT" in shown
    assert "1 checks, 1 not kept" in shown


def test_damaged_files_are_part_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert trust.main(["--only", "fuzz", "--files", "60"]) == 0
    assert "60 damaged TIFF and MHA files" in capsys.readouterr().out
