"""Runs published denoisers on files: the table of them, their environments, and the call.

Each has its own virtual environment below .peers/, made from PyPI when first needed; nothing of
theirs is imported here. Where pip is also shown an index of PyTorch's CPU builds
(PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu), it prefers those to PyPI's with CUDA.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from model.stack import StackError
from model.stack_io import peek_shape

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE / "scripts"
VENVS = HERE.parent.parent / ".peers"
STAMP = "installed"  # in a virtual environment: what it holds, written last
NUM_LINES = 8  # of a failed command's stderr that are told


class PeerError(RuntimeError):
    """A peer that could not be installed or gave no usable result."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A published denoiser: how to install it and the script that runs it."""

    title: str
    script: str  # in scripts/, or an absolute path
    requirements: tuple[str, ...] = ()  # pinned
    bare_requirements: tuple[str, ...] = ()  # pinned; installed without what they ask for


@dataclass(frozen=True, kw_only=True)
class PeerRun:
    """What one run took."""

    seconds: float  # of wall time
    peak_bytes: int  # of host memory


# numpy and tifffile stand everywhere, for the adapters themselves need them.
PEERS: dict[str, Peer] = {
    "careamics": Peer(
        title="CAREamics N2V 3D",
        script="denoise_careamics.py",
        requirements=(
            "careamics==0.3.5",
            "torch==2.11.0",
            "lightning==2.6.6",
            "numpy==2.4.6",
            "tifffile==2026.3.3",
        ),
    ),
    "bm4d": Peer(
        title="BM4D on generalised-Anscombe data",
        script="denoise_bm4d.py",
        requirements=("bm4d==4.2.5", "scipy==1.17.1", "numpy==2.4.6", "tifffile==2026.3.3"),
    ),
    "localmd": Peer(
        title="localmd (PMD), 32x32 blocks",
        script="denoise_localmd.py",
        bare_requirements=("localmd==0.0.4",),  # it asks for jupyterlab, which it never imports
        requirements=(
            "jax==0.10.2",
            "jaxlib==0.10.2",
            "torch==2.13.0",
            "scipy==1.17.1",
            "tqdm==4.70.1",
            "numpy==2.4.6",
            "tifffile==2026.3.3",
        ),
    ),
    "suite2p": Peer(
        title="suite2p PCA denoise",
        script="denoise_suite2p.py",
        # It imports cellpose, but its denoiser does not use it: this one does without torchvision,
        # which a CPU build of torch may not fit, and Segment Anything.
        bare_requirements=("suite2p==1.1.0", "cellpose==3.1.1.3"),
        requirements=(
            "torch==2.13.0",
            "scikit-learn==1.9.1",
            "numba==0.68.1",
            "opencv-python-headless==5.0.0.93",
            "fastremap==1.21.0",
            "fill-voids==2.1.2",
            "cloudpickle==3.1.2",
            "natsort==8.4.0",
            "scipy==1.17.1",
            "tqdm==4.70.1",
            "numpy==2.4.6",
            "tifffile==2026.3.3",
        ),
    ),
}

# Networks of others whose speed alone is of interest: their scripts print an answer.
NETWORKS: dict[str, Peer] = {
    "monai": Peer(
        title="MONAI's Restormer 3D",
        script="time_monai.py",
        bare_requirements=("monai==1.6.1", "einops==0.8.1"),
        requirements=("torch==2.13.0", "numpy==2.4.6"),
    ),
}


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-NUM_LINES:]) or "(it said nothing)"


# ---- Environments -------------------------------------------------------------------------------


