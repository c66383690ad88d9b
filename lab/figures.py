"""Figures of the laboratory as PNG: a training curve, and all results of one case side by side.

Draws what it is given and computes no score. matplotlib is loaded by the first figure only, so a
training on a machine without it fails at its picture and not at its start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lab.events import place_traces

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL_COLOURS = {1: "tab:blue", 2: "tab:orange", 3: "tab:red"}
DOTS_PER_INCH = 110
COLUMN_INCHES = 2.0
SATURATED_FRAMES = 3.0, 5.0  # deviations of the noise at which a residual and its mean saturate


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


# ---- A training curve ---------------------------------------------------------------------------


def _draw_column(axes: Axes, rows: Sequence[dict[str, float]], name: str, colour: str) -> None:
    """One column over "step"; rows without a finite number in it are left out."""
    points = [(row["step"], row.get(name, math.nan)) for row in rows]
    points = [point for point in points if math.isfinite(point[1])]
    marker = "." if len(points) <= 50 else ""  # one point alone has no line
    steps, values = [step for step, _ in points], [value for _, value in points]
    axes.plot(steps, values, color=colour, marker=marker, linewidth=1.2, label=name)


def curve_figure(rows: list[dict[str, float]], path: Path) -> None:
    """Draw a training: "stsnr_1", "stsnr_2", "stsnr_3" [dB] and below "loss", over "step"."""
    figure = _new_figure(7.0, 6.0)
    scores, losses = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for level, colour in LEVEL_COLOURS.items():
        _draw_column(scores, rows, f"stsnr_{level}", colour)
        scores.lines[-1].set_label(f"noise level {level}")
    _draw_column(losses, rows, "loss", "0.2")
    scores.set_ylabel("stSNR [dB]")
    scores.legend(loc="lower right")
    losses.set(xlabel="iteration", ylabel="loss")
    for axes in (scores, losses):
        axes.grid(alpha=0.3)
    _save(figure, path)


# ---- Results of one case ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class View:
    """What a figure shows of one stack, small enough to keep while the next one is judged."""

    name: str
    frame: np.ndarray  # [H,W], of one moment
    mean: np.ndarray  # [H,W], over time
    traces: np.ndarray  # [N,T], at the chosen places
    is_traced: bool = True

    @classmethod
    def of(
        cls, name: str, stack: np.ndarray, moment: int, places: np.ndarray, *, is_traced: bool
    ) -> View:
        """Frame `moment` of a stack [T,H,W], its mean over time and its traces at places [N,2]."""
        return cls(
            name=name,
            frame=np.asarray(stack[moment], np.float64),
            mean=np.asarray(stack.mean(axis=0, dtype=np.float64)),
            traces=place_traces(stack, places),
            is_traced=is_traced,
        )


def most_active_moment(clean: np.ndarray) -> int:
    """The frame of a clean stack [T,H,W] that differs most from the mean over time."""
    mean = clean.mean(axis=0, dtype=np.float64)
    return int(np.argmax([np.square(frame - mean).mean() for frame in clean]))


def _draw_images(axes: np.ndarray, noisy: View, views: Sequence[View]) -> None:
    """Frame, residual and mean residual of every view, one column [3] of axes [3,C] each.

    One scale per row. The first view is the clean one, whose residual is the noise itself.
    """
    low, high = np.percentile(views[0].frame, [1.0, 99.8])
    noise = [(noisy.frame - views[0].frame).std(), (noisy.mean - views[0].mean).std()]
    ends = [max(n * s, 1e-9) for n, s in zip(noise, SATURATED_FRAMES, strict=True)]
    for column, view in zip(axes.T, views, strict=True):
        column[0].imshow(view.frame, cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
        column[1].imshow(noisy.frame - view.frame, cmap="RdBu_r", vmin=-ends[0], vmax=ends[0])
        column[2].imshow(noisy.mean - view.mean, cmap="RdBu_r", vmin=-ends[1], vmax=ends[1])
        column[0].set_title(view.name, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, text in zip(
        axes[:, 0], ("frame", "noisy - result", "its mean over time"), strict=True
    ):
        axis.set_ylabel(text, fontsize=9)


def _draw_traces(axes: Axes, place: int, clean: View, noisy: View, shown: Sequence[View]) -> None:
    """One place's traces; the noisy one may leave the axes, for it would flatten the others."""
    axes.plot(noisy.traces[place], color="0.85", linewidth=0.6, label=noisy.name, zorder=0)
    for view in shown:
        axes.plot(view.traces[place], linewidth=0.9, label=view.name)
    axes.plot(clean.traces[place], color="black", linewidth=1.1, label=clean.name, zorder=1.5)
    values = np.concatenate([view.traces[place] for view in (clean, *shown)])
    margin = 0.08 * max(float(np.ptp(values)), 1e-9)
    axes.set_ylim(values.min() - margin, values.max() + margin)
    axes.margins(x=0)
    axes.tick_params(labelsize=8)


def case_figure(title: str, clean: View, noisy: View, results: Sequence[View], path: Path) -> None:
    """Draw every result of one case: a column of images each, and their traces place by place."""
    views = [clean, noisy, *results]
    num_places = len(clean.traces)
    figure = _new_figure(max(COLUMN_INCHES * len(views), 8.0), 7.0 + 1.3 * num_places)
    figure.suptitle(title, fontsize=11)
    heights = [6.5, 1.3 * max(num_places, 1)]
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_images(upper.subplots(3, len(views), squeeze=False), noisy, views)
    if num_places:
        shown = [view for view in results if view.is_traced] or list(results)
        rows = lower.subplots(num_places, 1, sharex=True, squeeze=False)[:, 0]
        for place, axes in enumerate(rows):
            _draw_traces(axes, place, clean, noisy, shown)
        rows[0].legend(loc="upper right", fontsize=7, ncols=3)
        rows[-1].set_xlabel("frame; counts at the most active places, 3x3 voxels each", fontsize=9)
    _save(figure, path)
