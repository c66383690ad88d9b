"""Each part of the simulator by itself, then whole movies."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lab.activity import (
    ActivityConfig,
    Range,
    calcium,
    draw_activity,
    draw_shared_rate,
    draw_traces,
    response,
    smooth_noise,
    spike_times,
)
from lab.compare_simulator import statistics, table
from lab.section import draw_section
from lab.simulate import SimulationConfig, draw_config, simulate
from lab.tissue import TissueConfig, draw_tissue

FRAME_RATE = 100.0
ACTIVITY = ActivityConfig(
    event_hz=1.0,
    rate_spread=0.0,
    silent_fraction=0.0,
    burst_spikes=1.0,
    burst_interval_seconds=0.01,
    refractory_seconds=0.003,
    synchrony=0.0,
    synchrony_seconds=1.0,
    starts_at_rest=False,
    rise_seconds=0.05,
    decay_seconds=0.5,
    max_response=10.0,
    half_saturation=5.0,
    hill_exponent=1.5,
)
BARE = replace(  # nothing but even neuropil and haze
    draw_tissue(np.random.default_rng(0)),
    pixel_um=1.0,
    psf_um=0.5,
    section_um=1.5,
    haze=0.1,
    shading=0.0,
    cells_per_mm3=0.0,
    labelled_fraction=1.0,
    soma_um=6.0,
    soma_brightness=3.0,
    brightness_spread=0.0,
    nucleus_leak=0.0,
    filled_fraction=0.0,
    dendrites_per_cell=0.0,
    dendrites_per_mm2=0.0,
    axons_per_mm2=0.0,
    patch_contrast=0.0,
    texture_contrast=0.0,
    capillaries_per_mm2=0.0,
    shadows_per_mm2=0.0,
)
STILL = replace(  # nothing changes over time
    draw_config(np.random.default_rng(0), (50, 48, 64)),
    tissue=BARE,
    activity=replace(ACTIVITY, silent_fraction=1.0),
    frame_rate=30.0,
    mean_counts=211.0,
    neuropil_activity=0.0,
    bleached_fraction=0.0,
    drift=0.0,
    motion_pixels=0.0,
)


def movie(config: SimulationConfig, seed: int = 0) -> np.ndarray:
    return simulate(config, np.random.default_rng(seed)).numpy()


def spikes(config: ActivityConfig, num_cells: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Of 100 seconds."""
    rng = np.random.default_rng(0)
    return spike_times(config, num_cells, np.ones(10_000), FRAME_RATE, rng)


def still_image(tissue: TissueConfig, seed: int = 0) -> np.ndarray:
    """Of a section at rest [H,W], in units of the resting neuropil."""
    section = draw_section(tissue, 96, 96, np.random.default_rng(seed))
    image = (section.neuropil + section.haze).astype(np.float64).ravel()
    np.add.at(image, section.pixel, section.weight)
    return image.reshape(96, 96)


def test_cells_fire_at_their_rate_and_silent_ones_never() -> None:
    cell, _ = spikes(replace(ACTIVITY, silent_fraction=0.5))
    counts = np.bincount(cell, minlength=200)
    assert 0.35 < (counts == 0).mean() < 0.65
    assert counts[counts > 0].mean() == pytest.approx(100.0, rel=0.1)


def test_bursts_multiply_spikes_and_nothing_fires_within_the_refractory_time() -> None:
    config = replace(ACTIVITY, burst_spikes=4.0, burst_interval_seconds=0.005)
    cell, time = spikes(config)
    assert len(cell) / 200 == pytest.approx(400.0, rel=0.1)
    same_cell = np.diff(cell) == 0
    assert np.diff(time)[same_cell].min() >= config.refractory_seconds
    # Most spikes follow another closely, which they would not at 4 Hz without bursts.
    assert (np.diff(time)[same_cell] < 0.03).mean() > 0.6


def test_one_spike_rises_fast_to_1_and_decays_with_its_constant() -> None:
    trace = calcium(np.array([0]), np.array([1.0034]), ACTIVITY, (1, 600), FRAME_RATE)[0]
    assert trace[:100].max() == 0
    assert trace.max() == pytest.approx(1.0, abs=0.01)
    rise, decay = ACTIVITY.rise_seconds, ACTIVITY.decay_seconds
    peak = 1.0034 + math.log(decay / rise) * rise * decay / (decay - rise)
    assert (trace.argmax() + 1) / FRAME_RATE == pytest.approx(peak, abs=0.011)
    assert trace[250] / trace[300] == pytest.approx(math.exp(0.5 / decay), rel=0.01)


