"""CourseUNet: denoises the courses in time of a recording's components.

A course comes with white noise of variance 1, however noisy the recording: what is left to do is to
tell the rises and decays of an indicator, and the slow changes of the neuropil, from noise. A
Wiener filter can do so only alike at all times, while cells are silent most of them: it makes a
guess. What a course has in common with the whole field is known already (`model/wide_courses.py`),
and the guess is that, and what the filter makes of the rest.
Our own: residual blocks in a U-Net of one dimension, without biases but told the noise's level, so
that twice the signal in twice the noise would come out twice as strong.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

KERNEL = 5  # frames
INPUTS = 4  # to a course: itself, a guess, the noise's deviation, and what is known


class Conv(nn.Conv1d):
    """A convolution in time, of courses as images [N,C,1,T] of one row.

    With channels last, which convolutions of one dimension have not, a CPU is 1.4 times as fast.
    """

    def forward(self, courses: Tensor) -> Tensor:
        """To [N,C',1,T'], without bias."""
        weight, (stride,), padding = self.weight[:, :, None], self.stride, (0, int(self.padding[0]))
        return functional.conv2d(courses, weight, stride=(1, stride), padding=padding)


class UpConv(nn.ConvTranspose1d):
    """Its opposite: [N,C,1,T] to [N,C',1,2T]."""

    def forward(self, courses: Tensor, output_size: list[int] | None = None) -> Tensor:
        """To as many frames as the stride makes of them, without bias."""
        weight, (stride,) = self.weight[:, :, None], self.stride
        return functional.conv_transpose2d(courses, weight, stride=(1, stride))


def _conv(in_channels: int, out_channels: int) -> Conv:
    return Conv(in_channels, out_channels, KERNEL, padding=KERNEL // 2, bias=False)


class CourseBlock(nn.Module):
    """Adds what two convolutions find in [N,C,1,T]; nothing, to begin with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = _conv(width, width)
        nn.init.zeros_(self.second.weight)

    def forward(self, values: Tensor) -> Tensor:
        """To the same shape."""
        return values + self.second(functional.relu(self.first(values)))


class CourseUNet(nn.Module):
    """Maps noisy courses, a guess of what they are, and what of it is known, to clean ones.

    Begins with the guess.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        """`widths` are the channels of every level, each with half the frames of the one before."""
        super().__init__()
        self.enter = _conv(INPUTS, widths[0])
        self.encode = nn.ModuleList(
            nn.Sequential(CourseBlock(width), CourseBlock(width)) for width in widths
        )
        self.down = nn.ModuleList(
            Conv(fine, coarse, 2, stride=2, bias=False) for fine, coarse in pairwise(widths)
        )
        self.up = nn.ModuleList(
            UpConv(coarse, fine, 2, stride=2, bias=False) for fine, coarse in pairwise(widths)
        )
        self.decode = nn.ModuleList(CourseBlock(width) for width in widths[:-1])
        self.out = _conv(widths[0], 1)
        nn.init.zeros_(self.out.weight)
        self.register_load_state_dict_pre_hook(_with_nothing_known)

    def forward(self, noisy: Tensor, guess: Tensor, known: Tensor) -> Tensor:
        """Denoise N courses [N,T], given a guess and what is known of them [N,T] (module text)."""
        num_frames, deviation = noisy.shape[1], torch.ones_like(noisy)  # of the noise
        seen = torch.stack([noisy, guess, deviation, known], dim=1)
        lacking = -num_frames % 2 ** len(self.down)
        images = functional.pad(seen, (0, lacking), mode="replicate")[:, :, None]
        if images.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        values = self.enter(images)
        fine = []
        for encode, down in zip(self.encode, self.down, strict=False):
            fine.append(encode(values))
            values = down(fine[-1])
        values = self.encode[-1](values)
        for level in reversed(range(len(self.up))):
            values = self.decode[level](fine[level] + self.up[level](values))
        change: Tensor = self.out(values)[:, 0, 0, :num_frames]
        return guess + change


def _with_nothing_known(
    net: nn.Module, weights: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Weights of a network that was not told what is known take no notice of it."""
    del net
    name = f"{prefix}enter.weight"
    if name in weights and weights[name].shape[1] == INPUTS - 1:
        weights[name] = functional.pad(weights[name], (0, 0, 0, 1))
