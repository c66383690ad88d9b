"""What can go wrong in a job, done to the real program, and what must be true afterwards.

After every fault the output folder holds, of what it should, whole files alone: byte for byte what
an undisturbed job writes. The next job, undisturbed, completes it and leaves nothing else there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lab.cases import write_recording
from lab.contenders import PROGRAM
from lab.inject import NOTHING
from lab.noise import noisy_recording
from lab.simulate import random_movie
from model.checkpoint import SUMS_FILE
from model.job import SHIPPED_WEIGHTS
from model.report import RECORD_NAME

NAMES = ("a.tif", "b.tif", "c.tif")
SHAPE = (60, 48, 56)
LARGE = "large.tif"  # beside them, where memory is short
LARGE_SHAPE = (4000, 64, 64)
CHECKPOINT = "lowrank_unet.safetensors"
TIMEOUT = 900  # seconds, of a job that takes ten where the processor is not shared
SMALL_DISK = "500k"  # room for one result
WINDOWS = ("--method", "unet3d")  # the smallest of the methods with windows and a checkpoint
# one thread, for these jobs are short, and several may run side by side
ENVIRONMENT = {"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1"}
NO_ROOM = "no file system could be mounted; needs root"


class NotTriedError(RuntimeError):
    """A fault that this machine does not allow to bring about."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong, and what must come of it."""

    name: str
    code: int  # of the program's end
    says: str  # pattern of the last line of stderr; "" for none at all
    written: tuple[str, ...]  # the results that must be there
    other: tuple[str, ...] = ()  # of these, the ones that need not be as undisturbed
    inject: str = NOTHING  # of lab.inject
    flags: tuple[str, ...] = ()
    damage: Callable[[bytes], bytes] | None = None  # of the checkpoint
    has_large: bool = False
    has_small_disk: bool = False


def _stop(stage: str, *flags: str) -> Fault:
    return Fault(
        name=f"SIGTERM, {stage}", inject=f"SIGTERM, {stage}", flags=flags, code=143,
        says=r"stopped by SIGTERM: 1 of 3 stacks written, b\.tif unfinished", written=NAMES[:1],
    )  # fmt: skip


def _kill(stage: str, *flags: str) -> Fault:
    return Fault(
        name=f"SIGKILL, {stage}", inject=f"SIGKILL, {stage}", flags=flags, code=-9, says="",
        written=NAMES[:1],
    )  # fmt: skip


def _second_fails(name: str, says: str, *flags: str) -> Fault:
    return Fault(
        name=name, inject=name, flags=flags, code=1, says=rf"b\.tif: .*{says}",
        written=(NAMES[0], NAMES[2]),
    )  # fmt: skip


def _flip_a_bit(content: bytes) -> bytes:
    at = 3 * len(content) // 4  # among the numbers
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def _pickled(_: bytes) -> bytes:
    import pickle

    return pickle.dumps({"weight": [0.0] * 99})


def _bad_weights(name: str, damage: Callable[[bytes], bytes]) -> Fault:
    return Fault(name=name, damage=damage, code=1, says="no stack was denoised: .*", written=())


