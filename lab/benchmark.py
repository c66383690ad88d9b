"""What everything outside the network costs:  python -m lab.benchmark [T H W] [--method NAME].

Runs the real pipeline on a stack of the challenge's size with a network that returns its input, in
a process of its own under a 12 GiB data limit, and prints CPU seconds and memory per stage. With
--method the windows are that method's, its network runs in the first of them, and one iteration of
each of its stages is done: whatever takes memory is taken, without the hours. The low-rank methods
take minutes: they are run as they are, on a simulated recording.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor, nn

from lab.limits import limit_data
from lab.noise import noisy_recording
from lab.simulate import random_movie
from model.adapt import adapt
from model.architectures import build, stride_of
from model.budget import Budget
from model.checkpoint import load_network, read_checkpoint
from model.config import METHODS, Method
from model.device import inference_precision, pick_device, place
from model.ensemble import LowRankEnsemble
from model.factor_denoiser import FactorDenoiser
from model.inference import WindowGrid, infer
from model.job import SHIPPED_WEIGHTS
from model.lowrank import LowRank
from model.mean_image import with_mean_of
from model.memory import peak_resident_bytes
from model.normalise import IntensityScale, fit_scale, temporal_median
from model.report import StackRecord
from model.residual import Residual
from model.result_writer import open_result
from model.stack_io import read_stack
from model.teach import teach

TILE, BLOCK = 96, 50  # pixels and frames, of a simulated recording
PEAK = "peak resident memory, mapped files included [GiB]"


class Identity(nn.Module):
    """A network that costs nothing, so that only the rest is measured."""

    def forward(self, noisy: Tensor) -> Tensor:
        """[B,1,T,H,W], unchanged."""
        return noisy


class FirstWindow(nn.Module):
    """A network in the first window, when it takes all the memory it ever will; then `Identity`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: nn.Module | None = net

    def forward(self, noisy: Tensor) -> Tensor:
        """[B,1,T,H,W], unchanged."""
        if self.net:
            self.net(noisy)
            self.net = None
        return noisy


def write_stack_file(path: Path, shape: tuple[int, int, int]) -> None:
    """A stack of noise [T,H,W] int16, written frame by frame."""
    rng = np.random.default_rng(0)
    with tifffile.TiffWriter(path, bigtiff=bool(np.prod(shape) > 1.9e9)) as file:
        for _ in range(shape[0]):
            frame = rng.integers(-200, 3000, shape[1:], dtype=np.int16)
            file.write(frame, contiguous=True, photometric="minisblack")


