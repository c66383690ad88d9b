"""Every part of the detectors against its formula."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.noise import NAOMI, DetectorConfig, apply_detector, draw_detector

FLAT = torch.full((40, 64, 64), 211.0)


def record(detector: DetectorConfig, clean: Tensor = FLAT, seed: int = 0) -> Tensor:
    return apply_detector(detector, clean, torch.Generator().manual_seed(seed))


def correlation(frames: Tensor, axis: int) -> float:
    """Between neighbours along an axis."""
    centred = frames - frames.mean()
    size = frames.shape[axis] - 1
    product = centred.narrow(axis, 0, size) * centred.narrow(axis, 1, size)
    return float(product.mean() / centred.square().mean())


@pytest.mark.parametrize(("gain", "read"), [(27.6, 50.0), (991.0, 52.0), (5.0, 0.0)])
def test_photons_and_read_out_have_the_mean_and_variance_of_the_formula(
    gain: float, read: float
) -> None:
    noisy = record(DetectorConfig(gain=gain, read_deviation=read))
    assert noisy.dtype == torch.float32
    assert float(noisy.mean()) == pytest.approx(211.0, rel=0.02)
    assert float(noisy.var()) == pytest.approx(211.0 * gain + read**2, rel=0.03)


@pytest.mark.parametrize("photons", [0.3, 2.0, 20.0])
def test_naomis_detector_has_the_mean_and_variance_of_the_formula(photons: float) -> None:
    noisy = record(replace(NAOMI, bleed=0.0), torch.full_like(FLAT, 100 * photons))
    assert float(noisy.mean()) == pytest.approx(100 * photons + 5, rel=0.02)
    assert float(noisy.var()) == pytest.approx(12300 * (photons + 0.05) + 7.4, rel=0.05)


def test_naomis_gain_is_skewed_as_a_log_normal_is() -> None:
    # Few photons would be as skewed without it; at 100 Poisson's own skewness is 0.1.
    detector = DetectorConfig(gain=1.0, gain_spread=10.0)
    centred = record(detector, torch.full_like(FLAT, 100.0)) - 100.0
    assert float(centred.pow(3).mean() / centred.square().mean() ** 1.5) > 2


def test_bleed_correlates_neighbours_on_a_line_and_nothing_else() -> None:
    noisy = record(NAOMI)
    assert 0.02 < correlation(noisy, 2) < 0.10
    assert abs(correlation(noisy, 1)) < 0.01
    assert abs(correlation(noisy, 0)) < 0.01


def test_bleed_keeps_the_mean_in_every_column() -> None:
    noisy = record(DetectorConfig(gain=1.0, bleed=0.4), torch.full((60, 100, 8), 211.0))
    columns = noisy.mean((0, 1))
    assert columns.numpy() == pytest.approx(np.full(8, 211.0), rel=0.01)


def test_line_noise_is_one_number_per_line() -> None:
    noisy = record(DetectorConfig(gain=1e-3, line_deviation=10.0))
    assert float(noisy.std(2).mean()) < 1.0
    assert float(noisy.mean(2).std()) == pytest.approx(10.0, rel=0.1)


def test_drift_is_one_slow_number_per_frame() -> None:
    detector = DetectorConfig(gain=1e-3, drift_deviation=10.0, drift_frames=30.0)
    drift = record(detector, torch.full((4000, 2, 2), 211.0)).mean((1, 2)) - 211.0
    assert float(drift.std()) == pytest.approx(10.0, rel=0.3)
    assert float(drift.diff().std()) < 1.0


def test_offset_and_saturation_shift_and_clip() -> None:
    detector = DetectorConfig(gain=1e-3, offset=100.0, saturation=300.0)
    noisy = record(detector, torch.tensor([[[50.0, 400.0]]]))
    assert noisy.flatten().tolist() == pytest.approx([150.0, 300.0], abs=2)


def test_a_recording_depends_on_its_seed_alone() -> None:
    detector = draw_detector(np.random.default_rng(3))
    assert torch.equal(record(detector), record(detector))
    assert not torch.equal(record(detector), record(detector, seed=1))


def test_drawn_detectors_span_the_levels_and_beyond() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_detector(rng) for _ in range(300)]
    gains = [detector.gain for detector in drawn]
    reads = [detector.read_deviation for detector in drawn]
    assert 5 <= min(gains) < 10
    assert 1500 < max(gains) <= 2000
    assert 0 <= min(reads) < 5
    assert 95 < max(reads) <= 100
    assert 0 < sum(math.isfinite(detector.saturation) for detector in drawn) < 150
    for detector in drawn[:40]:
        assert torch.isfinite(record(detector, FLAT[:2])).all()
