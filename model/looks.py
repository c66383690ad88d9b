"""How components are to be looked for in a recording, as a sample of its blocks shows.

First behind the spatial blur of least estimated risk (Monte-Carlo SURE: Ramani et al., IEEE TIP
17:1540, 2008). Then again and again in what is left: place by place for single events, if the
sample has any; behind wider and longer blurs for what is faint, wide or slow; and behind shorter
ones for what is fast, if the sample has any of it. Every time above what the recording's own noise
would reach.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import torch

from model.block_matrix import flattened, without
from model.blur import smooth_in_space, smooth_in_time
from model.components import (
    MEDIAN_OF_NORMAL,
    Components,
    Look,
    Looks,
    PrincipalComponents,
    filtered_and_shrunk,
    greatest,
    greatest_beside,
    rest_seen,
    standing_out,
    with_events,
    with_more,
)
from model.config import LowRankConfig
from model.parallel import in_parallel
from model.scan import Scan

logger = logging.getLogger(__name__)

SHORTEST = 4  # blurs in time, of which so many fit into the frames; longer ones would leave none
LEAST_MORE = 0.25  # components that a faster look or a scan finds in a block, and
MORE_SHARE = 0.1  # of those that are known, or it is not worth its time
# One order of noise is enough where a scan shows less than such a part of that, even so many
# deviations below its thresholds.
SURELY, SURELY_SHARE = 1.0, 0.75
LEAST_EVENT = 1.0  # deviations of the noise, that an event has even where noise reaches nothing
# What noise reaches in one block says nothing of others where it is beyond the usual by this part
# of it: an artefact, or the moving border of a registered recording.
ARTEFACT = 0.3
FAR = 5.0  # deviations, by which it must be so in later looks; it differs more from block to block


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A standardised block [T,h,w] that shows how components are to be looked for; all float32."""

    block: np.ndarray
    noise: np.ndarray  # like the block's
    # Smoothed in time, [t,h,w]:
    smoothed: np.ndarray  # block
    smoothed_noise: Sequence[np.ndarray]  # as it is, and with its frames in other orders

    def principal(self, sigma: float) -> PrincipalComponents:
        """Of the block smoothed in space, too."""
        return PrincipalComponents(flattened(smooth_in_space(self.smoothed, sigma)))

    def greatest_of_noise(
        self, principal: PrincipalComponents, threshold: float, sigma: float
    ) -> float:
        """The noise's greatest singular value beside the components above `threshold`."""
        return greatest_beside(self.smoothed_noise[0], principal, threshold, sigma)

    def seen_by(self, first: Look) -> Sample:
        """The same, smoothed in space, too, as the first look sees it."""
        smoothed, *noises = (
            smooth_in_space(each, first.space_sigma)
            for each in (self.smoothed, *self.smoothed_noise)
        )
        return replace(self, smoothed=smoothed, smoothed_noise=noises)

    def greatest_of_rest(self, found: Components, look: Look, first: Look) -> list[float]:
        """The noise's in a later look, beside what was found: in every order, where that counts.

        What a finer look sees has so many parts that one order tells enough.
        """
        orders = self.smoothed_noise[:1] if look.is_finer_than(first) else self.smoothed_noise
        known = found.footprints
        return [greatest(rest_seen(self.noise, each, known, look, first)) for each in orders]

    def scanned(
        self, found: Components, seed: int, scan: Scan
    ) -> tuple[list[np.ndarray], list[list[float]]]:
        """What a scan sees beside what was found, by place (`Scan.reached`).

        And the most that it sees in noise: see `scanned_as_noise`, of one order.
        """
        rest = self._beside(found)
        return scan.reached(rest), _most_in_noise(rest, seed, scan, range(1))

    def scanned_as_noise(
        self, found: Components, seed: int, scan: Scan, orders: range
    ) -> list[list[float]]:
        """The most that a scan sees where frames are in some of many other orders.

        That is noise, like the block's, beside what was found.
        """
        return _most_in_noise(self._beside(found), seed, scan, orders)

    def _beside(self, found: Components) -> np.ndarray:
        return without(self.block, torch.from_numpy(found.footprints.T))

    def with_events(self, found: Components, scan: Scan) -> Components:
        """What was found, and what a scan finds."""
        return with_events(found, self.block, scan)

    def with_more(self, found: Components, look: Look, first: Look) -> Components:
        """What was found, and what a later look finds."""
        return with_more(found, self.block, self.smoothed, look, first)

    def risk(
        self,
        principal: PrincipalComponents,
        probe: tuple[np.ndarray, np.ndarray],
        threshold: float,
        sigma: float,
        config: LowRankConfig,
    ) -> float:
        """Stein's estimate of the mean squared error, up to a constant, in units of the noise.

        `probe` is what the block is moved by for it, [T,h,w], and the same smoothed in time.
        """
        by, smoothed_by = probe

        def estimate(noisy: np.ndarray, found: PrincipalComponents) -> np.ndarray:
            factors = filtered_and_shrunk(standing_out(noisy, found, threshold), config)
            return (factors.courses @ factors.footprints).reshape(noisy.shape)

        moved = smooth_in_space(self.smoothed + smoothed_by, sigma)
        denoised = estimate(self.block, principal)
        change = estimate(self.block + by, PrincipalComponents(flattened(moved))) - denoised
        divergence = (by * change).mean() / config.probe**2
        return float(np.square(denoised - self.block).mean() + 2 * divergence)


