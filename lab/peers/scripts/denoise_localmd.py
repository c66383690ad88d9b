"""localmd, a penalised matrix decomposition (https://github.com/apasarkar/localmd).

Buchanan et al., bioRxiv 334706 (2018). The movie is put together again from its components.
"""

from __future__ import annotations

import adapter  # type: ignore[import-not-found]
import numpy as np
from localmd.dataset import PMDDataset  # type: ignore[import-not-found]
from localmd.decomposition import localmd_decomposition  # type: ignore[import-not-found]

BLOCK_SIZE = 32  # pixels
MIN_FRAMES = 256  # its estimate of the noise, by Welch's method, is NaN or an error below that
BACKGROUND_RANK = 1  # the default of 15 takes the noise of short stacks for background


class Movie(PMDDataset):
    """A stack in memory in the package's axis order."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = np.moveaxis(frames, 0, -1)  # [H,W,T]

    @property
    def shape(self) -> tuple[int, ...]:
        """[H,W,T]."""
        return self.frames.shape

    def get_frames(self, frames: list[int]) -> np.ndarray:
        """The frames of these indices, [H,W,len(frames)]."""
        return self.frames[:, :, frames]


def _even_block(edge: int) -> int:
    return min(BLOCK_SIZE, edge - edge % 2)  # the package mirrors a quarter of a block


def denoise(noisy: np.ndarray, *, seconds: float, seed: int) -> np.ndarray:
    """Decompose and reconstruct; nothing is trained."""
    np.random.seed(seed)  # noqa: NPY002 - the package draws from numpy's global generator
    num_frames, height, width = noisy.shape
    if num_frames < MIN_FRAMES:
        raise SystemExit(f"localmd needs {MIN_FRAMES} frames or more, got {num_frames}")
    block = [_even_block(height), _even_block(width)]
    overlap = [edge // 2 for edge in block]
    spatial, mixing, scale, temporal, deviation, mean, _, order = localmd_decomposition(
        Movie(noisy.astype(np.float32)),
        block,
        overlap,
        num_frames,
        background_rank=BACKGROUND_RANK,
    )
    # U [HW,K] sparse, R [K,r], s [r], V [r,T] of the movie standardised per pixel
    found = np.isfinite(scale)  # a root of what rounding made negative is no component
    movie = spatial @ (mixing * scale)[:, found] @ temporal[found]  # [HW,T]
    movie = movie.reshape(height, width, num_frames, order=order)
    return np.moveaxis(movie * deviation[..., None] + mean[..., None], -1, 0)  # [T,H,W]


if __name__ == "__main__":
    adapter.run(denoise)
