"""Adaptation: its stages, its patches, and what ends, shrinks or spoils it."""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.adapt import MAX_BAD_STEPS, AdaptError, AdaptReport, adapt, fit_training
from model.architectures import build, recomputed_levels
from model.budget import Budget
from model.config import AdaptConfig, Stage
from model.device import pick_device
from model.normalise import IntensityScale
from model.patches import cut_patch, mirrored, sample_patches

AS_IT_IS = IntensityScale(offset=0.0, gain=1.0)
BLINDSPOT = Stage(kind="blindspot", steps=4, learning_rate=1e-2)
WARM_UP = Stage(kind="warm_up", steps=4, learning_rate=1e-2)
# not judged, so that every call of the network is a step's; the judge has tests of its own
CONFIG = AdaptConfig(patch=(6, 16, 16), batch=1, judge_patches=0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Filter(nn.Module):
    """One convolution; calls `before` with every input first."""

    stride = (1, 1, 1)

    def __init__(self, before: Callable[[Tensor], None] = lambda patch: None) -> None:
        super().__init__()
        self.before = before
        self.conv = nn.Conv3d(1, 1, 3, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.linspace(-0.1, 0.2, parameter.numel()).view_as(parameter))

    def forward(self, patch: Tensor) -> Tensor:
        self.before(patch)
        return self.conv(patch)


class Constant(nn.Module):
    """Answers one number everywhere."""

    stride = (1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, patch: Tensor) -> Tensor:
        return self.value + 0 * patch


class GoesBad(Filter):
    """Its answers are not numbers from a given call on, for a number of calls."""

    def __init__(self, good: int, bad: float = math.inf) -> None:
        super().__init__()
        self.good, self.bad, self.calls = good, bad, 0

    def forward(self, patch: Tensor) -> Tensor:
        self.calls += 1
        is_bad = self.good < self.calls <= self.good + self.bad
        return super().forward(patch) * (math.nan if is_bad else 1)


def no_more_than(voxels: int) -> Callable[[Tensor], None]:
    def check(patch: Tensor) -> None:
        if patch.numel() > voxels:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return check


def movie(shape: tuple[int, int, int] = (20, 24, 28), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 0.2, shape).astype(np.float32)


def run(net: nn.Module, frames: np.ndarray | None = None, **changes: Any) -> AdaptReport:
    defaults: dict[str, Any] = {
        "stages": (BLINDSPOT,),
        "config": CONFIG,
        "device": pick_device("cpu"),
        "budget": Budget(math.inf),
        "seed": 0,
        "micro_batch": 1,
        "is_pretrained": True,
    }
    frames = movie() if frames is None else frames
    return adapt(net, frames, AS_IT_IS, **{**defaults, **changes})


def weights(net: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


# ---- Steps -------------------------------------------------------------------------------------


def test_all_steps_of_all_stages_are_done_and_counted() -> None:
    report = run(Filter(), stages=(WARM_UP, replace(BLINDSPOT, steps=3)))
    assert (report.steps_asked, report.steps, report.bad_steps) == (7, 7, 0)
    assert len(report.losses) == 7
    assert report.stopped_by == "all steps done"
    assert report.patch == CONFIG.patch


def test_the_weights_change_and_the_loss_falls() -> None:
    net, untouched = Filter(), Filter()
    report = run(net, stages=(replace(BLINDSPOT, steps=60),))
    assert all((a != b).any() for a, b in zip(weights(net), weights(untouched), strict=True))
    assert np.mean(report.losses[-10:]) < 0.7 * np.mean(report.losses[:10])


def test_no_step_leaves_the_network_as_it_is() -> None:
    net, untouched = Filter(), Filter()
    report = run(net, stages=(replace(BLINDSPOT, steps=0),))
    assert (report.steps_asked, report.steps, report.losses) == (0, 0, [])
    assert all(torch.equal(a, b) for a, b in zip(weights(net), weights(untouched), strict=True))


def test_the_network_is_left_ready_for_inference() -> None:
    net = Filter()
    run(net)
    assert not net.training


def test_the_same_seed_gives_the_same_losses_and_weights() -> None:
    first, second = Filter(), Filter()
    assert run(first, seed=5).losses == run(second, seed=5).losses
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_another_seed_gives_other_losses() -> None:
    assert run(Filter(), seed=5).losses != run(Filter(), seed=6).losses


def test_torchs_own_random_numbers_play_no_part() -> None:
    torch.manual_seed(1)
    first = run(Filter()).losses
    torch.manual_seed(2)
    assert run(Filter()).losses == first


def test_the_budget_ends_it_after_the_step_under_way() -> None:
    clock = Clock()

    def take_ten_seconds(patch: Tensor) -> None:
        clock.now += 10

    report = run(Filter(take_ten_seconds), budget=Budget(35, clock), stages=(WARM_UP, BLINDSPOT))
    assert (report.steps_asked, report.steps) == (8, 4)
    assert report.stopped_by == "time limit"


def test_time_is_left_for_the_last_judgement() -> None:
    clock = Clock()

    def take_a_second(patch: Tensor) -> None:
        clock.now += 1

    stages = (replace(BLINDSPOT, steps=1000),)
    config = replace(CONFIG, judge_patches=5)  # each looked at twice, before and after
    budget = Budget(50, clock)
    report = run(Filter(take_a_second), config=config, budget=budget, stages=stages)
    assert report.stopped_by == "time limit"
    assert report.judged is not None
    assert report.steps == 30
    assert clock.now == 50


def test_without_any_time_a_pretrained_network_stays_as_it_is() -> None:
    net, untouched = Filter(), Filter()
    report = run(net, budget=Budget(0, Clock()), stages=(WARM_UP, BLINDSPOT))
    assert (report.steps, report.stopped_by) == (0, "time limit")
    assert all(torch.equal(a, b) for a, b in zip(weights(net), weights(untouched), strict=True))


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (replace(BLINDSPOT, steps=3), [1e-2, 1e-2, 1e-2]),
        (replace(BLINDSPOT, final_learning_rate=1e-4), [1e-2, 8.550179e-3, 5.05e-3, 1.549821e-3]),
    ],
)
def test_the_learning_rate_is_constant_or_falls_as_a_cosine(
    stage: Stage, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    step = torch.optim.AdamW.step

    def noting_step(optimiser: torch.optim.AdamW) -> None:
        rates.append(optimiser.param_groups[0]["lr"])
        step(optimiser)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting_step)
    run(Filter(), stages=(stage,))
    assert rates == pytest.approx(expected, rel=1e-6)


