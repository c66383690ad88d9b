"""MetaImage files (.mha): SimpleITK reads what the header says, the voxels are read here.

ITK's own decompression writes beyond its memory where a damaged file holds more than its header
promises, and its `ElementDataFile` may name any file of the machine. Format:
https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.stack import StackError, StackMetadata, require_dtype, require_memory

HEADER_BYTES = 2**16  # more than any header has
CHUNK_BYTES = 2**20
MAX_COMPRESSION = 1100  # zlib cannot do better than 1:1032


@dataclass(frozen=True, kw_only=True)
class MhaHeader:
    """What a file says of itself."""

    shape: tuple[int, ...]  # [T,H,W] or [H,W]
    dtype: np.dtype[Any]
    metadata: StackMetadata


def read_header(path: Path) -> MhaHeader:
    """Shape, dtype and geometry; StackError for anything but one stack of one channel."""
    import SimpleITK as sitk  # half a second, and seldom needed

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would warn on stderr
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    shape = tuple(reversed(reader.GetSize()))
    if reader.GetNumberOfComponents() > 1 or len(shape) not in (2, 3):
        raise StackError(
            f"{path.name}: shape {shape} with {reader.GetNumberOfComponents()} channel(s), "
            "expected one [T,H,W] stack of one channel; save each channel on its own"
        )
    kind = reader.GetPixelID()
    dtypes = {
        **{sitk.sitkUInt8: np.uint8, sitk.sitkInt8: np.int8, sitk.sitkUInt16: np.uint16},
        **{sitk.sitkInt16: np.int16, sitk.sitkUInt32: np.uint32, sitk.sitkInt32: np.int32},
        **{sitk.sitkFloat32: np.float32, sitk.sitkFloat64: np.float64},
    }
    dtype = np.dtype(dtypes[kind]) if kind in dtypes else None
    return MhaHeader(
        shape=shape,
        dtype=require_dtype(path, dtype, sitk.GetPixelIDValueAsString(kind)),
        metadata=StackMetadata(
            spacing=reader.GetSpacing(), origin=reader.GetOrigin(), direction=reader.GetDirection()
        ),
    )


def _cut_off(path: Path) -> StackError:
    return StackError(
        f"{path.name}: does not hold as many voxels as its header promises, so damaged or cut off; "
        "copy or export it again"
    )


def read_voxels(path: Path, header: MhaHeader) -> np.ndarray:
    """The voxels in the machine's byte order: mapped where they lie in the file just so.

    StackError where they are fewer or more than the header promises, or not in the file itself.
    """
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES)
    end = re.search(rb"^ElementDataFile\s*=\s*LOCAL[ \t]*\r?\n", text, re.MULTILINE)
    if end is None or re.search(rb"^BinaryData\s*=\s*[Ff]|^HeaderSize", text[: end.end()], re.M):
        raise StackError(
            f"{path.name}: its voxels lie in another file, or not as plain binary numbers; save it "
            "as one binary .mha file"
        )
    fields = text[: end.end()]
    is_big_endian = re.search(rb"^(Binary|Element)\w*ByteOrderMSB\s*=\s*[Tt]", fields, re.MULTILINE)
    stored = header.dtype.newbyteorder(">" if is_big_endian else "<")
    if re.search(rb"^CompressedData\s*=\s*[Tt]", fields, re.MULTILINE):
        frames = _inflated(path, end.end(), header.shape, stored)
    elif end.end() + math.prod(header.shape) * stored.itemsize > path.stat().st_size:
        raise _cut_off(path)
    else:
        frames = np.memmap(path, stored, "r", end.end(), header.shape)
    if stored.isnative:
        return frames
    require_memory(path, frames.nbytes)
    return frames.astype(header.dtype)


def _inflated(path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """The voxels that lie compressed from a place in the file on."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > MAX_COMPRESSION * (path.stat().st_size - start):
        raise _cut_off(path)  # before memory is taken for what cannot be there
    require_memory(path, num_bytes)
    frames = np.empty(shape, dtype)
    room = frames.reshape(-1).view(np.uint8)
    inflater, filled = zlib.decompressobj(), 0
    with path.open("rb") as file:
        file.seek(start)
        while not inflater.eof and (chunk := file.read(CHUNK_BYTES)):
            while chunk:
                piece = inflater.decompress(chunk, CHUNK_BYTES)
                if filled + len(piece) > num_bytes:
                    raise _cut_off(path)
                room[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
                filled += len(piece)
                chunk = inflater.unconsumed_tail
    if filled != num_bytes or not inflater.eof:
        raise _cut_off(path)
    return frames