def write_simulated_file(path: Path, shape: tuple[int, int, int]) -> None:
    """A simulated recording [T,H,W] int16 at the challenge's second level, one tile everywhere."""
    num_frames, height, width = shape
    rng = np.random.default_rng(0)
    tile = random_movie(rng, (num_frames, TILE, TILE)).numpy()
    times = (1, -(-height // TILE), -(-width // TILE))
    with tifffile.TiffWriter(path, bigtiff=bool(np.prod(shape) > 1.9e9)) as file:
        for start in range(0, num_frames, BLOCK):
            clean = np.tile(tile[start : start + BLOCK], times)[:, :height, :width]
            for frame in noisy_recording(clean, 2, seed=start):
                file.write(frame, contiguous=True, photometric="minisblack")


def trained_once(method: Method, frames: np.ndarray, scale: IntensityScale) -> nn.Module:
    """The method's network after one iteration of each of its stages."""
    device = pick_device("cpu")
    net = place(build(method.network, **method.network_config), device)
    stages = tuple(replace(stage, steps=1) for stage in method.scratch_stages or method.stages)
    adapt(
        net, frames, scale, stages=stages, config=method.adapt, device=device,
        budget=Budget(math.inf), seed=0, micro_batch=1, is_pretrained=True,
    )  # fmt: skip
    return net


def measure(source: Path, target: Path, name: str | None) -> dict[str, float]:
    """CPU seconds of every stage around the network, and the peaks of memory, in this process."""
    limit_data()
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    begin = time.process_time()

    def lap(stage: str) -> None:
        nonlocal begin
        now = time.process_time()
        seconds[stage] = seconds.get(stage, 0.0) + now - begin
        begin = now

    def lapped(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The same, timed by what makes them and by what takes them."""
        for block in blocks:
            lap("tile and blend")
            yield block
            lap("mean image")

    def write(blocks: Iterator[np.ndarray], stage: str) -> None:
        """All of them, timed with what makes them and what looks at them."""
        with open_result(target, stack) as result:
            for block in blocks:
                lap(stage)
                result.append(block)
                lap("write")
                residual.look(block)
                lap("look at what was taken out")
        lap("write")

    stack = read_stack(source)
    lap("read")
    residual = Residual(stack.frames)
    if name and (low_rank := METHODS[name].low_rank):
        has_network = METHODS[name].checkpoint != "never"
        recording = LowRank(stack.frames, low_rank)
        if not has_network:
            found = LowRankEnsemble(recording)
            found.find()
            lap("decompose")
        else:
            device = pick_device("cpu")
            path = SHIPPED_WEIGHTS / f"{name}.safetensors"
            pretrained = place(load_network(read_checkpoint(path, name)), device).eval()
            precision = inference_precision(device, "auto", takes_bf16=METHODS[name].takes_bf16)
            denoiser = FactorDenoiser(net=pretrained, device=device, precision=precision)
            found = LowRankEnsemble(recording)
            found.find(denoiser.courses)
            lap("decompose")
            if low_rank.teach:
                teach(denoiser, recording, low_rank.teach, Budget(math.inf), seed=0)
            lap("learn")
            found.denoise_images(denoiser.images, denoiser.means)
            lap("denoise images")
        write(found.render(), "render")
        seconds["total"] = sum(seconds.values())
        seconds[PEAK] = peak_resident_bytes() / 2**30
        return seconds
    scale = fit_scale(stack.frames)
    lap("percentiles")
    temporal_median(stack.frames)
    lap("median")
    method = METHODS[name or "restormer3d"]
    net: nn.Module = Identity()
    if name:
        trained = trained_once(method, stack.frames, scale)
        net, stride = FirstWindow(trained), stride_of(trained)
        lap("one iteration of each stage")
    else:
        stride = (1, 1, 1)
    grid = WindowGrid.over(stack.shape, method.tile, method.tile.largest_overlap, stride)
    blocks = infer(net, stack.frames, scale, grid, device=pick_device("cpu"), tile_batch=1)
    blocks = lapped(map(scale.invert, blocks))
    record = StackRecord(file=source.name)
    write(with_mean_of(stack.frames, blocks, target, record), "mean image")
    seconds["total"] = sum(seconds.values())
    seconds[PEAK] = peak_resident_bytes() / 2**30
    difference = np.abs(stack.frames[::100].astype(int) - read_stack(target).frames[::100])
    if difference.max() > 1:
        raise RuntimeError(f"the identity came back changed by up to {difference.max()} counts")
    return seconds


def measured(shape: tuple[int, int, int], method: str | None = None) -> dict[str, float]:
    """`measure` for a stack [T,H,W] of noise, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "noisy.tif", Path(folder) / "denoised.tif"
        is_low_rank = bool(method and METHODS[method].low_rank)
        (write_simulated_file if is_low_rank else write_stack_file)(source, shape)
        command = [sys.executable, "-m", "lab.benchmark", "--measure", str(source), str(target)]
        command += ["--method", method] if method else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="CPU seconds and memory outside the network.")
    parser.add_argument("shape", type=int, nargs="*", default=[1500, 490, 490])
    parser.add_argument("--method", choices=METHODS, help="take this method's memory too")
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], args.measure[1], args.method)))
        return
    found = measured(tuple(args.shape), args.method)
    size = "x".join(map(str, args.shape))
    print(f"{args.method or 'no network'}: {size} int16 under a 12 GiB data limit, CPU seconds")
    for stage, value in found.items():
        print(f"{stage:<52}{value:8.2f}")


if __name__ == "__main__":
    main()
