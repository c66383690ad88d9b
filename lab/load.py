"""Much at a time: many stacks, a long one, a folder full of other things; the real program."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile

from lab.cases import write_recording
from lab.contenders import PROGRAM
from lab.fidelity import Check
from lab.limits import DATA_BYTES, limit_data
from lab.noise import noisy_recording
from lab.simulate import random_movie
from model.report import RECORD_NAME

MANY, SMALL_SHAPE = 200, (32, 48, 48)
LONG_TILE, LONG_TILES = (600, 128, 128), (10, 2, 2)  # 6000x256x256
NUM_OTHERS = 10_000


def _simulated(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng([11, seed])
    return random_movie(rng, shape).numpy()


def _run(folder: Path, flags: tuple[str, ...]) -> tuple[int, str, float]:
    """Exit code, stderr, and seconds of the program on folder/in, results in folder/out."""
    begin = time.monotonic()
    folders = ["--input-dir", str(folder / "in"), "--output-dir", str(folder / "out")]
    ended = subprocess.run(  # noqa: S603
        [sys.executable, str(PROGRAM), *folders, *flags],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=limit_data,
    )  # fmt: skip
    return ended.returncode, ended.stderr.strip(), time.monotonic() - begin


def _peak_gb(folder: Path) -> float:
    record = json.loads((folder / "out" / RECORD_NAME).read_bytes())
    return max(stack["peak_host_bytes"] for stack in record["stacks"]) / 1e9


def _many(folder: Path, flags: tuple[str, ...]) -> Check:
    for number in range(MANY):
        noisy = noisy_recording(_simulated(SMALL_SHAPE, number), 1, number)
        write_recording(folder / "in" / f"{number:03d}.tif", noisy)
    code, said, seconds = _run(folder, flags)
    written = len(list((folder / "out").glob("*.tif")))
    return Check(
        name=f"{MANY} stacks of {SMALL_SHAPE}",
        figure=f"{written} written, {seconds:.0f} s, {_peak_gb(folder):.1f} GB {said}".strip(),
        limit="all",
        is_kept=code == 0 and written == MANY,
    )


def _long(folder: Path, flags: tuple[str, ...]) -> Check:
    tile, (plays, down, across) = _simulated(LONG_TILE, 0), LONG_TILES
    source = folder / "in" / "long.tif"
    source.parent.mkdir(parents=True)

    def frames() -> Iterator[np.ndarray]:
        for play in range(plays):
            yield from noisy_recording(np.tile(tile, (1, down, across)), 2, play)

    shape = (plays * LONG_TILE[0], down * LONG_TILE[1], across * LONG_TILE[2])
    tifffile.imwrite(source, frames(), shape=shape, dtype=np.int16, photometric="minisblack")
    code, said, seconds = _run(folder, flags)
    is_there = (folder / "out" / "long.tif").is_file()
    memory = f"{_peak_gb(folder):.1f} GB" if is_there else said
    return Check(
        name=f"one stack of {shape}", figure=f"{seconds:.0f} s, {memory}",
        limit=f"{DATA_BYTES / 2**30:.0f} GiB of data", is_kept=code == 0 and is_there,
    )  # fmt: skip


def _others(folder: Path, flags: tuple[str, ...]) -> Check:
    for number in range(NUM_OTHERS):
        path = folder / "in" / f"{number % 100}" / f"{number}.{('txt', 'h5', 'png')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not a recording")
    write_recording(folder / "in" / "only.tif", noisy_recording(_simulated(SMALL_SHAPE, 0), 1, 0))
    code, said, seconds = _run(folder, flags)
    results = [path.name for path in (folder / "out").rglob("*") if path.is_file()]
    return Check(
        name=f"one stack among {NUM_OTHERS} other files",
        figure=f"{len(results) - 1} written, {seconds:.0f} s {said}".strip(),
        limit="it alone",
        is_kept=code == 0 and sorted(results) == sorted(["only.tif", RECORD_NAME]),
    )


def checks(flags: tuple[str, ...]) -> Iterator[Check]:
    """Every load, one after the other."""
    loads: tuple[Callable[[Path, tuple[str, ...]], Check], ...] = (_many, _others, _long)
    for load in loads:
        with TemporaryDirectory() as folder:
            yield load(Path(folder), flags)
