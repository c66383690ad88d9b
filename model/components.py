"""Principal components of one small block of tissue that stand above its noise.

Found in the block smoothed, with the blur that suits the recording, and then with others, each in
what is left: what is fast with less, what is faint, slow or wide with more. Their courses are the
block's own, and either filtered and shrunk here, or denoised by a network elsewhere.
Shrinkage as for spiked matrices (Gavish & Donoho, IEEE Trans. Inf. Theory 63:2137, 2017), Wiener
filter from the smoothed periodogram.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage

from model.background import FEWEST_FRAMES
from model.block_matrix import flattened, without
from model.blur import blur_in_time, positions_apart, smooth_in_space, smooth_in_time
from model.config import LowRankConfig
from model.scan import Scan

MEDIAN_OF_NORMAL = 0.6745  # of the size of what is normal, in deviations
CLEARLY_MORE = 1.3  # than the deviation that a course's noise has where it is white


def _gram(block: torch.Tensor) -> torch.Tensor:
    """Of a block [T,P]: [P,P] or [T,T], whichever is smaller."""
    values = block.numpy()  # which works out half of what is symmetric, where torch does it all
    return torch.from_numpy(
        values.T @ values if values.shape[0] >= values.shape[1] else values @ values.T
    )


class PrincipalComponents:
    """Those of a block [T,P], the strongest first."""

    def __init__(self, block: torch.Tensor) -> None:
        self._block, self._gram = block, _gram(block)

    @cached_property
    def _values_and_vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the Gram matrix, the least first."""
        return torch.linalg.eigh(self._gram)

    @property
    def singular(self) -> torch.Tensor:
        """Singular values [K]."""
        return self._values_and_vectors[0].flip(0).clamp_min(0).sqrt()

    def above(self, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Singular values [k] greater than that, and their right singular vectors [P,k]."""
        if self._none_above(threshold):
            return self._block.new_empty(0), self._block.new_empty(self._block.shape[1], 0)
        singular, vectors = self.singular, self._values_and_vectors[1]
        count = int((singular > threshold).sum())
        vectors = vectors[:, len(singular) - count :].flip(1)
        if len(vectors) < self._block.shape[1]:
            vectors = self._block.T @ vectors / singular[:count].clamp_min(1e-12)
        return singular[:count], vectors

    def _none_above(self, threshold: float) -> bool:
        """What most looks come to, in a small part of the time that all components take."""
        if math.isinf(threshold):
            return True
        beyond = -self._gram
        beyond.diagonal().add_(threshold**2)
        return int(torch.linalg.cholesky_ex(beyond).info) == 0  # it is positive definite


def greatest(block: np.ndarray) -> float:
    """The greatest singular value of a block [t,h,w]."""
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(_gram(flattened(block)))[-1])))


def greatest_beside(
    noise: np.ndarray, principal: PrincipalComponents, threshold: float, sigma: float = 0.0
) -> float:
    """That of noise [t,h,w], blurred by `sigma` pixels, beside the components above `threshold`.

    For the differences that the noise was taken from have strong fast signals in them, too.
    """
    _, known = principal.above(threshold)
    return greatest(smooth_in_space(without(noise, known), sigma))


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
class Look:
    """How components are looked for: behind a blur, above what noise alone would reach then."""

    time_sigma: float  # frames
    space_sigma: float  # pixels
    threshold: float  # the greatest singular value of noise

    def at(self, block: np.ndarray) -> np.ndarray:
        """A block [T,h,w] as it is seen: [t,h,w]."""
        return smooth_in_space(smooth_in_time(block, self.time_sigma), self.space_sigma)

    def is_finer_than(self, first: Look) -> bool:
        """Whether what `first` has seen is blurred too much for this one."""
        return self.time_sigma < first.time_sigma or self.space_sigma < first.space_sigma

    def on_from(self, first: Look, seen: np.ndarray) -> np.ndarray:
        """The same as `at`, of what a finer `first` has seen: [t,h,w]."""
        in_time = self.time_sigma**2 - first.time_sigma**2
        in_space = self.space_sigma**2 - first.space_sigma**2
        apart = positions_apart(first.time_sigma)
        every = positions_apart(self.time_sigma) // apart
        blurred = blur_in_time(seen, math.sqrt(in_time) / apart, every)
        return smooth_in_space(blurred, math.sqrt(in_space))


@dataclass(frozen=True, kw_only=True)
class Looks:
    """One after the other, each in what those before have left."""

    first: Look
    scan: Scan | None = None  # for single events; None: there are none to be found
    others: tuple[Look, ...] = ()


def decompose(block: np.ndarray, smoothed: np.ndarray, looks: Looks) -> Components:
    """Components of a standardised block [T,h,w], of which the first look sees `smoothed`."""
    principal = PrincipalComponents(flattened(smoothed))
    found = standing_out(block, principal, looks.first.threshold)
    if looks.scan:
        found = with_events(found, block, looks.scan)
    for look in looks.others:
        found = with_more(found, block, smoothed, look, looks.first)
    scale = noise_along(found.footprints, block)
    return replace(found, courses=found.courses / scale, scale=scale)


def rest_seen(
    block: np.ndarray, smoothed: np.ndarray, known: np.ndarray, look: Look, first: Look
) -> np.ndarray:
    """A block [T,h,w] less what is along orthonormal footprints [K,h*w], as a later look sees it.

    `smoothed` is what the first has seen of it, and all that most others need.
    """
    along = torch.from_numpy(known.T)
    if look.is_finer_than(first):
        return look.at(without(block, along))
    return look.on_from(first, without(smoothed, along))


def with_more(
    found: Components, block: np.ndarray, smoothed: np.ndarray, look: Look, first: Look
) -> Components:
    """With those that stand out in what a later look sees of the rest (`rest_seen`)."""
    seen = rest_seen(block, smoothed, found.footprints, look, first)
    strength, faint = PrincipalComponents(flattened(seen)).above(look.threshold)
    return _with_footprints(found, block, faint, strength, look.threshold)


def with_events(found: Components, block: np.ndarray, scan: Scan) -> Components:
    """With the single events that a scan of the rest finds in a block [T,h,w]."""
    faint, clearness = scan.footprints(block, torch.from_numpy(found.footprints.T))
    return _with_footprints(found, block, faint, clearness, 1.0)


def _with_footprints(
    found: Components,
    block: np.ndarray,
    faint: torch.Tensor,
    strength: torch.Tensor,
    threshold: float,
) -> Components:
    """With footprints [P,N] of norm 1, whose strengths [N] are above the threshold."""
    if not len(strength):
        return found
    # a blur has mixed a little of what is known into them, or of some made it all there is
    known = torch.from_numpy(found.footprints.T)  # [P,K]
    apart, remains = torch.linalg.qr(faint - known @ (known.T @ faint))
    is_new = remains.diagonal().abs() > 0.5
    more = _components(block, apart[:, is_new], strength[is_new], threshold)
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
