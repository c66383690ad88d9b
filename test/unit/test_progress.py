"""Progress lines, with a clock that stands still until it is told to move."""

import pytest

from model.progress import INTERVAL_SECONDS, Progress, clock_text


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def every_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="model.progress")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00")],
)
def test_seconds_are_written_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_a_stage_is_announced_at_once(caplog: pytest.LogCaptureFixture) -> None:
    Progress("adapting", 800, "iterations", Clock())
    assert caplog.messages == ["  adapting: 800 iterations"]


def test_a_stage_without_anything_to_do_is_not_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    Progress("adapting", 0, "iterations", Clock())
    assert caplog.messages == []


def test_between_lines_some_seconds_pass(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = Progress("adapting", 800, "iterations", clock)
    caplog.clear()
    clock.now += INTERVAL_SECONDS - 0.1
    progress.update(10)
    assert caplog.messages == []
    clock.now += 0.1
    progress.update(11)
    progress.update(12)
    assert len(caplog.messages) == 1


def test_a_line_has_a_bar_the_count_and_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = Progress("adapting", 800, "iterations", clock)
    clock.now += 60
    progress.update(200, "loss 0.25")
    assert caplog.messages[-1] == (
        "  adapting [#####...............] 200/800 iterations, 1:00 gone, 3:00 left, loss 0.25"
    )


def test_the_last_unit_is_always_said(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("denoising", 3, "windows", Clock())
    progress.update(3)
    assert caplog.messages[-1] == (
        "  denoising [####################] 3/3 windows, 0:00 gone, 0:00 left"
    )


def test_nothing_done_yet_leaves_the_time_left_open(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = Progress("denoising", 3, "windows", clock)
    clock.now += 9
    progress.update(0)
    assert "0/3 windows, 0:09 gone" in caplog.messages[-1]
