"""The whole program as its users run it: folders in, folders out, exit code, stderr, record."""

import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch

from model.architectures import build
from model.checkpoint import SUMS_FILE, save_checkpoint
from model.config import RunConfig
from model.mean_image import SIGMAS
from model.report import RECORD_NAME
from model.result_writer import TEMPORARY_PREFIX
from model.stack_io import PLATFORM_INPUT, PLATFORM_OUTPUT

REPOSITORY = Path(__file__).parents[2]
SHAPE = (8, 24, 20)
LONG_SHAPE = (4000, 24, 20)  # some seconds of windows
# A seventh of the time of tiny(): one window in less than a tenth of a second.
SIZES = {
    "dim": 2,
    "heads": (1, 1, 1, 1),
    "num_blocks": (1, 0, 0, 0),
    "num_refinement_blocks": 0,
}

# ---- Running the program -----------------------------------------------------------------------

# Runs process.py after the lines it is given first, which change the process and not the program.
RUN_AFTER = """
import runpy, sys
lines, sys.argv = sys.argv[1], sys.argv[2:]
exec(lines)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Without capabilities even root needs permission to read and write.
AS_ORDINARY_USER = """
import ctypes
word = ctypes.c_uint32
assert ctypes.CDLL(None).capset((word * 2)(0x20080522, 0), (word * 6)()) == 0
"""
WITH_SMALL_FILES_ONLY = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
WITH_SMALL_NETWORK = f"""
from dataclasses import replace
from model.config import METHODS
METHODS["restormer3d"] = replace(METHODS["restormer3d"], network_config={SIZES})
"""
# To judge a network takes sixteen windows otherwise, before and after two iterations.
HARDLY_JUDGED = """
from dataclasses import replace
from model.config import METHODS
method = METHODS["restormer3d"]
METHODS["restormer3d"] = replace(method, adapt=replace(method.adapt, judge_patches=1))
"""

# A signal in the seconds before there is a job.
STOPPED_BEFORE_TORCH = """
import os, signal, sys, time
class Finder:
    def find_spec(self, name, *rest):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
sys.meta_path.insert(0, Finder())
"""


@dataclass(frozen=True, kw_only=True)
class Order:
    """How the program is to be started."""

    input_dir: Path
    output_dir: Path
    flags: tuple[str, ...] = ("--steps", "0")
    env: Mapping[str, str] = field(default_factory=dict)
    lines_before: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it."""

    code: int
    stdout: str
    stderr: str
    output: Path

    @property
    def last_line(self) -> str:
        return self.stderr.splitlines()[-1]

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.output / RECORD_NAME).read_text())

    def stack(self, name: str) -> dict[str, Any]:
        return next(s for s in self.record["stacks"] if s["file"].endswith(f"/{name}"))

    @property
    def files(self) -> set[str]:
        """All files below the output folder but the record, hidden ones too."""
        paths = {p for p in self.output.rglob("*") if not p.is_dir()}
        return {str(p.relative_to(self.output)) for p in paths} - {RECORD_NAME}


