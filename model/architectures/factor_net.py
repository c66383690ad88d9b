"""FactorNet: what is to be learned about a recording's factors; one network for each half."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.architectures.course_unet import CourseUNet
from model.architectures.factor_unet import FactorUNet


@dataclass(frozen=True, kw_only=True)
class FactorNetConfig:
    """Sizes of both networks; the default has 1,189,240 parameters."""

    width: int = 32  # of FactorUNet's finest level
    course_widths: tuple[int, ...] = (24, 32, 48, 64)  # of CourseUNet's levels

    @classmethod
    def tiny(cls) -> FactorNetConfig:
        """Networks of 16,248 parameters for tests."""
        return cls(width=4, course_widths=(4, 4))

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built, naming the field."""
        if self.width < 1:
            raise ValueError(f"width {self.width} must be at least 1")
        if not self.course_widths or min(self.course_widths) < 1:
            raise ValueError(f"course_widths {self.course_widths} must be 1 or more, each")


class FactorNet(nn.Module):
    """Denoises images, or courses, by the number of their channels.

    Images [B,1,K,h,w] of K factors, the mean first: `FactorUNet`. Courses [B,3,K,1,T] of K factors,
    a noisy one, a guess, and what of that is known in each: `CourseUNet`. Of zeros come zeros.
    """

    def __init__(self, config: FactorNetConfig) -> None:
        super().__init__()
        self.config = config
        self.images = FactorUNet(config.width)
        self.courses = CourseUNet(config.course_widths)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Sides [K,h,w] of images must be multiples of this."""
        return self.images.stride

    def forward(self, noisy: Tensor, wanted: slice | None = None) -> Tensor:
        """Denoise [B,1,K,h,w] to the same shape, or [B,3,K,1,T] to [B,1,K,1,T].

        Of images those that are wanted, or all: the others stay noisy.
        """
        if noisy.shape[1] == 1:
            images: Tensor = self.images(noisy, wanted)
            return images
        seen = noisy.transpose(1, 2).flatten(3).flatten(0, 1)  # [B*K,3,T]
        is_there = seen.flatten(1).any(dim=1)
        courses = torch.zeros_like(seen[:, 0])
        found = self.courses(*seen[is_there].unbind(1))
        courses[is_there] = found.to(courses.dtype)
        return courses.reshape(len(noisy), 1, noisy.shape[2], 1, -1)
