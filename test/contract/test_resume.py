"""A job that is run again: what it leaves as it is, and what it makes anew."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from model.report import RECORD_NAME, read_jobs

PROGRAM = Path(__file__).parents[2] / "process.py"
NAMES = ("a.tif", "b.tif")


@dataclass(frozen=True)
class Outcome:
    stdout: str
    made: set[str]  # results of this job, by the moment they were written
    record: dict[str, Any]

    def said_of(self, name: str) -> bool:
        return f"{name}\n  already there" in self.stdout


def write(path: Path, seed: int) -> None:
    frames = np.random.default_rng(seed).poisson(300, (20, 24, 26)).astype(np.uint16)
    tifffile.imwrite(path, frames, photometric="minisblack")


@dataclass(frozen=True)
class Place:
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def command(self, source: str, *flags: str) -> list[str]:
        return [
            sys.executable, str(PROGRAM), "--input-dir", str(self.folder / source), "--output-dir",
            str(self.output), "--method", "lowrank", "--device", "cpu", *flags,
        ]  # fmt: skip

    def run(self, *flags: str, source: str = "in") -> Outcome:
        before = {path.name: path.stat().st_mtime_ns for path in self.output.glob("*.tif")}
        command = self.command(source, *flags)
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        after = {path.name: path.stat().st_mtime_ns for path in self.output.glob("*.tif")}
        made = {name for name, moment in after.items() if before.get(name) != moment}
        record = json.loads((self.output / RECORD_NAME).read_text())
        return Outcome(done.stdout, made, record)

    @contextmanager
    def changed_record(self) -> Iterator[dict[str, Any]]:
        """What the last job noted, to be changed before the next."""
        path = self.output / RECORD_NAME
        record = json.loads(path.read_text())
        yield record
        path.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def first_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Path]:
    """Where a job has made results of two recordings, and a copy of all that."""
    place = Place(tmp_path_factory.mktemp("first") / "place")
    (place.folder / "in").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        write(place.folder / "in" / name, seed)
    assert place.run().made == set(NAMES)
    copy = place.folder.with_name("copy")
    shutil.copytree(place.folder, copy)
    return place, copy


@pytest.fixture
def place(first_job: tuple[Place, Path]) -> Place:
    """Two recordings, of which a first job has made results; at the same path for every test."""
    place, copy = first_job
    shutil.rmtree(place.folder)
    shutil.copytree(copy, place.folder)
    return place


def test_what_is_there_is_left_as_it_is(place: Place) -> None:
    again = place.run()
    assert again.made == set()
    assert all(map(again.said_of, NAMES))
    assert "2 of 2 stacks written" in again.stdout
    assert [stack["is_from_before"] for stack in again.record["stacks"]] == [True, True]
    # and is known to the next job as well
    assert place.run().made == set()


def test_overwrite_makes_all_anew(place: Place) -> None:
    assert place.run("--overwrite").made == set(NAMES)


def flip_a_byte(place: Place) -> None:
    path = place.output / "a.tif"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_off(place: Place) -> None:
    path = place.output / "a.tif"
    path.write_bytes(path.read_bytes()[:-100])


def record_again(place: Place) -> None:
    write(place.folder / "in" / "a.tif", seed=9)


@pytest.mark.parametrize(
    "change",
    [flip_a_byte, cut_off, record_again, lambda place: (place.output / "a.tif").unlink()],
)
def test_what_is_no_longer_right_is_made_anew_and_the_rest_is_not(
    place: Place, change: Callable[[Place], None]
) -> None:
    change(place)
    again = place.run()
    assert again.made == {"a.tif"}
    assert again.said_of("b.tif")
    assert {Path(s["file"]).name: s["is_from_before"] for s in again.record["stacks"]} == {
        "a.tif": False,
        "b.tif": True,
    }


def test_other_settings_make_all_anew_and_say_which(place: Place) -> None:
    again = place.run("--seed", "1")
    assert again.made == set(NAMES)
    assert "made anew, as seed changed" in again.stdout


def test_another_version_of_the_program_makes_all_anew(place: Place) -> None:
    with place.changed_record() as record:
        record["settings"]["program"] = "that of last year"
    again = place.run()
    assert again.made == set(NAMES)
    assert "made anew, as program changed" in again.stdout


def test_what_another_checkpoint_denoised_is_made_anew(place: Place) -> None:
    with place.changed_record() as record:
        record["settings"]["checkpoint"] = "of an earlier one"
    again = place.run()
    assert again.made == set(NAMES)
    assert "made anew, as checkpoint changed" in again.stdout


def test_a_new_recording_is_all_that_is_done(place: Place) -> None:
    write(place.folder / "in" / "c.tif", seed=3)
    assert place.run().made == {"c.tif"}


def test_what_other_recordings_left_in_the_folder_is_still_known(place: Place) -> None:
    (place.folder / "later").mkdir()
    write(place.folder / "later" / "c.tif", seed=3)
    later = place.run("--seed", "1", source="later")
    assert later.made == {"c.tif"}
    assert "made anew" not in later.stdout
    assert [len(job["stacks"]) for job in later.record["other_jobs"]] == [2]
    assert place.run().made == set()
    assert place.run("--seed", "1", source="later").made == set()


def test_two_jobs_at_once_forget_nothing_of_each_other(place: Place) -> None:
    folders = ("one", "two")
    for number, folder in enumerate(folders):
        (place.folder / folder).mkdir()
        for seed in range(3):
            write(place.folder / folder / f"{folder}{seed}.tif", seed=10 * number + seed)
    jobs = [
        subprocess.Popen(place.command(folder), stdout=subprocess.DEVNULL) for folder in folders
    ]
    assert [job.wait(timeout=900) for job in jobs] == [0, 0]
    known = {Path(s["file"]).name for job in read_jobs(place.output) for s in job["stacks"]}
    assert known == {path.name for path in place.output.glob("*.tif")}
    assert len(known) == 8


@pytest.mark.parametrize("text", ["", "[]", '{"stacks": 3, "settings": {}}', "{"])
def test_a_record_that_is_none_makes_all_anew(place: Place, text: str) -> None:
    (place.output / RECORD_NAME).write_text(text)
    again = place.run()
    assert again.made == set(NAMES)
    assert "cannot be read" in again.stdout


def test_a_result_that_failed_is_tried_again(place: Place) -> None:
    with place.changed_record() as record:
        record["stacks"][0] |= {"status": "failed", "error": "out of memory"}
    assert place.run().made == {"a.tif"}


def test_what_a_time_limit_shortened_counts_under_that_limit_alone(place: Place) -> None:
    with place.changed_record() as record:
        record["stacks"][0] |= {
            "shortened": ["adaptation 800 to 20 iterations"],
            "time_limit": 60.0,
        }
    assert place.run("--time-limit", "60").made == set()
    assert place.run().made == {"a.tif"}