def test_calcium_does_not_depend_on_the_frame_rate() -> None:
    cell, time = np.array([0, 0]), np.array([0.51, 0.97])
    slow = calcium(cell, time, ACTIVITY, (1, 30), 10.0)[0]
    fast = calcium(cell, time, ACTIVITY, (1, 300), 100.0)[0]
    assert slow == pytest.approx(fast[9::10], abs=1e-4)


def test_the_indicator_saturates() -> None:
    level = np.array([0.0, ACTIVITY.half_saturation, 1e6])
    assert response(level, ACTIVITY) == pytest.approx([0.0, 5.0, 10.0], rel=1e-3)


def test_a_shared_rate_makes_cells_fire_together() -> None:
    def common(synchrony: float) -> float:
        config = replace(ACTIVITY, synchrony=synchrony)
        rng = np.random.default_rng(0)
        shared = draw_shared_rate(config, 2000, FRAME_RATE, rng)
        traces = draw_traces(config, 50, shared, FRAME_RATE, rng)
        return float(traces.mean(0).var() / traces.var(1).mean())

    assert common(0.0) < 0.06
    assert common(1.2) > 0.1


def test_a_movie_may_start_at_rest() -> None:
    config = replace(ACTIVITY, starts_at_rest=True)
    rng = np.random.default_rng(0)
    shared = draw_shared_rate(config, 300, FRAME_RATE, rng)
    traces = draw_traces(config, 300, shared, FRAME_RATE, rng)
    assert traces.shape == (300, 300)
    assert traces[:, 0].mean() < 0.1 * traces[:, -1].mean()


def test_smooth_noise_has_unit_variance_and_its_correlation() -> None:
    noise = smooth_noise((300, 500), 20.0, np.random.default_rng(0))
    assert noise.var() == pytest.approx(1.0, rel=0.1)
    assert (noise[:, 20:] * noise[:, :-20]).mean() == pytest.approx(math.exp(-0.5), abs=0.08)


def test_an_empty_section_is_even_neuropil() -> None:
    assert still_image(BARE) == pytest.approx(np.full((96, 96), 1.1), rel=1e-3)


def test_labelled_bodies_are_bright_rings_around_dark_nuclei() -> None:
    image = still_image(replace(BARE, cells_per_mm3=1e5))
    filled = still_image(replace(BARE, cells_per_mm3=1e5, filled_fraction=1.0))
    assert image.max() > 2.0
    assert image.min() < 0.5
    assert filled.min() > 0.9  # brighter than the neuropil it took the place of, or all but


def test_unlabelled_bodies_are_dark() -> None:
    image = still_image(replace(BARE, cells_per_mm3=1e5, labelled_fraction=0.0))
    assert image.max() <= 1.101
    assert image.min() < 0.15
    assert 0.05 < (image < 0.5).mean() < 0.6


def test_bodies_out_of_focus_fade() -> None:
    sharp = still_image(replace(BARE, cells_per_mm3=1e5, labelled_fraction=0.0, section_um=1.0))
    deep = still_image(replace(BARE, cells_per_mm3=1e5, labelled_fraction=0.0, section_um=8.0))
    assert sharp.std() > deep.std()
    assert deep.min() > sharp.min()


@pytest.mark.parametrize("name", ["axons_per_mm2", "dendrites_per_mm2"])
def test_processes_are_thin_and_bright(name: str) -> None:
    image = still_image(replace(BARE, **{name: 3000.0})) - 1.1
    assert image.min() >= -1e-3
    assert 0.01 < (image > 0.05).mean() < 0.6
    assert image.max() > 0.1


def test_boutons_dot_the_axons() -> None:
    axons = replace(BARE, axons_per_mm2=2000.0, bouton_brightness=0.0)
    plain = still_image(axons) - 1.1
    dotted = still_image(replace(axons, bouton_brightness=4.0)) - 1.1
    assert dotted.max() > 1.5 * plain.max()


def test_dendrites_follow_their_cell() -> None:
    with_dendrites = replace(BARE, cells_per_mm3=1e5, dendrites_per_cell=4.0)
    bodies = draw_section(
        replace(with_dendrites, dendrites_per_cell=0.0), 96, 96, np.random.default_rng(0)
    )
    whole = draw_section(with_dendrites, 96, 96, np.random.default_rng(0))
    assert whole.num_sources == bodies.num_sources
    assert len(whole.pixel) > len(bodies.pixel)


