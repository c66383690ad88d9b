"""A result's mean image over time, brought to the recording's as far as that one's noise allows.

A network that sees a few frames at a time makes what is fine and faint smoother than it is, in
every window alike. The recording's own mean has hardly any noise left, so what the result's mean
lacks can be seen in it, and is added to all frames.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from model.background import SPIKES, blur_of_least_risk, measure_background
from model.report import StackRecord
from model.spool import open_spool
from model.stack import StackError

logger = logging.getLogger(__name__)

MIN_FRAMES = 2  # to tell the noise by
SIGMAS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)  # pixels
LARGEST_DIFFERENCE = 10.0  # deviations of the noise; more is a spike, which no mean should keep


def with_mean_of(
    frames: np.ndarray, blocks: Iterator[np.ndarray], target: Path, record: StackRecord
) -> Iterator[np.ndarray]:
    """Blocks [n,H,W] of a recording's result, in its units, all moved by one image [H,W].

    That is the mean of `frames` [T,H,W] less the mean of the result, blurred by the width of least
    risk (Stein's estimate); `record.mean_blur` gets that width. Nothing is added where that has
    less risk yet, or no noise can be told. Where the disk has no room for the blocks to wait until
    the mean is known, they stay as they are, and the record says so.
    """
    if len(frames) < MIN_FRAMES:
        yield from blocks
        return
    background = measure_background(frames)
    limit = LARGEST_DIFFERENCE * np.maximum(background.deviation, np.sqrt(background.variance))
    work = np.result_type(frames.dtype, np.float32)
    with ExitStack() as until_all_are_there:
        try:
            spool = until_all_are_there.enter_context(open_spool(frames.shape, work, target))
        except StackError as error:
            record.shortened.append("mean image left as it came for lack of room on the disk")
            logger.warning("  %s; %s", record.shortened[-1], error)
            yield from blocks
            return
        total, spikes = np.zeros((2, *frames.shape[1:]))
        num_done = num_spikes = 0
        for block in blocks:
            spool.append(block)
            for denoised in block:
                lacking = frames[num_done].astype(work) - denoised
                total += lacking
                beyond = lacking - np.clip(lacking, -limit, limit)
                spikes += beyond
                num_spikes += int(np.count_nonzero(beyond))
                num_done += 1
        if num_spikes <= SPIKES * frames.size:  # more are photons, where there are few
            total -= spikes
        variance = background.variance / len(frames)
        image, record.mean_blur = _worth_adding(total / len(frames), variance)
        for block in spool:
            yield block + image


def _worth_adding(lacking: np.ndarray, variance: float) -> tuple[np.ndarray, float | None]:
    """Of an image [H,W] whose noise has that variance what is more likely signal, float32.

    And the blur that told the two apart; None, and an empty image, where nothing is.
    """
    blurred, sigma, risk = blur_of_least_risk(lacking, variance, SIGMAS)
    if risk >= np.square(lacking).mean():
        return np.zeros_like(lacking, np.float32), None
    return blurred.astype(np.float32), sigma
