"""The table of methods: its numbers, what it keeps between runs, and methods that fail."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from lab.evaluate import main
from lab.figures import View
from lab.floors import FLOORS
from lab.metrics import judge, stsnr
from lab.movies import load_movie
from lab.noise import noisy_recording
from lab.peers.runner import Peer, PeerError, PeerRun

# A program that gives each recording back as it is, and notes it as process.py does. Its arguments
# are added to a file, so that one can count the runs.
PROGRAM = """
import json, shutil, sys
from pathlib import Path
calls = Path(__file__).with_name("calls")
with calls.open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "666" in sys.argv:
    sys.exit("a first line\\nthe device | is on fire")
source, target = (Path(sys.argv[sys.argv.index(f"--{n}-dir") + 1]) for n in ("input", "output"))
target.mkdir()
for path in source.iterdir():
    shutil.copyfile(path, target / path.name)
record = {"seconds": {"adapt": 2.5, "infer": 1.0}, "peak_host_bytes": 3_100_000_000,
          "peak_device_bytes": None}
(target / "denoising.json").write_text(json.dumps({"stacks": [record]}))
"""


def write_movie(path: Path, seed: int = 0) -> Path:
    """A clean movie [40,14,13] with one active cell."""
    rng = np.random.default_rng(seed)
    movie = np.full((40, 14, 13), 200, np.int16) + rng.integers(0, 30, (14, 13)).astype(np.int16)
    movie[15:30, 4:7, 4:7] += 300
    np.savez(path, frame_difference=np.diff(movie, axis=0, prepend=np.int16(0)))
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    return write_movie(tmp_path / "movie.npz")


def num_calls(program: Path) -> int:
    calls = program.with_name("calls")
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def run_fake_peer(name: str, noisy: Path, result: Path, *, seconds: float) -> PeerRun:
    """Stands in for another's program: "halve" works, "broken" does not."""
    if name == "broken":
        raise PeerError("broken: it failed:\nTraceback\nOSError: no such library")
    frames = tifffile.imread(noisy).astype(np.float32)
    tifffile.imwrite(result, frames / 2, photometric="minisblack")
    return PeerRun(seconds=seconds / 2, peak_bytes=1_500_000_000)


def draw_names(title: str, clean: View, noisy: View, results: Sequence[View], path: Path) -> None:
    """Stands in for the figure, which takes a second."""
    path.write_text("\n".join([title, *(view.name for view in (clean, noisy, *results))]))


PEERS = {name: Peer(title=name, script=__file__) for name in ("halve", "broken", "odd")}


@pytest.fixture
def evaluate(movie: Path, program: Path, tmp_path: Path) -> Callable[..., int]:
    """Evaluate methods on one movie at levels 1 and 2, unless told otherwise."""

    def run(*methods: str, more: tuple[str, ...] = ("--levels", "1", "2")) -> int:
        out = [] if "--out" in more else ["--out", str(tmp_path / "out")]
        stacks = [] if "--stacks" in more else ["--stacks", str(movie)]
        argv = ["--methods", *methods, *stacks, *out, *more]
        return main(argv, program=program, peers=PEERS, run_peer=run_fake_peer, draw=draw_names)

    return run


def read_rows(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- Numbers ------------------------------------------------------------------------------------


def test_the_floors_figures_are_those_computed_directly(
    evaluate: Callable[..., int], movie: Path, tmp_path: Path
) -> None:
    assert evaluate(more=("--levels", "2", "--frames", "5", "35", "--seed", "7")) == 0
    clean = load_movie(movie)[5:35]
    noisy = noisy_recording(clean, 2, 7)
    rows = read_rows(tmp_path)
    assert [row["method"] for row in rows] == list(FLOORS)
    for row in rows:
        expected = judge(clean, noisy, FLOORS[row["method"]](noisy)).as_row()
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, nan_ok=True)
        assert row["shape"] == "30x14x13"


