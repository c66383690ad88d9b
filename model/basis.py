"""Courses of a block of tissue, and how the images that go with them are read from it.

Photons make noise in proportion to their number: where tissue is active, frames differ in it. So
the images are those of least squares that are weighed by the noise of each frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

LEAST_COURSE = 0.03  # norm of a course, in deviations of the noise, below which there is none
LEAST_VARIANCE = 0.25  # of a frame's noise, over that of the mean frame
LEAST_LEFT = 0.1  # of a frame's noise, that courses leave
TINY = 1e-12  # variance of noise, where there is none


def orthonormal_courses(courses: np.ndarray) -> np.ndarray:
    """The constant course and a basis [T,K+1] float32 of what `courses` [T,K] add to it."""
    num_frames = len(courses)
    constant = np.full((num_frames, 1), num_frames**-0.5)
    there = np.linalg.norm(courses, axis=0) > LEAST_COURSE
    basis, _ = np.linalg.qr(np.concatenate([constant, courses[:, there]], axis=1))
    return (basis * np.sign(basis[:1, :1])).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Basis:
    """A block is nearly `courses @ images`, where the images are `readers.T @ block`.

    The images' noise is of variance 1, and white but for the mean image, which comes first: that is
    the mean of all frames alike. The other courses have no mean, so what a network takes for noise
    in their images leaves the mean as it was.
    """

    courses: np.ndarray  # [T,K] float32
    readers: np.ndarray  # [T,K] float32


def weighed_by_noise(courses: np.ndarray, block: np.ndarray) -> Basis:
    """The basis that orthonormal courses [T,K], the constant one first, span in a block [T,h,w].

    The variance of a frame's noise is a sum of its sources' courses, as its light is: that sum
    which is nearest to the mean square of what the courses leave of the frame.
    """
    alike = Basis(courses=courses, readers=courses)  # all frames say as much
    if courses.shape[1] == 1:
        return alike
    basis, flat = torch.from_numpy(courses), torch.from_numpy(block.reshape(len(block), -1))
    left = (flat - basis @ (basis.T @ flat)).square().mean(1).numpy()
    left /= np.maximum(1 - np.square(courses).sum(1), LEAST_LEFT)
    variance = courses @ (courses.T @ left)
    usual = float(variance.mean())
    if usual < TINY:
        return alike
    deviation = np.sqrt(np.maximum(variance / usual, LEAST_VARIANCE))[:, None]
    white, _ = np.linalg.qr(courses / deviation)
    changing = white * deviation
    changing -= changing.mean(0)
    return Basis(
        courses=np.concatenate([courses[:, :1], changing[:, 1:]], axis=1, dtype=np.float32),
        readers=np.concatenate([courses[:, :1], (white / deviation)[:, 1:]], axis=1),
    )
