"""How well heights of events can be known at all:  python -m lab.heights MOVIE.npz [MOVIE.npz ...]

Nobody who has to find events in noise, and is right about heights in the mean, knows them better
than one who is told all else: where and when each event is, how it rises and falls, what its
surroundings do meanwhile. The best estimate then is a matched filter, which errs by the noise over
the event's strength (the bound of Cramér and Rao). For the events of `lab.events` in the corner
that is kept for judging, at the challenge's levels of noise.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab.events import (
    PLACE_DISTANCE,
    active_places,
    base_and_peak,
    event_windows,
    find_events,
    place_traces,
)
from lab.movies import held_out, load_movie
from lab.noise import LEVELS, noise_variance

NUM_FRAMES = 600
REACH = PLACE_DISTANCE // 2  # pixels around an event's place that are its own
MEAN_OF_NORMAL = math.sqrt(2 / math.pi)  # of the size of what is normal, in deviations


def event_strengths(clean: np.ndarray, level: int) -> np.ndarray:
    """Of every event of a clean movie [T,H,W], its root summed squares over the noise's deviation.

    Over all voxels within `REACH` of its place, from its base to the end of its window, as what
    they are above their value at the base: [N].
    """
    places = active_places(clean)
    strengths = []
    for (row, column), trace in zip(places, place_traces(clean, places), strict=True):
        near = (
            slice(max(row - REACH, 0), row + REACH + 1),
            slice(max(column - REACH, 0), column + REACH + 1),
        )
        for window in event_windows(trace, find_events(trace)):
            base, _ = base_and_peak(trace, window)
            around = clean[base : window[-1] + 1, *near].astype(np.float64)
            squares = np.square(around - around[0]) / noise_variance(around, level)
            strengths.append(math.sqrt(squares.sum()))
    return np.array(strengths)


def least_amplitude_error(strengths: np.ndarray) -> float:
    """That of `lab.events.Activity`, of one who is told all but the heights; nan of no event."""
    return float(np.mean(MEAN_OF_NORMAL / strengths)) if len(strengths) else math.nan


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("movies", type=Path, nargs="+", metavar="MOVIE.npz")
    args = parser.parse_args(argv)
    print("| least amplitude error | events | " + " | ".join(f"level {n}" for n in LEVELS) + " |")
    print("|---|---|" + "---|" * len(LEVELS))
    for path in args.movies:
        clean = held_out(load_movie(path)[:NUM_FRAMES])
        found = {level: event_strengths(clean, level) for level in LEVELS}
        cells = [f"{least_amplitude_error(strengths):.0%}" for strengths in found.values()]
        print(f"| {path.stem} | {len(found[1])} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
