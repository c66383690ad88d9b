"""SIGKILL at any moment: what lies in the output folder is whole, and the next job cleans up."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from model.report import RECORD_NAME

PROGRAM = Path(__file__).parents[2] / "process.py"
NAMES = {"a.tif", "b.tif", "c.tif"}
NUM_KILLS = 10


def start(folder: Path, output: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, str(PROGRAM), "--method", "lowrank", "--device", "cpu", "--overwrite",
        "--input-dir", str(folder / "in"), "--output-dir", str(folder / output),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings, and in `whole` what an undisturbed job makes of them."""
    folder = tmp_path_factory.mktemp("kill")
    (folder / "in").mkdir()
    for seed, name in enumerate(sorted(NAMES)):
        frames = np.random.default_rng(seed).poisson(300, (60, 50, 60)).astype(np.uint16)
        tifffile.imwrite(folder / "in" / name, frames, photometric="minisblack")
    with start(folder, "whole") as process:
        assert process.wait(timeout=240) == 0
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()} - {RECORD_NAME}


def test_what_a_killed_job_leaves_is_whole_and_the_next_job_cleans_up(folder: Path) -> None:
    rng = np.random.default_rng(0)
    num_left_behind = 0
    for _ in range(NUM_KILLS):
        with start(folder, "out") as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("[1/3]"):
                    break
            time.sleep(rng.uniform(0, 0.8))
            process.kill()
        left = files(folder / "out")
        num_left_behind += len(left - NAMES)
        assert all(name in NAMES or name.startswith(".") for name in left)
        for name in left & NAMES:
            made, whole = ((folder / part / name).read_bytes() for part in ("out", "whole"))
            assert made == whole
    assert num_left_behind, "no kill came while a result was under way"
    with start(folder, "out") as process:
        assert process.wait(timeout=240) == 0
    assert files(folder / "out") == NAMES
    for name in NAMES:
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()
