"""What goes wrong leaves whole results alone behind; `python -m lab.trust` tries more of it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import faults
from lab.faults import FAULTS, Bench, Fault, NotTriedError

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
