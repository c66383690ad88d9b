"""Results on disk: [T,H,W] frames written as they come, under a temporary name until complete.

What is written is what the platform's importer accepts, with all that the input's file carried.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from model.stack import BLOCK_VOXELS, Stack, StackError, StackMetadata

TEMPORARY_PREFIX = ".unfinished-"  # hidden, so that no search for stacks finds it
_under_way: set[Path] = set()  # temporaries of this process
BIGTIFF_BYTES = 3_900_000_000  # beyond, offsets of 32 bits may not do; the rest is for the tags
PAGE_TAG_BYTES = 512  # per page, generously
DEFAULT_RESOLUTION = ((300, 1), (300, 1))  # per centimetre: the importer insists on some
IMAGE_DESCRIPTION, ASCII = 270, 2  # TIFF's numbers for the tag and its type
REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another output folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another output folder",
    errno.EFBIG: "the file would be larger than allowed; raise the limit or use another disk",
    errno.EROFS: "the disk is read-only; choose another output folder",
    errno.EACCES: "no permission to write there; allow it or choose another output folder",
    errno.EPERM: "no permission to write there; allow it or choose another output folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another output folder",
    errno.EEXIST: "a part of the path is a file, not a folder; choose another output folder",
    errno.EISDIR: "a folder has the result's name; rename it or choose another output folder",
    errno.ENAMETOOLONG: "the name is too long; shorten it",
}


@contextmanager
def write_failures_named(target: Path) -> Iterator[None]:
    """Turn what the disk refuses inside into a StackError about `target`."""
    try:
        yield
    except OSError as error:
        reason = REASONS.get(error.errno or 0, f"{error.strerror or error}; check the disk")
        raise StackError(f"{target}: the result cannot be written: {reason}") from error


# ---- Voxels -----------------------------------------------------------------------------------


def _to_dtype(frames: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The frames in the result's dtype: integers rounded half to even and clipped to its range."""
    if dtype.kind == "f" and dtype.itemsize >= 4:
        return frames.astype(dtype, copy=False)
    # float32 has no exact 2**31 - 1, so clipping to it would overflow the cast
    work = frames.astype(np.float64 if dtype.itemsize > 2 else np.float32)
    if dtype.kind in "iu":
        np.rint(work, out=work)
        limits: np.iinfo | np.finfo = np.iinfo(dtype)
    else:
        limits = np.finfo(dtype)
    np.clip(work, limits.min, limits.max, out=work)
    return work.astype(dtype)


