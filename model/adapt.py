"""Adapts a network to one stack: against its temporal median, by Noise2Void, or odd to even."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from model.architectures import recompute, recomputed_levels, stride_of
from model.blindspot import blindspot_loss, draw_mask, draw_sources, fill_masked
from model.budget import Budget
from model.config import AdaptConfig, Stage
from model.device import Device, fitting_batch, is_out_of_memory, release_memory, usable_bytes
from model.judge import MIN_FRAMES, Judge, is_held_out
from model.normalise import IntensityScale, temporal_median
from model.odd_even import odd_even_loss, odd_even_pair
from model.patches import mirrored, own_sides, sample_patches
from model.progress import Progress

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 10  # non-finite losses in a row before the adaptation counts as diverged

# Of a part of a batch that was drawn, weighted so that the parts' sum is the batch's mean.
LossOfPart = Callable[[slice], Tensor]


class AdaptError(RuntimeError):
    """The network cannot be adapted to this stack; the message says why."""


@dataclass(kw_only=True)
class AdaptReport:
    """What an adaptation did."""

    steps_asked: int
    steps: int = 0
    bad_steps: int = 0  # skipped because the loss was not finite
    stopped_by: str = "all steps done"
    losses: list[float] = field(default_factory=list)
    patch: tuple[int, int, int] | None = None  # of the last step
    micro_batch: int = 0
    recomputed_levels: int = 0  # of the network, to save memory
    judged: tuple[float, float] | None = None  # estimated errors, checkpoint and adapted
    is_adapted: bool = True  # else the checkpoint was better


def _learning_rate(stage: Stage, step: int) -> float:
    if stage.final_learning_rate is None:
        return stage.learning_rate
    phase = 0.5 * (1 + math.cos(math.pi * step / max(1, stage.steps)))
    return stage.final_learning_rate + (stage.learning_rate - stage.final_learning_rate) * phase


def _backward(loss: Tensor) -> float:
    """Its value, the gradients left behind; where memory runs out, nothing is."""
    loss.backward()
    return float(loss.detach())


@dataclass
class _Adapter:
    """One adaptation under way."""

    net: nn.Module
    frames: np.ndarray
    scale: IntensityScale
    config: AdaptConfig
    device: Device
    generator: torch.Generator
    micro_batch: int

    def __post_init__(self) -> None:
        self.patch = self.config.patch
        self.median: np.ndarray | None = None  # [1,H,W]
        self.judge: Judge | None = None
        self.error_before = math.nan  # of the checkpoint, by the judge
        self.judging_seconds = 0.0  # that each judgement takes
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=1e-4, weight_decay=self.config.weight_decay
        )

    def _sample(
        self, patch: tuple[int, int, int], images: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """A batch of patches, and the same places of images."""
        batch = self.config.batch
        return sample_patches(self.frames, self.scale, patch, batch, self.generator, images)

    def _share(self, part: slice) -> float:
        return (part.stop - part.start) / self.config.batch

    def _warm_up(self) -> LossOfPart:
        """Distance to the temporal median, which knows nothing of activity."""
        noisy, median = self._sample(self.patch, self.median)
        assert median is not None
        target = self.device.torch_device

        def loss(part: slice) -> Tensor:
            difference = self.net(noisy[part].to(target)) - median[part].to(target)
            return self._share(part) * difference.abs().mean()

        return loss

    def _odd_even(self) -> LossOfPart:
        """Distance of what is made of the odd frames to the even ones."""
        t, h, w = self.patch
        noisy, _ = self._sample((2 * t, h, w))

        def loss(part: slice) -> Tensor:
            odd, even = odd_even_pair(noisy[part].to(self.device.torch_device))
            return self._share(part) * odd_even_loss(self.net(odd), even)

        return loss

    def _blindspot(self) -> LossOfPart:
        """Noise2Void: distance to hidden voxels, at none that the judge keeps for itself."""
        noisy, held_out = self._sample(self.patch, self.judge.held_out if self.judge else None)
        masked, coords = self._hidden(noisy, held_out)
        target = self.device.torch_device

        def loss(part: slice) -> Tensor:
            inside = coords[(coords[:, 0] >= part.start) & (coords[:, 0] < part.stop)]
            share = len(inside) / len(coords)
            inside = inside - torch.tensor([part.start, 0, 0, 0])
            prediction = self.net(masked[part].to(target))
            return share * blindspot_loss(prediction, noisy[part].to(target), inside.to(target))

        return loss

    def _hidden(self, noisy: Tensor, held_out: Tensor | None) -> tuple[Tensor, Tensor]:
        """A batch [B,1,t,h,w] with voxels hidden, mirror images of them too, and which.

        Voxels of the cut of `Judge.held_out` never are.
        """
        mask = self.config.mask
        t, h, w = sides = own_sides(self.frames.shape, self.patch)
        own = noisy[..., :t, :h, :w]
        while True:  # in a tiny frame all that were drawn in a patch may be held out
            coords = draw_mask(tuple(own.shape), mask.cell, self.generator)
            if held_out is not None:
                b, _, row, column = coords.unbind(1)
                coords = coords[~is_held_out(held_out[b, 0, 0, row, column])]
            if len(coords[:, 0].unique()) == len(own):
                break
        sources = draw_sources(coords, sides, mask.radius, self.generator)
        return mirrored(fill_masked(own, coords, sources), self.patch), coords

    def _gradients(self, kind: str) -> float:
        """Draw a batch, leave its gradients in the network, return the loss."""
        draw = {"warm_up": self._warm_up, "odd_even": self._odd_even, "blindspot": self._blindspot}
        loss_of = draw[kind]()
        batch = self.config.batch
        while True:  # until it fits the memory
            self.optimiser.zero_grad(set_to_none=True)
            total = 0.0
            try:
                for start in range(0, batch, self.micro_batch):
                    part = slice(start, min(batch, start + self.micro_batch))
                    total += _backward(loss_of(part))
                return total
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.micro_batch == 1:
                    raise
            release_memory(self.device)
            self.micro_batch //= 2
            logger.warning("  out of memory: %d patches at a time from here on", self.micro_batch)

    def call_judge(self, stages: tuple[Stage, ...], budget: Budget, seed: int) -> bool:
        """Have the checkpoint judged, where Noise2Void is to change it and memory allows.

        False where the stack is too small to tell a better network from a worse one.
        """
        if not self.config.judge_patches:
            return True
        if not any(stage.kind == "blindspot" and stage.steps for stage in stages):
            return True
        if len(self.frames) < MIN_FRAMES:
            return False
        time_before = budget.remaining()
        judge = Judge(self.frames, self.scale, self.config, self.device, seed)
        if not judge.can_tell:
            return False
        try:
            self.error_before = judge.error(self.net)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory(self.device)
            logger.warning("  out of memory: the adaptation will not be judged")
        else:
            self.judge = judge
            if not math.isinf(time_before):
                self.judging_seconds = time_before - budget.remaining()
        return True

    def fit_pairs(self) -> None:
        """Cut patches to the number of odd frames; AdaptError where these are too few."""
        step = stride_of(self.net)[0]
        pairs = len(self.frames) // 2 // step * step
        if not pairs:
            raise AdaptError(
                f"{len(self.frames)} frames are too few to learn the even frames from the odd "
                f"ones: at least {2 * step} are needed; choose another --method, or --steps 0"
            )
        self.patch = (min(self.patch[0], pairs), *self.patch[1:])

    def _take_less_memory(self) -> bool:
        """Compute activations twice, then halve the patch in the plane; False if neither helps."""
        t, h, w = self.patch
        stride = stride_of(self.net)
        if recompute(self.net):
            change = "all activations are computed twice"
        elif min(h, w) // 2 < 16 or (h // 2) % stride[1] or (w // 2) % stride[2]:
            return False
        else:
            self.patch = (t, h // 2, w // 2)
            change = f"patches of {self.patch}"
        self.optimiser.zero_grad(set_to_none=True)
        release_memory(self.device)
        logger.warning("  out of memory: %s from here on", change)
        return True

    def step(self, stage: Stage, number: int) -> float:
        """One iteration; the loss, which is not finite where the step was skipped."""
        for group in self.optimiser.param_groups:
            group["lr"] = _learning_rate(stage, number)
        while True:
            try:
                loss = self._gradients(stage.kind)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._take_less_memory():
                    raise
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.config.gradient_clip)
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            return math.nan
        self.optimiser.step()
        return loss


def fit_training(
    net: nn.Module, device: Device, voxels: int, bytes_per_voxel: Sequence[int], largest: int
) -> int:
    """How many patches of `voxels` voxels to train on at a time: 1 to `largest`.

    Where the free memory does not hold even one, as many levels of the network as it takes compute
    their activations twice: `bytes_per_voxel` are those with none, one, two and so on.
    """
    room, most = usable_bytes(device), len(bytes_per_voxel) - 1
    levels = next((i for i in range(most) if voxels * bytes_per_voxel[i] <= room), most)
    if recompute(net, levels):
        logger.info("  little memory: activations of %d levels are computed twice", levels)
    return fitting_batch(device, voxels, bytes_per_voxel[levels], largest)


def follow(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move a network's moving average on, batch norm's statistics with the weights."""
    own, other = average.state_dict(), net.state_dict()
    for name, value in own.items():
        if value.is_floating_point():
            value.lerp_(other[name], 1 - decay)
        else:
            value.copy_(other[name])


