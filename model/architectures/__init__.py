"""The networks, by name. Axes: B batch, C channels, T frames, H rows, W columns.

Every network maps [B,1,T,H,W] to the same shape for sides that are multiples of `net.stride`,
carries its sizes as `net.config`, and knows nothing of normalisation, padding, devices or masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from model.architectures.restormer3d import Restormer3D, Restormer3DConfig


@dataclass(frozen=True)
class Architecture:
    """A network's class and the class of its sizes."""

    network: type[nn.Module]
    config: type[Any]


ARCHITECTURES: dict[str, Architecture] = {
    "restormer3d": Architecture(Restormer3D, Restormer3DConfig),
}


def build(name: str, **overrides: Any) -> nn.Module:
    """A new network with random weights; `overrides` replace fields of its configuration.

    Lists (as JSON has them) are taken for tuples.
    """
    architecture = ARCHITECTURES[name]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    return architecture.network(architecture.config(**values))
