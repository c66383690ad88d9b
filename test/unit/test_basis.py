"""Courses of a block, and the images that are read along them."""

import math

import numpy as np
import pytest

from model.basis import orthonormal_courses, weighed_by_noise


def test_courses_are_made_orthonormal_the_constant_one_first() -> None:
    courses = np.random.default_rng(0).normal(3, 1, (50, 3))
    courses[:, 1] = 0
    basis = orthonormal_courses(courses)
    assert basis.shape == (50, 3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(basis[:, 0], 50**-0.5, rtol=1e-6)
    left = courses - basis @ (basis.T @ courses)
    np.testing.assert_allclose(left, 0, atol=1e-5)


def in_bursts(deviation: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orthonormal courses [T,K], images [K,h*w], and a block of these with noise of variance 1.

    In bursts the noise has so many times its deviation, over all frames in the mean 1.
    """
    rng = np.random.default_rng(0)
    is_burst = np.arange(300) // 10 % 5 == 0
    courses = orthonormal_courses(
        np.stack([is_burst * rng.uniform(0.8, 1, 300), rng.normal(size=300)], axis=1)
    )
    images = rng.normal(0, 5, (3, 24 * 24)).astype(np.float32)
    noise = rng.normal(size=(300, 24 * 24)) * np.where(is_burst, deviation, 1)[:, None]
    noise /= math.sqrt(np.square(noise).mean())
    return courses, images, (courses @ images + noise).astype(np.float32)


def test_frames_with_less_noise_say_more_about_images() -> None:
    courses, images, block = in_bursts(deviation=3.0)
    basis = weighed_by_noise(courses, block.reshape(-1, 24, 24))
    np.testing.assert_allclose(basis.courses[:, 1:].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(basis.readers.T @ basis.courses, np.eye(3), atol=1e-5)
    truth = courses @ images
    noise = basis.readers.T @ (block - truth)
    assert noise[1:].std(1) == pytest.approx(1, rel=0.1)
    assert abs(np.corrcoef(noise[1:])[0, 1]) < 0.1
    # nothing but noise is lost, and of that there is less than in images of all frames alike
    np.testing.assert_allclose(basis.courses @ (basis.readers.T @ truth), truth, atol=1e-3)
    alike = courses @ (courses.T @ (block - truth))
    assert np.square(basis.courses @ noise).mean() < 0.92 * np.square(alike).mean()
    # not of the mean: it is that of all frames
    np.testing.assert_array_equal(basis.readers[:, 0], courses[:, 0])


def test_frames_with_as_much_noise_say_as_much() -> None:
    courses, _, block = in_bursts(deviation=1.0)
    basis = weighed_by_noise(courses, block.reshape(-1, 24, 24))
    for part in (basis.courses, basis.readers):
        np.testing.assert_allclose(part.T @ part, np.eye(3), atol=0.05)
    mean = courses[:, :1]
    alone = weighed_by_noise(mean, block.reshape(-1, 24, 24))
    assert alone.courses is mean and alone.readers is mean


def test_without_any_noise_all_frames_say_as_much() -> None:
    courses, _, _ = in_bursts(deviation=1.0)
    basis = weighed_by_noise(courses, np.zeros((len(courses), 8, 8), np.float32))
    assert basis.courses is courses and basis.readers is courses
