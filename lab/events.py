"""Activity as a user reads it off a stack: traces of the most active places, and their events.

An event is a rise. Saturated indicators hold plateaux of many frames without a peak worth dating,
while the steepest frame of a rise is sharp in the truth and stays sharp in a good result.
Everything is fixed here, in pixels of about 1 um and frames at about 30 Hz.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, signal

NUM_PLACES = 30
PLACE_DISTANCE = 12  # rows or columns between two places: about a soma

STEP_FRAMES = 10  # a rise is the mean of so many frames less the mean of as many before
NUM_DEVIATIONS = 5.0  # an event stands so many robust deviations above the other rises,
MIN_RISE = 0.05  # and is at least this part of the trace's mean: clean traces have no noise
MATCH_FRAMES = 5  # two events this close are the same event
EVENT_DISTANCE = 2 * MATCH_FRAMES + 1  # so no event can match two others

EVENT_FRAMES = 30  # an event's base and peak lie this close to its rise
RISE_LEVELS = 0.2, 0.8  # of the amplitude; nearer to base and peak noise would decide

MAD_TO_DEVIATION = 1.4826  # of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What of the clean stack's activity a denoised stack shows.

    A figure is nan where nothing is there to take it from (precision where no event was found).
    """

    trace_correlation: float  # Pearson, mean over places; a flat trace counts 0
    num_places: int
    num_events: int  # in the clean traces
    amplitude_bias: float  # mean over clean events of (denoised - clean) / clean amplitude
    amplitude_error: float  # mean of its absolute values
    height_bias: float  # of all clean events' amplitudes together: small ones count little
    rise_time_bias: float  # [frames] mean over matched events of denoised - clean
    rise_time_error: float  # [frames] mean of its absolute values
    precision: float  # part of the events found in the denoised traces that the clean ones have
    recall: float  # part of the clean events that the denoised traces have
    f1: float


def active_places(clean: np.ndarray, num_places: int = NUM_PLACES) -> np.ndarray:
    """Row and column [N,2] of the 3x3 neighbourhoods whose means vary most in time, first the most.

    At most `num_places`, `PLACE_DISTANCE` apart and off the border. Choose on the clean stack
    [T,H,W] alone, or the noise chooses.
    """
    if clean.ndim != 3 or min(clean.shape[1:]) < 3:
        raise ValueError(f"traces need a [T,H,W] stack with frames of 3x3 or more: {clean.shape}")
    first = ndimage.uniform_filter(clean[0].astype(np.float64), 3)
    total, squares = np.zeros_like(first), np.zeros_like(first)
    for frame in clean:
        # less the first frame: a still place sums to exactly 0 and no digits are lost
        change = ndimage.uniform_filter(frame.astype(np.float64), 3) - first
        total += change
        squares += np.square(change)
    variance = squares / len(clean) - np.square(total / len(clean))
    variance[[0, -1]] = 0
    variance[:, [0, -1]] = 0
    places: list[tuple[int, int]] = []
    while len(places) < num_places and variance.max() > 0:
        row, column = map(int, np.unravel_index(variance.argmax(), variance.shape))
        places.append((row, column))
        top, left = max(row - PLACE_DISTANCE + 1, 0), max(column - PLACE_DISTANCE + 1, 0)
        variance[top : row + PLACE_DISTANCE, left : column + PLACE_DISTANCE] = 0
    return np.array(places, dtype=np.intp).reshape(-1, 2)


