"""Pretrain a method's network on noisy recordings alone, simulated or a user's own.

    python -m lab.pretrain restormer3d --out weights/restormer3d.safetensors --hours 10
    torchrun --nproc-per-node 4 -m lab.pretrain restormer3d --out ...

The numbers are `lab.recipes`'. Interrupted at any time and started again with the same command, it
goes on from `OUT.resume/` and ends with the same weights. `OUT.csv` and `OUT.png` hold the curve,
`OUT` the moving average of the weights at its best so far.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import torch
import torch.distributed as dist

from lab.figures import curve_figure
from lab.noise import LEVELS
from lab.recipes import RECIPES, Objective, Precision, Recipe, Sides
from lab.recordings import DataError, Folders, Simulator, Source
from lab.resume import ResumeError, load_run, require_same, save_run
from lab.trainer import Trainer, TrainError
from lab.validation import ValidationSet
from model.checkpoint import CheckpointError, load_network, read_checkpoint, save_checkpoint
from model.device import Device, DeviceError, pick_device

logger = logging.getLogger(__name__)

SIMULATED_SHAPE = (300, 128, 128)  # of each simulated recording
TIME_IS_UP = 1000  # stands where a signal would, above all signals
COLUMNS = ["step", "loss", *(f"stsnr_{level}" for level in LEVELS), "bad_steps", "seconds"]


# ---- The curve --------------------------------------------------------------------------------


@dataclass
class Curve:
    """What a run logs: a row whenever it is validated."""

    path: Path  # of the CSV
    rows: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def up_to(cls, path: Path, step: int) -> Curve:
        """The curve on disk without what lies beyond an iteration, which will be done again."""
        rows: list[dict[str, float]] = []
        if step and path.exists():
            with path.open(newline="") as file:
                rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        return cls(path, [row for row in rows if row["step"] <= step])

    @property
    def seconds(self) -> float:
        """Time that the run had taken at the last row."""
        return self.rows[-1]["seconds"] if self.rows else 0.0

    def write(self) -> None:
        """The CSV, and a picture of it beside it."""
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in self.rows)
        curve_figure(self.rows, self.path.with_suffix(".png"))


# ---- A run ------------------------------------------------------------------------------------


@dataclass
class StopRequest:
    """Remembers that the process was asked to end; the iteration under way is finished first."""

    signal: int = 0

    def listen(self) -> None:
        """From here on SIGTERM and Ctrl-C are requests."""
        for wanted in (signal.SIGTERM, signal.SIGINT):
            signal.signal(wanted, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def agreed(self, device: Device) -> int:
        """The signal that any of the processes got, the same for all of them; 0 for none."""
        if not dist.is_initialized():
            return self.signal
        flag = torch.tensor(self.signal, device=device.torch_device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return int(flag)


@dataclass(kw_only=True)
class Run:
    """A trainer with its files, its clock and its validation."""

    trainer: Trainer
    out: Path
    provenance: dict[str, Any]
    validate_every: int
    save_seconds: float
    best: float = -math.inf
    losses: list[float] = field(default_factory=list)  # since the last row of the curve

    def __post_init__(self) -> None:
        self.is_first = self.trainer.rank == 0  # the one that writes
        self.folder = self.out.with_suffix(".resume")
        self.identity = {  # of the run: what a resumed one must share
            "method": self.trainer.method,
            **self.provenance["data"],
            **_plain(asdict(self.trainer.recipe)),
        }
        saved = load_run(self.folder)
        if saved is not None:
            parts, state = saved
            require_same(self.folder, state["identity"], self.identity)
            self.trainer.restore(parts, state)
            self.best, self.losses = state["best"] or -math.inf, state["losses"]
            logger.info("goes on from iteration %d", self.trainer.step)
        self.curve = Curve.up_to(self.out.with_suffix(".csv"), self.trainer.step)
        self.started = time.monotonic() - (saved[1]["seconds"] if saved else 0.0)
        self.validation = ValidationSet(self.trainer.method) if self.is_first else None

    @property
    def seconds(self) -> float:
        """Of training, over all the times the run was taken up."""
        return time.monotonic() - self.started

    def save(self) -> None:
        """Write everything that the next iteration depends on."""
        if not self.is_first:
            return
        state = self.trainer.state() | {
            "identity": self.identity,
            "best": self.best if math.isfinite(self.best) else None,
            "losses": self.losses,
            "seconds": self.seconds,
        }
        save_run(self.folder, self.trainer.step, self.trainer.parts(), state)

    def validate(self) -> None:
        """Score the moving average, log it, and keep its weights if they are the best so far."""
        if self.validation is None:
            return
        trainer = self.trainer
        scores = self.validation.score(trainer.average, trainer.device.torch_device)
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        row = {
            "step": trainer.step,
            "loss": sum(finite) / len(finite) if finite else math.nan,
            **{f"stsnr_{level}": score for level, score in scores.items()},
            "bad_steps": trainer.num_bad,
            "seconds": self.seconds,
        }
        self.losses.clear()
        self.curve.rows.append(row)
        self.curve.write()
        mean = sum(scores.values()) / len(scores)
        if mean > self.best:
            self.best = mean
            provenance = self.provenance | {"steps": trainer.step, "validation": scores}
            save_checkpoint(self.out, trainer.average, method=trainer.method, provenance=provenance)
        logger.info(
            "%d/%d  loss %.5f  stSNR %s dB  %.0f s",
            trainer.step, trainer.recipe.steps, row["loss"],
            " / ".join(f"{score:.2f}" for score in scores.values()), self.seconds,
        )  # fmt: skip

    def go(self, hours: float | None, stop: StopRequest) -> int:
        """Train to the end, the time limit or a signal; the signal, or 0."""
        trainer, began = self.trainer, time.monotonic()
        saved = began
        while trainer.step < trainer.recipe.steps:
            self.losses.append(trainer.advance())
            is_last = trainer.step == trainer.recipe.steps
            if trainer.step % self.validate_every == 0 or is_last:
                self.validate()
            now = time.monotonic()
            is_over = hours is not None and now - began > 3600 * hours
            if is_over and not stop.signal:
                stop.signal = TIME_IS_UP
            received = stop.agreed(trainer.device) if not is_last else 0
            if received or is_last or now - saved > self.save_seconds:
                self.save()
                saved = now
            if received:
                logger.info("put down at iteration %d", trainer.step)
                return 0 if received == TIME_IS_UP else received
        return 0


# ---- The command line -------------------------------------------------------------------------


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON would give them back: tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _stretch(text: str) -> tuple[int, Sides]:
    steps, _, sides = text.partition(":")
    t, h, w = map(int, sides.split("x"))
    return int(steps), (t, h, w)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("method", choices=RECIPES)
    add("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    add("--data", type=Path, nargs="+", default=[], help="folders with noisy stacks of your own")
    add(
        "--simulated",
        type=float,
        metavar="SHARE",
        help="share of the patches from the simulator (default: 1, with --data 0.5)",
    )
    add("--hours", type=float, help="put the run down after so long; start it again to go on")
    add("--start-from", type=Path, metavar="CHECKPOINT", help="weights to begin with")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--validate-every", type=int, default=200, metavar="STEPS")
    add("--save-minutes", type=float, default=5.0)
    recipe = parser.add_argument_group("instead of the recipe's numbers (lab/recipes.py)")
    add = recipe.add_argument
    add("--curriculum", type=_stretch, nargs="+", metavar="STEPS:TxHxW")
    add("--batch", type=int)
    add("--warm-up", type=int)
    add("--objective", choices=get_args(Objective))
    add("--target-draws", type=int)
    add("--learning-rate", type=float)
    add("--precision", choices=get_args(Precision))
    add("--seed", type=int)
    return parser


def _recipe(args: argparse.Namespace) -> Recipe:
    given = {k: v for k, v in vars(args).items() if k in Recipe.__dataclass_fields__}
    if "curriculum" in given and given["curriculum"] is not None:
        given["curriculum"] = tuple(given["curriculum"])
    return replace(RECIPES[args.method], **{k: v for k, v in given.items() if v is not None})


def _sources(
    args: argparse.Namespace, recipe: Recipe, device: Device
) -> list[tuple[Source, float]]:
    simulated = args.simulated
    if not 0 <= simulated <= 1 or (simulated < 1 and not args.data):
        raise DataError(f"--simulated {simulated}: from 0 to 1, and 1 without --data")
    sources: list[tuple[Source, float]] = []
    if simulated > 0:
        simulator = Simulator(
            method=args.method,
            seed=recipe.seed,
            device=device.torch_device,
            shape=SIMULATED_SHAPE,
        )
        sources.append((simulator, simulated))
    if simulated < 1:
        sources.append((Folders(args.data, args.method, recipe.seed), 1 - simulated))
    return sources


def _join_processes(wanted: str) -> None:
    """Under torchrun: one process of several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        uses_gpus = wanted != "cpu" and torch.cuda.is_available()
        dist.init_process_group("nccl" if uses_gpus else "gloo")
        # of 1x1x1 kernels, whose layout is ambiguous and makes no difference
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")


