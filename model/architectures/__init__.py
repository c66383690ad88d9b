"""The networks, by name. Axes: B batch, C channels, T frames, H rows, W columns.

Every network maps [B,1,T,H,W] to the same shape for sides that are multiples of `net.stride`,
carries its sizes as `net.config`, and knows nothing of normalisation, padding, devices or masks.
For factor_net T counts factors instead of frames, and courses are images of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from model.architectures.dvt_unet3d import DvtUNet3D, DvtUNet3DConfig
from model.architectures.factor_net import FactorNet, FactorNetConfig
from model.architectures.niddl import Niddl, NiddlConfig
from model.architectures.restormer3d import Restormer3D, Restormer3DConfig
from model.architectures.unet3d import UNet3D, UNet3DConfig, rename_keys
from model.architectures.unet_att import UNetAtt, UNetAttConfig


@dataclass(frozen=True)
class Architecture:
    """A network's class and the class of its sizes."""

    network: type[nn.Module]
    config: type[Any]
    # What makes this network's tensors of those of a checkpoint that its authors published.
    from_published: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None


ARCHITECTURES: dict[str, Architecture] = {
    "restormer3d": Architecture(Restormer3D, Restormer3DConfig),
    "dvt_unet3d": Architecture(DvtUNet3D, DvtUNet3DConfig),
    "unet3d": Architecture(UNet3D, UNet3DConfig, rename_keys),
    "unet_att": Architecture(UNetAtt, UNetAttConfig),
    "niddl": Architecture(Niddl, NiddlConfig),
    "factor_net": Architecture(FactorNet, FactorNetConfig),
}


def stride_of(net: nn.Module) -> tuple[int, int, int]:
    """What the sides [T,H,W] of a network's patches must be multiples of."""
    stride: tuple[int, int, int] = net.stride  # type: ignore[assignment]
    return stride


def recomputed_levels(net: nn.Module) -> int:
    """How many of its finest levels compute their activations twice in training."""
    levels: int = getattr(net, "recomputed_levels", 0)
    return levels


def recompute(net: nn.Module, levels: int | None = None) -> bool:
    """Have so many, or all, do so to save memory; False where that is no more than now."""
    most: int = getattr(net, "num_levels", 0)
    levels = most if levels is None else min(levels, most)
    if levels <= recomputed_levels(net):
        return False
    net.recomputed_levels = levels  # type: ignore[assignment]
    return True


def build(name: str, **overrides: Any) -> nn.Module:
    """A new network with random weights; `overrides` replace fields of its configuration.

    Lists (as JSON has them) are taken for tuples.
    """
    architecture = ARCHITECTURES[name]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    return architecture.network(architecture.config(**values))
