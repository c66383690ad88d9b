"""UNet-Att: a three-dimensional UNet++ whose skip connections pass attention gates.

Source: UNet-Att (Lu, Ying et al., 2024), https://github.com/ZjjDh/UNet-Att, written anew from a
description of it; made for odd-even training (`model/odd_even.py`). Notation: X[i][j] is the node
of level i (i halvings of every side) and column j; column 0 is the encoder. The network does not
add its input to its output, and no activation follows the last convolution.
Our deviation: a patch side of 8 leaves 2 voxels on the third level, too few for the gate's kernel
of 3, and the published network fails there. We repeat the last voxel; sides from 16 up are
computed exactly as published.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Variant = Literal["unet_att", "unet_pp", "attention_unet", "without_da"]

NUM_LEVELS = 4
GATE_KERNEL = 3


@dataclass(frozen=True, kw_only=True)
class UNetAttConfig:
    """Sizes of the network; the defaults are the 1,615,783 parameters of the published one.

    The other variants are the article's ablations: `unet_pp` has no gates, `attention_unet` no
    nested nodes, and `without_da` gates the encoder's skips only.
    """

    width: int = 16  # channels of the first level; every level below has twice as many
    variant: Variant = "unet_att"

    @classmethod
    def tiny(cls) -> UNetAttConfig:
        """A network of 101,335 parameters for tests."""
        return replace(cls(), width=4)

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built, naming the field."""
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width {self.width} must be even and at least 2")
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant {self.variant!r} is none of {get_args(Variant)}")


class ConvPair(nn.Sequential):
    """Two 3x3x3 convolutions with bias, a ReLU after each, no norm: [B,C,T,H,W] to [B,O,T,H,W]."""

    def __init__(self, in_channels: int, middle: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv3d(in_channels, middle, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv3d(middle, out_channels, 3, padding=1),
            nn.ReLU(inplace=True),
        )


class EncoderBlock(ConvPair):
    """Widens [B,C,T,H,W] to [B,O,T,H,W], half of the way in the first convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, max(in_channels, out_channels // 2), out_channels)


class DecoderBlock(ConvPair):
    """Merges concatenated [B,C,T,H,W] to [B,O,T,H,W], all of the way in the first convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, out_channels)


def resize(x: Tensor, sides: torch.Size) -> Tensor:
    """Trilinear resampling of [B,C,T,H,W] to [B,C,*sides], voxel edges aligned."""
    return functional.interpolate(x, sides, mode="trilinear", align_corners=False)


class Gate(nn.Module):
    """Scales each voxel of a skip connection by 0..1, as it and a coarser node suggest."""

    def __init__(self, channels: int, coarse_channels: int) -> None:
        super().__init__()
        # Padding 0 as published: n voxels become (n - 3) // 2 + 1, not n / 2.
        self.shrink = nn.Conv3d(channels, coarse_channels, GATE_KERNEL, stride=2, bias=False)
        self.score = nn.Conv3d(coarse_channels, 1, 1)
        self.project = nn.Conv3d(channels, channels, 1)
        self.norm = nn.BatchNorm3d(channels)

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        """Gate skip [B,C,T,H,W] by coarse [B,D,t,h,w], of any size.

        A side of skip below 3 is filled up to 3 with its last voxel, for the kernel alone.
        """
        t, h, w = (max(0, GATE_KERNEL - side) for side in skip.shape[2:])
        padded = functional.pad(skip, (0, w, 0, h, 0, t), "replicate") if t + h + w else skip
        shrunk = self.shrink(padded)  # [B,D,t',h',w']
        seen = functional.relu(shrunk + resize(coarse, shrunk.shape[2:]))
        attention = resize(self.score(seen).sigmoid(), skip.shape[2:])  # [B,1,T,H,W]
        return self.norm(self.project(attention * skip))


class UNetAtt(nn.Module):
    """Maps a normalised noisy patch [B,1,T,H,W] to a clean one of the same shape.

    Works for every multiple of 8 voxels per side, 8 itself included (see the module's docstring).
    The gates hold batch norms: switch to `eval()` before use, else samples influence each other.
    """

    def __init__(self, config: UNetAttConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * 2**level for level in range(NUM_LEVELS)]
        bottom = NUM_LEVELS - 1
        self.encoders = nn.ModuleList(
            EncoderBlock(i, o) for i, o in zip([1, *widths[:-1]], widths, strict=True)
        )
        # (level, column) of every decoder node, each after the nodes it needs.
        self.nodes = [(i, j) for j in range(1, NUM_LEVELS) for i in range(NUM_LEVELS - j)]
        if config.variant == "attention_unet":  # a plain U-Net: one node per level
            self.nodes = [(i, bottom - i) for i in reversed(range(bottom))]
        self.decoders = nn.ModuleDict()
        self.gates = nn.ModuleDict()  # keyed by the first node that uses the gate
        for i, j in self.nodes:
            num_skips = 1 if config.variant == "attention_unet" else j
            in_channels = num_skips * widths[i] + widths[i + 1]
            self.decoders[f"{i}_{j}"] = DecoderBlock(in_channels, widths[i])
            if config.variant != "unet_pp":
                driver = bottom if config.variant == "attention_unet" else i + 1
                self.gates[f"{i}_{j}"] = Gate(widths[i], widths[driver])
        self.out = nn.Conv3d(config.width, 1, 1)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Sides [T,H,W] of a patch must be multiples of this."""
        side = 2 ** (NUM_LEVELS - 1)
        return side, side, side

    def _upsample(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] to [B,C,2T,2H,2W]; each variant as its published code does it."""
        if self.config.variant in ("attention_unet", "without_da"):
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")
        corners = self.config.variant == "unet_att"
        return functional.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=corners)

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise [B,1,T,H,W]."""
        sides = tuple(noisy.shape[2:])
        if any(side % step for side, step in zip(sides, self.stride, strict=True)):
            raise ValueError(f"patch {sides} is no multiple of {self.stride}")
        x = {(0, 0): self.encoders[0](noisy)}  # X[i][j], [B,width*2^i,T/2^i,H/2^i,W/2^i]
        for i in range(1, NUM_LEVELS):
            x[i, 0] = self.encoders[i](functional.max_pool3d(x[i - 1, 0], 2))
        gated: dict[tuple[int, int], Tensor] = {}
        for i, j in self.nodes:
            below = x[i + 1, j - 1]
            match self.config.variant:
                case "unet_att":  # every skip gated, once, by the node below it
                    gated[i, j - 1] = self.gates[f"{i}_{j}"](x[i, j - 1], below)
                    skips = [gated[i, k] for k in range(j)]
                case "unet_pp":
                    skips = [x[i, k] for k in range(j)]
                case "without_da":  # the encoder's skip gated anew for every node
                    first = self.gates[f"{i}_{j}"](x[i, 0], below)
                    skips = [first, *(x[i, k] for k in range(1, j))]
                case "attention_unet":  # driven by the bottleneck on every level
                    skips = [self.gates[f"{i}_{j}"](x[i, 0], x[NUM_LEVELS - 1, 0])]
            x[i, j] = self.decoders[f"{i}_{j}"](torch.cat([*skips, self._upsample(below)], dim=1))
        depths = [self.out(x[0, j]) for i, j in self.nodes if i == 0]  # each [B,1,T,H,W]
        return torch.stack(depths).mean(dim=0)
