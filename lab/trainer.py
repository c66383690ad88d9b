"""One pretraining under way: the network, its moving average, its optimiser, and an iteration.

Noise2Void (Krull et al., CVPR 2019, https://arxiv.org/abs/1811.10980), with Noise2Noise's loss
(Lehtinen et al., ICML 2018, https://arxiv.org/abs/1803.04189) beside it where a recording can be
had twice; odd frames against even ones; or pairs of images. On several processes of
torch.distributed it computes what one would, but for batch norm, which sees each one's own part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from lab.recipes import LOSSES, Recipe, Sides
from lab.recordings import Ask, Example, Pool, Source
from model.adapt import fit_training, follow
from model.architectures import build
from model.blindspot import blindspot_loss, draw_mask, draw_sources, fill_masked
from model.config import METHODS
from model.device import Device, place
from model.odd_even import odd_even_loss, odd_even_pair
from model.patches import mirrored

MAX_BAD_STEPS = 10  # losses in a row that are not finite
LEAST_ERROR = 0.03  # added to a squared error before its logarithm, in variances of the noise


class TrainError(RuntimeError):
    """Training cannot go on; the message says why."""


# ---- One iteration ----------------------------------------------------------------------------


def masked_input(
    examples: Sequence[Example], seeds: Sequence[int], recipe: Recipe
) -> tuple[Tensor, list[Tensor]]:
    """The batch [B,1,t,h,w] with hidden voxels filled in, and each example's hidden voxels."""
    inputs, hidden = [], []
    for example, seed in zip(examples, seeds, strict=True):
        sides: Sides = tuple(example.noisy.shape[1:])  # type: ignore[assignment]
        t, h, w = own = example.own or sides
        noisy = example.noisy[None, :, :t, :h, :w]
        generator = torch.Generator().manual_seed(seed)
        coords = draw_mask(tuple(noisy.shape), recipe.mask.cell, generator)
        sources = draw_sources(coords, own, recipe.mask.radius, generator)
        masked = fill_masked(noisy, coords.to(noisy.device), sources.to(noisy.device))
        inputs.append(mirrored(masked, sides))  # or a mirror image would show what is hidden
        hidden.append(coords)
    return torch.cat(inputs), hidden


def example_loss(
    prediction: Tensor, example: Example, coords: Tensor, hidden_weight: float
) -> Tensor:
    """Noise2Void's loss of one example [1,1,t,h,w], and Noise2Noise's where there is a target.

    With a target, both: the mean over all voxels, and `hidden_weight` times that over the hidden
    ones.
    """
    if example.target is None:
        return blindspot_loss(prediction, example.noisy[None].to(prediction.device), coords)
    target = example.target[None].to(prediction.device)
    everywhere = (prediction - target).square().mean()
    return everywhere + hidden_weight * blindspot_loss(prediction, target, coords)


def per_example(error: Tensor) -> Tensor:
    """Mean [B] over the voxels of [B,1,t,h,w]."""
    return error.mean(dim=(1, 2, 3, 4))


def _stacked(parts: Sequence[Tensor | None]) -> Tensor:
    """[B,...] of what every example was asked for."""
    return torch.stack([part for part in parts if part is not None])


# ---- A run of them ---------------------------------------------------------------------------


