"""How much memory is left, by the files that say so."""

from pathlib import Path

import pytest

from model.memory import available_bytes, left_by_groups

MIB = 2**20


def group(folder: Path, names: tuple[str, str], limit: str, used: int, cache: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(text + "\n")
    (folder / "memory.stat").write_text(cache)


def new(folder: Path, limit: str, used: int, cached: int = 9) -> None:
    names = ("memory.max", "memory.current")
    group(folder, names, limit, used, f"file 7\ninactive_file {cached - 9}\nactive_file 9\n")


def old(folder: Path, limit: str, used: int, cached: int = 0) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(folder, names, limit, used, f"active_file 3\ntotal_active_file {cached}\n")


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert left_by_groups(tmp_path, "0::/user.slice\n") == float("inf")
    assert left_by_groups(tmp_path, "") == float("inf")


def test_a_containers_own_limit_less_what_is_used_of_it(tmp_path: Path) -> None:
    new(tmp_path, str(100 * MIB), 40 * MIB, cached=10 * MIB)
    assert left_by_groups(tmp_path, "0::/\n") == 70 * MIB
    assert left_by_groups(tmp_path, "0::/docker/of-the-host\n") == 70 * MIB


@pytest.mark.parametrize("limit, left", [("max", 50), (str(60 * MIB), 20)])
def test_the_tightest_of_the_groups_above_counts(tmp_path: Path, limit: str, left: int) -> None:
    new(tmp_path / "slurm", str(90 * MIB), 40 * MIB + 9)
    new(tmp_path / "slurm/job_7", limit, 40 * MIB + 9)
    (tmp_path / "slurm/job_7/step_0").mkdir()
    assert left_by_groups(tmp_path, "0::/slurm/job_7/step_0\n") == left * MIB


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    old(tmp_path / "memory", "9223372036854771712", 300 * MIB)
    old(tmp_path / "memory/slurm/job_7", str(100 * MIB), 60 * MIB, cached=MIB)
    membership = "12:cpu,cpuacct:/slurm/job_7\n5:memory:/slurm/job_7\n0::/\n"
    assert left_by_groups(tmp_path, membership) == 41 * MIB


def test_some_memory_is_left_here() -> None:
    assert 0 < available_bytes() < float("inf")