def _most_in_noise(rest: np.ndarray, seed: int, scan: Scan, orders: range) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(len(rest)) for _ in range(orders.stop)]
    noises = (scan.reached(rest[drawn[order]]) for order in orders)
    return [[float(values.max()) for values in reached] for reached in noises]


def samples_of(
    blocks: Sequence[np.ndarray], noises: Sequence[np.ndarray], config: LowRankConfig, seed: int
) -> list[Sample]:
    """Standardised blocks [T,h,w] with noise that is like theirs."""
    rng, num_frames = np.random.default_rng(seed), len(blocks[0])
    orders = [rng.permutation(num_frames) for _ in range(config.noise_orders - 1)]

    def sample(block: np.ndarray, noise: np.ndarray) -> Sample:
        return Sample(
            block=block,
            noise=noise,
            smoothed=smooth_in_time(block, config.time_sigma),
            smoothed_noise=[
                smooth_in_time(each, config.time_sigma)
                for each in (noise, *(noise[order] for order in orders))
            ],
        )

    return list(in_parallel(sample, blocks, noises))


def _principal(samples: list[Sample], sigma: float) -> list[PrincipalComponents]:
    return list(in_parallel(partial(Sample.principal, sigma=sigma), samples))


def _usual(values: Sequence[float], deviations: float = 0.0) -> np.ndarray:
    """Without those of blocks that are unlike all others, and so many deviations off."""
    median = float(np.median(values))
    deviation = float(np.median(np.abs(np.array(values) - median))) / MEDIAN_OF_NORMAL
    most = median + max(ARTEFACT * median, deviations * deviation)
    return np.array([value for value in values if value <= most])


def _beyond(reached: Sequence[float], deviations: float) -> float:
    """So many deviations above the mean of what noise reaches in later looks."""
    usual = _usual(reached, FAR)
    return float(usual.mean() + deviations * usual.std())


def _threshold(
    samples: list[Sample],
    principal: list[PrincipalComponents],
    sigma: float,
    config: LowRankConfig,
) -> float:
    """The singular value that noise reaches in none of the samples, with a margin."""
    threshold = math.inf
    for _ in range(config.threshold_rounds):
        of_noise = partial(Sample.greatest_of_noise, threshold=threshold, sigma=sigma)
        reached = list(in_parallel(of_noise, samples, principal))
        known = not math.isinf(threshold)
        threshold = config.threshold_margin * float(max(_usual(reached) if known else reached))
    return threshold


def _followed(
    first: Look,
    samples: list[Sample],
    principal: list[PrincipalComponents],
    config: LowRankConfig,
    chosen: Sequence[Look] | None = None,
) -> tuple[Looks, float]:
    """With looks after the first, by which the samples have these components.

    With those that were chosen before, or that find more; with a scan for single events if these
    samples show any. And how many components a sample has then, in the mean.
    """
    stands_out = partial(standing_out, threshold=first.threshold)
    found = list(in_parallel(stands_out, (sample.block for sample in samples), principal))
    scan, found = _scan(samples, found, config)
    looks, count = Looks(first=first, scan=scan), _mean_count(found)
    seen = list(in_parallel(partial(Sample.seen_by, first=first), samples))
    longest = len(samples[0].block) / SHORTEST
    blurs = config.later_looks
    if chosen is not None:
        blurs = tuple((look.time_sigma, look.space_sigma) for look in chosen)
    for time_sigma, space_sigma in blurs:
        time_sigma = min(time_sigma, longest)
        if time_sigma == first.time_sigma and space_sigma <= first.space_sigma:
            continue
        look = Look(time_sigma=time_sigma, space_sigma=space_sigma, threshold=math.inf)
        of_rest = partial(Sample.greatest_of_rest, look=look, first=first)
        reached = [*chain.from_iterable(in_parallel(of_rest, seen, found))]
        look = replace(look, threshold=_beyond(reached, config.later_deviations))
        with_more = partial(Sample.with_more, look=look, first=first)
        more = list(in_parallel(with_more, seen, found))
        least = _worthwhile(count) if time_sigma < first.time_sigma else 0
        if chosen is not None or _mean_count(more) - count > least:
            looks = replace(looks, others=(*looks.others, look))
            found, count = more, _mean_count(more)
    return looks, count


