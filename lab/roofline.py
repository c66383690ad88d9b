"""What a computation costs at least: its operations and bytes, and how fast this machine does them.

The roofline of Williams, Waterman and Patterson, Communications of the ACM 52(4):65, 2009, with
both peaks measured by what the library itself does best.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

MATRIX_SIDE = 2048
COPIED_VALUES = 2**26  # 256 MiB: far beyond any cache
ROUNDS = 7


def fastest_of(task: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds of the fastest run, after one that warms up."""
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


class _CountBytes(TorchDispatchMode):
    """Adds up what every operation reads and writes; views do neither."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not (func.is_view or func.namespace == "prim" or "empty" in func.name()):
            touched = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in touched)
        return made


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a computation does."""

    operations: int  # of floating point in matrix products and convolutions: two a multiplication
    bytes: int  # to and from memory, were nothing kept in a cache from one step to the next

    @property
    def in_half(self) -> Work:
        """The same in numbers of half the size."""
        return replace(self, bytes=self.bytes // 2)

    @classmethod
    def of(cls, forward: Callable[[], Tensor], *, backward: bool = False) -> Work:
        """Counted while it runs once.

        The gradients take twice the operations of the forward pass, by its inputs and by its
        weights; the library's own count for depth-wise convolutions is of dense ones.
        """
        with _CountBytes() as moved:
            with FlopCounterMode(display=False) as counted:
                result = forward()
            if backward:
                result.backward()
        operations = counted.get_total_flops() * (3 if backward else 1)
        return cls(operations=operations, bytes=moved.bytes)


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What a machine can do in a second."""

    operations: float
    bytes: float

    @classmethod
    def measured(cls) -> Peaks:
        """This machine, by a product of two large matrices, and a copy."""
        left, right = torch.rand(2, MATRIX_SIDE, MATRIX_SIDE)
        source = torch.rand(COPIED_VALUES)
        target = torch.empty_like(source)
        product = fastest_of(lambda: left @ right)
        copy = fastest_of(lambda: target.copy_(source))
        return cls(
            operations=2 * MATRIX_SIDE**3 / product,
            bytes=2 * source.numel() * source.element_size() / copy,
        )

    def least_seconds(self, work: Work) -> float:
        """Below which no computation that does this work can be."""
        return max(work.operations / self.operations, work.bytes / self.bytes)


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU by its data sheet."""

    fp32: Peaks
    half: Peaks  # fp16 or bf16, dense


CARDS = {
    "T4": Card(
        fp32=Peaks(operations=8.1e12, bytes=320e9), half=Peaks(operations=65e12, bytes=320e9)
    ),
    "H200": Card(
        fp32=Peaks(operations=67e12, bytes=4.8e12), half=Peaks(operations=989e12, bytes=4.8e12)
    ),
}
