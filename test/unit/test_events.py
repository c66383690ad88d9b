"""Traces and events: planted ones are found where they are, and none where nothing happens."""

import numpy as np
import pytest
from scipy import ndimage

from lab.events import (
    EVENT_DISTANCE,
    MATCH_FRAMES,
    PLACE_DISTANCE,
    active_places,
    base_and_peak,
    compare_activity,
    event_windows,
    find_events,
    match_events,
    place_traces,
    rise_time,
    rises,
)

PLANTED = [60, 140, 210, 390]


def transients(events: list[int], amplitude: float = 60.0, length: int = 500) -> np.ndarray:
    """A trace [T] of sharp rises and slow decays on a baseline of 200."""
    frames = np.arange(length)
    trace = np.full(length, 200.0)
    for event in events:
        trace += amplitude * np.exp(-(frames - event) / 20.0) * (frames >= event)
    return trace


def two_cells() -> np.ndarray:
    """A clean stack [T,H,W] whose cells, 5x5 pixels each, fire at the planted frames."""
    stack = np.full((500, 30, 40), 200.0)
    stack[:, 5:10, 6:11] = transients(PLANTED)[:, None, None]
    stack[:, 18:23, 25:30] = transients(PLANTED[:2], amplitude=40.0)[:, None, None]
    return stack


def test_planted_events_are_found_exactly() -> None:
    assert find_events(transients(PLANTED)).tolist() == PLANTED


def test_planted_events_are_found_exactly_on_a_bleaching_baseline() -> None:
    bleaching = np.linspace(80.0, 0.0, 500)
    assert find_events(transients(PLANTED) + bleaching).tolist() == PLANTED


def test_planted_events_are_found_in_noise_within_the_tolerance() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        found = find_events(transients(PLANTED) + rng.normal(0, 8, 500))
        assert len(found) == len(PLANTED)
        assert np.abs(found - PLANTED).max() <= MATCH_FRAMES


@pytest.mark.parametrize("level", [0.0, 1e-9, 0.1, 211.0, -40.0, 3e4])
def test_no_event_is_invented_on_a_flat_trace(level: float) -> None:
    assert find_events(np.full(1500, level)).size == 0


def test_no_event_is_invented_on_fifty_traces_of_noise_white_or_blurred() -> None:
    rng = np.random.default_rng(0)
    for deviation in (1.0, 30.0, 300.0):
        noise = rng.normal(211.0, deviation, (50, 1500))
        for traces in (noise, ndimage.gaussian_filter1d(noise, 3.0)):
            assert sum(find_events(trace).size for trace in traces) == 0


def test_no_event_is_invented_on_a_slow_drift() -> None:
    assert find_events(200.0 + 100.0 * np.sin(np.arange(1500) / 300.0)).size == 0


def test_a_trace_too_short_for_a_rise_has_no_events() -> None:
    assert find_events(np.array([1.0, 9.0, 1.0])).size == 0


def test_a_step_rises_by_its_height_at_its_first_frame() -> None:
    rise = rises(np.repeat([10.0, 14.0], 50))
    assert rise.argmax() == 50
    assert rise.max() == pytest.approx(4.0)
    assert rise[45] == pytest.approx(2.0)
    assert np.count_nonzero(rise > 1e-9) == 19


def test_events_match_up_to_the_tolerance_and_no_further() -> None:
    clean = np.array([100, 200, 300])
    found = np.array([100 - MATCH_FRAMES, 200 + MATCH_FRAMES + 1, 300])
    assert match_events(clean, found).tolist() == [[0, 0], [2, 2]]
    assert match_events(clean, np.array([], int)).tolist() == []


def test_the_events_of_a_trace_are_too_far_apart_to_share_a_partner() -> None:
    bursts = np.random.default_rng(5).integers(0, 3000, 40).tolist()
    found = find_events(transients(bursts, length=3000))
    assert len(found) > 15
    assert np.diff(found).min() >= EVENT_DISTANCE > 2 * MATCH_FRAMES


def test_base_and_peak_are_the_frames_next_to_the_rise() -> None:
    ramp = np.interp(np.arange(200), [90, 100], [0.0, 10.0])
    (window,) = event_windows(ramp, np.array([95]))
    assert window == (65, 95, 125)
    assert base_and_peak(ramp, window) == (90, 100)


def test_neighbouring_rises_are_parted_between_them() -> None:
    stairs = np.repeat([1.0, 3.0, 7.0], [40, 20, 40])
    windows = event_windows(stairs, np.array([40, 60]))
    assert windows == [(10, 40, 50), (50, 60, 90)]
    assert [base_and_peak(stairs, window) for window in windows] == [(39, 40), (59, 60)]


def test_a_window_ends_with_the_trace_and_without_events_there_is_none() -> None:
    step = np.repeat([1.0, 2.0], [15, 20])
    assert event_windows(step, np.array([15])) == [(0, 15, 34)]
    assert event_windows(step, np.array([], int)) == []


def test_a_straight_rise_of_ten_frames_takes_six_from_20_to_80_per_cent() -> None:
    ramp = np.interp(np.arange(200), [90, 100], [5.0, 45.0])
    assert rise_time(ramp, 90, 100) == pytest.approx(6.0)
    assert rise_time(ramp, 70, 130) == pytest.approx(6.0)


