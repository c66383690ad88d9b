"""Restormer3D's speed against the same network in plain PyTorch:  python -m lab.speed

One table from one run, the routes taking turns, so that whatever else the machine does falls on all
of them alike. All compute the same function of the same weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.architectures import build, restormer3d
from model.config import Precision
from model.device import in_precision, pick_device, place

CPU = pick_device("cpu")
WINDOW = (32, 64, 64)
TRAINING_PATCH = (16, 64, 64)


def _plain_parts(x: Tensor, expand: nn.Conv3d, mix: nn.Conv3d, parts: int) -> list[Tensor]:
    wide = functional.conv3d(x, expand.weight)
    mixed = functional.conv3d(wide, mix.weight, padding=1, groups=len(mix.weight))
    return list(mixed.chunk(parts, dim=1))


def _plain_norm(norm: restormer3d.ChannelNorm, x: Tensor) -> Tensor:
    deviation = (x.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return x / deviation * norm.gain.view(-1, 1, 1, 1)


@contextmanager
def plain_layers() -> Iterator[None]:
    """Inside, every layer is what the library makes of its formula."""
    with (
        patch.object(restormer3d, "expand_and_mix", _plain_parts),
        patch.object(restormer3d, "pointwise_conv3d", functional.conv3d),
        patch.object(restormer3d, "length", lambda v: v.norm(dim=-1).clamp_min(1e-12)),
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


ROUTES = (
    Route("plain, default layout", is_plain=True, is_channels_last=False),
    Route("plain, channels last", is_plain=True),
    Route("ours"),
    Route("ours, bf16", precision="bf16", trains=False),
)


def _forward(net: nn.Module, noisy: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(noisy)


def _training_step(net: nn.Module, noisy: Tensor) -> Tensor:
    loss = net(noisy).square().mean()
    loss.backward()
    return loss.detach()


def fastest(
    task: Callable[[nn.Module, Tensor], Tensor], rounds: int, *, trains: bool
) -> list[float]:
    """Seconds of the fastest run of each route; nan where it is not for training."""
    noisy = torch.rand(1, 1, *(TRAINING_PATCH if trains else WINDOW))
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


def main(argv: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest counts")
    rounds = parser.parse_args(argv).rounds
    forward = fastest(_forward, rounds, trains=False)
    training = fastest(_training_step, rounds, trains=True)
    sizes = ["x".join(map(str, sides)) for sides in (WINDOW, TRAINING_PATCH)]
    print(f"{'':<24}{f'forward {sizes[0]}':>28}{f'training step {sizes[1]}':>34}")
    for route, *taken in zip(ROUTES, forward, training, strict=True):
        cells = [
            f"{seconds:6.2f} s, {first / seconds:5.2f} times as fast"
            for seconds, first in zip(taken, (forward[0], training[0]), strict=True)
        ]
        print(f"{route.name:<24}{cells[0]:>28}{cells[1] if route.trains else '-':>34}")


if __name__ == "__main__":
    main(sys.argv[1:])
