"""What a network makes of the images of many blocks of tissue.

Every block is looked at in an orientation of its own. What the network changes in a mean image is
followed to a share only: that of least risk (Stein's estimate by a probe: Ramani et al., IEEE TIP
17:1540, 2008), so that tissue unlike any it has seen keeps its detail. Not so the other images,
whose noise is not quite independent of the courses: the estimate fails there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch

from model.orientation import Orientation
from model.parallel import in_parallel

PIXELS_AT_A_TIME = 2**14  # of images, that a network is given; of more it takes as long for each
PROBED = 200  # blocks, about, that tell how far the network is to be followed

# Images [B,K,h,w] of some blocks in noise of variance 1, the mean first, to what they are without;
# zeros, which stay so, where a block has fewer.
DenoiseImages = Callable[[np.ndarray], np.ndarray]
# The same, to what the means alone are without: [B,h,w].
DenoiseMeans = Callable[[np.ndarray], np.ndarray]


def blocks_at_a_time(num_images: float, size: int) -> int:
    """How many blocks of so many images, and of so many pixels a side, a network is given."""
    return max(1, int(PIXELS_AT_A_TIME / (num_images * size**2)))


@dataclass(frozen=True, kw_only=True)
class BlockImages:
    """The images [K,h,h] of every block as they were recorded, the mean first."""

    noisy: Sequence[np.ndarray]
    deviation: float  # that their white noise is taken for
    seed: int

    def denoised(self, denoise: DenoiseImages) -> Iterator[np.ndarray]:
        """Of every block, in order; a mean is as bright as it was recorded."""
        usual = sum(map(len, self.noisy)) / len(self.noisy)
        groups = self._groups(range(len(self.noisy)), usual)
        return chain.from_iterable(in_parallel(partial(self._of_some, denoise), groups))

    def share_of_mean(
        self, means: Sequence[np.ndarray], denoise_means: DenoiseMeans, probe: float
    ) -> float:
        """Of the change to these [h,h], which a network made of the means: from 0 to 1."""
        probed = range(0, len(means), max(1, len(means) // PROBED))
        told_by = partial(self._told_by, means, denoise_means, probe)
        told = chain.from_iterable(in_parallel(told_by, self._groups(probed, num_images=1)))
        change, divergence = np.mean(list(told), axis=0)
        # the risk is a parabola in the share, for noise of variance 1
        return min(1.0, max(0.0, float((1 - divergence) / change))) if change > 0 else 1.0

    def _groups(self, numbers: Sequence[int], num_images: float) -> list[Sequence[int]]:
        """Blocks that a network is given at once, of each so many images; some for every core."""
        for_all_cores = math.ceil(len(numbers) / torch.get_num_threads())
        together = min(for_all_cores, blocks_at_a_time(num_images, self.noisy[0].shape[-1]))
        return [numbers[first : first + together] for first in range(0, len(numbers), together)]

    def _given(self, blocks: Sequence[np.ndarray], ways: Sequence[Orientation]) -> np.ndarray:
        """Images [K,h,h] of some blocks as a network is given them: [B,K,h,h]."""
        given = np.zeros((len(blocks), max(map(len, blocks)), *blocks[0].shape[1:]), np.float32)
        for values, images, way in zip(given, blocks, ways, strict=True):
            values[: len(images)] = way.seen(images / self.deviation)
        return given

    def _of_some(self, denoise: DenoiseImages, numbers: Sequence[int]) -> list[np.ndarray]:
        blocks = [self.noisy[number] for number in numbers]
        ways = [Orientation.drawn(self._rng(number)) for number in numbers]
        results = []
        for found, images, way in zip(
            denoise(self._given(blocks, ways)), blocks, ways, strict=True
        ):
            result = self.deviation * way.undone(found[: len(images)])
            result[0] = _as_bright(result[0], images[0])
            results.append(result)
        return results

    def _told_by(
        self,
        means: Sequence[np.ndarray],
        denoise_means: DenoiseMeans,
        probe: float,
        numbers: Sequence[int],
    ) -> list[tuple[float, float]]:
        """The change to each of some means, squared, and its divergence."""
        ways, signs, moved = [], [], []
        for number in numbers:
            rng, images = self._rng(number), self.noisy[number].copy()
            ways.append(Orientation.drawn(rng))
            signs.append(rng.choice(np.array([-1, 1], np.float32), images.shape[1:]))
            images[0] += probe * signs[-1]
            moved.append(images)
        results = []
        answers = denoise_means(self._given(moved, ways))
        for answer, number, way, sign, images in zip(
            answers, numbers, ways, signs, moved, strict=True
        ):
            found = self.deviation * way.undone(answer)
            follows = _as_bright(found, images[0]) - means[number]
            change = np.square(means[number] - self.noisy[number][0]).mean()
            results.append((float(change), float((sign * follows).mean() / probe)))
        return results

    def _rng(self, number: int) -> np.random.Generator:
        """A block's own."""
        return np.random.default_rng([self.seed, number])


def _as_bright(mean: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    return mean + (recorded - mean).mean()
