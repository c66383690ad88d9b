"""The half of a network for images goes on learning from the recording that it is to denoise.

Every other frame is left out, and components are looked for in the rest. Along their courses, moved
by half a frame's distance, the frames that were left out have the same images under other noise,
which nothing that was found before can know of. So a network that predicts these from those learns
to denoise them (Noise2Noise: Lehtinen et al., ICML 2018, https://arxiv.org/abs/1803.04189), and how
well it does so in another part of the field tells, without the truth, whether it has learned.
Signals that change from frame to frame are weaker along courses that were moved than they are, by
as much as courses that were found in all frames tell; the images are made as much stronger. What
they still lack is noise that the courses follow, of which all frames have half as much. Where that
is a good part of the images there is nothing to learn from.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from model.adapt import follow
from model.budget import Budget
from model.components import Components
from model.config import Precision, TeachConfig
from model.device import Device, in_precision
from model.factor_denoiser import FactorDenoiser
from model.lowrank import Corner, DenoiseCourses, LowRank, image_scale
from model.orientation import Orientation
from model.progress import Progress

logger = logging.getLogger(__name__)

LEAST_PART = 0.5  # of a course, that moved ones are taken to have kept: else noise would be learned


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Images [K,h,w] of one block under two draws of the noise, the mean first."""

    seen: np.ndarray
    other: np.ndarray
    scales: np.ndarray  # of the components that the courses came from: Components.scale

    def over(self, scale: float) -> Pair:
        """Both images in units of the noise, which this is taken for."""
        return replace(self, seen=self.seen / scale, other=self.other / scale)

    def stronger(self, factor: float) -> Pair:
        """The other images, but for the mean, so many times as strong."""
        changing = np.float32(factor) * self.other[1:]
        return replace(self, other=np.concatenate([self.other[:1], changing]))


@dataclass(frozen=True, kw_only=True)
class TeachReport:
    """What has come of it."""

    steps: int
    # mean squared difference to the other images in the judged part: as it came, and taught
    judged: tuple[float, float]

    @property
    def has_helped(self) -> bool:
        """Whether the network has been changed."""
        return self.judged[1] < self.judged[0]


def moved_in_time(courses: np.ndarray, frames: float) -> np.ndarray:
    """Courses [T,K] as they are so many frames, or parts of one, later."""
    num_frames = len(courses)
    # mirrored, so that the ends do not jump
    spectrum = np.fft.rfft(np.concatenate([courses, courses[::-1]]), axis=0)
    turned = spectrum * np.exp(2j * np.pi * frames * np.fft.rfftfreq(2 * num_frames))[:, None]
    return np.fft.irfft(turned, 2 * num_frames, axis=0)[:num_frames]


def part_between(
    courses: np.ndarray, seen: np.ndarray, between: np.ndarray, later: float
) -> np.ndarray:
    """What part of courses [T,K] of every other frame, moved to the frames between, is left: [K].

    From `LEAST_PART` to 1, which slow ones have. As courses tell that were found in all frames of
    the same tissue: [T,L] in the frames that the others were found in, and as many between, so much
    `later`. What those have not got is taken for slow.
    """
    mix = np.linalg.pinv(seen) @ courses
    shown = seen @ mix
    lost = np.square(shown).sum(0) - (between @ mix * _moved(shown, later)).sum(0)
    return np.clip(1 - lost / np.square(courses).sum(0), LEAST_PART, 1.0)


def _moved(courses: np.ndarray, later: float) -> np.ndarray:
    """`moved_in_time`; all but the first, which is constant, without a mean as before."""
    moved = moved_in_time(courses, later)
    moved[:, 1:] -= moved[:, 1:].mean(0)
    return moved


