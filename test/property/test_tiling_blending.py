from collections.abc import Callable, Iterator
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.blending import BlendAccumulator, accumulated_weight, gaussian_window, hann_window
from model.tiling import AxisPlan, mirror_index, plan_axis, tile_starts

Grid = tuple[AxisPlan, AxisPlan, AxisPlan]
Sides = tuple[int, int, int]

# Repeatable in the pipeline of checks, and no deadline on a shared machine.
same_every_time = settings(derandomize=True, deadline=None, max_examples=60)
overlaps = st.sampled_from([0.0, 0.125, 0.25, 0.375, 0.5, 0.6, 0.75, 0.9])


def grid_over(shape: Sides, size: Sides, overlap: float) -> Grid:
    return (
        plan_axis(shape[0], size[0], overlap, pad=True),
        plan_axis(shape[1], size[1], overlap, pad=False),
        plan_axis(shape[2], size[2], overlap, pad=False),
    )


def blended_blocks(
    stack: np.ndarray, grid: Grid, network: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """What a stand-in for a network makes of a stack, as it comes out of the accumulator."""
    time, rows, columns = grid
    weights = (
        hann_window(time.size),
        gaussian_window(rows.size),
        gaussian_window(columns.size),
    )
    blend = BlendAccumulator(time, rows, columns, weights, "cpu")
    padded = torch.from_numpy(
        stack[np.ix_(time.source_index, rows.source_index, columns.source_index)]
    )
    for start in time.starts:
        for row, column in product(rows.starts, columns.starts):
            window = padded[
                start : start + time.size,
                row : row + rows.size,
                column : column + columns.size,
            ]
            blend.add(row, column, network(window))
        frames = blend.advance()
        if frames is not None:
            yield frames


def blended(stack: np.ndarray, grid: Grid, network: Callable[[Tensor], Tensor]) -> np.ndarray:
    return torch.cat(list(blended_blocks(stack, grid, network))).numpy()


def random_stack(shape: Sides) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((5, 20, 33), (8, 16, 16)),
        ((1, 8, 8), (32, 64, 64)),
        ((70, 65, 130), (32, 64, 64)),
        ((47, 49, 49), (32, 64, 64)),
        ((3, 1, 1), (4, 8, 8)),
    ],
)
@pytest.mark.parametrize("overlap", [0.5, 0.375, 0.0])
@pytest.mark.parametrize("added", [0.0, 1.0])
def test_a_network_that_adds_a_number_adds_it_everywhere_once(
    shape: Sides, size: Sides, overlap: float, added: float
) -> None:
    stack = random_stack(shape)
    result = blended(stack, grid_over(shape, size, overlap), lambda window: window + added)
    assert result.shape == shape
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, stack + added, atol=1e-5, rtol=0)


@same_every_time
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 24), st.integers(1, 24)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 16), st.integers(1, 16)),
    overlap=overlaps,
)
def test_an_identity_network_gives_the_stack_back(
    shape: Sides, size: Sides, overlap: float
) -> None:
    stack = random_stack(shape)
    result = blended(stack, grid_over(shape, size, min(overlap, 0.75)), lambda window: window)
    np.testing.assert_allclose(result, stack, atol=1e-5, rtol=0)


@same_every_time
@given(length=st.integers(1, 100), size=st.integers(1, 40), overlap=overlaps)
def test_frames_come_out_once_and_in_order(length: int, size: int, overlap: float) -> None:
    stack = np.arange(length, dtype=np.float32).reshape(-1, 1, 1)
    grid = grid_over(stack.shape, (size, 1, 1), overlap)
    blocks = list(blended_blocks(stack, grid, lambda window: window))
    assert all(0 < len(block) <= size for block in blocks)
    assert torch.cat(blocks).flatten().round().tolist() == list(range(length))


@same_every_time
@given(
    length=st.integers(1, 300),
    size=st.integers(1, 64),
    overlap=overlaps,
    pad=st.booleans(),
    window=st.sampled_from([hann_window, gaussian_window]),
)
def test_accumulated_weights_are_positive_everywhere(
    length: int, size: int, overlap: float, pad: bool, window: Callable[[int], Tensor]
) -> None:
    plan = plan_axis(length, size, overlap, pad)
    weight = accumulated_weight(window(size), plan)
    assert weight.shape == (plan.padded_length,)
    assert bool((weight > 0).all())


