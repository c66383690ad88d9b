"""Trained networks on disk: safetensors files that carry their method, sizes and origin.

No pickle is ever read or written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from model.architectures import ARCHITECTURES, build
from model.config import METHODS

logger = logging.getLogger(__name__)

SUMS_FILE = "SHA256SUMS"
PUBLISHED = {"origin": "the checkpoint that the method's authors published"}


class CheckpointError(ValueError):
    """Weights that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors of one network with what is needed to rebuild it."""

    method: str
    config: Mapping[str, Any]  # the architecture's own sizes
    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""  # of the file it came from


def expected_sum(path: Path) -> str | None:
    """The sum that the folder's SHA256SUMS promises for a file, None where it names none."""
    sums = path.parent / SUMS_FILE
    if not sums.is_file():
        return None
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.strip().partition(" ")
        if name.strip().lstrip("*") == path.name:
            return digest.lower()
    return None


def find_checkpoint(method: str, folders: list[Path]) -> Path | None:
    """The first folder's checkpoint of a method; None where no folder has or promises one.

    Raises CheckpointError where SHA256SUMS names the file and it is not there: a damaged
    installation must not turn silently into hours of training from scratch.
    """
    for folder in folders:
        path = folder / f"{method}.safetensors"
        if path.is_file():
            return path
        if expected_sum(path) is not None:
            raise CheckpointError(
                f"{path}: missing, although {SUMS_FILE} beside it names it; restore the file, "
                f"or remove its line to train from scratch on every stack"
            )
    return None


def read_checkpoint(path: Path, method: str) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises CheckpointError for a wrong sum, a damaged or foreign file, another method's weights,
    or tensors that do not fit the network.
    """
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    promised = expected_sum(path)
    if promised is not None and promised != sha256:
        raise CheckpointError(
            f"{path}: SHA-256 is {sha256[:12]}..., {SUMS_FILE} promises {promised[:12]}...; the "
            f"file is damaged or was replaced: restore it, or correct {SUMS_FILE} if you meant to"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        from_published = ARCHITECTURES[METHODS[method].network].from_published
        if from_published and "method" not in metadata:
            tensors = from_published(tensors)
            metadata = {"method": method, "config": "{}", "provenance": json.dumps(PUBLISHED)}
        found, config = metadata["method"], json.loads(metadata["config"])
        provenance = json.loads(metadata.get("provenance", "{}"))
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); restore it"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path}: neither a checkpoint of this program nor the one its authors published "
            f"({error}); save it with model.checkpoint.save_checkpoint"
        ) from error
    except KeyError as error:
        raise CheckpointError(
            f"{path}: has no {error} in its metadata, so it is no checkpoint of this program; "
            f"save it with model.checkpoint.save_checkpoint"
        ) from error
    if found != method:
        hint = f", or choose --method {found}" if found in METHODS else ""
        raise CheckpointError(
            f"{path}: holds weights of method {found!r}, expected {method!r}; put the right file "
            f"there{hint}"
        )
    checkpoint = Checkpoint(
        method=found, config=config, tensors=tensors, provenance=provenance, sha256=sha256
    )
    try:
        load_network(checkpoint)  # better known now than at the first stack
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; restore the file") from error
    return checkpoint


def load_network(checkpoint: Checkpoint) -> nn.Module:
    """A fresh network with the checkpoint's weights, on the CPU; strict about names and shapes."""
    try:
        net = build(METHODS[checkpoint.method].network, **checkpoint.config)
        net.load_state_dict(dict(checkpoint.tensors), strict=True)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the weights do not fit the sizes that their own metadata give ({reason[:200]})"
        ) from error
    return net


def save_checkpoint(
    path: Path, net: nn.Module, *, method: str, provenance: Mapping[str, Any]
) -> None:
    """Write a network with its method, sizes and origin; the file appears whole or not at all.

    Its folder is made where there is none.
    """
    config = dataclasses.asdict(net.config)  # type: ignore[call-overload]
    metadata = {
        "method": method,
        "config": json.dumps(config),
        "provenance": json.dumps(provenance),
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    safetensors.torch.save_file(tensors, temporary, metadata=metadata)
    temporary.chmod(0o644)  # the library makes it private, the image's user must read it
    temporary.replace(path)
