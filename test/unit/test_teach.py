"""Learning from the recording itself: from what, what it changes, and when it does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lab.factors import as_guessed
from model import teach as teaching
from model.budget import Budget
from model.config import LowRankConfig, TeachConfig
from model.device import pick_device
from model.factor_denoiser import FactorDenoiser
from model.lowrank import LowRank
from model.teach import (
    LEAST_PART,
    TeachReport,
    image_pairs,
    moved_in_time,
    part_between,
    teach,
)

LOW_RANK = replace(LowRankConfig(), block=16, sampled_blocks=4, space_sigmas=(0.5, 1.0))
CONFIG = TeachConfig(steps=30, learning_rate=0.03, ramp=5, average_decay=0.5)
CPU = pick_device("cpu")


class Scaled(nn.Module):
    """A network for images that has one number to learn."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images: Tensor) -> Tensor:
        """The images times that number."""
        return self.factor * images


class ScaledButTheMean(Scaled):
    """One that leaves the first image as it is."""

    def forward(self, images: Tensor) -> Tensor:
        """The images, all but the mean times that number."""
        return torch.cat([images[:, :, :1], self.factor * images[:, :, 1:]], dim=2)


class Guessing(FactorDenoiser):
    """One whose network is for images alone."""

    def courses(self, courses: np.ndarray, guess: np.ndarray, known: np.ndarray) -> np.ndarray:
        """The guess."""
        return as_guessed(courses, guess, known)


class WithoutMemory(Scaled):
    """One for which there is none when it trains."""

    def forward(self, images: Tensor) -> Tensor:
        """Nothing."""
        raise torch.OutOfMemoryError("no room")


