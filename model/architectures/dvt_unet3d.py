"""DvtUNet3D: a three-level 3D U-Net whose bottleneck splits its features as DVT does.

Source: Denoising Vision Transformers (Yang et al., ECCV 2024), https://arxiv.org/abs/2401.02957:
features y = f(x) + g(position) + h(x, position). There g and h are fitted per image in one stage
and a transformer block is trained on the result in a second.
Our deviations, after the third-ranked CIDC25 entry: both stages are one trainable bottleneck of a
convolutional network, and the network predicts the noise, which is subtracted from its input.
Chosen by us where the entry is silent: GroupNorm (batches are 1 or 2), pooling in time too (2,048
tokens a patch), and an artifact field G in the patch's own coordinates that is constant in time, as
a sensor's pattern is. A pattern that never changes can be predicted from the neighbours, so no
blind-spot loss can teach G to remove it: the split is a structure, not a guarantee.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True, kw_only=True)
class DvtUNet3DConfig:
    """Sizes of the network; the defaults have 1,630,881 parameters."""

    width: int = 32  # channels of the finest level; doubled at each of the two below
    num_heads: int = 4
    num_groups: int = 8  # of channels that GroupNorm treats together
    window: tuple[int, int, int] = (32, 64, 64)  # patch whose grid the fields are stored on
    artifact: Literal["static", "time_varying"] = "static"
    positions: Literal["factored", "full"] = "factored"  # space plus time, or one field of both

    @classmethod
    def tiny(cls) -> DvtUNet3DConfig:
        """A network of 99,753 parameters for tests."""
        return replace(cls(), width=8, num_groups=4, window=(8, 16, 16))

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built, naming the field."""
        if self.width < 1 or self.width % self.num_groups:
            raise ValueError(f"num_groups {self.num_groups} must divide width {self.width}")
        if 4 * self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide {4 * self.width} channels")
        if any(side < 4 or side % 4 for side in self.window):
            raise ValueError(f"window {self.window} must have sides that are multiples of 4")
        if self.artifact not in ("static", "time_varying"):
            raise ValueError(f"artifact {self.artifact!r} must be static or time_varying")
        if self.positions not in ("factored", "full"):
            raise ValueError(f"positions {self.positions!r} must be factored or full")


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """What the bottleneck made of a patch; the terms are [B,C,T/4,H/4,W/4] and y = c + g + r."""

    denoised: Tensor  # [B,1,T,H,W], as without the terms
    y: Tensor  # features of the encoder
    c: Tensor  # clean part, before the position embeddings
    g: Tensor  # artifact that depends on the position alone
    r: Tensor  # residual that depends on both, one voxel at a time
    f: Tensor  # clean part after the transformer block: what is decoded


