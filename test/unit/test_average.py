"""The mean of checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lab.average import main
from model.architectures import build
from model.checkpoint import load_network, read_checkpoint, save_checkpoint


def saved(path: Path, seed: int, width: int = 4) -> Path:
    torch.manual_seed(seed)
    net = build("factor_net", width=width, course_widths=(4, 4))
    save_checkpoint(path, net, method="lowrank_unet", provenance={"seed": seed})
    return path


def test_every_number_is_the_mean_and_the_origins_are_kept(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{seed}.safetensors", seed) for seed in range(3)]
    out = tmp_path / "means" / "mean.safetensors"  # a folder that is not there yet
    assert main([*map(str, paths), "--out", str(out)]) == 0
    nets = [load_network(read_checkpoint(path, "lowrank_unet")) for path in (out, *paths)]
    mean, *parts = (net.state_dict() for net in nets)
    for name, value in mean.items():
        torch.testing.assert_close(value, torch.stack([p[name] for p in parts]).mean(0))
    with safe_open(out, "pt") as file:
        provenance = json.loads(file.metadata()["provenance"])
    assert provenance == {"mean_of": [{"seed": 0}, {"seed": 1}, {"seed": 2}]}


def test_networks_of_other_sizes_have_no_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = saved(tmp_path / "a.safetensors", 0), saved(tmp_path / "b.safetensors", 0, width=8)
    with pytest.raises(SystemExit) as ended:
        main([*map(str, paths), "--out", str(tmp_path / "mean.safetensors")])
    assert ended.value.code == 2
    assert "b.safetensors: sizes {'width': 8, " in capsys.readouterr().err
    assert not (tmp_path / "mean.safetensors").exists()


def test_a_file_that_holds_no_weights_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.safetensors").write_text("nothing")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "mean.safetensors")])
    assert "a.safetensors: no safetensors file" in capsys.readouterr().err
