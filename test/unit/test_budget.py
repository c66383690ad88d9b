"""Time shares and plans, with a clock that stands still until it is told to move."""

import math

import pytest

from model.budget import INFERENCE_MARGIN, Budget, plan_stack


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


OVERLAPS = (0.5, 0.375, 0.25)


def count(overlap: float) -> int:
    return {0.5: 800, 0.375: 410, 0.25: 240}[overlap]


def test_a_budget_runs_down_and_never_below_nothing() -> None:
    clock = Clock()
    budget = Budget(10, clock)
    clock.now += 4
    assert budget.remaining() == 6
    assert not budget.expired
    clock.now += 60
    assert budget.remaining() == 0
    assert budget.expired


def test_without_a_limit_nothing_ever_expires() -> None:
    budget = Budget(math.inf, Clock())
    assert not budget.expired
    assert budget.share(0, 0).remaining() == math.inf
    assert budget.share(0, 5).remaining() == math.inf


def test_a_share_is_the_weight_of_a_stack_among_those_still_to_do() -> None:
    clock = Clock()
    budget = Budget(100, clock)
    assert budget.share(3, 4).remaining() == 75
    clock.now += 40  # the first took less: the others gain
    assert budget.share(1, 1).remaining() == 60


def test_inference_gets_its_time_first_and_adaptation_the_rest() -> None:
    plan = plan_stack(1000, 1.0, count, OVERLAPS)
    assert plan.overlap == 0.5
    assert plan.inference_seconds == pytest.approx(800 * INFERENCE_MARGIN)
    assert plan.adapt_seconds == pytest.approx(1000 - 800 * INFERENCE_MARGIN)


def test_the_overlap_is_lowered_step_by_step_until_inference_fits() -> None:
    assert plan_stack(700, 1.0, count, OVERLAPS).overlap == 0.375
    assert plan_stack(300, 1.0, count, OVERLAPS).overlap == 0.25


def test_a_stack_that_cannot_be_done_in_time_is_known_to_be_late() -> None:
    plan = plan_stack(100, 1.0, count, OVERLAPS)
    assert plan.is_late
    assert plan.overlap == 0.25
    assert Budget(plan.adapt_seconds, Clock()).expired


def test_without_a_limit_the_plan_takes_nothing_away() -> None:
    plan = plan_stack(math.inf, 1.0, count, OVERLAPS)
    assert plan.overlap == 0.5
    assert plan.adapt_seconds == math.inf
