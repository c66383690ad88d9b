"""NIDDL: two small U-shaped 2D networks of 32 channels everywhere, for paired training.

Source: Chaudhary et al., Nature Communications 13:5165 (2022),
https://doi.org/10.1038/s41467-022-32886-w, and the sizes of its published files.
Where article and published code differ we follow the code: `unet_fixed` has four levels
and no residual, `hourglass_wres` three levels and residual blocks; only so do both have the
published file sizes. The last layer is linear: a final ReLU can die on dark data.
Our deviations: transposed convolutions align as PyTorch's do, one pixel off TensorFlow's. A stack
[T,H,W] takes the place of a stack of planes: frames are denoised alone (`2d`) or with their
neighbours in time (`2.5d`, `3d`), and of the several planes of `3d` the centre one is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class NiddlConfig:
    """Choice and sizes of the network; the defaults have 305,793 parameters."""

    arch: Literal["unet_fixed", "hourglass_wres"] = "hourglass_wres"
    mode: Literal["2d", "2.5d", "3d"] = "2d"  # planes in -> out: 1 -> 1, depth -> 1, depth -> depth
    depth: int = 1  # planes the network sees at once, the centre one being denoised
    width: int = 32

    @classmethod
    def tiny(cls) -> NiddlConfig:
        """A network of 19,425 parameters for tests."""
        return replace(cls(), width=8)

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built, naming the field."""
        if self.arch not in ("unet_fixed", "hourglass_wres"):
            raise ValueError(f"arch {self.arch!r} must be unet_fixed or hourglass_wres")
        if self.mode not in ("2d", "2.5d", "3d"):
            raise ValueError(f"mode {self.mode!r} must be 2d, 2.5d or 3d")
        if self.depth < 1 or self.depth % 2 == 0:
            raise ValueError(f"depth {self.depth} must be odd: it needs a centre plane")
        if self.mode == "2d" and self.depth != 1:
            raise ValueError(f"depth {self.depth} must be 1 in mode 2d")
        if self.width < 1:
            raise ValueError(f"width {self.width} must be at least 1")


class ConvBlock(nn.Sequential):
    """Three times a 3x3 convolution and ReLU: [N,I,H,W] to [N,O,H,W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels, out_channels):
            layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU()]
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """A block with its input added after the last ReLU, so that the sum may be of any sign."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = ConvBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] to the same."""
        return x + self.block(x)


class Up(nn.Sequential):
    """Twice the rows and columns of [N,C,H,W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
        )


class PlaneUNet(nn.Module):
    """A 2D U-Net of any widths, from the finest level down; skips are concatenated."""

    def __init__(self, planes_in: int, planes_out: int, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = list(pairwise(widths))  # (finer, coarser)
        self.embed = ConvBlock(planes_in, widths[0])
        self.downs = nn.ModuleList(ConvBlock(finer, coarser) for finer, coarser in pairs)
        self.ups = nn.ModuleList(Up(coarser) for _, coarser in reversed(pairs))
        self.decoders = nn.ModuleList(
            ConvBlock(coarser + finer, finer) for finer, coarser in reversed(pairs)
        )
        self.out = nn.Conv2d(widths[0], planes_out, 3, padding=1)
        # He's start: with the library's own the deepest level gets gradients near 1e-9 and stays.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @property
    def stride(self) -> int:
        """Rows and columns must be multiples of this."""
        return 2 ** len(self.downs)

    def forward(self, planes: Tensor) -> Tensor:
        """[N,planes_in,H,W] to [N,planes_out,H,W]."""
        x = self.embed(planes)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(functional.max_pool2d(x, 2))
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(torch.cat([up(x), skips.pop()], dim=1))
        return self.out(x)


class UNetFixed(PlaneUNet):
    """The U-Net with the same width at all of its five levels."""

    def __init__(self, planes_in: int, planes_out: int, width: int) -> None:
        super().__init__(planes_in, planes_out, (width,) * 5)


class HourglassWres(nn.Module):
    """Four levels of residual blocks; skips pass a block of their own and are added."""

    def __init__(self, planes_in: int, planes_out: int, width: int) -> None:
        super().__init__()

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(width) for _ in range(3))

        self.embed = nn.Conv2d(planes_in, width, 3, padding=1)
        self.encoders, self.sides = blocks(), blocks()  # from the finest level down
        self.bottom = ResidualBlock(width)
        self.ups = nn.ModuleList(Up(width) for _ in range(3))
        self.decoders = blocks()  # from the coarsest level up
        self.out = nn.Conv2d(width, planes_out, 3, padding=1)

    @property
    def stride(self) -> int:
        """Rows and columns must be multiples of this."""
        return 8

    def forward(self, planes: Tensor) -> Tensor:
        """[N,planes_in,H,W] to [N,planes_out,H,W]."""
        x = functional.relu(self.embed(planes))
        skips = []
        for encoder, side in zip(self.encoders, self.sides, strict=True):
            x = encoder(x)
            skips.append(functional.max_pool2d(side(x), 2))  # of the size that x has next
            x = functional.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x + skips.pop()))
        return self.out(x)


def neighbours(frames: Tensor, depth: int) -> Tensor:
    """Every frame of [B,T,H,W] amid its `depth` nearest, [B,T,depth,H,W]; zeros beyond the ends."""
    beyond = depth // 2
    padded = functional.pad(frames, (0, 0, 0, 0, beyond, beyond))
    return padded.unfold(1, depth, 1).movedim(-1, 2)


class Niddl(nn.Module):
    """Maps a noisy patch [B,1,T,H,W] to a clean one of the same shape, frame by frame.

    `planes` is the published network itself, [N,planes_in,H,W] to [N,planes_out,H,W], for training
    on pairs.
    """

    def __init__(self, config: NiddlConfig) -> None:
        super().__init__()
        self.config = config
        network = UNetFixed if config.arch == "unet_fixed" else HourglassWres
        planes_out = config.depth if config.mode == "3d" else 1
        self.planes = network(config.depth, planes_out, config.width)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Sides [T,H,W] of a patch must be multiples of this."""
        return 1, self.planes.stride, self.planes.stride

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise [B,1,T,H,W]."""
        if any(side % step for side, step in zip(noisy.shape[2:], self.stride, strict=True)):
            raise ValueError(f"patch {tuple(noisy.shape[2:])} is no multiple of {self.stride}")
        planes = neighbours(noisy.squeeze(1), self.config.depth)  # [B,T,depth,H,W]
        denoised = self.planes(planes.flatten(0, 1))  # [B*T,planes_out,H,W]
        centre = denoised[:, denoised.shape[1] // 2]  # [B*T,H,W]
        return centre.unflatten(0, planes.shape[:2]).unsqueeze(1)
