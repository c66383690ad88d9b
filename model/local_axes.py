"""Images of a block's factors, denoised a second time in the axes of each small place.

The images are principal components of all the tissue in a block, so that several show the same
cell, each in a proportion of its own. But any rotation of them, and of their courses with them,
describes the same recording, and white noise stays white. Turned to the principal axes of a small
place, what is there is in the first one or two images, and the others have nothing but noise. The
axes are those of the images that were denoised once.
Our own, in the spirit of two-stage denoising by local principal components (Zhang et al., Pattern
Recognition 43:1531, 2010).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

PLACE = 12.0  # pixels that a place is wide at most; neighbours blend into each other
SIGMA = 2.0  # pixels, of the Gaussian around its middle by which pixels tell of its axes
LEAST = 0.05  # mean square of an image there, in variances of the noise, to be denoised again


def with_local_axes(
    images: np.ndarray, found: np.ndarray, denoise: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """What `denoise` makes of images [K,h,w] turned to the axes of each place, turned back.

    It takes several places' at once, [B,L,h,w], and need not denoise the first of them, the mean:
    that stays as it was found. `found` is what it made of the images as they are.
    """
    if len(images) < 3:  # one direction has no other axis
        return found
    rows, columns = map(places, images.shape[1:])
    looked_at = []  # axes of places, and their share in every pixel
    for (row, blends_down), (column, blends_across) in product(rows, columns):
        axes = principal_axes(found[1:], np.outer(row, column))
        if axes.shape[1]:
            looked_at.append((axes, np.outer(blends_down, blends_across)))
    if not looked_at:
        return found
    most = 1 + max(axes.shape[1] for axes, _ in looked_at)
    turned = np.zeros((len(looked_at), most, *images.shape[1:]), np.float32)
    for values, (axes, _) in zip(turned, looked_at, strict=True):
        values[0] = images[0]
        values[1 : 1 + axes.shape[1]] = along_axes(images[1:], axes)
    result = found.copy()
    for again, (axes, share) in zip(denoise(turned), looked_at, strict=True):
        change = again[1 : 1 + axes.shape[1]] - along_axes(found[1:], axes)
        result[1:] += share * np.tensordot(axes, change, 1)
    return result


def principal_axes(found: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The axes [K,L] of images [K,h,w] along which there is something, most first.

    By pixels' weights [h,w], which sum up to 1.
    """
    flat = found.reshape(len(found), -1)
    squares, axes = np.linalg.eigh((flat * weight.ravel()) @ flat.T)
    return axes[:, squares > LEAST][:, ::-1]


def along_axes(images: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """What images [K,h,w] have along axes [K,L]: [L,h,w]."""
    return np.tensordot(axes.T, images, 1)


def places(side: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each place along an axis: pixels' weights for its axes, and its share in the result."""
    count = int(np.ceil(side / PLACE))
    width = side / count
    pixel = np.arange(side) + 0.5
    middles = (np.arange(count) + 0.5) * width
    around = np.exp(-0.5 * np.square((pixel - middles[:, None]) / SIGMA))
    around /= around.sum(1, keepdims=True)
    # from one middle to the next they take turns; at the ends one has all
    inside = np.clip(pixel, middles[0], middles[-1])
    shares = np.clip(1 - np.abs(inside - middles[:, None]) / width, 0, 1)
    return list(zip(around.astype(np.float32), shares.astype(np.float32), strict=True))
