import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from lab.fuzz import read_damaged
from model import result_writer
from model.result_writer import TEMPORARY_PREFIX, open_result, remove_stray_temporaries
from model.stack import Stack, StackError
from model.stack_io import (
    PLATFORM_INPUT,
    PLATFORM_OUTPUT,
    find_stacks,
    is_platform_layout,
    peek_shape,
    read_stack,
)

SHAPE = (9, 34, 50)  # more than 7 frames: tifffile calls up to 7 of them channels in ImageJ files


def movie(dtype: str = "uint16", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 120, shape).astype(dtype)


def write(stack: Stack, target: Path) -> Path:
    """The stack's own frames as its result, in two pieces."""
    frames = stack.frames.astype(np.float32)
    with open_result(target, stack) as writer:
        writer.append(frames[:1])
        writer.append(frames[1:])
    return target


def error_of(path: Path) -> str:
    with pytest.raises(StackError) as caught:
        read_stack(path)
    with pytest.raises(StackError):
        peek_shape(path)
    assert path.name in str(caught.value)
    return str(caught.value)


# ---- Input forms -------------------------------------------------------------------------------

IMAGEJ = {
    "axes": "TYX",
    "unit": "micron",
    "finterval": 0.033,
    "min": 3.0,
    "max": 99.0,
    "Info": "Objective: 16x",
    "Labels": [f"frame {i}" for i in range(SHAPE[0])],
}
OME = {
    "axes": "TYX",
    "PhysicalSizeX": 0.5,
    "PhysicalSizeXUnit": "µm",
    "PhysicalSizeY": 250.0,
    "PhysicalSizeYUnit": "nm",
    "TimeIncrement": 33.0,
    "TimeIncrementUnit": "ms",
    "Plane": {"DeltaT": [0.033 * i for i in range(SHAPE[0])]},
}
GREY = {"photometric": "minisblack"}
WRITTEN_AS = {
    "plain": {},
    "without metadata": {"metadata": None},
    "ImageJ": {"imagej": True, "resolution": (2.0, 4.0), "metadata": IMAGEJ},
    "ImageJ slices": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "ImageJ without axes": {"imagej": True},
    "ImageJ in one page": {"imagej": True, "truncate": True, "metadata": IMAGEJ},
    "one page": {"truncate": True},
    "OME": {"ome": True, "metadata": OME},
    "OME slices": {"ome": True, "metadata": {"axes": "ZYX"}},
    "BigTIFF": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "big-endian tiles": {"byteorder": ">", "tile": (16, 32)},
    "tiled": {"tile": (16, 32)},
    "strips": {"rowsperstrip": 5},
    "deflate": {"compression": "zlib"},
    "deflate with predictor": {"compression": "zlib", "predictor": True},
    "LZW": {"compression": "lzw", "rowsperstrip": 5},
    "LZW with predictor, tiled": {"compression": "lzw", "predictor": True, "tile": (16, 16)},
    "ZSTD": {"compression": "zstd", "tile": (16, 16)},
    "BigTIFF, big-endian, ZSTD": {"bigtiff": True, "byteorder": ">", "compression": "zstd"},
    "miniswhite": {"photometric": "miniswhite"},
}


def write_form(path: Path, form: str, frames: np.ndarray) -> None:
    tifffile.imwrite(path, frames, **{**GREY, **WRITTEN_AS[form]})


