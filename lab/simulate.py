"""Clean two-photon movies of random cortex, made faster than they can be trained on.

    clean = random_movie(np.random.default_rng(0), (300, 128, 128))

A movie is one product of matrices: footprints of cells, dendrites and axons (`lab.section`) times
their traces (`lab.activity`), on neuropil of a few regions with activity of their own. What it
does not do: light scattering, movement in depth, noise (`lab.noise`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lab.activity import (
    ActivityConfig,
    Range,
    draw_activity,
    draw_shared_rate,
    draw_traces,
    smooth_noise,
)
from lab.section import draw_section
from lab.tissue import TissueConfig, draw_tissue

BLOCK_VOXELS = 2**24  # voxels rendered at a time, which bounds the memory beside the movie's own


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """One recording: its size, the tissue, what happens in it, and how it is kept."""

    shape: tuple[int, int, int]  # [T,H,W]
    frame_rate: float  # Hz
    mean_counts: float  # of the whole movie
    tissue: TissueConfig
    activity: ActivityConfig
    neuropil_activity: float  # temporal standard deviation over resting brightness
    bleached_fraction: float  # of the brightness at the start
    bleaching_seconds: float
    drift: float  # standard deviation of the brightness of the whole field
    drift_seconds: float
    motion_pixels: float  # standard deviation of the shift along each axis; 0 is still
    motion_seconds: float


RANGES = {
    "frame_rate": Range(5.0, 60.0, log=True),
    "mean_counts": Range(100.0, 450.0, log=True),
    "neuropil_activity": Range(0.005, 16.0, log=True, absent=0.05),
    "bleached_fraction": Range(0.02, 0.3, absent=0.5),
    "bleaching_seconds": Range(5.0, 200.0, log=True),
    "drift": Range(0.001, 0.03, log=True, absent=0.3),
    "drift_seconds": Range(1.0, 60.0, log=True),
    "motion_pixels": Range(0.05, 1.0, log=True, absent=0.7),
    "motion_seconds": Range(0.1, 3.0, log=True),
}


def draw_config(
    rng: np.random.Generator, shape: tuple[int, int, int] = (300, 128, 128)
) -> SimulationConfig:
    """A random recording of the given [T,H,W]."""
    return SimulationConfig(
        shape=shape,
        tissue=draw_tissue(rng),
        activity=draw_activity(rng),
        **{name: span.draw(rng) for name, span in RANGES.items()},
    )


def _neuropil_traces(
    config: SimulationConfig, shared_rate: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Relative brightness above rest [M,T] of the neuropil's regions.

    Many cells fire in each, so that events come often and the indicator does not saturate.
    """
    activity = config.activity
    crowd = replace(
        activity,
        event_hz=math.exp(rng.uniform(math.log(0.3), math.log(100.0))),
        silent_fraction=0.0,
        half_saturation=100.0 * activity.half_saturation,
        hill_exponent=1.0,
    )
    traces = draw_traces(crowd, config.tissue.num_modes, shared_rate, config.frame_rate, rng)
    return (config.neuropil_activity / (traces.sum(0).std() + 1e-12) * traces).astype(np.float32)


def _brightness(config: SimulationConfig, rng: np.random.Generator) -> np.ndarray:
    """Brightness [T] of the whole field over its mean: bleaching, and a slow drift."""
    num_frames = config.shape[0]
    time = np.arange(num_frames) / config.frame_rate
    bleached = config.bleached_fraction * -np.expm1(-time / config.bleaching_seconds)
    wander = smooth_noise((num_frames,), config.drift_seconds * config.frame_rate, rng)
    return ((1 - bleached) * np.exp(config.drift * wander)).astype(np.float32)


def _move(frames: Tensor, shift: Tensor, margin: int) -> Tensor:
    """Frames [T,H,W] moved by shifts [T,2] (rows, columns), cropped by a margin all round."""
    count, height, width = frames.shape
    inner = (height - 2 * margin, width - 2 * margin)
    # In coordinates of the whole frame, whose first and last pixel lie at -1 and 1.
    onto = torch.zeros(count, 2, 3, device=frames.device)
    for axis, (whole, part) in enumerate(((width, inner[1]), (height, inner[0]))):
        onto[:, axis, axis] = (part - 1) / (whole - 1)
        onto[:, axis, 2] = 2 * shift[:, 1 - axis] / (whole - 1)
    grid = functional.affine_grid(onto, [count, 1, *inner], align_corners=True)
    moved = functional.grid_sample(frames[:, None], grid, mode="bicubic", align_corners=True)
    return moved[:, 0].clamp_min(0)  # cubic interpolation overshoots beside bright spots


def simulate(
    config: SimulationConfig, rng: np.random.Generator, device: str | torch.device = "cpu"
) -> Tensor:
    """A clean movie [T,H,W] float32 in counts, never negative, on the device.

    The random numbers all come from `rng`, so that a seed gives the same movie on every device up
    to rounding, and bit by bit on a CPU.
    """
    num_frames, *inner = config.shape
    shift = config.motion_pixels * smooth_noise(
        (2, num_frames), config.motion_seconds * config.frame_rate, rng
    )
    margin = math.ceil(np.abs(shift).max()) + 2 if config.motion_pixels else 0
    height, width = (side + 2 * margin for side in inner)

    section = draw_section(config.tissue, height, width, rng)
    num_sources = section.num_sources
    shared_rate = draw_shared_rate(config.activity, num_frames, config.frame_rate, rng)
    sources = 1 + draw_traces(config.activity, num_sources, shared_rate, config.frame_rate, rng)
    rest = np.ones((1, num_frames), np.float32)
    neuropil = np.concatenate([rest, _neuropil_traces(config, shared_rate, rng)])  # [1+M,T]
    neuropil /= neuropil.mean(1).sum()  # or lively neuropil would outshine the cells at rest
    brightness = _brightness(config, rng)

    def put(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    # The haze is neuropil too, so blurred that it is active as a whole.
    modes = np.concatenate([np.ones((1, height, width), np.float32), section.modes])
    regions = put(section.neuropil * modes + section.haze).flatten(1)  # [1+M,HW]
    footprints = torch.sparse_coo_tensor(
        put(np.stack([section.pixel, section.source])),
        put(section.weight),
        (height * width, num_sources),
        check_invariants=True,
    ).coalesce()  # [HW,K]
    region_traces, source_traces = put(neuropil * brightness), put(sources * brightness)

    movie = torch.empty(config.shape, device=device)
    step = max(1, BLOCK_VOXELS // (height * width))
    for first in range(0, num_frames, step):
        block = slice(first, first + step)
        frames = region_traces[:, block].T @ regions  # [t,HW]
        frames += torch.sparse.mm(footprints, source_traces[:, block]).T
        frames = frames.unflatten(1, (height, width))
        movie[block] = _move(frames, put(shift.T[block]), margin) if margin else frames
    return movie.mul_(config.mean_counts / movie.mean())


def random_movie(
    rng: np.random.Generator, shape: tuple[int, int, int], device: str | torch.device = "cpu"
) -> Tensor:
    """A clean movie [T,H,W] of a random recording, as `simulate` makes it."""
    return simulate(draw_config(rng, shape), rng, device)
