"""Pretrain a method's network on noisy recordings alone, or on pairs; simulated or a user's own.

    python -m lab.pretrain restormer3d --out weights/restormer3d.safetensors --hours 10
    python -m lab.pretrain niddl --pairs FOLDER --out weights/niddl.safetensors
    torchrun --nproc-per-node 4 -m lab.pretrain restormer3d --out ...

The numbers are `lab.recipes`'. Interrupted at any time and started again with the same command, it
goes on from `OUT.resume/` and ends with the same weights. `OUT.csv` and `OUT.png` hold the curve,
`OUT` the moving average of the weights at its best so far.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn

from lab.factors import SimulatedFactors, as_guessed
from lab.pairs import Pairs
from lab.recipes import RECIPES, Loss, Objective, Precision, Recipe, Sides
from lab.recordings import DataError, Folders, Simulator, Source
from lab.resume import ResumeError
from lab.trainer import Trainer, TrainError
from lab.training_run import Run, StopRequest, plain
from model.checkpoint import CheckpointError, load_network, read_checkpoint
from model.config import METHODS
from model.device import Device, DeviceError, pick_device, place
from model.factor_denoiser import FactorDenoiser

logger = logging.getLogger(__name__)


def _stretch(text: str) -> tuple[int, Sides]:
    steps, _, sides = text.partition(":")
    t, h, w = map(int, sides.split("x"))
    return int(steps), (t, h, w)


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("method", choices=RECIPES)
    add("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    add("--data", type=Path, nargs="+", default=[], help="folders with noisy stacks of your own")
    add(
        "--pairs",
        type=Path,
        nargs="+",
        default=[],
        help="folders with gt_imgs/ and noisy_imgs/, for methods that learn from pairs",
    )
    add(
        "--simulated",
        type=float,
        metavar="SHARE",
        help="share of the patches from the simulator (1; with --data 0.5, with --pairs 0)",
    )
    add("--hours", type=float, help="put the run down after so long; start it again to go on")
    add("--start-from", type=Path, metavar="CHECKPOINT", help="weights to begin with")
    add(
        "--network",
        type=_setting,
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="sizes of the network, e.g. variant=unet_pp",
    )
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
    add("--loss", choices=get_args(Loss))
    add("--precision", choices=get_args(Precision))
    add("--frozen-norm", action="store_const", const=True,
        help="batch norm as in use, by the averages of --start-from")  # fmt: skip
    add("--seed", type=int)
    return parser


def _recipe(args: argparse.Namespace) -> Recipe:
    known = Recipe.__dataclass_fields__
    given = {k: v for k, v in vars(args).items() if k in known and v is not None}
    if args.curriculum:
        given["curriculum"] = tuple(args.curriculum)
    return replace(RECIPES[args.method], **given)


def _simulated_share(args: argparse.Namespace) -> float:
    """As asked for, or what suits the data; DataError where it makes no sense."""
    has_own = bool(args.data or args.pairs)
    share = args.simulated
    if share is None:
        share = 0.0 if args.pairs else 0.5 if args.data else 1.0
    if not 0 <= share <= 1 or (share < 1 and not has_own):
        raise DataError(f"--simulated {share}: from 0 to 1, and 1 without --data or --pairs")
    return float(share)


def _sources(
    args: argparse.Namespace, recipe: Recipe, device: Device, start: nn.Module | None
) -> list[tuple[Source, float]]:
    learns_from_pairs = recipe.objective == "pairs"
    if args.data if learns_from_pairs else args.pairs:
        right, wrong = ("--pairs", "--data") if learns_from_pairs else ("--data", "--pairs")
        raise DataError(
            f"{args.method} with objective {recipe.objective} takes {right}, not {wrong}"
        )
    simulated = _simulated_share(args)
    if METHODS[args.method].low_rank:
        if simulated < 1:
            raise DataError(
                f"{args.method} learns from simulated recordings alone, without --pairs"
            )
        courses = as_guessed
        if start:
            courses = FactorDenoiser(net=place(start, device).eval(), device=device).courses
        simulated_factors = SimulatedFactors(args.method, recipe.seed, device.torch_device, courses)
        return [(simulated_factors, 1.0)]
    sources: list[tuple[Source, float]] = []
    if simulated > 0:
        simulator = Simulator(
            method=args.method,
            seed=recipe.seed,
            device=device.torch_device,
            shape=recipe.recording,
        )
        sources.append((simulator, simulated))
    if simulated < 1:
        own: Source = (
            Pairs(args.pairs, args.method, recipe.seed)
            if learns_from_pairs
            else Folders(args.data, args.method, recipe.seed)
        )
        sources.append((own, 1 - simulated))
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
    recipe = _recipe(args)
    start = None
    if recipe.frozen_norm and not args.start_from:
        raise TrainError("--frozen-norm: there are no averages yet; name weights by --start-from")
    if args.start_from:
        start = load_network(read_checkpoint(args.start_from, args.method))
    sources = _sources(args, recipe, device, start)
    trainer = Trainer(args.method, recipe, sources, device, dict(args.network))
    if trainer.rank:
        logger.setLevel(logging.WARNING)
    if start:
        trainer.start_from(start)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    provenance = {
        "script": "lab/pretrain.py",
        "data": {
            "simulated": _simulated_share(args),
            "folders": [folder.name for folder in args.data + args.pairs],
            "network": dict(args.network),
            "start_from": args.start_from.name if args.start_from else None,
        },
        "recipe": plain(asdict(recipe)),
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
    logging.getLogger("model").setLevel(logging.WARNING)  # of the run, not of each recording
    _join_processes(args.device)
    try:
        received = train(args)
    except (CheckpointError, DataError, DeviceError, ResumeError, TrainError) as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, SafetensorError) as error:  # of the checkpoint or the curve
        print(f"{args.out}: {error}; what was saved last stays, run it again", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 128 + received if received else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
