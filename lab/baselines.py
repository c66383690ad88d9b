"""Ordinary networks that sizes and speeds are compared with; none of them is ever shipped."""

from __future__ import annotations

from model.architectures.niddl import PlaneUNet


class VanillaUNet(PlaneUNet):
    """A 2D U-Net whose width doubles from 32 to 512 channels: 14,908,225 parameters.

    Stands in for CARE and RCAN, whose sizes the NIDDL article does not give, so only ratios to
    it mean anything.
    """

    def __init__(self, planes_in: int = 1, planes_out: int = 1) -> None:
        super().__init__(planes_in, planes_out, (32, 64, 128, 256, 512))
