from itertools import product

import pytest
import torch
from torch import Tensor

from model.blending import (
    BlendAccumulator,
    accumulated_weight,
    axis_windows,
    centre_windows,
    gaussian_window,
    hann_window,
)
from model.config import BlendWindow
from model.tiling import AxisPlan, plan_axis


def time_only(time: AxisPlan) -> BlendAccumulator:
    """Blends along time alone: frames of one pixel."""
    pixel = plan_axis(1, 1, 0.0, pad=False)
    one = torch.ones(1)
    return BlendAccumulator(time, pixel, pixel, (hann_window(time.size), one, one), "cpu")


def one_constant_per_window(time: AxisPlan, constants: list[float]) -> Tensor:
    blend = time_only(time)
    finished = []
    for constant in constants:
        blend.add(0, 0, torch.full((time.size, 1, 1), constant))
        frames = blend.advance()
        if frames is not None:
            finished.append(frames)
    return torch.cat(finished).flatten()


def test_hann_weights_are_the_published_ones() -> None:
    expected = torch.tensor([0.146447, 0.853553, 0.853553, 0.146447])
    torch.testing.assert_close(hann_window(4), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [2, 4, 16, 32])
def test_hann_windows_at_half_overlap_sum_to_one_inside(size: int) -> None:
    plan = plan_axis(8 * size, size, 0.5, pad=True)
    total = accumulated_weight(hann_window(size), plan)
    inside = total[size // 2 : -(size // 2)]  # the stack itself; the rest is padding
    torch.testing.assert_close(inside, torch.ones(8 * size), atol=1e-6, rtol=0)


def test_gaussian_weights_are_the_published_ones() -> None:
    half = [0.002187, 0.043937, 0.324652, 0.882497]
    expected = torch.tensor(half + half[::-1])
    torch.testing.assert_close(gaussian_window(8), expected, atol=1e-6, rtol=0)


def test_gaussian_weights_stop_falling_at_the_floor() -> None:
    weights = gaussian_window(64)
    torch.testing.assert_close(weights[0], 1e-3 * weights.max())
    assert bool((weights >= weights[0]).all())


@pytest.mark.parametrize("window", [hann_window(32), gaussian_window(64)])
def test_windows_are_float32_symmetric_and_positive(window: Tensor) -> None:
    assert window.dtype == torch.float32
    assert bool((window > 0).all())
    torch.testing.assert_close(window, window.flip(0))


def test_accumulated_weight_counts_every_window() -> None:
    plan = plan_axis(10, 4, 0.5, pad=False)  # starts 0, 2, 4, 6
    expected = [1, 1, 2, 2, 2, 2, 2, 2, 1, 1]
    assert accumulated_weight(torch.ones(4), plan).tolist() == expected


def test_two_windows_are_averaged_by_their_weights() -> None:
    time = AxisPlan(length=3, size=2, pad_before=0, pad_after=0, starts=(0, 1))
    pixel = plan_axis(1, 1, 0.0, pad=False)
    weights = (torch.tensor([1.0, 3.0]), torch.ones(1), torch.ones(1))
    blend = BlendAccumulator(time, pixel, pixel, weights, "cpu")
    blend.add(0, 0, torch.tensor([10.0, 20.0]).reshape(2, 1, 1))
    first = blend.advance()
    blend.add(0, 0, torch.tensor([40.0, 50.0]).reshape(2, 1, 1))
    rest = blend.advance()
    assert first is not None and first.flatten().tolist() == [10]
    assert rest is not None and rest.flatten().tolist() == [(3 * 20 + 1 * 40) / 4, 50]


def test_frames_come_out_as_soon_as_no_later_window_reaches_them() -> None:
    time = plan_axis(70, 32, 0.5, pad=True)  # padded starts 0, 16, 32, 48, 64, 70
    blend = time_only(time)
    counts = []
    for _ in time.starts:
        blend.add(0, 0, torch.ones(32, 1, 1))
        frames = blend.advance()
        counts.append(None if frames is None else len(frames))
    assert counts == [None, 16, 16, 16, 6, 16]  # the first 16 are padding


def test_returned_frames_do_not_change_later() -> None:
    time = plan_axis(12, 4, 0.5, pad=False)
    blend = time_only(time)
    blend.add(0, 0, torch.ones(4, 1, 1))
    first = blend.advance()
    assert first is not None
    before = first.clone()
    blend.add(0, 0, torch.full((4, 1, 1), 9.0))
    blend.advance()
    assert torch.equal(first, before)


def test_windows_of_different_brightness_leave_no_step_at_their_borders() -> None:
    size = 32
    time = plan_axis(320, size, 0.5, pad=True)
    constants = [float(k % 2) for k in range(time.num_windows)]  # as different as can be
    blended = one_constant_per_window(time, constants)
    greatest_step = hann_window(size).diff().abs().max()
    assert blended.diff().abs().max() <= greatest_step + 1e-6
    assert blended.max() - blended.min() > 0.9  # the offsets themselves are still there


def test_without_overlap_the_border_between_windows_is_a_step() -> None:
    # What the overlap is for: the same offsets, windows side by side.
    time = plan_axis(96, 32, 0.0, pad=False)
    blended = one_constant_per_window(time, [0.0, 1.0, 0.0])
    assert blended.diff().abs().max().item() == pytest.approx(1)


def test_padding_is_cropped_in_all_axes() -> None:
    time, rows, columns = (
        plan_axis(length, 8, 0.5, pad=pad) for length, pad in ((2, True), (5, False), (3, False))
    )
    weights = (hann_window(8), gaussian_window(8), gaussian_window(8))
    blend = BlendAccumulator(time, rows, columns, weights, "cpu")
    num_frames = 0
    for _ in time.starts:
        for row, column in product(rows.starts, columns.starts):
            blend.add(row, column, torch.ones(8, 8, 8))
        frames = blend.advance()
        if frames is not None:
            num_frames += len(frames)
            torch.testing.assert_close(frames, torch.ones(len(frames), 5, 3))
    assert num_frames == 2


def test_values_of_half_precision_are_summed_in_float32() -> None:
    blend = time_only(plan_axis(4, 4, 0.5, pad=False))
    blend.add(0, 0, torch.ones(4, 1, 1, dtype=torch.float16))
    frames = blend.advance()
    assert frames is not None and frames.dtype == torch.float32


def test_a_missing_window_is_noticed() -> None:
    blend = time_only(plan_axis(8, 4, 0.5, pad=False))
    with pytest.raises(AssertionError, match="0 windows of 1 were added"):
        blend.advance()


def test_no_time_start_follows_the_last() -> None:
    blend = time_only(plan_axis(4, 4, 0.5, pad=False))
    blend.add(0, 0, torch.ones(4, 1, 1))
    blend.advance()
    blend.add(0, 0, torch.ones(4, 1, 1))
    with pytest.raises(AssertionError, match="all time starts are closed"):
        blend.advance()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_blending_on_the_gpu_equals_the_cpu() -> None:
    time = plan_axis(20, 8, 0.5, pad=True)
    side = plan_axis(21, 8, 0.5, pad=False)
    weights = (hann_window(8), gaussian_window(8), gaussian_window(8))
    stacks = []
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(0)
        blend = BlendAccumulator(time, side, side, weights, device)
        finished = []
        for _ in time.starts:
            for row, column in product(side.starts, side.starts):
                blend.add(row, column, torch.rand(8, 8, 8, generator=generator).to(device))
            frames = blend.advance()
            if frames is not None:
                finished.append(frames.cpu())
        stacks.append(torch.cat(finished))
    torch.testing.assert_close(*stacks, atol=1e-6, rtol=1e-5)


def test_centre_windows_share_the_axis_as_the_published_stitching_does() -> None:
    plan = plan_axis(512, 64, 0.25, pad=False)
    windows = centre_windows(plan)
    kept = [
        (start + int(window.nonzero()[0]), start + int(window.nonzero()[-1]) + 1)
        for start, window in zip(plan.starts, windows, strict=True)
    ]
    assert kept[:3] == [(0, 56), (56, 104), (104, 152)]
    assert kept[-2:] == [(440, 456), (456, 512)]  # [440,488), of which the last overwrites a part
    torch.testing.assert_close(accumulated_weight(windows, plan), torch.ones(512))


@pytest.mark.parametrize("length", [5, 8, 9, 40])
def test_centre_windows_take_every_position_once(length: int) -> None:
    plan = plan_axis(length, 8, 0.25, pad=False)
    assert accumulated_weight(centre_windows(plan), plan).tolist() == [1.0] * max(8, length)


@pytest.mark.parametrize("kind", ["hann", "gaussian", "flat", "centre"])
def test_every_kind_of_window_joins_what_was_one(kind: BlendWindow) -> None:
    time, rows, columns = (plan_axis(n, 8, 0.25, pad=n == 19) for n in (19, 21, 8))
    stack = torch.rand(19, 21, 8)
    padded = stack[time.source_index][:, rows.source_index][:, :, columns.source_index]
    weights = tuple(axis_windows(kind, plan) for plan in (time, rows, columns))
    blend = BlendAccumulator(time, rows, columns, weights, "cpu")  # type: ignore[arg-type]
    frames = []
    for t in time.starts:
        for y in rows.starts:
            blend.add(y, 0, padded[t : t + 8, y : y + 8])
        frames.append(blend.advance())
    joined = torch.cat([part for part in frames if part is not None])
    torch.testing.assert_close(joined, stack)
