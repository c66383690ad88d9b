import numpy as np
import pytest

from model.tiling import mirror_index, plan_axis, tile_starts


def test_a_side_of_490_takes_15_windows_of_64() -> None:
    starts = tile_starts(490, 64, 32)
    assert len(starts) == 15
    assert starts[:2] == [0, 32]
    assert starts[-3:] == [384, 416, 426]


@pytest.mark.parametrize(
    ("length", "size", "stride", "starts"),
    [
        (102, 32, 16, [0, 16, 32, 48, 64, 70]),
        (96, 32, 16, [0, 16, 32, 48, 64]),  # comes out even: no extra window
        (64, 64, 32, [0]),
        (33, 64, 32, [0]),  # shorter than the window: the caller pads
        (65, 64, 32, [0, 1]),
        (10, 3, 3, [0, 3, 6, 7]),
    ],
)
def test_the_last_window_ends_at_the_end(
    length: int, size: int, stride: int, starts: list[int]
) -> None:
    assert tile_starts(length, size, stride) == starts


def test_an_axis_is_mirrored_without_repeating_its_edges() -> None:
    assert mirror_index(5, 4, 4) == [4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 40])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (0, 7), (16, 16), (33, 90)])
def test_mirrored_positions_equal_numpy_even_beyond_the_length(
    length: int, before: int, after: int
) -> None:
    expected = np.pad(np.arange(length), (before, after), mode="reflect" if length > 1 else "edge")
    assert mirror_index(length, before, after) == expected.tolist()


def test_time_is_padded_by_half_a_window_at_both_ends() -> None:
    plan = plan_axis(70, 32, 0.5, pad=True)
    assert (plan.pad_before, plan.pad_after, plan.padded_length) == (16, 16, 102)
    assert plan.starts == (0, 16, 32, 48, 64, 70)


def test_1500_frames_take_95_windows_of_32() -> None:
    assert plan_axis(1500, 32, 0.5, pad=True).num_windows == 95


def test_space_is_not_padded_where_a_window_fits() -> None:
    plan = plan_axis(490, 64, 0.5, pad=False)
    assert (plan.pad_before, plan.pad_after) == (0, 0)
    assert plan.source_index == list(range(490))


def test_a_side_shorter_than_the_window_is_padded_at_its_end() -> None:
    plan = plan_axis(5, 8, 0.5, pad=False)
    assert plan.source_index == [0, 1, 2, 3, 4, 3, 2, 1]
    assert plan.starts == (0,)


def test_a_single_frame_fills_a_whole_window() -> None:
    plan = plan_axis(1, 8, 0.5, pad=True)
    assert plan.source_index == [0] * 9
    assert plan.starts == (0, 1)


@pytest.mark.parametrize(
    ("size", "overlap", "stride"),
    [
        (64, 0.5, 32),
        (5, 0.5, 2),  # half of an odd size: size//2
        (7, 0.5, 3),
        (64, 0.375, 40),
        (32, 0.125, 28),
        (64, 0.0, 64),
        (4, 0.99, 1),
        (1, 0.5, 1),
    ],
)
def test_the_stride_follows_from_the_overlap(size: int, overlap: float, stride: int) -> None:
    assert plan_axis(1000, size, overlap, pad=False).starts[1] == stride


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 1.5, float("nan")])
def test_an_overlap_outside_0_to_1_is_refused(overlap: float) -> None:
    with pytest.raises(ValueError, match=f"overlap by {overlap}; give a fraction from 0"):
        plan_axis(100, 32, overlap, pad=False)


def test_tiles_of_the_plain_unet_lie_as_its_published_program_puts_them() -> None:
    assert plan_axis(490, 128, 0.125, pad=False).starts == (0, 112, 224, 336, 362)
    in_time = plan_axis(1500, 32, 0.125, pad=False).starts
    assert len(in_time) == 54
    assert in_time[:2] == (0, 28)
    assert in_time[-1] == 1468
