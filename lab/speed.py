"""Restormer3D's speed against the same network in plain PyTorch:  python -m lab.speed [--monai]

Tables from one run: the routes, which take turns, so that whatever else the machine does falls on
all of them alike, and compute the same function of the same weights; how near they come to what the
machine can do; memory against time; and which operations take it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from lab.peers.runner import PeerError, answer_of
from lab.roofline import CARDS, Peaks, Work, fastest_of
from model.architectures import build, recompute, restormer3d
from model.config import METHODS, Precision
from model.device import in_precision, pick_device, place
from model.inference import WindowGrid
from model.memory import peak_resident_bytes

CPU = pick_device("cpu")
WINDOW = (32, 64, 64)
TRAINING_PATCH = (16, 64, 64)
STACK = (1500, 490, 490)
PROFILED = 10


def _plain_parts(x: Tensor, expand: nn.Conv3d, mix: nn.Conv3d, parts: int) -> list[Tensor]:
    wide = functional.conv3d(x, expand.weight)
    mixed = functional.conv3d(wide, mix.weight, padding=1, groups=len(mix.weight))
    return list(mixed.chunk(parts, dim=1))


def _plain_norm(norm: restormer3d.ChannelNorm, x: Tensor) -> Tensor:
    deviation = (x.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return x / deviation * norm.gain.view(-1, 1, 1, 1)


class _PlainProducts:
    @staticmethod
    def apply(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        squares = query.norm(dim=-1).square(), key.norm(dim=-1).square()
        return query @ key.transpose(-1, -2), *squares


class _PlainGate:
    @staticmethod
    def apply(gate: Tensor, content: Tensor) -> Tensor:
        return functional.gelu(gate) * content


@contextmanager
def plain_layers() -> Iterator[None]:
    """Inside, every layer is what the library makes of its formula."""
    with (
        patch.object(restormer3d, "expand_and_mix", _plain_parts),
        patch.object(restormer3d, "pointwise_conv3d", functional.conv3d),
        patch.object(restormer3d, "_ChannelProducts", _PlainProducts),
        patch.object(restormer3d, "_GeluGate", _PlainGate),
        patch.object(restormer3d.ChannelNorm, "forward", _plain_norm),
    ):
        yield


@dataclass(frozen=True)
class Route:
    """One way to compute the network."""

    name: str
    is_plain: bool = False
    is_channels_last: bool = True
    precision: Precision = "fp32"
    trains: bool = True

    def network(self) -> nn.Module:
        """With the same weights in each."""
        torch.manual_seed(0)
        net = build("restormer3d")
        return place(net, CPU) if self.is_channels_last else net

    @contextmanager
    def layers(self) -> Iterator[None]:
        """What the network runs in."""
        with in_precision(CPU, self.precision):
            if self.is_plain:
                with plain_layers():
                    yield
            else:
                yield


PLAIN = Route("plain, channels last", is_plain=True)
OURS = Route("ours")
ROUTES = (
    Route("plain, default layout", is_plain=True, is_channels_last=False),
    PLAIN,
    OURS,
    Route("ours, bf16", precision="bf16", trains=False),
)


def _forward(net: nn.Module, noisy: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(noisy)


def _loss(net: nn.Module, noisy: Tensor) -> Tensor:
    return net(noisy).square().mean()


def _training_step(net: nn.Module, noisy: Tensor) -> Tensor:
    loss = _loss(net, noisy)
    loss.backward()
    return loss.detach()


Task = Callable[[nn.Module, Tensor], Tensor]


def _input(sides: tuple[int, int, int]) -> Tensor:
    return torch.rand(1, 1, *sides, generator=torch.Generator().manual_seed(0))


# ---- Routes --------------------------------------------------------------------------------------


def fastest(task: Task, rounds: int, *, trains: bool) -> list[float]:
    """Seconds of the fastest run of each route; nan where it is not for training."""
    noisy = _input(TRAINING_PATCH if trains else WINDOW)
    nets = [route.network() for route in ROUTES]
    best = [float("nan")] * len(ROUTES)
    for _ in range(rounds + 1):  # the first warms up
        for i, (route, net) in enumerate(zip(ROUTES, nets, strict=True)):
            if trains and not route.trains:
                continue
            with route.layers():
                begin = time.perf_counter()
                task(net, noisy)
                taken = time.perf_counter() - begin
            best[i] = min(taken, best[i]) if best[i] == best[i] else taken
    return best


def _print_routes(rounds: int, *, with_monai: bool) -> tuple[float, float]:
    """The first table; seconds of our forward and training step."""
    names = [route.name for route in ROUTES]
    forward = fastest(_forward, rounds, trains=False)
    training = fastest(_training_step, rounds, trains=True)
    if with_monai:
        theirs = answer_of("monai", rounds, *WINDOW, *TRAINING_PATCH)
        names.append("MONAI's, default layout")
        forward.append(theirs["forward"])
        training.append(theirs["training"])
    print(f"| | forward {_text(WINDOW)} | training step {_text(TRAINING_PATCH)} |\n|---|---:|---:|")
    for name, *taken in zip(names, forward, training, strict=True):
        cells = [
            f"{seconds:.2f} s, {first / seconds:.2f} times as fast" if seconds == seconds else "-"
            for seconds, first in zip(taken, (forward[0], training[0]), strict=True)
        ]
        print(f"| {name} | {cells[0]} | {cells[1]} |")
    return forward[ROUTES.index(OURS)], training[ROUTES.index(OURS)]


# ---- The machine's limits ------------------------------------------------------------------------


def _print_roofline(forward: float, training: float) -> None:
    net = OURS.network()
    window = Work.of(partial(_forward, net, _input(WINDOW)))
    step = Work.of(partial(_loss, net, _input(TRAINING_PATCH)), backward=True)
    peaks = Peaks.measured()
    print(
        f"\nThis machine: {peaks.operations / 1e9:.0f} GFLOP/s in products of large matrices, "
        f"{peaks.bytes / 1e9:.0f} GB/s in copies.\n"
    )
    print("| | GFLOP | GB | s for these at least | taken | of the roofline |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, work, taken in (
        (f"forward {_text(WINDOW)}", window, forward),
        (f"training step {_text(TRAINING_PATCH)}", step, training),
    ):
        least = peaks.least_seconds(work)
        print(
            f"| {name} | {work.operations / 1e9:.0f} | {work.bytes / 1e9:.1f} | "
            f"{work.operations / peaks.operations:.2f} and {work.bytes / peaks.bytes:.2f} | "
            f"{taken:.2f} s | {100 * least / taken:.0f} % |"
        )
    _print_cards(window, step)


def _print_cards(window: Work, step: Work) -> None:
    """What a whole stack would take on GPUs at least, nothing kept from one operation to the next.

    Computed from data sheets, not measured.
    """
    method = METHODS["restormer3d"]
    grid = WindowGrid.over(STACK, method.tile, method.tile.largest_overlap)
    steps = sum(stage.steps for stage in method.stages)
    patches = math.prod(method.adapt.patch) / math.prod(TRAINING_PATCH) * method.adapt.batch
    print(
        f"\n| {_text(STACK)}, s at least | {steps} iterations in fp32 | {grid.num_windows} windows "
        "in fp32 | in fp16 or bf16 | all in fp32 | windows in fp16 or bf16 |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    for name, card in CARDS.items():
        adapting = steps * patches * card.fp32.least_seconds(step)
        precise = grid.num_windows * card.fp32.least_seconds(window)
        half = grid.num_windows * card.half.least_seconds(window.in_half)
        seconds = (adapting, precise, half, adapting + precise, adapting + half)
        print(f"| {name} | " + " | ".join(f"{each:.0f}" for each in seconds) + " |")


# ---- Memory --------------------------------------------------------------------------------------


def memory_of(levels: int, rounds: int) -> tuple[float, float]:
    """Seconds and bytes a voxel of a training step with so many levels recomputed.

    To be called in a process of its own: its peak of memory is the process's.
    """
    net = OURS.network()
    recompute(net, levels)
    noisy = _input(TRAINING_PATCH)
    before = peak_resident_bytes()
    seconds = fastest_of(lambda: _training_step(net, noisy), rounds)
    return seconds, (peak_resident_bytes() - before) / noisy.numel()


def _print_memory(rounds: int) -> None:
    print(
        "\n| levels of which activations are computed twice | bytes a voxel | training step "
        f"{_text(TRAINING_PATCH)} |\n|---|---:|---:|"
    )
    for levels in range(len(METHODS["restormer3d"].training_bytes_per_voxel)):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            seconds, each = process.submit(memory_of, levels, rounds).result()
        print(f"| {levels} | {each:,.0f} | {seconds:.2f} s |", flush=True)


# ---- What takes the time -------------------------------------------------------------------------


def _print_profile() -> None:
    noisy = _input(TRAINING_PATCH)
    for route in (PLAIN, OURS):
        net = route.network()
        with route.layers():
            _training_step(net, noisy)
            with profile(activities=[ProfilerActivity.CPU]) as found:
                _training_step(net, noisy)
        total = sum(event.self_cpu_time_total for event in found.key_averages())
        most = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
        print(f"\n| {route.name}: a training step's operations | share | times |\n|---|---:|---:|")
        for event in most[:PROFILED]:
            share = 100 * event.self_cpu_time_total / total
            print(f"| {event.key} | {share:.1f} % | {event.count} |")


def _text(sides: tuple[int, int, int]) -> str:
    return "x".join(map(str, sides))


def main(argv: Sequence[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="of which the fastest counts")
    add("--monai", action="store_true", help="also MONAI's network, installed for it into .peers/")
    args = parser.parse_args(argv)
    try:
        ours = _print_routes(args.rounds, with_monai=args.monai)
    except PeerError as error:
        parser.error(str(error))
    _print_roofline(*ours)
    _print_memory(args.rounds)
    _print_profile()


if __name__ == "__main__":
    main(sys.argv[1:])
