"""Restormer3D: a four-level transformer U-Net for `[T,H,W]` stacks, the default network.

Source: Restormer (Zamir et al., CVPR 2022), https://arxiv.org/abs/2111.09881, extended to three
dimensions as the first-ranked CIDC25 entry describes it.
Our deviations: resampling acts on rows and columns only, so that every level keeps the full frame
rate (transients last a few frames); the down-sampling kernel is (1,3,3) and the up-sampling kernel
1x1x1, which gives the published 3.6 M parameters; the network does not add its input to its output
(under Noise2Void a residual network has to learn to cancel the voxel it must not see).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model.architectures.blocks import depthwise_conv3d, pointwise_conv3d


@dataclass(frozen=True, kw_only=True)
class Restormer3DConfig:
    """Sizes of the network; the defaults are the 3,636,502 parameters of the published entry."""

    dim: int = 32
    num_blocks: tuple[int, int, int, int] = (2, 2, 2, 3)
    num_refinement_blocks: int = 2
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    expansion: float = 2.0
    down_factor: tuple[int, int, int] = (1, 2, 2)
    down_kernel: tuple[int, int, int] = (1, 3, 3)
    up_kernel: tuple[int, int, int] = (1, 1, 1)
    norm: Literal["bias_free", "with_bias"] = "bias_free"
    residual: bool = False

    @classmethod
    def tiny(cls) -> Restormer3DConfig:
        """A network of 130,551 parameters for tests."""
        return replace(cls(), dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1)

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built, naming the field."""
        voxels_per_factor = self.down_factor[0] * self.down_factor[1] * self.down_factor[2]
        if 2 * self.dim % voxels_per_factor:
            raise ValueError(f"dim {self.dim} x 2 must be a multiple of {voxels_per_factor}")
        for level, heads in enumerate(self.heads):
            if self.dim * 2**level % heads:
                raise ValueError(
                    f"heads[{level}]={heads} must divide {self.dim * 2**level} channels"
                )


class _ScaleByStd(torch.autograd.Function):
    """`x / sqrt(var_c(x) + eps) * gain` without saving more than `x` and two numbers per voxel."""

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float) -> Tensor:  # type: ignore[no-untyped-def]
        # x: [...,C]. The library's layer norm finds mean and 1/std in one vectorised pass.
        _, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.save_for_backward(x, gain, mean, rstd)
        return x * rstd * gain

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
        x, gain, mean, rstd = ctx.saved_tensors
        product = grad * x * rstd  # [...,C]; also the gain's gradient before its sum over voxels
        grad_gain = product.flatten(0, -2).sum(0)
        pull = (product @ gain).unsqueeze(-1) * rstd.square() / x.shape[-1]  # [...,1]
        grad_x = torch.addcmul(grad * gain * rstd, x - mean, pull, value=-1)
        return grad_x, grad_gain, None


class ChannelNorm(nn.Module):
    """Divides every voxel by the standard deviation of its channels; no bias, mean kept.

    Restormer's "BiasFree" norm. With `with_bias` an ordinary layer norm over the channels.
    """

    def __init__(self, channels: int, kind: str, eps: float = 1e-5) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if kind == "with_bias" else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B,C,T,H,W] over C."""
        voxels = x.movedim(1, -1)  # [B,T,H,W,C]
        if self.bias is not None:
            normed = functional.layer_norm(voxels, self.gain.shape, self.gain, self.bias, self.eps)
        else:
            normed = _ScaleByStd.apply(voxels, self.gain, self.eps)
        return normed.movedim(-1, 1)


class Pointwise(nn.Conv3d):
    """A 1x1x1 convolution without bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of [B,C,T,H,W]."""
        return pointwise_conv3d(x, self.weight)


class Depthwise(nn.Conv3d):
    """A 3x3x3 convolution without bias, each channel by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Filter every channel of [B,C,T,H,W]."""
        return depthwise_conv3d(x, self.weight)


def expand_and_mix(x: Tensor, expand: Pointwise, mix: Depthwise, parts: int) -> list[Tensor]:
    """`mix(expand(x))` in equal parts of its channels, each contiguous.

    Parts of one tensor have gaps, over which a CPU takes twice as long; and what is small enough
    stays in its cache from the one convolution to the other.
    """
    return [
        depthwise_conv3d(pointwise_conv3d(x, into), over)
        for into, over in zip(expand.weight.chunk(parts), mix.weight.chunk(parts), strict=True)
    ]


def _gradient_of_factor(other: Tensor, pull: Tensor, own: Tensor, square_pull: Tensor) -> Tensor:
    """`pull @ other + 2 * square_pull * own`, [B,heads,d,N], in the memory layout of `own`."""
    if own.stride(-2) == 1:  # voxel after voxel: else the convolution below must turn it around
        product = (other.transpose(-1, -2) @ pull.transpose(-1, -2)).transpose(-1, -2)
    else:
        product = pull @ other
    return product.addcmul_(own, 2 * square_pull.unsqueeze(-1))


def _products(query: Tensor, key: Tensor) -> Tensor:
    """Of channels of [B,heads,d,N]: [B,heads,d,d]; of fp16, which ends below such sums, in fp32."""
    if query.dtype != torch.float16:
        return query @ key.transpose(-1, -2)
    # means do fit, and so does every part of one that the library may sum by itself
    num_voxels = query.shape[-1]
    scale = num_voxels**-0.5
    mean = (query * scale) @ (key * scale).transpose(-1, -2)
    return mean.float() * num_voxels


class _ChannelProducts(torch.autograd.Function):
    """Products [B,heads,d,d] of all channels of two [B,heads,d,N], and their squared lengths.

    The squares [B,heads,d] are summed at once: the library's norm takes seven times as long where
    voxels are not innermost.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(query, key)
        squares = [factor.square().sum(-1, dtype=torch.float32) for factor in (query, key)]
        return _products(query, key), squares[0], squares[1]

    @staticmethod
    def backward(  # type: ignore[no-untyped-def]
        ctx, grad: Tensor, grad_query_square: Tensor, grad_key_square: Tensor
    ) -> tuple[Tensor, Tensor]:
        query, key = ctx.saved_tensors
        return (
            _gradient_of_factor(key, grad, query, grad_query_square),
            _gradient_of_factor(query, grad.transpose(-1, -2), key, grad_key_square),
        )


