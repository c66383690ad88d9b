"""UNet3D: the plain two-level 3D U-Net of a public CIDC25 entry, trained by Noise2Void.

Source: https://github.com/Chhayansh-Git/3d-n2v-calcium-denoising, whose weights have 46 tensors and
294,561 parameters; `rename_keys` fits them to this network.
Our deviations: none in the arithmetic (the entry declares a second pooling and never uses it). The
output is not residual. Sides must be even; nothing is padded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# The published names of the layers; inside a block both count alike (0, 1, 3, 4).
PUBLISHED_LAYERS = {
    "enc1": "encode_fine",
    "enc2": "encode_coarse",
    "up1": "up",
    "dec1": "decode_fine",
    "final": "out",
}


@dataclass(frozen=True, kw_only=True)
class UNet3DConfig:
    """Size of the network; the default is the 294,561 parameters of the published entry."""

    width: int = 32  # channels of the fine level; the coarse one has twice as many

    @classmethod
    def tiny(cls) -> UNet3DConfig:
        """A network of 4,789 parameters for tests."""
        return cls(width=4)

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built, naming the field."""
        if self.width < 1:
            raise ValueError(f"width {self.width} must be at least 1")


class ConvBlock(nn.Sequential):
    """Twice a 3x3x3 convolution, batch norm and ReLU: [B,I,T,H,W] to [B,O,T,H,W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv3d(channels, out_channels, 3, padding=1),
                nn.BatchNorm3d(out_channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet3D(nn.Module):
    """Maps a normalised noisy patch [B,1,T,H,W] to a clean one of the same shape.

    Batch norm: in training a sample depends on its batch, in evaluation on itself alone.
    """

    def __init__(self, config: UNet3DConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.encode_fine = ConvBlock(1, width)
        self.encode_coarse = ConvBlock(width, 2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.decode_fine = ConvBlock(2 * width, width)
        self.out = nn.Conv3d(width, 1, 1)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Sides [T,H,W] of a patch must be multiples of this."""
        return 2, 2, 2

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise [B,1,T,H,W]."""
        if any(side % step for side, step in zip(noisy.shape[2:], self.stride, strict=True)):
            raise ValueError(f"patch {tuple(noisy.shape[2:])} is no multiple of {self.stride}")
        fine = self.encode_fine(noisy)  # [B,C,T,H,W]
        coarse = self.encode_coarse(functional.max_pool3d(fine, 2))  # [B,2C,T/2,H/2,W/2]
        return self.out(self.decode_fine(torch.cat([self.up(coarse), fine], dim=1)))


def rename_keys(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published entry's tensors under this network's names; strict about names and shapes.

    Goes by name, as a safetensors file does not keep the order its tensors were saved in.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in published.items():
        layer, _, rest = name.partition(".")
        if layer not in PUBLISHED_LAYERS:
            raise ValueError(f"{name}: no such layer, known are {list(PUBLISHED_LAYERS)}")
        ours[f"{PUBLISHED_LAYERS[layer]}.{rest}"] = tensor
    with torch.device("meta"):  # shapes alone: no memory, and the random state stays as it is
        expected = UNet3D(UNet3DConfig()).state_dict()
    for name, wanted in expected.items():
        if name not in ours:
            raise ValueError(f"{name}: not among the {len(published)} published tensors")
        if ours[name].shape != wanted.shape:
            raise ValueError(
                f"{name}: published with shape {tuple(ours[name].shape)}, "
                f"expected {tuple(wanted.shape)}"
            )
    if strays := sorted(ours.keys() - expected.keys()):
        raise ValueError(f"{strays[0]}: the network has no such tensor")
    return ours