@same_every_time
@given(length=st.integers(1, 300), size=st.integers(1, 64), data=st.data())
def test_windows_cover_the_axis_and_stay_inside(
    length: int, size: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, size))
    starts = tile_starts(length, size, stride)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - size)
    assert all(0 < after - before <= stride for before, after in pairwise(starts))


@same_every_time
@given(length=st.integers(2, 40), before=st.integers(0, 100), after=st.integers(0, 100))
def test_mirrored_positions_equal_those_of_numpy(length: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(length), (before, after), mode="reflect")
    assert mirror_index(length, before, after) == expected.tolist()


@same_every_time
@given(
    length=st.integers(1, 100),
    size=st.integers(1, 32),
    overlap=overlaps,
    pad=st.booleans(),
    window=st.sampled_from([hann_window, gaussian_window]),
    seed=st.integers(0, 1000),
)
def test_a_blend_lies_between_what_the_windows_there_say(
    length: int,
    size: int,
    overlap: float,
    pad: bool,
    window: Callable[[int], Tensor],
    seed: int,
) -> None:
    # The identity network cannot see the weights; one constant per window can.
    plan = plan_axis(length, size, overlap, pad)
    constants = np.random.default_rng(seed).normal(0, 1, plan.num_windows)
    result = one_constant_per_window(plan, window(size), constants)
    lowest, highest = np.full(plan.padded_length, np.inf), np.full(plan.padded_length, -np.inf)
    for start, constant in zip(plan.starts, constants, strict=True):
        covered = slice(start, start + size)
        lowest[covered] = np.minimum(lowest[covered], constant)
        highest[covered] = np.maximum(highest[covered], constant)
    stack = slice(plan.pad_before, plan.pad_before + length)
    assert np.all(result >= lowest[stack] - 1e-5)
    assert np.all(result <= highest[stack] + 1e-5)


@same_every_time
@given(
    num_strides=st.integers(1, 8),
    size=st.integers(2, 32),
    overlap=st.sampled_from([0.0, 0.125, 0.25, 0.375, 0.5]),
    window=st.sampled_from([hann_window, gaussian_window]),
    seed=st.integers(0, 1000),
)
def test_a_blend_passes_from_one_window_to_the_next_without_turning_back(
    num_strides: int, size: int, overlap: float, window: Callable[[int], Tensor], seed: int
) -> None:
    stride = plan_axis(1000, size, overlap, pad=False).starts[1]
    # Windows in step up to the end; an odd size at half overlap is in three windows at one place.
    plan = plan_axis(size + num_strides * stride, size, overlap, pad=False)
    constants = np.random.default_rng(seed).normal(0, 1, plan.num_windows)
    result = one_constant_per_window(plan, window(size), constants)
    for k, (before, after) in enumerate(pairwise(plan.starts)):
        # Where exactly these two windows lie.
        first = max(after, plan.starts[k - 1] + size if k else 0)
        next_but_one = plan.starts[k + 2] if k + 2 < plan.num_windows else plan.padded_length
        end = min(before + size, next_but_one)
        steps = np.diff(result[first:end]) * np.sign(constants[k + 1] - constants[k])
        assert np.all(steps >= -1e-5)


def one_constant_per_window(plan: AxisPlan, weights: Tensor, constants: np.ndarray) -> np.ndarray:
    """The blend along one axis, here taken as time, of windows that each hold one number."""
    pixel = plan_axis(1, 1, 0.0, pad=False)
    blend = BlendAccumulator(plan, pixel, pixel, (weights, torch.ones(1), torch.ones(1)), "cpu")
    finished = []
    for constant in constants:
        blend.add(0, 0, torch.full((plan.size, 1, 1), float(constant)))
        frames = blend.advance()
        if frames is not None:
            finished.append(frames)
    return torch.cat(finished).flatten().numpy()