def length_of(square: Tensor) -> Tensor:
    """Its root, at least 1e-12."""
    return square.clamp_min(1e-24).sqrt()


class ChannelAttention(nn.Module):
    """MDTA: attention between channels, with depth-wise convolved queries, keys and values."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads))
        self.to_qkv = Pointwise(channels, 3 * channels)
        self.mix_qkv = Depthwise(3 * channels)
        self.project = Pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the channels of [B,C,T,H,W]."""
        batch, channels = x.shape[:2]
        query, key, value = (
            part.flatten(2).unflatten(1, (self.num_heads, -1))
            for part in expand_and_mix(x, self.to_qkv, self.mix_qkv, 3)
        )  # [B,heads,d,N]
        # Unit length along N is a factor per row and column of the small [d,d] product, so the
        # normalised copies of query and key are never made.
        scores, query_square, key_square = _ChannelProducts.apply(query, key)
        lengths = length_of(query_square).unsqueeze(-1) * length_of(key_square).unsqueeze(-2)
        scores = scores / lengths  # [B,heads,d,d]
        attention = (scores * self.temperature.view(-1, 1, 1)).softmax(dim=-1)
        # project(attention @ value) is one [C,C] matrix per sample: two products in one.
        weight = self.project.weight.view(channels, self.num_heads, -1).transpose(
            0, 1
        )  # [heads,C,d]
        combined = (weight @ attention).transpose(1, 2).reshape(batch, channels, channels)
        mixed = value.flatten(1, 2).transpose(1, 2) @ combined.transpose(1, 2)  # [B,N,C]
        return mixed.transpose(1, 2).unflatten(2, x.shape[2:])


class _GeluGate(torch.autograd.Function):
    """`gelu(gate) * content`, which keeps no more than the two."""

    @staticmethod
    def forward(ctx, gate: Tensor, content: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, content)
        return functional.gelu(gate).mul_(content)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        gate, content = ctx.saved_tensors
        grad_gate = torch.ops.aten.gelu_backward(grad * content, gate)
        return grad_gate, functional.gelu(gate).mul_(grad)


class GatedFeedForward(nn.Module):
    """GDFN: two depth-wise convolved branches, one gating the other through a GELU."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.expand = Pointwise(channels, 2 * hidden)
        self.mix = Depthwise(2 * hidden)
        self.project = Pointwise(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every voxel of [B,C,T,H,W]."""
        gate, content = expand_and_mix(x, self.expand, self.mix, 2)
        return self.project(_GeluGate.apply(gate, content))


class TransformerBlock(nn.Module):
    """Channel attention, then the gated feed-forward, each on a normed branch of its own."""

    def __init__(self, channels: int, num_heads: int, config: Restormer3DConfig) -> None:
        super().__init__()
        self.norm_attention = ChannelNorm(channels, config.norm)
        self.attention = ChannelAttention(channels, num_heads)
        self.norm_feed_forward = ChannelNorm(channels, config.norm)
        self.feed_forward = GatedFeedForward(channels, config.expansion)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] to the same."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.feed_forward(self.norm_feed_forward(x))


def space_to_channels(x: Tensor, factor: tuple[int, int, int]) -> Tensor:
    """Fold blocks of `factor` voxels into channels; with (1,2,2) channel c*4 + 2*dy + dx."""
    a, b, c = factor
    batch, channels, t, h, w = x.shape
    x = x.view(batch, channels, t // a, a, h // b, b, w // c, c)
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7)  # [B,t,h,w,C,a,b,c]: channels last, as the layers like it
    return x.flatten(4).movedim(-1, 1)


