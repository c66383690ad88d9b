"""What a person at the terminal sees of a long stage: a line every few seconds with the time left.

Lines, not a bar that redraws itself: the same text serves a terminal and a log file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 5.0


def clock_text(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Counts the units of one stage and says so now and then."""

    def __init__(
        self, stage: str, total: int, unit: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self._clock = clock
        self._start = self._said = clock()
        if total:  # at once, for the first line with numbers may be long in coming
            logger.info("  %s: %d %s", stage, total, unit)

    def update(self, done: int, note: str = "") -> None:
        """Say how far the stage is, if the last word was long enough ago or it is complete."""
        now = self._clock()
        if now - self._said < INTERVAL_SECONDS and done < self.total:
            return
        self._said = now
        taken = now - self._start
        left = taken / done * (self.total - done) if done else 0.0
        filled = 20 * done // max(1, self.total)
        logger.info(
            "  %s [%s%s] %d/%d %s, %s gone, %s left%s",
            self.stage, "#" * filled, "." * (20 - filled), done, self.total, self.unit,
            clock_text(taken), clock_text(left), f", {note}" if note else "",
        )  # fmt: skip