@pytest.mark.parametrize("form", WRITTEN_AS)
def test_every_form_of_tiff_is_read_and_written_back_equal(form: str, tmp_path: Path) -> None:
    frames = movie()
    write_form(tmp_path / "x.tif", form, frames)
    stack = read_stack(tmp_path / "x.tif")
    assert stack.frames.dtype == stack.dtype == frames.dtype
    np.testing.assert_array_equal(stack.frames, frames)
    assert peek_shape(tmp_path / "x.tif") == stack.shape == SHAPE
    assert (stack.is_single_frame, stack.num_replaced) == (False, 0)
    assert not stack.frames.flags.writeable

    with tifffile.TiffFile(write(stack, tmp_path / "out.tif")) as tif:
        page, series = tif.pages[0], tif.series[0]
        assert (len(tif.series), series.axes, series.dtype) == (1, "TYX", frames.dtype)
        np.testing.assert_array_equal(tif.asarray(), frames)
        assert (page.photometric.name, page.compression) == ("MINISBLACK", 1)
        assert page.tags["ResolutionUnit"].value.name == "CENTIMETER"
        assert series.dataoffset is not None  # in one piece


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_every_integer_dtype_is_kept(dtype: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(dtype), **GREY)
    result = tifffile.imread(write(read_stack(tmp_path / "x.tif"), tmp_path / "out.tif"))
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, movie(dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_every_float_dtype_is_kept(dtype: str, compression: str | None, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(dtype) / 4, compression=compression, **GREY)
    result = tifffile.imread(write(read_stack(tmp_path / "x.tif"), tmp_path / "out.tif"))
    assert result.dtype == (movie(dtype) / 4).dtype
    np.testing.assert_array_equal(result, movie(dtype) / 4)


@pytest.mark.parametrize("form", ["plain", "without metadata", "OME", "BigTIFF", "strips"])
def test_an_uncompressed_file_is_mapped_read_only(form: str, tmp_path: Path) -> None:
    write_form(tmp_path / "x.tif", form, movie())
    frames = read_stack(tmp_path / "x.tif").frames
    assert isinstance(frames, np.memmap)
    assert frames.mode == "r"


@pytest.mark.parametrize("shape", [(1, 9, 1, 34, 50), (9, 1, 34, 50), (1, 1, 9, 34, 50, 1)])
def test_axes_of_length_one_are_squeezed(shape: tuple[int, ...], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie().reshape(shape), **GREY)
    stack = read_stack(tmp_path / "x.tif")
    np.testing.assert_array_equal(stack.frames, movie())
    assert tifffile.imread(write(stack, tmp_path / "out.tif")).shape == SHAPE


@pytest.mark.parametrize("form", ["plain", "without metadata", "OME", "ImageJ", "deflate"])
@pytest.mark.parametrize("shape", [(34, 50), (1, 34, 50)])
def test_one_frame_comes_back_in_the_shape_tifffile_reads(
    form: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    options = {**GREY, **WRITTEN_AS[form]}
    if form in ("OME", "ImageJ"):
        options["metadata"] = {"axes": "TYX"[-len(shape) :]}
    tifffile.imwrite(tmp_path / "x.tif", movie(shape=shape), **options)
    stack = read_stack(tmp_path / "x.tif")
    assert stack.shape == (1, 34, 50)
    given = tifffile.imread(tmp_path / "x.tif")
    assert stack.is_single_frame == (given.ndim == 2)
    result = tifffile.imread(write(stack, tmp_path / "out.tif"))
    np.testing.assert_array_equal(result, given)


@pytest.mark.parametrize("shape", [(3, 34, 50), (4, 34, 50), (9, 34, 3), (9, 34, 4), (3, 4, 3)])
@pytest.mark.parametrize("form", ["plain", "without metadata", "ImageJ slices", "OME slices"])
def test_three_or_four_frames_or_columns_do_not_become_colours(
    shape: tuple[int, int, int], form: str, tmp_path: Path
) -> None:
    write_form(tmp_path / "x.tif", form, movie(shape=shape))
    stack = read_stack(tmp_path / "x.tif")
    assert stack.shape == shape
    with tifffile.TiffFile(write(stack, tmp_path / "out.tif")) as tif:
        assert (len(tif.pages), tif.pages[0].samplesperpixel) == (shape[0], 1)
        assert tif.series[0].shape == shape


def write_pages(path: Path, software: str, description: str, bigtiff: bool) -> None:
    """A file whose frames were written one by one, each with a text of its own."""
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tif:
        for i, frame in enumerate(movie()):
            text = f"{description}frame = {i}"
            tif.write(frame, metadata=None, description=text, software=software)


@pytest.mark.parametrize("bigtiff", [False, True])
def test_pages_written_one_by_one_are_frames(bigtiff: bool, tmp_path: Path) -> None:
    write_pages(tmp_path / "x.tif", "tifffile.py", "", bigtiff)
    stack = read_stack(tmp_path / "x.tif")
    np.testing.assert_array_equal(stack.frames, movie())
    with tifffile.TiffFile(write(stack, tmp_path / "out.tif")) as tif:
        assert tif.pages[0].description == "frame = 0"
        assert (tif.series[0].axes, tif.series[0].shape) == ("TYX", SHAPE)


def scanimage_tag(**changed: str) -> str:
    """What newer versions of ScanImage write into the Software tag."""
    settings = {
        "VERSION_MAJOR": "2023",
        "hChannels.channelSave": "2",
        "hFastZ.enable": "false",
        "hStackManager.enable": "false",
        "hStackManager.framesPerSlice": "1000",  # promised; the recording was stopped earlier
        "hStackManager.numSlices": "5",  # of an earlier recording
        "hStackManager.actualNumSlices": "1",
        "hRoiManager.scanFrameRate": "30.03",
        "hScan2D.logAverageFactor": "2",
    }
    return "\n".join(f"SI.{name} = {value}" for name, value in (settings | changed).items())


SCANIMAGE_OLD = "state.configPath='x'\rstate.acq.numberOfChannelsSave={}\rstate.acq.frameRate=7.5\r"
SCANIMAGE_5 = (
    "scanimage.SI5.channelsSave = {}\nscanimage.SI5.fastZEnable = false\n"
    "scanimage.SI5.stackNumSlices = 5\nscanimage.SI5.scanFrameRate = 7.5\n"
)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize(
    ("software", "description", "interval"),
    [
        (scanimage_tag(), "", 2 / 30.03),
        ("", SCANIMAGE_OLD.format(1), 1 / 7.5),
        ("", SCANIMAGE_5.format("[3]"), 1 / 7.5),
    ],
)
def test_scanimage_files_come_back_whole(
    software: str, description: str, interval: float, bigtiff: bool, tmp_path: Path
) -> None:
    write_pages(tmp_path / "x.tif", software, description, bigtiff)
    stack = read_stack(tmp_path / "x.tif")
    np.testing.assert_array_equal(stack.frames, movie())
    assert stack.metadata.frame_interval_seconds == pytest.approx(interval)
    with tifffile.TiffFile(write(stack, tmp_path / "out.tif")) as tif:
        text = tif.pages[0].description
        assert text.startswith(description + "frame = 0") and software in text
        np.testing.assert_array_equal(tif.asarray(), movie())
    np.testing.assert_array_equal(read_stack(tmp_path / "out.tif").frames, movie())


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize(
    ("software", "description", "found"),
    [
        (scanimage_tag(**{"hChannels.channelSave": "[1;2]"}), "", "2 channels"),
        (scanimage_tag(**{"hChannels.channelSave": "[1 2]"}), "", "2 channels"),
        (
            scanimage_tag(**{"hStackManager.enable": "true", "hStackManager.actualNumSlices": "3"}),
            "",
            "3 planes",
        ),
        ("", SCANIMAGE_5.replace("false", "true").format(1), "5 planes"),
        ("", SCANIMAGE_OLD.format(2), "2 channels"),
        ("", SCANIMAGE_5.format("[1;3]"), "2 channels"),
    ],
)
def test_scanimage_channels_and_planes_that_take_turns_are_refused(
    software: str, description: str, found: str, bigtiff: bool, tmp_path: Path
) -> None:
    write_pages(tmp_path / "x.tif", software, description, bigtiff)
    assert found in error_of(tmp_path / "x.tif")


def test_a_series_for_every_frame_is_one_stack(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as tif:
        for frame in movie():
            tif.write(frame, **GREY)
    np.testing.assert_array_equal(read_stack(tmp_path / "x.tif").frames, movie())


def test_an_imagej_file_beyond_4_gb_with_one_page_is_mapped(tmp_path: Path) -> None:
    shape = (16400, 512, 256)  # a sparse file: only its last frames take space
    tifffile.imwrite(
        tmp_path / "x.tif", shape=shape, dtype="uint16", imagej=True, truncate=True,
        metadata={"axes": "TYX"}, **GREY,
    )  # fmt: skip
    with (tmp_path / "x.tif").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x01\x00\x02\x00")
    stack = read_stack(tmp_path / "x.tif")
    assert stack.shape == shape
    assert stack.frames[-1, -1, -2:].tolist() == [1, 2]
    with (tmp_path / "x.tif").open("r+b") as file:
        file.truncate(4_295_000_000)
    del stack
    assert "cut off" in error_of(tmp_path / "x.tif")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [SHAPE, (34, 50), (1, 34, 50), (3, 34, 50)])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_mha_comes_back_equal_with_its_geometry(
    dtype: str, shape: tuple[int, ...], is_compressed: bool, tmp_path: Path
) -> None:
    image = sitk.GetImageFromArray(movie(dtype, shape))
    image.SetSpacing((0.5, 0.25, 2.0)[: len(shape)])
    image.SetOrigin((3.0, -4.0, 5.0)[: len(shape)])
    flip = np.diag([-1.0, 1.0, 1.0])[: len(shape), : len(shape)]
    image.SetDirection(flip.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "x.mha"), useCompression=is_compressed)
    stack = read_stack(tmp_path / "x.mha")
    assert peek_shape(tmp_path / "x.mha") == stack.shape

    result = sitk.ReadImage(str(write(stack, tmp_path / "out.MHA")), imageIO="MetaImageIO")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result), movie(dtype, shape))
    assert sitk.GetArrayFromImage(result).dtype == dtype
    assert result.GetSpacing() == image.GetSpacing()
    assert result.GetOrigin() == image.GetOrigin()
    assert result.GetDirection() == image.GetDirection()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.MHA", "x.mha"]


