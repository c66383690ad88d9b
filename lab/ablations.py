"""What parts of UNet-Att and of the DVT U-Net do:  python -m lab.ablations [unet_att] [dvt_unet3d].

unet_att: its variants, all trained alike on odd against even simulated frames, scored on the
recordings by which checkpoints are picked. dvt_unet3d: the terms of its bottleneck after learning
one simulated recording from scratch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import torch

from lab.noise import noisy_recording
from lab.recipes import RECIPES
from lab.recordings import Simulator, method_scale
from lab.simulate import random_movie
from lab.trainer import Trainer
from lab.validation import ValidationSet
from model.adapt import adapt
from model.architectures import build
from model.architectures.unet_att import Variant
from model.budget import Budget
from model.config import METHODS
from model.device import pick_device, place

CPU = pick_device("cpu")
SIMULATED_SHAPE = (128, 96, 96)
LEVEL = 2
DVT_PATCH = (16, 32, 32)  # smaller than the method's, for time
SEED = 2**41  # of the recording that the DVT U-Net learns


def unet_att(steps: int) -> list[str]:
    """The article's order by PSNR is unet_att, unet_pp, without_da, attention_unet."""
    recipe = replace(
        RECIPES["unet_att"], curriculum=((steps, (32, 32, 32)),), batch=2, learning_rate=5e-4
    )
    simulator = Simulator(
        method="unet_att", seed=recipe.seed, device=torch.device("cpu"), shape=SIMULATED_SHAPE
    )
    cases = ValidationSet("unet_att")
    lines = []
    for variant in get_args(Variant):
        trainer = Trainer("unet_att", recipe, [(simulator, 1.0)], CPU, {"variant": variant})
        while trainer.step < recipe.steps:
            trainer.advance()
        scores = cases.score(trainer.average, CPU)
        levels = " / ".join(f"{score:.2f}" for score in scores.values())
        lines.append(f"{variant:<15} stSNR {levels} dB, mean {np.mean([*scores.values()]):.2f}")
    return lines


def dvt_unet3d(steps: int) -> list[str]:
    """What the bottleneck's features consist of: y = c + G + r, and the block's f in place of c."""
    method = METHODS["dvt_unet3d"]
    rng = np.random.default_rng(SEED)
    noisy = noisy_recording(random_movie(rng, SIMULATED_SHAPE).numpy(), LEVEL, seed=0)
    scale = method_scale("dvt_unet3d", noisy)
    torch.manual_seed(0)
    net = place(build("dvt_unet3d"), CPU)
    warm_up, blindspot = method.scratch_stages
    stages = (replace(warm_up, steps=steps // 11), replace(blindspot, steps=steps - steps // 11))
    adapt(
        net, noisy, scale, stages=stages, config=replace(method.adapt, patch=DVT_PATCH), device=CPU,
        budget=Budget(float("inf")), seed=0, micro_batch=method.adapt.batch, is_pretrained=False,
    )  # fmt: skip
    t, h, w = method.tile.size
    frames = scale.apply(noisy[:t])
    corners = [(0, 0), (0, 32), (32, 0), (32, 32)]
    windows = np.stack([frames[None, :, y : y + h, x : x + w] for y, x in corners])
    with torch.inference_mode():
        terms = net(torch.from_numpy(windows), return_terms=True)

    def size(values: torch.Tensor) -> float:
        return float(values.square().mean().sqrt())

    whole = size(terms.y)
    # The field is the same in all windows, so it could at best be what they have in common.
    common = terms.y.mean(dim=(0, 2), keepdim=True)
    field = terms.g.detach()[:1, :, :1]
    alike = (common * field).sum() / (common.norm() * field.norm())
    shares = {"c, the content": terms.c, "G, the artifact field": terms.g, "r, the rest": terms.r}
    return [
        *(f"{name}: {100 * size(term) / whole:.2f} % of y" for name, term in shares.items()),
        f"f - c, what the block adds: {100 * size(terms.f - terms.c) / whole:.2f} % of y",
        f"G and what all windows of y have in common: cosine {float(alike):.3f}",
        f"y - (c + G + r): {size(terms.y - terms.c - terms.g - terms.r) / whole:.1e} of y",
    ]


ABLATIONS = {f.__name__: f for f in (unet_att, dvt_unet3d)}


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(ABLATIONS))
    parser.add_argument("--steps", type=int, default=300, help="iterations of each training")
    args = parser.parse_args(argv)
    for name in args.methods or ABLATIONS:
        if name not in ABLATIONS:
            parser.error(f"unknown method {name!r}; known: {', '.join(ABLATIONS)}")
        measure = ABLATIONS[name]
        print(f"{name}, {args.steps} iterations: {measure.__doc__}", flush=True)
        for line in measure(args.steps):
            print(f"  {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
