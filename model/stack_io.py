"""Recordings on disk: finding them, and reading one as a checked [T,H,W] stack.

TIFF's own ways are `tiff_reader`'s, writing is `result_writer`'s; nothing here scales a voxel.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile

from model.mha_reader import read_header, read_voxels
from model.stack import (
    BLOCK_VOXELS,
    Stack,
    StackError,
    require_memory,
)
from model.tiff_reader import read_tiff_frames, tiff_layout, tiff_metadata, tifffile_errors

PLATFORM_INPUT = "images/stacked-neuron-images-with-noise"
PLATFORM_OUTPUT = "images/stacked-neuron-images-with-reduced-noise"

MHA_SUFFIX = ".mha"
SUFFIXES = {".tif", ".tiff", ".btf", ".tf8", MHA_SUFFIX}
MEDIAN_VOXELS = 20_000_000  # enough for a median that is only a filling


@dataclass(frozen=True, kw_only=True)
class StackPaths:
    """One piece of work: a recording and where its result goes."""

    source: Path
    target: Path
    problem: str | None = None
    """Why it cannot be done, to be raised as a StackError when its turn comes."""


# ---- Finding ----------------------------------------------------------------------------------


def is_platform_layout(input_dir: Path) -> bool:
    """Whether the input is laid out the way the platform does it, one folder per slug."""
    if (input_dir / PLATFORM_INPUT).is_dir():
        return True
    slug = Path(PLATFORM_INPUT).name
    try:
        sockets = json.loads((input_dir / "inputs.json").read_bytes())
        return any(socket["interface"]["slug"] == slug for socket in sockets)
    except (OSError, ValueError, TypeError, KeyError):
        return False  # the file is optional, and others may use its name for something else


def _walk(folder: Path, output_dir: Path, seen: set[Path]) -> Iterator[Path]:
    """Visible stacks below `folder`, and folders that cannot be listed; links are followed once."""
    real = folder.resolve()
    if real in seen or real == output_dir:  # a loop of links, or the results of an earlier run
        return
    seen.add(real)
    try:
        entries = [(entry, entry.is_dir()) for entry in sorted(folder.iterdir())]
    except OSError:
        yield folder
        return
    for entry, is_folder in entries:
        if entry.name.startswith("."):
            continue
        if is_folder:
            yield from _walk(entry, output_dir, seen)
        elif entry.suffix.lower() in SUFFIXES and (entry.is_file() or not entry.exists()):
            yield entry  # not a pipe or socket; but a broken link, so that it is reported


def find_stacks(input_dir: Path, output_dir: Path) -> list[StackPaths]:
    """Every stack below the input folder with the path of its result, sorted.

    In the platform's layout the results lie flat in the folder of the output's slug; otherwise
    sub-folders are mirrored. Stacks whose results would overwrite one another carry a `problem`.
    """
    if input_dir.resolve() == output_dir.resolve():
        raise StackError(
            f"{output_dir}: input and output are the same folder, so results would overwrite "
            "recordings; choose another output folder"
        )
    if not input_dir.is_dir():
        return []
    is_flat = is_platform_layout(input_dir)
    root = input_dir / PLATFORM_INPUT
    if not root.is_dir():
        root = input_dir
    sources = sorted(_walk(root, output_dir.resolve(), set()))
    if is_flat:
        targets = [output_dir / PLATFORM_OUTPUT / source.name for source in sources]
    else:
        targets = [output_dir / source.relative_to(root) for source in sources]

    # File systems of Windows and macOS take A.tif and a.tif for one file.
    keys = [str(target).casefold() for target in targets]
    counts = Counter(keys)
    recordings = {source.resolve() for source in sources}
    stacks = []
    for source, target, key in zip(sources, targets, keys, strict=True):
        problem = None
        if source.is_dir():
            problem = f"{source}: this folder cannot be listed; allow reading it"
        elif counts[key] > 1:
            rivals = [str(s) for s, k in zip(sources, keys, strict=True) if k == key]
            problem = (
                f"{source.name}: {' and '.join(rivals)} would be written under one name "
                f"({target}); rename all but one"
            )
        elif target.resolve() in recordings:
            problem = (
                f"{source.name}: its result would overwrite the recording {target}; "
                "choose another output folder"
            )
        stacks.append(StackPaths(source=source, target=target, problem=problem))
    return stacks


# ---- Reading ----------------------------------------------------------------------------------


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    """Turn whatever fails inside into a StackError about `path`."""
    try:
        with tifffile_errors() as errors:
            yield
        if errors:
            raise StackError(
                f"{path.name}: the file is damaged or cut off ({errors[0]}); copy or export it "
                "again"
            )
    except StackError:
        raise
    except FileNotFoundError as error:
        raise StackError(f"{path.name}: the file is gone; was it moved or renamed?") from error
    except PermissionError as error:
        raise StackError(f"{path.name}: no permission to read it; make it readable") from error
    except tifffile.TiffFileError as error:
        raise StackError(
            f"{path.name}: not a TIFF file, or a damaged one ({error}); export it again as TIFF"
        ) from error
    except MemoryError as error:
        raise StackError(
            f"{path.name}: not enough memory to read it; use a machine with more, or split the file"
        ) from error
    except Exception as error:  # the codecs raise types of their own for damaged data
        # One line, for the platform shows one. ITK's reasons, such as "Success", only mislead.
        reason = " ".join(f"({type(error).__name__}: {error})"[:200].split())
        is_mha = path.suffix.lower() == MHA_SUFFIX
        raise StackError(
            f"{path.name}: cannot be decoded, so probably not an image, damaged or cut off; "
            f"copy or export it again{'' if is_mha else f' {reason}'}"
        ) from error


def _require_file(path: Path) -> None:
    """Refuse folders and empty files."""
    if path.is_dir():
        raise StackError(f"{path.name}: a folder, not a file; rename it")
    if path.stat().st_size == 0:
        raise StackError(f"{path.name}: the file is empty (0 bytes); copy or export it again")


def _replace_non_finite(frames: np.ndarray, path: Path) -> tuple[np.ndarray, int]:
    """The frames with NaN and infinity replaced by the median of the rest, and how many were.

    Frames without any come back as they are, still mapped.
    """
    if frames.dtype.kind != "f":
        return frames, 0
    step = max(1, BLOCK_VOXELS // frames[0].size)
    blocks = [slice(start, start + step) for start in range(0, len(frames), step)]
    num_bad = sum(int(np.count_nonzero(~np.isfinite(frames[block]))) for block in blocks)
    if num_bad == 0:
        return frames, 0
    num_finite = frames.size - num_bad
    if num_finite == 0:
        raise StackError(f"{path.name}: every voxel is NaN or infinite; export the recording again")

    stride, num_seen, sample = max(1, num_finite // MEDIAN_VOXELS), 0, []
    for block in blocks:
        finite = frames[block][np.isfinite(frames[block])]
        sample.append(finite[-num_seen % stride :: stride])  # every stride-th of the whole stack
        num_seen += finite.size
    median = np.median(np.concatenate(sample))
    if not frames.flags.writeable:
        require_memory(path, frames.nbytes)
        frames = np.array(frames)
    for block in blocks:
        np.copyto(frames[block], median, casting="same_kind", where=~np.isfinite(frames[block]))
    return frames, num_bad


def peek_shape(path: Path) -> tuple[int, int, int]:
    """[T,H,W] of a stack from its header, without decoding a voxel; StackError if it is unfit."""
    with _failures_named(path):
        _require_file(path)
        if path.suffix.lower() == MHA_SUFFIX:
            *num_frames, height, width = read_header(path).shape
            return math.prod(num_frames), height, width
        with tifffile.TiffFile(path) as tif:
            return tiff_layout(tif, path).shape


def read_stack(path: Path) -> Stack:
    """The recording at `path`, checked and complete; StackError if it cannot be had."""
    with _failures_named(path):
        _require_file(path)
        if path.suffix.lower() == MHA_SUFFIX:
            header = read_header(path)
            stack = Stack(
                path=path,
                frames=read_voxels(path, header).reshape((-1, *header.shape[-2:])),
                dtype=header.dtype,
                is_single_frame=len(header.shape) == 2,
                num_replaced=0,
                metadata=header.metadata,
            )
        else:
            with tifffile.TiffFile(path) as tif:
                layout = tiff_layout(tif, path)
                stack = Stack(
                    path=path,
                    frames=read_tiff_frames(path, layout),
                    dtype=layout.dtype,
                    is_single_frame=layout.is_single_frame,
                    num_replaced=0,
                    metadata=tiff_metadata(tif),
                )
        frames, num_replaced = _replace_non_finite(stack.frames, path)
        frames.flags.writeable = False
        return replace(stack, frames=frames, num_replaced=num_replaced)
