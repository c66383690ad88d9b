"""A second look at images, turned to the principal axes of each small place."""

import numpy as np
import pytest

from model.local_axes import LEAST, places, principal_axes, with_local_axes

RNG = np.random.default_rng


def images(count: int = 5, side: int = 24, blocks: int = 1) -> np.ndarray:
    return RNG(0).normal(size=(blocks, count, side, side)).astype(np.float32)


def soft(values: np.ndarray) -> np.ndarray:
    """A denoiser that takes what is faint for noise, as a network does."""
    return np.sign(values) * np.maximum(np.abs(values) - 1.5, 0)


def turned(values: np.ndarray) -> np.ndarray:
    """All images of a block but the mean, turned into one another at random."""
    axes = np.linalg.qr(RNG(3).normal(size=(values.shape[1] - 1,) * 2))[0].astype(np.float32)
    return np.concatenate([values[:, :1], np.tensordot(axes, values[0, 1:], 1)[None]], axis=1)


def test_what_a_denoiser_finds_in_any_axes_stays_as_it_was_found() -> None:
    noisy = images()
    result = with_local_axes(noisy, 0.5 * noisy, lambda seen: 0.5 * seen)
    np.testing.assert_allclose(result, 0.5 * noisy, atol=1e-5)


def test_the_result_does_not_depend_on_how_images_are_turned() -> None:
    noisy = images()
    found = soft(2 * noisy)
    expected = turned(with_local_axes(2 * noisy, found, soft))
    actual = with_local_axes(turned(2 * noisy), turned(found), soft)
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    assert np.abs(soft(turned(2 * noisy)) - turned(found)).max() > 0.5  # the first look does


def test_cells_that_many_images_share_are_told_better_from_noise() -> None:
    """Two cells side by side, each in all of eight images in a proportion of its own."""
    rng = RNG(1)
    proportions = rng.normal(size=(2, 8))
    proportions /= np.linalg.norm(proportions, axis=1, keepdims=True)
    clean = np.zeros((1, 9, 24, 24), np.float32)
    clean[0, 1:, 8:16, 2:10] = 6 * proportions[0][:, None, None]
    clean[0, 1:, 8:16, 14:22] = 6 * proportions[1][:, None, None]
    noisy = clean + rng.normal(size=clean.shape).astype(np.float32)
    found = soft(noisy)
    again = with_local_axes(noisy, found, soft)
    error, before = (np.square((each - clean)[:, 1:]).mean() for each in (again, found))
    assert error < 0.8 * before


def test_the_mean_stays_and_one_image_beside_it_too() -> None:
    noisy = images()
    result = with_local_axes(noisy, soft(2 * noisy), lambda seen: 0 * seen)
    np.testing.assert_array_equal(result[:, 0], soft(2 * noisy)[:, 0])
    assert np.abs(result[:, 1:]).max() < np.abs(soft(2 * noisy)[:, 1:]).max()
    pair = noisy[:, :2]
    assert with_local_axes(pair, pair, lambda seen: 0 * seen) is pair


def test_axes_with_nothing_along_them_are_not_looked_at() -> None:
    seen = []

    def counted(turned: np.ndarray) -> np.ndarray:
        seen.append(turned.shape)
        return turned

    found = np.zeros((1, 5, 24, 24), np.float32)
    np.testing.assert_array_equal(with_local_axes(images(), found, counted), found)
    assert not seen
    found[0, 1:, 2:10, 2:10] = 1.0  # the same in all, in one place of four
    with_local_axes(images(), found, counted)
    assert seen == [(1, 2, 24, 24)]  # one place: the mean, and one axis


def test_axes_are_orthonormal_and_those_with_most_come_first() -> None:
    found = 3 * images()[0, 1:]
    weight = np.full((24, 24), 1 / 24**2, np.float32)
    axes = principal_axes(found, weight)
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-5)
    squares = np.square(np.tensordot(axes.T, found, 1)).mean((1, 2))
    assert (np.diff(squares) <= 0).all() and squares[-1] > LEAST


@pytest.mark.parametrize("side, count", [(8, 1), (14, 1), (16, 2), (24, 2), (32, 3), (56, 4)])
def test_shares_of_places_sum_up_to_one(side: int, count: int) -> None:
    found = places(side)
    assert len(found) == count
    shares = np.zeros(side)
    for place in found:
        shares[place.seen] += place.share
    np.testing.assert_allclose(shares, 1, rtol=1e-6)
    np.testing.assert_allclose([place.weight.sum() for place in found], 1, rtol=1e-6)


@pytest.mark.parametrize("side, seen", [(24, 24), (32, 32), (64, 32)])
def test_a_place_is_seen_with_what_is_around_it(side: int, seen: int) -> None:
    for place in places(side):
        assert place.seen.stop - place.seen.start == len(place.share) == seen
        assert place.seen.start >= 0 and place.seen.stop <= side
        assert place.seen.start <= place.weight.argmax() < place.seen.stop


def test_in_large_blocks_every_pixel_is_looked_at_again() -> None:
    noisy = images(side=64)
    result = with_local_axes(noisy, 0.5 * noisy, lambda seen: 0.25 * seen)
    np.testing.assert_allclose(result[:, 1:], 0.25 * noisy[:, 1:], atol=1e-5)


def test_blocks_together_are_what_they_are_alone() -> None:
    noisy = images(blocks=3)
    noisy[1, 3:] = 0  # fewer images than the others have,
    noisy[2, 2:] = 0  # and one beside the mean
    found = soft(2 * noisy)
    together = with_local_axes(noisy, found, soft)
    for number, count in enumerate((5, 3, 2)):
        block = slice(number, number + 1), slice(count)
        alone = with_local_axes(noisy[block], found[block], soft)
        np.testing.assert_allclose(together[block], alone, atol=1e-5)
        assert not together[number, count:].any()
