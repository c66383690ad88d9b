"""What every method promises: the same program, the same behaviour."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from model.config import METHODS
from model.report import RECORD_NAME
from model.resume import file_sum
from model.stack_io import PLATFORM_INPUT

PROGRAM = Path(__file__).parents[2] / "process.py"
(SAMPLE,) = (PROGRAM.parent / "test/input").rglob("*.tif")
SHAPE = (20, 40, 36)  # no multiple of any window
NEEDS_ONE = [name for name, method in METHODS.items() if method.checkpoint == "required"]
CANNOT_ADAPT = [name for name, m in METHODS.items() if not m.stages + m.scratch_stages]


@dataclass(frozen=True)
class Outcome:
    code: int
    last_line: str
    output: Path

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.output / RECORD_NAME).read_text())


def write_recording(folder: Path, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    frames = np.random.default_rng(0).poisson(300, shape).astype(np.uint16)
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "mouse.tif", frames, photometric="minisblack")
    return frames


def run(folder: Path, *flags: str) -> Outcome:
    places = ["--input-dir", str(folder / "in"), "--output-dir", str(folder / "out")]
    command = [sys.executable, str(PROGRAM), *places, "--device", "cpu", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    return Outcome(done.returncode, last, folder / "out")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_denoises_a_stack_to_its_own_shape_and_dtype(
    method: str, weights: Path, tmp_path: Path
) -> None:
    noisy = write_recording(tmp_path / "in")
    steps = () if method in CANNOT_ADAPT else ("--steps", "1")
    done = run(tmp_path, "--method", method, "--weights", str(weights), *steps)
    assert (done.code, done.last_line) == (0, "")
    denoised = tifffile.imread(done.output / "mouse.tif")
    assert (denoised.shape, denoised.dtype) == (noisy.shape, noisy.dtype)
    assert not np.array_equal(denoised, noisy)
    record = done.record
    assert record["method"] == method
    assert (record["stacks"][0]["steps_done"] or 0) == len(steps) // 2


@pytest.mark.parametrize("method", NEEDS_ONE)
def test_a_method_without_its_checkpoint_says_how_to_train_it(method: str, tmp_path: Path) -> None:
    write_recording(tmp_path / "in")
    done = run(tmp_path, "--method", method, "--weights", str(tmp_path))
    assert done.code == 1
    assert (
        f"python -m lab.pretrain {method} --out {tmp_path}/{method}.safetensors" in done.last_line
    )


@pytest.mark.parametrize("method", CANNOT_ADAPT)
def test_iterations_asked_of_a_method_that_cannot_adapt_are_refused(
    method: str, weights: Path, tmp_path: Path
) -> None:
    write_recording(tmp_path / "in")
    done = run(tmp_path, "--method", method, "--weights", str(weights), "--steps", "5")
    assert done.code == 2
    assert "does not adapt to a stack" in done.last_line


def test_an_unknown_method_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    write_recording(tmp_path / "in")
    done = run(tmp_path, "--method", "unet9")
    assert done.code == 2
    assert all(name in done.last_line for name in METHODS)


def test_a_stack_too_short_for_pairs_of_frames_says_how_many_it_needs(
    weights: Path, tmp_path: Path
) -> None:
    write_recording(tmp_path / "in", (15, 40, 36))
    done = run(tmp_path, "--method", "unet_att", "--weights", str(weights), "--steps", "1")
    assert done.code == 1
    assert "mouse.tif: 15 frames are too few" in done.last_line
    assert "at least 16" in done.last_line


def test_weights_of_another_method_are_refused(weights: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "in")
    (tmp_path / "unet3d.safetensors").write_bytes((weights / "niddl.safetensors").read_bytes())
    done = run(tmp_path, "--method", "unet3d", "--weights", str(tmp_path))
    assert done.code == 1
    assert "holds weights of method 'niddl', expected 'unet3d'" in done.last_line


@pytest.mark.parametrize("method", ["restormer3d", "niddl", "lowrank_unet"])
def test_inference_in_bf16_gives_nearly_the_same_and_is_recorded(
    method: str, weights: Path, tmp_path: Path
) -> None:
    frames = write_recording(tmp_path / "in")
    flags = ["--method", method, "--weights", str(weights)]
    flags += [] if method in CANNOT_ADAPT else ["--steps", "0"]
    found = {}
    for precision in ("fp32", "bf16"):
        done = run(tmp_path, *flags, "--precision", precision)
        record = done.record["stacks"][0]
        assert record["precision"] == precision
        found[precision] = tifffile.imread(done.output / "mouse.tif").astype(float)
    gap = np.abs(found["fp32"] - found["bf16"]).max()
    assert gap < 0.02 * np.ptp(frames)


def test_16_bits_are_stretched_over_the_result_only_where_asked(
    weights: Path, tmp_path: Path
) -> None:
    write_recording(tmp_path / "in")
    flags = ("--method", "unet_att", "--weights", str(weights), "--steps", "0")
    plain = run(tmp_path, *flags)
    result = plain.output / "mouse.tif"
    own = tifffile.imread(result).astype(float)
    assert run(tmp_path, *flags, "--stretch-16bit").code == 0
    stretched = tifffile.imread(result)
    assert stretched.dtype == np.uint16
    assert (stretched.min(), stretched.max()) == (0, 65535)
    record = plain.record["stacks"][0]
    low, high = record["stretched_from"]
    restored = low + (high - low) * stretched / 65535
    np.testing.assert_allclose(restored, own, atol=0.51)  # what rounding to whole counts took
    assert sorted(path.name for path in plain.output.iterdir()) == [RECORD_NAME, "mouse.tif"]
    refused = run(tmp_path, "--method", "unet3d", "--weights", str(weights), "--stretch-16bit")
    assert refused.code == 2
    assert "belongs to unet_att" in refused.last_line


def test_the_published_gain_is_off_and_can_be_asked_for(weights: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "in")
    flags = ("--method", "unet_att", "--weights", str(weights), "--steps", "0")
    plain = run(tmp_path, *flags)
    first = tifffile.imread(plain.output / "mouse.tif")
    assert run(tmp_path, *flags, "--keep-brightness").code == 0
    assert not np.array_equal(first, tifffile.imread(plain.output / "mouse.tif"))
    refused = run(tmp_path, "--method", "unet3d", "--weights", str(weights), "--keep-brightness")
    assert refused.code == 2
    assert "belongs to unet_att" in refused.last_line


@pytest.mark.parametrize("method", ["unet3d", "niddl"])
def test_the_mean_image_may_be_left_as_the_network_gives_it(
    method: str, weights: Path, tmp_path: Path
) -> None:
    noisy = write_recording(tmp_path / "in").astype(np.float64)
    flags = ("--method", method, "--weights", str(weights))
    away = {}
    for mean in ("recording", "network"):
        done = run(tmp_path, *flags, "--mean-image", mean)
        assert done.code == 0
        record = done.record["stacks"][0]
        assert (record["mean_blur"] is None) == (mean == "network")
        away[mean] = abs(tifffile.imread(done.output / "mouse.tif").mean() - noisy.mean())
    assert away["recording"] < 1 < away["network"]  # an untrained network's is anywhere


@pytest.mark.parametrize("method", ["auto", "lowrank"])
def test_the_mean_image_of_a_network_without_windows_is_refused(
    method: str, tmp_path: Path
) -> None:
    write_recording(tmp_path / "in")
    done = run(tmp_path, "--method", method, "--mean-image", "network")
    assert done.code == 2
    assert "--mean-image network belongs to the methods with windows" in done.last_line


# ---- Pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lowrank", "niddl"])
def test_a_picture_of_every_stack_is_drawn_where_asked_for(
    method: str, weights: Path, tmp_path: Path
) -> None:
    write_recording(tmp_path / "in")
    write_recording(tmp_path / "in/deep")
    constant = np.full(SHAPE, 7, np.uint16)
    tifffile.imwrite(tmp_path / "in/constant.tif", constant, photometric="minisblack")
    flags = ("--method", method, "--weights", str(weights))
    done = run(tmp_path, *flags, "--pictures")
    assert (done.code, done.last_line) == (0, "")
    drawn = done.output / "pictures"
    pictures = sorted(str(path.relative_to(drawn)) for path in drawn.rglob("*") if path.is_file())
    assert pictures == ["deep/mouse.tif.png", "mouse.tif.png"]
    with_picture = (done.output / "mouse.tif").read_bytes()
    shutil.rmtree(done.output)
    assert run(tmp_path, *flags).code == 0
    assert not drawn.exists()
    assert (done.output / "mouse.tif").read_bytes() == with_picture


def test_the_platform_which_takes_one_image_gets_no_picture(weights: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "in" / PLATFORM_INPUT)
    done = run(tmp_path, "--method", "lowrank", "--weights", str(weights), "--pictures")
    assert (done.code, done.last_line) == (0, "")
    written = {path.name for path in done.output.rglob("*") if path.is_file()}
    assert written == {RECORD_NAME, "mouse.tif"}


def test_a_picture_that_cannot_be_drawn_costs_no_result(weights: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pictures").write_text("in the way")
    done = run(tmp_path, "--method", "lowrank", "--weights", str(weights), "--pictures")
    assert (done.code, done.last_line) == (0, "")
    assert (done.output / "mouse.tif").exists()


# ---- What a network for factors learns from the recording ---------------------------------------


def write_sample(folder: Path, num_frames: int = 256) -> None:
    """Of the recording that ships."""
    frames = tifffile.imread(SAMPLE)[:num_frames]
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "mouse.tif", frames, photometric="minisblack")


def test_a_network_for_factors_learns_from_the_recording_unless_asked_not_to(
    weights: Path, tmp_path: Path
) -> None:
    results = {}
    for steps in ((), ("--steps", "0")):
        write_sample(tmp_path / str(len(steps)) / "in", 128)
        flags = ("--method", "lowrank_unet", "--weights", str(weights), *steps)
        done = run(tmp_path / str(len(steps)), *flags)
        assert (done.code, done.last_line) == (0, "")
        results[steps] = done
    (learned,) = results[()].record["stacks"]
    assert (learned["steps_asked"], learned["steps_done"]) == (80, 80)
    before, after = learned["judged"]
    assert learned["is_adapted"] and after < before  # an untrained one has much to learn
    assert learned["checkpoint_sha256"] == file_sum(weights / "lowrank_unet.safetensors")
    (left,) = results["--steps", "0"].record["stacks"]
    assert (left["steps_asked"], left["judged"], left["is_adapted"]) == (None, None, None)
    files = [(done.output / "mouse.tif").read_bytes() for done in results.values()]
    assert files[0] != files[1]


def test_nothing_is_learned_where_noise_lasts_for_several_frames(
    weights: Path, tmp_path: Path
) -> None:
    frames = tifffile.imread(SAMPLE)[:128].astype(np.float32)
    averaged = (frames[:-2] + frames[1:-1] + frames[2:]) / 3
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/mouse.tif", averaged, photometric="minisblack")
    done = run(tmp_path, "--method", "lowrank_unet", "--weights", str(weights))
    (stack,) = done.record["stacks"]
    assert stack["status"] == "denoised"
    assert stack["doubts"] and stack["judged"] is None


# ---- What is taken where none is named ---------------------------------------------------------


def methods_used(done: Outcome) -> list[str]:
    assert (done.code, done.last_line) == (0, "")
    record = done.record
    return [record["method"], *(stack["method"] for stack in record["stacks"])]


def test_the_whole_recording_speaks_where_no_method_is_named(weights: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "in")
    assert methods_used(run(tmp_path, "--weights", str(weights))) == ["lowrank_unet"] * 2


@pytest.mark.parametrize("flags", [("--steps", "1"), ("--steps", "0", "--precision", "fp32")])
def test_asking_for_iterations_or_a_precision_asks_for_restormer3d(
    flags: tuple[str, ...], weights: Path, tmp_path: Path
) -> None:
    write_recording(tmp_path / "in")
    assert methods_used(run(tmp_path, "--weights", str(weights), *flags)) == ["restormer3d"] * 2


def test_a_folder_of_weights_decides_by_what_it_holds(weights: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "in")
    shutil.copy(weights / "restormer3d.safetensors", tmp_path)
    done = run(tmp_path, "--weights", str(tmp_path), "--time-limit", "5")
    assert methods_used(done) == ["restormer3d"] * 2


def test_stacks_of_few_frames_are_denoised_like_any_other(tmp_path: Path) -> None:
    noisy = write_recording(tmp_path / "in/few", (3, 40, 36))
    write_recording(tmp_path / "in/one", (1, 40, 36))
    assert methods_used(run(tmp_path)) == ["lowrank_unet"] * 3
    for name, count in (("few", 3), ("one", 1)):
        result = tifffile.imread(tmp_path / "out" / name / "mouse.tif").reshape(-1, 40, 36)
        assert result.shape[0] == count
        assert result.mean() == pytest.approx(300, rel=0.02)
        assert result.std() < 0.4 * noisy.std()