def test_reading_and_writing_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(), **GREY)
    sitk.WriteImage(sitk.GetImageFromArray(movie()), str(tmp_path / "x.mha"), True)
    for name in ("x.tif", "x.mha"):
        write(read_stack(tmp_path / name), tmp_path / "out" / name)
    data = (tmp_path / "x.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[:-100])
    error_of(tmp_path / "cut.tif")
    assert capfd.readouterr() == ("", "")


# ---- Metadata ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_imagej_metadata_are_carried_over(dtype: str, tmp_path: Path) -> None:
    write_form(tmp_path / "x.tif", "ImageJ", movie(dtype))
    stack = read_stack(tmp_path / "x.tif")
    assert stack.metadata.pixel_size_um == (0.5, 0.25)
    assert stack.metadata.frame_interval_seconds == 0.033
    with tifffile.TiffFile(write(stack, tmp_path / "out.tif")) as tif:
        lines = tif.imagej_metadata
        for key in ("finterval", "min", "max", "Info", "Labels"):
            assert lines[key] == IMAGEJ[key]
        assert (lines["images"], lines["frames"]) == (SHAPE[0], SHAPE[0])
        # With a resolution per centimetre ImageJ takes "um", and only that, for micrometres.
        assert lines["unit"] == "um"
        assert tif.pages[0].get_resolution("CENTIMETER") == (20000, 40000)
    again = read_stack(write(read_stack(tmp_path / "out.tif"), tmp_path / "again.tif"))
    assert again.metadata.pixel_size_um == (0.5, 0.25)
    assert again.metadata == read_stack(tmp_path / "out.tif").metadata


def test_an_int16_file_with_imagej_lines_keeps_its_scales(tmp_path: Path) -> None:
    text = f"ImageJ=1.54f\nimages={SHAPE[0]}\nslices={SHAPE[0]}\nunit=mm\nfps=20\n"
    tifffile.imwrite(
        tmp_path / "x.tif", movie("int16") - 50, metadata=None, description=text,
        resolution=(2000, 2000), resolutionunit="NONE", **GREY,
    )  # fmt: skip
    stack = read_stack(tmp_path / "x.tif")
    assert stack.metadata.pixel_size_um == (0.5, 0.5)
    assert stack.metadata.frame_interval_seconds == 0.05
    result = read_stack(write(stack, tmp_path / "out.tif"))
    assert result.dtype == np.int16
    assert result.metadata.pixel_size_um == (0.5, 0.5)
    assert result.metadata.frame_interval_seconds == 0.05
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.series[0].axes == "TYX"


def test_ome_metadata_are_carried_over(tmp_path: Path) -> None:
    write_form(tmp_path / "x.tif", "OME", movie("int16"))
    stack = read_stack(tmp_path / "x.tif")
    assert stack.metadata.pixel_size_um == (0.5, 0.25)
    assert stack.metadata.frame_interval_seconds == pytest.approx(0.033)
    with tifffile.TiffFile(write(stack, tmp_path / "out.tif")) as tif:
        assert tif.is_ome
        pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
        assert tif.pages[0].get_resolution("CENTIMETER") == (20000, 40000)
    assert (pixels["PhysicalSizeX"], pixels["TimeIncrement"]) == (0.5, 33.0)
    assert [plane["TheT"] for plane in pixels["Plane"]] == list(range(SHAPE[0]))
    given, made = (read_stack(tmp_path / n).metadata for n in ("x.tif", "out.tif"))
    assert made.pixel_size_um == given.pixel_size_um
    assert made.frame_interval_seconds == given.frame_interval_seconds


@pytest.mark.parametrize(
    "text",
    [
        '<OME><BinaryOnly MetadataFile="x.companion.ome" UUID="urn:uuid:1"/></OME>',
        "<OME></OME>",
        "<OME><Image></OME>",
        '<?xml version="1.0"?><OME><Image ID="Image:0"/></OME>',
    ],
)
def test_ome_metadata_without_an_image_are_left_out(text: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(), metadata=None, description=text, **GREY)
    stack = read_stack(tmp_path / "x.tif")
    assert stack.metadata.pixel_size_um is None
    with tifffile.TiffFile(write(stack, tmp_path / "out.tif")) as tif:
        assert not tif.is_ome
        np.testing.assert_array_equal(tif.asarray(), movie())


def test_ome_slices_become_time_points(tmp_path: Path) -> None:
    planes = {"DeltaT": [0.5 * i for i in range(SHAPE[0])]}
    tifffile.imwrite(
        tmp_path / "x.tif", movie(), ome=True, metadata={"axes": "ZYX", "Plane": planes}, **GREY
    )
    write(read_stack(tmp_path / "x.tif"), tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
    assert (pixels["SizeT"], pixels["SizeZ"]) == (SHAPE[0], 1)
    assert [plane["TheT"] for plane in pixels["Plane"]] == list(range(SHAPE[0]))
    assert {plane["TheZ"] for plane in pixels["Plane"]} == {0}


def test_any_other_description_is_carried_over(tmp_path: Path) -> None:
    text = "Mouse 7, 30 Hz, µm"
    tifffile.imwrite(tmp_path / "x.tif", movie(), metadata=None, description=text.encode(), **GREY)
    with tifffile.TiffFile(write(read_stack(tmp_path / "x.tif"), tmp_path / "out.tif")) as tif:
        assert tif.pages[0].description == text
        assert tif.series[0].axes == "TYX"


def test_tifffile_metadata_are_carried_over(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(), metadata={"axes": "ZYX", "fs": 30.5}, **GREY)
    with tifffile.TiffFile(write(read_stack(tmp_path / "x.tif"), tmp_path / "out.tif")) as tif:
        assert tif.shaped_metadata == ({"shape": list(SHAPE), "fs": 30.5, "axes": "TYX"},)


@pytest.mark.parametrize("unit", ["INCH", "CENTIMETER"])
def test_a_valid_resolution_is_kept(unit: str, tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "x.tif", movie(), resolution=((721, 10), (3, 2)), resolutionunit=unit, **GREY
    )
    with tifffile.TiffFile(write(read_stack(tmp_path / "x.tif"), tmp_path / "out.tif")) as tif:
        tags = tif.pages[0].tags
        assert tags["XResolution"].value == (721, 10)
        assert tags["YResolution"].value == (3, 2)
        assert tags["ResolutionUnit"].value.name == unit


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resolution": (0, 0), "resolutionunit": "INCH"},
        {"resolution": (5, 5), "resolutionunit": "NONE"},
        {"resolution": (5, 5), "resolutionunit": "MICROMETER"},
        {"imagej": True, "resolution": (5, 5), "metadata": {"axes": "TYX", "unit": "furlong"}},
        {"imagej": True, "resolution": (1e-9, 1e-9), "metadata": {"axes": "TYX", "unit": "mm"}},
        {"ome": True, "metadata": {"axes": "TYX", "PhysicalSizeX": 0.0, "PhysicalSizeY": 0.0}},
    ],
)
def test_without_a_usable_pixel_size_300_per_centimetre_is_written(
    options: dict, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(), **GREY, **options)
    with tifffile.TiffFile(write(read_stack(tmp_path / "x.tif"), tmp_path / "out.tif")) as tif:
        tags = tif.pages[0].tags
        assert tags["XResolution"].value == tags["YResolution"].value == (300, 1)
        assert tags["ResolutionUnit"].value.name == "CENTIMETER"


