"""The frames of one recording that lie in several arrays, or are some of many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, compress

import numpy as np


class JoinedFrames:
    """Frames of several arrays [T,H,W] one after the other, read where they lie."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))
        self.shape: tuple[int, ...] = (self._ends[-1], *parts[0].shape[1:])

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


class ChosenFrames:
    """Some of the frames of a recording [T,H,W], read where they lie."""

    def __init__(self, frames: Frames, is_chosen: np.ndarray) -> None:
        """`is_chosen` [T] says which."""
        self._frames, self._is_chosen = frames, is_chosen
        self.shape: tuple[int, ...] = (int(is_chosen.sum()), *frames.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return compress(self._frames, self._is_chosen)


Frames = np.ndarray | JoinedFrames | ChosenFrames