_STEPS = (*WINDOWS, "--steps", "2")
_OF_FACTORS = ("reading", "measuring", "decomposing", "denoising images", "writing")
FAULTS = (
    *(_stop(stage) for stage in (*_OF_FACTORS, "finishing the file")),
    *(_stop(stage, *_STEPS) for stage in ("adapting", "inference")),
    *(_kill(stage) for stage in ("decomposing", "writing", "finishing the file")),
    _second_fails("no memory for images", "out of memory"),
    _second_fails("no memory in inference", "out of memory", *WINDOWS),
    Fault(
        name="no memory in adaptation", inject="no memory in adaptation", flags=_STEPS,
        code=0, says="", written=NAMES, other=NAMES[1:2],
    ),
    Fault(
        name="a limit on memory", inject="a limit on memory", has_large=True,
        code=1, says=r"large\.tif: out of memory", written=NAMES,
    ),
    Fault(
        name="a disk that fills up", has_small_disk=True,
        code=1, says="the disk is full", written=NAMES[:1],
    ),
    _second_fails("input gone", "the file is gone"),
    Fault(
        name="input cut off while read", inject="input cut off while read",
        code=-7, says="", written=NAMES[:1],
    ),
    Fault(
        name="output folder gone", inject="output folder gone",
        code=1, says=r"b\.tif: the result cannot be written", written=NAMES[2:],
    ),
    Fault(
        name="loss not finite", inject="loss not finite", flags=_STEPS,
        code=0, says="", written=NAMES, other=NAMES[1:2],
    ),
    _second_fails("network not finite", "not finite"),
    _bad_weights("weights cut off", lambda content: content[: len(content) // 2]),
    _bad_weights("weights with a flipped bit", _flip_a_bit),
    _bad_weights("weights that are a pickle", _pickled),
    Fault(
        name="clock that jumps", inject="clock that jumps", flags=("--time-limit", "900"),
        code=0, says="", written=NAMES,
    ),
)  # fmt: skip


# ---- Running ----------------------------------------------------------------------------------


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """A file system with room for one result at the folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotTriedError(NO_ROOM) from error
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S603, S607


class Bench:
    """Three short recordings, and what undisturbed jobs make of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recordings = folder / "recordings"
        for seed, name in enumerate(NAMES):
            rng = np.random.default_rng(seed)
            clean = random_movie(rng, SHAPE).numpy()
            write_recording(self.recordings / name, noisy_recording(clean, 1, seed))
        self._whole: dict[tuple[str, ...], Path] = {}

    def prepare(self) -> None:
        """Run every undisturbed job that a fault is compared with."""
        for fault in FAULTS:
            self.whole(fault.flags)

    def whole(self, flags: tuple[str, ...]) -> Path:
        """The folder that an undisturbed job with these flags has written."""
        if flags not in self._whole:
            output = self.folder / f"whole-{len(self._whole)}"
            finished = self._start(self.recordings, output, flags)
            assert finished.returncode == 0, finished.stderr
            self._whole[flags] = output
        return self._whole[flags]

    @staticmethod
    def _start(
        source: Path, output: Path, flags: tuple[str, ...], inject: str = NOTHING
    ) -> subprocess.CompletedProcess[str]:
        folders = ["--input-dir", str(source), "--output-dir", str(output)]
        return subprocess.run(  # noqa: S603
            [sys.executable, "-m", "lab.inject", inject, *folders, "--device", "cpu", *flags],
            cwd=PROGRAM.parent, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip

    def try_fault(self, fault: Fault) -> list[str]:
        """What is not as it must be; NotTriedError where the machine does not let it happen."""
        with TemporaryDirectory(dir=self.folder) as name:
            scratch = Path(name)
            source, output = scratch / "in", scratch / "out"
            shutil.copytree(self.recordings, source)
            if fault.has_large:
                noise = np.random.default_rng(9).poisson(200, LARGE_SHAPE)
                write_recording(source / LARGE, noise.astype(np.int16))
            flags = fault.flags
            if fault.damage:
                weights = scratch / "weights"
                weights.mkdir()
                content = (SHIPPED_WEIGHTS / CHECKPOINT).read_bytes()
                (weights / CHECKPOINT).write_bytes(fault.damage(content))
                shutil.copy(SHIPPED_WEIGHTS / SUMS_FILE, weights)
                flags = (*flags, "--weights", str(weights))
            problems = []
            with _small_disk(output) if fault.has_small_disk else nullcontext():
                ended = self._start(source, output, flags, fault.inject)
                problems += self._problems(fault, ended, output)
                if fault.has_small_disk:
                    shutil.copytree(output, scratch / "kept")
            if fault.has_small_disk:
                output = scratch / "kept"
            shutil.rmtree(source)
            again = self._start(self.recordings, output, fault.flags)
            if again.returncode != 0:
                problems.append(f"the next job ended with {again.returncode}: {again.stderr}")
            return problems + [
                f"after the next job, {problem}"
                for problem in self._differences(fault, output, NAMES)
            ]

    def _problems(
        self, fault: Fault, ended: subprocess.CompletedProcess[str], output: Path
    ) -> list[str]:
        problems = []
        if ended.returncode != fault.code:
            problems.append(f"exit code {ended.returncode}, not {fault.code}")
        last_line = (ended.stderr.strip().splitlines() or [""])[-1]
        if not re.search(fault.says or "^$", last_line):
            problems.append(f"said {last_line!r}")
        return problems + self._differences(
            fault, output, fault.written, may_be_unfinished=fault.code == -7 or fault.code == -9
        )

    def _differences(
        self,
        fault: Fault,
        output: Path,
        expected: tuple[str, ...],
        *,
        may_be_unfinished: bool = False,
    ) -> list[str]:
        there = {path.name for path in output.rglob("*") if path.is_file()} - {RECORD_NAME}
        if may_be_unfinished:
            there = {name for name in there if not name.startswith(".")}
        problems = [f"{name} missing" for name in sorted(set(expected) - there)]
        problems += [f"{name} left behind" for name in sorted(there - set(expected))]
        whole = self.whole(fault.flags)
        return problems + [
            f"{name} not as undisturbed"
            for name in sorted(there & set(expected) - set(fault.other))
            if (output / name).read_bytes() != (whole / name).read_bytes()
        ]

    def kill_at_random(self, count: int, seed: int = 0) -> tuple[list[str], int]:
        """SIGKILL at so many moments; what is wrong, and how often something was left unfinished.

        Every job goes on in the folder that the last one left.
        """
        rng = np.random.default_rng(seed)
        flags = ("--method", "lowrank", "--overwrite")
        fault = Fault(name="", code=-9, says="", written=(), flags=flags)
        self.whole(flags)
        output = self.folder / "killed"
        problems, num_unfinished = [], 0
        command = [
            sys.executable, str(PROGRAM), "--device", "cpu", *flags,
            "--input-dir", str(self.recordings), "--output-dir", str(output),
        ]  # fmt: skip
        for _ in range(count):
            with subprocess.Popen(  # noqa: S603
                command,
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("[1/"):
                        break
                time.sleep(rng.uniform(0, 0.8))
                process.kill()
            there = {path.name for path in output.rglob("*") if path.is_file()}
            num_unfinished += any(name.startswith(".") for name in there)
            finished = tuple(name for name in NAMES if name in there)
            problems += self._differences(fault, output, finished, may_be_unfinished=True)
        finished_job = self._start(self.recordings, output, flags)
        problems += [] if finished_job.returncode == 0 else ["the last job failed"]
        return problems + self._differences(fault, output, NAMES), num_unfinished
