"""The command line, its environment variables, and the numbers that were promised."""

from dataclasses import fields
from pathlib import Path

import pytest

from model.config import METHODS, RunConfig, UsageError

SWITCHES = [knob.name for knob in fields(RunConfig) if knob.type == "bool"]


def test_defaults_are_those_of_the_container() -> None:
    config = RunConfig.parse([], {})
    assert (config.input_dir, config.output_dir) == (Path("/input"), Path("/output"))
    assert (config.method, config.device, config.seed) == ("auto", "auto", 0)
    assert (config.steps, config.time_limit, config.weights) == (None, None, None)


def test_a_flag_beats_its_variable_which_beats_the_default() -> None:
    env = {"DENOISE_STEPS": "7", "DENOISE_SEED": "3", "PATH": "/bin"}
    config = RunConfig.parse(["--steps", "0"], env)
    assert (config.steps, config.seed) == (0, 3)


@pytest.mark.parametrize(
    ("argv", "env", "message"),
    [
        ([], {"DENOISE_STEP": "3"}, "unknown settings DENOISE_STEP; known: .*DENOISE_STEPS"),
        (["--speed", "3"], {}, "unrecognized arguments: --speed 3"),
        (["--step", "3"], {}, "unrecognized arguments"),  # no abbreviations to grow apart
        (["--steps", "-1"], {}, "steps: '-1' is no whole number, 0 or more"),
        ([], {"DENOISE_STEPS": "many"}, "steps: 'many' is no whole number, 0 or more"),
        (["--time-limit", "nan"], {}, "time-limit: 'nan' is no number of seconds, 0 or more"),
        (["--method", "unet9"], {}, "method: invalid choice: 'unet9'"),
        ([], {"DENOISE_DEVICE": "tpu"}, "device: invalid choice: 'tpu'"),
    ],
)
def test_a_wrong_setting_is_named(argv: list[str], env: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RunConfig.parse(argv, env)


def test_restormer3d_adapts_800_iterations_at_1e_4() -> None:
    (stage,) = METHODS["restormer3d"].stages
    assert (stage.kind, stage.steps, stage.learning_rate) == ("blindspot", 800, 1e-4)
    assert stage.final_learning_rate is None


def test_without_a_checkpoint_it_learns_400_and_4000_iterations() -> None:
    stages = METHODS["restormer3d"].scratch_stages
    assert [(stage.kind, stage.steps) for stage in stages] == [
        ("warm_up", 400),
        ("blindspot", 4000),
    ]


def test_restormer3d_normalises_by_the_published_percentiles() -> None:
    normalise = METHODS["restormer3d"].normalise
    assert (normalise.low_percentile, normalise.high_percentile) == (0.5, 99.5)


def test_the_plain_unet_scales_by_the_3rd_and_97th_percentile() -> None:
    percentiles = METHODS["unet3d"].normalise
    assert (percentiles.low_percentile, percentiles.high_percentile) == (3.0, 97.0)


def test_the_dvt_unet_learns_every_stack_from_scratch() -> None:
    method = METHODS["dvt_unet3d"]
    assert method.checkpoint == "never"
    stages = [(stage.kind, stage.steps) for stage in method.scratch_stages]
    assert stages == [("warm_up", 400), ("blindspot", 4000)]


def test_a_precision_is_refused_where_there_is_but_one() -> None:
    assert RunConfig.parse([], {}).precision == "auto"
    with pytest.raises(UsageError, match="lowrank has no network and computes in fp32"):
        RunConfig.parse(["--method", "lowrank", "--precision", "bf16"], {})


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize(
    "value, wanted",
    [(None, False), ("", True), ("no", False), ("0", False), ("False", False), ("1", True)],
)
def test_a_switch_stands_alone_or_has_a_value(name: str, value: str | None, wanted: bool) -> None:
    flag = f"--{name.replace('_', '-')}"
    flags = [] if value is None else [flag, value] if value else [flag]
    env = {f"DENOISE_{name.upper()}": value} if value else {}
    for config in (
        RunConfig.parse(["--method", "unet_att", *flags], {}),
        RunConfig.parse(["--method", "unet_att", *([] if env else flags)], env),
    ):
        assert getattr(config, name) is wanted


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_one_of_a_few_words(name: str) -> None:
    with pytest.raises(UsageError, match="'perhaps' is none of 1, true, yes, 0, false, no"):
        RunConfig.parse([], {f"DENOISE_{name.upper()}": "perhaps"})
