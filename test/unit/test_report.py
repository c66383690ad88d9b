"""The run's record: complete at any moment, small, and readable by any program."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model import report
from model.report import (
    MAX_CURVE_POINTS,
    RECORD_NAME,
    JobRecord,
    StackRecord,
    read_jobs,
    thinned,
)


def job(**changes: Any) -> JobRecord:
    values: dict[str, Any] = {
        "method": "restormer3d",
        "seed": 0,
        "time_limit": None,
        "device": "CPU",
        "device_reason": "asked for",
        "driver": None,
        "torch_version": "2.9",
    }
    return JobRecord(**{**values, **changes})


def test_a_short_curve_is_kept_as_it_is() -> None:
    assert thinned([3.0, 2.0, 1.5]) == [3.0, 2.0, 1.5]
    assert thinned([]) == []


@pytest.mark.parametrize("length", [199, 200, 201, 399, 400, 401, 4400])
def test_a_curve_never_has_more_than_200_points(length: int) -> None:
    curve = thinned([1.0] * length)
    assert MAX_CURVE_POINTS / 2 < len(curve) <= MAX_CURVE_POINTS == 200
    assert set(curve) == {1.0}


def test_a_long_curve_becomes_means_of_equal_stretches() -> None:
    assert thinned([float(i) for i in range(500)])[:3] == [1.0, 4.0, 7.0]


def test_the_last_stretch_is_the_mean_of_what_is_left() -> None:
    assert thinned([0.0] * 300 + [5.0])[-1] == 5.0


def test_losses_are_rounded_to_six_digits() -> None:
    assert thinned([0.123456789, 1234567.0]) == [0.123457, 1234570.0]


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    stack = StackRecord(file="a.tif", shape=(3, 4, 5), loss_curve=[0.5])
    job(seed=7, stacks=[stack]).write(tmp_path)
    record = json.loads((tmp_path / RECORD_NAME).read_text())
    assert record["seed"] == 7
    assert record["stacks"][0]["shape"] == [3, 4, 5]
    assert record["stacks"][0]["loss_curve"] == [0.5]


def test_a_stack_counts_as_failed_until_it_is_done() -> None:
    stack = StackRecord(file="a.tif")
    assert (stack.status, stack.error, stack.result) == ("failed", None, None)


def test_writing_again_replaces_the_record_and_leaves_nothing_else(tmp_path: Path) -> None:
    job(seed=1).write(tmp_path)
    job(seed=2).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_NAME]
    assert json.loads((tmp_path / RECORD_NAME).read_text())["seed"] == 2


def jobs_in(folder: Path) -> list[tuple[int, list[str]]]:
    """Seeds, which tell the jobs of a record apart here, and names of stacks."""
    return [(job["seed"], [s["file"] for s in job["stacks"]]) for job in read_jobs(folder)]


@pytest.fixture
def finished(tmp_path: Path) -> dict[str, StackRecord]:
    """Three stacks whose results are there."""
    for name in "abc":
        (tmp_path / name).touch()
    return {
        name: StackRecord(file=f"in/{name}", status="denoised", result=str(tmp_path / name))
        for name in "abc"
    }


def test_jobs_of_one_folder_keep_what_the_others_tell(
    tmp_path: Path, finished: dict[str, StackRecord]
) -> None:
    first, second = job(seed=1, stacks=[finished["a"]]), job(seed=2, stacks=[finished["b"]])
    first.write(tmp_path)
    second.write(tmp_path)
    assert jobs_in(tmp_path) == [(2, ["in/b"]), (1, ["in/a"])]
    first.stacks.append(finished["c"])  # it was not finished when the second began
    first.write(tmp_path)
    assert jobs_in(tmp_path) == [(1, ["in/a", "in/c"]), (2, ["in/b"])]
    job(seed=3).write(tmp_path)
    assert jobs_in(tmp_path) == [(3, []), (1, ["in/a", "in/c"]), (2, ["in/b"])]


def test_what_was_made_anew_or_is_gone_is_not_kept(
    tmp_path: Path, finished: dict[str, StackRecord]
) -> None:
    job(seed=1, stacks=list(finished.values())).write(tmp_path)
    elsewhere = StackRecord(file="other/b", status="denoised", result=finished["b"].result)
    (tmp_path / "c").unlink()
    job(seed=2, stacks=[finished["a"], elsewhere]).write(tmp_path)
    assert jobs_in(tmp_path) == [(2, ["in/a", "other/b"])]


def test_a_failure_is_kept_while_its_recording_is_there(tmp_path: Path) -> None:
    recording = tmp_path / "a.tif"
    recording.touch()
    output = tmp_path / "out"
    output.mkdir()
    job(seed=1, stacks=[StackRecord(file=str(recording), error="cut off")]).write(output)
    second = job(seed=2, stacks=[StackRecord(file="b.tif", error="empty")])
    second.write(output)
    assert jobs_in(output) == [(2, ["b.tif"]), (1, [str(recording)])]
    recording.unlink()
    second.write(output)
    assert jobs_in(output) == [(2, ["b.tif"])]


def test_a_failure_does_not_forget_the_result_that_still_stands(
    tmp_path: Path, finished: dict[str, StackRecord]
) -> None:
    job(seed=1, stacks=[finished["a"]]).write(tmp_path)
    job(seed=2, stacks=[StackRecord(file="in/a", error="out of memory")]).write(tmp_path)
    assert jobs_in(tmp_path) == [(2, ["in/a"]), (1, ["in/a"])]


def test_a_result_is_the_same_by_any_path(
    tmp_path: Path, finished: dict[str, StackRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job(seed=1, stacks=[replace(finished["a"], result="a"), finished["b"]]).write(tmp_path)
    job(seed=2, stacks=[finished["a"]]).write(tmp_path)
    assert jobs_in(tmp_path) == [(2, ["in/a"]), (1, ["in/b"])]


def test_what_cannot_be_looked_at_is_not_taken_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the folder has another name; a colleague's may be closed."""
    elsewhere = StackRecord(file="/input/a.tif", status="denoised", result="/nowhere/a.tif")
    closed = StackRecord(file=str(tmp_path / "closed.tif"), error="cut off")
    job(seed=1, stacks=[closed, elsewhere]).write(tmp_path)
    exists = Path.exists

    def refuses(self: Path) -> bool:
        if self.name == "closed.tif":
            raise PermissionError(13, "Permission denied")
        return exists(self)

    monkeypatch.setattr(Path, "exists", refuses)
    job(seed=2).write(tmp_path)
    assert jobs_in(tmp_path) == [(2, []), (1, [closed.file, elsewhere.file])]


