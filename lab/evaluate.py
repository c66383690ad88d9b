"""Score methods on movies whose truth is known: one table, methods by cases.

    python -m lab.evaluate --methods restormer3d careamics --stacks A.npz B.npz --levels 1 2 3

A case is a clean stack at a noise level. Its recording is denoised by the floors that every method
has to beat, by our own methods through `process.py` as any user would run it (flags of which follow
after `--`; `restormer3d@40` stands for `--steps 40`), and by other people's. What was made is kept
in the output folder, so an evaluation that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import csv
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lab.cases import Case, CaseError, make_cases, write_recording
from lab.contenders import (
    PROGRAM,
    Contender,
    ContenderError,
    Cost,
    RunPeer,
    choose,
    kept_or_made,
    split_flags,
)
from lab.events import active_places
from lab.figures import View, case_figure, most_active_moment
from lab.floors import FLOORS
from lab.metrics import judge
from lab.noise import LEVELS
from lab.peers.runner import PEERS, Peer, run_peer
from model.config import RunConfig, UsageError
from model.stack_io import read_stack

DrawCase = Callable[[str, View, View, Sequence[View], Path], None]
NUM_TRACES = 5  # in a case's figure
MAX_REASON = 300  # characters in a table
COST_COLUMNS = ("s/stack", "peak GB")
CAPTION = (
    "stSNR in dB. Seconds and peak memory per recording, with all that is learned on it: of a "
    "floor's filter alone, of our stages from reading to writing, of another's whole process."
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one method made of one case; without `quality` it failed, for the reason in `note`."""

    method: str
    case: Case
    shape: tuple[int, ...]
    quality: dict[str, float] | None = None
    cost: Cost | None = None
    note: str = ""

    def as_row(self) -> dict[str, object]:
        """One line of results.csv."""
        return {
            "method": self.method,
            "stack": self.case.stack.name,
            "level": self.case.level,
            "shape": "x".join(map(str, self.shape)),
            "note": self.note,
            **(asdict(self.cost) if self.cost else {}),
            **(self.quality or {}),
        }


# ---- One case -----------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # stdout is the table's


def _in_short(message: str) -> str:
    """First and last line of a message: of what a program said at its end, what and why."""
    lines = message.strip().splitlines()
    return " ".join(" ".join(dict.fromkeys([lines[0], lines[-1]])).split())[:MAX_REASON]


def evaluate_case(
    case: Case, contenders: Sequence[Contender], out: Path, draw: DrawCase = case_figure
) -> list[Result]:
    """Let the floors and every method denoise one case, judge them, and draw the case's figure."""
    clean = case.clean()
    noisy = case.noisy(clean)
    recording = out / "noisy" / f"{case.name}.tif"
    write_recording(recording, noisy)
    view_of = partial(
        View.of, moment=most_active_moment(clean), places=active_places(clean, NUM_TRACES)
    )
    results, views = [], []

    def add(name: str, denoised: np.ndarray, cost: Cost, note: str, *, is_traced: bool) -> None:
        quality = judge(clean, noisy, denoised).as_row()
        results.append(
            Result(method=name, case=case, shape=clean.shape, quality=quality, cost=cost, note=note)
        )
        views.append(view_of(name, denoised, is_traced=is_traced))
        _say(f"{case.name}: {name} {quality['stsnr_db']:.2f} dB {note}".rstrip())

    for name, estimate in FLOORS.items():
        begin = time.perf_counter()
        denoised = estimate(noisy)
        add(name, denoised, Cost(seconds=time.perf_counter() - begin), "", is_traced=False)
    for method in contenders:
        path = out / "denoised" / method.name / f"{case.name}.tif"
        try:
            cost, note = kept_or_made(method, recording, path, {"noise_seed": case.seed})
            add(method.name, read_stack(path).frames, cost, note, is_traced=True)
        except ContenderError as error:
            _say(f"{case.name}: {method.name} failed: {error}")
            failure = f"failed: {_in_short(str(error))}"
            results.append(Result(method=method.name, case=case, shape=clean.shape, note=failure))
    truth = view_of("clean", clean, is_traced=True)
    title = f"{case.stack.name}, noise level {case.level}"
    draw(title, truth, views[0], views[1:], out / f"{case.name}.png")
    return results


# ---- The table ----------------------------------------------------------------------------------


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _scores(results: Sequence[Result]) -> dict[str, float]:
    """stSNR of one method per case, and the mean of each level where there are several stacks.

    nan where it failed; a mean over the rest would compare what cannot be compared.
    """
    scores = {r.case.name: r.quality["stsnr_db"] if r.quality else math.nan for r in results}
    if len({result.case.stack for result in results}) > 1:
        for level in dict.fromkeys(result.case.level for result in results):
            names = [result.case.name for result in results if result.case.level == level]
            scores[f"mean of level {level}"] = float(np.mean([scores[name] for name in names]))
    return scores


