"""What everything outside the network costs:  python -m lab.benchmark [T H W].

Runs the real pipeline on a stack of the challenge's size with a network that returns its input, in
a process of its own under a 12 GiB data limit, and prints CPU seconds and memory per stage.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor, nn

from model.config import METHODS
from model.device import pick_device
from model.inference import WindowGrid, infer
from model.memory import peak_resident_bytes
from model.normalise import fit_scale, temporal_median
from model.result_writer import open_result
from model.stack_io import read_stack

DATA_LIMIT_BYTES = 12 * 2**30
PEAK = "peak resident memory, mapped files included [GiB]"


class Identity(nn.Module):
    """A network that costs nothing, so that only the rest is measured."""

    def forward(self, noisy: Tensor) -> Tensor:
        """[B,1,T,H,W], unchanged."""
        return noisy


def write_stack_file(path: Path, shape: tuple[int, int, int]) -> None:
    """A stack of noise [T,H,W] int16, written frame by frame."""
    rng = np.random.default_rng(0)
    with tifffile.TiffWriter(path, bigtiff=bool(np.prod(shape) > 1.9e9)) as file:
        for _ in range(shape[0]):
            frame = rng.integers(-200, 3000, shape[1:], dtype=np.int16)
            file.write(frame, contiguous=True, photometric="minisblack")


def measure(source: Path, target: Path) -> dict[str, float]:
    """CPU seconds of every stage around the network, and the peaks of memory, in this process."""
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT_BYTES, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    begin = time.process_time()

    def lap(stage: str) -> None:
        nonlocal begin
        now = time.process_time()
        seconds[stage] = seconds.get(stage, 0.0) + now - begin
        begin = now

    stack = read_stack(source)
    lap("read")
    scale = fit_scale(stack.frames)
    lap("percentiles")
    temporal_median(stack.frames)
    lap("median")
    method = METHODS["restormer3d"]
    grid = WindowGrid.over(stack.shape, method.tile, method.tile.largest_overlap)
    blocks = infer(Identity(), stack.frames, scale, grid, device=pick_device("cpu"), tile_batch=1)
    with open_result(target, stack) as result:
        for block in blocks:
            lap("tile and blend")
            result.append(scale.invert(block))
            lap("write")
    lap("write")
    seconds["total"] = sum(seconds.values())
    seconds[PEAK] = peak_resident_bytes() / 2**30
    difference = np.abs(stack.frames[::100].astype(int) - read_stack(target).frames[::100])
    if difference.max() > 1:
        raise RuntimeError(f"the identity came back changed by up to {difference.max()} counts")
    return seconds


def measured(shape: tuple[int, int, int]) -> dict[str, float]:
    """`measure` for a stack [T,H,W] of noise, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "noisy.tif", Path(folder) / "denoised.tif"
        write_stack_file(source, shape)
        command = [sys.executable, "-m", "lab.benchmark", "--measure", str(source), str(target)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="CPU seconds and memory outside the network.")
    parser.add_argument("shape", type=int, nargs="*", default=[1500, 490, 490])
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    found = measured(tuple(args.shape))
    print(f"{'x'.join(map(str, args.shape))} int16 under a 12 GiB data limit, CPU seconds")
    for stage, value in found.items():
        print(f"{stage:<52}{value:8.2f}")


if __name__ == "__main__":
    main()