def test_the_table_shows_every_method_at_every_level(
    evaluate: Callable[..., int], movie: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("restormer3d@0", "halve") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["movie_1", "movie_2", "s/stack", "peak", "GB", "note"]
    rows = {line.split("  ")[0]: line.split()[-4:] for line in lines[1:]}
    assert list(rows) == [*FLOORS, "restormer3d@0", "halve"]
    clean = load_movie(movie)
    noisy = [noisy_recording(clean, level, 2) for level in (1, 2)]
    expected = [f"{stsnr(clean, recording).stsnr:.2f}" for recording in noisy]
    assert rows["restormer3d@0"] == [*expected, "3.5", "3.1"]
    expected = [f"{stsnr(clean, recording / 2).stsnr:.2f}" for recording in noisy]
    assert rows["halve"] == [*expected, "1800.0", "1.5"]


def test_several_stacks_have_a_mean_per_level(
    evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stacks = [str(write_movie(tmp_path / f"{name}.npz", seed=ord(name))) for name in "ab"]
    assert evaluate("halve", more=("--stacks", *stacks, "--levels", "3")) == 0
    scores = [float(row["stsnr_db"]) for row in read_rows(tmp_path) if row["method"] == "halve"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[-4:-1] == ["mean of level 3", "s/stack", "peak GB"]
    assert lines[-1].split()[1:4] == [f"{x:.2f}" for x in (*scores, np.mean(scores))]


def test_a_clean_tiff_is_as_good_as_a_simulated_movie(
    evaluate: Callable[..., int], movie: Path, tmp_path: Path
) -> None:
    evaluate(more=("--levels", "1"))
    of_movie = [row["stsnr_db"] for row in read_rows(tmp_path)]
    path = tmp_path / "mine.tif"
    tifffile.imwrite(path, load_movie(movie).astype(np.uint16), photometric="minisblack")
    assert evaluate(more=("--stacks", str(path), "--levels", "1")) == 0
    assert [row["stsnr_db"] for row in read_rows(tmp_path)] == of_movie


def test_the_page_names_its_command_and_marks_the_best(
    evaluate: Callable[..., int], tmp_path: Path
) -> None:
    evaluate("halve")
    page = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "\npython -m lab.evaluate --methods halve --stacks " in page
    assert "movie [40, 14, 13]" in page
    best = max(float(r["stsnr_db"]) for r in read_rows(tmp_path) if r["level"] == "1")
    assert page.count(f"**{best:.2f}**") == 1
    assert page.count("**") == 4  # one of each level


def test_every_case_has_a_figure_of_all_results(
    evaluate: Callable[..., int], tmp_path: Path
) -> None:
    evaluate("halve", "broken")
    for level in (1, 2):
        drawn = (tmp_path / "out" / f"movie_{level}.png").read_text().splitlines()
        assert drawn == [f"movie.npz, noise level {level}", "clean", *FLOORS, "halve"]


def test_the_figures_are_real_ones(movie: Path, tmp_path: Path) -> None:
    argv = ["--methods", "--stacks", str(movie), "--levels", "1", "--out", str(tmp_path)]
    assert main(argv, peers={}) == 0
    assert (tmp_path / "movie_1.png").read_bytes().startswith(b"\x89PNG")


# ---- Running our own methods --------------------------------------------------------------------


def test_flags_after_the_dashes_reach_the_program(
    evaluate: Callable[..., int], program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENOISE_STEPS", "not a number")  # not passed on
    more = ("--levels", "1", "--", "--steps", "7", "--device", "cpu")
    assert evaluate("restormer3d", "restormer3d@40", more=more) == 0
    calls = [json.loads(line) for line in program.with_name("calls").read_text().splitlines()]
    flags = ["--steps", "7", "--device", "cpu", "--method", "restormer3d"]
    assert calls[0][:6] == flags
    assert calls[1][:8] == [*flags, "--steps", "40"]


def test_a_finished_result_is_not_made_again(
    evaluate: Callable[..., int], program: Path, tmp_path: Path
) -> None:
    evaluate("restormer3d", more=("--levels", "1"))
    first = read_rows(tmp_path)[-1]
    assert evaluate("restormer3d", "halve") == 0
    assert num_calls(program) == 2  # level 1 was there, level 2 was not
    again = next(row for row in read_rows(tmp_path) if row["method"] == "restormer3d")
    assert again == first


@pytest.mark.parametrize(
    "more",
    [
        ("--levels", "1", "--", "--steps", "3"),
        ("--levels", "1", "--seed", "5"),
        ("--levels", "1", "--frames", "0", "30"),
    ],
    ids=["flags", "noise", "frames"],
)
def test_other_settings_make_the_result_anew(
    evaluate: Callable[..., int], program: Path, more: tuple[str, ...]
) -> None:
    evaluate("restormer3d", more=("--levels", "1"))
    assert evaluate("restormer3d", more=more) == 0
    assert num_calls(program) == 2


def test_another_checkpoint_makes_the_result_anew(
    evaluate: Callable[..., int], program: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    more = ("--levels", "1", "--", "--weights", str(weights))
    for checkpoint in (b"young", b"young", b"old"):
        (weights / "restormer3d.safetensors").write_bytes(checkpoint)
        assert evaluate("restormer3d", more=more) == 0
    assert num_calls(program) == 2


def test_a_result_from_before_the_code_changed_is_kept_and_marked(
    evaluate: Callable[..., int], program: Path, tmp_path: Path
) -> None:
    evaluate("restormer3d", more=("--levels", "1"))
    program.write_text(PROGRAM + "# a comment\n")
    assert evaluate("restormer3d", more=("--levels", "1")) == 0
    assert num_calls(program) == 1
    assert read_rows(tmp_path)[-1]["note"] == "kept from before the code changed"


def test_other_peer_seconds_or_packages_make_the_result_anew(movie: Path, tmp_path: Path) -> None:
    calls = []

    def run_peer(name: str, noisy: Path, result: Path, *, seconds: float) -> PeerRun:
        calls.append(seconds)
        return run_fake_peer("halve", noisy, result, seconds=seconds)

    argv = ["--methods", "halve", "--stacks", str(movie), "--levels", "1"]
    argv += ["--out", str(tmp_path / "out")]
    newer = {"halve": replace(PEERS["halve"], requirements=("numpy==9",))}
    for peers, seconds in ((PEERS, "5"), (PEERS, "5"), (PEERS, "6"), (newer, "6")):
        more = ["--peer-seconds", seconds]
        assert main([*argv, *more], peers=peers, run_peer=run_peer, draw=draw_names) == 0
    assert calls == [5, 6, 6]


def test_a_result_whose_note_is_missing_is_made_again(
    evaluate: Callable[..., int], program: Path, tmp_path: Path
) -> None:
    evaluate("restormer3d", more=("--levels", "1"))
    (tmp_path / "out" / "denoised" / "restormer3d" / "movie_1.json").unlink()
    assert evaluate("restormer3d", more=("--levels", "1")) == 0
    assert num_calls(program) == 2


# ---- Failures -----------------------------------------------------------------------------------


def test_a_method_that_fails_has_a_row_and_stops_no_other(
    evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--levels", "1", "--", "--seed", "666")
    assert evaluate("broken", "restormer3d", "halve", more=more) == 1
    rows = {row["method"]: row for row in read_rows(tmp_path)}
    assert rows["broken"]["note"] == "failed: broken: it failed: OSError: no such library"
    assert rows["restormer3d"]["note"] == "failed: the device | is on fire"
    assert rows["broken"]["stsnr_db"] == rows["restormer3d"]["stsnr_db"] == ""
    assert float(rows["halve"]["stsnr_db"]) > 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("broken"))
    assert line.split(maxsplit=4)[1:] == ["-", "-", "-", rows["broken"]["note"]]
    assert "the device \\| is on fire" in (tmp_path / "out" / "table.md").read_text()


def test_a_method_that_failed_is_tried_again(evaluate: Callable[..., int], program: Path) -> None:
    for _ in range(2):
        assert evaluate("restormer3d", more=("--levels", "1", "--", "--seed", "666")) == 1
    assert num_calls(program) == 2


@pytest.mark.parametrize("frames", [np.zeros((40, 14, 12)), np.full((40, 14, 13), np.nan)])
def test_a_result_that_is_none_counts_as_failed(
    frames: np.ndarray, movie: Path, tmp_path: Path
) -> None:
    calls = []

    def run_peer(name: str, noisy: Path, result: Path, *, seconds: float) -> PeerRun:
        calls.append(noisy)
        tifffile.imwrite(result, frames.astype(np.float32), photometric="minisblack")
        return PeerRun(seconds=1, peak_bytes=1)

    argv = ["--methods", "odd", "--stacks", str(movie), "--levels", "1"]
    argv += ["--out", str(tmp_path / "out")]
    for _ in range(2):  # it is not kept
        assert main(argv, peers=PEERS, run_peer=run_peer, draw=draw_names) == 1
        assert read_rows(tmp_path)[-1]["note"].startswith("failed: ")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("methods", "more", "words"),
    [
        (["unheard"], [], ["unknown method 'unheard'", "restormer3d", "halve", "broken"]),
        (["restormer3d@few"], [], ["unknown method 'restormer3d@few'", "NAME@STEPS"]),
        (["halve@3"], [], ["unknown method 'halve@3'"]),
        (["halve"], ["--stacks", "nowhere.npz"], ["no such file: nowhere.npz"]),
        (["halve"], ["--levels", "4"], ["--levels"]),
        (["halve"], ["--frames", "30", "20"], ["--frames 30 20"]),
        (["halve"], ["--frames", "39", "90"], ["the part to evaluate is (1, 14, 13)"]),
        (["halve"], ["--held-out"], ["movie.npz", "held-out"]),
        (["halve"], ["--", "--no-such-flag"], ["--no-such-flag"]),
        (["unet3d"], ["--", "--no-such-flag"], ["--no-such-flag"]),
        (["restormer3d", "lowrank"], ["--", "--precision=fp32"], ["lowrank has no network"]),
        (["lowrank@5"], [], ["--steps 5", "lowrank does not adapt"]),
        (["halve"], ["--", "--method=other"], ["--method", "leave it out"]),
    ],
)
def test_wrong_usage_is_explained(
    methods: list[str],
    more: list[str],
    words: list[str],
    evaluate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate(*methods, more=tuple(more))
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.full((20, 12, 12), 7, np.uint16), "that vary"),
        (np.arange(-5, 20 * 144 - 5, dtype=np.int16).reshape(20, 12, 12), "subtract the offset"),
        (np.arange(20 * 144, dtype=np.uint16).reshape(20, 12, 12) * 20, "too bright"),
        (np.where(np.eye(12) > 0, np.nan, np.ones((20, 12, 12))), "NaN"),
    ],
)
def test_a_truth_that_the_noise_does_not_fit_is_refused(
    frames: np.ndarray,
    words: str,
    evaluate: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tifffile.imwrite(tmp_path / "truth.tif", frames, photometric="minisblack")
    with pytest.raises(SystemExit, match="2"):
        evaluate(more=("--stacks", str(tmp_path / "truth.tif")))
    assert words in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # numpy leaves a bad zip open
@pytest.mark.parametrize("name", ["broken.npz", "broken.tif"])
def test_a_file_that_is_no_movie_is_named(
    name: str, evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 neither of the two")
    with pytest.raises(SystemExit, match="2"):
        evaluate(more=("--stacks", str(tmp_path / name)))
    assert name in capsys.readouterr().err


def test_two_stacks_of_one_name_are_refused(
    evaluate: Callable[..., int], movie: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate(more=("--stacks", str(movie), str(movie), "--levels", "1"))
    assert "named twice: movie_1" in capsys.readouterr().err
