"""Damage recordings' files at random and read them: a stack or a clear refusal, nothing else.

    python -m lab.fuzz --count 20000

A file that crashes the reader, takes over 5 s, or more than 1 GiB of memory, is kept in --keep.
"""

from __future__ import annotations

import argparse
import io
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import numpy as np
import SimpleITK as sitk
import tifffile

from lab.limits import limit_more_data
from model.stack import StackError
from model.stack_io import peek_shape, read_stack

MAX_SECONDS = 5
MAX_EXTRA_BYTES = 2**30  # of memory, for a file below a MiB
SHAPE = (3, 16, 18)
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def seeds() -> dict[str, bytes]:
    """Small whole files of every kind that is read, by name."""
    frames = np.random.default_rng(0).integers(0, 4000, SHAPE)

    def tiff(dtype: str = "int16", **options: object) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, frames.astype(dtype), photometric="minisblack", **options)  # type: ignore[arg-type]
        return buffer.getvalue()

    files = {
        "plain.tif": tiff(),
        "contiguous.tif": tiff(metadata=None, contiguous=True),
        "big_endian.tif": tiff(byteorder=">"),
        "bigtiff.btf": tiff(bigtiff=True),
        "imagej.tif": tiff(imagej=True, metadata={"axes": "TYX"}),
        "ome.tif": tiff("uint16", ome=True, metadata={"axes": "TYX"}),
        "deflated.tif": tiff(compression="zlib", predictor=True),
        "tiled.tif": tiff(tile=(16, 16)),
        "strips.tif": tiff("uint8", rowsperstrip=3),
        "double.tif": tiff("float64"),
    }
    image = sitk.GetImageFromArray(frames.astype(np.int16))
    with TemporaryDirectory() as folder:
        for name, is_compressed in (("raw.mha", False), ("compressed.mha", True)):
            sitk.WriteImage(image, str(Path(folder) / name), is_compressed)
            files[name] = (Path(folder) / name).read_bytes()
    return files


# ---- Damage -----------------------------------------------------------------------------------


def _flip_bits(content: bytearray, rng: np.random.Generator) -> None:
    for at in rng.integers(len(content), size=rng.integers(1, 9)):
        content[at] ^= 1 << int(rng.integers(8))


def _set_numbers(content: bytearray, rng: np.random.Generator) -> None:
    """Extreme numbers of 1 to 8 bytes, where the header and the directories most likely are."""
    near_the_end = rng.uniform() < 0.3
    for _ in range(int(rng.integers(1, 5))):
        size = int(rng.choice([1, 2, 4, 8]))
        reach = min(len(content), 600)
        at = int(rng.integers(reach))
        at = len(content) - 1 - at if near_the_end else at
        value = int(rng.choice(EXTREMES)) & (256**size - 1)
        order = "little" if rng.uniform() < 0.7 else "big"
        content[at : at + size] = value.to_bytes(size, order)


def _cut(content: bytearray, rng: np.random.Generator) -> None:
    del content[int(rng.integers(len(content))) :]


def _remove(content: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(content)))
    del content[at : at + int(rng.integers(1, 40))]


def _repeat(content: bytearray, rng: np.random.Generator) -> None:
    start, at = rng.integers(len(content), size=2)
    content[at:at] = content[start : start + int(rng.integers(1, 200))]


def _digits(content: bytearray, rng: np.random.Generator) -> None:
    """Other numbers in the text of a header or description."""
    places = [at for at, byte in enumerate(content) if chr(byte).isdigit()]
    for at in rng.permutation(places)[: int(rng.integers(1, 6))]:
        content[at] = int(rng.choice(list(b"0123456789-. ")))


DAMAGES: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    _flip_bits, _set_numbers, _set_numbers, _cut, _remove, _repeat, _digits,
)  # fmt: skip


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A whole file's bytes with one to three damages."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        if changed:
            DAMAGES[int(rng.integers(len(DAMAGES)))](changed, rng)
    return bytes(changed)


# ---- Reading ----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Tally:
    """What came of the files."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds
    failures: dict[int, str] = field(default_factory=dict)  # what is wrong, by number


class _TooSlow(BaseException):
    """Not an Exception, which a reader might take for its own."""


def _ring(number: int, frame: FrameType | None) -> None:
    raise _TooSlow


def _silence_libraries() -> None:
    """What libraries in C print for every damaged file goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def damaged_file(number: int, seed: int, files: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Name and bytes of the damaged file of a number; always the same."""
    rng = np.random.default_rng([seed, number])
    name = list(files)[int(rng.integers(len(files)))]
    return name, damaged(files[name], rng)


def _read(path: Path) -> tuple[bool, str]:
    """Whether a file was read, and what is wrong with how that went."""
    signal.alarm(MAX_SECONDS)
    try:
        peek_shape(path)
        stack = read_stack(path)
    except StackError as error:
        is_named = path.name in str(error)
        return False, "" if is_named else f"the error does not name the file: {error}"
    except _TooSlow:
        return False, f"over {MAX_SECONDS} s"
    except BaseException as error:
        return False, f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return True, "" if stack.frames.ndim == 3 else f"a stack of shape {stack.frames.shape}"


def _read_many(numbers: range, seed: int, folder: Path, results: Connection) -> None:
    """In a process of its own: read and send what came of each file."""
    _silence_libraries()
    signal.signal(signal.SIGALRM, _ring)
    files = seeds()
    for name, content in files.items():  # whole: then the libraries hold what they always hold
        (folder / name).write_bytes(content)
        read_stack(folder / name)
    limit_more_data(MAX_EXTRA_BYTES)
    results.send(None)  # begins
    for number in numbers:
        name, content = damaged_file(number, seed, files)
        (folder / name).write_bytes(content)
        begin = time.perf_counter()
        is_read, problem = _read(folder / name)
        results.send((number, is_read, problem, time.perf_counter() - begin))


def read_damaged(count: int, seed: int) -> Tally:
    """Read so many damaged files, in a process of its own that may crash, and go on after it."""
    tally, number = Tally(), 0
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        while number < count:
            receiver, sender = context.Pipe(duplex=False)
            reader = context.Process(
                target=_read_many, args=(range(number, count), seed, Path(folder), sender)
            )
            reader.start()
            sender.close()
            receiver.recv()
            with suppress(EOFError):
                while True:
                    number, is_read, problem, seconds = receiver.recv()
                    number += 1
                    tally.read += is_read
                    tally.refused += not is_read and not problem
                    tally.slowest = max(tally.slowest, seconds)
                    if problem:
                        tally.failures[number - 1] = problem
            reader.join()
            if number < count:
                tally.failures[number] = f"ended the process with {reader.exitcode}"
                number += 1
    return tally


def main(argv: Sequence[str]) -> int:
    """0 where every file was read or refused; 1 where one broke the reader."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="for files that break it")
    args = parser.parse_args(argv)
    tally = read_damaged(args.count, args.seed)
    files = seeds()
    for number, problem in tally.failures.items():
        name, content = damaged_file(number, args.seed, files)
        args.keep.mkdir(parents=True, exist_ok=True)
        (args.keep / f"{number}_{name}").write_bytes(content)
        print(f"{number} {name}: {problem}")
    print(
        f"{args.count} files: {tally.read} read, {tally.refused} refused, "
        f"{len(tally.failures)} broke the reader; slowest {tally.slowest:.2f} s"
    )
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
