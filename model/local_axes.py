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
from dataclasses import dataclass
from itertools import product

import numpy as np

PLACE = 14.0  # pixels that a place is wide at most; neighbours blend into each other
SEEN = 32  # pixels around a place, and of a smaller block all, that it is denoised with
SIGMA = 2.0  # pixels, of the Gaussian around its middle by which pixels tell of its axes
LEAST = 0.05  # mean square of an image there, in variances of the noise, to be denoised again


@dataclass(frozen=True, kw_only=True)
class Place:
    """A stretch of an axis with h pixels."""

    weight: np.ndarray  # [h] of pixels, by which its axes are told; sum up to 1
    seen: slice  # the pixels around it,
    share: np.ndarray  # and what they take from it; all places' sum up to 1


def with_local_axes(
    images: np.ndarray, found: np.ndarray, denoise: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """What `denoise` makes of images [B,K,h,w] turned to the axes of each place, turned back.

    Those of B blocks, with zeros where one has fewer. It takes the places of all at once, [N,L,h,w]
    with h and w of SEEN at most, and need not denoise the first of them, the mean: that stays as it
    was found. `found` is what it made of the images as they are.
    """
    rows, columns = map(places, images.shape[2:])
    looked_at = []  # blocks, places and their axes
    for block, (noisy, before) in enumerate(zip(images, found, strict=True)):
        if np.count_nonzero(noisy.any((1, 2))) < 3:
            continue  # one direction has no other axis
        for row, column in product(rows, columns):
            axes = principal_axes(before[1:], np.outer(row.weight, column.weight))
            if axes.shape[1]:
                looked_at.append((block, row, column, axes))
    if not looked_at:
        return found
    most = 1 + max(axes.shape[1] for *_, axes in looked_at)
    turned = np.zeros((len(looked_at), most, len(rows[0].share), len(columns[0].share)), np.float32)
    for values, (block, row, column, axes) in zip(turned, looked_at, strict=True):
        around = images[block, :, row.seen, column.seen]
        values[0] = around[0]
        values[1 : 1 + axes.shape[1]] = along_axes(around[1:], axes)
    result = found.copy()
    for again, (block, row, column, axes) in zip(denoise(turned), looked_at, strict=True):
        before = found[block, 1:, row.seen, column.seen]
        change = again[1 : 1 + axes.shape[1]] - along_axes(before, axes)
        share = np.outer(row.share, column.share)
        result[block, 1:, row.seen, column.seen] += share * np.tensordot(axes, change, 1)
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


def places(side: int) -> list[Place]:
    """Those along an axis."""
    count = int(np.ceil(side / PLACE))
    width = side / count
    pixel = np.arange(side) + 0.5
    middles = (np.arange(count) + 0.5) * width
    weights = np.exp(-0.5 * np.square((pixel - middles[:, None]) / SIGMA))
    weights /= weights.sum(1, keepdims=True)
    # from one middle to the next they take turns; at the ends one has all
    inside = np.clip(pixel, middles[0], middles[-1])
    shares = np.clip(1 - np.abs(inside - middles[:, None]) / width, 0, 1)
    seen = min(SEEN, side)
    found = []
    for middle, weight, share in zip(middles, weights, shares, strict=True):
        first = round(min(max(0.0, middle - seen / 2), side - seen))
        around = slice(first, first + seen)
        found.append(
            Place(
                weight=weight.astype(np.float32),
                seen=around,
                share=share[around].astype(np.float32),
            )
        )
    return found
