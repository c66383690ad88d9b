"""What a training run needs to go on exactly where it was, in files small enough to be moved.

One folder: `state.json`, and the tensors it names in safetensors files below 15 MB each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

STATE_FILE = "state.json"
MAX_TENSOR_BYTES = 14_800_000  # in one file, which leaves room for its header below 15 MB


class ResumeError(ValueError):
    """A run that cannot be taken up, or put down; the message says why."""


def _chunks(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in order, in groups that fit a file; a larger tensor has one to itself."""
    chunks: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if chunks[-1] and filled + tensor.nbytes > MAX_TENSOR_BYTES:
            chunks.append({})
            filled = 0
        chunks[-1][name] = tensor.detach().cpu().contiguous()
        filled += tensor.nbytes
    return chunks


def save_run(
    folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    """Replace what the folder holds; whatever happens, it holds one whole state afterwards.

    Raises ResumeError where the disk does not take it.
    """
    files: dict[str, list[str]] = {part: [] for part in parts}
    temporary = folder / ".tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, tensors in parts.items():
            for number, chunk in enumerate(_chunks(tensors)):
                name = f"{step:07d}-{part}-{number}.safetensors"
                safetensors.torch.save_file(chunk, temporary)
                temporary.replace(folder / name)
                files[part].append(name)
        temporary.write_text(json.dumps({"step": step, "files": files, **state}, indent=1))
        temporary.replace(folder / STATE_FILE)  # from here on the new state counts
    except (OSError, safetensors.SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise ResumeError(
            f"{folder}: the state of iteration {step} cannot be written ({error}); the one before "
            "stays; make room and run the same command again"
        ) from error
    kept = {name for names in files.values() for name in names}
    for old in folder.glob("*.safetensors"):
        if old.name not in kept:
            old.unlink()


def load_run(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The parts and the state that were saved last; None where nothing was."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text())
        parts = {
            part: {k: v for name in names for k, v in _tensors(folder / name).items()}
            for part, names in state.pop("files").items()
        }
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ResumeError(
            f"{folder}: damaged ({error}); restore it, or remove it to begin anew"
        ) from error
    return parts, state


def _tensors(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load(path.read_bytes())


def require_same(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with other numbers than a run was begun with, naming the first of them."""
    for name in [*wanted, *(name for name in saved if name not in wanted)]:
        if saved.get(name) != wanted.get(name):
            raise ResumeError(
                f"{folder}: was begun with {name} = {saved.get(name)}, asked for is "
                f"{wanted.get(name)}; use the same, or another --out, or remove the folder"
            )
