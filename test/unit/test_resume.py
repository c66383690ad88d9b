"""Putting a run down: small files, and one whole state whatever happens."""

from pathlib import Path

import pytest
import torch

from lab.resume import ResumeError, load_run, require_same, save_run


def parts(value: float, count: int = 3) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "weights": {f"layer{i}": torch.full((1_500_000,), value + i) for i in range(count)},
        "adam": {"0": torch.tensor(value)},
    }


def test_what_was_saved_comes_back_in_files_below_15_megabytes(tmp_path: Path) -> None:
    save_run(tmp_path / "run", 7, parts(1.0), {"best": 3.5})
    loaded = load_run(tmp_path / "run")
    assert loaded is not None
    assert loaded[1] == {"step": 7, "best": 3.5}
    assert torch.equal(loaded[0]["weights"]["layer2"], torch.full((1_500_000,), 3.0))
    assert loaded[0]["adam"]["0"] == 1.0
    sizes = [file.stat().st_size for file in (tmp_path / "run").iterdir()]
    assert len(sizes) == 4  # 18 MB of weights in two files, the optimiser's, the state
    assert max(sizes) < 15e6


def test_nothing_saved_is_not_an_error(tmp_path: Path) -> None:
    assert load_run(tmp_path / "never") is None


def test_a_full_disk_leaves_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path, 1, parts(1.0), {})
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if "adam" in target.name:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ResumeError, match=r"iteration 2 .* No space left .* the one before stays"):
        save_run(tmp_path, 2, parts(2.0), {})
    monkeypatch.undo()
    loaded = load_run(tmp_path)
    assert loaded is not None
    assert loaded[1]["step"] == 1
    assert loaded[0]["weights"]["layer0"][0] == 1.0
    save_run(tmp_path, 2, parts(2.0), {})  # and what the failure left is cleared away
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(("0000001", "."))]


def test_a_damaged_state_says_so(tmp_path: Path) -> None:
    save_run(tmp_path, 1, parts(1.0), {})
    victim = next(tmp_path.glob("*adam*"))
    victim.write_bytes(victim.read_bytes()[:-2])
    with pytest.raises(ResumeError, match="damaged"):
        load_run(tmp_path)


def test_the_first_number_that_differs_is_named(tmp_path: Path) -> None:
    require_same(tmp_path, {"batch": 4, "seed": 0}, {"batch": 4, "seed": 0})
    with pytest.raises(ResumeError, match="seed = 0, asked for is 1"):
        require_same(tmp_path, {"batch": 4, "seed": 0}, {"batch": 4, "seed": 1})
    with pytest.raises(ResumeError, match="older = 2, asked for is None"):
        require_same(tmp_path, {"older": 2}, {})
