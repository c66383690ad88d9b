"""Principal components of one small block of tissue that stand above its noise.

Found in the block smoothed, once with the blur that suits the recording, and what is wide and
faint once more with the widest, in what is left. Their courses are the block's own, and either
filtered and shrunk here, or denoised by a network elsewhere.
Shrinkage as for spiked matrices (Gavish & Donoho, IEEE Trans. Inf. Theory 63:2137, 2017), Wiener
filter from the smoothed periodogram.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from model.background import FEWEST_FRAMES
from model.config import LowRankConfig

TRUNCATE = 3.0  # deviations, where a Gaussian ends
MEDIAN_OF_NORMAL = 0.6745  # of the size of what is normal, in deviations
CLEARLY_MORE = 1.3  # than the deviation that a course's noise has where it is white


class PrincipalComponents:
    """Those of a block [T,P], the strongest first."""

    def __init__(self, block: torch.Tensor) -> None:
        self._block, self._is_tall = block, block.shape[0] >= block.shape[1]
        gram = block.T @ block if self._is_tall else block @ block.T
        values, self._vectors = torch.linalg.eigh(gram)  # the weakest first
        self.singular = values.flip(0).clamp_min(0).sqrt()  # values [K]

    def above(self, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Singular values [k] greater than that, and their right singular vectors [P,k]."""
        count = int((self.singular > threshold).sum())
        singular = self.singular[:count]
        vectors = self._vectors[:, len(self.singular) - count :].flip(1)
        if not self._is_tall:
            vectors = self._block.T @ vectors / singular.clamp_min(1e-12)
        return singular, vectors


def greatest_beside(
    noise: np.ndarray, principal: PrincipalComponents, threshold: float, sigma: float = 0.0
) -> float:
    """The greatest singular value of noise [t,h,w], blurred by `sigma` pixels.

    Beside the components above `threshold`, for the differences that the noise was taken from have
    strong fast signals in them, too.
    """
    _, known = principal.above(threshold)
    rest = smooth_in_space(without(noise, known), sigma)
    return float(PrincipalComponents(flattened(rest)).singular[0])


def wiener(courses: np.ndarray, smoothing: float) -> np.ndarray:
    """Courses [T,K] in noise of variance 1, filtered by what their own spectra show above it."""
    num_frames = len(courses)
    # mirrored, so that the ends do not jump
    spectrum = np.fft.rfft(np.concatenate([courses, courses[::-1]]), axis=0)
    power = np.square(np.abs(spectrum)) / (2 * num_frames)
    power = ndimage.gaussian_filter1d(power, smoothing, axis=0)
    gain = np.maximum(power - 1, 0) / np.maximum(power, 1e-12)
    return np.fft.irfft(spectrum * gain, 2 * num_frames, axis=0)[:num_frames]