def start(order: Order) -> subprocess.Popen[str]:
    script = str(REPOSITORY / "process.py")
    command = [sys.executable, script]
    if order.lines_before:
        command = [sys.executable, "-c", RUN_AFTER, order.lines_before, script]
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}
    if order.lines_before:
        # No byte code, of which a limit on the size of files would leave halves.
        env |= {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    if "DENOISE_INPUT_DIR" not in order.env:
        folders = ("--input-dir", str(order.input_dir), "--output-dir", str(order.output_dir))
        command += [*folders, "--device", "cpu"]
    return subprocess.Popen(
        [*command, *order.flags],
        env={**env, **order.env},
        cwd=order.input_dir.parent,  # anywhere but the repository
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",  # the platform takes nothing else
    )


def run(order: Order) -> Outcome:
    with start(order) as process:
        try:
            stdout, stderr = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return Outcome(code=process.returncode, stdout=stdout, stderr=stderr, output=order.output_dir)


def run_all(orders: Mapping[str, Order]) -> dict[str, Outcome]:
    """Several at a time, for half of a short run is spent on one core, loading torch."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(orders, pool.map(run, orders.values()), strict=True))


def signalled(order: Order, lines: list[str], number: signal.Signals) -> tuple[Outcome, float]:
    """Send a signal once lines that begin so were printed; also the seconds the end then took."""
    with start(order) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        watchdog = threading.Timer(900, process.kill)
        watchdog.start()
        seen = []
        for beginning in lines:
            for line in process.stdout:
                seen.append(line)
                if line.strip().startswith(beginning):
                    break
            else:
                pytest.fail(f"no line {beginning!r} in {seen}; stderr: {process.stderr.read()}")
        process.send_signal(number)
        begin = time.monotonic()
        code = process.wait()
        seconds = time.monotonic() - begin
        watchdog.cancel()
        stdout = "".join(seen) + process.stdout.read()
        stderr = process.stderr.read()
    return Outcome(code=code, stdout=stdout, stderr=stderr, output=order.output_dir), seconds


# ---- Recordings and weights --------------------------------------------------------------------


def movie(shape: tuple[int, ...] = SHAPE, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(60, shape).astype(dtype)


def save(path: Path, frames: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mha":
        sitk.WriteImage(sitk.GetImageFromArray(frames), str(path))
    else:
        tifffile.imwrite(path, frames, **{"photometric": "minisblack", **options})
    return path


def load(path: Path) -> np.ndarray:
    if path.suffix == ".mha":
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return tifffile.imread(path)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_checkpoint(
        folder / "restormer3d.safetensors",
        build("restormer3d", **SIZES),
        method="restormer3d",
        provenance={"commit": "none"},
    )
    return folder


@pytest.fixture(scope="session")
def with_weights(weights: Path) -> tuple[str, ...]:
    return ("--weights", str(weights), "--steps", "0")


# ---- A plain folder ----------------------------------------------------------------------------

UNPRINTABLE = os.fsdecode(b"caf\xe9.tif")  # a name from an old machine, not UTF-8
PLAIN: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    **{
        f"{dtype}.tif": (movie(dtype=dtype), {})
        for dtype in ("uint8", "uint16", "int16", "int32", "float32", "float64")
    },
    "big_endian.tif": (movie(), {"byteorder": ">"}),
    "single_frame.tif": (movie((24, 20)), {}),
    "three_frames.tif": (movie((3, 24, 20)), {}),
    "four_frames.tif": (movie((4, 24, 20)), {}),
    "one_frame_less_than_a_window.tif": (movie((31, 24, 20)), {}),
    "smallest.tif": (movie((1, 8, 8)), {}),
    "odd.tif": (movie((5, 20, 33)), {}),
    "day 2/mouse.tif": (movie(seed=2), {}),
    "day 2/deeper/mouse.tiff": (movie(seed=3), {}),
    "day 2/mouse.mha": (movie(dtype="int16", seed=4), {}),
    UNPRINTABLE: (movie(seed=5), {}),
}


@pytest.fixture(scope="module")
def plain_input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "in"
    for name, (frames, options) in PLAIN.items():
        save(folder / name, frames, **options)
    (folder / "notes.txt").write_text("not a recording")
    return folder


@pytest.fixture(scope="module")
def plain(plain_input: Path, with_weights: tuple[str, ...]) -> Outcome:
    output = plain_input.parent / "not there yet" / "out"
    return run(Order(input_dir=plain_input, output_dir=output, flags=with_weights))


def test_success_is_exit_code_0(plain: Outcome) -> None:
    assert plain.code == 0, plain.stderr


def test_on_success_stderr_stays_empty(plain: Outcome) -> None:
    assert plain.stderr == ""


def test_every_stack_and_nothing_else_is_written_under_its_own_name(plain: Outcome) -> None:
    assert plain.files == set(PLAIN)


@pytest.mark.parametrize("name", PLAIN, ids=ascii)
def test_the_result_has_the_shape_and_dtype_of_the_recording(
    name: str, plain: Outcome, plain_input: Path
) -> None:
    recording, result = load(plain_input / name), load(plain.output / name)
    assert result.shape == recording.shape
    assert result.dtype == recording.dtype.newbyteorder("=")


@pytest.mark.parametrize("name", PLAIN, ids=ascii)
def test_the_noisy_recording_is_never_the_result(name: str, plain: Outcome) -> None:
    assert (load(plain.output / name) != PLAIN[name][0]).any()
    assert plain.stack(name)["status"] == "denoised"


@pytest.mark.parametrize("name", ["three_frames.tif", "four_frames.tif"])
def test_three_or_four_frames_do_not_become_colours(name: str, plain: Outcome) -> None:
    with tifffile.TiffFile(plain.output / name) as tif:
        assert tif.series[0].axes == "TYX"
        assert tif.pages[0].photometric.name == "MINISBLACK"


def test_a_plain_folder_has_no_time_limit(plain: Outcome) -> None:
    assert plain.record["time_limit"] is None


def test_the_first_line_says_where_is_computed_and_why(plain: Outcome) -> None:
    first = plain.stdout.splitlines()[0]
    assert re.fullmatch(r"computing on CPU, \d+ threads \(asked for\); driver .*, torch .*", first)
    assert first.endswith(torch.__version__)


def test_every_stage_is_announced(plain: Outcome) -> None:
    assert plain.stdout.count("  denoising: 2 windows\n") == len(PLAIN) - 1
    assert plain.stdout.count("  denoising: 3 windows\n") == 1  # 31 frames
    assert "adapting" not in plain.stdout  # with --steps 0 there is no such stage


def test_a_name_that_is_not_utf_8_is_printed_in_utf_8(plain: Outcome) -> None:
    assert "caf\\udce9.tif" in plain.stdout


def test_help_names_every_flag_and_needs_no_input(tmp_path: Path) -> None:
    outcome = run(Order(input_dir=tmp_path / "none", output_dir=tmp_path, flags=("--help",)))
    assert (outcome.code, outcome.stderr) == (0, "")
    for name in RunConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')} " in outcome.stdout


# ---- The platform's layout ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, with_weights: tuple[str, ...]
) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("platform")
    save(folder / "in" / PLATFORM_INPUT / "0a1b.tif", movie())
    (folder / "in" / "inputs.json").write_text("[]")
    flags = {"default": with_weights, "no limit": (*with_weights, "--time-limit", "0")}
    return run_all(
        {
            name: Order(input_dir=folder / "in", output_dir=folder / name, flags=flags[name])
            for name in flags
        }
    )


def test_on_the_platform_the_one_image_lies_in_the_outputs_folder(
    platform: dict[str, Outcome],
) -> None:
    assert (platform["default"].code, platform["default"].stderr) == (0, "")
    assert platform["default"].files == {f"{PLATFORM_OUTPUT}/0a1b.tif"}


def test_on_the_platform_a_job_has_1140_seconds(platform: dict[str, Outcome]) -> None:
    assert platform["default"].record["time_limit"] == 1140


def test_a_time_limit_of_0_is_none(platform: dict[str, Outcome]) -> None:
    assert platform["no limit"].code == 0
    assert platform["no limit"].record["time_limit"] is None


# ---- Bad stacks among good ones ----------------------------------------------------------------

BAD = {
    "text.tif": r"not a TIFF file, or a damaged one .*; export it again",
    "cut.tif": r"is cut off.*; copy or export it again",
    "empty.tif": r"the file is empty \(0 bytes\); copy or export it again",
    "rgb.tif": r"3 samples per pixel \(RGB\), expected grey values; save one channel",
    "channels.tif": r"T=9 x C=2 images, expected one \[T,H,W\] stack .*; save each channel",
    "four_axes.tif": r"Q=5 x Q=4 images, expected one \[T,H,W\] stack .*; save each channel",
    "complex.tif": r"voxels of type complex64, expected one of uint8, .*; convert it",
    "offset.tif": r"its voxels lie between 10000000.0 and .*, too near .*; subtract it",
    "all_nan.tif": r"every voxel is NaN or infinite; export the recording again",
    "gone.tif": r"the file is gone; was it moved or renamed",
    "locked.tif": r"no permission to read it; make it readable",
    "Twin.tif": r"Twin.tif and .*twin.tif would be written under one name .*; rename all but one",
    "twin.tif": r"Twin.tif and .*twin.tif would be written under one name .*; rename all but one",
    "text.mha": r"cannot be decoded, so probably not an image.*; copy or export it again",
    "locked": r"this folder cannot be listed; allow reading it",
}
GOOD = {"good.tif", "holes.tif", "constant.tif", "amperes.tif", "folder.tif/inside.tif"}


def save_bad_stacks(folder: Path) -> None:
    save(folder / "rgb.tif", movie((24, 20, 3), "uint8"), photometric="rgb")
    channels = movie((9, 2, 24, 20))
    save(folder / "channels.tif", channels, imagej=True, metadata={"axes": "TCYX"})
    save(folder / "four_axes.tif", movie((5, 4, 24, 20)))
    save(folder / "complex.tif", movie(dtype="complex64"))
    save(folder / "offset.tif", 10_000_000 + movie(dtype="uint32") % 5)
    save(folder / "all_nan.tif", np.full(SHAPE, np.nan, np.float32))
    (folder / "text.tif").write_text("Not an image\n" * 9)
    (folder / "text.mha").write_text("Not an image\n" * 9)
    (folder / "empty.tif").touch()
    (folder / "gone.tif").symlink_to(folder / "nowhere")
    whole = save(folder / "cut.tif", movie((40, 24, 20))).read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    for name in ("locked.tif", "Twin.tif", "twin.tif", "locked/inside.tif"):
        save(folder / name, movie())
    for name in ("locked.tif", "locked"):
        (folder / name).chmod(0)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, with_weights: tuple[str, ...]) -> Outcome:
    folder = tmp_path_factory.mktemp("mixed")
    save_bad_stacks(folder / "in")
    save(folder / "in" / "good.tif", movie())
    save(folder / "in" / "folder.tif" / "inside.tif", movie())  # a folder may have any name
    save(folder / "in" / "constant.tif", np.full(SHAPE, 1234, np.int16))
    save(folder / "in" / "amperes.tif", 1e-9 * movie(dtype="float32"))
    holes = movie(dtype="float32")
    holes[2, 3, 4:7], holes[5, 0, 0], holes[6, 0, 0] = np.nan, np.inf, -np.inf
    save(folder / "in" / "holes.tif", holes)
    order = Order(
        input_dir=folder / "in",
        output_dir=folder / "out",
        flags=with_weights,
        lines_before=AS_ORDINARY_USER,
    )
    outcome = run(order)
    (folder / "in" / "locked").chmod(0o700)  # so that it can be tidied up
    return outcome


def test_a_failed_stack_makes_exit_code_1(mixed: Outcome) -> None:
    assert mixed.code == 1, mixed.stderr


@pytest.mark.parametrize("name", BAD)
def test_the_record_says_what_is_wrong_with_a_bad_stack(name: str, mixed: Outcome) -> None:
    stack = mixed.stack(name)
    assert (stack["status"], stack["result"]) == ("failed", None)
    assert name in stack["error"]
    assert re.search(BAD[name], stack["error"])


@pytest.mark.parametrize("name", BAD)
def test_the_last_line_of_stderr_says_what_is_wrong_with_a_bad_stack(
    name: str, mixed: Outcome
) -> None:
    parts = mixed.last_line.split("; ")
    assert any(name in part for part in parts)
    assert re.search(BAD[name], mixed.last_line)


@pytest.mark.parametrize("name", BAD)
def test_nothing_is_written_for_a_bad_stack(name: str, mixed: Outcome) -> None:
    assert not (mixed.output / name).exists()


def test_the_good_stacks_are_written_and_no_temporary_is_left(mixed: Outcome) -> None:
    assert mixed.files == GOOD
    assert f"{len(GOOD)} of {len(GOOD) + len(BAD)} stacks written" in mixed.stdout


def test_bad_stacks_cause_no_traceback(mixed: Outcome) -> None:
    assert "Traceback" not in mixed.stderr + mixed.stdout


def test_nan_and_infinity_are_counted_and_said_and_not_in_the_result(mixed: Outcome) -> None:
    assert mixed.stack("holes.tif")["status"] == "denoised"
    assert mixed.stack("holes.tif")["voxels_replaced"] == 5
    assert "5 voxels are NaN or infinite: replaced by the median" in mixed.stdout
    assert np.isfinite(load(mixed.output / "holes.tif")).all()


def test_the_unit_of_a_recording_changes_nothing(mixed: Outcome) -> None:
    assert mixed.stack("amperes.tif")["status"] == "denoised"
    result, same = load(mixed.output / "amperes.tif"), load(mixed.output / "good.tif")
    # which is of whole numbers and never negative
    np.testing.assert_allclose(np.maximum(1e9 * result, 0), same, atol=0.51)


def test_a_constant_stack_is_returned_unchanged_which_is_said(mixed: Outcome) -> None:
    result = load(mixed.output / "constant.tif")
    assert result.dtype == np.int16
    np.testing.assert_array_equal(result, np.full(SHAPE, 1234))
    assert mixed.stack("constant.tif")["status"] == "unchanged"
    assert "every voxel has the same value: written unchanged" in mixed.stdout


# ---- Jobs that cannot be done at all -----------------------------------------------------------

REFUSED = {
    # usage: 2
    "an unknown flag": (2, r"unrecognized arguments: --speed 3; see --help"),
    "an unknown variable": (2, r"unknown settings DENOISE_STEP; known: .*DENOISE_STEPS"),
    "an unknown method in a variable": (2, r"--method: invalid choice: 'unet9'.*; see --help"),
    "an empty input folder": (2, r"/in: no stack found \(\.tif, .*\); check --input-dir"),
    "no input folder": (2, r"/in: no such folder; name it with --input-dir"),
    "results over recordings": (2, r"same folder.*; choose another output folder"),
    # the output folder: 1
    "an output folder that is a file": (
        1,
        r"/out: the result cannot be written: a part of the path is a file",
    ),
    "an output folder below a file": (
        1,
        r"/out/below: the result cannot be written: a part of the path is a file",
    ),
    "a locked output folder": (
        1,
        r"/out: the result cannot be written: no permission to write there",
    ),
    "a disk that takes no more": (
        1,
        r"/out/x.tif: the result cannot be written: the file would be larger than allowed; raise",
    ),
    # the weights: 1
    "weights that are missing": (
        1,
        r"restormer3d.safetensors: missing, although SHA256SUMS .*; restore",
    ),
    "weights cut off": (
        1,
        r"restormer3d.safetensors: not a whole safetensors file .*; restore it",
    ),
    "weights with a wrong sum": (
        1,
        r"restormer3d.safetensors: SHA-256 is .* promises 000000000000.*: restore it",
    ),
    "weights of another method": (
        1,
        r"restormer3d.safetensors: holds weights of method 'other'.*; put the right file",
    ),
    "weights that are a pickle": (
        1,
        r"restormer3d.safetensors: not a whole safetensors file .*; restore it",
    ),
    "weights of other sizes": (
        1,
        r"restormer3d.safetensors: the weights do not fit the sizes .*; restore the file",
    ),
    "no weights and no iteration": (
        1,
        r"x.tif: without a checkpoint .*; provide a checkpoint, or raise --steps",
    ),
}


def damage_weights(good: Path, folder: Path, how: str) -> None:
    folder.mkdir()
    path = folder / good.name
    if how == "weights that are missing":
        (folder / SUMS_FILE).write_text(f"{'0' * 64}  {path.name}\n")
    elif how == "weights cut off":
        path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    elif how == "weights with a wrong sum":
        shutil.copy(good, path)
        (folder / SUMS_FILE).write_text(f"{'0' * 64}  {path.name}\n")
    elif how == "weights of another method":
        save_checkpoint(path, build("restormer3d", **SIZES), method="other", provenance={})
    elif how == "weights that are a pickle":
        path.write_bytes(pickle.dumps({"weight": [1.0] * 99}))
    elif how == "weights of other sizes":
        net = build("restormer3d", **SIZES)
        first = next(net.parameters())
        first.data = torch.zeros(3, *first.shape[1:])
        save_checkpoint(path, net, method="restormer3d", provenance={})
    else:
        assert how == "no weights and no iteration"


@pytest.fixture(scope="module")
def refused(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, with_weights: tuple[str, ...]
) -> dict[str, Outcome]:
    orders = {}
    for what in REFUSED:
        folder = tmp_path_factory.mktemp("refused")
        flags, env, lines_before = list(with_weights), {}, ""
        input_dir, output_dir = folder / "in", folder / "out"
        if what != "no input folder":
            input_dir.mkdir()
            if what != "an empty input folder":
                save(input_dir / "x.tif", movie())
        if "weights" in what:
            damage_weights(weights / "restormer3d.safetensors", folder / "weights", what)
            flags[1] = str(folder / "weights")
        elif what == "an unknown flag":
            flags += ["--speed", "3"]
        elif what == "an unknown variable":
            env = {"DENOISE_STEP": "3"}
        elif what == "an unknown method in a variable":
            env = {"DENOISE_METHOD": "unet9"}
        elif what == "results over recordings":
            output_dir = folder / "in" / ".." / "in"
        elif what == "an output folder that is a file":
            output_dir.touch()
        elif what == "an output folder below a file":
            output_dir.touch()
            output_dir = output_dir / "below"
        elif what == "a locked output folder":
            output_dir.mkdir(mode=0o500)
            lines_before = AS_ORDINARY_USER
        elif what == "a disk that takes no more":
            lines_before = WITH_SMALL_FILES_ONLY
        orders[what] = Order(
            input_dir=input_dir,
            output_dir=output_dir,
            flags=tuple(flags),
            env=env,
            lines_before=lines_before,
        )
    return run_all(orders)


@pytest.mark.parametrize("what", REFUSED)
def test_a_job_that_cannot_be_done_says_why_and_what_to_do(
    what: str, refused: dict[str, Outcome]
) -> None:
    code, message = REFUSED[what]
    assert re.search(message, refused[what].last_line), refused[what].stderr
    assert refused[what].code == code


@pytest.mark.parametrize("what", REFUSED)
def test_a_job_that_cannot_be_done_prints_one_line_on_stderr(
    what: str, refused: dict[str, Outcome]
) -> None:
    assert len(refused[what].stderr.splitlines()) == 1
    assert "Traceback" not in refused[what].stdout


@pytest.mark.parametrize("what", sorted(REFUSED.keys() - {"results over recordings"}))
def test_a_job_that_cannot_be_done_writes_nothing(what: str, refused: dict[str, Outcome]) -> None:
    assert refused[what].files == set()


def test_recordings_survive_being_named_as_the_output(refused: dict[str, Outcome]) -> None:
    assert refused["results over recordings"].files == {"x.tif"}
    np.testing.assert_array_equal(
        load(refused["results over recordings"].output / "x.tif"), movie()
    )


def test_a_record_that_the_disk_does_not_take_is_said(refused: dict[str, Outcome]) -> None:
    stdout = refused["a disk that takes no more"].stdout
    assert "the record could not be written: File too large" in stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_and_not_there_is_wrong_usage(
    tmp_path: Path, with_weights: tuple[str, ...]
) -> None:
    save(tmp_path / "in" / "x.tif", movie())
    flags = (*with_weights, "--device", "cuda")
    outcome = run(Order(input_dir=tmp_path / "in", output_dir=tmp_path / "out", flags=flags))
    assert outcome.code == 2
    assert re.fullmatch(
        r"--device cuda: torch .*; use --device auto or mend the GPU set-up\n", outcome.stderr
    )
    assert outcome.files == set()


# ---- Adaptation --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> dict[str, Outcome]:
    """Two stacks in either order, and the first alone, with the same seed and with another."""
    folder = tmp_path_factory.mktemp("adapted")
    one, two = movie(seed=1), movie((6, 30, 18), "float32", seed=2)
    contents = {
        "one, two": ({"a.tif": one, "b.tif": two}, 0),
        "two, one": ({"a.tif": two, "b.tif": one}, 0),
        "one": ({"a.tif": one}, 0),
        "one, another seed": ({"a.tif": one}, 1),
    }
    orders = {}
    for number, (name, (stacks, seed)) in enumerate(contents.items()):
        for file, frames in stacks.items():
            save(folder / str(number) / "in" / file, frames)
        orders[name] = Order(
            input_dir=folder / str(number) / "in",
            output_dir=folder / str(number) / "out",
            flags=("--weights", str(weights), "--steps", "2", "--seed", str(seed)),
            lines_before=HARDLY_JUDGED,
        )
    outcomes = run_all(orders)
    assert [o.code for o in outcomes.values()] == [0] * 4, [o.stderr for o in outcomes.values()]
    return outcomes


def result(outcome: Outcome, name: str) -> bytes:
    return (outcome.output / name).read_bytes()


def test_the_order_of_stacks_does_not_change_a_bit(adapted: dict[str, Outcome]) -> None:
    forwards, backwards = adapted["one, two"], adapted["two, one"]
    assert result(forwards, "a.tif") == result(backwards, "b.tif")
    assert result(forwards, "b.tif") == result(backwards, "a.tif")


def test_the_same_seed_gives_the_same_bytes(adapted: dict[str, Outcome]) -> None:
    assert result(adapted["one"], "a.tif") == result(adapted["one, two"], "a.tif")


def test_another_seed_learns_from_other_patches(adapted: dict[str, Outcome]) -> None:
    """Not: gives other bytes; both may go back to the checkpoint, which has no seed."""
    one, other = (adapted[name].stack("a.tif") for name in ("one", "one, another seed"))
    assert one["steps_done"] == other["steps_done"] == 2
    assert all(a != b for a, b in zip(one["loss_curve"], other["loss_curve"], strict=True))


def test_the_record_tells_all_that_was_promised_of_the_job(
    adapted: dict[str, Outcome], weights: Path
) -> None:
    checkpoint = weights / "restormer3d.safetensors"
    record = adapted["one, another seed"].record
    assert len(record.pop("stacks")) == 1
    assert record.pop("device").startswith("CPU, ")
    record.pop("driver")  # may be there beside a CPU build of torch
    assert record["settings"].pop("precision") in ("fp32", "bf16")
    assert re.fullmatch("[0-9a-f]{64}", record["settings"].pop("program"))
    assert record.pop("settings") == {
        "method": "restormer3d",
        "checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "steps": 2,
        "seed": 1,
        "keep_brightness": False,
        "mean_image": "recording",
        "stretch_16bit": False,
        "normalise_together": False,
    }
    assert record == {
        "method": "restormer3d",
        "seed": 1,
        "time_limit": None,
        "device_reason": "asked for",
        "torch_version": torch.__version__,
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "checkpoint_provenance": {"commit": "none"},
        "stopped_by": None,
        "other_jobs": [],
    }


def test_the_record_tells_all_that_was_promised_of_a_stack(adapted: dict[str, Outcome]) -> None:
    outcome = adapted["one, two"]
    stack = outcome.stack("b.tif")
    curve, seconds = stack.pop("loss_curve"), stack.pop("seconds")
    low, high = np.percentile(movie((6, 30, 18), seed=2), [0.5, 99.5])
    file = stack.pop("file")
    assert file.endswith("/in/b.tif")
    assert stack.pop("input_sha256") == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    assert stack.pop("result_sha256") == hashlib.sha256(result(outcome, "b.tif")).hexdigest()
    assert stack.pop("checkpoint_sha256") == outcome.record["checkpoint_sha256"]
    assert stack.pop("peak_host_bytes") > 1e7
    assert stack.pop("percentiles") == pytest.approx({"p0.5": low, "p99.5": high})
    before, after = stack.pop("judged")
    assert stack.pop("is_adapted") == (after < before)
    assert stack.pop("precision") in ("fp32", "bf16")  # what this processor is fast at
    assert stack.pop("mean_blur") in (None, *SIGMAS)
    residual = stack.pop("residual")
    assert residual.pop("places_with_signal") is None  # too few frames
    residual_frames = movie((6, 30, 18), seed=2) - tifffile.imread(outcome.output / "b.tif")
    assert residual.pop("mean") == pytest.approx(np.median(residual_frames[1:].mean((1, 2))))
    assert residual.keys() == {"over_noise", "like_last_frame", "like_next_pixel"}
    (doubt,) = stack.pop("doubts")
    assert "times as strong as the noise" in doubt  # what two iterations teach is not enough
    assert stack == {
        "method": "restormer3d",
        "status": "denoised",
        "error": None,
        "together": None,
        "result": str(outcome.output / "b.tif"),
        "is_from_before": False,
        "time_limit": None,
        "shape": [6, 30, 18],
        "dtype": "float32",
        "voxels_replaced": 0,
        "steps_asked": 2,
        "steps_done": 2,
        "steps_skipped": 0,
        "stopped_by": "all steps done",
        "patch": [32, 64, 64],
        "recomputed_levels": 0,
        "overlap": 0.5,
        "windows": 2,
        "shortened": [],
        "peak_device_bytes": None,
        "stretched_from": None,
        "frames_apart": None,
        "frames_repeated": None,
        "motion": None,
        "mean_share": None,
    }
    assert len(curve) == 2
    assert min(curve) > 0
    assert seconds.keys() == {"read", "normalise", "plan", "adapt", "infer", "write", "check"}
    assert seconds["adapt"] > 0


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("scratch")
    save(folder / "in" / "x.tif", movie())
    (folder / "weights").mkdir()
    return run(
        Order(
            input_dir=folder / "in",
            output_dir=folder / "out",
            flags=("--weights", str(folder / "weights"), "--steps", "11"),
            lines_before=WITH_SMALL_NETWORK,
        )
    )


def test_without_a_checkpoint_every_stack_is_learned_from_scratch(scratch: Outcome) -> None:
    assert (scratch.code, scratch.stderr) == (0, "")
    assert scratch.files == {"x.tif"}
    assert scratch.stack("x.tif")["steps_done"] == 11


def test_without_a_checkpoint_a_loud_line_says_so(scratch: Outcome) -> None:
    assert re.search("^WARNING: NO CHECKPOINT for restormer3d", scratch.stdout, re.MULTILINE)
    assert scratch.record["checkpoint"] is None
    assert scratch.record["checkpoint_sha256"] is None


# ---- The environment ---------------------------------------------------------------------------

VARIABLES = {  # and where the record shows that it was heeded
    "DENOISE_METHOD": ("restormer3d", lambda record: record["method"]),
    "DENOISE_STEPS": ("1", lambda record: str(record["stacks"][0]["steps_done"])),
    "DENOISE_TIME_LIMIT": ("500", lambda record: f"{record['time_limit']:.0f}"),
    "DENOISE_DEVICE": ("cpu", lambda record: record["device"][:3].lower()),
    "DENOISE_SEED": ("7", lambda record: str(record["seed"])),
    "DENOISE_PRECISION": ("fp32", lambda record: record["stacks"][0]["precision"]),
    "DENOISE_MEAN_IMAGE": ("network", lambda record: record["settings"]["mean_image"]),
    "DENOISE_NORMALISE_TOGETHER": (
        "yes",
        lambda record: "yes" if record["settings"]["normalise_together"] is True else "no",
    ),
}


@pytest.fixture(scope="module")
def from_environment(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Outcome:
    folder = tmp_path_factory.mktemp("environment")
    save(folder / "in" / "x.tif", movie())
    folders = {
        "DENOISE_INPUT_DIR": str(folder / "in"),
        "DENOISE_OUTPUT_DIR": str(folder / "out"),
        "DENOISE_WEIGHTS": str(weights),
        "DENOISE_LOG_LEVEL": "error",  # of an untrained network's result the log warns
        "DENOISE_PICTURES": "no",  # test_methods.py has this flag and the next,
        "DENOISE_KEEP_BRIGHTNESS": "no",  # and those that this method refuses
        "DENOISE_STRETCH_16BIT": "no",
        "DENOISE_OVERWRITE": "no",  # test_resume.py has it
    }
    values = {name: value for name, (value, _) in VARIABLES.items()}
    assert {**folders, **values}.keys() == {
        f"DENOISE_{name.upper()}" for name in RunConfig.__dataclass_fields__
    }
    return run(
        Order(
            input_dir=folder / "in",
            output_dir=folder / "out",
            flags=(),
            env={**folders, **values},
            lines_before=HARDLY_JUDGED,
        )
    )


@pytest.mark.parametrize("name", VARIABLES)
def test_a_flag_may_also_be_a_variable(name: str, from_environment: Outcome) -> None:
    value, heeded = VARIABLES[name]
    assert heeded(from_environment.record) == value


def test_folders_may_also_be_variables(from_environment: Outcome, weights: Path) -> None:
    assert from_environment.files == {"x.tif"}
    assert from_environment.record["checkpoint"] == str(weights / "restormer3d.safetensors")


def test_the_log_level_may_also_be_a_variable(from_environment: Outcome) -> None:
    assert (from_environment.stdout, from_environment.stderr) == ("", "")


# ---- The time limit ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("limited")
    save(folder / "in" / "x.tif", movie((64, 24, 20)))
    return run_all(
        {
            limit: Order(
                input_dir=folder / "in",
                output_dir=folder / limit,
                flags=("--weights", str(weights), "--steps", "100000", "--time-limit", limit),
            )
            for limit in ("8", "1")
        }
    )


def test_adaptation_ends_with_the_time_and_the_result_is_written(
    limited: dict[str, Outcome],
) -> None:
    outcome = limited["8"]
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.files == {"x.tif"}
    assert outcome.stack("x.tif")["stopped_by"] == "time limit"


def test_the_record_says_by_how_much_adaptation_was_shortened(limited: dict[str, Outcome]) -> None:
    stack = limited["8"].stack("x.tif")
    assert stack["steps_done"] < stack["steps_asked"] == 100_000
    assert f"adaptation 100000 to {stack['steps_done']} iterations" in stack["shortened"]


def test_the_overlap_is_lowered_where_inference_takes_too_long(limited: dict[str, Outcome]) -> None:
    stack = limited["1"].stack("x.tif")
    assert stack["overlap"] == 0.125
    assert "overlap 0.5 lowered to 0.125" in stack["shortened"]


def test_a_job_without_enough_time_says_so_and_still_finishes(limited: dict[str, Outcome]) -> None:
    outcome = limited["1"]
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.files == {"x.tif"}
    assert "inference alone takes longer than the time limit" in outcome.stack("x.tif")["shortened"]
    assert re.search(
        r"WARNING: denoising alone needs about \d+:\d\d, 0:00 are left", outcome.stdout
    )


# ---- Weights that are mounted ------------------------------------------------------------------

MOUNTED = ("lowrank_unet.safetensors", "lowrank_unet.pth", "deep/lowrank_unet.safetensors")


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Outcome]]:
    """What came of jobs with weights under such names in the platform's folder, and the folder."""
    folders = {name: tmp_path_factory.mktemp("mounted") for name in MOUNTED}
    orders = {}
    for name, folder in folders.items():
        (folder / "model" / name).parent.mkdir(parents=True)
        shutil.copy(REPOSITORY / "weights" / MOUNTED[0], folder / "model" / name)
        save(folder / "in" / "x.tif", movie((16, 24, 24)))
        place = (
            f"import pathlib, model.job; model.job.MOUNTED_WEIGHTS = pathlib.Path({str(folder)!r})"
        )
        orders[name] = Order(
            input_dir=folder / "in",
            output_dir=folder / "out",
            flags=(),
            lines_before=f"{place} / 'model'",
        )
    outcomes = run_all(orders)
    return {name: (folders[name] / "model", outcomes[name]) for name in MOUNTED}


@pytest.mark.parametrize("name", MOUNTED)
def test_mounted_weights_are_taken_or_said_to_be_passed_over(
    name: str, mounted: dict[str, tuple[Path, Outcome]]
) -> None:
    folder, outcome = mounted[name]
    assert (outcome.code, outcome.stderr) == (0, "")
    used = Path(outcome.record["checkpoint"])
    said = re.search(f"^WARNING: {folder} holds .*: {used} is used$", outcome.stdout, re.MULTILINE)
    assert (used.parent == folder, bool(said)) == (
        (True, False) if name == MOUNTED[0] else (False, True)
    )


# ---- Signals -----------------------------------------------------------------------------------

GRACE_SECONDS = 4  # of the platform's five


@pytest.fixture(scope="module")
def stopped_adapting(
    tmp_path_factory: pytest.TempPathFactory, weights: Path
) -> tuple[Outcome, float]:
    folder = tmp_path_factory.mktemp("stopped")
    save(folder / "in" / "x.tif", movie())
    order = Order(
        input_dir=folder / "in",
        output_dir=folder / "out",
        flags=("--weights", str(weights), "--steps", "100000"),
    )
    return signalled(order, ["adapting:"], signal.SIGTERM)


@pytest.fixture(scope="module")
def stopped_denoising(
    tmp_path_factory: pytest.TempPathFactory, with_weights: tuple[str, ...]
) -> tuple[Outcome, float]:
    """Stopped in the second of three stacks."""
    folder = tmp_path_factory.mktemp("stopped")
    save(folder / "in" / "a.tif", movie())
    save(folder / "in" / "b.tif", movie(LONG_SHAPE))
    save(folder / "in" / "c.tif", movie())
    order = Order(input_dir=folder / "in", output_dir=folder / "out", flags=with_weights)
    return signalled(order, ["[2/3]", "denoising:"], signal.SIGTERM)


@pytest.mark.parametrize("during", ["stopped_adapting", "stopped_denoising"])
def test_sigterm_ends_the_job_at_once_with_its_exit_code(
    during: str, request: pytest.FixtureRequest
) -> None:
    outcome, seconds = request.getfixturevalue(during)
    assert seconds < GRACE_SECONDS
    assert outcome.code == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("during", "message"),
    [
        ("stopped_adapting", "0 of 1 stacks written, x.tif unfinished; allow more time, or lower"),
        ("stopped_denoising", "1 of 3 stacks written, b.tif unfinished; allow more time, or lower"),
    ],
)
def test_after_sigterm_the_last_line_says_what_was_and_was_not_done(
    during: str, message: str, request: pytest.FixtureRequest
) -> None:
    outcome, _ = request.getfixturevalue(during)
    assert outcome.stderr.startswith(f"stopped by SIGTERM: {message}")
    assert len(outcome.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("during", "finished"), [("stopped_adapting", set()), ("stopped_denoising", {"a.tif"})]
)
def test_after_sigterm_only_what_was_finished_is_there(
    during: str, finished: set[str], request: pytest.FixtureRequest
) -> None:
    outcome, _ = request.getfixturevalue(during)
    assert outcome.files == finished