class ConvBlock(nn.Sequential):
    """Twice a 3x3x3 convolution, group norm and leaky ReLU: [B,I,T,H,W] to [B,O,T,H,W]."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv3d(channels, out_channels, 3, padding=1),
                nn.GroupNorm(num_groups, out_channels),
                nn.LeakyReLU(0.1, inplace=True),
            ]
        super().__init__(*layers)


class TransformerBlock(nn.Module):
    """Attention between tokens, then a feed-forward, each on a layer-normed branch."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(channels, eps=1e-6)  # ViT's eps, as in DVT
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.norm_feed_forward = nn.LayerNorm(channels, eps=1e-6)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,N,C] to the same."""
        qkv = self.to_qkv(self.norm_attention(tokens))  # [B,N,3C]
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # [B,heads,N,C/heads] each; on a GPU the faster ways sum a gradient in any order
        in_order = query.is_cuda and query.requires_grad
        with sdpa_kernel(SDPBackend.MATH) if in_order else nullcontext():
            mixed = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.project(mixed.transpose(1, 2).flatten(2))
        return tokens + self.feed_forward(self.norm_feed_forward(tokens))


def resample(field: Tensor, grid: torch.Size) -> Tensor:
    """A field [1,C,t,h,w] on another grid, corner on corner; an axis of length 1 stays as it is."""
    sides = [want if side > 1 else 1 for side, want in zip(field.shape[2:], grid, strict=True)]
    if list(field.shape[2:]) == sides:
        return field
    return functional.interpolate(field, sides, mode="trilinear", align_corners=True)


def small_normal(*shape: int) -> nn.Parameter:
    """A learnable field of deviation 0.02, as ViT starts its position embeddings."""
    return nn.Parameter(0.02 * torch.randn(shape))


class Bottleneck(nn.Module):
    """Takes artifact and residual from the features and lets the tokens of what is left attend."""

    def __init__(self, channels: int, config: DvtUNet3DConfig) -> None:
        super().__init__()
        t, h, w = (side // 4 for side in config.window)
        hidden = channels // 4
        self.artifact = small_normal(1, channels, 1 if config.artifact == "static" else t, h, w)
        self.residual = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels),
        )
        grids = [(t, h, w)] if config.positions == "full" else [(1, h, w), (t, 1, 1)]
        self.positions = nn.ParameterList(small_normal(1, channels, *grid) for grid in grids)
        self.block = TransformerBlock(channels, config.num_heads)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Terms c, g, r, f of the features, all [B,C,t,h,w]."""
        grid = y.shape[2:]
        g = resample(self.artifact, grid).expand_as(y)
        r = self.residual(y.movedim(1, -1)).movedim(-1, 1)
        c = y - g - r
        placed = c
        for positions in self.positions:
            placed = placed + resample(positions, grid)
        tokens = self.block(placed.flatten(2).transpose(1, 2))  # [B,N,C]
        return c, g, r, tokens.transpose(1, 2).unflatten(2, grid)


class DvtUNet3D(nn.Module):
    """Maps a normalised noisy patch [B,1,T,H,W] to a clean one of the same shape."""

    def __init__(self, config: DvtUNet3DConfig) -> None:
        super().__init__()
        self.config = config
        width, groups = config.width, config.num_groups
        self.encode1 = ConvBlock(1, width, groups)
        self.encode2 = ConvBlock(width, 2 * width, groups)
        self.encode3 = ConvBlock(2 * width, 4 * width, groups)
        self.bottleneck = Bottleneck(4 * width, config)
        self.up2 = nn.ConvTranspose3d(4 * width, 2 * width, 2, stride=2)
        self.decode2 = ConvBlock(4 * width, 2 * width, groups)
        self.up1 = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.decode1 = ConvBlock(2 * width, width, groups)
        self.out = nn.Conv3d(width, 1, 1)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Sides [T,H,W] of a patch must be multiples of this."""
        return 4, 4, 4

    def forward(self, noisy: Tensor, return_terms: bool = False) -> Tensor | Decomposition:
        """Denoise [B,1,T,H,W]; with `return_terms` the bottleneck's terms come along."""
        if any(side % step for side, step in zip(noisy.shape[2:], self.stride, strict=True)):
            raise ValueError(f"patch {tuple(noisy.shape[2:])} is no multiple of {self.stride}")
        fine = self.encode1(noisy)  # [B,C,T,H,W]
        middle = self.encode2(functional.max_pool3d(fine, 2))  # [B,2C,T/2,H/2,W/2]
        y = self.encode3(functional.max_pool3d(middle, 2))  # [B,4C,T/4,H/4,W/4]
        c, g, r, f = self.bottleneck(y)
        x = self.decode2(torch.cat([self.up2(f), middle], dim=1))  # [B,2C,T/2,H/2,W/2]
        x = self.decode1(torch.cat([self.up1(x), fine], dim=1))  # [B,C,T,H,W]
        denoised = noisy - self.out(x)  # what the network predicts is the noise
        if return_terms:
            return Decomposition(denoised=denoised, y=y, c=c, g=g, r=r, f=f)
        return denoised