def _scan(
    samples: list[Sample], found: list[Components], config: LowRankConfig
) -> tuple[Scan | None, list[Components]]:
    """How single events are looked for beside what was found, and what is found then.

    None where there are too few to be worth the time.
    """
    num_frames = len(samples[0].block)
    scan = Scan(
        time_sigma=min(config.scan_time_sigma, num_frames / SHORTEST),
        space_sigmas=config.scan_space_sigmas,
    )
    before = _mean_count(found)
    least = _worthwhile(before)
    seeds = range(len(samples))  # several may be the same block

    def beyond(most: Sequence[list[list[float]]], deviations: float) -> Scan:
        """The same scan above what noise has reached."""
        by_blur = np.concatenate(most).T
        above = [max(LEAST_EVENT, _beyond(reached, deviations)) for reached in by_blur]
        return replace(scan, thresholds=tuple(above))

    scanned = in_parallel(partial(Sample.scanned, scan=scan), samples, found, seeds)
    seen, of_noise = map(list, zip(*scanned, strict=True))

    def places(scan: Scan) -> float:
        """That a sample has above the thresholds: no fewer than components."""
        return float(np.mean([len(scan.above(reached)) for reached in seen]))

    likely = beyond(of_noise, config.scan_deviations - SURELY)
    if places(likely) <= SURELY_SHARE * least:
        return None, found
    other_orders = range(1, config.noise_orders)
    as_noise = partial(Sample.scanned_as_noise, scan=scan, orders=other_orders)
    of_noise += in_parallel(as_noise, samples, found, seeds)
    scan = beyond(of_noise, config.scan_deviations)
    if places(scan) <= least:
        return None, found
    more = list(in_parallel(partial(Sample.with_events, scan=scan), samples, found))
    return (scan, more) if _mean_count(more) - before > least else (None, found)


def _worthwhile(count: float) -> float:
    """The components that must be found beside so many."""
    return max(LEAST_MORE, MORE_SHARE * count)


def _mean_count(found: Sequence[Components]) -> float:
    return float(np.mean([len(each.scale) for each in found]))


def choose_looks(
    samples: list[Sample], config: LowRankConfig, rng: np.random.Generator
) -> tuple[Looks, float]:
    """With the spatial scale of least estimated risk, and how many components a sample has then."""
    drawn = [rng.standard_normal(sample.block.shape, dtype=np.float32) for sample in samples]
    probes = [config.probe * probe for probe in drawn]
    smooth = partial(smooth_in_time, sigma=config.time_sigma)
    both = list(zip(probes, in_parallel(smooth, probes), strict=True))
    best, least = None, np.inf
    for sigma in config.space_sigmas:
        principal = _principal(samples, sigma)
        threshold = _threshold(samples, principal, sigma, config)
        risk_of = partial(Sample.risk, threshold=threshold, sigma=sigma, config=config)
        risk = sum(in_parallel(risk_of, samples, principal, both)) / len(samples)
        logger.debug("  spatial scale %.1f: estimated risk %.5f", sigma, risk)
        if best is None or risk < least:
            best, least = (_first(sigma, threshold, config), principal), risk
    assert best is not None
    first, principal = best
    return _followed(first, samples, principal, config)


def measured_anew(looks: Looks, samples: list[Sample], config: LowRankConfig) -> Looks:
    """The same, of what noise reaches in other blocks or fewer frames."""
    sigma = looks.first.space_sigma
    principal = _principal(samples, sigma)
    first = _first(sigma, _threshold(samples, principal, sigma, config), config)
    return _followed(first, samples, principal, config, looks.others)[0]


def _first(space_sigma: float, threshold: float, config: LowRankConfig) -> Look:
    return Look(time_sigma=config.time_sigma, space_sigma=space_sigma, threshold=threshold)
