"""The frames of one recording that lies in several arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np


class JoinedFrames:
    """Frames of several arrays [T,H,W] one after the other, read where they lie."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))
        self.shape = (self._ends[-1], *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for part in self._parts:
            yield from part

    def spans(self) -> list[slice]:
        """Where each part's frames lie."""
        return [
            slice(end - len(part), end) for part, end in zip(self._parts, self._ends, strict=True)
        ]
