"""Methods that work on files, ours and other people's, and how what they gave is kept.

They may take hours; the floors, which take seconds, are `lab.floors`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from lab.peers.runner import PEERS, SCRIPTS, Peer, PeerError, PeerRun, run_peer
from model.checkpoint import CheckpointError, find_checkpoint
from model.config import METHODS, RunConfig, UsageError
from model.job import MOUNTED_WEIGHTS, SHIPPED_WEIGHTS
from model.report import RECORD_NAME
from model.resume import code_sum, file_sum
from model.stack import StackError
from model.stack_io import read_stack

PROGRAM = Path(__file__).resolve().parent.parent / "process.py"
OWN_FLAGS = ("--input-dir", "--output-dir", "--method")  # that an evaluation sets itself
CODE = "code_sha256"  # among a method's settings: a result outlives a change of it
OTHER_CODE = "kept from before the code changed"


class ContenderError(RuntimeError):
    """A method that gave no result; the message is its own reason."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one result took."""

    seconds: float
    peak_bytes: int | None = None  # of host memory
    device_bytes: int | None = None  # of the GPU's, where there was one


class Contender(Protocol):
    """A method that works on files."""

    @property
    def name(self) -> str:
        """Of rows and folders."""

    def settings(self) -> dict[str, Any]:
        """All that a result depends on besides the recording, ready for JSON."""

    def denoise(self, noisy: Path, result: Path) -> Cost:
        """Write the result for a recording; ContenderError where there is none."""


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command's own arguments, and the flags of process.py that follow after "--"."""
    end = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:end]), list(argv[end + 1 :])


# ---- Our own methods ----------------------------------------------------------------------------


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return " ".join(lines[-1].split()) if lines else ""


def run_program(noisy: Path, result: Path, flags: Sequence[str], program: Path = PROGRAM) -> Cost:
    """Run process.py on a folder with one recording, as a user would; what it says goes to stderr.

    One recording at a time, so that each is kept when the next one is interrupted, and the peak of
    memory is its own. DENOISE_ variables are not passed on: the flags alone decide.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DENOISE_")}
    with tempfile.TemporaryDirectory(prefix=".run-", dir=result.parent) as name:
        source, target = Path(name) / "noisy", Path(name) / "denoised"
        source.mkdir()
        (source / noisy.name).symlink_to(noisy.resolve())
        folders = ["--input-dir", str(source), "--output-dir", str(target)]
        finished = subprocess.run(  # noqa: S603
            [sys.executable, str(program), *flags, *folders],
            env=environment, stdout=sys.__stderr__, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if finished.returncode != 0:
            reason = _last_line(finished.stderr) or f"exit code {finished.returncode}"
            raise ContenderError(reason)
        record = json.loads((target / RECORD_NAME).read_bytes())["stacks"][0]
        (target / noisy.name).replace(result)
    return Cost(
        seconds=sum(record["seconds"].values()),
        peak_bytes=record["peak_host_bytes"],
        device_bytes=record["peak_device_bytes"],
    )


def _checkpoint_sum(method: str, weights: Path | None) -> str | None:
    """SHA-256 of the checkpoint that the program will take; None: it learns from scratch."""
    folders = [weights] if weights else [MOUNTED_WEIGHTS, SHIPPED_WEIGHTS]
    path = find_checkpoint(method, folders)
    return file_sum(path) if path else None


def _program_sum(program: Path) -> str:
    """SHA-256 over the program's own code."""
    return hashlib.sha256(
        (file_sum(program) + code_sum(program.parent / "model")).encode()
    ).hexdigest()


@dataclass(frozen=True, kw_only=True)
class OurMethod:
    """A method of the table in model.config, run by process.py."""

    name: str  # "METHOD" or "METHOD@STEPS"
    flags: tuple[str, ...]
    program: Path = PROGRAM

    @property
    def _flags(self) -> list[str]:
        method, _, steps = self.name.partition("@")
        return [*self.flags, "--method", method, *(["--steps", steps] if steps else [])]

    def config(self) -> RunConfig:
        """What the program will be told; UsageError where it would refuse."""
        return RunConfig.parse(self._flags, {})

    def settings(self) -> dict[str, Any]:
        """Flags, the checkpoint's sum and the code's."""
        config = self.config()
        try:
            checkpoint = _checkpoint_sum(config.method, config.weights)
        except CheckpointError as error:
            raise ContenderError(str(error)) from error
        return {
            "flags": self._flags,
            "checkpoint_sha256": checkpoint,
            CODE: _program_sum(self.program),
        }

    def denoise(self, noisy: Path, result: Path) -> Cost:
        """Run the program."""
        return run_program(noisy, result, self._flags, self.program)


