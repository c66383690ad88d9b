"""Ways to turn and mirror images."""

from __future__ import annotations

import numpy as np
import pytest

from model.orientation import Orientation

IMAGES = np.random.default_rng(0).standard_normal((2, 5, 5)).astype(np.float32)
ALL = [
    Orientation(quarter_turns=turns, is_mirrored=is_mirrored)
    for turns in range(4)
    for is_mirrored in (False, True)
]


@pytest.mark.parametrize("way", ALL, ids=str)
def test_what_is_seen_is_undone(way: Orientation) -> None:
    np.testing.assert_array_equal(way.undone(way.seen(IMAGES)), IMAGES)
    np.testing.assert_array_equal(way.undone(way.seen(IMAGES[0])), IMAGES[0])


def test_no_two_ways_look_alike_and_all_are_drawn() -> None:
    assert len({way.seen(IMAGES).tobytes() for way in ALL}) == 8
    rng = np.random.default_rng(1)
    assert {Orientation.drawn(rng) for _ in range(100)} == set(ALL)
