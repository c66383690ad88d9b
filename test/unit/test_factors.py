"""Images of simulated recordings' factors, to learn from."""

import numpy as np
import pytest
import torch

from lab import factors
from lab.factors import FactorRecording, SimulatedFactors, images_along
from lab.recordings import Ask
from model.config import LowRankConfig
from model.lowrank import LowRank

ASK = Ask(patch=(4, 8, 8), target_draws=64, median=False)


@pytest.fixture
def recording() -> FactorRecording:
    """Two blocks: six images, and two; every target is its image less one."""
    rng = np.random.default_rng(0)
    noisy = [10 + rng.normal(size=(count, 8, 8)).astype(np.float32) for count in (6, 2)]
    return FactorRecording(noisy=noisy, target=[images - 1 for images in noisy])


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


def test_a_stack_along_its_own_courses_is_what_was_kept() -> None:
    frames = np.random.default_rng(0).poisson(5, (40, 30, 26)).astype(np.float32)
    found = LowRank(frames, LowRankConfig(), keeps_noisy_images=True)
    for images, kept in zip(images_along(found, frames), found.factors.values(), strict=True):
        np.testing.assert_allclose(
            images.reshape(len(images), -1), kept.footprints, rtol=1e-3, atol=1e-3
        )


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