# ---- What other readers make of the result ----------------------------------------------------

FORMS_FOR_READERS = {
    **{form: ("uint16", SHAPE) for form in WRITTEN_AS if form != "miniswhite"},
    "int16": ("int16", SHAPE),
    "float32": ("float32", SHAPE),
    "float64": ("float64", SHAPE),
    "uint8": ("uint8", SHAPE),
    "int32": ("int32", SHAPE),
    "one frame": ("uint16", (34, 50)),
    "one page as a stack": ("uint16", (1, 34, 50)),
    "three frames": ("uint16", (3, 34, 50)),
    "four columns": ("int16", (9, 34, 4)),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a result of every form: 0.tif, 1.tif, ... and 0.mha, 1.mha."""
    folder = tmp_path_factory.mktemp("results")
    for i, (form, (dtype, shape)) in enumerate(FORMS_FOR_READERS.items()):
        source = folder.parent / f"source{i}.tif"
        tifffile.imwrite(source, movie(dtype, shape), **{**GREY, **WRITTEN_AS.get(form, {})})
        write(read_stack(source), folder / f"{i}.tif")
    for i, shape in enumerate([SHAPE, (34, 50)]):
        source = folder.parent / f"source{i}.mha"
        sitk.WriteImage(sitk.GetImageFromArray(movie("int16", shape)), str(source))
        write(read_stack(source), folder / f"{i}.mha")
    yield folder


IMPORT = """
import json, sys
from pathlib import Path
import panimg
done = panimg.convert(input_directory=Path(sys.argv[1]), output_directory=Path(sys.argv[2]))
print(json.dumps([[i.name, i.color_space.value, i.height, i.width] for i in done.new_images]))
"""


def test_the_platforms_importer_accepts_every_result(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("panimg")
    imported = subprocess.run(  # on its own, for it leaves files open
        [sys.executable, "-c", IMPORT, results, tmp_path / "out"], capture_output=True, check=True
    )
    images = {name: rest for name, *rest in json.loads(imported.stdout)}
    expected = {
        f"{i}.tif": ["GRAY", *shape[-2:]] for i, (_, shape) in enumerate(FORMS_FOR_READERS.values())
    }
    assert images == {**expected, "0.mha": ["GRAY", 34, 50], "1.mha": ["GRAY", 34, 50]}


@pytest.mark.parametrize("form", FORMS_FOR_READERS)
def test_simpleitk_and_tifffile_read_equal_results(
    form: str, results: Path, capfd: pytest.CaptureFixture
) -> None:
    path = results / f"{list(FORMS_FOR_READERS).index(form)}.tif"
    expected = movie(*FORMS_FOR_READERS[form])
    np.testing.assert_array_equal(tifffile.imread(path).reshape(expected.shape), expected)
    if expected.dtype == np.float64:
        return  # ITK reads no TIFF with 64-bit voxels, whoever wrote it
    by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert by_itk.dtype == expected.dtype
    np.testing.assert_array_equal(by_itk.reshape(expected.shape), expected)
    assert capfd.readouterr().err == ""


# ---- Bad voxels --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_non_finite_voxels_are_counted_and_replaced_by_the_median(
    dtype: str, compression: str | None, tmp_path: Path
) -> None:
    frames = movie(dtype)
    frames[0, 0, 0], frames[3, 4, 5], frames[8, 33, 49] = np.nan, np.inf, -np.inf
    tifffile.imwrite(tmp_path / "x.tif", frames, compression=compression, **GREY)
    stack = read_stack(tmp_path / "x.tif")
    is_bad = ~np.isfinite(frames)
    assert stack.num_replaced == 3
    assert set(stack.frames[is_bad]) == {np.median(frames[~is_bad])}
    np.testing.assert_array_equal(stack.frames[~is_bad], frames[~is_bad])
    assert not stack.frames.flags.writeable


def test_a_float_stack_without_bad_voxels_stays_mapped(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie("float32"), **GREY)
    assert isinstance(read_stack(tmp_path / "x.tif").frames, np.memmap)


def test_a_stack_of_nothing_but_nan_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.full(SHAPE, np.nan, np.float32), **GREY)
    with pytest.raises(StackError, match=r"x\.tif: every voxel is NaN or infinite; export"):
        read_stack(tmp_path / "x.tif")


# ---- Bad files ---------------------------------------------------------------------------------

REFUSED = {
    "RGB": (movie("uint8", (34, 50, 3)), {"photometric": "rgb"}, "3 samples per pixel.*greyscale"),
    "RGB movie": (movie("uint8", (9, 34, 50, 3)), {"photometric": "rgb"}, "3 samples.*greyscale"),
    "planar RGB": (
        movie("uint8", (9, 3, 34, 50)),
        {"photometric": "rgb", "planarconfig": "separate"},
        "3 samples per pixel.*greyscale",
    ),
    "palette": (
        movie("uint8"),
        {"photometric": "palette", "colormap": np.zeros((3, 256), "uint16")},
        "PALETTE, expected grey",
    ),
    "two channels": (
        movie(shape=(9, 2, 34, 50)),
        {"imagej": True, "metadata": {"axes": "TCYX"}},
        "T=9 x C=2 images.*each channel",
    ),
    "two channels, one time": (
        movie(shape=(2, 34, 50)),
        {"ome": True, "metadata": {"axes": "CYX"}},
        "C=2 images.*each channel",
    ),
    "four axes": (movie(shape=(5, 4, 34, 50)), {}, r"Q=5 x Q=4 images.*\[T,H,W\]"),
    "time and slices": (
        movie(shape=(5, 4, 34, 50)),
        {"ome": True, "metadata": {"axes": "TZYX"}},
        "T=5 x Z=4 images",
    ),
    "complex": (movie("complex64"), {}, "complex64, expected one of uint8.*convert it"),
    "one bit": (movie() > 60, {}, "type bool, expected one of uint8.*convert it"),
    "64-bit integers": (movie("int64"), {}, "int64, expected one of uint8.*convert it"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_grey_movie_is_refused(kind: str, tmp_path: Path) -> None:
    array, options, message = REFUSED[kind]
    tifffile.imwrite(tmp_path / "x.tif", array, **{**GREY, **options})
    with pytest.raises(StackError, match=message):
        read_stack(tmp_path / "x.tif")
    error_of(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("shape", "is_vector"), [((2, 9, 34, 50), False), ((9, 34, 50, 2), True), ((34, 50, 3), True)]
)
def test_mha_with_channels_or_four_axes_is_refused(
    shape: tuple[int, ...], is_vector: bool, tmp_path: Path
) -> None:
    image = sitk.GetImageFromArray(movie(shape=shape), isVector=is_vector)
    sitk.WriteImage(image, str(tmp_path / "x.mha"))
    assert "expected one [T,H,W] stack of one channel; save" in error_of(tmp_path / "x.mha")


def test_mha_of_64_bit_integers_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(movie("int64")), str(tmp_path / "x.mha"))
    assert "64-bit signed integer, expected one of" in error_of(tmp_path / "x.mha")


@pytest.mark.parametrize("name", ["x.tif", "x.mha"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty (0 bytes); copy or export it again"), (b"no image at all" * 40, "export it")],
)
def test_what_is_no_image_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in error_of(tmp_path / name)


def test_a_text_named_tif_is_said_to_be_no_tiff(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_text("Not an image\n" * 9)
    assert "not a TIFF file" in error_of(tmp_path / "x.tif")


def test_a_tiff_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(b"II*\0\0\0\0\0")
    assert "a TIFF without any image" in error_of(tmp_path / "x.tif")


def test_a_file_that_is_gone_is_reported(tmp_path: Path) -> None:
    assert "the file is gone" in error_of(tmp_path / "x.tif")


def test_a_folder_named_like_a_stack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tif").mkdir()
    assert "a folder, not a file; rename it" in error_of(tmp_path / "x.tif")


def test_a_file_that_may_not_be_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(), **GREY)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tifffile, "TiffFile", refuse)  # tests may run as root, who may read all
    assert "no permission to read it; make it readable" in error_of(tmp_path / "x.tif")


@pytest.mark.parametrize("form", WRITTEN_AS)
@pytest.mark.parametrize("fraction", [0.0005, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_off_anywhere_is_refused(form: str, fraction: float, tmp_path: Path) -> None:
    write_form(tmp_path / "x.tif", form, movie())
    size = (tmp_path / "x.tif").stat().st_size
    os.truncate(tmp_path / "x.tif", max(1, int(size * fraction)))
    error_of(tmp_path / "x.tif")


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("missing", [1, 1000])
def test_mha_cut_off_is_refused(is_compressed: bool, missing: int, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(movie()), str(tmp_path / "x.mha"), is_compressed)
    os.truncate(tmp_path / "x.mha", (tmp_path / "x.mha").stat().st_size - missing)
    with pytest.raises(StackError, match=r"x\.mha: .*cut off.*export"):
        read_stack(tmp_path / "x.mha")


@pytest.mark.parametrize("promised", [5, 20])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
@pytest.mark.parametrize(
    "text",
    ['{{"shape": [{0}, 34, 50], "axes": "TYX"}}', "ImageJ=1.54f\nimages={0}\nframes={0}\n"],
)
def test_another_number_of_frames_than_described_is_refused(
    text: str, options: dict, promised: int, tmp_path: Path
) -> None:
    tifffile.imwrite(
        tmp_path / "x.tif", movie(), metadata=None, description=text.format(promised),
        **GREY, **options,
    )  # fmt: skip
    error_of(tmp_path / "x.tif")


def test_an_empty_strip_is_refused_and_not_filled_with_zeros(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(), compression="zlib", **GREY)
    with tifffile.TiffFile(tmp_path / "x.tif", mode="r+") as tif:
        tif.pages[4].tags["StripByteCounts"].overwrite(0)
    assert "the data of page 5 are not all there" in error_of(tmp_path / "x.tif")


def test_a_damaged_strip_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(), compression="zlib", **GREY)
    with tifffile.TiffFile(tmp_path / "x.tif") as tif:
        offset = tif.pages[4].dataoffsets[0]
    with (tmp_path / "x.tif").open("r+b") as file:
        file.seek(offset + 100)
        file.write(b"\xff" * 50)
    with pytest.raises(
        StackError, match=r"x\.tif: cannot be decoded, so probably not an image, damaged"
    ):
        read_stack(tmp_path / "x.tif")


def test_pages_in_a_loop_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(), metadata=None, **GREY)
    with tifffile.TiffFile(tmp_path / "x.tif") as tif:
        first, place = tif.pages[0].offset, tif.pages.next_page_offset
    with (tmp_path / "x.tif").open("r+b") as file:
        file.seek(place)
        file.write(first.to_bytes(4, sys.byteorder))
    assert "its pages form a loop" in error_of(tmp_path / "x.tif")


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as tif:
        tif.write(movie(), **GREY)
        tif.write(movie(shape=(8, 8)), **GREY)
    assert "2 images of different kinds" in error_of(tmp_path / "x.tif")


@pytest.mark.parametrize(
    "name, reason",
    [
        ("x.tif", r"needs \d+\.\d GB of memory, .* use a machine with more"),
        ("x.mha", "not hold as many voxels as its header promises"),
    ],
)
def test_a_header_that_promises_terabytes_is_refused_at_once(
    name: str, reason: str, tmp_path: Path
) -> None:
    if name == "x.tif":
        tifffile.imwrite(tmp_path / name, movie(), compression="zlib", **GREY)
        with tifffile.TiffFile(tmp_path / name, mode="r+") as tif:
            for page in tif.pages:
                for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                    page.tags[tag].overwrite(2**20)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(movie()), str(tmp_path / name), True)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data.replace(b"50 34 9", b"500000 300000 9"))
    with pytest.raises(StackError, match=reason):
        read_stack(tmp_path / name)


def mha_with(path: Path, old: bytes, new: bytes, is_compressed: bool = True) -> Path:
    """A file with something else in its header."""
    sitk.WriteImage(sitk.GetImageFromArray(movie()), str(path), is_compressed)
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


@pytest.mark.parametrize("sizes", [b"50 34 8", b"50 34 10"])
def test_compressed_mha_of_more_or_fewer_voxels_than_promised_is_refused(
    sizes: bytes, tmp_path: Path
) -> None:
    """Of more, ITK wrote beyond its memory."""
    path = mha_with(tmp_path / "x.mha", b"50 34 9", sizes)
    with pytest.raises(StackError, match=r"x\.mha: .* not hold as many voxels as its header"):
        read_stack(path)


def test_mha_that_names_another_file_is_refused(tmp_path: Path) -> None:
    path = mha_with(tmp_path / "x.mha", b"= LOCAL", b"= /etc/passwd", is_compressed=False)
    with pytest.raises(StackError, match=r"x\.mha: its voxels lie in another file"):
        read_stack(path)


def test_mha_in_the_other_byte_order_comes_back_equal(tmp_path: Path) -> None:
    path = mha_with(tmp_path / "x.mha", b"ByteOrderMSB = False", b"ByteOrderMSB = True")
    stack = read_stack(path)
    np.testing.assert_array_equal(stack.frames, movie().byteswap())
    assert stack.frames.dtype.isnative


def test_damaged_files_are_read_or_refused_and_nothing_else() -> None:
    """A short form of `python -m lab.fuzz`."""
    tally = read_damaged(1000, seed=2)
    assert not tally.failures
    assert min(tally.read, tally.refused) > 100


# ---- Finding -----------------------------------------------------------------------------------


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def found(tmp_path: Path) -> list[tuple[str, str]]:
    return [
        (str(s.source.relative_to(tmp_path / "in")), str(s.target.relative_to(tmp_path / "out")))
        for s in find_stacks(tmp_path / "in", tmp_path / "out")
    ]


def test_a_plain_folder_is_searched_and_mirrored(tmp_path: Path) -> None:
    for name in ("b.tif", "a.TIFF", "s/c.btf", "s/t/d.TF8", "e.mha", "f.png", "notes.txt"):
        touch(tmp_path / "in" / name)
    names = ["a.TIFF", "b.tif", "e.mha", "s/c.btf", "s/t/d.TF8"]
    assert found(tmp_path) == [(name, name) for name in names]
    assert not is_platform_layout(tmp_path / "in")


def test_in_the_platforms_layout_results_lie_flat(tmp_path: Path) -> None:
    touch(tmp_path / "in" / PLATFORM_INPUT / "a.tif")
    touch(tmp_path / "in" / PLATFORM_INPUT / "s" / "b.mha")
    touch(tmp_path / "in" / "other.tif")
    assert is_platform_layout(tmp_path / "in")
    assert found(tmp_path) == [
        (f"{PLATFORM_INPUT}/a.tif", f"{PLATFORM_OUTPUT}/a.tif"),
        (f"{PLATFORM_INPUT}/s/b.mha", f"{PLATFORM_OUTPUT}/b.mha"),
    ]


def test_the_list_of_inputs_also_tells_the_platforms_layout(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.tif")
    sockets = [{"interface": {"slug": "stacked-neuron-images-with-noise"}}]
    (tmp_path / "in" / "inputs.json").write_text(json.dumps(sockets))
    assert is_platform_layout(tmp_path / "in")
    assert found(tmp_path) == [("a.tif", f"{PLATFORM_OUTPUT}/a.tif")]


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '[{"interface": 3}]', "null"])
def test_a_strange_list_of_inputs_does_no_harm(text: str, tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text(text)
    assert not is_platform_layout(tmp_path)


def test_hidden_files_and_earlier_results_are_left_out(tmp_path: Path) -> None:
    for name in ("a.tif", "._a.tif", ".cache/b.tif", "out/a.tif", "s/out/c.tif"):
        touch(tmp_path / "in" / name)
    stacks = find_stacks(tmp_path / "in", tmp_path / "in" / "out")
    assert [str(s.source.relative_to(tmp_path / "in")) for s in stacks] == ["a.tif", "s/out/c.tif"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "s" / "a.tif")
    (tmp_path / "in" / "s" / "loop").symlink_to(tmp_path / "in")
    assert found(tmp_path) == [("s/a.tif", "s/a.tif")]


def test_linked_recordings_are_found_and_broken_links_reported(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "a.tif")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "lab").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "gone.tif").symlink_to(tmp_path / "nowhere.tif")
    os.mkfifo(tmp_path / "in" / "pipe.tif")
    assert found(tmp_path) == [("gone.tif", "gone.tif"), ("lab/a.tif", "lab/a.tif")]
    assert "the file is gone" in error_of(tmp_path / "in" / "gone.tif")


@pytest.mark.parametrize("names", [("A.tif", "a.tif"), ("s/x.tif", "S/X.TIF")])
def test_results_of_one_name_are_a_problem_of_each(names: tuple[str, str], tmp_path: Path) -> None:
    for name in (*names, "other.tif"):
        touch(tmp_path / "in" / name)
    problems = {s.source.name: s.problem for s in find_stacks(tmp_path / "in", tmp_path / "out")}
    assert problems.pop("other.tif") is None
    assert len(problems) == 2
    for problem in problems.values():
        assert problem is not None
        assert "rename all but one" in problem
        assert all(str(tmp_path / "in" / name) in problem for name in names)


def test_flat_results_of_one_name_are_a_problem_of_each(tmp_path: Path) -> None:
    for folder in ("s", "t"):
        touch(tmp_path / "in" / PLATFORM_INPUT / folder / "x.tif")
    stacks = find_stacks(tmp_path / "in", tmp_path / "out")
    assert len([s for s in stacks if s.problem]) == 2


def test_without_an_input_folder_nothing_is_found(tmp_path: Path) -> None:
    assert found(tmp_path) == []


def test_a_folder_that_cannot_be_listed_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "in" / "a.tif")
    (tmp_path / "in" / "locked").mkdir()
    iterdir = Path.iterdir

    def refuse(folder: Path) -> Iterator[Path]:
        if folder.name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    first, second = find_stacks(tmp_path / "in", tmp_path / "out")
    assert first.problem is None
    assert "locked: this folder cannot be listed; allow reading it" in str(second.problem)


def test_writing_over_recordings_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.tif")
    with pytest.raises(StackError, match=r"same folder.*choose another output folder"):
        find_stacks(tmp_path / "in", tmp_path / "in")
    touch(tmp_path / "in" / "in" / "a.tif")
    problems = [s.problem for s in find_stacks(tmp_path / "in", tmp_path) if s.problem]
    assert len(problems) == 1
    assert "would overwrite the recording" in problems[0]


# ---- Writing -----------------------------------------------------------------------------------


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    tifffile.imwrite(tmp_path / "x.tif", movie("int16"), **GREY)
    return read_stack(tmp_path / "x.tif")


def test_integers_are_rounded_half_to_even_and_clipped(stack: Stack, tmp_path: Path) -> None:
    values = [0.5, 1.5, -0.5, -1.5, 2.51, 1e9, -1e9, 32767.4]
    frames = np.zeros(SHAPE, np.float32)
    frames[0, 0, : len(values)] = values
    with open_result(tmp_path / "out.tif", stack) as writer:
        writer.append(frames)
    written = tifffile.imread(tmp_path / "out.tif")[0, 0, : len(values)]
    assert written.tolist() == [0, 2, 0, -2, 3, 32767, -32768, 32767]


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_32_bit_integers_are_clipped_to_their_very_limits(dtype: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(dtype, (2, 8, 8)), **GREY)
    with open_result(tmp_path / "out.tif", read_stack(tmp_path / "x.tif")) as writer:
        writer.append(np.full((1, 8, 8), -1e30, np.float32))
        writer.append(np.full((1, 8, 8), 1e30, np.float32))
    limits = np.iinfo(dtype)
    assert tifffile.imread(tmp_path / "out.tif")[:, 0, 0].tolist() == [limits.min, limits.max]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_result_with_nan_is_refused(value: float, dtype: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", movie(dtype), **GREY)
    stack = read_stack(tmp_path / "x.tif")
    with (
        pytest.raises(StackError, match=r"x\.tif: the result has NaN or infinite voxels"),
        open_result(tmp_path / "out.tif", stack) as writer,
    ):
        writer.append(np.full(SHAPE, value, np.float32))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tif"]


@pytest.mark.parametrize("suffix", [".tif", ".mha"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_older_result_as_it_was(
    suffix: str, error: type[BaseException], stack: Stack, tmp_path: Path
) -> None:
    target = tmp_path / "out" / f"x{suffix}"
    touch(target).write_bytes(b"older")
    with pytest.raises(error), open_result(target, stack) as writer:
        writer.append(np.zeros(SHAPE, np.float32)[:2])
        raise error
    assert [(p.name, p.read_bytes()) for p in target.parent.iterdir()] == [(target.name, b"older")]


def test_an_incomplete_result_is_not_written(stack: Stack, tmp_path: Path) -> None:
    with (
        pytest.raises(StackError, match="4 of 9 frames were denoised"),
        open_result(tmp_path / "out" / "x.tif", stack) as writer,
    ):
        writer.append(np.zeros((4, *SHAPE[1:]), np.float32))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("suffix", [".tif", ".mha"])
def test_frames_cut_from_larger_ones_are_written(dtype: str, suffix: str, tmp_path: Path) -> None:
    source, target = tmp_path / f"x{suffix}", tmp_path / f"out{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(source, movie(dtype), **GREY)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(movie(dtype)), str(source))
    padded = np.pad(movie(dtype).astype(np.float32), 3).transpose(0, 2, 1).copy()
    with open_result(target, read_stack(source)) as writer:
        writer.append(padded.transpose(0, 2, 1)[3:-3, 3:-3, 3:-3])
    np.testing.assert_array_equal(read_stack(target).frames, movie(dtype))


def test_an_older_result_is_replaced(stack: Stack, tmp_path: Path) -> None:
    target = tmp_path / "out.tif"
    target.write_bytes(b"older")
    np.testing.assert_array_equal(tifffile.imread(write(stack, target)), stack.frames)


def test_a_result_can_be_read_by_the_group_as_the_umask_says(stack: Stack, tmp_path: Path) -> None:
    assert write(stack, tmp_path / "out.tif").stat().st_mode == touch(tmp_path / "y").stat().st_mode


def test_a_large_result_becomes_bigtiff(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_writer, "BIGTIFF_BYTES", 10_000)  # in place of 3.9 GB
    with tifffile.TiffFile(write(stack, tmp_path / "out.tif")) as tif:
        assert tif.is_bigtiff
        np.testing.assert_array_equal(tif.asarray(), stack.frames)


@pytest.mark.parametrize("below", ["", "folder"])
def test_an_output_folder_that_is_a_file_is_reported(
    below: str, stack: Stack, tmp_path: Path
) -> None:
    touch(tmp_path / "out")
    with (
        pytest.raises(StackError, match="is a file, not a folder; choose another output"),
        open_result(tmp_path / "out" / below / "x.tif", stack),
    ):
        raise AssertionError("not reached")


@pytest.mark.parametrize("name", ["x.tif", "x.mha"])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the disk is read-only; choose another output folder"),
        (errno.EACCES, "no permission to write there"),
        (errno.EIO, "Input/output error; check the disk"),
    ],
)
def test_what_the_disk_refuses_is_reported(
    name: str,
    number: int,
    message: str,
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with (
        pytest.raises(StackError, match=f"{name}: the result cannot be written: .*{message}"),
        open_result(tmp_path / "out" / name, stack),
    ):
        raise AssertionError("not reached")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_takes_a_file_but_not_its_frames_is_reported(
    stack: Stack, tmp_path: Path
) -> None:
    """As one does that is only found full when voxels come (thin volumes, btrfs)."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            pytest.raises(StackError, match=r"x\.tif: the result cannot be written: the file"),
            open_result(tmp_path / "out" / "x.tif", stack) as writer,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, unlimited[1]))
            writer.append(stack.frames.astype(np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list((tmp_path / "out").iterdir()) == []


CHILD = """
import resource, signal, sys, time
from pathlib import Path
import numpy as np
from model.result_writer import open_result
from model.stack_io import read_stack
source, target, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
stack = read_stack(source)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
with open_result(target, stack) as writer:
    print("open", flush=True)
    if not limit:
        time.sleep(60)
    writer.append(stack.frames.astype(np.float32))
"""


@pytest.mark.parametrize("name", ["x.tif", "x.mha"])
def test_a_limit_on_the_size_of_files_is_reported(name: str, tmp_path: Path) -> None:
    if name == "x.tif":
        tifffile.imwrite(tmp_path / name, movie(), **GREY)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(movie()), str(tmp_path / name))
    target = tmp_path / "out" / name
    child = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / name, target, "5000"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert child.returncode == 1
    assert "the file would be larger than allowed" in child.stderr.splitlines()[-1]
    assert list(target.parent.iterdir()) == []


def test_only_what_a_killed_run_left_is_removed(stack: Stack, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, stack.path, out / "s" / "x.tif", "0"],
        stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    ) as child:  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        assert remove_stray_temporaries(out) == 0
        assert len(list(out.rglob(f"{TEMPORARY_PREFIX}*"))) == 1
        child.send_signal(signal.SIGKILL)
        child.wait()
    touch(out / "keep.tif")
    assert find_stacks(out, tmp_path / "elsewhere")[0].source == out / "keep.tif"
    assert remove_stray_temporaries(out) == 1
    assert [p.name for p in out.rglob("*")] == ["keep.tif", "s"]


