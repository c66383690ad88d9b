"""What pretraining is fed: simulated recordings and a user's own."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from lab.noise import NAOMI, DetectorConfig, apply_detector, averaged
from lab.recordings import (
    POOL_SIZE,
    STEPS_PER_RECORDING,
    Ask,
    DataError,
    Folders,
    Pool,
    SimulatedRecording,
    Simulator,
    method_scale,
)

CPU = torch.device("cpu")
SHAPE = (24, 32, 40)
ALL = Ask(patch=(8, 16, 16), target_draws=4, median=True)


def simulator(seed: int = 0) -> Simulator:
    return Simulator(method="restormer3d", seed=seed, device=CPU, shape=SHAPE)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def write(path: Path, shape: tuple[int, ...], dtype: str, seed: int = 0) -> None:
    frames = rng(seed).integers(0, 200, shape).astype(dtype)
    tifffile.imwrite(path, frames, photometric="minisblack")


# ---- Simulated --------------------------------------------------------------------------------


def test_the_same_seed_slot_and_number_give_the_same_recording() -> None:
    first, again = (simulator().recording(1, 2) for _ in range(2))
    assert torch.equal(first.clean, again.clean)
    assert first.detector == again.detector
    assert torch.equal(first.draw(ALL, rng()).noisy, again.draw(ALL, rng()).noisy)
    for other in (simulator().recording(0, 2), simulator(1).recording(1, 2)):
        assert not torch.equal(first.clean, other.clean)


def test_input_and_target_share_the_scene_and_not_the_noise() -> None:
    scene = torch.from_numpy(rng().uniform(50, 400, (1, 32, 40)).astype(np.float32))
    detector = DetectorConfig(gain=100.0, read_deviation=40.0, offset=70.0)
    recording = SimulatedRecording("restormer3d", scene.expand(24, -1, -1), detector, 3)
    ask = Ask(patch=(24, 32, 32), target_draws=16, median=False)
    example = recording.draw(ask, rng())
    assert example.target is not None
    noise = [(draw[0] - draw[0].mean(0)).flatten() for draw in (example.noisy, example.target)]
    assert abs(float(torch.corrcoef(torch.stack(noise))[0, 1])) < 0.03
    assert float(noise[0].std() / noise[1].std()) == pytest.approx(4.0, rel=0.05)
    means = torch.stack([draw[0].mean(0).flatten() for draw in (example.noisy, example.target)])
    assert float(torch.corrcoef(means)[0, 1]) > 0.8


def test_a_patch_is_scaled_as_the_program_scales_its_recording() -> None:
    recording = simulator().recording(0, 0)
    whole = apply_detector(recording.detector, recording.clean, torch.Generator().manual_seed(0))
    scale = method_scale("restormer3d", whole.numpy())
    assert recording.scale.gain == pytest.approx(scale.gain, rel=0.1)
    ask = Ask(patch=SHAPE, target_draws=0, median=True)
    example = recording.draw(ask, rng())
    assert example.target is None
    assert example.median is not None
    counts = example.noisy * recording.scale.gain + recording.scale.offset
    assert float(counts.mean()) == pytest.approx(float(whole.mean()), rel=0.02)
    median = example.median * recording.scale.gain + recording.scale.offset
    assert float(median.mean()) == pytest.approx(float(whole.median(0).values.mean()), rel=0.03)


def test_the_median_lies_under_its_patch() -> None:
    """A scene that never changes: patch and median must show the same place, turned alike."""
    scene = torch.arange(32.0 * 40).view(1, 32, 40).expand(24, -1, -1) + 100
    recording = SimulatedRecording("restormer3d", scene, DetectorConfig(gain=1e-4), 0)
    for seed in range(12):
        example = recording.draw(ALL, rng(seed))
        assert example.median is not None
        assert example.noisy.shape == (1, 8, 16, 16)
        assert torch.allclose(example.noisy, example.median.expand(1, 8, -1, -1), atol=1e-3)


def test_the_mean_of_many_recordings_is_what_averaged_says() -> None:
    clean = torch.full((64, 64, 64), 150.0)
    detector = DetectorConfig(
        gain=80.0, gain_spread=0.4, dark_photons=0.1, read_deviation=30.0, offset=50.0
    )
    generator = torch.Generator().manual_seed(0)
    many = torch.stack([apply_detector(detector, clean, generator) for _ in range(9)]).mean(0)
    one = apply_detector(averaged(detector, 9), clean, generator)
    assert float(one.mean()) == pytest.approx(float(many.mean()), rel=0.005)
    assert float(one.var()) == pytest.approx(float(many.var()), rel=0.03)
    assert averaged(NAOMI, 1) == NAOMI


# ---- A user's own -----------------------------------------------------------------------------


def test_own_stacks_of_any_shape_and_dtype_are_all_visited(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    write(tmp_path / "a.tif", (20, 24, 24), "uint16")
    write(tmp_path / "b.tif", (12, 40, 16), "float32")
    write(tmp_path / "deeper" / "c.tif", (3, 8, 8), "uint8")  # smaller than a patch: mirrored
    folders = Folders([tmp_path], "restormer3d", seed=0)
    shapes = {folders.recording(0, number).frames.shape for number in range(3)}
    assert shapes == {(20, 24, 24), (12, 40, 16), (3, 8, 8)}
    for number in range(3):
        example = folders.recording(0, number).draw(ALL, rng())
        assert example.noisy.shape == (1, 8, 16, 16)
        assert example.target is None  # nobody recorded the same thing twice
        assert example.median is not None and example.median.shape == (1, 1, 16, 16)


def test_a_stack_that_cannot_be_read_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "good.tif", (9, 16, 16), "int16")
    (tmp_path / "bad.tif").write_text("no TIFF")
    assert [path.name for path in Folders([tmp_path], "restormer3d", 0).paths] == ["good.tif"]
    assert "bad.tif" in caplog.text
    (tmp_path / "good.tif").unlink()
    with pytest.raises(DataError, match="none of the stacks can be read"):
        Folders([tmp_path], "restormer3d", 0)


# ---- Drawing ----------------------------------------------------------------------------------


def test_what_an_iteration_sees_depends_on_no_other() -> None:
    ask = Ask(patch=(8, 16, 16), target_draws=1, median=False)
    through = Pool(0, 7, [(simulator(), 1.0)])
    seen = [through.draw(step, ask) for step in range(3)]
    fresh, seed = Pool(0, 7, [(simulator(), 1.0)]).draw(2, ask)
    assert torch.equal(seen[2][0].noisy, fresh.noisy)
    assert seen[2][1] == seed
    assert not torch.equal(seen[1][0].noisy, fresh.noisy)


def test_a_pool_holds_few_recordings_and_lets_old_ones_go() -> None:
    asked: list[int] = []

    class Counting:
        def recording(self, slot: int, number: int) -> SimulatedRecording:
            asked.append(number)
            return recording

    recording = simulator().recording(0, 0)
    pool = Pool(0, 0, [(Counting(), 1.0)])
    steps = 40 * STEPS_PER_RECORDING
    for step in range(steps):
        pool.draw(step, Ask(patch=(1, 8, 8), target_draws=0, median=False))
        assert len(pool._kept) <= POOL_SIZE
    assert len(asked) == len(set(asked))  # none was made twice
    assert max(asked) > 40


def test_sources_are_drawn_in_their_shares(tmp_path: Path) -> None:
    write(tmp_path / "own.tif", (16, 24, 24), "int16")
    own = Folders([tmp_path], "restormer3d", 0)
    pool = Pool(0, 0, [(simulator(), 0.25), (own, 0.75)])
    ask = Ask(patch=(1, 8, 8), target_draws=1, median=False)
    is_own = [pool.draw(step, ask)[0].target is None for step in range(200)]
    assert np.mean(is_own) == pytest.approx(0.75, abs=0.1)
