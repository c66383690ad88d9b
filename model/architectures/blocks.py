"""Convolutions that several networks share, each run the way the device does it fastest.

They compute exactly what `torch.nn.functional.conv3d` computes; only the route differs.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of [B,C,T,H,W] lie next to each other in memory."""
    return x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)


def _multiplies_slowly() -> bool:
    """Whether the library's matrix products are slower than its convolutions on this CPU.

    MKL, which computes the former, takes its fastest ways on Intel's processors alone; oneDNN,
    which computes the latter, wherever the instructions are.
    """
    if not torch.backends.mkl.is_available():
        return False
    with suppress(OSError):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    return False


MULTIPLIES_SLOWLY = _multiplies_slowly()


def pointwise_conv3d(x: Tensor, weight: Tensor) -> Tensor:
    """1x1x1 convolution of [B,C,T,H,W] with weight [O,C,1,1,1].

    With channels last it is one matrix product over all voxels, forward and backward. On an Intel
    CPU the library's convolution is up to four times slower at few channels (32 to 96 on two cores:
    41 against 159 GFLOP/s); on an AMD one that of frames by themselves is faster (64 to 128 on two
    cores: 142 against 84).
    """
    if not is_channels_last(x):
        return functional.conv3d(x, weight)
    if MULTIPLIES_SLOWLY and x.device.type == "cpu":
        frames = x.transpose(1, 2).flatten(0, 1)  # [B*T,C,H,W]
        mixed = functional.conv2d(frames, weight.squeeze(-1))
        return mixed.unflatten(0, (len(x), -1)).transpose(1, 2)
    return functional.linear(x.movedim(1, -1), weight.flatten(1)).movedim(-1, 1)


def _depthwise_weight_grad(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient [C,1,3,3,3] of a depth-wise kernel, from [B,C,T,H,W] before and behind it.

    Each of the kernel's three frames is a convolution of frames by themselves, whose gradient the
    library knows how to compute: 10 to 14 times as fast as its own in three dimensions.
    """
    channels, num_frames = x.shape[1:3]
    kernel = x.new_empty(channels, 1, 3, 3)  # only its shape counts
    planes = x.new_zeros(3, channels, 1, 3, 3)
    for before, behind in zip(x, grad, strict=True):  # [C,T,H,W]
        before, behind = before.transpose(0, 1), behind.transpose(0, 1)  # [T,C,H,W]
        for i in range(3):
            # frame t sees frame t + i - 1 through the kernel's frame i
            first, end = max(0, 1 - i), min(num_frames, num_frames + 1 - i)
            if first >= end:
                continue  # a single frame has no neighbours
            _, part, _ = torch.ops.aten.convolution_backward(
                behind[first:end], before[first + i - 1 : end + i - 1], kernel, None,
                [1, 1], [1, 1], [1, 1], False, [0, 0], channels, [False, True, False],
            )  # fmt: skip
            planes[i] += part
    return planes.movedim(0, 2)


class _DepthwiseConv3d(torch.autograd.Function):
    """3x3x3 depth-wise convolution with gradients of our own, by the library's fast routes."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return functional.conv3d(x, weight, padding=1, groups=len(weight))

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        # Through one dimension, for the strides of a batch of one may be anything: where they are
        # not the usual ones, the library takes the layout for another, copies, and is slow.
        voxels = grad.movedim(1, -1)
        grad = voxels.reshape(-1).view(voxels.shape).movedim(-1, 1)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            flipped = weight.flip(2, 3, 4)
            grad_x = functional.conv3d(grad, flipped, padding=1, groups=len(weight))
        if ctx.needs_input_grad[1]:
            grad_weight = _depthwise_weight_grad(grad, x)
        return grad_x, grad_weight


def depthwise_conv3d(x: Tensor, weight: Tensor) -> Tensor:
    """3x3x3 convolution of every channel of [B,C,T,H,W] by itself, weight [C,1,3,3,3].

    On a CPU with channels last the library's input gradient takes 7 to 13 times as long as the
    forward convolution that it is equal to.
    """
    if is_channels_last(x) and x.device.type == "cpu":
        if torch.is_autocast_enabled("cpu"):  # the gradients, too, in what it was computed in
            precision = torch.get_autocast_dtype("cpu")
            x, weight = x.to(precision), weight.to(precision)
        return _DepthwiseConv3d.apply(x, weight)
    if is_channels_last(x) and x.is_cuda:
        # With channels last the library hands it to cuDNN's grouped kernels, many times slower than
        # its own, which want the other layout (and gives up where none of them is deterministic).
        mixed = functional.conv3d(x.contiguous(), weight, padding=1, groups=len(weight))
        return mixed.contiguous(memory_format=torch.channels_last_3d)
    return functional.conv3d(x, weight, padding=1, groups=len(weight))