# ---- Other people's -----------------------------------------------------------------------------


class RunPeer(Protocol):
    """`lab.peers.runner.run_peer`, or what stands in for it."""

    def __call__(self, name: str, noisy: Path, result: Path, *, seconds: float) -> PeerRun:
        """Write the result for a recording; PeerError where there is none."""


@dataclass(frozen=True, kw_only=True)
class PeerMethod:
    """A published method, run by its own code."""

    name: str
    peer: Peer
    seconds: float  # that it may train
    run: RunPeer = run_peer

    def settings(self) -> dict[str, Any]:
        """Its time, its packages, and the sum of the script that calls them."""
        return {
            "seconds": self.seconds,
            "requirements": [*self.peer.bare_requirements, *self.peer.requirements],
            CODE: file_sum(SCRIPTS / self.peer.script),
        }

    def denoise(self, noisy: Path, result: Path) -> Cost:
        """Run the peer."""
        try:
            run = self.run(self.name, noisy, result, seconds=self.seconds)
        except PeerError as error:
            raise ContenderError(str(error)) from error
        return Cost(seconds=run.seconds, peak_bytes=run.peak_bytes)


# ---- Choosing, and keeping ----------------------------------------------------------------------


def choose(
    names: Sequence[str],
    flags: Sequence[str],
    *,
    peer_seconds: float,
    program: Path = PROGRAM,
    peers: Mapping[str, Peer] = PEERS,
    run_peer: RunPeer = run_peer,
) -> list[Contender]:
    """The methods of these names, ours with flags of process.py.

    UsageError for unknown methods, and flags that one of ours refuses.
    """
    if own := [flag for flag in flags if flag.partition("=")[0] in OWN_FLAGS]:
        raise UsageError(f"{', '.join(own)}: set by the evaluation itself; leave it out")
    chosen: list[Contender] = []
    for name in dict.fromkeys(names):
        method, at, steps = name.partition("@")
        if method in METHODS and (not at or steps.isdecimal()):
            own_method = OurMethod(name=name, flags=tuple(flags), program=program)
            own_method.config()
            chosen.append(own_method)
        elif name in peers:
            chosen.append(
                PeerMethod(name=name, peer=peers[name], seconds=peer_seconds, run=run_peer)
            )
        else:
            raise UsageError(
                f"unknown method {name!r}; ours, also as NAME@STEPS: {', '.join(METHODS)}; "
                f"others: {', '.join(peers)}"
            )
    if flags and not any(isinstance(contender, OurMethod) for contender in chosen):
        raise UsageError(f"{' '.join(flags)}: for methods of ours, of which none is named")
    return chosen


def _read_memo(memo: Path, result: Path) -> dict[str, Any]:
    """What was noted beside a result, empty where there is none or no result."""
    try:
        return dict(json.loads(memo.read_bytes())) if result.is_file() else {}
    except (OSError, ValueError):
        return {}


def _require_result(path: Path, shape: tuple[int, int, int]) -> None:
    """Refuse what is not a stack of this shape, every voxel a number."""
    try:
        stack = read_stack(path)
    except StackError as error:
        raise ContenderError(f"unreadable result: {error}") from error
    if stack.shape != shape or stack.num_replaced:
        raise ContenderError(
            f"result of shape {stack.shape} with {stack.num_replaced} voxels that are not finite, "
            f"expected {shape} and none"
        )


def kept_or_made(
    contender: Contender, noisy: Path, result: Path, about: Mapping[str, Any]
) -> tuple[Cost, str]:
    """See that a recording's result is there; what it took, and a note on it, mostly empty.

    A result is made anew when the recording, `about` it, or the method's settings changed. Not so
    when only code did, for which a comment is enough: then the note says so.
    """
    memo = result.with_suffix(".json")
    settings = {"method": contender.name, **contender.settings()}
    code = settings.pop(CODE)
    key = {"noisy_sha256": file_sum(noisy), **about, **settings}
    found = _read_memo(memo, result)
    if found.get("key") == key:
        return Cost(**found["cost"]), "" if found.get(CODE) == code else OTHER_CODE
    memo.unlink(missing_ok=True)
    result.parent.mkdir(parents=True, exist_ok=True)
    unfinished = result.with_name(f".unfinished-{result.name}")
    cost = contender.denoise(noisy, unfinished)
    _require_result(unfinished, read_stack(noisy).shape)
    unfinished.replace(result)
    # Last, and whole or not at all: a result without it is made again.
    temporary = memo.with_name(f".{memo.name}.tmp")
    made = {"key": key, CODE: code, "cost": asdict(cost)}
    temporary.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    temporary.replace(memo)
    return cost, ""