@dataclass(frozen=True, kw_only=True)
class Components:
    """What stands above the noise in a block, as it was found."""

    courses: np.ndarray  # [T,K], in noise of variance 1
    scale: np.ndarray  # [K] deviation of the courses' noise in the block, 1 where that is white
    footprints: np.ndarray  # [K,h*w] orthonormal
    shrinkage: np.ndarray  # [K] of the courses, as little as noise has strengthened them

    def with_signs(self, rng: np.random.Generator) -> Components:
        """The same of random signs, which no component has by itself.

        What a network makes of one sign and of the other averages out over blocks then.
        """
        signs = rng.choice(np.array([-1, 1], np.float32), len(self.scale))
        return replace(
            self, courses=self.courses * signs, footprints=self.footprints * signs[:, None]
        )


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A block [T,h,w] as a product."""

    courses: np.ndarray  # [T,K] float32
    footprints: np.ndarray  # [K,h*w] float32


def standing_out(block: np.ndarray, principal: PrincipalComponents, threshold: float) -> Components:
    """Of the principal components of a smoothed block, those that stand above the noise.

    Above `threshold`, the greatest singular value that noise alone would have. Their courses come
    from the block [T,h,w] as it is.
    """
    strength, footprints = principal.above(threshold)
    return _components(block, footprints, strength, threshold)


def _components(
    block: np.ndarray, footprints: torch.Tensor, strength: torch.Tensor, threshold: float
) -> Components:
    """Of orthonormal footprints [P,K], whose singular values [K] are above the threshold."""
    return Components(
        courses=(flattened(block) @ footprints).numpy(),
        scale=np.ones(footprints.shape[1], np.float32),
        footprints=footprints.T.numpy(),
        shrinkage=np.sqrt(1 - np.square(threshold / strength.numpy())),
    )


@dataclass(frozen=True, kw_only=True)
class Looks:
    """How components are looked for: blurs in pixels, and what noise alone would reach then."""

    sigma: float  # of the first look
    threshold: float  # the greatest singular value of noise
    wider_sigma: float  # of the second, in what the first has left, on top of its own
    wider_threshold: float  # infinite where there is no second


def decompose(block: np.ndarray, smoothed: np.ndarray, looks: Looks) -> Components:
    """Components of a standardised block [T,h,w], by those of the same block smoothed.

    `smoothed` in time, and in space as for the first look.
    """
    found = standing_out(block, PrincipalComponents(flattened(smoothed)), looks.threshold)
    if not math.isinf(looks.wider_threshold):
        found = _with_wider(block, smoothed, looks, found)
    scale = noise_along(found.footprints, block)
    return replace(found, courses=found.courses / scale, scale=scale)


def _with_wider(
    block: np.ndarray, smoothed: np.ndarray, looks: Looks, found: Components
) -> Components:
    """With those of the second look."""
    known = torch.from_numpy(found.footprints.T)  # [P,K]
    wide = smooth_in_space(without(smoothed, known), looks.wider_sigma)
    strength, faint = PrincipalComponents(flattened(wide)).above(looks.wider_threshold)
    # the blur has mixed a little of what is known into them, or of some made it all there is
    apart, remains = torch.linalg.qr(faint - known @ (known.T @ faint))
    is_new = remains.diagonal().abs() > 0.5
    more = _components(block, apart[:, is_new], strength[is_new], looks.wider_threshold)
    return Components(
        courses=np.concatenate([found.courses, more.courses], axis=1),
        scale=np.concatenate([found.scale, more.scale]),
        footprints=np.concatenate([found.footprints, more.footprints]),
        shrinkage=np.concatenate([found.shrinkage, more.shrinkage]),
    )


def noise_along(footprints: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Deviation [K] of the noise along footprints [K,h*w] in a block [T,h,w]: 1, or clearly more.

    More where neighbouring pixels have noise in common. Measured beside what the block is known to
    hold, along the same footprints in another place: that of their own courses has signals in it.
    1 too where a footprint is so wide that there is no other place, and of few frames.
    """
    num_frames, height, width = block.shape
    if num_frames < FEWEST_FRAMES:
        return np.ones(len(footprints), np.float32)
    known = torch.from_numpy(footprints.T)
    images = footprints.reshape(-1, height, width)
    elsewhere = np.roll(images, (height // 2, width // 2), (1, 2)).reshape(footprints.shape).T
    moved = torch.from_numpy(np.ascontiguousarray(elsewhere))
    apart = moved - known @ (known.T @ moved)
    size = apart.norm(dim=0).numpy()
    courses = (flattened(block) @ apart).numpy() / np.maximum(size, 0.5)
    changes = np.median(np.abs(np.diff(courses, axis=0)), axis=0)
    deviation = changes / (MEDIAN_OF_NORMAL * math.sqrt(2))
    return np.where(deviation > CLEARLY_MORE, deviation, 1).astype(np.float32)


def shrunk(found: Components, courses: np.ndarray) -> Factors:
    """What no network is needed for: courses [T,K] that were filtered, shrunk."""
    courses = courses * (found.shrinkage * found.scale)
    return Factors(
        courses=courses.astype(np.float32), footprints=found.footprints.astype(np.float32)
    )


def filtered_and_shrunk(found: Components, config: LowRankConfig) -> Factors:
    """Of a block that is seen by itself."""
    return shrunk(found, wiener(found.courses, config.spectrum_smoothing))


def smooth_in_time(block: np.ndarray, config: LowRankConfig) -> np.ndarray:
    """Of [T,h,w] as many frames as that leaves something to say: one in every `time_sigma`.

    What is faster has less than a hundredth of its amplitude then.
    """
    smoothed = ndimage.gaussian_filter1d(block, config.time_sigma, axis=0, truncate=TRUNCATE)
    return np.ascontiguousarray(smoothed[:: max(1, int(config.time_sigma))])


def smooth_in_space(block: np.ndarray, sigma: float) -> np.ndarray:
    """A block [T,h,w] blurred by a Gaussian of `sigma` pixels."""
    return ndimage.gaussian_filter(block, (0, sigma, sigma), truncate=TRUNCATE)


def smooth(block: np.ndarray, sigma: float, config: LowRankConfig) -> np.ndarray:
    """A block [T,h,w] as components are looked for in it: in time, and in space."""
    return smooth_in_space(smooth_in_time(block, config), sigma)


def noise_only(block: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A block [T,h,w] of noise alone: differences of neighbouring frames in a random order.

    With the noise's own correlations within a frame, which a formula would not know. Of few frames
    drawn anew: signals may be in most of their differences.
    """
    if len(block) < FEWEST_FRAMES:
        return rng.standard_normal(block.shape, np.float32)
    pairs = [(block[first + 1 :: 2][:n] - block[first::2][:n]) / math.sqrt(2)
             for first, n in ((0, len(block) // 2), (1, (len(block) - 1) // 2))]  # fmt: skip
    noise = np.concatenate(pairs)
    noise = noise[rng.permutation(len(noise))]
    return np.concatenate([noise, noise[: len(block) - len(noise)]])


def flattened(block: np.ndarray) -> torch.Tensor:
    """A block [T,h,w] as [T,h*w]; a view."""
    return torch.from_numpy(block.reshape(len(block), -1))


def without(block: np.ndarray, known: torch.Tensor) -> np.ndarray:
    """A block [n,h,w] less what it has along orthonormal columns [h*w,K]."""
    flat = flattened(block)
    return (flat - (flat @ known) @ known.T).numpy().reshape(block.shape)
