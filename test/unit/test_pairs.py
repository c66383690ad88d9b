"""Supervised pairs on disk: found, matched, and cut at the same place."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from lab.pairs import Pairs, find_pairs
from lab.recordings import Ask, DataError

ASK = Ask(patch=(1, 16, 16), target_draws=64, median=False)


def write_pair(folder: Path, name: str, shape: tuple[int, ...] = (20, 24), seed: int = 0) -> None:
    clean = np.random.default_rng(seed).integers(100, 900, shape).astype(np.uint16)
    for part, factor in (("gt_imgs", 1), ("noisy_imgs", 2)):
        path = folder / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, clean * factor, photometric="minisblack")


def test_pairs_in_folders_of_planes_and_in_single_files_are_found(tmp_path: Path) -> None:
    for name in ("img_0/z_0.tif", "img_0/z_1.tif", "img_1.tif"):
        write_pair(tmp_path, name)
    pairs = find_pairs(tmp_path)
    assert [noisy.relative_to(tmp_path / "noisy_imgs").as_posix() for noisy, _ in pairs] == [
        "img_0/z_0.tif", "img_0/z_1.tif", "img_1.tif",
    ]  # fmt: skip
    assert all(noisy.name == clean.name for noisy, clean in pairs)


@pytest.mark.parametrize("shape", [(20, 24), (5, 40, 16), (8, 8)])
def test_input_and_target_are_cut_at_the_same_place(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_pair(tmp_path, "a.tif", shape)
    recording = Pairs([tmp_path], "niddl", seed=0).recording(0, 0)
    for seed in range(8):
        example = recording.draw(ASK, np.random.default_rng(seed))
        assert example.target is not None
        noisy, clean = (
            part * recording.scale.gain + recording.scale.offset
            for part in (example.noisy, example.target)
        )
        assert noisy.shape == (1, 1, 16, 16)
        torch.testing.assert_close(noisy, 2 * clean, rtol=1e-4, atol=1e-2)


def test_files_without_a_partner_are_counted_and_named(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.tif")
    write_pair(tmp_path, "b.tif")
    (tmp_path / "gt_imgs" / "b.tif").unlink()
    with pytest.raises(DataError, match=r"2 files in noisy_imgs/, 1 in gt_imgs/.*b\.tif"):
        find_pairs(tmp_path)


def test_partners_of_different_shapes_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a.tif")
    tifffile.imwrite(tmp_path / "gt_imgs" / "a.tif", np.zeros((9, 9), np.uint16))
    with pytest.raises(DataError, match=r"a\.tif.*\(1, 20, 24\).*\(1, 9, 9\)"):
        find_pairs(tmp_path)


def test_a_folder_that_holds_no_pairs_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="noisy_imgs: no such folder"):
        find_pairs(tmp_path)
    (tmp_path / "noisy_imgs").mkdir()
    (tmp_path / "gt_imgs").mkdir()
    with pytest.raises(DataError, match=r"no \.tif"):
        find_pairs(tmp_path)
