"""Pretrain Restormer3D on noisy draws of simulated movies, without ever showing it a clean one.

    python -m lab.pretrain --data FOLDER --out weights/restormer3d.safetensors

A patch of a movie is drawn twice with independent noise. One copy, with Noise2Void's blind spots
filled in, is the input; the other is the target at every voxel. At the hidden voxels that is
Noise2Void's loss with a target just as noisy as its own; at all the others it is Noise2Noise's
(Lehtinen et al., ICML 2018), 64 times as many voxels to learn from in the same time, which is
what makes a checkpoint possible on two CPU cores.

An interrupted run goes on from `OUT.state.safetensors` and ends with the same weights.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lab.metrics import stsnr
from lab.movies import HELD_OUT_FROM, held_out, load_movie
from lab.noise import LEVELS, add_noise
from model.architectures import build
from model.blindspot import blindspot_loss, draw_mask, draw_sources, fill_masked
from model.checkpoint import save_checkpoint
from model.config import METHODS, MaskConfig
from model.device import pick_device, place
from model.normalise import IntensityScale, fit_scale


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Numbers of one pretraining."""

    # Small patches first: most of what a denoiser learns is local, and they cost a fifth.
    curriculum: tuple[tuple[int, tuple[int, int, int]], ...] = (
        (1400, (16, 32, 32)),
        (330, (32, 40, 40)),
    )
    gain_range: tuple[float, float] = (15.0, 1500.0)  # counts per photon, log-uniform
    read_range: tuple[float, float] = (30.0, 70.0)  # counts
    mask: MaskConfig = field(default_factory=MaskConfig)
    hidden_weight: float = 0.25  # of the blind-spot loss beside the loss over all voxels
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    ramp_steps: int = 50
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0
    average_decay: float = 0.995  # of the moving average of the weights, which is what is saved
    seed: int = 0

    @property
    def steps(self) -> int:
        """Iterations in all."""
        return sum(steps for steps, _ in self.curriculum)

    def patch_at(self, step: int) -> tuple[int, int, int]:
        """Patch sides [T,H,W] at an iteration."""
        for steps, patch in self.curriculum:
            if step < steps:
                return patch
            step -= steps
        raise ValueError(f"no iteration {step} beyond the curriculum")

    def learning_rate_at(self, step: int) -> float:
        """Linear ramp, then cosine."""
        if step < self.ramp_steps:
            return self.learning_rate * (step + 1) / self.ramp_steps
        phase = (step - self.ramp_steps) / max(1, self.steps - self.ramp_steps)
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * phase))


