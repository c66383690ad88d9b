"""suite2p's PCA denoiser (https://github.com/MouseLand/suite2p), with suite2p's own settings.

suite2p uses it on the binned movie in which it looks for cells and never writes it out.
"""

from __future__ import annotations

import adapter  # type: ignore[import-not-found]
import numpy as np
from suite2p.detection.denoise import pca_denoise  # type: ignore[import-not-found]

BLOCK_SIZE = 64  # pixels; suite2p's default
COMPONENTS_FRACTION = 0.5  # components per block over its edge; suite2p's default


def denoise(noisy: np.ndarray, *, seconds: float, seed: int) -> np.ndarray:
    """Blockwise PCA; nothing is trained and the package fixes its own seed."""
    block_size = [min(BLOCK_SIZE, edge) for edge in noisy.shape[1:]]
    return np.asarray(pca_denoise(noisy.astype(np.float32), block_size, COMPONENTS_FRACTION))


if __name__ == "__main__":
    adapter.run(denoise)
