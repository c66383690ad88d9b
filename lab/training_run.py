"""A pretraining with its files, its clock and its validation: put down, taken up, logged, drawn."""

from __future__ import annotations

import csv
import json
import logging
import math
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from lab.figures import curve_figure
from lab.noise import LEVELS
from lab.resume import load_run, require_same, save_run
from lab.trainer import Trainer
from lab.validation import ValidationSet
from model.checkpoint import save_checkpoint
from model.device import Device

logger = logging.getLogger(__name__)

TIME_IS_UP = 1000  # stands where a signal would, above all signals
COLUMNS = ["step", "loss", *(f"stsnr_{level}" for level in LEVELS), "bad_steps", "seconds"]


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON would give them back: tuples become lists."""
    restored: dict[str, Any] = json.loads(json.dumps(values))
    return restored


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

    def write(self) -> None:
        """The CSV, and a picture of it beside it."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in self.rows)
        temporary.replace(self.path)
        try:
            curve_figure(self.rows, self.path.with_suffix(".png"))
        except ModuleNotFoundError as error:  # no reason to lose hours of training
            logger.warning("no picture of the curve: %s; ./test.sh installs what it needs", error)


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
            **plain(asdict(self.trainer.recipe)),
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
        scores = self.validation.score(trainer.average, trainer.device)
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
