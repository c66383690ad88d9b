"""One stack from file to file: the stages that are chosen, and what a failing network leads to."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

from model import pipeline
from model.architectures import ARCHITECTURES, Architecture, build
from model.budget import Budget
from model.checkpoint import Checkpoint, read_checkpoint
from model.config import METHODS
from model.device import pick_device
from model.job import SHIPPED_WEIGHTS
from model.pipeline import Denoiser
from model.report import StackRecord
from model.stack import StackError
from model.stack_io import StackPaths
from model.teach import TeachReport

METHOD = METHODS["restormer3d"]
SIZES = {
    "dim": 2,
    "heads": (1, 1, 1, 1),
    "num_blocks": (1, 0, 0, 0),
    "num_refinement_blocks": 0,
}


def denoiser(**changes: Any) -> Denoiser:
    defaults: dict[str, Any] = {
        "method": replace(METHOD, network_config=SIZES),
        "checkpoint": None,
        "device": pick_device("cpu"),
        "seed": 0,
        "steps": None,
    }
    return Denoiser(**{**defaults, **changes})


def checkpoint(weight: float | None = None) -> Checkpoint:
    torch.manual_seed(0)
    net = build("restormer3d", **SIZES)
    with torch.no_grad():
        for parameter in net.parameters():
            if weight is not None:
                parameter.fill_(weight)
    return Checkpoint(method="restormer3d", config=SIZES, tensors=net.state_dict())


@pytest.fixture
def paths(tmp_path: Path) -> StackPaths:
    frames = np.random.default_rng(0).poisson(60, (6, 20, 24)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", frames, photometric="minisblack")
    return StackPaths(source=tmp_path / "x.tif", target=tmp_path / "out" / "x.tif")


def error_of(failing: Denoiser, paths: StackPaths, seconds: float = math.inf) -> str:
    with pytest.raises(StackError) as caught:
        failing.denoise(paths, Budget(seconds), StackRecord(file="x.tif"))
    assert str(caught.value).startswith("x.tif: ")
    left = list(paths.target.parent.iterdir()) if paths.target.parent.exists() else []
    assert left == []
    return str(caught.value)


# ---- Stages ------------------------------------------------------------------------------------


def test_with_a_checkpoint_the_methods_own_stages_are_taken() -> None:
    assert denoiser(checkpoint=checkpoint()).stages() == METHOD.stages


def test_without_a_checkpoint_those_from_scratch_are_taken() -> None:
    assert denoiser().stages() == METHOD.scratch_stages


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0, [0, 0]), (1, [0, 1]), (11, [1, 10]), (100, [9, 91]), (4400, [400, 4000])],
)
def test_with_another_number_of_steps_the_stages_keep_their_proportions(
    steps: int, expected: list[int]
) -> None:
    assert [stage.steps for stage in denoiser(steps=steps).stages()] == expected


def test_a_single_stage_takes_all_the_steps() -> None:
    (stage,) = denoiser(checkpoint=checkpoint(), steps=7).stages()
    assert stage == replace(METHOD.stages[0], steps=7)


def test_a_network_from_scratch_has_the_sizes_of_its_method(
    paths: StackPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    class Noted(ARCHITECTURES["restormer3d"].network):  # type: ignore[misc, name-defined]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            built.append(config)

    entry = replace(ARCHITECTURES["restormer3d"], network=Noted)
    monkeypatch.setitem(ARCHITECTURES, "restormer3d", entry)
    denoiser(steps=1).denoise(paths, Budget(math.inf), StackRecord(file="x.tif"))
    assert [config.dim for config in built] == [SIZES["dim"]]


def result_of(any_denoiser: Denoiser, paths: StackPaths) -> bytes:
    any_denoiser.denoise(paths, Budget(math.inf), StackRecord(file="x.tif"))
    return paths.target.read_bytes()


def test_from_scratch_too_no_stack_changes_the_next(paths: StackPaths) -> None:
    one_job = denoiser(steps=1)
    assert result_of(one_job, paths) == result_of(one_job, paths)


def test_from_scratch_too_another_seed_gives_another_result(paths: StackPaths) -> None:
    first = result_of(denoiser(steps=1, seed=0), paths)
    assert result_of(denoiser(steps=1, seed=1), paths) != first


# ---- Learning from the recording ---------------------------------------------------------------


@pytest.fixture
def shortened(paths: StackPaths, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """What `lowrank_unet` notes where teaching its network ends as the function given does."""

    def noted(teach: Any) -> list[str]:
        monkeypatch.setattr(pipeline, "teach", teach)
        frames = np.random.default_rng(0).poisson(60, (40, 24, 28)).astype(np.uint16)
        tifffile.imwrite(paths.source, frames, photometric="minisblack")
        weights = read_checkpoint(SHIPPED_WEIGHTS / "lowrank_unet.safetensors", "lowrank_unet")
        record = StackRecord(file="x.tif")
        taught = denoiser(method=METHODS["lowrank_unet"], checkpoint=weights)
        taught.denoise(paths, Budget(math.inf), record)
        assert paths.target.exists()
        return record.shortened

    return noted


def test_learning_that_time_has_cut_off_is_noted(shortened: Callable[[Any], list[str]]) -> None:
    steps = METHODS["lowrank_unet"].low_rank.teach.steps
    for done, expected in ((steps, []), (7, [f"adaptation {steps} to 7 iterations"])):
        report = TeachReport(steps=done, judged=(1.0, 2.0))
        assert shortened(lambda *_, report=report: report) == expected


def test_learning_that_memory_does_not_allow_is_noted(
    shortened: Callable[[Any], list[str]],
) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    assert shortened(fails) == ["the network left as it is for lack of memory"]


# ---- Networks that fail ------------------------------------------------------------------------


@dataclass(frozen=True)
class FailingConfig:
    error: Exception = RuntimeError()  # noqa: RUF009


class Failing(nn.Module):
    stride = (1, 1, 1)

    def __init__(self, config: FailingConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, patch: Tensor) -> Tensor:
        raise self.config.error


@pytest.fixture(autouse=True)
def failing_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "failing", Architecture(Failing, FailingConfig))


def failing_with(error: Exception) -> Denoiser:
    method = replace(METHOD, network="failing", network_config={"error": error})
    return denoiser(method=method, steps=3)


@pytest.mark.parametrize("seconds", [math.inf, 1000.0])  # the first to meet it differs
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_too_little_memory_is_an_error_of_the_stack_that_says_what_to_do(
    kind: type[Exception], seconds: float, paths: StackPaths
) -> None:
    message = error_of(failing_with(kind("out of memory")), paths, seconds)
    assert "out of memory" in message
    assert "--device" in message


def test_an_unexpected_error_is_one_of_the_stack_and_not_of_the_job(paths: StackPaths) -> None:
    message = error_of(failing_with(RuntimeError("cuDNN is tired")), paths)
    assert "unexpected RuntimeError: cuDNN is tired" in message
    assert "report" in message


def test_weights_that_are_no_numbers_give_an_error_and_no_result(paths: StackPaths) -> None:
    record = StackRecord(file="x.tif")
    spoilt = denoiser(checkpoint=checkpoint(math.nan), steps=12)
    with pytest.raises(StackError, match=r"^x\.tif: the network gave values that are not finite"):
        spoilt.denoise(paths, Budget(math.inf), record)
    assert (record.stopped_by, record.steps_skipped) == ("divergence", 10)
    assert list(paths.target.parent.iterdir()) == []


def test_a_problem_found_with_the_file_is_raised_in_its_turn(paths: StackPaths) -> None:
    problem = replace(paths, problem="x.tif: rename it")
    assert error_of(denoiser(checkpoint=checkpoint()), problem) == "x.tif: rename it"
