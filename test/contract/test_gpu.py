"""The programs as on a GPU, by `stand_in_gpu.py`: they end, and give what they give on the CPU."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from safetensors.numpy import load_file

from model.config import METHODS
from model.report import RECORD_NAME

ROOT = Path(__file__).parents[2]
STAND_IN = str(ROOT / "test/stand_in_gpu.py")
(SAMPLE,) = (ROOT / "test/input").rglob("*.tif")
SHAPE = (20, 40, 36)  # no multiple of any window
LONG = (128, 64, 64)  # enough for lowrank_unet to learn from
ADAPTS = [name for name, m in METHODS.items() if m.stages + m.scratch_stages]
LEARNS = [*ADAPTS, "lowrank_unet"]


def run(program: list[str], *flags: str) -> None:
    command = [sys.executable, *program, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def denoised(folder: Path, device: str, *flags: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The result [T,H,W] of the recording in `folder`, and the job's record."""
    program = ["process.py"] if device == "cpu" else [STAND_IN, "process"]
    output = folder / device
    places = ["--input-dir", str(folder / "in"), "--output-dir", str(output)]
    run(program, *places, "--device", device, *flags)
    frames = tifffile.imread(output / "mouse.tif").astype(np.float64)
    return frames, json.loads((output / RECORD_NAME).read_text())


def in_both_places(
    folder: Path, shape: tuple[int, int, int], flags: list[str]
) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """What becomes of a part of the sample on the CPU, and on the GPU."""
    noisy = tifffile.imread(SAMPLE)[tuple(map(slice, shape))]
    (folder / "in").mkdir()
    tifffile.imwrite(folder / "in" / "mouse.tif", noisy, photometric="minisblack")
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda device: denoised(folder, device, *flags), ("cpu", "cuda")))


@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_gives_what_the_cpu_gives(method: str, weights: Path, tmp_path: Path) -> None:
    shape = LONG if METHODS[method].low_rank else SHAPE
    flags = ["--method", method, "--weights", str(weights)]
    flags += ["--precision", "fp32"] if METHODS[method].network else []
    flags += ["--steps", "2"] if method in ADAPTS else []
    (on_cpu, there), (on_gpu, record) = in_both_places(tmp_path, shape, flags)
    assert record["device"] == "stand-in"
    (stack,), (same,) = record["stacks"], there["stacks"]
    assert stack["steps_done"] == same["steps_done"]
    assert bool(stack["steps_done"]) == (method in LEARNS)
    # both are rounded, and sums are made in another order
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=max(1, 0.02 * on_cpu.std()))


def test_a_gpu_computes_in_16_bits_where_asked_to(weights: Path, tmp_path: Path) -> None:
    flags = ["--method", "restormer3d", "--weights", str(weights), "--steps", "0"]
    (on_cpu, _), (on_gpu, record) = in_both_places(tmp_path, SHAPE, [*flags, "--precision", "bf16"])
    assert record["stacks"][0]["precision"] == "bf16"
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=0.1 * on_cpu.std())


def test_pretraining_on_a_gpu_ends_with_the_weights_of_the_cpu(tmp_path: Path) -> None:
    def trained(device: str) -> dict[str, np.ndarray]:
        out = tmp_path / device / "unet3d.safetensors"
        program = ["-m", "lab.pretrain"] if device == "cpu" else [STAND_IN, "lab.pretrain"]
        numbers = ["--curriculum", "2:8x32x32", "--batch", "2"]
        run(program, "unet3d", "--out", str(out), "--device", device, *numbers)
        return load_file(out)

    with ThreadPoolExecutor(2) as pool:
        on_cpu, on_gpu = pool.map(trained, ("cpu", "cuda"))
    for name, weights in on_cpu.items():
        np.testing.assert_allclose(on_gpu[name], weights, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "fault",
    [
        "torch.ones(2, device='cuda') + torch.ones(2)",
        "torch.ones(2, device='cuda').numpy()",
        "torch.rand(2, device='cuda', generator=torch.Generator())",
        "torch.nn.Linear(2, 2).to('cuda')(torch.ones(1, 2))",
        "torch.ones(2)[torch.zeros(1, dtype=torch.long, device='cuda')]",
    ],
)
def test_the_stand_in_finds_what_a_gpu_would_not_take(fault: str, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(f"import torch\ndef main(_):\n    {fault}\n")
    done = subprocess.run(
        [sys.executable, STAND_IN, "faulty"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "device" in done.stderr.splitlines()[-1]