def _own_device(wanted: str) -> Device:
    """The device of this process: under torchrun with GPUs one for each on its machine."""
    device = pick_device(wanted)
    if device.is_cuda and dist.is_initialized():
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
        device = replace(device, torch_device=own)
    return device


def train(args: argparse.Namespace) -> int:
    """Make or take up the run that the command line names; the signal that ended it, or 0."""
    stop = StopRequest()
    stop.listen()
    device = _own_device(args.device)
    if args.simulated is None:
        args.simulated = 0.5 if args.data else 1.0
    recipe = _recipe(args)
    trainer = Trainer(args.method, recipe, _sources(args, recipe, device), device)
    if trainer.rank:
        logger.setLevel(logging.WARNING)
    if args.start_from:
        trainer.start_from(load_network(read_checkpoint(args.start_from, args.method)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    provenance = {
        "script": "lab/pretrain.py",
        "data": {
            "simulated": args.simulated,
            "folders": [folder.name for folder in args.data],
            "start_from": args.start_from.name if args.start_from else None,
        },
        "recipe": _plain(asdict(recipe)),
        "device": device.name,
        "torch": torch.__version__,
    }
    run = Run(
        trainer=trainer,
        out=args.out,
        provenance=provenance,
        validate_every=args.validate_every,
        save_seconds=60 * args.save_minutes,
    )
    logger.info("%s on %s, %d iterations", args.method, device.name, recipe.steps)
    return run.go(args.hours, stop)


def main(argv: Sequence[str]) -> int:
    """The exit code: 0 done or time up, 128 + the signal that ended it, 1 failed."""
    args = _parser().parse_args(argv)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    _join_processes(args.device)
    try:
        received = train(args)
    except (CheckpointError, DataError, DeviceError, ResumeError, TrainError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 128 + received if received else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
