"""CAREamics' Noise2Void with its 3-D U-Net (https://github.com/CAREamics/careamics).

Trained from scratch on the stack itself for as long as it may; time is taken for its third axis.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import adapter  # type: ignore[import-not-found]
import numpy as np
import torch
from careamics import CAREamist  # type: ignore[import-not-found]
from careamics.config import create_advanced_n2v_config  # type: ignore[import-not-found]

PATCH_SIZE = (16, 32, 32)  # [T,H,W]; powers of two, at least 8
LEARNING_RATE = 5e-4  # at 1e-3 the mean of short trainings was off by a quarter
VALIDATION_FRACTION = 0.1  # of the patches, at most 8 of them
TILE_SIZE = (64, 64, 64)  # [T,H,W]; multiples of the U-Net's stride
TILE_OVERLAP = 16
STRIDE = 4  # two levels


def _patch_size(shape: Sequence[int]) -> list[int]:
    """The largest patch, in powers of two, that a stack holds."""
    if min(shape) < 8:
        raise SystemExit(f"CAREamics needs 8 voxels or more along each axis, got {shape}")
    return [
        min(size, 1 << (length.bit_length() - 1))
        for size, length in zip(PATCH_SIZE, shape, strict=True)
    ]


def _tiling(shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Tiles no larger than the stack, which would be filled up with zeros, and their overlap."""
    tile = tuple(
        min(size, length - length % STRIDE) for size, length in zip(TILE_SIZE, shape, strict=True)
    )
    return {
        "tile_size": tile,
        "tile_overlap": tuple(min(TILE_OVERLAP, size // 4 * 2) for size in tile),  # must be even
    }


def _config(shape: Sequence[int], *, seconds: float, seed: int) -> Any:
    patch_size = _patch_size(shape)
    num_patches = math.prod(n // size for n, size in zip(shape, patch_size, strict=True))
    return create_advanced_n2v_config(
        experiment_name="peer",
        data_type="array",
        axes="ZYX",
        patch_size=patch_size,
        batch_size=8 if torch.cuda.is_available() else 1,  # a CPU gains more from more steps
        num_epochs=10**6,  # time ends the training
        n_val_patches=max(1, min(8, round(VALIDATION_FRACTION * num_patches))),
        num_workers=0,
        trainer_params={"max_time": timedelta(seconds=seconds), "enable_model_summary": False},
        # Its batch normalisation, on by default, needs larger batches and longer trainings: after
        # a minute the mean came out too high by a half.
        model_params={"use_batch_norm": False},
        optimizer_params={"lr": LEARNING_RATE},
        seed=seed + 1,  # 0 is refused
    )


def denoise(noisy: np.ndarray, *, seconds: float, seed: int) -> np.ndarray:
    """Train for `seconds`, then predict in tiles."""
    frames = noisy.astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        peer = CAREamist(
            _config(frames.shape, seconds=seconds, seed=seed),
            work_dir=folder,
            enable_progress_bar=False,
        )
        peer.train(train_data=frames)
        # Its own checkpoints are written after whole epochs, and the time may end amid the first.
        checkpoint = Path(folder) / "end.ckpt"
        peer.trainer.save_checkpoint(checkpoint)
        predictions, _ = peer.predict(
            frames, batch_size=1, checkpoint=checkpoint, **_tiling(frames.shape)
        )
    return np.asarray(predictions[0]).reshape(frames.shape)


if __name__ == "__main__":
    adapter.run(denoise)
