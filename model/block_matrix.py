"""A block of tissue [T,h,w] as a matrix of its frames."""

from __future__ import annotations

import numpy as np
import torch


def flattened(block: np.ndarray) -> torch.Tensor:
    """A block [T,h,w] as [T,h*w]; a view."""
    return torch.from_numpy(block.reshape(len(block), -1))


def without(block: np.ndarray, known: torch.Tensor) -> np.ndarray:
    """A block [n,h,w] less what it has along orthonormal columns [h*w,K]."""
    flat = flattened(block)
    return (flat - (flat @ known) @ known.T).numpy().reshape(block.shape)
