"""What counts as invented out of noise, on results that are known to hold it or not to."""

import csv
from pathlib import Path

import numpy as np
import pytest

from lab.noise import LEVELS
from lab.pure_noise import Flatness, main

# A program that answers 100 counts everywhere, and notes it as process.py does.
FLAT_PROGRAM = """
import json, sys
from pathlib import Path
import tifffile
source, target = (Path(sys.argv[sys.argv.index(f"--{n}-dir") + 1]) for n in ("input", "output"))
target.mkdir()
for path in source.iterdir():
    frames = tifffile.imread(path)
    frames[:] = 100
    tifffile.imwrite(target / path.name, frames, photometric="minisblack")
record = {"seconds": {"infer": 1.0}, "peak_host_bytes": 1, "peak_device_bytes": None}
(target / "denoising.json").write_text(json.dumps({"stacks": [record]}))
"""
SMALL = ["--levels", "2", "--shape", "40", "16", "16"]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(FLAT_PROGRAM)
    return path


def test_a_flat_result_shows_nothing_but_its_bias() -> None:
    flat = Flatness.of(np.full((40, 16, 16), 220, np.int16), truth=200.0, noise=50.0)
    assert flat.bias_percent == pytest.approx(10.0)
    assert flat.temporal_percent == flat.spatial_percent == flat.image_percent == 0
    assert flat.largest_percent == flat.largest_rise_percent == 0
    assert flat.num_events == flat.num_places == 0


def test_an_invented_transient_is_an_event_of_its_height() -> None:
    result = np.full((80, 30, 30), 100.0)
    result[40:60, 10:13, 10:13] += 50
    flat = Flatness.of(result, truth=100.0, noise=25.0)
    assert flat.num_events == 1
    assert flat.largest_rise_percent == pytest.approx(100 * 50 / result.mean())
    assert flat.largest_in_noise == pytest.approx((150 - result.mean()) / 25)
    assert flat.largest_percent == pytest.approx(100 * (150 - result.mean()) / result.mean())
    assert flat.image_percent < flat.spatial_percent


def test_an_invented_cell_is_no_event_and_still_shows_in_space() -> None:
    result = np.full((40, 20, 20), 100.0)
    result[:, 5:9, 5:9] += 30
    flat = Flatness.of(result, truth=100.0, noise=25.0)
    assert flat.temporal_percent == pytest.approx(0, abs=1e-6)
    assert flat.num_events == 0
    assert flat.image_percent == pytest.approx(flat.spatial_percent)
    assert flat.image_percent == pytest.approx(100 * result[0].std() / result.mean())


def test_white_noise_varies_as_much_in_time_as_in_space() -> None:
    result = np.random.default_rng(0).normal(200, 40, (60, 40, 40))
    flat = Flatness.of(result, truth=200.0, noise=40.0)
    assert flat.temporal_percent == pytest.approx(20, rel=0.02)
    assert flat.spatial_percent == pytest.approx(20, rel=0.02)
    assert flat.image_percent == pytest.approx(20 / 60**0.5, rel=0.05)
    assert 3 < flat.largest_in_noise < 6


def test_the_program_is_measured_beside_the_floors(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*SMALL, "--out", str(out)], program=program) == 0
    with (out / "pure_noise.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["noisy", "Gaussian 3,1,1", "Gaussian 6,1.5,1.5", "process.py"]
    deviations = [float(row["temporal_percent"]) for row in rows.values()]
    assert deviations == sorted(deviations, reverse=True)
    gain, read = LEVELS[2]
    assert deviations[0] == pytest.approx(100 * (211 * gain + read**2) ** 0.5 / 211, rel=0.05)
    assert deviations[-1] == 0
    assert float(rows["process.py"]["bias_percent"]) == pytest.approx(100 * (100 - 211) / 211)
    assert "noise level 2" in capsys.readouterr().out


def test_nothing_is_saved_where_nobody_asked(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(SMALL, program=program) == 0
    assert list((tmp_path / "here").iterdir()) == []


def test_a_program_that_fails_is_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys; sys.exit('no memory left')")
    assert main(SMALL, program=program) == 1
    assert "level 2: no memory left" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["--counts", "0"],
        ["--counts", "30000"],
        ["--shape", "40", "2", "40"],
        ["--levels", "4"],
        ["--", "--no-such-flag"],
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(argv: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argv)