def test_a_jump_takes_six_tenths_of_a_frame_and_a_fall_has_no_rise_time() -> None:
    assert rise_time(np.array([0.0, 0.0, 8.0, 8.0]), 0, 3) == pytest.approx(0.6)
    assert np.isnan(rise_time(np.array([8.0, 0.0]), 0, 1))


def test_the_most_active_place_comes_first_and_still_ones_do_not_come() -> None:
    places = active_places(two_cells())
    assert len(places) == 2
    assert tuple(places[0]) == (6, 7)  # the first of equals: 3x3 lies in the cell from here on
    assert tuple(places[1]) == (19, 26)


def test_places_keep_their_distance_stay_off_the_border_and_come_out_the_same_again() -> None:
    stack = np.random.default_rng(0).normal(size=(20, 50, 64)).astype(np.float32)
    places = active_places(stack, num_places=8)
    assert len(places) == 8
    apart = np.abs(places[:, None] - places).max(axis=-1)
    assert apart[~np.eye(8, dtype=bool)].min() >= PLACE_DISTANCE
    assert places.min() >= 1
    assert (places <= [48, 62]).all()
    assert np.array_equal(places, active_places(stack, num_places=8))


def test_places_are_sought_in_stacks_with_room_for_a_neighbourhood_only() -> None:
    with pytest.raises(ValueError, match=r"3x3 or more: \(5, 2, 9\)"):
        active_places(np.zeros((5, 2, 9)))


def test_a_trace_is_the_mean_of_nine_voxels() -> None:
    stack = np.arange(2 * 5 * 6, dtype=np.int16).reshape(2, 5, 6)
    traces = place_traces(stack, np.array([[1, 1], [3, 4]]))
    assert traces.tolist() == [[7.0, 37.0], [22.0, 52.0]]


def test_a_perfect_result_shows_all_activity() -> None:
    activity = compare_activity(two_cells(), two_cells())
    assert (activity.num_places, activity.num_events) == (2, 6)
    assert activity.trace_correlation == pytest.approx(1.0)
    assert (activity.precision, activity.recall, activity.f1) == (1.0, 1.0, 1.0)
    assert (activity.amplitude_error, activity.rise_time_error) == (0.0, 0.0)


def test_transients_at_three_quarters_of_their_height_err_by_a_quarter() -> None:
    clean = two_cells()
    activity = compare_activity(clean, 200 + 0.75 * (clean - 200))
    assert activity.amplitude_bias == pytest.approx(-0.25)
    assert activity.amplitude_error == pytest.approx(0.25)
    assert activity.height_bias == pytest.approx(-0.25)
    assert activity.rise_time_error == pytest.approx(0.0, abs=1e-9)
    assert activity.trace_correlation == pytest.approx(1.0)


def test_small_events_count_little_in_the_height_of_all() -> None:
    clean = two_cells()
    clean[:, 5:10, 6:11] = 200 + 0.25 * (clean[:, 5:10, 6:11] - 200)
    result = clean.copy()
    result[:, 5:10, 6:11] = 200  # the dim cell is lost
    activity = compare_activity(clean, result)
    assert activity.num_events == 6
    assert activity.amplitude_bias == pytest.approx(-2 / 3)
    assert -0.45 < activity.height_bias < -0.3


def test_a_result_without_activity_shows_none() -> None:
    clean = two_cells()
    still = np.broadcast_to(clean.mean(axis=0, dtype=np.float64), clean.shape)
    activity = compare_activity(clean, still)
    assert activity.trace_correlation == 0.0
    assert activity.amplitude_bias == -1.0
    assert (activity.recall, activity.f1) == (0.0, 0.0)
    assert np.isnan(activity.precision)
    assert np.isnan(activity.rise_time_error)


def test_missed_and_invented_events_are_counted_over_all_places() -> None:
    clean, result = two_cells(), two_cells()
    result[:, 5:10, 6:11] = transients([60, 140, 290])[:, None, None]  # 2 missed, 1 invented
    activity = compare_activity(clean, result)
    assert activity.precision == pytest.approx(4 / 5)
    assert activity.recall == pytest.approx(4 / 6)
    assert activity.f1 == pytest.approx(8 / 11)


def test_a_blur_in_time_makes_rises_slower() -> None:
    clean = two_cells()
    activity = compare_activity(clean, ndimage.gaussian_filter1d(clean, 2.0, axis=0))
    assert activity.recall == 1.0
    # a blurred step of deviation s rises from 20 to 80 % in 1.68 s, the jump itself in 0.6 frames
    assert activity.rise_time_bias == pytest.approx(1.68 * 2.0 - 0.6, rel=0.2)
    assert -0.25 < activity.amplitude_bias < -0.1


def test_noise_lifts_the_amplitudes_that_are_read_off_a_trace() -> None:
    clean = two_cells()
    noisy = clean + np.random.default_rng(0).normal(0, 60, clean.shape)
    assert compare_activity(clean, noisy).amplitude_bias > 0.2


def test_a_still_scene_has_no_places_and_no_figures() -> None:
    still = np.full((40, 12, 12), 211.3)
    activity = compare_activity(still, still)
    assert (activity.num_places, activity.num_events) == (0, 0)
    assert np.isnan([activity.trace_correlation, activity.recall, activity.f1]).all()
