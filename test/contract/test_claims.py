"""Claims of the articles about the systems as a whole, on a small simulated recording."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
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

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "process.py"
SAMPLE = ROOT / "test/input"
TRUTH = ROOT / "test/expected/naomi_level2.tif"
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
def test_a_restormer_that_saw_one_noisy_stack_denoises_it(clean: np.ndarray) -> None:
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


# ---- What the shipped checkpoints do with the sample that ships ---------------------------------


@dataclass(frozen=True)
class Sample:
    clean: np.ndarray
    noisy: np.ndarray
    folder: Path

    def denoised(self, method: str) -> np.ndarray:
        """By the program, with the checkpoint as it is; each method runs once."""
        places = ["--input-dir", str(SAMPLE), "--output-dir", str(self.folder / method)]
        flags = ["--method", method, "--device", "cpu", "--time-limit", "0"]
        if not (self.folder / method).exists():
            subprocess.run([sys.executable, str(PROGRAM), *places, *flags], check=True, timeout=600)
        (result,) = (self.folder / method).rglob("*.tif")
        return tifffile.imread(result).astype(np.float64)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    (noisy,) = SAMPLE.rglob("*.tif")
    clean = tifffile.imread(TRUTH).astype(np.float64)
    return Sample(clean, tifffile.imread(noisy).astype(np.float64), tmp_path_factory.mktemp("out"))


def test_the_plain_unets_residual_shows_nothing_of_the_scene(sample: Sample) -> None:
    residual = sample.noisy - sample.denoised("unet3d")
    assert abs(np.corrcoef(residual.ravel(), sample.clean.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("method", ["unet3d", "unet_att", "niddl", "niddl_unet"])
def test_a_shipped_checkpoint_is_better_than_the_recording(sample: Sample, method: str) -> None:
    """Of the published scores only the order can be tested."""
    noisy = stsnr(sample.clean, sample.noisy).stsnr
    assert stsnr(sample.clean, sample.denoised(method)).stsnr > noisy + 6