def _run_setup(name: str, command: Sequence[str | Path]) -> None:
    """Run a step of an installation; PeerError if it fails."""
    done = subprocess.run(  # noqa: S603
        [str(word) for word in command], capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        raise PeerError(
            f"{name}: its environment could not be made; see that PyPI can be reached and that "
            f"the disk has room, then run it again:\n{_last_lines(done.stderr or done.stdout)}"
        )


def _answers(*command: str | Path) -> bool:
    """Whether a command can be started and succeeds."""
    try:
        return subprocess.run([str(w) for w in command], capture_output=True).returncode == 0  # noqa: S603
    except OSError:
        return False


def prepare(name: str) -> Path:
    """The interpreter of a peer's environment, made or completed if need be."""
    peer, venv = (PEERS | NETWORKS)[name], VENVS / name
    python, stamp = venv / "bin" / "python", venv / STAMP
    wanted = "\n".join([*peer.bare_requirements, *peer.requirements]) + "\n"
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python

    needs_pip = bool(peer.bare_requirements or peer.requirements)
    probe = ["-m", "pip", "--version"] if needs_pip else ["-c", ""]
    # An environment that was only begun is kept, so that pip takes up where it was interrupted.
    if not _answers(python, *probe):
        options = [] if needs_pip else ["--without-pip"]
        _run_setup(name, [sys.executable, "-m", "venv", "--clear", *options, venv])
    stamp.unlink(missing_ok=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if peer.bare_requirements:
        _run_setup(name, [*install, "--no-deps", *peer.bare_requirements])
    if peer.requirements:
        _run_setup(name, [*install, *peer.requirements])
    stamp.write_text(wanted)
    return python


# ---- Running ------------------------------------------------------------------------------------


def _environment(name: str) -> Mapping[str, str]:
    """Ours, with a home folder of the peer's own: some write settings there when imported."""
    home = VENVS / name / "home"
    home.mkdir(exist_ok=True)
    return {**os.environ, "HOME": str(home)}


def _measured(name: str, command: Sequence[str | Path]) -> PeerRun:
    """Run a peer's command to its end; PeerError with what it said last if it fails."""
    launcher = [sys.executable, "-I", "-S", str(HERE / "measure.py")]
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        done = subprocess.run(  # noqa: S603
            [*launcher, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(name),
            check=True,
        )
        stderr.seek(0)
        said = stderr.read()
    found = json.loads(done.stdout)
    code = found["code"]
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        hint = "; try a shorter or smaller stack, it may need more memory" if code == -9 else ""
        raise PeerError(f"{name}: {PEERS[name].title} failed ({how}){hint}:\n{_last_lines(said)}")
    return PeerRun(seconds=found["seconds"], peak_bytes=found["peak_bytes"])


def answer_of(name: str, *arguments: int) -> dict[str, float]:
    """What the script of one of `NETWORKS` prints as JSON; PeerError if it fails."""
    command = [prepare(name), "-E", SCRIPTS / NETWORKS[name].script, *arguments]
    done = subprocess.run(  # noqa: S603
        [str(word) for word in command], env=_environment(name), capture_output=True, text=True
    )
    if done.returncode != 0:
        raise PeerError(f"{name}: exit code {done.returncode}:\n{_last_lines(done.stderr)}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _check_result(name: str, result: Path, shape: tuple[int, ...]) -> None:
    """PeerError unless the result is a float32 TIFF of this shape."""
    script = PEERS[name].script
    if not result.is_file():
        raise PeerError(f"{name}: no result at {result}, though {script} succeeded; mend it")
    try:
        with tifffile.TiffFile(result) as tif:
            dtype = tif.pages.first.dtype
        found = peek_shape(result)
    except (StackError, tifffile.TiffFileError) as error:
        raise PeerError(f"{name}: its result cannot be read; mend {script}: {error}") from error
    if found != shape or dtype != np.float32:
        raise PeerError(
            f"{name}: its result is {dtype} of shape {found}, expected float32 of {shape}; "
            f"mend {script}"
        )


def run_peer(name: str, noisy: Path, result: Path, *, seconds: float, seed: int = 0) -> PeerRun:
    """Denoise a TIFF [T,H,W] into a float32 TIFF with a peer; PeerError if that fails.

    Installs the peer first if need be, which takes minutes and is not counted.

    Args:
        seconds: what a peer that trains may spend on training; the others take what they need.
    """
    if name not in PEERS:
        raise PeerError(f"unknown peer {name!r}; known are {', '.join(PEERS)}")
    shape = peek_shape(noisy)
    python = prepare(name)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)  # else an old one could pass for this one's
    # -E: our PYTHONPATH is not for them
    run = _measured(
        name,
        [
            python, "-E", SCRIPTS / PEERS[name].script, noisy.resolve(), result.resolve(),
            "--seconds", str(seconds), "--seed", str(seed),
        ],
    )  # fmt: skip
    _check_result(name, result, shape)
    return run
