from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.result_writer import open_result
from model.stack import StackError
from model.stack_io import peek_shape, read_stack

DTYPES = ["uint8", "int8", "uint16", "int16", "float16", "float32"]  # exact in float32
SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=12)


def exact(dtype: str) -> st.SearchStrategy:
    """Voxels that float32 holds exactly."""
    if dtype.startswith("float"):
        width = {"float16": 16, "float32": 32, "float64": 32}[dtype]
        return st.floats(width=width, allow_nan=False, allow_infinity=False)
    limits = np.iinfo(dtype)
    return st.integers(int(limits.min), int(limits.max))


STACKS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, SHAPES, elements=exact(dtype))
)


@given(frames=STACKS, description=st.text(st.characters(codec="ascii", min_codepoint=32)))
@settings(max_examples=150, deadline=None)
def test_write_then_read_is_the_identity(frames: np.ndarray, description: str) -> None:
    with TemporaryDirectory() as name:
        source, target = Path(name, "x.tif"), Path(name, "out", "x.tif")
        tifffile.imwrite(
            source, frames, photometric="minisblack", metadata=None, description=description
        )
        stack = read_stack(source)
        with open_result(target, stack) as writer:
            writer.append(stack.frames.astype(np.float32))
        result = read_stack(target)
        assert result.dtype == frames.dtype
        assert peek_shape(target) == result.shape
        assert result.is_single_frame == stack.is_single_frame
        np.testing.assert_array_equal(result.frames, frames.reshape(result.shape))
        np.testing.assert_array_equal(tifffile.imread(target).reshape(frames.shape), frames)


@given(
    compression=st.sampled_from([None, "zlib", "lzw", "zstd"]),
    bigtiff=st.booleans(),
    byteorder=st.sampled_from("<>"),
    layout=st.sampled_from([{}, {"tile": (16, 16)}, {"rowsperstrip": 3}]),
    metadata=st.sampled_from([None, {"axes": "TYX"}]),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_file_cut_off_anywhere_never_gives_other_voxels(
    compression: str | None,
    bigtiff: bool,
    byteorder: str,
    layout: dict,
    metadata: dict | None,
    data: st.DataObject,
) -> None:
    frames = np.random.default_rng(0).integers(1, 4000, (5, 20, 24)).astype(np.int16)
    with TemporaryDirectory() as name:
        path = Path(name, "x.tif")
        tifffile.imwrite(
            path, frames, photometric="minisblack", compression=compression, bigtiff=bigtiff,
            byteorder=byteorder, metadata=metadata, **layout,
        )  # fmt: skip
        content = path.read_bytes()
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        try:
            stack = read_stack(path)
        except StackError as error:
            assert "x.tif" in str(error)
        else:  # only something after the last voxel and the last offset is missing
            np.testing.assert_array_equal(stack.frames, frames)


@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))), big=...)
@settings(max_examples=200, deadline=None)
def test_a_damaged_file_gives_a_stack_or_a_stack_error(
    places: list[tuple[float, int]], big: bool
) -> None:
    frames = np.random.default_rng(0).integers(0, 9, (5, 20, 24)).astype(np.uint16)
    with TemporaryDirectory() as name:
        path = Path(name, "x.tif")
        tifffile.imwrite(
            path, frames, photometric="minisblack", compression="lzw", bigtiff=big,
            metadata={"axes": "TYX"},
        )  # fmt: skip
        content = bytearray(path.read_bytes())
        for fraction, value in places:
            content[int(fraction * len(content))] = value
        path.write_bytes(content)
        try:
            stack = read_stack(path)
        except StackError as error:
            assert "x.tif" in str(error)
        else:
            assert stack.frames.ndim == 3
