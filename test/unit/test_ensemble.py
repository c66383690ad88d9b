"""The mean over block sizes: what it is the mean of, and what it does without time."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lab.factors import as_guessed
from lab.metrics import stsnr
from lab.noise import noisy_recording
from lab.parts import wandering
from lab.simulate import random_movie
from model import ensemble
from model.budget import Budget
from model.config import LowRankConfig
from model.ensemble import LowRankEnsemble
from model.lowrank import DenoiseCourses, LowRank

ONE = replace(LowRankConfig(), block=16, sampled_blocks=4, space_sigmas=(0.5, 1.0))
CONFIG = replace(ONE, other_blocks=(12, 20))


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    rng = np.random.default_rng(3)
    return random_movie(rng, (160, 40, 44)).numpy()


@pytest.fixture(scope="module")
def noisy(clean: np.ndarray) -> np.ndarray:
    return noisy_recording(clean, 1, seed=0)


def found_in(frames: np.ndarray, config: LowRankConfig = CONFIG) -> LowRankEnsemble:
    found = LowRankEnsemble(LowRank(frames, config))
    found.find()
    return found


def rendered(found: LowRankEnsemble | LowRank, frames: slice = slice(None)) -> np.ndarray:
    return np.concatenate(list(found.render(frames)))


def test_without_other_sizes_it_is_the_plain_decomposition(noisy: np.ndarray) -> None:
    alone = LowRank(noisy, ONE)
    alone.find()
    assert np.array_equal(rendered(found_in(noisy, ONE)), rendered(alone))


def test_it_is_the_mean_over_sizes_and_nearer_to_the_truth_than_theirs(
    clean: np.ndarray, noisy: np.ndarray
) -> None:
    found = found_in(noisy)
    sizes = [rendered(member) for member in found.members]
    assert [member.config.block for member in found.members] == [16, 12, 20]
    result = rendered(found)
    np.testing.assert_allclose(result, np.mean(sizes, axis=0), rtol=1e-6)
    scores = [stsnr(clean, each).stsnr for each in sizes]
    assert stsnr(clean, result).stsnr > np.mean(scores) + 0.1


@pytest.mark.parametrize(
    "field, sizes",
    [
        ((80, 70), (20, 48, 12)),
        ((80, 43), (20, 40, 12)),
        ((19, 80), (12,)),  # all the field is the first size
        ((9, 80), (8,)),
        ((3, 80), ()),
    ],
)
def test_other_sizes_are_no_larger_than_the_field(
    field: tuple[int, int], sizes: tuple[int, ...]
) -> None:
    assert replace(ONE, other_blocks=(20, 48, 12)).other_sizes(field) == sizes


def test_a_field_smaller_than_a_block_is_one(noisy: np.ndarray) -> None:
    found = found_in(noisy, replace(ONE, other_blocks=(48,)))
    assert [member.config.block for member in found.members] == [16, 40]
    assert len(found.members[1].factors) == 2  # of 40 and 44 pixels
    assert not found.left_out


def test_sizes_share_what_was_measured_but_for_the_threshold(noisy: np.ndarray) -> None:
    first, *others = LowRankEnsemble(LowRank(noisy, CONFIG)).members
    for other in others:
        assert other.background is first.background
        assert other.looks.first.space_sigma == first.looks.first.space_sigma
        assert other.looks.first.threshold != first.looks.first.threshold


def test_where_memory_is_short_other_sizes_are_left_out(
    noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = iter([math.inf, 0.0])  # for the second size, not for the third
    monkeypatch.setattr(ensemble, "available_bytes", lambda: next(room))
    found = found_in(noisy)
    assert [member.config.block for member in found.members] == [16, 12]
    assert found.left_out == (20,)
    assert rendered(found).shape == noisy.shape


def test_a_stretch_is_that_part_of_the_whole(noisy: np.ndarray) -> None:
    found = found_in(noisy)
    np.testing.assert_allclose(rendered(found, slice(30, 110)), rendered(found)[30:110], rtol=1e-6)


def test_what_moves_is_moved_back_once(clean: np.ndarray) -> None:
    found = found_in(noisy_recording(wandering(clean), 1, seed=0))
    assert found.members[0].motion
    sizes = [rendered(member) for member in found.members]
    np.testing.assert_allclose(rendered(found), np.mean(sizes, axis=0), rtol=1e-4)


def test_images_and_counts_are_of_all_sizes(noisy: np.ndarray) -> None:
    found = LowRankEnsemble(LowRank(noisy, CONFIG))
    found.find(as_guessed)
    assert found.num_blocks == sum(len(member.factors) for member in found.members)
    assert found.num_components == sum(member.num_components for member in found.members)
    seen = set()

    def denoise(images: np.ndarray) -> np.ndarray:
        seen.add(images.shape[2:])
        return images.copy()

    found.denoise_images(denoise)
    assert seen == {(16, 16), (12, 12), (20, 20)}


@pytest.mark.parametrize("seconds, left_out", [(math.inf, ()), (1e6, ()), (0.0, (12, 20))])
def test_other_sizes_are_left_out_where_time_is_short(
    noisy: np.ndarray, seconds: float, left_out: tuple[int, ...]
) -> None:
    budget = Budget(seconds)
    found = LowRankEnsemble(LowRank(noisy, CONFIG, budget=budget), budget)
    assert found.left_out == left_out
    assert len(found.members) == 3 - len(left_out)


@pytest.mark.parametrize("seconds, left_out", [(30.0, ()), (29.0, (20,)), (19.0, (12, 20))])
def test_as_many_sizes_as_there_is_time_for(
    noisy: np.ndarray, seconds: float, left_out: tuple[int, ...]
) -> None:
    first = LowRank(noisy, CONFIG)
    first.seconds = 10.0
    found = LowRankEnsemble(first, Budget(seconds, lambda: 0.0))
    assert found.left_out == left_out
    assert [member.config.block for member in found.members] == [16, 12, 20][: 3 - len(left_out)]


@pytest.mark.parametrize("seconds, left_out", [(1000.0, ()), (49.0, (20,)), (39.0, (12, 20))])
def test_other_sizes_are_left_out_where_the_first_took_longer_than_expected(
    noisy: np.ndarray, seconds: float, left_out: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds to find those of a size, and as many for their images: 30 and then 40 needed."""
    now = 0.0
    find = LowRank.find

    def slow(self: LowRank, denoise_courses: DenoiseCourses | None = None) -> None:
        nonlocal now
        now += 10
        find(self, denoise_courses)

    monkeypatch.setattr(LowRank, "find", slow)
    found = LowRankEnsemble(LowRank(noisy, CONFIG), Budget(seconds, lambda: now))
    found.find()
    assert (found.left_out, found.lack) == (left_out, "time")
    assert len(found.members) == 3 - len(left_out)
