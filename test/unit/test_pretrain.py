"""Pretraining as a user runs it: recipe, resume, signals, several processes, what it writes."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from lab.pretrain import main
from lab.recipes import RECIPES, Recipe, Sides
from lab.recordings import Ask, Example
from lab.resume import load_run
from lab.trainer import MAX_BAD_STEPS, Trainer, TrainError, example_loss, masked_input
from lab.training_run import COLUMNS, Curve
from lab.validation import ValidationSet
from model.architectures import ARCHITECTURES
from model.architectures.restormer3d import Restormer3DConfig
from model.blindspot import blindspot_loss
from model.checkpoint import load_network, read_checkpoint
from model.config import METHODS, Method
from model.device import Device, pick_device

ROOT = Path(__file__).resolve().parents[2]
CPU = Device(torch_device=torch.device("cpu"), name="CPU", reason="test")
TINY = Recipe(curriculum=((6, (6, 8, 8)),), batch=2, warm_up=2, ramp=2)


class Noise:
    """A source of recordings that cost nothing."""

    def recording(self, slot: int, number: int) -> "Noise":
        return self

    def draw(self, ask: Ask, rng: np.random.Generator) -> Example:
        values = torch.from_numpy(rng.normal(size=(3, *ask.patch)).astype(np.float32))
        target = values[1:2] if ask.target_draws else None
        return Example(noisy=values[:1], target=target, median=values[2:, :1])


class Broken(Noise):
    def draw(self, ask: Ask, rng: np.random.Generator) -> Example:
        return replace(super().draw(ask, rng), noisy=torch.full((1, *ask.patch), torch.nan))


def trainer(recipe: Recipe = TINY, source: Noise | None = None) -> Trainer:
    return Trainer("restormer3d", recipe, [(source or Noise(), 1.0)], CPU)


def small_method() -> Method:
    return replace(METHODS["restormer3d"], network_config=asdict(Restormer3DConfig.tiny()))


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "restormer3d", small_method())


@pytest.fixture
def quick_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation set of one small case instead of twelve windows."""
    monkeypatch.setattr("lab.validation.NUM_MOVIES", 1)
    monkeypatch.setattr("lab.validation.SHAPE", (16, 32, 32))
    monkeypatch.setattr("lab.validation.WINDOW", (slice(4, 10), slice(8, 16), slice(8, 16)))


@pytest.fixture
def small_movies(monkeypatch: pytest.MonkeyPatch) -> None:
    for method, recipe in RECIPES.items():
        monkeypatch.setitem(RECIPES, method, replace(recipe, recording=(16, 32, 32)))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


# ---- The recipe -------------------------------------------------------------------------------


def test_the_learning_rate_rises_then_falls_to_its_end() -> None:
    recipe = RECIPES["restormer3d"]
    rates = [recipe.learning_rate_at(step) for step in range(recipe.steps)]
    assert max(rates) == pytest.approx(recipe.learning_rate)
    assert rates.index(max(rates)) in (recipe.ramp - 1, recipe.ramp)
    assert rates[-1] == pytest.approx(recipe.final_learning_rate, rel=0.1)


def test_the_curriculum_changes_patches_where_it_says() -> None:
    recipe = Recipe(curriculum=((2, (6, 8, 8)), (1, (8, 16, 16))))
    assert [recipe.patch_at(step) for step in range(3)] == [(6, 8, 8), (6, 8, 8), (8, 16, 16)]
    with pytest.raises(ValueError, match="3"):
        recipe.patch_at(3)


# ---- One iteration ----------------------------------------------------------------------------


def test_hidden_voxels_never_keep_their_value_and_all_others_do() -> None:
    example = Noise().draw(Ask(patch=(8, 8, 8), target_draws=0, median=False), _rng())
    filled, (coords,) = masked_input([example], [1], TINY)
    is_hidden = torch.zeros(8, 8, 8, dtype=torch.bool)
    is_hidden[tuple(coords[:, 1:].T)] = True
    assert int(is_hidden.sum()) == 8  # 512 voxels, 1 in 64
    changed = filled[0, 0] != example.noisy[0]
    assert torch.equal(changed, is_hidden)


def test_without_a_target_only_the_hidden_voxels_count() -> None:
    example = Noise().draw(Ask(patch=(8, 8, 8), target_draws=0, median=False), _rng())
    _, (coords,) = masked_input([example], [1], TINY)
    prediction = torch.zeros(1, 1, 8, 8, 8)
    loss = example_loss(prediction, example, coords, 0.25)
    assert loss == blindspot_loss(prediction, example.noisy[None], coords)


