"""Images of many blocks through a denoiser that sees some at a time."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from model import block_images
from model.block_images import BlockImages, blocks_at_a_time

COUNTS = (3, 1, 5, 2, 4, 1, 3)  # images of each block
SIZE = 8


@pytest.fixture
def images() -> BlockImages:
    rng = np.random.default_rng(0)
    noisy = [5 * rng.standard_normal((count, SIZE, SIZE)).astype(np.float32) for count in COUNTS]
    return BlockImages(noisy=noisy, deviation=2.0, seed=3)


def soft(images: np.ndarray) -> np.ndarray:
    """A denoiser that takes what is faint for noise, and lets rows run into the next."""
    return np.sign(images) * np.maximum(np.abs(images + 0.3 * np.roll(images, 1, -2)) - 1, 0)


def test_blocks_together_are_what_they_are_alone(
    images: BlockImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def denoise(seen: np.ndarray) -> np.ndarray:
        given.append(seen.shape)
        return soft(seen)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = list(images.denoised(denoise))
    assert given == [(len(COUNTS), max(COUNTS), SIZE, SIZE)]
    monkeypatch.setattr(block_images, "PIXELS_AT_A_TIME", 2 * SIZE**2 * sum(COUNTS) / len(COUNTS))
    together = list(images.denoised(denoise))
    assert sorted(shape[:2] for shape in given[1:]) == [(1, 3), (2, 3), (2, 4), (2, 5)]
    assert [len(result) for result in together] == list(COUNTS)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mean_is_as_bright_as_it_was_and_the_rest_what_the_denoiser_says(
    images: BlockImages,
) -> None:
    for noisy, result in zip(images.noisy, images.denoised(lambda seen: 0.5 * seen), strict=True):
        np.testing.assert_allclose(result[1:], 0.5 * noisy[1:], rtol=1e-6)
        assert result[0].mean() == pytest.approx(noisy[0].mean(), rel=1e-4, abs=1e-5)
        assert result[0].std() == pytest.approx(0.5 * noisy[0].std(), rel=1e-4)


def test_noise_has_the_variance_that_the_denoiser_is_used_to(images: BlockImages) -> None:
    seen = []
    list(images.denoised(lambda some: seen.append(some) or some))
    largest = max(np.abs(noisy).max() for noisy in images.noisy)
    assert np.abs(seen[0]).max() == pytest.approx(largest / 2.0)


def test_a_mean_that_is_noise_is_taken_from_the_denoiser_and_detail_is_not() -> None:
    rng = np.random.default_rng(1)
    noise = [rng.standard_normal((1, SIZE, SIZE)).astype(np.float32) for _ in range(40)]
    detail = [20 * each for each in noise]
    for noisy, least, most in ((noise, 0.9, 1.0), (detail, 0.0, 0.02)):
        blocks = BlockImages(noisy=noisy, deviation=1.0, seed=0)
        flat = [np.full((SIZE, SIZE), each.mean()) for each in noisy]
        share = blocks.share_of_mean(flat, lambda images: 0 * images[:, 0], probe=0.1)
        assert least <= share <= most


def test_means_that_are_asked_for_together_tell_what_they_tell_alone(
    images: BlockImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, means = [], [0.4 * noisy[0] for noisy in images.noisy]

    def denoise_means(seen: np.ndarray) -> np.ndarray:
        given.append(len(seen))
        return 0.4 * soft(seen)[:, 0]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    together = images.share_of_mean(means, denoise_means, probe=0.1)
    assert given == [len(COUNTS)]
    monkeypatch.setattr(block_images, "PIXELS_AT_A_TIME", SIZE**2)
    alone = images.share_of_mean(means, denoise_means, probe=0.1)
    assert given[1:] == len(COUNTS) * [1]
    assert 0 < together < 1
    assert alone == pytest.approx(together)


def test_a_mean_that_is_not_changed_is_followed(images: BlockImages) -> None:
    means = [noisy[0] for noisy in images.noisy]
    assert images.share_of_mean(means, lambda seen: seen[:, 0], probe=0.1) == 1.0


def test_fewer_blocks_at_a_time_where_they_are_large_and_one_at_least() -> None:
    numbers = [blocks_at_a_time(5.5, size) for size in (8, 16, 24, 48, 500)]
    assert all(more >= fewer for more, fewer in pairwise(numbers))
    assert numbers[0] > 10 and numbers[-1] == 1


def test_a_few_blocks_are_shared_among_all_cores(
    images: BlockImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    given = []
    list(images.denoised(lambda seen: given.append(len(seen)) or seen))
    assert sorted(given) == [1, 3, 3]