class ResultWriter:
    """Takes a result's frames in order; made by `open_result`."""

    def __init__(
        self, target: Path, stack: Stack, store: Callable[[int, np.ndarray], None]
    ) -> None:
        self._target, self._stack = target, stack
        self._store = store  # writes frames, already in the result's dtype, from a given one on
        self.num_written = 0

    def append(self, frames: np.ndarray) -> None:
        """Write the next frames, float32 [n,H,W]."""
        num_frames, height, width = self._stack.shape
        assert frames.shape[1:] == (height, width), (frames.shape, self._stack.shape)
        assert self.num_written + len(frames) <= num_frames
        step = max(1, BLOCK_VOXELS // (height * width))
        for start in range(0, len(frames), step):
            block = frames[start : start + step]
            if not np.isfinite(block).all():
                raise StackError(
                    f"{self._stack.path.name}: the result has NaN or infinite voxels, so it was "
                    "not written; report this, and try fewer steps"
                )
            with write_failures_named(self._target):
                self._store(self.num_written, _to_dtype(block, self._stack.dtype))
            self.num_written += len(block)


# ---- TIFF tags --------------------------------------------------------------------------------


def _resolution(metadata: StackMetadata) -> tuple[Any, str]:
    """Pixels per unit in x and y, and a unit the platform accepts."""
    if metadata.resolution and metadata.resolution_unit:
        return metadata.resolution, metadata.resolution_unit
    if metadata.pixel_size_um:
        per_centimetre = [1e4 / size for size in metadata.pixel_size_um]
        if all(1e-3 < value < 1e9 for value in per_centimetre):  # TIFF's fractions have 32 bits
            return tuple(per_centimetre), "CENTIMETER"
    return DEFAULT_RESOLUTION, "CENTIMETER"


def _imagej_description(metadata: StackMetadata, num_frames: int) -> str:
    """ImageJ's own lines with the frames along time, and the unit that fits the resolution."""
    ours = ("images", "channels", "slices", "frames", "hyperstack")
    first, *lines = metadata.description.splitlines()
    kept = [line for line in lines if line.partition("=")[0] not in ours]
    if metadata.pixel_size_um and not metadata.resolution:
        # ImageJ reads a resolution per centimetre as micrometres where, and only where, the unit
        # is spelt "um".
        kept = ["unit=um" if line.startswith("unit=") else line for line in kept]
    counts = [f"images={num_frames}", f"frames={num_frames}", "hyperstack=true"]
    return "\n".join([first, *(counts if num_frames > 1 else counts[:1]), *kept, ""])


def _is_ome(description: str) -> bool:
    return description.rstrip().endswith("OME>")


def _ome_description(description: str, shape: tuple[int, int, int]) -> str:
    """OME-XML with its image described as what is written: T frames in order, in this file.

    Empty where it describes no image: other text, broken, or the name of a companion file.
    """
    if not _is_ome(description):
        return ""
    try:
        # Entities of our own making are all there is to fear here, and expat bounds their expansion
        root = ElementTree.fromstring(description.encode())  # noqa: S314
    except ElementTree.ParseError:
        return ""
    namespace = root.tag.rpartition("}")[0] + "}" if "}" in root.tag else ""
    ElementTree.register_namespace("", namespace.strip("{}"))
    root.attrib.pop("UUID", None)  # it names the input's file
    pixels = root.find(f"{namespace}Image/{namespace}Pixels")
    if pixels is None:
        return ""
    is_z_stack = int(pixels.get("SizeZ", "1")) > 1
    extra_channels = pixels.findall(f"{namespace}Channel")[1:]  # frames that were called channels
    for old in pixels.findall(f"{namespace}TiffData") + extra_channels:
        pixels.remove(old)
    num_frames, height, width = shape
    pixels.attrib.update(
        DimensionOrder="XYCZT",
        SizeX=str(width),
        SizeY=str(height),
        SizeC="1",
        SizeZ="1",
        SizeT=str(num_frames),
        BigEndian="false",
    )
    for plane in pixels.findall(f"{namespace}Plane"):
        if is_z_stack:
            plane.attrib.update(TheT=plane.get("TheZ", "0"), TheZ="0")
    # The schema wants TiffData after the channels and before the planes.
    index = sum(child.tag.endswith(("Channel", "BinData")) for child in pixels)
    whole = ElementTree.Element(f"{namespace}TiffData", IFD="0", PlaneCount=str(num_frames))
    pixels.insert(index, whole)
    return '<?xml version="1.0" encoding="UTF-8"?>' + ElementTree.tostring(root, "unicode")


def _description_tags(stack: Stack) -> list[tuple[int, int, int, bytes, bool]]:
    """ImageDescription and ImageJ's tags: the input's own, fitted to the result."""
    metadata, shape = stack.metadata, stack.shape
    given = metadata.description
    tags: list[tuple[int, int, int, bytes, bool]] = []
    if given.startswith(("ImageJ=", "SCIFIO=")):
        texts = [_imagej_description(metadata, shape[0])]
        tags += tifffile.imagej_metadata_tag(metadata.imagej, "<")
    elif ome := _ome_description(given, shape):
        texts = [ome]
    else:
        if _is_ome(given):
            given = ""  # readers would look for the image it does not describe
        # Any other text stands first, as it was; the shape follows in a tag of its own, which is
        # how tifffile says it.
        shaped: dict[str, Any] = {"shape": shape[1:] if stack.is_single_frame else shape}
        if given.startswith("{") and '"shape":' in given:
            with suppress(ValueError):
                shaped = {**json.loads(given), **shaped}
            given = ""
        shaped["axes"] = "YX" if stack.is_single_frame else "TYX"
        shaped.pop("truncated", None)
        texts = [given, json.dumps(shaped)] if given else [json.dumps(shaped)]
    return [(IMAGE_DESCRIPTION, ASCII, 0, text.encode(), True) for text in texts] + tags


# ---- Files ------------------------------------------------------------------------------------


def _open_temporary(target: Path) -> tuple[Path, FileIO]:
    """A new file beside `target`, locked, so that it is known to have a living writer."""
    while True:
        path = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{target.suffix.lower()}")
        file = path.open("x+b", buffering=0)  # else closing it would fail again on a full disk
        with suppress(OSError):  # some network disks have no locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink:  # else taken for a stray one just before the lock
            return path, file
        file.close()


def _write_tiff_frame(file: FileIO, stack: Stack) -> Callable[[int, np.ndarray], None]:
    """Write all of a TIFF but its voxels; returns what writes those."""
    shape = stack.shape[1:] if stack.is_single_frame else stack.shape
    frame_bytes = stack.dtype.itemsize * stack.shape[1] * stack.shape[2]
    num_bytes = frame_bytes * stack.shape[0]
    resolution, unit = _resolution(stack.metadata)
    is_big = num_bytes + PAGE_TAG_BYTES * stack.shape[0] > BIGTIFF_BYTES
    with tifffile.TiffWriter(file, bigtiff=is_big, byteorder="<", ome=False) as tif:
        place = tif.write(
            None,
            shape=shape,
            dtype=stack.dtype,
            photometric="minisblack",  # said, since 3 or 4 frames or columns would become colours
            resolution=resolution,
            resolutionunit=unit,
            metadata=None,
            extratags=_description_tags(stack),
            returnoffset=True,
        )
    assert place is not None
    offset, _ = place
    # Reserved now: a full disk is better known before an hour's work than after.
    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)

    def store(start: int, frames: np.ndarray) -> None:
        file.seek(offset + start * frame_bytes)
        rest = np.ascontiguousarray(frames, frames.dtype.newbyteorder("<")).data.cast("B")
        while rest:  # an unbuffered file may take less than all at a time
            rest = rest[file.write(rest) :]

    return store