def test_gradients_are_clipped_to_the_norm_that_was_set() -> None:
    net = Filter()
    run(net, 100 * movie(), config=replace(CONFIG, gradient_clip=0.5))
    norm = torch.stack([p.grad.square().sum() for p in net.parameters() if p.grad is not None])
    assert float(norm.sum().sqrt()) == pytest.approx(0.5, rel=1e-4)


# ---- Warm-up -----------------------------------------------------------------------------------


def test_warm_up_learns_the_temporal_median_with_an_absolute_loss() -> None:
    frames = np.full((15, 24, 28), 5.0, np.float32)
    frames[::3] = 100.0  # a third of the frames: the mean is far from the median
    report = run(Constant(), frames, stages=(replace(WARM_UP, steps=1),))
    assert report.losses == [pytest.approx(5.0)]


def test_warm_up_compares_with_the_median_at_the_place_of_the_patch() -> None:
    still = np.broadcast_to(movie()[:1], (20, 24, 28))
    net = Filter()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.conv.weight[0, 0, 1, 1, 1] = 1  # gives its input back
    report = run(net, still, stages=(replace(WARM_UP, steps=8, learning_rate=0.0),))
    assert max(report.losses) < 1e-6


# ---- Divergence --------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_skipped_and_counted() -> None:
    report = run(GoesBad(good=1, bad=2), stages=(replace(BLINDSPOT, steps=6),))
    assert (report.steps, report.bad_steps, len(report.losses)) == (6, 2, 4)
    assert report.stopped_by == "all steps done"


def test_a_skipped_step_does_not_touch_the_weights() -> None:
    net, untouched = GoesBad(good=0), GoesBad(good=0)
    run(net)
    assert all(torch.equal(a, b) for a, b in zip(weights(net), weights(untouched), strict=True))


