"""Small pieces of work on all processor cores at once.

One thread computes one piece from beginning to end. Several threads on the same piece, as torch and
numpy would have it, mostly wait for each other when it takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch may use; what is not begun is dropped at the end."""
    # the setting is each thread's own
    pool = ThreadPoolExecutor(
        torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_parallel(work: Callable[..., Result], *items: Iterable[Any]) -> Iterator[Result]:
    """What `work` makes of the items, one of each sequence, in order; the first error is raised."""
    with workers() as pool:
        yield from pool.map(work, *items)
