"""What the sources of a simulated movie do over time: spikes, calcium, fluorescence.

Knows nothing of where a source lies; `lab.tissue` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.signal import lfilter

# Time constants [s] of rise and decay as seen in vivo, from single spikes (the short ends) to
# bursts (the long ends): Chen et al. 2013 for GCaMP6, Zhang et al. 2023 for jGCaMP8.
INDICATORS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "GCaMP6s": ((0.05, 0.20), (0.50, 3.0)),
    "GCaMP6f": ((0.015, 0.08), (0.15, 0.7)),
    "jGCaMP8": ((0.002, 0.02), (0.06, 0.4)),
}


@dataclass(frozen=True)
class Range:
    """A number drawn between two bounds, evenly or evenly in its logarithm, or exactly 0."""

    low: float
    high: float
    log: bool = False
    absent: float = 0.0  # probability of 0

    def draw(self, rng: np.random.Generator) -> float:
        """A number from the range."""
        if rng.uniform() < self.absent:
            return 0.0
        if self.log:
            return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return rng.uniform(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class ActivityConfig:
    """Firing of the cells and the indicator that reports it."""

    event_hz: float  # median rate of the cells that fire at all; an event is a burst
    rate_spread: float  # standard deviation of its logarithm over cells
    silent_fraction: float  # of the cells
    burst_spikes: float  # mean number in an event, at least 1
    burst_interval_seconds: float  # mean, between the spikes of a burst
    refractory_seconds: float
    synchrony: float  # standard deviation of the logarithm of the rate that all share
    synchrony_seconds: float  # over which the shared rate changes
    starts_at_rest: bool  # nothing fired before the first frame, as in NAOMi's movies
    rise_seconds: float  # time constants of the double exponential
    decay_seconds: float
    max_response: float  # (F - F0) / F0 of a saturated indicator
    half_saturation: float  # calcium at half of that, in peaks of one spike
    hill_exponent: float


RANGES = {
    "event_hz": Range(0.005, 0.8, log=True),
    "rate_spread": Range(0.3, 1.2),
    "silent_fraction": Range(0.0, 0.8),
    "burst_spikes": Range(1.0, 6.0),
    "burst_interval_seconds": Range(0.005, 0.05, log=True),
    "refractory_seconds": Range(0.002, 0.004),
    "synchrony": Range(0.0, 2.2),
    "synchrony_seconds": Range(0.3, 20.0, log=True),
    "max_response": Range(3.0, 60.0, log=True),
    "half_saturation": Range(3.0, 40.0, log=True),
    "hill_exponent": Range(1.0, 2.5),
}


def draw_activity(rng: np.random.Generator) -> ActivityConfig:
    """Random firing seen through a random indicator."""
    rise, decay = INDICATORS[str(rng.choice(list(INDICATORS)))]
    return ActivityConfig(
        rise_seconds=Range(*rise, log=True).draw(rng),
        decay_seconds=Range(*decay, log=True).draw(rng),
        starts_at_rest=bool(rng.uniform() < 0.3),
        **{name: span.draw(rng) for name, span in RANGES.items()},
    )


def smooth_noise(
    shape: tuple[int, ...], correlation: float, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian noise [...,T] of unit variance, correlated as exp(-(lag / correlation)^2 / 2)."""
    num_frames = shape[-1]
    padded = num_frames + math.ceil(4 * correlation)  # or its end would wander back to its start
    white = rng.standard_normal((*shape[:-1], padded), dtype=np.float32)
    keep = np.exp(-((np.pi * correlation * np.fft.rfftfreq(padded)) ** 2))  # of the power
    keep /= math.sqrt(np.square(keep).sum() * 2 / padded)
    return scipy.fft.irfft(scipy.fft.rfft(white) * keep, padded)[..., :num_frames].astype(
        np.float32
    )


def settling_frames(config: ActivityConfig, frame_rate: float) -> int:
    """Frames before a movie's first whose spikes can still be seen in it."""
    return math.ceil(4 * config.decay_seconds * frame_rate)