def _costs(results: Sequence[Result]) -> list[str]:
    """Cells for COST_COLUMNS: mean seconds and the largest peaks of memory of one method."""
    costs = [result.cost for result in results if result.cost]
    host = [cost.peak_bytes for cost in costs if cost.peak_bytes]
    device = [cost.device_bytes for cost in costs if cost.device_bytes]
    memory = _text(max(host) / 1e9 if host else None, 1)
    if device:
        memory += f" + {max(device) / 1e9:.1f} GPU"
    seconds = float(np.mean([cost.seconds for cost in costs])) if costs else None
    return [_text(seconds, 1), memory]


def table(results: Sequence[Result], *, best: str = "{}") -> list[list[str]]:
    """Heading and one row per method, as cells; the best score of a column goes into `best`."""
    methods = list(dict.fromkeys(result.method for result in results))
    of = {name: [result for result in results if result.method == name] for name in methods}
    scores = {name: _scores(of[name]) for name in methods}
    columns = list(scores[methods[0]])
    top = {c: np.nanmax([scores[name][c] for name in methods]) for c in columns}
    rows = [["", *columns, *COST_COLUMNS, "note"]]
    for name in methods:
        cells = [
            best.format(_text(value, 2)) if value == top[column] else _text(value, 2)
            for column, value in scores[name].items()
        ]
        notes = "; ".join(dict.fromkeys(result.note for result in of[name] if result.note))
        rows.append([name, *cells, *_costs(of[name]), notes])
    return rows


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells, note in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=False)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers, note]).rstrip())
    return "\n".join(lines)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table for a page."""
    heading, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    rule = ["---", *["---:"] * (len(heading) - 2), "---"]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *body))


def save(results: Sequence[Result], command: str, out: Path) -> None:
    """Write table.md and results.csv, each whole or not at all."""
    shapes = {r.case.stack.stem: f"{r.case.stack.stem} {[*r.shape]}" for r in results}
    page = (
        f"# Evaluation\n\n```sh\n{command}\n```\n\n{CAPTION} Recordings [T,H,W]: "
        f"{', '.join(shapes.values())}.\n\n{as_markdown(table(results, best='**{}**'))}\n"
    )
    lines = [result.as_row() for result in results]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    temporary = out / ".unfinished.tmp"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(out / "table.md")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)
    temporary.replace(out / "results.csv")


# ---- The command line ---------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab.evaluate",
        description="stSNR of methods on movies whose truth is known.",
        epilog="Flags of process.py follow after --, for example: -- --steps 0",
    )
    add = parser.add_argument
    add("--methods", nargs="*", default=[RunConfig().method], metavar="NAME",
        help="ours (NAME or NAME@STEPS) and others'; the floors are always there")  # fmt: skip
    add("--stacks", type=Path, nargs="+", required=True, metavar="FILE",
        help="clean ones: simulated movies (.npz), or counts without noise (.tif)")  # fmt: skip
    add("--levels", type=int, nargs="+", default=list(LEVELS), choices=LEVELS, help="of the noise")
    add("--frames", type=int, nargs=2, default=(0, 600), metavar=("FIRST", "END"))
    add("--held-out", action="store_true", help="only the corner kept for judging")
    add("--seed", type=int, default=2, help="of the noise")
    add("--peer-seconds", type=float, default=3600.0, metavar="S",
        help="that another's method may take per recording")  # fmt: skip
    add("--out", type=Path, default=Path("evaluation"), metavar="FOLDER")
    return parser


def main(
    argv: Sequence[str],
    *,
    program: Path = PROGRAM,
    peers: Mapping[str, Peer] = PEERS,
    run_peer: RunPeer = run_peer,
    draw: DrawCase = case_figure,
) -> int:
    """Print and save the table; 1 if a method failed somewhere."""
    own, flags = split_flags(argv)
    parser = _parser()
    args = parser.parse_args(own)
    try:
        contenders = choose(
            args.methods, flags, peer_seconds=args.peer_seconds, program=program, peers=peers,
            run_peer=run_peer,
        )  # fmt: skip
        cases = make_cases(
            args.stacks, args.levels, frames=tuple(args.frames), held_out=args.held_out,
            seed=args.seed,
        )  # fmt: skip
    except (UsageError, CaseError) as error:
        parser.error(str(error))
    command = f"python -m lab.evaluate {shlex.join(argv)}"
    results: list[Result] = []
    try:
        for case in cases:
            results += evaluate_case(case, contenders, args.out, draw)
            save(results, command, args.out)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on where this one stopped")
        return 130
    print(as_text(table(results)))
    return 1 if any(result.quality is None for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
