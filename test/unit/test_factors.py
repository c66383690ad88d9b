"""Images of simulated recordings' factors, to learn from."""

import numpy as np
import pytest
import torch

from lab import factors
from lab.factors import FactorRecording, SimulatedFactors, as_guessed, factors_of
from lab.recordings import Ask
from model.config import LowRankConfig
from model.lowrank import LowRank

ASK = Ask(patch=(4, 8, 8), target_draws=64, median=False)
ASK_COURSES = Ask(patch=(3, 1, 20), target_draws=64, median=False)


@pytest.fixture
def recording() -> FactorRecording:
    """Two blocks: six images, and two; every target is its image less one.

    Five courses of 30 frames, each with a number of its own; a target is its course less one.
    """
    rng = np.random.default_rng(0)
    noisy = [10 + rng.normal(size=(count, 8, 8)).astype(np.float32) for count in (6, 2)]
    courses = np.arange(10.0, 15.0)[:, None] + rng.uniform(0, 0.1, (5, 30))
    return FactorRecording(
        noisy=noisy,
        target=[images - 1 for images in noisy],
        courses=[
            np.stack([part, part + 100, part + 50, part - 1]).astype(np.float32)
            for part in (courses[:3], courses[3:])
        ],
    )


def test_the_mean_comes_first_and_as_it_is(recording: FactorRecording) -> None:
    for seed in range(20):
        example = recording.draw(ASK, np.random.default_rng(seed))
        drawn = np.sort(example.noisy[0, 0].numpy().ravel())
        means = [np.sort(images[0].ravel()) for images in recording.noisy]
        assert any(np.array_equal(drawn, mean) for mean in means)


def test_the_target_is_turned_and_signed_as_the_image(recording: FactorRecording) -> None:
    signs = set()
    for seed in range(20):
        example = recording.draw(ASK, np.random.default_rng(seed))
        assert example.target is not None
        used = example.noisy.flatten(2).any(dim=2)[0]
        sign = torch.sign(example.noisy[0, used].mean(dim=(1, 2)))
        signs |= set(sign.tolist())
        gap = (example.noisy - example.target)[0, used]
        torch.testing.assert_close(gap, sign[:, None, None].expand_as(gap), rtol=0, atol=1e-4)
    assert signs == {-1.0, 1.0}


def test_fewer_images_than_asked_for_are_filled_up_with_zeros(recording: FactorRecording) -> None:
    counts = {
        int(recording.draw(ASK, np.random.default_rng(seed)).noisy.flatten(2).any(dim=2).sum())
        for seed in range(20)
    }
    assert counts == {2, 4}


def test_courses_come_with_their_guess_and_target_of_either_sign(
    recording: FactorRecording,
) -> None:
    signs, kinds = set(), set()
    for seed in range(20):
        example = recording.draw(ASK_COURSES, np.random.default_rng(seed))
        assert example.noisy.shape == (3, 3, 1, 20)
        assert example.target is not None and example.target.shape == (1, 3, 1, 20)
        noisy, guess, known = example.noisy
        sign = torch.sign(noisy.mean(dim=(1, 2), keepdim=True))
        for other, apart in ((guess, 100), (known, 50)):
            torch.testing.assert_close(
                other - noisy, apart * sign.expand_as(noisy), rtol=0, atol=1e-4
            )
        torch.testing.assert_close(
            noisy - example.target[0], sign.expand_as(noisy), rtol=0, atol=1e-4
        )
        signs |= set(sign.flatten().tolist())
        kinds |= set(noisy.abs().mean(dim=(1, 2)).int().tolist())
    assert signs == {-1.0, 1.0}
    assert kinds == {10, 11, 12, 13, 14}


def test_too_few_courses_are_filled_up_with_zeros_and_short_ones_mirrored(
    recording: FactorRecording,
) -> None:
    ask = Ask(patch=(7, 1, 40), target_draws=64, median=False)
    example = recording.draw(ask, np.random.default_rng(0))
    noisy = example.noisy[0, :, 0]
    assert not noisy[5:].any()
    torch.testing.assert_close(noisy[:5, 30:], noisy[:5, 20:30].flip(1))


def test_a_recording_against_itself_has_no_other_images() -> None:
    frames = np.random.default_rng(0).poisson(5, (40, 30, 26)).astype(np.float32)
    frames[10:20] *= 2
    recording = factors_of(LowRank(frames, LowRankConfig()), frames, as_guessed)
    assert sum(map(len, recording.noisy)) > len(recording.noisy)  # more than means
    for noisy, target in zip(recording.noisy, recording.target, strict=True):
        np.testing.assert_allclose(target, noisy, rtol=1e-3, atol=1e-2)
    noisy, guess, _, target = recording.all_courses
    np.testing.assert_allclose(target, noisy, rtol=1e-3, atol=1e-2)
    assert np.square(np.diff(guess)).sum() < np.square(np.diff(noisy)).sum()


def test_recordings_are_shared_and_the_same_for_the_same_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(factors, "NUM_FRAMES", (40,))
    monkeypatch.setattr(factors, "MAX_SIDE", 40)
    cpu = torch.device("cpu")
    source, again = (SimulatedFactors("lowrank_unet", 3, cpu) for _ in range(2))
    first = source.recording(0, 0)
    assert source.recording(factors.TRACKS, factors.NUMBERS_PER_RECORDING - 1) is first
    others = source.recording(1, 0), source.recording(0, factors.NUMBERS_PER_RECORDING)
    for other in others:
        assert not np.array_equal(other.noisy[0][0], first.noisy[0][0])
    for ours, same in zip(first.noisy, again.recording(0, 0).noisy, strict=True):
        np.testing.assert_array_equal(ours, same)
    # the target is the same scene with a 64th of the noise's variance
    gap = np.concatenate([a[0] - b[0] for a, b in zip(first.noisy, first.target, strict=True)])
    assert gap.std() == pytest.approx(1.0, rel=0.25)