def clean_patch(
    movies: list[np.ndarray], patch: tuple[int, int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A movie and a random patch of it outside the held-out corner, turned and mirrored."""
    movie = movies[rng.integers(len(movies))]
    while True:
        t, h, w = (
            int(rng.integers(side - size + 1))
            for side, size in zip(movie.shape, patch, strict=True)
        )
        if h + patch[1] <= HELD_OUT_FROM or w + patch[2] <= HELD_OUT_FROM:
            break
    cut = movie[t : t + patch[0], h : h + patch[1], w : w + patch[2]]
    cut = np.rot90(cut, k=int(rng.integers(4)), axes=(1, 2))
    return movie, cut[:, :, ::-1] if rng.integers(2) else cut


def recording_scale(frames: np.ndarray) -> IntensityScale:
    """The scale that the program itself would give a recording [T,H,W]."""
    percentiles = METHODS["restormer3d"].normalise
    return fit_scale(frames, percentiles.low_percentile, percentiles.high_percentile)


def noisy_pair(
    movies: list[np.ndarray],
    patch: tuple[int, int, int],
    config: PretrainConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Two noisy draws [1,1,t,h,w] of one patch, normalised as its recording would be."""
    movie, cut = clean_patch(movies, patch, rng)
    gain = math.exp(rng.uniform(*np.log(config.gain_range)))
    read = rng.uniform(*config.read_range)
    # The recording's percentiles, from one pixel in 61 of every 16th frame (both odd to the width).
    sample = add_noise(movie[::16].reshape(-1)[::61], gain, read, rng)
    scale = recording_scale(sample[None, None])
    first, second = (
        torch.from_numpy(scale.apply(add_noise(cut, gain, read, rng)))[None, None] for _ in range(2)
    )
    return first, second


def training_loss(
    net: nn.Module, noisy: Tensor, other: Tensor, config: PretrainConfig, generator: torch.Generator
) -> Tensor:
    """Mean squared error to the other draw, over all voxels plus a share at the hidden ones."""
    coords = draw_mask(tuple(noisy.shape), config.mask.cell, generator)
    sides = tuple(noisy.shape[2:])
    sources = draw_sources(coords, sides, config.mask.radius, generator)  # type: ignore[arg-type]
    prediction = net(fill_masked(noisy, coords, sources))
    everywhere = (prediction - other).square().mean()
    return everywhere + config.hidden_weight * blindspot_loss(prediction, other, coords)


@torch.inference_mode()
def validate(net: nn.Module, movie: np.ndarray, seed: int = 1) -> dict[int, float]:
    """stSNR at each noise level on 96 frames of the held-out corner of a movie."""
    net.eval()
    clean = held_out(movie)[60:156].astype(np.float32)
    scores = {}
    for level, (gain, read) in LEVELS.items():
        noisy = add_noise(clean, gain, read, np.random.default_rng(seed))
        scale = recording_scale(noisy)
        stack = torch.from_numpy(scale.apply(noisy))
        where = next(net.parameters()).device
        parts = [net(part[None, None].to(where))[0, 0].cpu() for part in stack.split(32)]
        scores[level] = stsnr(clean, scale.invert(torch.cat(parts).numpy())).stsnr
    net.train()
    return scores


class Run:
    """A network with its moving average and optimiser, which can be put down and taken up."""

    def __init__(self, config: PretrainConfig, state_path: Path) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.state_path = state_path
        self.device = pick_device("auto")
        self.net = place(build("restormer3d"), self.device)
        self.average = place(build("restormer3d"), self.device)
        self.average.load_state_dict(self.net.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.step = 0
        if state_path.exists():
            self.load()

    def save(self) -> None:
        """Write everything that the next iteration depends on."""
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v for k, v in slots.items()}
        temporary = self.state_path.with_suffix(".tmp")
        safetensors.torch.save_file(
            {k: v.detach().contiguous() for k, v in tensors.items()},
            temporary,
            metadata={"step": str(self.step)},
        )
        temporary.replace(self.state_path)

    def load(self) -> None:
        """Take up where `save` left off."""
        with safetensors.safe_open(self.state_path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.step = int(file.metadata()["step"])
        for name, module in (("net.", self.net), ("average.", self.average)):
            module.load_state_dict(
                {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
            )
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, number, slot = key.split(".")
                slots.setdefault(int(number), {})[slot] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": slots})

    def advance(self, movies: list[np.ndarray]) -> float:
        """One iteration; the loss. Its randomness depends on seed and iteration alone."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        pair = noisy_pair(movies, config.patch_at(self.step), config, rng)
        noisy, other = (draw.to(self.device.torch_device) for draw in pair)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        loss = training_loss(self.net, noisy, other, config, generator)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), config.gradient_clip)
        self.optimiser.step()
        # A young average forgets faster, or it would be made of the random start.
        decay = min(config.average_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        self.step += 1
        return float(loss.detach())


def main() -> None:
    """Train, saving every few minutes, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with .npz movies")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--save-seconds", type=float, default=300.0)
    parser.add_argument("--validate-every", type=int, default=200)
    args = parser.parse_args()

    config = PretrainConfig()
    paths = sorted(args.data.glob("*.npz"))
    movies = [load_movie(path) for path in paths]
    run = Run(config, args.out.with_suffix(".state.safetensors"))
    log_path = args.out.with_suffix(".csv")
    saved, window = time.monotonic(), []
    while run.step < config.steps:
        window.append(run.advance(movies))
        last = run.step == config.steps
        if run.step % args.validate_every == 0 or last:
            scores = validate(run.average, movies[-1])
            with log_path.open("a", newline="") as file:
                csv.writer(file).writerow(
                    [run.step, f"{np.mean(window):.6f}", *(f"{s:.2f}" for s in scores.values())]
                )
            window.clear()
        if time.monotonic() - saved > args.save_seconds or last:
            run.save()
            provenance = {
                "script": "lab/pretrain.py",
                "steps": run.step,
                "data": [path.name for path in paths],
                "config": json.loads(json.dumps(config, default=vars)),
            }
            save_checkpoint(args.out, run.average, method="restormer3d", provenance=provenance)
            saved = time.monotonic()


if __name__ == "__main__":
    main()
