"""Running other people's denoisers: what comes back, what is told when one fails, environments."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from lab.peers import runner
from lab.peers.runner import PEERS, SCRIPTS, Peer, PeerError, run_peer

NOISY = np.random.default_rng(0).integers(-50, 900, (5, 8, 12)).astype(np.int16)
HAND_OVER = """
    import argparse, shutil
    parser = argparse.ArgumentParser()
    for name in ("noisy", "result", "--seconds", "--seed"):
        parser.add_argument(name)
    args = parser.parse_args()
    shutil.copy({prepared!r}, args.result)
"""

Fake = Callable[[str], None]


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    path = tmp_path / "noisy.tif"
    tifffile.imwrite(path, NOISY, photometric="minisblack", metadata={"axes": "TYX"})
    return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Enters a peer "fake" that needs no package, of the script's text."""

    def enter(text: str) -> None:
        script = tmp_path / "denoise_fake.py"
        script.write_text(textwrap.dedent(text))
        monkeypatch.setitem(PEERS, "fake", Peer(title="Fake", script=str(script)))

    monkeypatch.setattr(runner, "VENVS", tmp_path / "venvs")
    return enter


def prepared(folder: Path, frames: np.ndarray) -> str:
    """The script of a peer whose result is this stack."""
    path = folder / "prepared.tif"
    tifffile.imwrite(path, frames, photometric="minisblack", metadata={"axes": "TYX"})
    return HAND_OVER.format(prepared=str(path))


def test_the_result_of_a_peer_comes_back_with_what_it_took(
    noisy: Path, fake: Fake, tmp_path: Path
) -> None:
    fake(prepared(tmp_path, NOISY.astype(np.float32) / 2))
    result = tmp_path / "new" / "result.tif"
    run = run_peer("fake", noisy, result, seconds=1)
    assert np.array_equal(tifffile.imread(result), NOISY.astype(np.float32) / 2)
    assert 0 < run.seconds < 60
    assert 2**20 < run.peak_bytes < 2**28  # a bare Python


def test_a_peers_memory_is_not_mistaken_for_its_callers(
    noisy: Path, fake: Fake, tmp_path: Path
) -> None:
    ours = np.ones(2**26)  # 512 MiB
    fake(prepared(tmp_path, NOISY.astype(np.float32)))
    run = run_peer("fake", noisy, tmp_path / "result.tif", seconds=1)
    assert run.peak_bytes < ours.nbytes / 4


def test_the_time_and_the_seed_reach_the_script(noisy: Path, fake: Fake, tmp_path: Path) -> None:
    fake("import sys; sys.exit(' '.join(sys.argv[3:]))")
    with pytest.raises(PeerError, match=r"--seconds 2\.5 --seed 7"):
        run_peer("fake", noisy, tmp_path / "result.tif", seconds=2.5, seed=7)


def test_a_failing_peer_is_named_with_the_end_of_what_it_said(
    noisy: Path, fake: Fake, tmp_path: Path
) -> None:
    fake("import sys; print(*range(50), sep='\\n', file=sys.stderr); raise ValueError('too dim')")
    with pytest.raises(
        PeerError, match=r"(?s)fake: Fake failed \(exit code 1\).*too dim"
    ) as caught:
        run_peer("fake", noisy, tmp_path / "result.tif", seconds=1)
    assert len(str(caught.value).splitlines()) == 1 + runner.NUM_LINES


def test_a_peer_that_was_killed_is_said_to_want_memory(
    noisy: Path, fake: Fake, tmp_path: Path
) -> None:
    fake("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(PeerError, match=r"signal 9\); try a shorter or smaller stack"):
        run_peer("fake", noisy, tmp_path / "result.tif", seconds=1)


def test_a_result_of_an_earlier_run_does_not_pass_for_a_missing_one(
    noisy: Path, fake: Fake, tmp_path: Path
) -> None:
    result = tmp_path / "result.tif"
    tifffile.imwrite(result, NOISY.astype(np.float32))
    fake("pass")
    with pytest.raises(PeerError, match="fake: no result at"):
        run_peer("fake", noisy, result, seconds=1)


