"""Time: how much a job has left, what one stack may use of it, and what to shorten if it must.

Nothing here waits, prints or measures by itself; the clock is an argument.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Measured windows are the fastest of a job: caches are warm, the card is cool, nothing is written.
INFERENCE_MARGIN = 1.15


class Budget:
    """A stretch of time that began when it was made."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock  # monotonic: a wall clock that is set must not end a job
        self._end = clock() + seconds

    def remaining(self) -> float:
        """Seconds left, never negative; infinite without a limit."""
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        """Whether nothing is left."""
        return self.remaining() <= 0

    def share(self, weight: float, weights_left: float) -> Budget:
        """What one stack may use: its weight's part of the time that is left for all."""
        part = weight / weights_left if weights_left > 0 else 1.0
        remaining = self.remaining()
        # 0 x inf is not a number, and without a limit every share is without one too.
        seconds = remaining if math.isinf(remaining) else remaining * part
        return Budget(seconds, self._clock)


@dataclass(frozen=True, kw_only=True)
class StackPlan:
    """How one stack's time is spent."""

    overlap: float
    inference_seconds: float  # estimate, margin included
    adapt_seconds: float  # limit; infinite without a time limit

    @property
    def is_late(self) -> bool:
        """Whether not even inference alone fits."""
        return self.adapt_seconds < 0


def plan_stack(
    remaining: float,
    seconds_per_window: float,
    count_windows: Callable[[float], int],
    overlaps: Sequence[float],
) -> StackPlan:
    """Inference gets its share first, adaptation what is left.

    The overlap is the first of `overlaps` (largest first) with which inference fits, else the last.
    """
    for overlap in overlaps:
        needed = count_windows(overlap) * seconds_per_window * INFERENCE_MARGIN
        plan = StackPlan(
            overlap=overlap, inference_seconds=needed, adapt_seconds=remaining - needed
        )
        if not plan.is_late:
            break
    return plan
