"""What the program promises, put to the proof:  python -m lab.trust [-- FLAGS OF process.py].

Prints one table: every fault that was brought about, the files that were damaged, what was shown of
what was there, and heavy loads; each with its figure and the limit it is held to. `--only` takes
parts of it; the flags are for the last two.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from lab import fidelity, load
from lab.contenders import split_flags
from lab.faults import FAULTS, Bench, NotTriedError
from lab.fidelity import Check
from lab.fuzz import MAX_SECONDS, read_damaged
from lab.noise import LEVELS
from model.config import RunConfig, UsageError

WIDTHS = (54, 34, 22)


def _faults(args: argparse.Namespace) -> Iterator[Check]:
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for fault in FAULTS:
            try:
                problems = bench.try_fault(fault)
            except NotTriedError as error:
                yield Check(name=fault.name, figure="not tried", limit=str(error), is_kept=True)
                continue
            yield Check(
                name=fault.name, figure="; ".join(problems) or f"exit code {fault.code}, whole",
                limit="whole or absent", is_kept=not problems,
            )  # fmt: skip
        problems, num_unfinished = bench.kill_at_random(args.kills)
        yield Check(
            name=f"SIGKILL at {args.kills} random moments",
            figure="; ".join(problems) or f"{num_unfinished} unfinished, none visible",
            limit="whole or absent", is_kept=not problems,
        )  # fmt: skip


def _fuzz(args: argparse.Namespace) -> Iterator[Check]:
    tally = read_damaged(args.files, seed=0)
    yield Check(
        name=f"{args.files} damaged TIFF and MHA files",
        figure=f"{tally.read} read, {tally.refused} refused", limit="a stack or a refusal",
        is_kept=not tally.failures,
    )  # fmt: skip
    yield Check(
        name="slowest of them", figure=f"{tally.slowest:.2f} s", limit=f"{MAX_SECONDS} s",
        is_kept=tally.slowest < MAX_SECONDS,
    )  # fmt: skip


def _fidelity(args: argparse.Namespace) -> Iterator[Check]:
    with TemporaryDirectory() as folder:
        yield from fidelity.checks(args.flags, Path(folder), args.levels, args.frame_rate)


def _load(args: argparse.Namespace) -> Iterator[Check]:
    yield from load.checks(tuple(args.flags))


PARTS: Mapping[str, Callable[[argparse.Namespace], Iterator[Check]]] = {
    "faults": _faults,
    "fuzz": _fuzz,
    "fidelity": _fidelity,
    "load": _load,
}


def _line(*cells: str) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=False)).rstrip()


def main(argv: Sequence[str]) -> int:
    """Print the table; 1 where a limit is not kept."""
    own, flags = split_flags(argv)
    parser = argparse.ArgumentParser(prog="python -m lab.trust", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--levels", type=int, nargs="+", default=list(LEVELS), choices=LEVELS)
    parser.add_argument("--frame-rate", type=float, default=fidelity.FRAME_RATE, help="in Hz")
    parser.add_argument("--files", type=int, default=20_000, help="to damage")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    args = parser.parse_args(own)
    args.flags = flags
    try:
        RunConfig.parse(flags, {})
    except UsageError as error:
        parser.error(str(error))
    found = []
    for part in args.only:
        print(f"\n{_line(part, 'found', 'held to')}")
        for check in PARTS[part](args):
            found.append(check)
            verdict = "" if check.is_kept else "  NOT KEPT"
            print(f"{_line(check.name, check.figure, check.limit)}{verdict}", flush=True)
    broken = sum(not check.is_kept for check in found)
    print(f"\n{len(found)} checks, {broken} not kept")
    if args.out:
        with args.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(asdict(found[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(check) for check in found)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
