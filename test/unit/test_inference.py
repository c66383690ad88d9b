"""Inference with networks whose answer is known: the input, a shift, an offset, or a failure."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.config import METHODS, TileConfig
from model.device import pick_device
from model.inference import (
    InferenceError,
    WindowGrid,
    infer,
    seconds_per_window,
)
from model.normalise import IntensityScale

AS_IT_IS = IntensityScale(offset=0.0, gain=1.0)
PUBLISHED = METHODS["restormer3d"].tile
SMALL = TileConfig(size=(8, 16, 16))


class Answer(nn.Module):
    """A network that is a plain function of its windows [B,1,t,h,w]."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, windows: Tensor) -> Tensor:
        """What it is of them."""
        return self.function(windows)


IDENTITY = Answer(lambda windows: windows)


def no_more_than(number: int, sizes: list[int]) -> Answer:
    """The identity for few windows at a time; notes how many it got."""

    def check(windows: Tensor) -> Tensor:
        sizes.append(len(windows))
        if len(windows) > number:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return windows

    return Answer(check)


def movie(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def grid_over(
    shape: tuple[int, int, int], tile: TileConfig = SMALL, overlap: float = 0.5
) -> WindowGrid:
    return WindowGrid.over(shape, tile, overlap)


def denoise(
    net: nn.Module,
    frames: np.ndarray,
    grid: WindowGrid | None = None,
    scale: IntensityScale = AS_IT_IS,
    tile_batch: int = 3,
) -> np.ndarray:
    blocks = infer(
        net,
        frames,
        scale,
        grid or grid_over(frames.shape),
        device=pick_device("cpu"),
        tile_batch=tile_batch,
    )
    return np.concatenate(list(blocks))


@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 20, 33), (70, 65, 130), (64, 128, 64)])
def test_the_identity_gives_any_stack_back(shape: tuple[int, int, int]) -> None:
    frames = movie(shape)
    denoised = denoise(IDENTITY, frames, grid_over(shape, PUBLISHED))
    assert denoised.dtype == np.float32
    np.testing.assert_allclose(denoised, frames, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, *PUBLISHED.reduced_overlaps])
def test_the_identity_gives_the_stack_back_at_lower_overlaps(overlap: float) -> None:
    frames = movie((21, 35, 40))
    denoised = denoise(IDENTITY, frames, grid_over(frames.shape, overlap=overlap))
    np.testing.assert_allclose(denoised, frames, atol=1e-5)


def test_a_network_that_adds_one_adds_one_everywhere() -> None:
    frames = movie((13, 20, 33))
    denoised = denoise(Answer(lambda windows: windows + 1), frames)
    np.testing.assert_allclose(denoised, frames + 1, atol=1e-5)


def test_a_network_that_mirrors_every_window_does_not_give_the_stack_back() -> None:
    frames = movie((13, 20, 33))
    denoised = denoise(Answer(lambda windows: windows.flip(4)), frames)
    assert np.abs(denoised - frames).max() > 1


def test_the_network_sees_normalised_values() -> None:
    frames = np.random.default_rng(0).integers(900, 1300, (9, 16, 16)).astype(np.uint16)
    denoised = denoise(IDENTITY, frames, scale=IntensityScale(offset=1000.0, gain=200.0))
    np.testing.assert_allclose(denoised, (frames - 1000.0) / 200.0, atol=1e-5)


def test_every_window_has_the_size_of_training() -> None:
    shapes = set()

    def note(windows: Tensor) -> Tensor:
        shapes.add(tuple(windows.shape[1:]))
        return windows

    denoise(Answer(note), movie((3, 9, 40)))
    assert shapes == {(1, *SMALL.size)}


def test_the_network_runs_as_often_as_the_grid_says() -> None:
    sizes: list[int] = []
    grid = grid_over((21, 35, 40))
    denoise(no_more_than(99, sizes), movie((21, 35, 40)), grid)
    assert sum(sizes) == grid.num_windows == 7 * 4 * 4