@pytest.mark.parametrize(
    ("name", "depth"), [("capillaries_per_mm2", 0.5), ("shadows_per_mm2", 0.35)]
)
def test_vessels_are_darker_than_their_surroundings(name: str, depth: float) -> None:
    image = still_image(replace(BARE, **{name: 600.0}, shadow_um=10.0, shadow_depth=0.5))
    assert image.max() == pytest.approx(1.1, rel=0.02)
    assert image.min() < 1.1 * (1 - depth)


def test_nothing_changes_where_nothing_is_active() -> None:
    clean = movie(STILL)
    assert clean.shape == (50, 48, 64)
    assert clean.dtype == np.float32
    assert clean == pytest.approx(np.full_like(clean, 211.0), rel=1e-3)


def test_neuropil_has_the_activity_asked_for_in_common_over_micrometres() -> None:
    tissue = replace(BARE, haze=0.0, mode_contrast=0.8, mode_grain=0.0, mode_um=20.0, num_modes=12)
    clean = movie(replace(STILL, tissue=tissue, neuropil_activity=0.1))
    resting = clean.min(0)
    assert 0.03 < (clean.std(0) / resting).mean() < 0.2
    numbers = statistics(clean)
    assert numbers["activity, correlation at 1 px"] > 0.95
    assert numbers["activity, correlation at 1 px"] > numbers["activity, correlation at 8 px"]


def test_bleaching_dims_and_drift_sways_the_whole_field() -> None:
    bleached = movie(replace(STILL, bleached_fraction=0.5, bleaching_seconds=0.01))
    assert bleached[-1].mean() / bleached[0].mean() == pytest.approx(0.5, rel=0.01)
    swaying = movie(replace(STILL, drift=0.05, drift_seconds=0.1)).mean((1, 2))
    assert 0.02 < swaying.std() / swaying.mean() < 0.1


def test_motion_moves_a_still_scene_and_nothing_else() -> None:
    tissue = replace(BARE, texture_contrast=0.3, texture_um=4.0)
    still = movie(replace(STILL, tissue=tissue))
    moved = movie(replace(STILL, tissue=tissue, motion_pixels=0.5, motion_seconds=0.1))
    assert still.std(0).max() < 1e-2
    assert moved.std(0).mean() > 5.0
    assert moved.mean((1, 2)).std() < 0.02 * 211


def test_a_movie_depends_on_its_seed_alone() -> None:
    config = draw_config(np.random.default_rng(4), (20, 40, 32))
    assert config == draw_config(np.random.default_rng(4), (20, 40, 32))
    assert np.array_equal(movie(config), movie(config))
    assert not np.array_equal(movie(config), movie(config, seed=1))


@pytest.mark.parametrize("seed", range(30))
def test_any_drawn_movie_is_positive_finite_and_of_its_mean(seed: int) -> None:
    config = draw_config(np.random.default_rng(seed), (24, 40, 56))
    clean = movie(config, seed)
    assert clean.shape == config.shape
    assert np.isfinite(clean).all()
    assert clean.min() >= 0
    assert clean.mean() == pytest.approx(config.mean_counts, rel=1e-3)
    assert 100 <= config.mean_counts <= 450


def test_drawn_numbers_differ_and_stay_in_range() -> None:
    rng = np.random.default_rng(0)
    span = Range(1.0, 100.0, log=True, absent=0.5)
    drawn = np.array([span.draw(rng) for _ in range(2000)])
    assert (drawn == 0).mean() == pytest.approx(0.5, abs=0.05)
    shown = drawn[drawn > 0]
    assert 1 <= shown.min() < 1.1
    assert 90 < shown.max() <= 100
    assert np.median(shown) == pytest.approx(10.0, rel=0.2)
    decays = [draw_activity(rng).decay_seconds for _ in range(100)]
    assert min(decays) < 0.15
    assert max(decays) > 1.0


def test_statistics_know_white_noise_and_the_table_says_what_is_not_covered() -> None:
    noise = 100 + np.random.default_rng(0).standard_normal((200, 32, 32)).astype(np.float32)
    numbers = statistics(noise)
    assert numbers["temporal sd / mean q50"] == pytest.approx(0.01, rel=0.05)
    for name, value in numbers.items():
        if name.startswith("activity, correlation"):
            assert value == pytest.approx(0.0, abs=0.02)
    assert numbers["variance in 16 components"] < 0.2
    text = table({"noise": numbers}, [statistics(movie(STILL) + 1e-3 * noise[:50, :1, :1])])
    assert "NO" in text


def test_a_device_is_honoured() -> None:
    clean = simulate(STILL, np.random.default_rng(0), torch.device("cpu"))
    assert clean.device.type == "cpu"
