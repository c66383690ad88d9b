"""The figures a result is judged by, against values worked out by hand and other libraries."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.audio import scale_invariant_signal_noise_ratio
from torchmetrics.functional.image import (
    peak_signal_noise_ratio as peak_signal_noise_ratio_of_torch,
)
from torchmetrics.functional.image import structural_similarity_index_measure

from lab.events import compare_activity
from lab.metrics import (
    data_range,
    judge,
    mean_bias,
    psnr,
    scale_invariant_psnr,
    ssim,
    stsnr,
    whiteness,
)

CLEAN = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])  # [T,H,W] = [2,1,2]
ERROR = np.array([[[1.0, 0.0]], [[1.0, 1.0]]])


def test_the_worked_example_scores_8_979_and_10_db() -> None:
    score = stsnr(CLEAN, CLEAN + ERROR)
    assert score.spatial == pytest.approx(8.979400, abs=1e-6)
    assert score.temporal == pytest.approx(10.0, abs=1e-6)
    assert score.stsnr == pytest.approx(9.489700, abs=1e-6)


def test_a_perfect_result_counts_100_db() -> None:
    assert stsnr(CLEAN, CLEAN).stsnr == 100.0


def test_frames_and_pixels_without_signal_are_left_out() -> None:
    padded = np.concatenate([CLEAN, np.zeros((1, 1, 2))])
    wrong = np.concatenate([CLEAN + ERROR, np.zeros((1, 1, 2))])
    assert stsnr(padded, wrong).spatial == pytest.approx(8.979400, abs=1e-6)


def test_a_truth_of_zeros_has_no_score() -> None:
    with pytest.raises(ValueError, match="zero everywhere"):
        stsnr(np.zeros((2, 2, 2)), np.ones((2, 2, 2)))


def test_stacks_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        stsnr(CLEAN, CLEAN[:1])


def test_integers_are_scored_without_overflow() -> None:
    clean = np.full((2, 4, 4), 30000, np.int16)
    assert stsnr(clean, clean - 300).stsnr == pytest.approx(40.0)


RNG = np.random.default_rng(7)
SCENE = RNG.gamma(3.0, 70.0, (4, 24, 31))  # odd sizes, skewed as fluorescence is
RESULT = 0.9 * SCENE + RNG.normal(5.0, 30.0, SCENE.shape)


def test_an_error_of_a_hundredth_of_the_range_is_40_db_of_psnr() -> None:
    clean = np.zeros((2, 3, 3))
    ratios = psnr(clean, clean + 655.35, data_range=65535.0)
    assert ratios.spatial == pytest.approx(40.0)
    assert ratios.temporal == pytest.approx(40.0)
    assert ratios.combined == pytest.approx(40.0)


def test_spatial_psnr_averages_frames_and_temporal_psnr_averages_pixels() -> None:
    # squared errors per frame 1/2 and 1, per pixel 1 and 1/2; range 10
    ratios = psnr(CLEAN, CLEAN + ERROR, data_range=10.0)
    half, whole = 10 * np.log10(200.0), 20.0
    assert ratios.spatial == pytest.approx((half + whole) / 2)
    assert ratios.temporal == pytest.approx((whole + half) / 2)


def test_psnr_ends_at_100_db_and_scale_invariant_psnr_does_too() -> None:
    assert psnr(SCENE, SCENE, 1.0).combined == 100.0
    assert scale_invariant_psnr(SCENE, SCENE, 500.0) == 100.0


def test_psnr_agrees_with_scikit_image_and_torchmetrics() -> None:
    span = data_range(SCENE)
    ratios = psnr(SCENE, RESULT, span)
    frames = [
        peak_signal_noise_ratio(truth, frame, data_range=span)
        for truth, frame in zip(SCENE, RESULT, strict=True)
    ]
    assert ratios.spatial == pytest.approx(np.mean(frames), rel=1e-12)
    by_pixel = peak_signal_noise_ratio_of_torch(
        torch.from_numpy(RESULT), torch.from_numpy(SCENE), data_range=span, dim=0, reduction="none"
    )
    assert ratios.temporal == pytest.approx(float(by_pixel.mean()), rel=1e-6)


def test_scale_invariant_psnr_forgives_any_gain_and_offset() -> None:
    once = scale_invariant_psnr(SCENE, RESULT, 500.0)
    again = scale_invariant_psnr(SCENE, 0.25 * RESULT - 80.0, 500.0)
    assert once == pytest.approx(again, rel=1e-9)
    assert once > psnr(SCENE, RESULT, 500.0).spatial


def test_scale_invariant_psnr_of_a_flat_frame_is_that_of_the_mean() -> None:
    frame = np.array([[[0.0, 2.0]]])  # variance 1 about its mean
    assert scale_invariant_psnr(frame, np.full_like(frame, 9.0), 10.0) == pytest.approx(20.0)


def test_scale_invariant_psnr_is_the_best_that_scikit_image_finds_after_a_straight_line() -> None:
    span = data_range(SCENE)
    ratios = [
        peak_signal_noise_ratio(
            truth, np.poly1d(np.polyfit(frame.ravel(), truth.ravel(), 1))(frame), data_range=span
        )
        for truth, frame in zip(SCENE, RESULT, strict=True)
    ]
    assert scale_invariant_psnr(SCENE, RESULT, span) == pytest.approx(np.mean(ratios), rel=1e-9)


def test_scale_invariant_psnr_follows_from_the_scale_invariant_snr_of_torchmetrics() -> None:
    # SI-SNR scales the truth instead, so 10^(SI-SNR/10) = r^2 / (1 - r^2) for the correlation r,
    # and what the best line leaves is var(y) (1 - r^2).
    ratio = scale_invariant_signal_noise_ratio(
        torch.from_numpy(RESULT.reshape(4, -1)), torch.from_numpy(SCENE.reshape(4, -1))
    ).numpy()
    left = SCENE.var(axis=(1, 2)) / (1 + 10 ** (ratio / 10))
    expected = (10 * np.log10(500.0**2 / left)).mean()
    assert scale_invariant_psnr(SCENE, RESULT, 500.0) == pytest.approx(expected, rel=1e-6)


def test_ssim_agrees_with_scikit_image_and_torchmetrics() -> None:
    span = data_range(SCENE)
    found = ssim(SCENE, RESULT, span)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    frames = [
        structural_similarity(truth, frame, data_range=span, **options)
        for truth, frame in zip(SCENE, RESULT, strict=True)
    ]
    assert found == pytest.approx(np.mean(frames), rel=1e-9)
    stacked = [torch.from_numpy(stack[:, None]) for stack in (RESULT, SCENE)]
    _, image = structural_similarity_index_measure(
        *stacked, data_range=span, sigma=1.5, return_full_image=True
    )
    # torchmetrics also averages the border, where it mirrors the frame to fill its windows
    assert found == pytest.approx(float(image[..., 5:-5, 5:-5].mean()), abs=1e-6)


def test_ssim_of_a_stack_with_itself_is_1() -> None:
    assert ssim(SCENE, SCENE, 500.0) == pytest.approx(1.0)


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match=r"11x11 or more, got \(10, 31\)"):
        ssim(SCENE[:, :10], RESULT[:, :10], 500.0)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_data_range_is_that_of_the_97th_and_3rd_percentile(dtype: type) -> None:
    clean = np.arange(1000, dtype=dtype).reshape(10, 10, 10)
    assert data_range(clean) == pytest.approx(969.03 - 29.97, rel=1e-6)


def test_a_constant_truth_has_no_data_range() -> None:
    with pytest.raises(ValueError, match="constant"):
        data_range(np.full((2, 3, 3), 7, np.int16))


def test_the_bias_of_the_mean_is_relative_and_signed() -> None:
    assert mean_bias(CLEAN, 0.95 * CLEAN) == pytest.approx(-0.05)
    assert mean_bias(CLEAN, CLEAN + 1.0) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="mean 0"):
        mean_bias(CLEAN - 2.5, CLEAN)


def test_the_residual_correlations_are_those_worked_out_by_hand() -> None:
    denoised = np.array([[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]])
    residual = np.array([[[1.0, -1.0]], [[2.0, 0.0]], [[-1.0, 1.0]]])
    found = whiteness(denoised + residual, denoised)
    expected = np.corrcoef([1, -1, 2, 0, -1, 1], [1, 2, 3, 4, 5, 6])[0, 1]
    assert found.with_result == pytest.approx(expected)
    # pairs (1, 2), (-1, 0), (2, -1), (0, 1): covariance -1/4, variances 5/4 and 5/4
    assert found.with_next_frame == pytest.approx(-0.2)


def test_white_noise_taken_off_leaves_no_correlation_and_a_blur_does() -> None:
    rng = np.random.default_rng(0)
    clean = np.repeat(ndimage.gaussian_filter(rng.normal(size=(1, 48, 48)), 2) * 200, 40, axis=0)
    noisy = clean + rng.normal(0, 20, clean.shape)
    perfect = whiteness(noisy, clean)
    assert abs(perfect.with_result) < 0.01
    assert abs(perfect.with_next_frame) < 0.01
    blurred = whiteness(noisy, ndimage.gaussian_filter(clean, (0, 6, 6)))
    assert blurred.with_result > 0.05
    assert blurred.with_next_frame > 0.05


def test_nothing_taken_off_has_no_whiteness_and_neither_has_a_single_frame() -> None:
    untouched = whiteness(SCENE, SCENE)
    assert np.isnan([untouched.with_result, untouched.with_next_frame]).all()
    assert np.isnan(whiteness(SCENE[:1], RESULT[:1]).with_next_frame)


def test_the_judgement_is_one_flat_row_of_the_figures_taken_one_by_one() -> None:
    noisy = SCENE + np.random.default_rng(1).normal(0, 60, SCENE.shape)
    row = judge(SCENE, noisy, RESULT).as_row()
    span = data_range(SCENE)
    assert row["stsnr_db"] == stsnr(SCENE, RESULT).stsnr
    assert row["combined_psnr_db"] == psnr(SCENE, RESULT, span).combined
    assert row["scale_invariant_psnr_db"] == scale_invariant_psnr(SCENE, RESULT, span)
    assert row["ssim"] == ssim(SCENE, RESULT, span)
    assert row["mean_bias"] == mean_bias(SCENE, RESULT)
    assert row["residual_with_result"] == whiteness(noisy, RESULT).with_result
    assert row["trace_correlation"] == compare_activity(SCENE, RESULT).trace_correlation
    assert len(row) == 22
    assert all(isinstance(value, (int, float)) for value in row.values())


def test_a_memory_map_of_integers_is_judged_as_the_array_is(tmp_path: Path) -> None:
    clean, result = SCENE.astype(np.int16), RESULT.astype(np.float32)
    maps = []
    for name, stack in (("clean", clean), ("result", result)):
        np.save(tmp_path / name, stack)
        maps.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    from_maps = judge(maps[0], maps[0], maps[1]).as_row()
    assert from_maps == pytest.approx(judge(clean, clean, result).as_row(), nan_ok=True)


def test_stacks_of_different_shape_are_not_judged() -> None:
    with pytest.raises(ValueError, match=r"one shape: \(4, 24, 31\), \(4, 24, 31\), \(4, 24, 1\)"):
        judge(SCENE, SCENE, RESULT[:, :, :1])


def test_a_result_that_is_not_finite_is_not_judged() -> None:
    broken = RESULT.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        judge(SCENE, SCENE, broken)


def test_psnr_and_nrmse_of_any_results_are_one_figure() -> None:
    """NRMSE 10^(PSNR/20) is MAX over the clean stack's root mean square, whatever the result."""
    rng = np.random.default_rng(0)
    clean = rng.uniform(100, 5000, (1, 32, 32))
    scale = 65535 / np.sqrt(np.square(clean).mean())
    for deviation in (10.0, 100.0, 1000.0):
        result = clean + rng.normal(0, deviation, clean.shape)
        nrmse = np.sqrt(np.square(result - clean).mean() / np.square(clean).mean())
        ratio = psnr(clean, result, 65535.0).spatial
        assert nrmse * 10 ** (ratio / 20) == pytest.approx(scale, rel=1e-9)


def test_a_root_mean_square_error_of_a_hundredth_is_40_db() -> None:
    clean = np.zeros((1, 16, 16))
    assert psnr(clean, clean + 655.35, 65535.0).spatial == pytest.approx(40.0)