def test_what_is_no_job_is_dropped_and_the_others_are_kept(
    tmp_path: Path, finished: dict[str, StackRecord]
) -> None:
    job(seed=1, stacks=[finished["a"]]).write(tmp_path)
    record = json.loads((tmp_path / RECORD_NAME).read_text())
    record["other_jobs"] = [3, {"stacks": []}, {**record, "seed": 5}, {**record, "stacks": [{}]}]
    (tmp_path / RECORD_NAME).write_text(json.dumps(record))
    job(seed=2).write(tmp_path)
    assert jobs_in(tmp_path) == [(2, []), (1, ["in/a"]), (5, ["in/a"])]


WRITES = """
import sys
from pathlib import Path
from model.report import JobRecord, StackRecord
folder, name = Path(sys.argv[1]), sys.argv[2]
job = JobRecord(method="", seed=0, time_limit=None, device="", device_reason="", driver=None,
                torch_version="")
for number in range(60):
    result = folder / f"{name}{number}"
    result.touch()
    job.stacks.append(StackRecord(file=result.name, status="denoised", result=str(result)))
    job.write(folder)
"""


def test_jobs_that_write_at_the_same_moment_lose_nothing(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    jobs = [
        subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path), name], cwd=root)
        for name in "ab"
    ]
    assert [each.wait(timeout=900) for each in jobs] == [0, 0]
    stacks = [stack["file"] for each in read_jobs(tmp_path) for stack in each["stacks"]]
    assert sorted(stacks) == sorted(f"{name}{number}" for name in "ab" for number in range(60))
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"stacks": 3}', '{"stacks": [3]}'])
def test_what_is_no_record_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_NAME).write_text(text)
    job(seed=1).write(tmp_path)
    assert jobs_in(tmp_path) == [(1, [])]


def test_a_job_that_hangs_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "LOCK_SECONDS", 0.7)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    begin = time.monotonic()
    job(seed=1).write(tmp_path)
    assert time.monotonic() - begin > 0.5
    os.close(descriptor)
    assert jobs_in(tmp_path) == [(1, [])]


def test_what_a_killed_job_left_of_a_record_does_not_stay(tmp_path: Path) -> None:
    killed = "import os, signal\nPath.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WRITES.replace("folder,", f"{killed}folder,", 1),
            str(tmp_path),
            "a",
        ],
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".*"))) == 1
    job(seed=1).write(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_name_that_is_not_utf_8_can_be_recorded(tmp_path: Path) -> None:
    job(stacks=[StackRecord(file="caf\udce9.tif")]).write(tmp_path)
    text = (tmp_path / RECORD_NAME).read_bytes().decode("ascii")
    assert json.loads(text)["stacks"][0]["file"] == "caf\udce9.tif"


def test_the_older_record_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(seed=1).write(tmp_path)
    write_text = Path.write_text

    def write_half(path: Path, text: str, **options: Any) -> None:
        write_text(path, text[: len(text) // 2], **options)
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="No space left"):
        job(seed=2).write(tmp_path)
    assert json.loads((tmp_path / RECORD_NAME).read_text())["seed"] == 1


def test_a_record_that_cannot_be_moved_into_place_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).mkdir()
    with pytest.raises(IsADirectoryError):
        job().write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_NAME]


def test_the_seconds_of_a_stage_add_up() -> None:
    stack = StackRecord(file="a.tif")
    for _ in range(2):
        with stack.timed("infer"):
            time.sleep(0.02)
    with stack.timed("write"):
        pass
    assert stack.seconds.keys() == {"infer", "write"}
    assert stack.seconds["infer"] >= 0.04 > stack.seconds["write"]


def test_the_seconds_of_a_stage_that_failed_are_kept() -> None:
    stack = StackRecord(file="a.tif")
    with pytest.raises(ValueError, match="bad"), stack.timed("read"):
        raise ValueError("bad")
    assert "read" in stack.seconds
