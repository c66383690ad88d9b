"""Pieces of work on all cores."""

import threading
import time

import pytest
import torch

from model.parallel import in_parallel


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
