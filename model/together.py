"""Which files are parts of one recording."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from model.stack import Stack, StackError
from model.stack_io import StackPaths


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Key by which part 2 comes before part 10."""
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces if piece]


def recordings(stacks: Sequence[StackPaths]) -> list[list[StackPaths]]:
    """The stacks of each folder, parts of one recording in the order of their numbers."""
    ordered = sorted(stacks, key=lambda paths: (paths.source.parent, _in_order(paths.source)))
    return [list(group) for _, group in groupby(ordered, key=lambda paths: paths.source.parent)]


def require_alike(stacks: Sequence[Stack]) -> None:
    """Refuse parts of different height, width or dtype; StackError naming two of them."""

    def kind(stack: Stack) -> str:
        return f"frames of {stack.shape[1]}x{stack.shape[2]} {stack.dtype}"

    first = stacks[0]
    for stack in stacks[1:]:
        if kind(stack) != kind(first):
            raise StackError(
                f"{stack.path.name}: {kind(stack)}, but {first.path.name} has {kind(first)}: they "
                "are no parts of one recording; give each recording a folder of its own, or leave "
                "out --normalise-together"
            )
