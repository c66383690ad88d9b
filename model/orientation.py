"""Ways to turn and mirror images, of which each tells the same.

A network that has learned from all of them answers each a little differently, and which is nearest
to the truth nobody knows. Where neighbouring blocks of tissue, which overlap, are each looked at in
a way of their own, these differences average out, and it costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """One of the eight ways to look at square images."""

    quarter_turns: int
    is_mirrored: bool

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Orientation:
        """Any of them."""
        return cls(quarter_turns=int(rng.integers(4)), is_mirrored=bool(rng.integers(2)))

    def seen(self, images: np.ndarray) -> np.ndarray:
        """Images [...,h,h] as they look this way."""
        turned = np.rot90(images, self.quarter_turns, (-2, -1))
        return np.ascontiguousarray(turned[..., ::-1] if self.is_mirrored else turned)

    def undone(self, images: np.ndarray) -> np.ndarray:
        """The opposite of `seen`."""
        turned = images[..., ::-1] if self.is_mirrored else images
        return np.ascontiguousarray(np.rot90(turned, -self.quarter_turns, (-2, -1)))