def recording(
    num_frames: int = 240, height: int = 32, width: int = 56, *, is_fast: bool = False
) -> np.ndarray:
    """Cells with slow courses in noise of one deviation, everywhere in the field: [T,H,W].

    Fast ones decay within two frames.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    movie = np.full((num_frames, height, width), 100.0)
    for row in range(8, height, 16):
        for column in range(8, width, 16):
            footprint = np.exp(-(np.square(rows - row) + np.square(columns - column)) / 18)
            phase, period = rng.uniform(0, 2 * np.pi), rng.uniform(30, 60)
            course = np.sin(2 * np.pi * np.arange(num_frames) / period + phase)
            if is_fast:
                decay = np.exp(-np.arange(12) / 1.5)
                course = 3 * np.convolve(rng.random(num_frames) < 0.05, decay)[:num_frames]
            movie += 3 * course[:, None, None] * footprint
    return movie + rng.normal(size=movie.shape)


def found_in(frames: np.ndarray) -> LowRank:
    found = LowRank(frames, LOW_RANK)
    found.find(as_guessed)
    return found


@pytest.fixture(scope="module")
def measured() -> LowRank:
    return found_in(recording())


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[teaching.Pair]:
    """What would be learned from; nothing is."""
    pairs: list[teaching.Pair] = []

    def learned(
        denoiser: FactorDenoiser, taught: list[teaching.Pair], *_: object
    ) -> tuple[nn.Module, int]:
        pairs.extend(taught)
        return denoiser.net, 0

    monkeypatch.setattr(teaching, "_learned", learned)
    return pairs


def taught(
    net: nn.Module, measured: LowRank, config: TeachConfig = CONFIG, seconds: float = np.inf
) -> TeachReport | None:
    denoiser = Guessing(net=net, device=CPU)
    return teach(denoiser, measured, config, Budget(seconds), seed=0)


# ---- What is learned from ----------------------------------------------------------------------


def test_courses_are_moved_by_parts_of_a_frame() -> None:
    frames = np.arange(80.0)[:, None]

    def bump(centre: float) -> np.ndarray:
        return np.exp(-np.square(frames - centre) / 18)

    np.testing.assert_allclose(moved_in_time(bump(40), 0.5), bump(39.5), atol=1e-6)
    np.testing.assert_allclose(moved_in_time(bump(40), -0.5), bump(40.5), atol=1e-6)


def course(name: str) -> np.ndarray:
    """Of 200 frames, of norm 1 and without a mean."""
    frames = np.arange(200)
    values = {
        "slow": np.sin(2 * np.pi * (frames + 0.5) / 50),
        "fast": np.exp(-(frames % 25) / 1.5),
        "faster": np.sin(2 * np.pi * (frames + 0.5) / 2.5),
    }[name]
    values = values - values.mean()
    return values / np.linalg.norm(values)


@pytest.mark.parametrize("later", [0.5, -0.5])
@pytest.mark.parametrize("name", ["slow", "fast", "faster"])
def test_the_part_of_a_course_that_the_frames_between_show(name: str, later: float) -> None:
    constant = np.full(200, 200**-0.5)
    of_all = np.stack([constant, course(name)], axis=1)
    seen, between = (of_all[0::2], of_all[1::2]) if later > 0 else (of_all[1::2], of_all[0::2])
    there = moved_in_time(seen[:, 1:], later)
    there -= there.mean(0)
    shown = float(between[:, 1] @ there[:, 0] / np.square(seen[:, 1]).sum())
    part = part_between(seen, seen, between, later)
    assert part[0] == pytest.approx(1)
    assert part[1] == pytest.approx(max(shown, LEAST_PART), abs=0.02)
    kept = {"slow": (0.99, 1), "fast": (0.55, 0.9), "faster": (LEAST_PART, LEAST_PART)}
    assert kept[name][0] <= part[1] <= kept[name][1]


def test_of_a_course_that_was_not_found_in_all_frames_nothing_is_lost() -> None:
    constant = np.full((100, 1), 0.1)
    courses = np.stack([constant[:, 0], course("fast")[::2]], axis=1)
    courses[:, 1] -= courses[:, 1].mean()
    np.testing.assert_allclose(part_between(courses, constant, constant, 0.5), 1)


def test_the_other_images_show_the_same_tissue(measured: LowRank) -> None:
    compared = 0
    for _, pair in image_pairs(measured, as_guessed, CONFIG):
        np.testing.assert_allclose(pair.other[0], pair.seen[0], atol=10)  # the mean is one of them
        assert pair.seen[0].min() > 10
        for seen, other in zip(pair.seen[1:], pair.other[1:], strict=True):
            if np.square(seen).mean() > 5:
                assert np.corrcoef(seen.ravel(), other.ravel())[0, 1] > 0.7
                compared += 1
    assert compared > 50


def test_the_difference_to_the_other_images_tells_the_error_without_the_truth(
    measured: LowRank,
) -> None:
    pairs = [pair for _, pair in image_pairs(measured, as_guessed, CONFIG)]
    errors = {
        factor: np.mean([np.square(factor * p.seen[1:] - p.other[1:]).mean() for p in pairs])
        for factor in (0.5, 1.0)
    }
    # the noise of both, in the mean as in all others
    means = np.mean([np.square(p.seen[0] - p.other[0]).mean() for p in pairs])
    assert means == pytest.approx(2, rel=0.15)
    signal = np.mean([np.mean(p.seen[1:] * p.other[1:]) for p in pairs])
    # half the signal lost, and a quarter of the noise kept, beside the noise of the other images
    assert errors[0.5] - 1 == pytest.approx(0.25 * signal + 0.25, rel=0.1)
    assert errors[1.0] - 1 == pytest.approx(1, rel=0.15)


def test_rows_of_blocks_are_chosen_all_over_the_field() -> None:
    tall = found_in(recording(num_frames=80, height=128, width=40))
    config = replace(CONFIG, most_blocks=1, least_rows=3)  # of 15 rows
    corners = [corner for corner, _ in image_pairs(tall, as_guessed, config)]
    assert {row for row, _ in corners} == {tall.rows.starts[i] for i in (2, 7, 12)}
    # by either half of the frames
    assert len(corners) == 2 * len(set(corners)) == 2 * 3 * tall.columns.num_windows
    corners = [corner for corner, _ in image_pairs(tall, as_guessed, CONFIG)]
    assert {row for row, _ in corners} == set(tall.rows.starts)  # all that there are


def test_images_are_learned_from_in_the_units_in_which_they_are_denoised(
    measured: LowRank, given: list[teaching.Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise that pixels have in common is stronger in courses: here four times."""
    monkeypatch.setattr(teaching, "_agreement", lambda _: 1.0)
    pairs = [
        (corner, replace(pair, scales=np.full_like(pair.scales, 4)))
        for corner, pair in image_pairs(measured, as_guessed, CONFIG)
    ]
    monkeypatch.setattr(teaching, "image_pairs", lambda *_: pairs)
    taught(Scaled(1.0), measured)
    np.testing.assert_array_equal(given[0].seen, pairs[0][1].seen / 2)
    np.testing.assert_array_equal(given[0].other, pairs[0][1].other / 2)


