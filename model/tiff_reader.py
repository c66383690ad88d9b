"""TIFF files of every kind as [T,H,W]: where the frames are, whether all are there, what they say.

tifffile logs a line and goes on, with fewer pages or with zeros, where a file is cut off; so every
page is accounted for here before a voxel is read.
"""

from __future__ import annotations

import logging
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from model.stack import StackError, StackMetadata, require_dtype, require_memory

TIME_AXES = "TZIQ"  # a stack saved as slices (Z) or as plain pages (I, Q) is a movie all the same
MAX_CHANNELS = 7  # ImageJ's; more "channels" are a movie that tifffile saved without axes
PLATFORM_UNITS = {"INCH": 25400.0, "CENTIMETER": 1e4}  # accepted by its importer; in micrometres
MICROMETRES = {
    **dict.fromkeys(("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer"), 1.0),
    **{"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0},
}
SECONDS = {"s": 1.0, "ms": 1e-3, "min": 60.0}
# ScanImage's settings by the ends of their names, which versions 3 to 2023 begin differently.
SCANIMAGE_CHANNELS = ("hChannels.channelSave", "channelsSave")  # their numbers
SCANIMAGE_CHANNEL_COUNT = ("acq.numberOfChannelsSave",)
SCANIMAGE_PLANES = (  # the first may be there beside an older one of the second
    *("hStackManager.actualNumSlices", "hStackManager.numSlices"),
    *("stackNumSlices", "acq.numberOfZSlices"),
)
SCANIMAGE_HAS_PLANES = ("hStackManager.enable", "hFastZ.enable", "fastZEnable")  # where there
SCANIMAGE_RATE = ("hRoiManager.scanFrameRate", "scanFrameRate", "acq.frameRate")  # Hz
SCANIMAGE_AVERAGED = ("hScan2D.logAverageFactor",)  # frames that one was made of


@contextmanager
def tifffile_errors() -> Iterator[list[str]]:
    """The errors tifffile logs inside; its log stays off stderr."""
    errors: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            # A value beyond the end of the file is a mere warning to tifffile.
            # Broken OME-XML is an error to it, but the pages are there without.
            is_error = record.levelno >= logging.ERROR and "OME series raised" not in message
            if is_error or "invalid value offset" in message:
                errors.append(message)

    log, keeper = logging.getLogger("tifffile"), Keeper()
    propagate, log.propagate = log.propagate, False
    log.addHandler(keeper)
    try:
        yield errors
    finally:
        log.removeHandler(keeper)
        log.propagate = propagate


@dataclass(frozen=True, kw_only=True)
class TiffLayout:
    """Where a TIFF file keeps its frames; nothing decoded yet."""

    pages: list[Any]  # tifffile.TiffPage or TiffFrame, in time order
    shape: tuple[int, int, int]
    is_single_frame: bool
    dtype: np.dtype[Any]
    offset: int | None  # of all frames in one piece, if they are


def _page_offsets(tif: tifffile.TiffFile, name: str) -> list[int]:
    """The chain of pages, followed by hand: tifffile stops at a break, and not in every loop."""
    handle, form = tif.filehandle, tif.tiff
    handle.seek(form.offsetsize)  # past the signature, which is as long as an offset
    offsets: dict[int, None] = {}
    try:
        while True:
            (offset,) = struct.unpack(form.offsetformat, handle.read(form.offsetsize))
            if offset == 0:
                return list(offsets)
            if offset in offsets:
                raise StackError(f"{name}: its pages form a loop; export the file again")
            offsets[offset] = None
            handle.seek(offset)
            (num_tags,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
            handle.seek(num_tags * form.tagsize, os.SEEK_CUR)
    except struct.error as error:
        raise StackError(
            f"{name}: the file is cut off, its chain of pages breaks after {len(offsets)}; "
            "copy or export it again"
        ) from error


def _require_whole_page(page: Any, name: str, number: int) -> None:
    """Refuse a page with pixel data missing, which tifffile would fill with zeros."""
    form = page.keyframe
    file_size = form.parent.filehandle.size
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    row_bytes = (form.imagewidth * form.bitspersample + 7) // 8
    is_short = form.compression == 1 and (
        sum(count for _, count in segments) < form.imagedepth * form.imagelength * row_bytes
    )
    if (
        is_short
        or len(segments) != math.prod(form.chunked)
        or any(start <= 0 or count <= 0 or start + count > file_size for start, count in segments)
    ):
        raise StackError(
            f"{name}: the data of page {number + 1} are not all there, so the file is cut off or "
            "damaged; copy or export it again"
        )


def _require_grey(form: tifffile.TiffPage, name: str) -> None:
    """Refuse colours; MINISWHITE passes, being only a way to display the same values."""
    photometric = getattr(form.photometric, "name", str(form.photometric))
    if form.samplesperpixel > 1:
        found = f"{form.samplesperpixel} samples per pixel ({photometric})"
    elif photometric not in ("MINISBLACK", "MINISWHITE"):
        found = f"an image of kind {photometric}"
    else:
        return
    raise StackError(f"{name}: {found}, expected grey values; save one channel as greyscale")


def _require_one_movie(series: tifffile.TiffPageSeries, name: str) -> None:
    """Refuse channels and a second time-like axis."""
    shape, axes = series.get_shape(squeeze=False), series.get_axes(squeeze=False)
    if 0 in shape:
        raise StackError(f"{name}: an image of size 0, shape {shape}; export it again")
    extra = [(a, n) for a, n in zip(axes, shape, strict=True) if n > 1 and a not in "YX"]
    if len(extra) > 1 or any(
        axis not in TIME_AXES and not (axis == "C" and size > MAX_CHANNELS) for axis, size in extra
    ):
        found = " x ".join(f"{axis}={size}" for axis, size in extra)
        raise StackError(
            f"{name}: {found} images, expected one [T,H,W] stack of one channel; save each channel "
            "or plane on its own"
        )


def _scanimage_settings(tif: tifffile.TiffFile) -> dict[str, str]:
    """What ScanImage noted of a recording, by name; newer versions do so in the Software tag."""
    page = tif.pages.first
    lines = f"{page.software}\n{page.description}".replace("\r", "\n").splitlines()
    pairs = (line.partition("=") for line in lines)
    return {name.strip(): value.strip() for name, is_pair, value in pairs if is_pair}


def _setting(settings: dict[str, str], ends: tuple[str, ...]) -> str | None:
    """The setting whose name ends so; where there are several, by the first of the ends."""
    return next((v for end in ends for n, v in settings.items() if n.endswith(end)), None)


def _require_one_plane(settings: dict[str, str], name: str) -> None:
    """Refuse ScanImage's channels and planes, whose frames take turns in one chain of pages."""
    numbers = re.findall(r"\d+", _setting(settings, SCANIMAGE_CHANNELS) or "")
    num_channels = max(len(numbers), _count(settings, SCANIMAGE_CHANNEL_COUNT))
    switches = [v for n, v in settings.items() if n.endswith(SCANIMAGE_HAS_PLANES)]
    is_on = not switches or any(value.lower() in ("true", "1") for value in switches)
    num_planes = _count(settings, SCANIMAGE_PLANES) if is_on else 1
    if num_channels > 1 or num_planes > 1:
        raise StackError(
            f"{name}: ScanImage saved {num_channels} channels and {num_planes} planes, expected "
            "one [T,H,W] stack; save each channel or plane on its own, without ScanImage's settings"
        )


def _count(settings: dict[str, str], ends: tuple[str, ...]) -> int:
    """A setting that counts something; 1 where it is not there or no number."""
    number = _positive(_setting(settings, ends))
    return int(number) if number and number.is_integer() else 1


def tiff_layout(tif: tifffile.TiffFile, path: Path) -> TiffLayout:
    """Find the frames of an open file and make sure that all of them are there."""
    offsets = _page_offsets(tif, path.name)
    if not offsets:
        raise StackError(f"{path.name}: a TIFF without any image; export it again")
    series = tif.series
    first = series[0]
    form = first.keyframe
    _require_grey(form, path.name)
    dtype = require_dtype(path, form.dtype)

    # A file written frame by frame is one series per frame to tifffile.
    is_frame_by_frame = all(
        s.kind == "shaped" and len(s.pages) == 1 and s.shape == form.shape and s.dtype == form.dtype
        for s in series
    )
    if len(series) > 1 and not is_frame_by_frame:
        kinds = ", ".join(str(s.shape) for s in series[:4])
        raise StackError(
            f"{path.name}: {len(series)} images of different kinds ({kinds}), expected one "
            "[T,H,W] stack; save the recording alone"
        )
    if tif.is_scanimage:
        _require_one_plane(_scanimage_settings(tif), path.name)
    else:
        _require_one_movie(first, path.name)

    pages = [page for s in series for page in s.pages]
    if first.is_multifile or any(page is None for page in pages):
        raise StackError(
            f"{path.name}: only a part of a data set that is spread over several files; "
            "save it as one file"
        )
    num_frames = math.prod(first.get_shape(squeeze=False)) * len(series)
    num_frames //= form.imagelength * form.imagewidth
    piece = first.dataoffset if len(series) == 1 else None
    if tif.is_scanimage:
        # Where a recording was stopped there are fewer than its settings promise; and tifffile
        # guesses from the file's size where these pages are, and loses the last.
        pages = (
            list(tif.pages)
            if tif.is_bigtiff
            else [_page_at(tif, index, offset) for index, offset in enumerate(offsets)]
        )
        num_frames, piece = len(pages), None

    # ImageJ, beyond 4 GB, has one page stand for all frames, which lie one after the other.
    is_one_for_all = piece is not None and len(offsets) == 1
    if piece is not None and piece + num_frames * form.nbytes > tif.filehandle.size:
        raise StackError(f"{path.name}: the file is cut off; copy or export it again")
    if not is_one_for_all and num_frames != len(offsets) * form.imagedepth:
        raise StackError(
            f"{path.name}: its description promises {num_frames} frames, the file holds "
            f"{len(offsets)} pages; it is cut off or was edited, so export it again"
        )
    for number, page in enumerate(pages):
        _require_whole_page(page, path.name, number)
    return TiffLayout(
        pages=pages,
        shape=(num_frames, form.imagelength, form.imagewidth),
        is_single_frame=len(series) == 1 and len(first.shape) == 2,
        dtype=dtype,
        offset=piece,
    )


def _page_at(tif: tifffile.TiffFile, index: int, offset: int) -> tifffile.TiffPage:
    """The page whose tags begin at `offset`."""
    tif.filehandle.seek(offset)
    return tifffile.TiffPage(tif, index)


def read_tiff_frames(path: Path, layout: TiffLayout) -> np.ndarray:
    """The voxels, [T,H,W]: mapped if they lie in the file as they are, else decoded."""
    form = layout.pages[0].keyframe
    stored = layout.dtype.newbyteorder(form.parent.byteorder)
    mapped = None
    if layout.offset is not None:
        # Mapped and shared, so that it does not count as the process's own memory.
        mapped = np.memmap(path, stored, "r", layout.offset, layout.shape)
        if stored == layout.dtype and layout.offset % stored.itemsize == 0:
            return mapped
    require_memory(path, math.prod(layout.shape) * stored.itemsize)
    if mapped is not None:
        return np.array(mapped, layout.dtype)
    frames = np.empty((len(layout.pages), *form.shape), layout.dtype)
    for page, frame in zip(layout.pages, frames, strict=True):
        frame[...] = page.asarray()
    return frames.reshape(layout.shape)


# ---- Metadata ---------------------------------------------------------------------------------


def _positive(value: Any) -> float | None:
    """The value as a number, if it is a finite one above zero."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None


def _ome_scales(description: str) -> tuple[tuple[float, float] | None, float | None]:
    """Pixel size in micrometres and frame interval in seconds of OME-XML, each if it is there."""
    try:
        images = tifffile.xml2dict(description)["OME"]["Image"]
        pixels = (images[0] if isinstance(images, list) else images)["Pixels"]
    except (ElementTree.ParseError, KeyError, TypeError):
        return None, None  # broken, or the name of a companion file
    sizes = []
    for axis in "XY":
        size = _positive(pixels.get(f"PhysicalSize{axis}"))
        unit = MICROMETRES.get(str(pixels.get(f"PhysicalSize{axis}Unit", "µm")).lower())
        if size and unit:
            sizes.append(size * unit)
    interval = _positive(pixels.get("TimeIncrement"))
    seconds = SECONDS.get(pixels.get("TimeIncrementUnit", "s"))
    return (
        (sizes[0], sizes[1]) if len(sizes) == 2 else None,
        interval * seconds if interval and seconds else None,
    )


def tiff_metadata(tif: tifffile.TiffFile) -> StackMetadata:
    """Description, resolution, pixel size and frame interval of an open file."""
    page = tif.pages.first
    x, y = page.tags.valueof("XResolution"), page.tags.valueof("YResolution")
    has_resolution = all(isinstance(r, tuple) and len(r) == 2 and min(r) > 0 for r in (x, y))
    unit = getattr(page.tags.valueof("ResolutionUnit"), "name", "INCH")  # if absent, says TIFF 6
    is_accepted = has_resolution and unit in PLATFORM_UNITS

    pixel_size_um = interval = None
    if page.is_ome:
        pixel_size_um, interval = _ome_scales(page.description)
    elif lines := tif.imagej_metadata:
        unit_um = MICROMETRES.get(str(lines.get("unit", "")).lower())
        if has_resolution and unit_um:
            # The tag's unit, where it has one, is the one ImageJ goes by.
            unit_um = PLATFORM_UNITS.get(unit, unit_um)
            pixel_size_um = unit_um * x[1] / x[0], unit_um * y[1] / y[0]
        interval = _positive(lines.get("finterval"))
        if interval is None and (rate := _positive(lines.get("fps"))):
            interval = 1 / rate
    description = page.description
    if tif.is_scanimage:
        settings = _scanimage_settings(tif)
        if rate := _positive(_setting(settings, SCANIMAGE_RATE)):
            interval = _count(settings, SCANIMAGE_AVERAGED) / rate
        if page.software.startswith("SI."):
            # not as the Software tag again: tifffile would look for pages where ScanImage has them
            description = f"{description}\n{page.software}"
    return StackMetadata(
        description=description,
        imagej=dict(page.tags.valueof("IJMetadata") or {}),
        resolution=(x, y) if is_accepted else None,
        resolution_unit=unit if is_accepted else None,
        pixel_size_um=pixel_size_um,
        frame_interval_seconds=interval,
    )