class Trainer:
    """A network with its moving average and optimiser, which can be put down and taken up."""

    def __init__(
        self,
        method: str,
        recipe: Recipe,
        sources: Sequence[tuple[Source, float]],
        device: Device,
        network_config: Mapping[str, Any] | None = None,
    ) -> None:
        """`network_config` replaces sizes of the method's network."""
        self.method, self.recipe, self.device = method, recipe, device
        self.network_config = {**METHODS[method].network_config, **(network_config or {})}
        self.rank, self.world = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        if recipe.batch % self.world:
            raise TrainError(f"a batch of {recipe.batch} does not divide by {self.world} ranks")
        if recipe.loss not in LOSSES[recipe.objective]:
            wanted = ", ".join(LOSSES[recipe.objective])
            raise TrainError(f"loss {recipe.loss}: objective {recipe.objective} takes {wanted}")
        slots = range(self.rank, recipe.batch, self.world)
        self.pools = [Pool(slot, recipe.seed, sources) for slot in slots]
        torch.manual_seed(recipe.seed)
        self.net = place(self._fresh(), device)
        if recipe.frozen_norm:
            for module in self.net.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        self.average = place(self._fresh(), device).requires_grad_(False)
        self.average.load_state_dict(self.net.state_dict())
        # images teach one half of a network for factors, courses the other
        has_halves = METHODS[method].low_rank is not None
        self.module = (
            DistributedDataParallel(self.net, find_unused_parameters=has_halves)
            if self.world > 1
            else self.net
        )
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.step = 0
        self.num_bad = self.bad_in_a_row = 0

    def _fresh(self) -> nn.Module:
        return build(METHODS[self.method].network, **self.network_config)

    # ---- Putting down and taking up

    def start_from(self, net: nn.Module) -> None:
        """Begin with another network's weights instead of random ones.

        Raises TrainError where its sizes are others.
        """
        for own in (self.net, self.average):
            try:
                own.load_state_dict(net.state_dict())
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise TrainError(
                    f"--start-from: weights of another size ({reason[:200]}); leave out --network, "
                    "or give what they were trained with"
                ) from error

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """All tensors that the next iteration depends on; each part fits a small file."""
        parts: dict[str, dict[str, Tensor]] = {
            "weights": self.net.state_dict(),
            "average": self.average.state_dict(),
        }
        for number, slots in self.optimiser.state_dict()["state"].items():
            for slot, value in slots.items():
                parts.setdefault(f"adam-{slot}", {})[str(number)] = value
        return parts

    def state(self) -> dict[str, Any]:
        """What else it depends on. All that is random follows from the seed and the iteration."""
        return {"num_bad": self.num_bad, "bad_in_a_row": self.bad_in_a_row}

    def restore(self, parts: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Go back to what `parts` and `state` were."""
        self.net.load_state_dict(parts["weights"])
        self.average.load_state_dict(parts["average"])
        slots: dict[int, dict[str, Tensor]] = {}
        for part, values in parts.items():
            if part.startswith("adam-"):
                for number, value in values.items():
                    slots.setdefault(int(number), {})[part.removeprefix("adam-")] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": slots})
        self.step = state["step"]
        self.num_bad, self.bad_in_a_row = state["num_bad"], state["bad_in_a_row"]

    # ---- Going on

    def _predict(self, noisy: Tensor) -> Tensor:
        """The network's answer to [B,1,t,h,w], float32."""
        target = self.device.torch_device
        is_half = self.recipe.precision == "bf16"
        with torch.autocast(target.type, torch.bfloat16, enabled=is_half):
            return self.module(noisy.to(target)).float()

    def _loss(self, examples: Sequence[Example], seeds: Sequence[int]) -> Tensor:
        """Sum of the losses of examples that are on the device."""
        recipe, target = self.recipe, self.device.torch_device
        noisy = torch.stack([example.noisy for example in examples])  # [B,1,t,h,w]
        if self.step < recipe.warm_up:
            median = _stacked([example.median for example in examples])
            return per_example((self._predict(noisy) - median).abs()).sum()
        if recipe.objective == "odd_even":
            odd, _ = odd_even_pair(noisy)
            answers = [e.noisy if e.target is None else e.target for e in examples]
            _, even = odd_even_pair(torch.stack(answers))
            each = map(odd_even_loss, self._predict(odd).split(1), even.split(1))
            return self._sum(torch.stack([*each]))
        if recipe.objective == "pairs":
            error = self._predict(noisy) - _stacked([e.target for e in examples])
            errors = per_example(error.abs() if recipe.loss == "l1" else error.square())
            return self._sum(errors, LEAST_ERROR)
        masked, hidden = masked_input(examples, seeds, recipe)
        prediction = self._predict(masked)
        losses = [
            example_loss(prediction[i : i + 1], example, coords.to(target), recipe.hidden_weight)
            for i, (example, coords) in enumerate(zip(examples, hidden, strict=True))
        ]
        return self._sum(torch.stack(losses))

    def _sum(self, errors: Tensor, least: float = 0.0) -> Tensor:
        """Of the errors of examples, as the recipe counts them; `least` is added to logarithms'."""
        return (errors + least).log().sum() if self.recipe.loss == "log" else errors.sum()

    def _gradients(self) -> Tensor:
        """Leave the whole batch's gradients in the network; its mean loss over all ranks."""
        recipe = self.recipe
        t, h, w = recipe.patch_at(self.step)
        has_target = recipe.objective != "noise2void"
        ask = Ask(
            patch=(2 * t if recipe.objective == "odd_even" else t, h, w),
            target_draws=recipe.target_draws if has_target else 0,
            median=self.step < recipe.warm_up,
        )
        target = self.device.torch_device
        drawn = [(e.on(target), seed) for e, seed in (p.draw(self.step, ask) for p in self.pools)]
        per_voxel = METHODS[self.method].training_bytes_per_voxel
        voxels = math.prod(ask.patch)
        at_once = fit_training(self.net, self.device, voxels, per_voxel, len(drawn))
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device.torch_device)
        for start in range(0, len(drawn), at_once):
            part = drawn[start : start + at_once]
            is_last = start + at_once >= len(drawn)
            # ranks exchange gradients once, with the last part's
            waits = self.world > 1 and not is_last
            with self.module.no_sync() if waits else nullcontext():  # type: ignore[operator]
                loss = self._loss([e for e, _ in part], [s for _, s in part]) / len(drawn)
                loss.backward()
            total += loss.detach()
        if self.world > 1:
            dist.all_reduce(total)
        return total / self.world

    def advance(self) -> float:
        """One iteration; its loss, which is not finite where the step was skipped.

        Raises TrainError after ten such in a row.
        """
        recipe = self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate_at(self.step)
        loss = float(self._gradients())
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), recipe.gradient_clip)
        is_finite = math.isfinite(loss) and math.isfinite(float(norm))
        if is_finite:
            self.optimiser.step()
            follow(self.average, self.net, recipe.average_decay_at(self.step))
        self.step += 1
        self.num_bad += not is_finite
        self.bad_in_a_row = 0 if is_finite else self.bad_in_a_row + 1
        if self.bad_in_a_row == MAX_BAD_STEPS:
            raise TrainError(
                f"the loss was not finite {MAX_BAD_STEPS} times in a row up to iteration "
                f"{self.step}; the last good state stays; try a lower --learning-rate"
            )
        return loss if is_finite else math.nan