def test_with_a_target_all_voxels_count_and_the_hidden_ones_once_more() -> None:
    example = Noise().draw(Ask(patch=(8, 8, 8), target_draws=1, median=False), _rng())
    assert example.target is not None
    _, (coords,) = masked_input([example], [1], TINY)
    prediction = torch.zeros(1, 1, 8, 8, 8)
    squares = example.target[0].square()
    wanted = squares.mean() + 0.25 * squares[tuple(coords[:, 1:].T)].mean()
    assert example_loss(prediction, example, coords, 0.25) == pytest.approx(float(wanted))


@pytest.mark.parametrize("target", [None, 3.0])
def test_the_logarithm_is_of_each_example(target: float | None) -> None:
    """A thousandth of the brightness, all else equal: the same gradient in decibels."""
    run = trainer(replace(TINY, loss="log", warm_up=0))
    run._predict = lambda noisy: 0.5 * noisy  # type: ignore[method-assign]
    noisy = torch.rand(1, 6, 8, 8)
    examples = [
        Example(
            noisy=scale * noisy,
            target=None if target is None else target * scale * noisy,
            median=None,
        )
        for scale in (1.0, 1e-3)
    ]
    bright, dark = (float(run._loss([example], [0])) for example in examples)
    assert dark == pytest.approx(bright + 2 * math.log(1e-3), rel=1e-4)
    assert float(run._loss(examples, [0, 0])) == pytest.approx(bright + dark, rel=1e-5)


@torch.no_grad()
def test_the_logarithm_of_odd_frames_against_even_ones_is_of_each_example() -> None:
    run = trainer(replace(TINY, objective="odd_even", loss="log", warm_up=0))
    plain = trainer(replace(TINY, objective="odd_even", loss="l2", warm_up=0))
    examples = [Noise().draw(Ask(patch=(12, 8, 8), target_draws=1, median=False), _rng(seed))
                for seed in (1, 2)]  # fmt: skip
    errors = [float(plain._loss([example], [0])) for example in examples]
    both = [0, 0]
    assert float(plain._loss(examples, both)) == pytest.approx(sum(errors), rel=1e-5)
    logarithm = sum(map(math.log, errors))
    assert float(run._loss(examples, both)) == pytest.approx(logarithm, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("objective", "loss"), [("odd_even", "l1"), ("noise2void", "l1")])
def test_a_loss_that_the_objective_does_not_take_is_refused(objective: str, loss: str) -> None:
    with pytest.raises(TrainError, match=f"loss {loss}: objective {objective} takes l2"):
        trainer(replace(TINY, objective=objective, loss=loss))  # type: ignore[arg-type]


def test_training_lowers_the_loss_on_what_repeats() -> None:
    class Constant(Noise):
        def draw(self, ask: Ask, rng: np.random.Generator) -> Example:
            return super().draw(ask, _rng())

    run = trainer(replace(TINY, curriculum=((12, (6, 8, 8)),), warm_up=0), Constant())
    losses = [run.advance() for _ in range(12)]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])


def test_a_loss_that_is_not_finite_changes_nothing_and_ten_stop_the_run() -> None:
    run = trainer(replace(TINY, curriculum=((20, (6, 8, 8)),)), Broken())
    before = {name: value.clone() for name, value in run.net.state_dict().items()}
    for _ in range(MAX_BAD_STEPS - 1):
        assert np.isnan(run.advance())
    assert run.num_bad == MAX_BAD_STEPS - 1
    with pytest.raises(TrainError, match="10 times in a row"):
        run.advance()
    for name, value in run.net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_bfloat16_trains_to_nearly_the_same_loss() -> None:
    full, half = trainer(), trainer(replace(TINY, precision="bf16"))
    assert half.advance() == pytest.approx(full.advance(), rel=0.05)


