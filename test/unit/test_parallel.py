"""Pieces of work on all cores."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from model.parallel import in_parallel

WHEN_NUMPY_IS_LOADED = """
import os, sys
class Watch:
    def find_spec(name, *_):
        if name == "numpy":
            print(os.environ.get("OPENBLAS_NUM_THREADS"))
sys.meta_path.insert(0, Watch)
"""


def test_results_come_in_order_and_every_thread_computes_alone() -> None:
    def work(item: int) -> tuple[int, int, str]:
        time.sleep(0.002 * (5 - item % 5))
        return item, torch.get_num_threads(), threading.current_thread().name

    before = torch.get_num_threads()
    found = list(in_parallel(work, range(20)))
    assert [item for item, _, _ in found] == list(range(20))
    assert {threads for _, threads, _ in found} == {1}
    assert 1 <= len({name for _, _, name in found}) <= before
    assert torch.get_num_threads() == before


def test_an_error_ends_the_work() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.01)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(in_parallel(work, range(1000)))
    assert len(begun) < 100


@pytest.mark.parametrize("module", ["process", "lab.evaluate"])
@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("3", "3")])
def test_numpys_matrix_library_has_one_thread_unless_told_otherwise(
    module: str, given: str | None, kept: str
) -> None:
    """Which it reads once, when numpy is loaded."""
    script = f"{WHEN_NUMPY_IS_LOADED}\nimport {module}, numpy"
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    if given:
        environment["OPENBLAS_NUM_THREADS"] = given
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True, env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == f"{kept}\n"