def adapt(
    net: nn.Module,
    frames: np.ndarray,
    scale: IntensityScale,
    *,
    stages: tuple[Stage, ...],
    config: AdaptConfig,
    device: Device,
    budget: Budget,
    seed: int,
    micro_batch: int,
    is_pretrained: bool,
) -> AdaptReport:
    """Train `net` in place on one noisy stack [T,H,W]; only the stack's own voxels are used.

    Stops early when the budget is spent. A pretrained network ends with the average of its weights
    on the way: at a constant rate the last ones are full of the last patches' noise. Where by the
    judge's estimate that is no better than the weights it came with, or training diverged, it gets
    those back, which the report says.

    Raises AdaptError where a network without pretraining diverges or learns nothing in time.
    """
    report = AdaptReport(steps_asked=sum(stage.steps for stage in stages), micro_batch=micro_batch)
    pretrained = copy.deepcopy(net.state_dict()) if is_pretrained else None
    average = copy.deepcopy(net) if is_pretrained else None
    adapter = _Adapter(
        net, frames, scale, config, device, torch.Generator().manual_seed(seed), micro_batch
    )
    if is_pretrained and not budget.expired and not adapter.call_judge(stages, budget, seed):
        report.stopped_by = "the stack is too small to tell whether it helps"
        stages = ()
    progress = Progress("adapting", report.steps_asked, "iterations")
    bad_in_a_row = 0
    net.train()
    for stage in stages:
        if stage.kind == "odd_even" and stage.steps:
            adapter.fit_pairs()
        if stage.kind == "warm_up" and stage.steps and not budget.expired:
            adapter.median = temporal_median(frames)[None]
        for number in range(stage.steps):
            # what is left must do for the last judgement
            if budget.remaining() <= adapter.judging_seconds:
                report.stopped_by = "time limit"
                break
            loss = adapter.step(stage, number)
            report.steps += 1
            if math.isfinite(loss):
                bad_in_a_row = 0
                report.losses.append(loss)
                if average:
                    young = len(report.losses) / (len(report.losses) + 9)
                    follow(average, net, min(config.average_decay, young))
            else:
                bad_in_a_row += 1
                report.bad_steps += 1
            if bad_in_a_row == MAX_BAD_STEPS:
                report.stopped_by = "divergence"
                break
            progress.update(report.steps, f"loss {loss:.4g}")
        if report.stopped_by != "all steps done":
            break
    net.eval()
    report.patch, report.micro_batch = adapter.patch, adapter.micro_batch
    report.recomputed_levels = recomputed_levels(net)
    if report.stopped_by == "divergence":
        if pretrained is None:
            raise AdaptError(
                f"training diverged after {report.steps} iterations and there is no checkpoint to "
                f"go back to; try another --seed or provide a checkpoint"
            )
        net.load_state_dict(pretrained)
        report.is_adapted = False
        logger.warning("  adaptation diverged; back to the checkpoint as it is")
    elif average and pretrained and report.losses:
        net.load_state_dict(average.state_dict())
        if adapter.judge:
            report.judged = adapter.error_before, adapter.judge.error(net)
            report.is_adapted = report.judged[1] < report.judged[0]
        if not report.is_adapted:
            net.load_state_dict(pretrained)
    if not is_pretrained and not report.losses:
        raise AdaptError(
            "without a checkpoint the network knows nothing, and it had no iteration to learn in "
            f"({report.stopped_by}); provide a checkpoint, or raise --steps and --time-limit"
        )
    return report