def _keep(all_frames: np.ndarray, start: int, frames: np.ndarray) -> None:
    """Collect frames, since SimpleITK writes an image as a whole."""
    all_frames[start : start + len(frames)] = frames


def _write_mha(path: Path, frames: np.ndarray, stack: Stack) -> None:
    """Write a .mha file with the geometry of the input's."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    image = sitk.GetImageFromArray(frames[0] if stack.is_single_frame else frames)
    given = stack.metadata
    for set_geometry, values in (
        (image.SetSpacing, given.spacing),
        (image.SetOrigin, given.origin),
        (image.SetDirection, given.direction),
    ):
        with suppress(RuntimeError):  # a spacing of 0, say, is read but not written by ITK
            set_geometry(values)
    with suppress(RuntimeError):  # ITK may or may not notice a full disk; the size tells
        sitk.WriteImage(image, str(path), useCompression=False)
    if path.stat().st_size < frames.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def open_result(target: Path, stack: Stack) -> Iterator[ResultWriter]:
    """A writer for the stack's denoised frames, which stand at `target` once the block ends.

    The file is complete and on the disk before it gets its name. If anything fails, nothing is
    left behind, and what stood under that name stays as it was.
    """
    with write_failures_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = _open_temporary(target)
    _under_way.add(temporary)
    try:
        with file:
            is_mha = target.suffix.lower() == ".mha"
            with write_failures_named(target):
                if is_mha:
                    frames = np.empty(stack.shape, stack.dtype)
                    os.posix_fallocate(file.fileno(), 0, frames.nbytes)
                    store: Callable[[int, np.ndarray], None] = partial(_keep, frames)
                else:
                    store = _write_tiff_frame(file, stack)
            writer = ResultWriter(target, stack, store)
            yield writer
            if writer.num_written != stack.shape[0]:
                raise StackError(
                    f"{target.name}: {writer.num_written} of {stack.shape[0]} frames were "
                    "denoised, so the result was not written"
                )
            with write_failures_named(target):
                if is_mha:
                    _write_mha(temporary, frames, stack)
                os.fsync(file.fileno())
                temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    finally:
        _under_way.discard(temporary)


def remove_stray_temporaries(output_dir: Path) -> int:
    """Delete what killed runs left unfinished below the output folder; returns how many files."""
    num_removed = 0
    for path in output_dir.rglob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
            path.unlink()
            num_removed += 1
    return num_removed


def discard_unfinished() -> None:
    """Delete what this process is writing, because it is about to end in the middle of it."""
    for path in tuple(_under_way):
        with suppress(OSError):
            path.unlink(missing_ok=True)