@pytest.mark.parametrize(
    "frames", [NOISY[:4].astype(np.float32), NOISY[:, :, :8].astype(np.float32), NOISY]
)
def test_a_result_of_another_shape_or_type_is_refused(
    noisy: Path, fake: Fake, tmp_path: Path, frames: np.ndarray
) -> None:
    fake(prepared(tmp_path, frames))
    with pytest.raises(PeerError, match=r"fake: its result is .* expected float32 of \(5, 8, 12\)"):
        run_peer("fake", noisy, tmp_path / "result.tif", seconds=1)


def test_a_result_that_is_no_tiff_is_refused(noisy: Path, fake: Fake, tmp_path: Path) -> None:
    fake("import pathlib, sys; pathlib.Path(sys.argv[2]).write_text('done')")
    with pytest.raises(PeerError, match="fake: its result cannot be read"):
        run_peer("fake", noisy, tmp_path / "result.tif", seconds=1)


def test_an_unknown_peer_is_told_with_the_known_ones(noisy: Path, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="unknown peer 'n2x'; known are careamics, bm4d"):
        run_peer("n2x", noisy, tmp_path / "result.tif", seconds=1)


def test_a_networks_script_answers_with_figures(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("import json, sys; print(json.dumps({'sum': sum(map(int, sys.argv[1:]))}))")
    monkeypatch.setitem(runner.NETWORKS, "fake", PEERS["fake"])
    assert runner.answer_of("fake", 2, 3) == {"sum": 5}
    fake("raise SystemExit('no such axis')")
    with pytest.raises(PeerError, match="fake: exit code 1:\nno such axis"):
        runner.answer_of("fake")


# ---- Environments -------------------------------------------------------------------------------


def test_an_environment_is_made_once(fake: Fake, tmp_path: Path) -> None:
    fake("")
    python = runner.prepare("fake")
    witness = python.parent.parent / "witness"
    witness.touch()
    assert runner.prepare("fake") == python
    assert witness.exists()


def test_an_interrupted_installation_is_taken_up_and_not_begun_anew(
    fake: Fake, tmp_path: Path
) -> None:
    fake("")
    venv = runner.prepare("fake").parent.parent
    (venv / runner.STAMP).unlink()
    (venv / "witness").touch()
    runner.prepare("fake")
    assert (venv / runner.STAMP).exists()
    assert (venv / "witness").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(fake: Fake) -> None:
    fake("")
    python = runner.prepare("fake")
    python.unlink()
    (python.parent.parent / "witness").touch()
    assert runner.prepare("fake").exists()
    assert not (python.parent.parent / "witness").exists()


@pytest.mark.slow  # it makes an environment with pip
def test_an_installation_that_fails_names_the_peer_and_leaves_no_stamp(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake("")
    absent = f"absent @ {(tmp_path / 'absent.whl').as_uri()}"  # so that no network is asked
    monkeypatch.setitem(PEERS, "fake", Peer(title="", script="", requirements=(absent,)))
    with pytest.raises(PeerError, match=r"(?s)fake: its environment could not be made.*absent"):
        runner.prepare("fake")
    assert (tmp_path / "venvs" / "fake" / "bin" / "python").exists()
    assert not (tmp_path / "venvs" / "fake" / runner.STAMP).exists()


# ---- The table ----------------------------------------------------------------------------------


def test_the_four_peers_are_there() -> None:
    assert list(PEERS) == ["careamics", "bm4d", "localmd", "suite2p"]


@pytest.mark.parametrize("name", PEERS)
def test_a_peers_script_exists_and_its_packages_are_pinned(name: str) -> None:
    peer = PEERS[name]
    assert (SCRIPTS / peer.script).is_file()
    assert all("==" in line for line in (*peer.requirements, *peer.bare_requirements))
    assert peer.title