def image_pairs(
    measured: LowRank, denoise_courses: DenoiseCourses, config: TeachConfig
) -> Iterator[tuple[Corner, Pair]]:
    """Of the blocks in some rows of them: each half of the frames beside the other.

    The factors of all frames are found. The rows are the middles of equal parts of the field:
    motion leaves the least at its edges.
    """
    number = np.arange(len(measured.frames))
    is_whole = number < len(number) // 2 * 2  # frames in pairs
    starts = measured.rows.starts
    wanted = max(config.least_rows, config.most_blocks // measured.columns.num_windows)
    num_rows = min(len(starts), wanted)
    rows = [starts[int((i + 0.5) * len(starts) / num_rows)] for i in range(num_rows)]
    chosen = [is_whole & (number % 2 == which) for which in (0, 1)]
    halves = [measured.of_some(is_chosen) for is_chosen in chosen]
    for which, later in ((0, 0.5), (1, -0.5)):
        one, other = halves[which], halves[1 - which]
        told_by = {
            corner: (found.courses[chosen[which]], found.courses[chosen[1 - which]])
            for corner, found in measured.factors.items()
            if corner[0] in rows
        }
        for row in rows:
            yield from _pairs_in_row(one, other, later, row, told_by, denoise_courses)


def _pairs_in_row(
    one: LowRank,
    other: LowRank,
    later: float,
    row: int,
    told_by: Mapping[Corner, tuple[np.ndarray, np.ndarray]],
    denoise_courses: DenoiseCourses,
) -> Iterator[tuple[Corner, Pair]]:
    band = other.band_at(row)

    def of_block(corner: Corner, block: np.ndarray, found: Components) -> tuple[Corner, Pair]:
        factors = one.along_components(found, denoise_courses, block, corner)
        seen = factors.footprints.reshape(-1, *block.shape[1:])
        there = _moved(factors.courses, later)
        part = part_between(factors.courses, *told_by[corner], later)
        _, columns = one.block_at(*corner)
        around = np.ascontiguousarray(band[:, :, columns])
        # nearest by least squares: moved, or in bright frames, courses are not quite orthonormal
        readers = (np.linalg.pinv(there).T / part).astype(np.float32)
        other_images = other.read(readers, around, corner).reshape(seen.shape)
        return corner, Pair(seen=seen, other=other_images, scales=found.scale)

    return one.each_block(of_block, [row])


def teach(
    denoiser: FactorDenoiser,
    measured: LowRank,
    config: TeachConfig,
    budget: Budget,
    seed: int,
) -> TeachReport | None:
    """Teach a denoiser's network, if that helps, in bf16 or in fp32: of fp16, gradients need more.

    By a recording whose factors are found, and stay as they are: the half of the network for
    courses learns nothing. None where there is too little to learn from, or it would mislead.
    """
    if len(measured.frames) < config.least_frames:
        return None
    columns = measured.columns.starts
    width = measured.frames.shape[2]
    judged_from = next((c for c in columns if c >= (1 - config.judged) * width), columns[-1])
    pairs = [
        (column, pair)
        for (_, column), pair in image_pairs(measured, denoiser.courses, config)
        if len(pair.seen) > 1
    ]
    # in the units in which images are denoised: LowRank.denoise_images
    scale = image_scale([each for _, pair in pairs for each in pair.scales])
    block = measured.config.block
    taught = [pair.over(scale) for column, pair in pairs if column + block <= judged_from]
    judged = [pair.over(scale) for column, pair in pairs if column >= judged_from]
    if min(len(taught), len(judged)) < config.least_blocks:
        return None
    agreement = _agreement([*taught, *judged])
    if agreement < config.least_agreement:
        logger.info(
            "  nothing to learn from: every other frame has %.2f of the signals of the rest",
            agreement,
        )
        return None
    factor = _strength_in_all_frames(agreement)
    taught, judged = ([pair.stronger(factor) for pair in part] for part in (taught, judged))
    average, steps = _learned(denoiser, taught, config, budget, seed)
    before, after = (_error(each, judged, denoiser.device) for each in (denoiser.net, average))
    report = TeachReport(steps=steps, judged=(before, after))
    if report.has_helped:
        denoiser.take(average.state_dict())
    return report


def _agreement(pairs: Sequence[Pair]) -> float:
    """How much of what the images show the other images show, 1 where it is the same.

    What an image shows is told by what is around a pixel: that knows nothing of the pixel's noise.
    """
    around = np.ones((1, 5, 5))
    around[0, 1:4, 1:4] = 0  # neighbours may have noise in common
    both = np.zeros(2)
    for pair in pairs:
        near = ndimage.convolve(pair.other[1:], around, mode="constant")
        both += (near * pair.other[1:]).sum(), (near * pair.seen[1:]).sum()
    other, seen = both
    return float(other / seen) if seen > 0 else 0.0


def _strength_in_all_frames(agreement: float) -> float:
    """How strong the images are that all frames show, over those that the other frames show.

    Courses follow the noise of the frames that they were found in, so images along them show more
    than is there: of half the frames by what the other half lacks, of all by half of that.
    """
    return max(1.0, (1 + agreement) / (2 * agreement))


def _learned(
    denoiser: FactorDenoiser,
    pairs: Sequence[Pair],
    config: TeachConfig,
    budget: Budget,
    seed: int,
) -> tuple[nn.Module, int]:
    """The moving average of a copy that has learned from pairs; the iterations it took."""
    net, device = denoiser.net, denoiser.device
    learner, average = deepcopy(net).train(), deepcopy(net).requires_grad_(False)
    optimiser = torch.optim.Adam(learner.parameters(), lr=config.learning_rate)
    rng = np.random.default_rng([seed, len(pairs)])
    # what is learned from is noisy anyway; the weights stay in fp32
    precision: Precision = "bf16" if denoiser.precision == "bf16" else "fp32"
    step, progress = 0, Progress("adapting", config.steps, "iterations")
    while step < config.steps and not budget.expired:
        ramp = min(1.0, (step + 1) / config.ramp)
        rate = config.learning_rate * ramp * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        chosen = [pairs[number] for number in rng.integers(len(pairs), size=config.blocks)]
        drawn = [_drawn(pair, 1 + config.images, rng) for pair in chosen]
        seen, other = map(np.stack, zip(*drawn, strict=True))
        with in_precision(device, precision):
            squares = _squares(learner, seen, other, device).flatten(2).mean(2)  # [B,K]
        counts = squares.new_tensor([min(len(pair.seen), squares.shape[1]) for pair in chosen])
        (squares.sum(1) / counts).mean().backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimiser.step()
        follow(average, learner, min(config.average_decay, (step + 1) / (step + 10)))
        step += 1
        progress.update(step)
    return average.eval(), step


def _drawn(pair: Pair, most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Some images of a pair, the mean first, of either sign, turned and mirrored: [K,h,w] each.

    As many as `most`, zeros where there are fewer.
    """
    chosen = np.concatenate([[0], 1 + rng.permutation(len(pair.seen) - 1)[: most - 1]])
    signs = np.where(chosen > 0, rng.choice([-1.0, 1.0], len(chosen)), 1.0)[:, None, None]
    way = Orientation.drawn(rng)
    lacking = (0, most - len(chosen)), (0, 0), (0, 0)

    def drawn(images: np.ndarray) -> np.ndarray:
        return np.pad(way.seen((images[chosen] * signs).astype(np.float32)), lacking)

    return drawn(pair.seen), drawn(pair.other)


def _squares(net: nn.Module, seen: np.ndarray, other: np.ndarray, device: Device) -> Tensor:
    """Squares of what prediction and truth under other noise differ by, both [B,K,h,w]."""
    images, answers = (
        torch.from_numpy(values)[:, None].to(device.torch_device) for values in (seen, other)
    )
    difference: Tensor = net(images)[:, 0] - answers[:, 0]
    return difference.square()


@torch.inference_mode()
def _error(net: nn.Module, pairs: Sequence[Pair], device: Device) -> float:
    squares = [_squares(net, pair.seen[None], pair.other[None], device).flatten() for pair in pairs]
    return float(torch.cat(squares).mean())