@pytest.mark.parametrize("suffix", [".tif", ".mha"])
def test_a_result_being_written_is_not_taken_for_a_stray(
    suffix: str, stack: Stack, tmp_path: Path
) -> None:
    with open_result(tmp_path / f"out{suffix}", stack) as writer:
        assert remove_stray_temporaries(tmp_path) == 0
        writer.append(stack.frames.astype(np.float32))
    assert (tmp_path / f"out{suffix}").exists()


def test_without_an_output_folder_there_is_nothing_to_remove(tmp_path: Path) -> None:
    assert remove_stray_temporaries(tmp_path / "none") == 0


def test_torch_and_simpleitk_are_not_loaded_without_need() -> None:
    code = "import sys, model.stack_io, model.result_writer; print(sorted(sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=Path(__file__).parents[2]
    ).stdout.decode()
    assert "'torch'" not in modules
    assert "'SimpleITK'" not in modules


SMALL_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from model.result_writer import open_result
from model.stack_io import read_stack
resource.setrlimit(resource.RLIMIT_DATA, (2**28, 2**28))
stack = read_stack(Path(sys.argv[1]))
with open_result(Path(sys.argv[2]), stack) as writer:
    for frame in stack.frames:
        writer.append(frame[None].astype(np.float32))
"""


def test_a_mapped_stack_and_its_result_take_little_memory(tmp_path: Path) -> None:
    shape = (1000, 400, 400)  # 320 MB, more than the limit; sparse
    tifffile.imwrite(tmp_path / "x.tif", shape=shape, dtype="int16", **GREY)
    subprocess.run(
        [sys.executable, "-c", SMALL_MEMORY, tmp_path / "x.tif", tmp_path / "out.tif"],
        check=True, cwd=Path(__file__).parents[2], env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert peek_shape(tmp_path / "out.tif") == shape