def draw_shared_rate(
    config: ActivityConfig, num_frames: int, frame_rate: float, rng: np.random.Generator
) -> np.ndarray:
    """Factor [S+T] on every cell's rate: S frames to settle, then the movie's."""
    settling = settling_frames(config, frame_rate)
    correlation = config.synchrony_seconds * frame_rate
    rate = np.exp(config.synchrony * smooth_noise((settling + num_frames,), correlation, rng))
    if config.starts_at_rest:
        rate[:settling] = 0
    return rate / max(1.0, math.exp(config.synchrony**2 / 2))


def spike_times(
    config: ActivityConfig,
    num_cells: int,
    shared_rate: np.ndarray,
    frame_rate: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Cell and time [s] of each spike, sorted by cell, then time; one shared rate per frame."""
    fires = rng.uniform(size=num_cells) >= config.silent_fraction
    rates = config.event_hz * np.exp(config.rate_spread * rng.standard_normal(num_cells)) * fires
    # The shared rate bends time: an even draw over the integral of the rate, mapped back.
    clock = np.concatenate([[0.0], np.cumsum(shared_rate)]) / frame_rate
    cell = np.repeat(np.arange(num_cells), rng.poisson(rates * clock[-1]))
    stop = len(shared_rate) / frame_rate
    time = np.interp(
        rng.uniform(0, clock[-1], len(cell)), clock, np.arange(len(clock)) / frame_rate
    )

    spikes = rng.geometric(1 / config.burst_spikes, len(cell))
    first = np.repeat(np.cumsum(spikes) - spikes, spikes)  # index of the burst's first spike
    gaps = config.refractory_seconds + rng.exponential(config.burst_interval_seconds, len(first))
    elapsed = np.cumsum(gaps)
    time = np.repeat(time, spikes) + elapsed - elapsed[first]
    cell = np.repeat(cell, spikes)

    order = np.lexsort((time, cell))
    cell, time = cell[order], time[order]
    gap = np.diff(time, prepend=-np.inf)
    ready = (gap >= config.refractory_seconds) | (np.diff(cell, prepend=-1) > 0)
    kept = ready & (time < stop)
    return cell[kept], time[kept]


def calcium(
    cell: np.ndarray,
    time: np.ndarray,
    config: ActivityConfig,
    shape: tuple[int, int],
    frame_rate: float,
) -> np.ndarray:
    """Calcium [K,T] float32 at the end of each frame from spikes at times >= 0 [s].

    One spike gives exp(-t/decay) - exp(-t/rise), scaled to a peak of 1, wherever it falls
    within a frame: each exponential is a recursion over frames, entered with what is left of
    the spike at the end of its own frame.
    """
    num_cells, num_frames = shape
    rise, decay = config.rise_seconds, config.decay_seconds
    peak_time = math.log(decay / rise) * rise * decay / (decay - rise)
    peak = math.exp(-peak_time / decay) - math.exp(-peak_time / rise)
    frame = np.minimum((time * frame_rate).astype(np.int64), num_frames - 1)
    left = (frame + 1) / frame_rate - time  # seconds to the end of the frame
    one = np.ones(1, np.float32)
    parts = []
    for constant in (decay, rise):
        enters = np.bincount(
            cell * num_frames + frame, np.exp(-left / constant), num_cells * num_frames
        )
        keep = math.exp(-1 / (frame_rate * constant))
        enters = enters.reshape(shape).astype(np.float32)
        parts.append(lfilter(one, np.array([1, -keep], np.float32), enters))
    return np.maximum(parts[0] - parts[1], 0) / np.float32(peak)


def response(level: np.ndarray, config: ActivityConfig) -> np.ndarray:
    """(F - F0) / F0 of the indicator at a calcium level in peaks of one spike (Hill)."""
    bound = (level / config.half_saturation) ** config.hill_exponent
    return config.max_response * bound / (1 + bound)


def draw_traces(
    config: ActivityConfig,
    num_cells: int,
    shared_rate: np.ndarray,
    frame_rate: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """(F - F0) / F0 [K,T] float32 of cells under a shared rate [S+T] of `draw_shared_rate`."""
    cell, time = spike_times(config, num_cells, shared_rate, frame_rate, rng)
    level = calcium(cell, time, config, (num_cells, len(shared_rate)), frame_rate)
    return response(level[:, settling_frames(config, frame_rate) :], config)