def test_frames_come_in_blocks_no_longer_than_a_window() -> None:
    frames = movie((50, 16, 16))
    blocks = list(
        infer(
            IDENTITY, frames, AS_IT_IS, grid_over(frames.shape),
            device=pick_device("cpu"), tile_batch=1,
        )
    )  # fmt: skip
    assert max(len(block) for block in blocks) <= SMALL.size[0]
    assert sum(len(block) for block in blocks) == 50


def test_the_next_windows_are_queued_before_frames_are_given_away() -> None:
    """So that a GPU has work while they are written."""
    seen: list[int] = []
    frames = movie((32, 16, 16))  # one window per start in time, every 4 frames from -4 on
    blocks = infer(
        no_more_than(1, seen), frames, AS_IT_IS, grid_over(frames.shape),
        device=pick_device("cpu"), tile_batch=1,
    )  # fmt: skip
    given = [(int(block.size) // 256, len(seen)) for block in blocks]
    assert given[:2] == [(4, 3), (4, 4)]  # final after windows 2 and 3
    assert given[-1][1] == len(seen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    """Copies that nobody waits for are there when they are read."""
    torch.manual_seed(0)
    net, frames = nn.Conv3d(1, 1, 3, padding=1), movie((200, 128, 128))
    found = [
        np.concatenate(
            list(
                infer(
                    net.to(device.torch_device), frames, AS_IT_IS, grid_over(frames.shape),
                    device=device, tile_batch=4,
                )
            )
        )
        for device in map(pick_device, ("cpu", "cuda"))
    ]  # fmt: skip
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_the_network_is_put_into_evaluation_and_keeps_no_graph() -> None:
    net = nn.Conv3d(1, 1, 3, padding=1).train()
    denoise(net, movie((9, 16, 16)))
    assert not net.training
    assert net.weight.grad is None


# ---- Batches and memory ------------------------------------------------------------------------


def test_the_number_of_windows_at_a_time_changes_nothing() -> None:
    torch.manual_seed(0)
    net, frames = nn.Conv3d(1, 1, 3, padding=1), movie((21, 35, 40))
    one, seven = (denoise(net, frames, tile_batch=number) for number in (1, 7))
    np.testing.assert_allclose(one, seven, atol=1e-6)


def test_out_of_memory_halves_the_windows_at_a_time_until_they_fit() -> None:
    frames, sizes = movie((9, 35, 40)), []  # 16 windows per start in time
    denoised = denoise(no_more_than(2, sizes), frames, tile_batch=16)
    assert sizes[:4] == [16, 8, 4, 2]
    assert max(sizes[4:]) == 2
    np.testing.assert_allclose(denoised, frames, atol=1e-5)


def test_out_of_memory_with_one_window_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(
        InferenceError, match=r"one window of 8x16x16 on CPU, .*; free memory there or use --device"
    ):
        denoise(no_more_than(0, []), movie((9, 35, 40)))


def test_any_other_error_of_the_network_is_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        denoise(Answer(lambda windows: windows.view(7)), movie((9, 35, 40)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_answer_that_is_not_finite_is_an_error(value: float) -> None:
    def spoil(windows: Tensor) -> Tensor:
        windows = windows.clone()
        windows[0, 0, 4, 5, 6] = value
        return windows

    with pytest.raises(InferenceError, match=r"not finite; try --steps 0.*report the stack"):
        denoise(Answer(spoil), movie((9, 16, 16)))


def test_a_lower_precision_is_the_first_thing_to_suspect_then() -> None:
    frames = movie((9, 16, 16))
    blocks = infer(
        Answer(lambda windows: windows / 0), frames, AS_IT_IS, grid_over(frames.shape),
        device=pick_device("cpu"), tile_batch=1, precision="fp16",
    )  # fmt: skip
    with pytest.raises(InferenceError, match="not finite; try --precision fp32"):
        list(blocks)


def measured(net: nn.Module, tile_batch: int) -> float:
    frames = movie((9, 35, 40))
    return seconds_per_window(
        net, frames, AS_IT_IS, grid_over(frames.shape), pick_device("cpu"), tile_batch
    )


def test_the_time_per_window_is_measured_after_as_many_that_warm_up() -> None:
    sizes: list[int] = []
    assert 0 < measured(no_more_than(99, sizes), tile_batch=5) < 1
    assert sizes == [5, 5]


def test_measuring_halves_the_windows_at_a_time_as_inference_does() -> None:
    sizes: list[int] = []
    assert measured(no_more_than(2, sizes), tile_batch=8) > 0
    assert sizes == [8, 4, 2, 2]


def test_measuring_where_nothing_fits_is_an_error_too() -> None:
    with pytest.raises(InferenceError, match="out of memory with one window"):
        measured(no_more_than(0, []), tile_batch=8)


# ---- Seams between windows ---------------------------------------------------------------------


def seam_strength(overlap: float, period: int) -> float:
    """Power of the frame-to-frame change at a period, relative to its neighbours; mean of 8 movies.

    The network adds an offset as large as the noise to every window, another to each.
    """
    generator = torch.Generator().manual_seed(1)

    def add_offset(windows: Tensor) -> Tensor:
        return windows + torch.randn(len(windows), 1, 1, 1, 1, generator=generator)

    tile = TileConfig(size=(PUBLISHED.size[0], 8, 8))
    power = np.zeros(513)
    for seed in range(8):
        frames = movie((1025, 8, 8), seed)  # 1024 changes, so that periods fall on bins
        grid = WindowGrid.over(frames.shape, tile, overlap)
        denoised = denoise(Answer(add_offset), frames, grid)
        change = np.square(np.diff(denoised, axis=0)).mean(axis=(1, 2))
        power += np.abs(np.fft.rfft(change)) ** 2
    bin = 1024 // period
    neighbours = np.r_[power[bin - 8 : bin - 1], power[bin + 2 : bin + 9]]
    return float(power[bin] / neighbours.mean())


@pytest.mark.parametrize("period", [32, 16])
def test_blended_windows_leave_no_rhythm_in_time(period: int) -> None:
    assert seam_strength(PUBLISHED.largest_overlap, period) < 2


@pytest.mark.parametrize("period", [32, 16])
def test_windows_side_by_side_would_leave_a_rhythm_in_time(period: int) -> None:
    assert seam_strength(0.0, period) > 5


def test_a_shrinking_window_covers_a_short_axis_at_the_networks_stride() -> None:
    tile = TileConfig(size=(16, 64, 64), shrinks=True, overlap=(0.25, 0.125, 0.125),
                      windows=("centre", "flat", "flat"), mirror_time=False)  # fmt: skip
    grid = WindowGrid.over((50, 40, 100), tile, 0.5, stride=(8, 16, 16))
    assert (grid.time.size, grid.rows.size, grid.columns.size) == (16, 48, 64)
    assert grid.time.starts[:2] == (0, 12)
    assert grid.columns.starts == (0, 36)  # a stride of 56 would leave the frame
    assert grid.rows.pad_after == 8


def test_the_published_gain_makes_every_kept_piece_as_bright_as_the_noisy_one() -> None:
    """A network that halves: the gain is sqrt(sum / half the sum), as published, not 2."""
    tile = TileConfig(size=(8, 16, 16), overlap=(0.25, 0.25, 0.25), mirror_time=False,
                      windows=("centre", "centre", "centre"))  # fmt: skip
    frames = np.random.default_rng(0).uniform(1, 2, (12, 20, 18)).astype(np.float32)
    grid = WindowGrid.over(frames.shape, tile, 0.5)

    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    blocks = infer(Half(), frames, IntensityScale(offset=0.0, gain=1.0), grid,
                   device=pick_device("cpu"), tile_batch=2, keeps_brightness=True)  # fmt: skip
    np.testing.assert_allclose(np.concatenate(list(blocks)), frames / np.sqrt(2), rtol=1e-5)
