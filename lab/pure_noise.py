"""What a method makes of nothing:  python -m lab.pure_noise [-- FLAGS OF process.py].

A scene that is the same everywhere and always, recorded with the challenge's noise, must come out
flat. Whatever varies in the result was invented, and a reader would take it for cells or activity.
The Gaussian floors cannot invent, only leave noise: what they leave is the scale to read it on.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lab.cases import brightest, write_recording
from lab.contenders import PROGRAM, ContenderError, run_program, split_flags
from lab.events import active_places, find_events, place_traces, rises
from lab.floors import FLOORS
from lab.noise import LEVELS, noise_deviation, noisy_recording
from model.config import RunConfig, UsageError
from model.stack_io import read_stack

MIN_SIDE = 3  # of traces
SHOWN_FLOORS = [name for name in FLOORS if name != "temporal mean"]  # flat by construction


@dataclass(frozen=True, kw_only=True)
class Flatness:
    """What is left of noise, or was made of it, in a result whose truth is one number."""

    temporal_percent: float  # root mean square over pixels of the deviation in time, of the mean
    spatial_percent: float  # root mean square over frames of the deviation in space, of the mean
    image_percent: float  # deviation in space of the mean over time: a pattern that stays
    largest_percent: float  # largest distance of a voxel from the mean, of the mean
    largest_in_noise: float  # the same in deviations of the recording's noise
    num_events: int  # at the most active places, where a reader would look
    num_places: int
    largest_rise_percent: float  # of all their frames, event or not, of the mean
    bias_percent: float  # of the mean, against the truth

    @classmethod
    def of(cls, result: np.ndarray, truth: float, noise: float) -> Flatness:
        """Figures of a result [T,H,W], given the true count and the noise's deviation [counts]."""
        frames = result.astype(np.float64)
        mean = float(frames.mean())
        largest = float(np.abs(frames - mean).max())
        traces = place_traces(frames, active_places(result))
        return cls(
            temporal_percent=100 * math.sqrt(frames.var(axis=0).mean()) / mean,
            spatial_percent=100 * math.sqrt(frames.var(axis=(1, 2)).mean()) / mean,
            image_percent=100 * float(frames.mean(axis=0).std()) / mean,
            largest_percent=100 * largest / mean,
            largest_in_noise=largest / noise,
            num_events=sum(len(find_events(trace)) for trace in traces),
            num_places=len(traces),
            largest_rise_percent=100 * max((rises(t).max() for t in traces), default=0.0) / mean,
            bias_percent=100 * (mean - truth) / truth,
        )


HEADING = (
    f"{'% of the mean':<22}{'sd in time':>11}{'in space':>10}{'of mean image':>15}{'largest':>9}"
    f"{'in noise sd':>13}{'events / places':>17}{'largest rise':>14}{'bias':>8}"
)


def as_line(name: str, flat: Flatness) -> str:
    """One line under HEADING."""
    events = f"{flat.num_events} / {flat.num_places}"
    return (
        f"{name:<22}{flat.temporal_percent:>11.2f}{flat.spatial_percent:>10.2f}"
        f"{flat.image_percent:>15.2f}{flat.largest_percent:>9.1f}{flat.largest_in_noise:>13.2f}"
        f"{events:>17}{flat.largest_rise_percent:>14.2f}{flat.bias_percent:>8.2f}"
    )


def measure_level(
    level: int,
    scene: np.ndarray,
    flags: Sequence[str],
    folder: Path,
    *,
    seed: int,
    program: Path = PROGRAM,
) -> dict[str, Flatness]:
    """The floors and the program on a constant scene [T,H,W]; files go into the folder."""
    truth = float(scene[0, 0, 0])
    noise = noise_deviation(truth, level)
    noisy = noisy_recording(scene, level, seed)
    source, target = folder / f"noisy_{level}.tif", folder / f"denoised_{level}.tif"
    write_recording(source, noisy)
    found = {name: Flatness.of(FLOORS[name](noisy), truth, noise) for name in SHOWN_FLOORS}
    run_program(source, target, flags, program)
    found["process.py"] = Flatness.of(read_stack(target).frames, truth, noise)
    return found


def _save(found: dict[int, dict[str, Flatness]], path: Path) -> None:
    rows = [
        {"level": level, "method": name, **asdict(flat)}
        for level, of_level in found.items()
        for name, flat in of_level.items()
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(argv: Sequence[str], *, program: Path = PROGRAM) -> int:
    """Print the figures of every level; 1 if the program failed."""
    own, flags = split_flags(argv)
    parser = argparse.ArgumentParser(
        prog="python -m lab.pure_noise",
        description="What is made of a constant scene with noise.",
        epilog="Flags of process.py follow after --, for example: -- --steps 0",
    )
    parser.add_argument("--levels", type=int, nargs="+", default=list(LEVELS), choices=LEVELS)
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(128, 96, 96), metavar=("T", "H", "W")
    )
    parser.add_argument("--counts", type=int, default=211, help="of the scene, in every voxel")
    parser.add_argument("--seed", type=int, default=2, help="of the noise")
    parser.add_argument("--out", type=Path, help="folder for the stacks and pure_noise.csv")
    args = parser.parse_args(own)
    try:
        RunConfig.parse(flags, {})
        if not 1 <= args.counts <= brightest(max(args.levels)):
            raise UsageError(
                f"--counts {args.counts}: expected 1 to {brightest(max(args.levels))}, so that the "
                "noise fits 16 bits"
            )
        if min(args.shape) < MIN_SIDE:
            raise UsageError(f"--shape {args.shape}: expected [T,H,W] of {MIN_SIDE} or more each")
    except UsageError as error:
        parser.error(str(error))
    scene = np.full(args.shape, args.counts, np.int16)
    found: dict[int, dict[str, Flatness]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.out or Path(scratch)
        for level in args.levels:
            try:
                found[level] = measure_level(
                    level, scene, flags, folder, seed=args.seed, program=program
                )
            except ContenderError as error:
                print(f"level {level}: {error}", file=sys.stderr)
                return 1
            print(f"\nnoise level {level}\n{HEADING}")
            for name, flat in found[level].items():
                print(as_line(name, flat), flush=True)
        if args.out:
            _save(found, args.out / "pure_noise.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