def channels_to_space(x: Tensor, factor: tuple[int, int, int]) -> Tensor:
    """The exact inverse of `space_to_channels`."""
    a, b, c = factor
    batch, channels, t, h, w = x.shape
    x = x.movedim(1, -1).reshape(batch, t, h, w, channels // (a * b * c), a, b, c)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)  # [B,t,a,h,b,w,c,C]
    return x.reshape(batch, t * a, h * b, w * c, -1).movedim(-1, 1)


class Down(nn.Module):
    """Half the rows and columns, twice the channels."""

    def __init__(self, channels: int, config: Restormer3DConfig) -> None:
        super().__init__()
        self.factor = config.down_factor
        out_channels = 2 * channels // (self.factor[0] * self.factor[1] * self.factor[2])
        self.conv = nn.Conv3d(
            channels, out_channels, config.down_kernel, padding="same", bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] to [B,2C,T,H/2,W/2]."""
        return space_to_channels(self.conv(x), self.factor)


class Up(nn.Module):
    """Twice the rows and columns, half the channels."""

    def __init__(self, channels: int, config: Restormer3DConfig) -> None:
        super().__init__()
        self.factor = config.down_factor
        out_channels = channels // 2 * (self.factor[0] * self.factor[1] * self.factor[2])
        if config.up_kernel == (1, 1, 1):
            self.conv: nn.Conv3d = Pointwise(channels, out_channels)
        else:
            self.conv = nn.Conv3d(
                channels, out_channels, config.up_kernel, padding="same", bias=False
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,T,H,W] to [B,C/2,T,2H,2W]."""
        return channels_to_space(self.conv(x), self.factor)


class Restormer3D(nn.Module):
    """Maps a normalised noisy patch [B,1,T,H,W] to a clean one of the same shape.

    `recomputed_levels` of the finest levels keep nothing of their blocks for the backward pass but
    what goes in, and compute the rest again there: the same gradients in less memory and more time.
    """

    def __init__(self, config: Restormer3DConfig) -> None:
        super().__init__()
        self.config = config
        self.recomputed_levels = 0
        dim, heads = config.dim, config.heads

        def blocks(channels: int, num_heads: int, number: int) -> nn.Sequential:
            return nn.Sequential(
                *(TransformerBlock(channels, num_heads, config) for _ in range(number))
            )

        widths = [dim * 2**level for level in range(self.num_levels)]
        self.embed = nn.Conv3d(1, dim, 3, padding=1, bias=False)
        self.encoders = nn.ModuleList(
            blocks(widths[i], heads[i], config.num_blocks[i]) for i in range(self.num_levels - 1)
        )
        self.downs = nn.ModuleList(Down(width, config) for width in widths[:-1])
        self.latent = blocks(widths[-1], heads[-1], config.num_blocks[-1])
        # From the deepest level up. The last decoder keeps skip and upsampled side by side.
        self.ups = nn.ModuleList(Up(width, config) for width in reversed(widths[1:]))
        self.reduces = nn.ModuleList(
            Pointwise(2 * width, width) for width in reversed(widths[1:-1])
        )
        self.decoders = nn.ModuleList(
            blocks(widths[i] if i else 2 * dim, heads[i], config.num_blocks[i])
            for i in reversed(range(self.num_levels - 1))
        )
        self.refinement = blocks(2 * dim, heads[0], config.num_refinement_blocks)
        self.out = nn.Conv3d(2 * dim, 1, 3, padding=1, bias=False)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Sides [T,H,W] of a patch must be multiples of this."""
        t, h, w = (side ** (self.num_levels - 1) for side in self.config.down_factor)
        return t, h, w

    @property
    def num_levels(self) -> int:
        """From the full plane to the coarsest."""
        return len(self.config.num_blocks)

    def _through(self, blocks: nn.Module, x: Tensor, level: int) -> Tensor:
        """The blocks of a level, 0 the finest, one after the other."""
        assert isinstance(blocks, nn.Sequential)
        is_recomputed = level < self.recomputed_levels and torch.is_grad_enabled()
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if is_recomputed else block(x)
        return x

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise [B,1,T,H,W]."""
        if any(side % step for side, step in zip(noisy.shape[2:], self.stride, strict=True)):
            raise ValueError(f"patch {tuple(noisy.shape[2:])} is no multiple of {self.stride}")
        x = self.embed(noisy).contiguous(memory_format=torch.channels_last_3d)
        skips = []
        coarsest = self.num_levels - 1
        for level, (encoder, down) in enumerate(zip(self.encoders, self.downs, strict=True)):
            x = self._through(encoder, x, level)
            skips.append(x)
            x = down(x)
        x = self._through(self.latent, x, coarsest)
        for step, (up, decoder) in enumerate(zip(self.ups, self.decoders, strict=True)):
            x = torch.cat([up(x), skips.pop()], dim=1)
            if step < len(self.reduces):
                x = self.reduces[step](x)
            x = self._through(decoder, x, coarsest - 1 - step)
        denoised = self.out(self._through(self.refinement, x, 0))
        return denoised + noisy if self.config.residual else denoised
