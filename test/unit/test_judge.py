"""The judge between two networks: where it looks, and whether its verdict is the truth's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.adapt import adapt
from model.budget import Budget
from model.config import AdaptConfig, Stage
from model.device import pick_device
from model.judge import Judge, held_out_pixels
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


def judge(frames: np.ndarray) -> Judge:
    return Judge(frames, SCALE, CONFIG, CPU, seed=0)


@pytest.mark.parametrize("shape", [(8, 8), (9, 14), (3, 2), (1, 1)])
def test_every_whole_cell_holds_one_pixel_out(shape: tuple[int, int]) -> None:
    pixels = held_out_pixels(shape, (4, 4), torch.Generator().manual_seed(0))
    assert pixels.shape == shape
    for top in range(0, shape[0] - 3, 4):
        for left in range(0, shape[1] - 3, 4):
            assert pixels[top : top + 4, left : left + 4].sum() == 1


def test_it_looks_at_held_out_pixels_alone(frames: np.ndarray) -> None:
    found = judge(frames)
    held = SCALE.apply(found.held_out) > 0.5
    assert held.mean() == pytest.approx(1 / 16, abs=0.02)
    assert found.counts.float().mean() == pytest.approx(1 / 16, abs=0.02)
    assert (found.counts == found.counts[:, :, :1]).all()  # in every frame
    assert ((found.noise != 0) == found.counts).all()


@pytest.mark.parametrize("side, offset", [(1, 0.0), (3, 0.0), (5, 0.0), (5, 0.5)])
def test_the_error_is_estimated_without_the_truth(side: int, offset: float) -> None:
    """Of a scene that changes from place to place, whose truth the judge never sees."""
    rows, columns = np.mgrid[:40, :44]
    truth = (60 * np.sin(rows / 3) * np.cos(columns / 2)).astype(np.float32)
    rng = np.random.default_rng(0)
    frames = (truth + rng.normal(125, 50, (200, 40, 44))).astype(np.float32)
    config = replace(CONFIG, patch=(32, 32, 32), judge_patches=16)
    estimated = Judge(frames, SCALE, config, CPU, seed=0).error(Blur(side, offset))
    with torch.inference_mode():
        answer = Blur(side, offset)(torch.from_numpy(SCALE.apply(frames))[None, None])[0, 0]
    expected = np.square(answer.numpy() - SCALE.apply(truth + 125)).mean()
    assert estimated == pytest.approx(expected, rel=0.2, abs=0.03)


def test_a_voxel_that_only_tells_of_itself_is_believed() -> None:
    """Where every pixel differs from its neighbours, whose Noise2Void loss is smaller is wrong."""
    rng = np.random.default_rng(0)
    frames = rng.normal(125, 200, (30, 34)) + rng.normal(0, 20, (24, 30, 34))
    found = judge(frames.astype(np.float32))
    assert found.error(Blur(1)) < 0.1 * found.error(Blur(5))


class LooksElsewhere(nn.Module):
    """What was so many frames later; in a mirrored patch that may be the frame itself."""

    def __init__(self, later: int) -> None:
        super().__init__()
        self.later = later

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy.roll(-self.later, dims=2)


def test_who_copies_a_mirror_image_is_found_out(frames: np.ndarray) -> None:
    """Two frames, mirrored, come again every other frame: the copy has all the noise."""
    found = judge(frames[:2])
    assert found.error(LooksElsewhere(2)) == pytest.approx(found.error(Blur(1)), rel=1e-3)
    assert found.error(LooksElsewhere(2)) > 0.7


@pytest.mark.parametrize("shape, wanted", [((24, 30, 34), True), ((24, 1, 1), False)])
def test_a_frame_of_one_pixel_has_none_to_judge_by(
    shape: tuple[int, int, int], wanted: bool, frames: np.ndarray
) -> None:
    t, h, w = shape
    assert judge(frames[:t, :h, :w]).can_tell is wanted


def test_the_verdict_is_the_same_every_time(frames: np.ndarray) -> None:
    assert judge(frames).error(Blur(3)) == judge(frames).error(Blur(3))


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
