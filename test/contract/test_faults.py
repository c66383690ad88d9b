"""What goes wrong leaves whole results alone behind; `python -m lab.trust` tries more of it."""

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import tifffile

from lab import faults
from lab.faults import FAULTS, Bench, Fault, NotTriedError
from lab.inject import FORWARD, STAGES

QUICK = {fault.name: fault for fault in FAULTS if "--steps" not in fault.flags}
NUM_KILLS = 10


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def problems(bench: Bench) -> dict[str, list[str] | NotTriedError]:
    """Of every fault; two at a time, for half of a short job is spent on one core, loading."""
    for fault in QUICK.values():
        bench.whole(fault.flags)

    def tried(fault: Fault) -> list[str] | NotTriedError:
        try:
            return bench.try_fault(fault)
        except NotTriedError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(QUICK, pool.map(tried, QUICK.values()), strict=True))


@pytest.mark.parametrize("name", QUICK)
def test_only_whole_results_are_left_and_the_next_job_completes_them(
    name: str, problems: dict[str, list[str] | NotTriedError]
) -> None:
    found = problems[name]
    if isinstance(found, NotTriedError):
        pytest.skip(str(found))
    assert found == []


def test_every_place_where_something_is_made_to_go_wrong_is_in_the_program() -> None:
    """Also those that only `python -m lab.trust` has the time for."""
    for where in (*STAGES.values(), FORWARD):
        module, _, path = where.partition(":")
        assert callable(attrgetter(path)(import_module(module))), where


def test_a_job_killed_at_any_moment_leaves_whole_results(bench: Bench) -> None:
    problems, num_unfinished = bench.kill_at_random(NUM_KILLS)
    assert problems == []
    assert num_unfinished, "no kill came while a result was under way"


def test_a_result_that_differs_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench itself can fail: another seed gives other results than those it compares with."""
    fault = QUICK["network not finite"]
    bench.whole(fault.flags)
    start = Bench._start

    def with_another_seed(source: Path, output: Path, flags: tuple[str, ...], *rest: str) -> object:
        return start(source, output, (*flags, "--method", "lowrank"), *rest)

    monkeypatch.setattr(faults.Bench, "_start", staticmethod(with_another_seed))
    found = bench.try_fault(fault)
    assert "exit code 0, not 1" in found
    assert "a.tif not as undisturbed" in found


def test_nothing_is_written_outside_the_output_folder(tmp_path: Path) -> None:
    """Links that lead out of the input are read, and what they lead to stays as it is."""
    frames = np.random.default_rng(0).poisson(300, (20, 24, 24)).astype(np.uint16)
    elsewhere, source = tmp_path / "elsewhere", tmp_path / "in"
    for folder in (elsewhere / "deep", source):
        folder.mkdir(parents=True)
        tifffile.imwrite(folder / "a.tif", frames, photometric="minisblack")
    (source / "absolute.tif").symlink_to((elsewhere / "deep" / "a.tif").resolve())
    (source / "folder").symlink_to((elsewhere / "deep").resolve())
    (source / "..up.tif").symlink_to("../elsewhere/deep/a.tif")
    # in the place of a result, a link to something precious
    (tmp_path / "out").mkdir()
    (elsewhere / "precious.txt").write_text("precious")
    (tmp_path / "out" / "a.tif").symlink_to((elsewhere / "precious.txt").resolve())

    def snapshot() -> dict[Path, bytes]:
        folders = (elsewhere, source)
        return {p: p.read_bytes() for f in folders for p in f.rglob("*") if p.is_file()}

    before = snapshot()
    ended = Bench._start(source, tmp_path / "out", ("--method", "lowrank"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert snapshot() == before
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.iterdir()} == {"elsewhere", "in", "out"}
    results = sorted(
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.tif")
    )
    assert results == ["a.tif", "absolute.tif", "folder/a.tif"]
    assert not (tmp_path / "out" / "a.tif").is_symlink()