def test_a_pretrained_network_that_diverges_gets_its_weights_back() -> None:
    net, untouched = GoesBad(good=3), GoesBad(good=3)
    report = run(net, stages=(replace(BLINDSPOT, steps=50),))
    assert (report.steps, report.bad_steps) == (3 + MAX_BAD_STEPS, MAX_BAD_STEPS)
    assert report.stopped_by == "divergence"
    assert all(torch.equal(a, b) for a, b in zip(weights(net), weights(untouched), strict=True))


def test_a_network_from_scratch_that_diverges_is_an_error() -> None:
    with pytest.raises(AdaptError, match=r"diverged after 13 iterations.*; try another --seed or"):
        run(GoesBad(good=3), stages=(replace(BLINDSPOT, steps=50),), is_pretrained=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budget": Budget(0, Clock())}, "time limit"),
        ({"stages": (replace(BLINDSPOT, steps=0),)}, "all steps done"),
    ],
)
def test_a_network_from_scratch_that_learned_nothing_is_an_error(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(AdaptError, match=rf"no iteration to learn in \({reason}\); provide a"):
        run(Filter(), is_pretrained=False, **changes)


# ---- Memory ------------------------------------------------------------------------------------

FIVE = replace(CONFIG, batch=5)


@pytest.mark.parametrize("stage", [WARM_UP, BLINDSPOT], ids=lambda stage: stage.kind)
def test_gradients_of_parts_of_a_batch_add_up_to_those_of_the_whole(stage: Stage) -> None:
    whole, parts = Filter(), Filter()
    stages = (replace(stage, steps=1),)
    loss = run(whole, config=FIVE, stages=stages, micro_batch=5).losses
    assert run(parts, config=FIVE, stages=stages, micro_batch=2).losses == pytest.approx(loss)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_out_of_memory_halves_the_patches_at_a_time_and_goes_on() -> None:
    voxels = math.prod(CONFIG.patch)
    report = run(Filter(no_more_than(2 * voxels)), config=FIVE, micro_batch=5)
    assert (report.steps, report.micro_batch, report.patch) == (4, 2, CONFIG.patch)


def test_out_of_memory_changes_no_loss() -> None:
    voxels = math.prod(CONFIG.patch)
    enough = run(Filter(), config=FIVE, micro_batch=5).losses
    assert run(
        Filter(no_more_than(2 * voxels)), config=FIVE, micro_batch=5
    ).losses == pytest.approx(enough, rel=1e-5)


def test_out_of_memory_with_one_patch_shrinks_it_in_the_plane() -> None:
    config = replace(CONFIG, patch=(6, 64, 64), batch=2)
    report = run(
        Filter(no_more_than(6 * 16 * 16)), movie((20, 80, 80)), config=config, micro_batch=2
    )
    assert (report.steps, report.micro_batch, report.patch) == (4, 1, (6, 16, 16))


def test_out_of_memory_with_one_patch_computes_activations_twice_before_it_shrinks() -> None:
    class Large(Filter):
        """Fits the memory only with its two levels recomputed."""

        num_levels, recomputed_levels = 2, 0

        def forward(self, patch: Tensor) -> Tensor:
            if self.recomputed_levels < 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(patch)

    report = run(Large(), config=FIVE, micro_batch=2)
    assert (report.steps, report.recomputed_levels, report.patch) == (4, 2, CONFIG.patch)


@pytest.mark.parametrize(
    ("each", "levels", "at_once"),
    [((0.3, 0.1), 0, 3), ((2.0, 0.4), 1, 2), ((3.0, 2.0, 0.9), 2, 1), ((4.0, 3.0), 1, 1)],
)
def test_a_network_recomputes_as_few_levels_as_let_one_patch_fit(
    monkeypatch: pytest.MonkeyPatch, each: tuple[float, ...], levels: int, at_once: int
) -> None:
    room = 10**9
    monkeypatch.setattr("model.adapt.usable_bytes", lambda _: room)
    monkeypatch.setattr("model.device.usable_bytes", lambda _: room)
    net = build("restormer3d", dim=8)
    per_voxel = [int(share * room / 1000) for share in each]
    assert fit_training(net, pick_device("cpu"), 1000, per_voxel, largest=16) == at_once
    assert recomputed_levels(net) == levels


def test_out_of_memory_when_judging_leaves_the_adaptation_unjudged() -> None:
    config = replace(CONFIG, patch=(6, 64, 64), judge_patches=2)
    report = run(Filter(no_more_than(6 * 32 * 32)), movie((20, 80, 80)), config=config)
    assert (report.steps, report.patch, report.judged) == (4, (6, 32, 32), None)
    assert report.is_adapted


def test_out_of_memory_with_the_smallest_patch_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run(Filter(no_more_than(6 * 16 * 16 - 1)))


def test_any_other_error_of_the_network_is_not_taken_for_a_lack_of_memory() -> None:
    def fail(patch: Tensor) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run(Filter(fail), config=FIVE, micro_batch=5)


# ---- Patches -----------------------------------------------------------------------------------


def test_a_patch_is_cut_where_it_was_asked_for() -> None:
    frames = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    np.testing.assert_array_equal(cut_patch(frames, (1, 2, 3), (2, 3, 3)), frames[1:3, 2:5, 3:6])


def test_a_patch_larger_than_the_stack_is_mirrored_at_its_end() -> None:
    patch = mirrored(torch.arange(3).reshape(3, 1, 1), (5, 2, 1))
    assert patch[:, 0, 0].tolist() == [0, 1, 2, 1, 0]
    assert patch.shape == (5, 2, 1)


def test_patches_are_turned_and_mirrored_but_never_reversed_in_time() -> None:
    frames = np.zeros((6, 2, 2), np.float32)
    frames[:, 0, 0] = [0, 9, 5, 3, 2, 1]  # rises at once, decays slowly
    frames[:, 0, 1] = frames[:, 0, 0] / 10
    patches, _ = sample_patches(frames, AS_IT_IS, (6, 2, 2), 200, torch.Generator().manual_seed(0))
    courses = patches.sum(dim=(1, 3, 4))  # [B,t]
    torch.testing.assert_close(courses, 1.1 * torch.from_numpy(frames[:, 0, 0]).expand(200, -1))
    assert len(patches[:, 0, 1].unique(dim=0)) == 8  # the square's symmetries


def test_patches_with_unequal_sides_are_never_turned_on_their_side() -> None:
    frames = movie((6, 12, 20))
    patches, _ = sample_patches(frames, AS_IT_IS, (6, 8, 16), 20, torch.Generator().manual_seed(0))
    assert patches.shape == (20, 1, 6, 8, 16)


def test_patches_come_from_everywhere_the_ends_included() -> None:
    frames = np.arange(4 * 2 * 2, dtype=np.float32).reshape(4, 2, 2)
    patches, _ = sample_patches(frames, AS_IT_IS, (2, 2, 2), 60, torch.Generator().manual_seed(0))
    assert set(patches[:, 0, 0].amin(dim=(1, 2)).tolist()) == {0.0, 4.0, 8.0}


def test_patches_are_normalised() -> None:
    scale = IntensityScale(offset=100.0, gain=50.0)
    frames = np.full((6, 16, 16), 200, np.uint16)
    patches, _ = sample_patches(frames, scale, (6, 16, 16), 1, torch.Generator().manual_seed(0))
    assert patches.dtype == torch.float32
    assert (patches == 2).all()


@pytest.mark.parametrize("shape", [(2, 16, 16), (4, 24, 9), (6, 3, 16), (5, 1, 1)])
def test_mirror_images_do_not_show_what_is_hidden(shape: tuple[int, int, int]) -> None:
    frames = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)  # all different
    seen: list[Tensor] = []
    run(Filter(seen.append), frames)
    assert {patch.shape for patch in seen} == {(1, 1, 6, 16, 16)}
    sides = [min(length, side) for length, side in zip(shape, CONFIG.patch, strict=True)]
    for patch in seen:
        own = patch[..., : sides[0], : sides[1], : sides[2]]
        assert len(own.unique()) == len(patch.unique()) < own.numel()


def test_a_single_frame_which_nobody_can_judge_keeps_the_checkpoint() -> None:
    net = Filter()
    before = weights(net)
    report = run(net, movie((1, 24, 28)), config=replace(CONFIG, judge_patches=2))
    assert (report.steps, report.steps_asked) == (0, 4)
    assert "too small to tell" in report.stopped_by
    assert all(map(torch.equal, weights(net), before))


def test_no_clean_stack_can_be_handed_to_an_adaptation() -> None:
    assert set(inspect.signature(adapt).parameters) == {
        "net", "frames", "scale", "stages", "config", "device", "budget", "seed", "micro_batch",
        "is_pretrained",
    }  # fmt: skip
