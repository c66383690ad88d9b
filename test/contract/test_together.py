"""--normalise-together: the files of one recording come out as if they were one file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from model.frames import JoinedFrames
from model.report import RECORD_NAME

PROGRAM = Path(__file__).parents[2] / "process.py"
LENGTHS = {"part 2.tif": 38, "part 10.tif": 22, "part 11.tif": 30}  # in this order, not by letters


def movie(num_frames: int, seed: int = 0) -> np.ndarray:
    """Cells that flash and a baseline that drifts, in noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :36]
    time = np.arange(num_frames)
    scene = np.full((num_frames, 40, 36), 200.0)
    for row, column, period in ((10, 10, 17), (28, 24, 29), (15, 27, 41)):
        spot = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 12)
        scene += 300 * np.exp(-(time % period) / 5)[:, None, None] * spot
    scene *= (1 - 0.3 * time / num_frames)[:, None, None]
    return rng.poisson(scene).astype(np.uint16)


WHOLE = movie(sum(LENGTHS.values()))


def save(folder: Path, lengths: dict[str, int] = LENGTHS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for name, length in lengths.items():
        part = WHOLE[start : start + length]
        tifffile.imwrite(folder / name, part, photometric="minisblack")
        start += length
    return folder


def run(source: Path, output: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    folders = ["--input-dir", str(source), "--output-dir", str(output)]
    return subprocess.run(
        [sys.executable, str(PROGRAM), *folders, "--device", "cpu", *flags],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def records(output: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((output / RECORD_NAME).read_text())["stacks"]
    return {Path(stack["file"]).name: stack for stack in found}


@pytest.mark.parametrize("flags", [("--method", "lowrank"), ()], ids=["lowrank", "default"])
def test_the_parts_come_out_as_the_whole_would(tmp_path: Path, flags: tuple[str, ...]) -> None:
    save(tmp_path / "one", {"all.tif": len(WHOLE)})
    assert run(tmp_path / "one", tmp_path / "out one", *flags).returncode == 0
    whole = tifffile.imread(tmp_path / "out one" / "all.tif")
    save(tmp_path / "parts")
    ended = run(tmp_path / "parts", tmp_path / "out", *flags, "--normalise-together")
    assert (ended.returncode, ended.stderr) == (0, "")
    parts = [tifffile.imread(tmp_path / "out" / name) for name in LENGTHS]
    assert [len(part) for part in parts] == list(LENGTHS.values())
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert [Path(name).name for name in records(tmp_path / "out")["part 11.tif"]["together"]] == (
        list(LENGTHS)
    )


def test_windowed_methods_share_their_percentiles_and_each_folder_is_a_recording(
    tmp_path: Path,
) -> None:
    save(tmp_path / "in" / "a")
    save(tmp_path / "in" / "b", {"other.tif": 20})
    flags = ("--method", "niddl", "--normalise-together")
    assert run(tmp_path / "in", tmp_path / "out", *flags).returncode == 0
    found = records(tmp_path / "out")
    shared = [found[name]["percentiles"] for name in LENGTHS]
    low, high = shared[0].values()
    assert shared[1:] == shared[:-1]
    assert (low, high) == tuple(np.percentile(WHOLE, [float(p[1:]) for p in shared[0]]))
    assert found["other.tif"]["together"] is None
    assert found["other.tif"]["percentiles"] != shared[0]


def test_parts_that_do_not_fit_together_are_refused_and_other_folders_are_not(
    tmp_path: Path,
) -> None:
    save(tmp_path / "in" / "a")
    tifffile.imwrite(tmp_path / "in" / "a" / "wide.tif", WHOLE[:, :, :20], photometric="minisblack")
    save(tmp_path / "in" / "b", {"other.tif": 40})
    flags = ("--method", "lowrank", "--normalise-together")
    ended = run(tmp_path / "in", tmp_path / "out", *flags)
    assert ended.returncode == 1
    assert "wide.tif: frames of 40x20 uint16, but part 2.tif has frames of 40x36" in ended.stderr
    assert "a folder of its own, or leave out --normalise-together" in ended.stderr
    assert [path.name for path in (tmp_path / "out").rglob("*.tif")] == ["other.tif"]


def test_a_part_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    save(tmp_path / "in")
    (tmp_path / "in" / "part 10.tif").write_text("no recording")
    flags = ("--method", "lowrank", "--normalise-together")
    ended = run(tmp_path / "in", tmp_path / "out", *flags)
    assert ended.returncode == 1
    assert ended.stderr.startswith("part 10.tif: ")
    assert {path.name for path in (tmp_path / "out").glob("*.tif")} == {"part 2.tif", "part 11.tif"}


def test_a_recording_that_has_grown_is_made_anew_as_a_whole(tmp_path: Path) -> None:
    two = dict(list(LENGTHS.items())[:2])
    save(tmp_path / "in", two)
    flags = ("--method", "lowrank", "--normalise-together")
    assert run(tmp_path / "in", tmp_path / "out", *flags).returncode == 0
    before = (tmp_path / "out" / "part 2.tif").read_bytes()
    assert run(tmp_path / "in", tmp_path / "out", *flags).stdout.count("already there") == 2
    save(tmp_path / "in")
    again = run(tmp_path / "in", tmp_path / "out", *flags)
    assert again.returncode == 0
    assert "already there" not in again.stdout
    assert (tmp_path / "out" / "part 2.tif").read_bytes() != before
    (tmp_path / "in" / "part 10.tif").unlink()
    (tmp_path / "in" / "part 11.tif").unlink()
    alone = run(tmp_path / "in", tmp_path / "out", *flags)
    assert "already there" not in alone.stdout


def test_joined_frames_are_the_frames_of_the_whole() -> None:
    joined = JoinedFrames([WHOLE[:38], WHOLE[38:60], WHOLE[60:]])
    assert len(joined) == len(WHOLE)
    assert joined.shape == WHOLE.shape
    np.testing.assert_array_equal(list(joined), WHOLE)
    assert joined.spans() == [slice(0, 38), slice(38, 60), slice(60, 90)]