def test_a_frozen_norm_goes_by_the_averages_it_began_with_and_learns_the_rest() -> None:
    def run(*, frozen_norm: bool) -> Trainer:
        recipe = replace(RECIPES["unet3d"], batch=2, curriculum=((3, (8, 8, 8)),), ramp=1)
        own = replace(recipe, frozen_norm=frozen_norm)
        return Trainer("unet3d", own, [(Noise(), 1.0)], CPU)

    for frozen_norm in (False, True):
        one = run(frozen_norm=frozen_norm)
        before = {name: value.clone() for name, value in one.net.state_dict().items()}
        one.advance()
        for name, value in one.net.state_dict().items():
            is_average = "running" in name or "batches" in name
            assert torch.equal(value, before[name]) == (is_average and frozen_norm), name
    # so what it answers while it learns is what it answers in use
    patch = torch.randn(2, 1, 8, 8, 8)
    assert torch.equal(one.net(patch), one.net.eval()(patch))


# ---- Runs -------------------------------------------------------------------------------------

RUN = ["restormer3d", "--curriculum", "4:6x8x8", "--batch", "2", "--warm-up", "1",
       "--device", "cpu", "--validate-every", "2"]  # fmt: skip


@pytest.mark.usefixtures("quick_validation", "small_movies")
def test_a_run_put_down_and_taken_up_gives_the_same_curve_and_weights(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert main([*RUN, "--out", str(whole)]) == 0
    for _ in range(4):  # each time one iteration
        assert main([*RUN, "--out", str(parts), "--hours", "0"]) == 0
    for name, value in weights_of(whole).items():
        assert torch.equal(value, weights_of(parts)[name]), name
    curves = [_curve(path) for path in (whole, parts)]
    assert curves[0] == curves[1]
    assert [row["step"] for row in curves[0]] == ["2", "4"]
    assert whole.with_suffix(".png").stat().st_size > 1000


@pytest.mark.usefixtures("quick_validation", "small_movies")
def test_the_best_weights_are_a_checkpoint_of_the_method(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert main([*RUN, "--out", str(out)]) == 0
    checkpoint = read_checkpoint(out, "restormer3d")
    assert checkpoint.provenance["recipe"]["batch"] == 2
    assert set(checkpoint.provenance["validation"]) == {"1", "2", "3"}
    load_network(checkpoint)


@pytest.mark.usefixtures("quick_validation", "small_movies")
def test_files_to_resume_from_are_small_and_old_ones_go(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    for _ in range(2):
        assert main([*RUN, "--out", str(out), "--hours", "0"]) == 0
    files = list((tmp_path / "out.resume").iterdir())
    assert max(file.stat().st_size for file in files) < 15e6
    named = json.loads((tmp_path / "out.resume" / "state.json").read_text())["files"]
    assert {file.name for file in files} == {"state.json"}.union(*named.values())


@pytest.mark.usefixtures("quick_validation", "small_movies")
def test_a_full_disk_ends_the_run_with_a_reason_and_leaves_what_was_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    assert main([*RUN, "--out", str(out), "--validate-every", "1", "--hours", "0"]) == 0
    before = out.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lab.training_run.curve_figure", full)
    assert main([*RUN, "--out", str(out), "--validate-every", "1"]) == 1
    assert "No space left on device; what was saved last stays" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.usefixtures("quick_validation", "small_movies")
def test_a_run_begun_with_other_numbers_is_not_taken_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out.safetensors")]
    assert main([*RUN, *out, "--hours", "0"]) == 0
    assert main([*RUN, *out, "--hours", "0", "--learning-rate", "0.5"]) == 1
    assert "learning_rate = 0.001, asked for is 0.5" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_validation", "small_movies")
def test_a_run_can_start_from_other_weights(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert main([*RUN, "--out", str(first)]) == 0
    still = [*RUN, "--learning-rate", "0", "--out", str(second), "--start-from", str(first)]
    assert main(still) == 0
    for name, value in weights_of(first).items():
        # the final learning rate is not 0
        assert torch.allclose(value, weights_of(second)[name], atol=1e-4), name


@pytest.mark.usefixtures("quick_validation", "small_movies")
def test_weights_of_another_size_are_no_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert main([*RUN, "--out", str(first)]) == 0
    run = [*RUN, "--out", str(second), "--start-from", str(first), "--network", "dim=16"]
    assert main(run) == 1
    assert "--start-from: weights of another size" in capsys.readouterr().err
    assert not second.exists()


def test_a_norm_that_has_averaged_nothing_yet_is_not_frozen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert main([*RUN, "--out", str(out), "--frozen-norm"]) == 1
    assert "--frozen-norm" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_without_stacks_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*RUN, "--out", str(tmp_path / "out.safetensors"), "--data"]
    assert main([*run, str(tmp_path)]) == 1
    assert f"{tmp_path}: no .tif" in capsys.readouterr().err
    assert main([*run, str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("wanted, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_first(tmp_path: Path, wanted: signal.Signals, code: int) -> None:
    out = tmp_path / "out.safetensors"
    command = [sys.executable, "-m", "lab.pretrain", *RUN, "--out", str(out),
               "--curriculum", "100000:6x8x8", "--validate-every", "100000"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "iterations" in process.stdout.readline()
    time.sleep(1.0)
    process.send_signal(wanted)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == code
    assert "put down at iteration" in said
    assert json.loads((tmp_path / "out.resume" / "state.json").read_text())["step"] > 0


ONE_OF_TWO = """
import pathlib, sys
import torch.distributed as dist
sys.path[:0] = sys.argv[1:3]
import test_pretrain as tests
from lab.resume import save_run
dist.init_process_group("gloo")
tests.METHODS["restormer3d"] = tests.small_method()
run = tests.trainer(tests.FOUR_AT_A_TIME)
tests.advance_all(run)
if run.rank == 0:
    save_run(pathlib.Path(sys.argv[3]), run.step, run.parts(), {})
dist.destroy_process_group()
"""
FOUR_AT_A_TIME = replace(TINY, batch=4)


def advance_all(run: Trainer) -> None:
    for _ in range(run.recipe.steps):
        run.advance()


@pytest.mark.slow
def test_two_processes_give_what_one_does_with_the_whole_batch(tmp_path: Path) -> None:
    alone = trainer(FOUR_AT_A_TIME)
    start = {name: value.clone() for name, value in alone.net.state_dict().items()}
    advance_all(alone)
    script, saved = tmp_path / "one_of_two.py", tmp_path / "together"
    script.write_text(ONE_OF_TWO)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script), str(ROOT), str(Path(__file__).parent), str(saved)],
        check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    loaded = load_run(saved)
    assert loaded is not None
    together = loaded[0]["average"]
    apart = {name: float((value - together[name]).abs().max())
             for name, value in alone.average.state_dict().items()}  # fmt: skip
    moved = max(float((together[name] - start[name]).abs().max()) for name in start)
    assert max(apart.values()) < 1e-5 < 1e-2 * moved


# ---- Validation -------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_validation")
def test_validation_scores_an_identity_as_the_noisy_recording() -> None:
    chosen = ValidationSet("restormer3d")
    scores = chosen.score(torch.nn.Identity(), pick_device("cpu"))
    assert list(scores) == [1, 2, 3]
    assert scores[1] > scores[2] > scores[3]
    again = ValidationSet("restormer3d").score(torch.nn.Identity(), pick_device("cpu"))
    assert scores == again


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _curve(out: Path) -> list[dict[str, str]]:
    with out.with_suffix(".csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


# ---- Objectives -------------------------------------------------------------------------------


def small_trainer(method: str, monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> Trainer:
    tiny = asdict(ARCHITECTURES[METHODS[method].network].config.tiny())
    monkeypatch.setitem(METHODS, method, replace(METHODS[method], network_config=tiny))
    return Trainer(method, recipe, [(Noise(), 1.0)], CPU)


@pytest.mark.parametrize("method", RECIPES)
def test_every_method_with_a_recipe_trains(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPES[method], curriculum=((3, (8, 16, 16)),), batch=2)
    run = small_trainer(method, monkeypatch, recipe)
    start = {name: value.clone() for name, value in run.net.state_dict().items()}
    assert all(np.isfinite(run.advance()) for _ in range(3))
    assert any(not torch.equal(value, start[name]) for name, value in run.net.state_dict().items())


def test_odd_frames_are_asked_to_predict_even_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    class Asked(Noise):
        def draw(self, ask: Ask, rng: np.random.Generator) -> Example:
            asked.append(ask.patch)
            frames = torch.arange(float(ask.patch[0])).view(1, -1, 1, 1)
            return Example(noisy=frames.expand(1, *ask.patch), target=None, median=None)

    recipe = replace(RECIPES["unet_att"], curriculum=((1, (8, 8, 8)),), precision="fp32")
    run = small_trainer("unet_att", monkeypatch, recipe)
    run.pools[0].sources = [(Asked(), 1.0)]
    run._predict = lambda noisy: noisy + 1.0  # type: ignore[method-assign]
    assert float(run._loss([run.pools[0].draw(0, _ask((16, 8, 8)))[0]], [0])) == 0.0
    assert asked == [(16, 8, 8)]


def test_even_frames_of_other_draws_are_the_target_where_there_are_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = replace(RECIPES["unet_att"], curriculum=((1, (4, 8, 8)),))
    run = small_trainer("unet_att", monkeypatch, recipe)
    run._predict = lambda noisy: noisy  # type: ignore[method-assign]
    noisy = torch.zeros(1, 8, 8, 8)
    target = noisy.clone()
    target[:, 1::2] = 3.0  # half of 3 and half of 9
    example = Example(noisy=noisy, target=target, median=None)
    assert float(run._loss([example], [0])) == pytest.approx(6.0)
    assert float(run._loss([replace(example, target=None)], [0])) == 0.0


def test_statistics_of_batch_norm_are_averaged_with_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The average is young: its decays are 1/10 and 2/11."""
    recipe = replace(RECIPES["unet3d"], curriculum=((2, (8, 16, 16)),), average_decay=0.5)
    run = small_trainer("unet3d", monkeypatch, recipe)
    seen = []
    for _ in range(2):
        run.advance()
        seen.append({name: value.clone() for name, value in run.net.named_buffers()})
    for name, kept in run.average.named_buffers():
        if name.endswith("running_mean"):
            first = 0.9 * seen[0][name]
            expected = first + (1 - 2 / 11) * (seen[1][name] - first)
            torch.testing.assert_close(kept, expected)
        if name.endswith("num_batches_tracked"):
            assert int(kept) == 2


@pytest.mark.parametrize("loss, wanted", [("l1", 2.0), ("l2", 4.0), ("log", math.log(4.03))])
def test_pairs_compare_all_voxels_with_the_target(
    monkeypatch: pytest.MonkeyPatch, loss: str, wanted: float
) -> None:
    recipe = replace(RECIPES["niddl"], loss=loss, curriculum=((1, (1, 8, 8)),))  # type: ignore[arg-type]
    run = small_trainer("niddl", monkeypatch, recipe)
    noisy = torch.rand(1, 1, 8, 8)
    example = Example(noisy=noisy, target=noisy - 2.0, median=None)
    run._predict = lambda noisy: noisy  # type: ignore[method-assign]
    assert float(run._loss([example], [0])) == pytest.approx(wanted)


@pytest.mark.parametrize(("patch", "half"), [((4, 1, 32), "courses"), ((4, 8, 8), "images")])
def test_courses_and_images_teach_a_half_of_the_network_each(
    monkeypatch: pytest.MonkeyPatch, patch: Sides, half: str
) -> None:
    class Factors(Noise):
        def draw(self, ask: Ask, rng: np.random.Generator) -> Example:
            channels = 3 if ask.patch[1] == 1 else 1
            noisy = torch.from_numpy(rng.normal(size=(channels, *ask.patch)).astype(np.float32))
            return Example(noisy=noisy, target=noisy[:1] / 2, median=None)

    recipe = replace(RECIPES["lowrank_unet"], curriculum=((2, patch),), batch=2)
    run = small_trainer("lowrank_unet", monkeypatch, recipe)
    for pool in run.pools:
        pool.sources = [(Factors(), 1.0)]
    start = {name: value.clone() for name, value in run.net.state_dict().items()}
    run.advance()
    run.advance()
    changed = {
        name.split(".")[0]
        for name, value in run.net.state_dict().items()
        if not torch.equal(value, start[name])
    }
    assert changed == {half}


def test_data_of_the_wrong_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out.safetensors"), "--device", "cpu"]
    assert main(["niddl", *out, "--data", str(tmp_path)]) == 1
    assert "takes --pairs, not --data" in capsys.readouterr().err
    assert main(["restormer3d", *out, "--pairs", str(tmp_path)]) == 1
    assert "takes --data, not --pairs" in capsys.readouterr().err


def _ask(patch: tuple[int, int, int]) -> Ask:
    return Ask(patch=patch, target_draws=0, median=False)


def test_without_what_draws_pictures_the_curve_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as where it is not installed
    row = dict.fromkeys(COLUMNS, 1.0)
    Curve(tmp_path / "curve.csv", [row]).write()
    assert (tmp_path / "curve.csv").read_text().startswith("step,loss")
    assert "no picture of the curve" in caplog.text