def test_a_stack_finished_before_sigterm_is_whole(
    stopped_denoising: tuple[Outcome, float], plain: Outcome
) -> None:
    outcome, _ = stopped_denoising
    assert outcome.stack("a.tif")["status"] == "denoised"
    assert result(outcome, "a.tif") == result(plain, "uint16.tif")


@pytest.mark.parametrize("during", ["stopped_adapting", "stopped_denoising"])
def test_after_sigterm_the_record_says_so(during: str, request: pytest.FixtureRequest) -> None:
    outcome, _ = request.getfixturevalue(during)
    assert outcome.record["stopped_by"] == "SIGTERM"
    assert outcome.record["stacks"][-1]["status"] == "failed"


def test_sigterm_before_the_first_stack_ends_the_job_too(
    tmp_path: Path, with_weights: tuple[str, ...]
) -> None:
    save(tmp_path / "in" / "x.tif", movie())
    order = Order(
        input_dir=tmp_path / "in",
        output_dir=tmp_path / "out",
        flags=with_weights,
        lines_before=STOPPED_BEFORE_TORCH,
    )
    outcome = run(order)
    assert outcome.code == 128 + signal.SIGTERM
    assert outcome.stderr == "stopped by SIGTERM before any stack was begun\n"
    assert outcome.files == set()


def test_the_next_run_removes_what_sigkill_left(
    tmp_path: Path, with_weights: tuple[str, ...]
) -> None:
    save(tmp_path / "in" / "x.tif", movie(LONG_SHAPE))
    save(tmp_path / "next" / "y.tif", movie())
    order = Order(input_dir=tmp_path / "in", output_dir=tmp_path / "out", flags=with_weights)
    killed, _ = signalled(order, ["denoising:"], signal.SIGKILL)
    (left,) = killed.files
    assert left.startswith(TEMPORARY_PREFIX)
    order = Order(input_dir=tmp_path / "next", output_dir=tmp_path / "out", flags=with_weights)
    assert run(order).files == {"y.tif"}
