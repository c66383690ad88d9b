"""Seconds of MONAI's three-dimensional Restormer (https://github.com/Project-MONAI/MONAI), as JSON.

    python time_monai.py ROUNDS FORWARD_T H W TRAINING_T H W

At the sizes of the published entry; its resampling halves all three axes, and it has more
parameters for that. Of so many rounds the fastest counts, after one that warms up.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
from monai.networks.nets.restormer import Restormer  # type: ignore[import-not-found]


def fastest_of(task: Callable[[], object], rounds: int) -> float:
    """Seconds."""
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def main() -> None:
    """Print {"forward": seconds, "training": seconds}."""
    rounds, *sides = map(int, sys.argv[1:])
    torch.manual_seed(0)
    net = Restormer(
        spatial_dims=3, in_channels=1, out_channels=1, dim=32, num_blocks=(2, 2, 2, 3),
        heads=(1, 2, 4, 8), num_refinement_blocks=2, ffn_expansion_factor=2.0,
    )  # fmt: skip
    window, patch = torch.rand(1, 1, *sides[:3]), torch.rand(1, 1, *sides[3:])
    with torch.inference_mode():
        forward = fastest_of(lambda: net(window), rounds)
    training = fastest_of(lambda: net(patch).square().mean().backward(), rounds)
    print(json.dumps({"forward": forward, "training": training}))


if __name__ == "__main__":
    main()
