"""The low-rank method: what it keeps, what it removes, and what it needs."""

import math
import time
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from lab.factors import as_guessed
from lab.metrics import stsnr
from model import components, looks, lowrank, wide_courses
from model.budget import Budget
from model.components import Components, PrincipalComponents, wiener
from model.config import LowRankConfig
from model.lowrank import LowRank, LowRankError

CONFIG = replace(LowRankConfig(), block=16, sampled_blocks=4, space_sigmas=(0.5, 1.0))


def cells(num_frames: int = 200, height: int = 40, width: int = 36) -> np.ndarray:
    """A clean movie [T,H,W] of three cells with events on a bright ground."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    movie = np.full((num_frames, height, width), 200.0)
    for row, column in ((10, 10), (20, 25), (31, 12)):
        footprint = np.exp(-(np.square(rows - row) + np.square(columns - column)) / 18)
        spikes = rng.uniform(size=num_frames) < 0.03
        course = np.convolve(spikes, np.exp(-np.arange(60) / 12))[:num_frames]
        movie += 300 * course[:, None, None] * footprint
    return movie


def noisy(clean: np.ndarray, gain: float = 50.0, read: float = 20.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.poisson(clean / gain) * gain + rng.normal(0, read, clean.shape)).astype(np.float32)


def found_in(frames: np.ndarray, config: LowRankConfig = CONFIG, seed: int = 0) -> LowRank:
    found = LowRank(frames, config, seed)
    found.find()
    return found


def with_noisy_images(frames: np.ndarray) -> LowRank:
    found = LowRank(frames, CONFIG)
    found.find(as_guessed)
    return found


def denoised(frames: np.ndarray, config: LowRankConfig = CONFIG, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(found_in(frames, config, seed).render()))


def test_it_is_far_better_than_the_temporal_mean_and_keeps_the_mean() -> None:
    clean = cells()
    frames = noisy(clean)
    result = denoised(frames)
    mean = np.broadcast_to(frames.mean(0), frames.shape)
    assert stsnr(clean, result).stsnr > stsnr(clean, mean).stsnr + 4
    assert stsnr(clean, result).stsnr > stsnr(clean, frames).stsnr + 12
    assert result.mean() == pytest.approx(frames.mean(), rel=1e-3)


def test_noise_alone_gives_no_component() -> None:
    frames = noisy(np.full((200, 40, 36), 200.0))
    found = found_in(frames)
    assert found.num_components <= 1
    assert np.concatenate(list(found.render())).std(axis=0).max() < 0.02 * 200


def test_noise_that_is_alike_along_lines_gives_no_component_either() -> None:
    """Bleed: every voxel hands a third to its neighbour, so that white noise is no yardstick."""
    frames = noisy(np.full((200, 40, 36), 200.0))
    frames = (frames + 0.5 * np.roll(frames, 1, axis=2)) / 1.5
    assert found_in(frames).num_components <= 1


def test_strong_fast_signals_are_not_taken_for_noise() -> None:
    """They differ between neighbouring frames as noise does, and would hide weaker ones."""
    calm = noisy(np.full((200, 40, 36), 200.0), gain=2.0)
    spikes = np.random.default_rng(2).random(200) < 0.05
    course = 1000 * np.convolve(spikes, np.exp(-np.arange(60) / 6))[:200]
    cell = ndimage.gaussian_filter(np.eye(40, 36), 1.5)
    active = calm + course[:, None, None] * cell
    one_scale = replace(CONFIG, space_sigmas=(0.5,))
    found, alone = LowRank(active, one_scale), LowRank(calm, one_scale)
    assert found.looks.first.threshold == pytest.approx(alone.looks.first.threshold, rel=0.05)
    once = LowRank(active, replace(one_scale, threshold_rounds=1))
    assert once.looks.first.threshold > 1.5 * alone.looks.first.threshold


def test_an_artefact_in_one_place_does_not_hide_cells_in_others() -> None:
    """The moving border of a registered recording, which differs between frames as noise does."""
    frames = np.concatenate([noisy(cells()), noisy(np.full((200, 40, 36), 200.0))], axis=2)
    border = np.random.default_rng(0).integers(0, 5, 200)
    broken = frames.copy()
    for frame, width in zip(broken, border, strict=True):
        frame[:, 72 - width :] = -1000
    one_scale = replace(CONFIG, space_sigmas=(0.5,), sampled_blocks=12)
    found, alone = LowRank(broken, one_scale), LowRank(frames, one_scale)
    assert found.looks.first.threshold == pytest.approx(alone.looks.first.threshold, rel=0.3)


@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.0])
def test_noise_that_neighbours_have_in_common_is_known_to_be_stronger(sigma: float) -> None:
    """Along what is wide; however strong and fast the cells are."""
    rng = np.random.default_rng(0)
    block = ndimage.gaussian_filter(rng.normal(size=(300, 24, 24)), (0, sigma, sigma))
    block /= block.std()
    rows, columns = np.mgrid[:24, :24]
    cell = np.exp(-(np.square(rows - 8) + np.square(columns - 8)) / 18)
    footprint = (cell / np.linalg.norm(cell)).reshape(1, -1).astype(np.float32)
    course = np.convolve(rng.random(300) < 0.1, np.exp(-np.arange(30) / 4))[:300]
    active = (block + 50 * course[:, None, None] * cell).astype(np.float32)
    (found,) = components.noise_along(footprint, active)
    (really,) = (block.reshape(300, -1) @ footprint.T).std(0)
    assert found == pytest.approx(really, rel=0.15)
    assert (found == 1) == (sigma == 0)


def test_what_is_wide_and_faint_is_found_at_a_later_look() -> None:
    rows, columns = np.mgrid[:40, :36]
    wide = np.exp(-(np.square(rows - 20) + np.square(columns - 18)) / (2 * 7.0**2))
    change = 6 * np.sin(np.arange(400) / 40)[:, None, None] * wide
    frames = noisy(200 + change)  # whose noise has a deviation of 100
    config = replace(CONFIG, block=24, space_sigmas=(0.5,), later_looks=((4.0, 3.0),))
    assert found_in(frames, replace(config, later_looks=())).num_components == 0
    twice = found_in(frames, config)
    assert twice.num_components == len(twice.factors)
    result = np.concatenate(list(twice.render()))
    error = result - result.mean(0) - (change - change.mean(0))
    assert np.square(error).sum() < 0.7 * np.square(change - change.mean(0)).sum()


def cell_at(row: int, column: int, sigma: float) -> np.ndarray:
    """A round cell [40,36] of height 1."""
    place = np.zeros((40, 36))
    place[row, column] = 1
    cell = ndimage.gaussian_filter(place, sigma)
    return cell / cell.max()


def found_behind(
    clean: np.ndarray, space_sigma: float, *later: tuple[float, float]
) -> tuple[int, float]:
    """How many components one look and later ones find under noise, and the squared error left."""
    config = replace(
        CONFIG, space_sigmas=(space_sigma,), scan_space_sigmas=(), later_looks=later,
        sampled_blocks=16,
    )  # fmt: skip
    found = found_in(noisy(clean), config)
    result = np.concatenate(list(found.render()))
    return found.num_components, float(np.square(result - clean).sum())


def test_what_is_slow_and_faint_is_found_at_a_later_look() -> None:
    course = np.sin(np.arange(600) / 60)
    clean = 200 + 8 * course[:, None, None] * cell_at(20, 18, 2.5)
    count, error = found_behind(clean, 1.0)
    later_count, later_error = found_behind(clean, 1.0, (32.0, 2.0))
    assert count == 0
    assert later_count > 0
    assert later_error < 0.9 * error


def brief_events() -> np.ndarray:
    """Four cells [200,40,36] whose events are over after two or three frames."""
    rng = np.random.default_rng(2)
    clean = np.full((200, 40, 36), 200.0)
    for row, column in ((8, 8), (8, 26), (28, 8), (28, 26)):
        course = np.convolve(rng.random(200) < 0.1, np.exp(-np.arange(20) / 1.5))[:200]
        clean += 150 * course[:, None, None] * cell_at(row, column, 1.5)
    return clean


def test_what_is_fast_is_found_at_a_later_look() -> None:
    """As at a few frames a second, where an event is over before the next frame."""
    count, error = found_behind(brief_events(), 0.5)
    later_count, later_error = found_behind(brief_events(), 0.5, (1.0, 1.0))
    assert count == 0
    assert later_count > 4
    assert later_error < 0.8 * error


def test_a_faster_look_that_finds_nothing_is_left_out() -> None:
    fast = replace(CONFIG, later_looks=((1.0, 1.0),))
    assert LowRank(noisy(np.full((200, 40, 36), 200.0)), fast).looks.others == ()


def test_single_small_events_are_found_by_a_scan() -> None:
    """Each too small for the principal components of its block."""
    rng = np.random.default_rng(5)
    clean = np.full((400, 96, 96), 200.0)
    rows, columns = np.ogrid[:96, :96]
    for row, column in rng.integers(0, 96, (60, 2)):
        place = np.exp(-(np.square(rows - row) + np.square(columns - column)) / (2 * 1.5**2))
        start = rng.integers(400)
        course = np.exp(-np.arange(400 - start) / 6)
        clean[start:] += 250 * course[:, None, None] * place
    config = replace(CONFIG, block=48, later_looks=(), sampled_blocks=9)
    frames = noisy(clean)
    unseen = found_in(frames, replace(config, scan_space_sigmas=()))
    scanned = found_in(frames, config)
    assert unseen.looks.scan is None
    assert scanned.looks.scan is not None
    assert scanned.num_components > 2 * unseen.num_components

    def error(found: LowRank) -> float:
        return float(np.square(np.concatenate(list(found.render())) - clean).sum())

    assert error(scanned) < 0.9 * error(unseen)


@pytest.mark.parametrize("gain", [50.0, 1e-9])  # without noise, too
def test_a_scan_that_finds_nothing_is_left_out(gain: float) -> None:
    frames = noisy(np.full((200, 40, 36), 200.0), gain, read=0.4 * gain)
    assert LowRank(frames, CONFIG).looks.scan is None


def look(time_sigma: float, space_sigma: float, threshold: float = 0.0) -> components.Look:
    return components.Look(time_sigma=time_sigma, space_sigma=space_sigma, threshold=threshold)


def with_looks(measured: LowRank, *chosen: components.Look) -> LowRank:
    """After the first, and what noise reaches in them."""
    wanted = replace(measured.looks, others=chosen)
    measured.looks = looks.measured_anew(wanted, measured._samples(), measured.config)
    return measured


def test_components_of_all_looks_are_orthonormal_together() -> None:
    found = with_looks(LowRank(noisy(cells()), CONFIG), look(4.0, 2.8), look(16.0, 2.8))
    assert len(found.looks.others) == 2

    def of_block(corner: lowrank.Corner, block: np.ndarray, seen: lowrank.Components) -> int:
        count = len(seen.footprints)
        assert seen.courses.shape == (200, count)
        assert seen.shrinkage.shape == (count,)
        np.testing.assert_allclose(seen.footprints @ seen.footprints.T, np.eye(count), atol=1e-4)
        return count

    assert max(found.each_block(of_block)) > 1


def test_where_all_is_known_a_later_look_adds_nothing() -> None:
    block = np.random.default_rng(0).normal(size=(40, 4, 4)).astype(np.float32)
    both = components.Looks(first=look(0.0, 0.0), others=(look(0.0, 1.0),))
    found = components.decompose(block, block, both)
    assert len(found.footprints) == 16
    product = (found.courses @ found.footprints).reshape(block.shape)
    np.testing.assert_allclose(product, block, atol=1e-4)


@pytest.mark.parametrize("later", [(4.0, 1.4), (8.0, 1.0), (16.0, 2.8)])
def test_a_later_look_goes_on_from_what_the_first_has_seen(later: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    block = ndimage.gaussian_filter(rng.normal(size=(200, 16, 16)), (4, 1, 1)).astype(np.float32)
    first, second = look(4.0, 0.7), look(*later)
    on, at_once = second.on_from(first, first.at(block)), second.at(block)
    assert on.shape == at_once.shape
    inner = slice(len(on) // 4, -len(on) // 4)  # ends are mirrored twice
    assert np.abs(on - at_once)[inner].max() < 0.05 * np.abs(at_once).max()
    assert first.is_finer_than(second)
    assert not second.is_finer_than(first)


def test_noise_alone_hardly_gives_components_at_any_look() -> None:
    count, blocks = 0, 0
    for seed in range(3):
        frames = np.random.default_rng(seed).normal(200, 100, (200, 80, 80))
        measured = LowRank(frames, replace(CONFIG, sampled_blocks=12))
        found = with_looks(measured, *(look(*blurs) for blurs in CONFIG.later_looks[:4]))
        found.find()
        count += found.num_components
        blocks += len(found.factors)
    assert count <= 0.1 * blocks


def test_a_look_that_blurs_no_more_than_the_first_is_left_out() -> None:
    measured = LowRank(noisy(cells(64)), replace(CONFIG, space_sigmas=(1.4,)))
    (other,) = with_looks(measured, look(4.0, 1.4), look(4.0, 1.0), look(4.0, 2.8)).looks.others
    assert (other.time_sigma, other.space_sigma) == (4.0, 2.8)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_components_are_those_of_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    block = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    found = PrincipalComponents(block)
    _, expected, rows = torch.linalg.svd(block, full_matrices=False)
    torch.testing.assert_close(found.singular[:12], expected)
    for count in (0, 5, 11):
        singular, vectors = found.above(float(expected[count]) + 1e-6)
        torch.testing.assert_close(singular, expected[:count])
        overlap = (rows[:count] @ vectors).abs().diagonal()
        torch.testing.assert_close(overlap, torch.ones(count, dtype=torch.float64))


def test_a_course_is_kept_and_its_noise_removed() -> None:
    time = np.arange(1000)
    course = 8 * np.sin(time / 30)[:, None]
    filtered = wiener(course + np.random.default_rng(0).normal(size=course.shape), 4.0)
    assert np.sqrt(np.square(filtered - course).mean()) < 0.35  # of 1 before
    assert np.abs(wiener(np.random.default_rng(1).normal(size=(1000, 1)), 4.0)).mean() < 0.2


def test_the_same_seed_gives_the_same_result() -> None:
    frames = noisy(cells(64))
    assert np.array_equal(denoised(frames), denoised(frames))


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (2, 8, 8), (3, 16, 50), (16, 8, 8), (17, 16, 50), (33, 9, 31)]
)
def test_any_size_comes_back_as_it_was(shape: tuple[int, int, int]) -> None:
    frames = noisy(np.full(shape, 200.0)).astype(np.int16)
    result = denoised(frames)
    assert result.shape == shape
    assert np.isfinite(result).all()


def test_pixels_that_never_change_stay() -> None:
    frames = noisy(cells(64))
    frames[:, :, :20] = 7.0
    result = denoised(frames)
    assert np.isfinite(result).all()
    assert np.abs(result[:, :, :8] - 7.0).max() < 0.5


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_noise_is_measured_where_there_is_some(seed: int) -> None:
    """A small field in an empty frame, as of a masked recording: most blocks have no noise."""
    frames = np.zeros((100, 120, 120), np.int16)
    lit = (slice(None), slice(50, 80), slice(40, 70))
    frames[lit] = np.random.default_rng(seed).normal(500, 30, (100, 30, 30))
    config = replace(CONFIG, sampled_blocks=12, later_looks=())
    assert found_in(frames, config, seed).num_components == 0


@pytest.mark.parametrize("room, wanted", [(1, 1), (2 * 4 * 200 * 16**2, 2), (2**30, 4)])
def test_a_long_recording_is_measured_on_as_many_blocks_as_fit(
    room: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = cells(200)
    monkeypatch.setattr(lowrank, "SAMPLE_BYTES", room)
    found = found_in(noisy(clean))
    assert len(found._samples()) == wanted
    result = np.concatenate(list(found.render()))
    assert stsnr(clean, result).stsnr > stsnr(clean, noisy(clean)).stsnr + 10


def test_large_frames_are_rendered_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_in(noisy(cells(50)))
    whole = np.concatenate(list(found.render()))
    monkeypatch.setattr(lowrank, "VOXELS_AT_A_TIME", 7 * whole[0].size)
    blocks = list(found.render())
    assert [len(block) for block in blocks] == [7] * 7 + [1]
    np.testing.assert_allclose(np.concatenate(blocks), whole, rtol=1e-5)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 12])
def test_few_frames_are_denoised(num_frames: int) -> None:
    clean = cells()[100 : 100 + num_frames]
    frames = noisy(clean)
    assert stsnr(clean, denoised(frames)).stsnr > stsnr(clean, frames).stsnr + 4


def test_what_stands_out_of_the_noise_of_a_few_frames_is_kept() -> None:
    clean = np.full((6, 40, 36), 200.0)
    clean[3, 12:20, 12:20] += 400  # in one frame, as of a slow recording
    change = denoised(noisy(clean, gain=2.0))[:, 12:20, 12:20].mean((1, 2)) - 200
    assert change[3] > 320
    assert np.abs(np.delete(change, 3)).max() < 40


@pytest.mark.parametrize("seconds, overlap", [(math.inf, 0.5), (1e6, 0.5), (0.0, 0.125)])
def test_blocks_overlap_less_where_time_is_short(seconds: float, overlap: float) -> None:
    clean = cells()
    found = LowRank(noisy(clean), CONFIG, budget=Budget(seconds))
    found.find()
    assert found.overlap == overlap
    assert len(found.factors) == (16 if overlap == 0.5 else 9)
    result = np.concatenate(list(found.render()))
    assert stsnr(clean, result).stsnr > stsnr(clean, noisy(clean)).stsnr + 10


def test_the_time_that_a_network_takes_for_images_is_measured() -> None:
    given = []

    def denoise(images: np.ndarray) -> np.ndarray:
        given.append(images.shape)
        time.sleep(0.05)
        return images

    found = LowRank(noisy(cells()), CONFIG, budget=Budget(1e6), denoise_images=denoise)
    assert len(given) == 1 + 2 * torch.get_num_threads()
    assert {shape[2:] for shape in given} == {(CONFIG.block, CONFIG.block)}
    # of 16 blocks, of which several are given at once
    assert found.seconds > 16 / given[0][0] * 0.05 / torch.get_num_threads()


def test_the_memory_that_factors_will_take_is_known_before_they_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames, config = noisy(cells(1500)), replace(CONFIG, overlaps=(0.5,))
    taken = with_noisy_images(frames).num_bytes
    monkeypatch.setattr(lowrank, "BANDS", 0)
    monkeypatch.setattr(lowrank, "available_bytes", lambda: 1.6 * taken)
    assert LowRank(frames, config).overlap == 0.5
    monkeypatch.setattr(lowrank, "available_bytes", lambda: 0.6 * taken)
    with pytest.raises(LowRankError):
        LowRank(frames, config)


def test_blocks_overlap_less_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = cells(400)
    taken = with_noisy_images(noisy(clean)).num_bytes
    band = 4 * 400 * CONFIG.block * clean.shape[2]
    monkeypatch.setattr(lowrank, "available_bytes", lambda: lowrank.BANDS * band + 1.1 * taken)
    found = found_in(noisy(clean))
    assert found.overlap < 0.5
    result = np.concatenate(list(found.render()))
    assert stsnr(clean, result).stsnr > stsnr(clean, noisy(clean)).stsnr + 10
    # time is shared among the overlaps that there is memory for
    assert LowRank(noisy(clean), CONFIG, budget=Budget(1e6)).overlap == found.overlap


def test_a_recording_that_cannot_fit_into_memory_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lowrank, "available_bytes", lambda: 1e5)
    with pytest.raises(LowRankError, match=r"200 frames need about 0\.0 GB.* shorter files"):
        LowRank(noisy(cells()), CONFIG)


# ---- Images for a network ----------------------------------------------------------------------


def test_noisy_images_are_the_recording_along_its_courses() -> None:
    frames = noisy(cells())
    found = with_noisy_images(frames)
    corner = next(iter(found.factors))
    factors = found.factors[corner]
    inside = tuple(slice(start, start + CONFIG.block) for start in corner)
    block = (frames / found.background.deviation)[:, inside[0], inside[1]]
    nearest = np.linalg.pinv(factors.courses) @ block.reshape(len(block), -1)
    np.testing.assert_allclose(factors.footprints[0], nearest[0], rtol=1e-3)
    change = (factors.footprints - nearest)[1:]
    assert 0 < change.std() < 0.6  # of a deviation of the noise: frames say more or less
    assert found.num_components == found_in(frames).num_components
    # left as they are, they keep the recording's own mean
    result = np.concatenate(list(found.render()))
    np.testing.assert_allclose(result.mean(0), frames.mean(0), rtol=1e-4)


def test_courses_are_what_the_denoiser_makes_of_them_and_of_what_is_guessed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wide_courses, "LEAST_CELLS", 16)
    frames = noisy(cells() * (1 + 0.05 * np.sin(np.arange(200) / 7))[:, None, None])
    found = LowRank(frames, CONFIG)
    asked = []

    def silent(courses: np.ndarray, guess: np.ndarray, known: np.ndarray) -> np.ndarray:
        asked.append((courses, guess, known))
        return np.zeros_like(courses)

    found.find(silent)
    assert found.num_components == 0  # nothing is left of them, only the mean is
    assert len(asked) == len(found.factors)
    for courses, guess, known in asked:
        np.testing.assert_array_equal(known, found.wide.within(courses))
        rest = wiener(courses - known, CONFIG.spectrum_smoothing)
        np.testing.assert_allclose(guess, known + rest)
    assert any(known.any() for *_, known in asked)  # the whole field shines and fades


def test_the_noise_of_the_images_is_white_and_of_unit_variance() -> None:
    frames = noisy(np.full((200, 40, 36), 200.0))
    found = with_noisy_images(frames)
    truth = np.sqrt(200) * 200 / found.background.deviation[:16, :16]
    noise = found.factors[0, 0].footprints[0].reshape(16, 16) - truth
    assert noise.std() == pytest.approx(1.0, rel=0.15)
    assert np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] < 0.15


def test_what_is_made_of_the_images_is_rendered() -> None:
    found = with_noisy_images(noisy(cells()))
    before = np.concatenate(list(found.render()))

    def twice(images: np.ndarray) -> np.ndarray:
        return np.concatenate([images[:, :1], 2 * images[:, 1:]], axis=1)

    found.denoise_images(twice)
    mean = before.mean(0)
    after = np.concatenate(list(found.render()))
    np.testing.assert_allclose(after - mean, 2 * (before - mean), atol=1e-2)


def test_blocks_are_looked_at_in_different_orientations() -> None:
    """What a denoiser does to one side of the images, it does to all of them by turns."""
    found = with_noisy_images(noisy(cells()))

    def without_top(images: np.ndarray) -> np.ndarray:
        images = images.copy()
        images[:, 1:, :8] = 0
        return images

    found.denoise_images(without_top)
    sides = {
        "top": np.s_[:, :8], "bottom": np.s_[:, 8:],
        "left": np.s_[:, :, :8], "right": np.s_[:, :, 8:],
    }  # fmt: skip
    blocks = [factors.footprints[1:].reshape(-1, 16, 16) for factors in found.factors.values()]
    lacking = {
        name
        for images in blocks
        for name, side in sides.items()
        if images.any() and not images[side].any()
    }
    assert len(lacking) > 2


def test_components_have_signs_of_their_own_and_the_same_product() -> None:
    rng = np.random.default_rng(0)
    courses, footprints = rng.standard_normal((50, 9)), rng.standard_normal((9, 36))
    found = Components(
        courses=courses, scale=np.ones(9), footprints=footprints, shrinkage=np.ones(9)
    )
    signed = found.with_signs(rng)
    np.testing.assert_allclose(signed.courses @ signed.footprints, courses @ footprints)
    signs = np.sign(signed.footprints[:, 0] * footprints[:, 0])
    assert set(signs) == {-1.0, 1.0}


def blurred(images: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(images, (0, 0, 1.5, 1.5))


def test_the_mean_of_a_flat_scene_is_taken_from_the_denoiser() -> None:
    found = with_noisy_images(noisy(np.full((200, 40, 36), 200.0)))
    again = copy(found)
    again.factors = dict(found.factors)
    share = found.denoise_images(blurred)
    assert share > 0.9
    assert share == again.denoise_images(blurred, lambda images: blurred(images)[:, 0])
    assert np.concatenate(list(found.render())).mean(0).std() < 2.0  # 100 / sqrt(200) before


def test_a_denoiser_that_darkens_everything_changes_no_brightness() -> None:
    frames = noisy(cells())
    found = with_noisy_images(frames)
    found.denoise_images(lambda images: 0.9 * images)
    result = np.concatenate(list(found.render()))
    assert result.mean() == pytest.approx(frames.mean(), rel=5e-4)


def test_a_denoiser_that_blurs_what_is_there_is_not_believed() -> None:
    """A scene where every pixel differs from its neighbours."""
    scene = np.random.default_rng(2).uniform(100, 900, (40, 36))
    found = with_noisy_images(noisy(np.broadcast_to(scene, (200, 40, 36))))
    assert found.denoise_images(blurred) < 0.02
    mean = np.concatenate(list(found.render())).mean(0)
    assert np.corrcoef(mean.ravel(), scene.ravel())[0, 1] > 0.99
