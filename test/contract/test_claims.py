"""Claims of the articles about the systems as a whole, on a small simulated recording."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lab.metrics import stsnr
from model.adapt import adapt
from model.architectures import ARCHITECTURES
from model.budget import Budget
from model.config import METHODS, AdaptConfig, Stage
from model.device import pick_device, place
from model.inference import WindowGrid, infer
from model.normalise import fit_scale

SHAPE = (96, 48, 48)
NUM_CELLS = 15
NUM_PLACES = 40
SCHEDULE = (
    Stage(kind="warm_up", steps=40, learning_rate=1e-3),
    Stage(kind="blindspot", steps=120, learning_rate=1e-3, final_learning_rate=1e-5),
)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    """Blinking cells [T,H,W] on an uneven ground, in photons."""
    rng = np.random.default_rng(0)
    num_frames, *plane = SHAPE
    rows, columns = np.mgrid[: plane[0], : plane[1]]
    ground = 2 + 10 * ndimage.gaussian_filter(rng.normal(size=plane), 12)
    movie = np.broadcast_to(ground, SHAPE).copy()
    after = np.arange(60)
    transient = (1 - np.exp(-(after + 1) / 1.5)) * np.exp(-after / 12)
    for _ in range(NUM_CELLS):
        y, x = rng.uniform(0, plane)
        sigma, brightness = rng.uniform(1.5, 3), rng.uniform(2, 8)
        events = (rng.random(num_frames) < 0.03) * rng.uniform(0.5, 2, num_frames)
        course = 0.6 + np.convolve(events, transient)[:num_frames]
        spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))
        movie += brightness * course[:, None, None] * spot
    return movie.astype(np.float32)


def trace_correlation(clean: np.ndarray, movie: np.ndarray) -> float:
    """Mean correlation of the courses at the places that vary most."""
    places = np.argsort(clean.std(0), axis=None)[-NUM_PLACES:]
    courses = [stack.reshape(len(stack), -1)[:, places].T for stack in (clean, movie)]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*courses, strict=True)]))


@pytest.mark.slow
def test_a_restormer_that_saw_one_noisy_stack_denoises_it(clean: np.ndarray) -> None:  # C24, C25
    """A small one, from scratch. The score alone would do for a still image; the courses do not."""
    rng = np.random.default_rng(1)
    noisy = (rng.poisson(clean) + rng.normal(size=SHAPE)).astype(np.float32)
    device, scale = pick_device("cpu"), fit_scale(noisy)
    torch.manual_seed(0)
    restormer = ARCHITECTURES["restormer3d"]
    net = place(restormer.network(restormer.config.tiny()), device)
    adapt(
        net, noisy, scale, stages=SCHEDULE, config=AdaptConfig(patch=(8, 24, 24)), device=device,
        budget=Budget(600.0), seed=0, micro_batch=1, is_pretrained=False,
    )  # fmt: skip
    grid = WindowGrid.over(SHAPE, METHODS["restormer3d"].tile, 0.5, net.stride)
    blocks = infer(net, noisy, scale, grid, device=device, tile_batch=1)
    denoised = scale.invert(np.concatenate(list(blocks)))
    assert stsnr(clean, denoised).stsnr > stsnr(clean, noisy).stsnr + 6
    assert trace_correlation(clean, denoised) > trace_correlation(clean, noisy) + 0.1