def test_images_are_as_strong_as_those_that_all_frames_will_show(
    measured: LowRank, given: list[teaching.Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Courses of half the frames follow their noise: what the others lack, all frames half lack."""
    pairs = list(image_pairs(measured, as_guessed, CONFIG))
    monkeypatch.setattr(teaching, "image_pairs", lambda *_: pairs)
    monkeypatch.setattr(teaching, "image_scale", lambda _: 1.0)
    for agreement, factor in ((0.9, 0.95 / 0.9), (1.0, 1.0), (1.1, 1.0)):
        monkeypatch.setattr(teaching, "_agreement", lambda _, found=agreement: found)
        given.clear()
        taught(Scaled(1.0), measured)
        seen, other = pairs[0][1].seen, pairs[0][1].other
        np.testing.assert_array_equal(given[0].seen, seen)
        np.testing.assert_array_equal(given[0].other[0], other[0])  # the mean knows no course
        np.testing.assert_allclose(given[0].other[1:], factor * other[1:], rtol=1e-5)


# ---- What it changes ---------------------------------------------------------------------------


def test_a_network_that_shrinks_images_too_much_learns_not_to(measured: LowRank) -> None:
    net = Scaled(0.3)
    report = taught(net, measured)
    assert report is not None
    assert report.has_helped
    assert report.steps == 30
    assert report.judged[1] < report.judged[0] - 0.1
    assert 0.6 < net.factor.item() < 1


def test_fast_signals_are_learned_to_be_as_strong_as_they_are() -> None:
    net = ScaledButTheMean(0.5)
    report = taught(net, found_in(recording(is_fast=True)))
    assert report is not None
    assert report.has_helped
    assert 0.8 < net.factor.item() < 1


def test_a_block_of_few_images_tells_as_much_as_one_of_many() -> None:
    def pair(num_images: int, part: float) -> teaching.Pair:
        images = np.ones((num_images, 8, 8))
        return teaching.Pair(seen=images, other=part * images, scales=np.ones(num_images))

    denoiser = Guessing(net=Scaled(0.9), device=CPU)
    config = replace(CONFIG, blocks=32, images=11, steps=60)
    net, _ = teaching._learned(denoiser, [pair(2, 1.0), pair(12, 0.0)], config, Budget(np.inf), 0)
    assert net.factor.item() == pytest.approx(0.5, abs=0.1)  # of images alike 0.14


def test_what_learned_to_do_worse_is_not_taken(
    measured: LowRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "_learned", lambda *_: (Scaled(0.1), 7))
    net = Scaled(0.8)
    report = taught(net, measured)
    assert report is not None
    assert not report.has_helped
    assert net.factor.item() == pytest.approx(0.8)


def test_what_is_not_finite_is_not_taken(
    measured: LowRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "_learned", lambda *_: (Scaled(np.nan), 7))
    net = Scaled(0.8)
    report = taught(net, measured)
    assert report is not None and not report.has_helped
    assert net.factor.item() == pytest.approx(0.8)


def test_nothing_is_learned_from_the_part_that_judges(
    measured: LowRank, given: list[teaching.Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged_by: list[int] = []
    pairs = list(image_pairs(measured, as_guessed, CONFIG))
    columns = {id(pair.scales): column for (_, column), pair in pairs}
    monkeypatch.setattr(teaching, "image_pairs", lambda *_: pairs)

    def error(_: nn.Module, judged: list[teaching.Pair], *__: object) -> float:
        judged_by.extend(columns[id(pair.scales)] for pair in judged)
        return 1.0

    monkeypatch.setattr(teaching, "_error", error)
    taught(Scaled(1.0), measured)
    learned_from = [columns[id(pair.scales)] for pair in given]
    assert learned_from and judged_by
    assert max(learned_from) + LOW_RANK.block <= min(judged_by)


def test_the_same_seed_teaches_the_same(measured: LowRank) -> None:
    nets = [Scaled(0.3) for _ in range(2)]
    reports = [taught(net, measured) for net in nets]
    assert reports[0] == reports[1]
    assert nets[0].factor.item() == nets[1].factor.item()


# ---- When it does not --------------------------------------------------------------------------


def test_too_little_to_learn_from_leaves_the_network_alone() -> None:
    for frames in (
        recording(num_frames=60),
        recording(width=24),  # no room for a part that judges
        np.random.default_rng(0).normal(100, 1, (240, 32, 56)),  # nothing stands out
    ):
        net = Scaled(0.3)
        assert taught(net, found_in(frames)) is None
        assert net.factor.item() == pytest.approx(0.3)


def test_what_the_frames_between_do_not_show_is_not_learned_to_be_weak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # as though nothing were allowed for
    monkeypatch.setattr(teaching, "part_between", lambda courses, *_: np.ones(courses.shape[1]))
    monkeypatch.setattr(teaching, "_strength_in_all_frames", lambda _: 1.0)
    flashing = found_in(recording(is_fast=True))
    net = ScaledButTheMean(0.9)
    assert taught(net, flashing) is None
    assert net.factor.item() == pytest.approx(0.9)
    # this is what they would teach
    report = taught(net, flashing, replace(CONFIG, least_agreement=0.0))
    assert report is not None and report.has_helped
    assert net.factor.item() < 0.7


def test_too_few_blocks_to_learn_from_or_to_judge_by_teach_nothing(measured: LowRank) -> None:
    least = sum(1 for _ in image_pairs(measured, as_guessed, CONFIG)) // 2
    assert taught(Scaled(0.3), measured, replace(CONFIG, least_blocks=least)) is None


def test_without_time_nothing_is_learned(measured: LowRank) -> None:
    net = Scaled(0.3)
    report = taught(net, measured, seconds=0.0)
    assert report is not None
    assert (report.steps, report.has_helped) == (0, False)
    assert net.factor.item() == pytest.approx(0.3)


def test_a_lack_of_memory_leaves_the_network_as_it_was(measured: LowRank) -> None:
    net = WithoutMemory(0.3)
    with pytest.raises(torch.OutOfMemoryError):
        taught(net, measured)
    assert net.factor.item() == pytest.approx(0.3)


def test_another_error_is_not_hidden(measured: LowRank, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(teaching, "_learned", fails)
    with pytest.raises(RuntimeError, match="a fault"):
        taught(Scaled(0.3), measured)
