"""The judge between two networks: what it hides, and whether its verdict is the truth's."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.adapt import adapt
from model.budget import Budget
from model.config import AdaptConfig, Stage
from model.device import pick_device
from model.judge import BlindspotJudge, held_out_pixels
from model.normalise import IntensityScale

SCALE = IntensityScale(offset=100.0, gain=50.0)
CONFIG = AdaptConfig(patch=(8, 16, 16), weight_decay=0.0)
CPU = pick_device("cpu")


class Blur(nn.Module):
    """The mean of so many frames, rows and columns around a voxel, plus an offset."""

    stride = (1, 1, 1)

    def __init__(self, side: int, offset: float = 0.0) -> None:
        super().__init__()
        self.pool = nn.AvgPool3d(side, 1, side // 2, count_include_pad=False)
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, noisy: Tensor) -> Tensor:
        return self.pool(noisy) + self.offset


@pytest.fixture
def frames() -> np.ndarray:
    """A flat scene with noise."""
    return np.random.default_rng(0).normal(125, 50, (24, 30, 34)).astype(np.float32)


def judge(frames: np.ndarray) -> BlindspotJudge:
    return BlindspotJudge(frames, SCALE, CONFIG, CPU, seed=0)


@pytest.mark.parametrize("shape", [(8, 8), (9, 14), (3, 2), (1, 1)])
def test_every_whole_cell_holds_one_pixel_out(shape: tuple[int, int]) -> None:
    pixels = held_out_pixels(shape, (4, 4), torch.Generator().manual_seed(0))
    assert pixels.shape == shape
    for top in range(0, shape[0] - 3, 4):
        for left in range(0, shape[1] - 3, 4):
            assert pixels[top : top + 4, left : left + 4].sum() == 1


def test_it_hides_held_out_pixels_alone(frames: np.ndarray) -> None:
    found = judge(frames)
    held = SCALE.apply(found.held_out) > 0.5
    assert held.mean() == pytest.approx(1 / 16, abs=0.02)
    # as many as one in 64, each pixel in one frame of four
    assert len(found.coords) == pytest.approx(found.masked.numel() / 64, rel=0.1)
    assert len(found.coords.unique(dim=0)) == len(found.coords)


def test_the_better_denoiser_has_the_smaller_loss(frames: np.ndarray) -> None:
    found = judge(frames)
    narrow, wide, biased = found.loss(Blur(3)), found.loss(Blur(5)), found.loss(Blur(5, 0.5))
    assert wide < narrow < biased
    # of unit noise that cannot be predicted, on a flat scene
    assert wide == pytest.approx(1.0, abs=0.15)


def test_the_verdict_is_the_same_every_time(frames: np.ndarray) -> None:
    assert judge(frames).loss(Blur(3)) == judge(frames).loss(Blur(3))


@pytest.mark.parametrize("offset, is_better", [(0.0, False), (3.0, True)])
def test_a_network_is_adapted_only_where_that_helps(
    frames: np.ndarray, offset: float, is_better: bool
) -> None:
    """The scene is where the first network says it is, and far from where the second does."""
    net = Blur(5, offset)
    report = adapt(
        net, frames, SCALE, device=CPU, budget=Budget(60.0), seed=0, micro_batch=1,
        stages=(Stage(kind="blindspot", steps=30, learning_rate=0.3),),
        config=CONFIG, is_pretrained=True,
    )  # fmt: skip
    assert report.judged is not None
    assert report.is_adapted == (report.judged[1] < report.judged[0]) == is_better
    left = abs(net.offset.item())
    assert left < 0.5 * offset if is_better else left == offset
