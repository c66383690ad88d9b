"""Odd-even training: every other frame predicts the frame after it; no clean data, no masks.

Neighbouring frames show nearly the same scene with independent noise, so that the noise cannot be
predicted and the scene can. Source: UNet-Att (Lu, Ying et al., 2024), after Noise2Noise and
DeepCAD. Knows nothing of networks.
"""

from __future__ import annotations

from torch import Tensor


def odd_even_pair(patch: Tensor) -> tuple[Tensor, Tensor]:
    """Frames 1, 3, ... (the input) and 2, 4, ... (the target) of [B,1,2T,H,W], both [B,1,T,H,W].

    Counted from one, as the article does. Both are views of the patch.
    """
    assert patch.shape[2] % 2 == 0, f"{patch.shape[2]} frames do not make pairs"
    return patch[:, :, 0::2], patch[:, :, 1::2]


def odd_even_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Half the mean absolute plus half the mean squared error; both [B,1,T,H,W].

    The two weigh the same only if frames are scaled to about 0..1: on raw counts the square rules.
    """
    error = prediction - target
    return 0.5 * error.abs().mean() + 0.5 * error.square().mean()