def place_traces(stack: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Means of the 3x3 voxels around N places [N,2] in every frame of [T,H,W]: float64 [N,T]."""
    offsets = np.arange(-1, 2)
    rows = places[:, 0, None, None] + offsets[:, None]  # [N,3,1]
    columns = places[:, 1, None, None] + offsets  # [N,1,3]
    traces = np.empty((len(places), len(stack)))
    for index, frame in enumerate(stack):
        traces[:, index] = frame[rows, columns].mean(axis=(1, 2), dtype=np.float64)
    return traces


def rises(trace: np.ndarray) -> np.ndarray:
    """How far a trace [T] rises at each frame, in its own units [T]: free of baseline and drift.

    The mean of the `STEP_FRAMES` frames from here on less the mean of those before; 0 at the ends.
    """
    rise = np.zeros(len(trace))
    if len(trace) >= 2 * STEP_FRAMES:
        kernel = np.repeat([1.0 / STEP_FRAMES, -1.0 / STEP_FRAMES], STEP_FRAMES)
        inside = slice(STEP_FRAMES, len(trace) - STEP_FRAMES + 1)
        rise[inside] = np.convolve(trace, kernel, mode="valid")
    return rise


def find_events(trace: np.ndarray) -> np.ndarray:
    """Frames [N] at which a trace [T] rises most steeply, ascending: the one fixed detector.

    A trace active for more than half of its time hides its own noise; of such, only rises far above
    its usual ones count.
    """
    rise = rises(trace)
    spread = MAD_TO_DEVIATION * np.median(np.abs(rise - np.median(rise)))
    threshold = max(NUM_DEVIATIONS * spread, MIN_RISE * abs(trace.mean()))
    frames, _ = signal.find_peaks(
        rise, height=threshold, prominence=threshold, distance=EVENT_DISTANCE
    )
    return np.asarray(frames, np.intp)


def match_events(clean_events: np.ndarray, found_events: np.ndarray) -> np.ndarray:
    """Index pairs [M,2] (clean, found) of the events at most `MATCH_FRAMES` apart.

    The events of one trace are more than twice as far apart, so none has two partners.
    """
    apart = np.abs(clean_events[:, None] - found_events)
    return np.argwhere(apart <= MATCH_FRAMES)


def event_windows(trace: np.ndarray, events: np.ndarray) -> list[tuple[int, int, int]]:
    """First frame, event and last frame in which to look for each event's base and peak.

    Within `EVENT_FRAMES`; neighbouring events are parted at the frame where the trace [T] rises
    least.
    """
    rise = rises(trace)
    parted = [a + int(rise[a:b].argmin()) for a, b in itertools.pairwise(map(int, events))]
    ends = [0, *parted, len(trace) - 1]
    return [
        (max(left, event - EVENT_FRAMES), event, min(right, event + EVENT_FRAMES))
        for event, left, right in zip(map(int, events), ends, ends[1:], strict=False)
    ]


def base_and_peak(trace: np.ndarray, window: tuple[int, int, int]) -> tuple[int, int]:
    """Lowest frame of a trace [T] up to an event and highest from it on; of equals the nearest."""
    first, event, last = window
    base = event - int(trace[first : event + 1][::-1].argmin())
    return base, event + int(trace[event : last + 1].argmax())


def rise_time(trace: np.ndarray, base: int, peak: int) -> float:
    """Frames a trace [T] takes from 20 % to 80 % of its way from `base` to `peak`; nan if it falls.

    From the last frame below the one level to the first above the other, linearly interpolated.
    """
    height = trace[peak] - trace[base]
    if height <= 0:
        return math.nan
    course = (trace[base : peak + 1] - trace[base]) / height
    low, high = RISE_LEVELS
    above = int((course >= high).argmax())
    below = int(np.flatnonzero(course[:above] <= low)[-1])
    start = below + (low - course[below]) / (course[below + 1] - course[below])
    end = above - (course[above] - high) / (course[above] - course[above - 1])
    return float(end - start)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    # asked of the values themselves: their deviations from a rounded mean are not exactly 0
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def compare_activity(clean: np.ndarray, denoised: np.ndarray) -> Activity:
    """What of the activity of the clean stack the denoised stack shows, both [T,H,W].

    Amplitudes, peak less base, are taken in the window of every clean event, found again or not, so
    a flat result errs by -100 % and noise by more than 0. Rise times are of the matched events.
    Events count over all places together.
    """
    places = active_places(clean)
    correlations, amplitude_errors, rise_time_errors = [], [], []
    height = height_change = 0.0
    num_events = num_found = num_matched = 0
    for truth, result in zip(
        place_traces(clean, places), place_traces(denoised, places), strict=True
    ):
        correlations.append(_correlation(truth, result))
        events, found = find_events(truth), find_events(result)
        matches = match_events(events, found)
        for index, window in enumerate(event_windows(truth, events)):
            (base, peak), (low, high) = base_and_peak(truth, window), base_and_peak(result, window)
            amplitude = truth[peak] - truth[base]
            if amplitude > 0:
                change = result[high] - result[low] - amplitude
                amplitude_errors.append(change / amplitude)
                height += amplitude
                height_change += change
            if index in matches[:, 0]:
                delay = rise_time(result, low, high) - rise_time(truth, base, peak)
                if math.isfinite(delay):
                    rise_time_errors.append(delay)
        num_events += len(events)
        num_found += len(found)
        num_matched += len(matches)
    return Activity(
        trace_correlation=_mean(correlations),
        num_places=len(places),
        num_events=num_events,
        amplitude_bias=_mean(amplitude_errors),
        amplitude_error=_mean(np.abs(amplitude_errors)),
        height_bias=height_change / height if height else math.nan,
        rise_time_bias=_mean(rise_time_errors),
        rise_time_error=_mean(np.abs(rise_time_errors)),
        precision=_ratio(num_matched, num_found),
        recall=_ratio(num_matched, num_events),
        f1=_ratio(2 * num_matched, num_events + num_found),
    )
