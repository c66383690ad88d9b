"""Every number of a run: the operator's settings and the table of methods.

Nothing here computes; a change of a published number belongs on this page and in the commit.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

PLATFORM_SECONDS = 1140.0  # the platform's 20 minutes less a margin for start-up and the upload


@dataclass(frozen=True, kw_only=True)
class NormaliseConfig:
    """Percentiles of the whole stack that become 0 and 1; nothing is clipped."""

    low_percentile: float = 0.5
    high_percentile: float = 99.5


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Noise2Void's blind spots."""

    cell: tuple[int, int, int] = (4, 4, 4)  # one masked voxel per cell: 1/64, the article's density
    radius: int = 2  # a masked voxel takes the value of a neighbour at most this far away


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of adaptation with one loss."""

    kind: Literal["warm_up", "blindspot", "odd_even"]
    steps: int
    learning_rate: float
    final_learning_rate: float | None = None  # cosine over the stage down to this; None: constant


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How a network is adapted to one stack."""

    patch: tuple[int, int, int] = (32, 64, 64)
    batch: int = 1
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0  # global norm
    average_decay: float = 0.995  # of the moving average of a checkpoint's weights, an iteration
    judge_patches: int = 8  # on which what was adapted must beat the checkpoint; 0: not judged
    mask: MaskConfig = field(default_factory=MaskConfig)


# Of the networks' inference; windowed ones adapt in fp32.
Precision = Literal["fp32", "bf16", "fp16"]
BlendWindow = Literal["hann", "gaussian", "flat", "centre"]


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """Sliding windows of inference; tuples are [T,H,W]."""

    size: tuple[int, int, int] = (32, 64, 64)  # as in training where the result depends on it
    shrinks: bool = False  # to the length of a shorter axis, instead of mirroring that up to size
    overlap: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of neighbours, as a part of the size
    # How neighbours are joined: weighted sums, or "centre": each keeps what it is nearest to.
    windows: tuple[BlendWindow, BlendWindow, BlendWindow] = ("hann", "gaussian", "gaussian")
    mirror_time: bool = True  # half a window at both ends, so that no frame is at a window's rim
    # Tried in turn when the time left is too short for the one before: about 1, 1/2, 1/3 and 1/5
    # of the windows where the overlap is 0.5.
    reduced_overlaps: tuple[float, ...] = (0.375, 0.25, 0.125)
    largest_batch: int = 16  # windows at a time on a GPU; beyond, nothing is gained

    @property
    def largest_overlap(self) -> float:
        """Of the three axes."""
        return max(self.overlap)


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Rigid shifts of a recording's frames; lengths in pixels."""

    largest: int = 15  # shift that is looked for; an eighth of the side where that is less
    least: float = 0.15  # root of the mean square, below which frames stay as they are
    agreement: float = 0.7  # correlation of the shifts that two halves of the pixels tell of
    tile: int = 16  # side of the squares that these halves are made of
    blur: float = 1.0  # before derivatives
    wide: float = 8.0  # what is so wide says little of where it is
    steady_frames: float = 8.0  # over which a doubtful shift is averaged
    doubt: float = 6.0  # deviations of the noise
    least_strength: float = 0.3  # of a frame, over the mean's
    least_side: int = 32  # of a frame; smaller ones are taken for still
    memory_share: float = 0.4  # of what is left, that still frames may take


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """How the network for images goes on learning from the recording it is to denoise."""

    steps: int = 80  # iterations
    learning_rate: float = 1e-4
    ramp: int = 20  # iterations until it is reached
    average_decay: float = 0.98  # of the moving average of the weights, which is what denoises
    blocks: int = 3  # an iteration, and of each the mean and
    images: int = 11  # others at most
    most_blocks: int = 100  # of the recording, that are looked at, but
    least_rows: int = 4  # of blocks, where there are more
    least_blocks: int = 4  # to learn from, and as many to judge by, or it is left as it is
    least_agreement: float = 0.9  # of both halves of the frames, with fast signals allowed for
    least_frames: int = 64
    judged: float = 0.25  # part of the field, at its end, that shows whether it has helped


BLOCK_STEP = 4  # pixels, that the sides of blocks are multiples of, for networks to halve twice


@dataclass(frozen=True, kw_only=True)
class LowRankConfig:
    """Denoising by the recording's own principal components; lengths in frames and pixels."""

    block: int = 24  # about two cells wide
    other_blocks: tuple[int, ...] = ()  # sizes of which the mean is taken, where time allows
    overlaps: tuple[float, ...] = (0.5, 0.25, 0.125)  # the smaller ones where time is too short
    time_sigma: float = 4.0  # components are looked for after this blur, a quarter of T at most,
    space_sigmas: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4)  # and one of these; then in what is left
    # after other blurs in time and space, where a sample shows that it is worthwhile
    later_looks: tuple[tuple[float, float], ...] = (
        (4.0, 1.4), (4.0, 2.8), (16.0, 2.8), (32.0, 4.0), (2.0, 1.4), (1.0, 2.8),
    )  # fmt: skip
    # Single events are looked for place by place, after a blur in time and each of these in space,
    scan_time_sigma: float = 3.0
    scan_space_sigmas: tuple[float, ...] = (1.0, 2.0)  # where a sample shows that it has any
    scan_deviations: float = 4.0  # of what noise reaches, over the mean, for them
    mean_sigmas: tuple[float, ...] = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.6, 2.0, 2.5)
    spectrum_smoothing: float = 4.0  # frequencies over which a course's spectrum is averaged
    threshold_margin: float = 1.02  # over the greatest component of noise alone,
    threshold_rounds: int = 2  # measured so often, each time with less of the signals in it
    wide_margin: float = 1.1  # the same for courses of the whole field
    later_deviations: float = 2.5  # of what noise reaches, over the mean, for later looks:
    noise_orders: int = 3  # measured with its frames in so many orders
    sampled_blocks: int = 12  # on which the spatial blur is chosen
    probe: float = 0.3  # of Stein's estimate, in deviations of the noise
    motion: MotionConfig = field(default_factory=MotionConfig)
    teach: TeachConfig | None = None  # None: a network, if there is one, stays as it is

    def other_sizes(self, field: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes of blocks beside the first for a field [H,W], none larger than that.

        In the order of their worth.
        """
        whole = min(field) // BLOCK_STEP * BLOCK_STEP
        fit = dict.fromkeys(min(size, whole) for size in self.other_blocks)
        return tuple(size for size in fit if size and size != self.block)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One published system: its network and what one run does with it."""

    network: str = ""  # a key of ARCHITECTURES; none: low rank is all
    low_rank: LowRankConfig | None = None  # factors first; a network denoises their images
    network_config: Mapping[str, Any] = field(default_factory=dict)  # where it is not the default
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    checkpoint: Literal["wanted", "required", "never"] = "wanted"
    stages: tuple[Stage, ...] = ()  # from a checkpoint; none: the method cannot adapt
    scratch_stages: tuple[Stage, ...] = ()  # without one
    tile: TileConfig = field(default_factory=TileConfig)
    # Inference in bf16 costs less than 0.02 dB at all noise levels, so it is taken where it is
    # faster. Measured for each method that says so (README).
    takes_bf16: bool = False
    # Largest memory per voxel of a patch or window, from which batches are chosen. In training with
    # none, one, two and so on of the network's finest levels computed again where it is short.
    training_bytes_per_voxel: tuple[int, ...] = (0,)
    inference_bytes_per_voxel: int = 0


def _niddl(arch: str) -> Method:
    return Method(
        network="niddl",
        network_config={"arch": arch},
        checkpoint="required",
        tile=TileConfig(
            size=(8, 1024, 1024), shrinks=True, overlap=(0.0, 0.125, 0.125),
            windows=("flat", "gaussian", "gaussian"), mirror_time=False,
        ),
        training_bytes_per_voxel=(4_000,),
        inference_bytes_per_voxel=1_500,
    )  # fmt: skip


METHODS: dict[str, Method] = {
    "restormer3d": Method(
        network="restormer3d",
        stages=(Stage(kind="blindspot", steps=800, learning_rate=1e-4),),
        scratch_stages=(
            Stage(kind="warm_up", steps=400, learning_rate=3e-4),
            Stage(kind="blindspot", steps=4000, learning_rate=3e-4, final_learning_rate=1e-6),
        ),
        takes_bf16=True,
        training_bytes_per_voxel=(50_000, 33_000, 27_000, 25_000),
        inference_bytes_per_voxel=6_000,
    ),
    # Zero-shot: 400 + 4000 iterations on every stack, which end in the noise to be subtracted.
    "dvt_unet3d": Method(
        network="dvt_unet3d",
        checkpoint="never",
        adapt=AdaptConfig(batch=2, weight_decay=0.0),
        scratch_stages=(
            Stage(kind="warm_up", steps=400, learning_rate=4e-4),
            Stage(kind="blindspot", steps=4000, learning_rate=4e-4, final_learning_rate=1e-5),
        ),
        tile=TileConfig(windows=("gaussian", "gaussian", "gaussian")),
        training_bytes_per_voxel=(6_000,),
        inference_bytes_per_voxel=2_000,
    ),
    # A checkpoint as it is; --steps adapts it.
    "unet3d": Method(
        network="unet3d",
        checkpoint="required",
        normalise=NormaliseConfig(low_percentile=3.0, high_percentile=97.0),
        adapt=AdaptConfig(patch=(16, 64, 64), batch=4, weight_decay=0.0),
        stages=(Stage(kind="blindspot", steps=0, learning_rate=1e-4),),
        tile=TileConfig(
            size=(32, 128, 128), shrinks=True, overlap=(0.125, 0.125, 0.125),
            windows=("flat", "flat", "flat"), mirror_time=False,
        ),
        training_bytes_per_voxel=(4_000,),
        inference_bytes_per_voxel=1_500,
    ),
    "unet_att": Method(
        network="unet_att",
        # From the least voxel, so that 0 is darkness; a gain of 1, as published, would leave raw
        # counts, on which the square of the error drowns its absolute value.
        normalise=NormaliseConfig(low_percentile=0.0, high_percentile=99.5),
        adapt=AdaptConfig(patch=(256, 64, 64), weight_decay=0.0),
        stages=(Stage(kind="odd_even", steps=0, learning_rate=5e-5),),
        scratch_stages=(
            Stage(kind="odd_even", steps=4000, learning_rate=5e-4, final_learning_rate=5e-6),
        ),
        tile=TileConfig(
            size=(512, 64, 64), shrinks=True, overlap=(0.25, 0.25, 0.25),
            windows=("centre", "centre", "centre"), mirror_time=False,
        ),
        training_bytes_per_voxel=(2_500,),
        inference_bytes_per_voxel=1_000,
    ),
    # Supervised: every frame by itself, as it was learned from pairs of a low and a high signal.
    "niddl": _niddl("hourglass_wres"),
    "niddl_unet": _niddl("unet_fixed"),
    # Our own: the whole recording at once.
    "lowrank": Method(checkpoint="never", low_rank=LowRankConfig()),
    "lowrank_unet": Method(
        network="factor_net", checkpoint="required",
        low_rank=LowRankConfig(other_blocks=(56, 16), teach=TeachConfig()),
        takes_bf16=True,
        training_bytes_per_voxel=(6_000,),
    ),
}  # fmt: skip


# What --method auto takes: the first whose checkpoint is at hand; the second for stacks too short
# for the first, and where the operator asks for what the second alone can do.
AUTO = ("lowrank_unet", "restormer3d")


class UsageError(ValueError):
    """The command line or the environment asks for something that does not exist."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message}; see --help")


def _knob(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A field the operator may set, by flag or by a DENOISE_ variable."""
    return field(default=default, metadata={"help": help, "choices": choices})


def _number_of_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, 0 or more")
    return value


def _yes_or_no(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
    return known[text.lower()]


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, 0 or more")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the operator may set; a flag beats its DENOISE_ variable beats the default."""

    input_dir: Path = _knob(Path("/input"), "folder with the noisy stacks")
    output_dir: Path = _knob(Path("/output"), "folder for the results")
    method: str = _knob(
        "auto",
        f"which system denoises; auto: {AUTO[0]}, or {AUTO[1]} with --steps or --precision",
        ("auto", *METHODS),
    )
    steps: int | None = _knob(
        None, "adaptation iterations per stack instead of the method's own; 0: the checkpoint as is"
    )
    time_limit: float | None = _knob(
        None,
        "seconds for the whole job, 0: none (default: "
        f"{PLATFORM_SECONDS:.0f} for input laid out the platform's way, else none)",
    )
    device: str = _knob("auto", "where to compute", ("auto", "cpu", "cuda"))
    precision: str = _knob(
        "auto",
        "of the networks' inference; windowed ones adapt in fp32",
        ("auto", *get_args(Precision)),
    )
    seed: int = _knob(0, "seed of every random choice; the same for each stack")
    overwrite: bool = _knob(
        False, "make anew what an earlier job with the same settings left in the output folder"
    )
    normalise_together: bool = _knob(
        False, "take the stacks of a folder for parts of one recording, so that they join"
    )
    log_level: str = _knob("info", "how much to say", ("debug", "info", "warning", "error"))
    pictures: bool = _knob(
        False,
        "a picture of every stack that is denoised, in the output's folder pictures: recorded, "
        "denoised, and what was taken out",
    )
    keep_brightness: bool = _knob(
        False,
        "unet_att: multiply every window by the root of noisy over denoised brightness, which its "
        "published code offers",
    )
    mean_image: str = _knob(
        "recording",
        "of the methods with windows: the result's mean over time is the recording's own, as far "
        "as its noise allows, or as the network gives it, as published",
        ("recording", "network"),
    )
    stretch_16bit: bool = _knob(
        False,
        "unet_att: write 16 bits that span the result's least to greatest voxel, as its "
        "published code",
    )
    weights: Path | None = _knob(
        None, "folder of checkpoints (default: /opt/ml/model if it holds one, else the shipped one)"
    )

    @classmethod
    def parse(cls, argv: Sequence[str], env: Mapping[str, str]) -> RunConfig:
        """Settings from the command line and the environment.

        Raises UsageError for an unknown flag, variable or value; SystemExit(0) after --help.
        """
        types: dict[str, Callable[[str], Any]] = {
            "input_dir": Path, "output_dir": Path, "weights": Path, "seed": _whole_number,
            "steps": _whole_number, "time_limit": _number_of_seconds,
        }  # fmt: skip
        known = {f"DENOISE_{knob.name.upper()}": knob.name for knob in fields(cls)}
        if strays := sorted(k for k in env if k.startswith("DENOISE_") and k not in known):
            raise UsageError(f"unknown settings {', '.join(strays)}; known: {', '.join(known)}")
        parser = _Parser(
            prog="process.py",
            description="Denoise every two-photon stack in a folder.",
            epilog="Each flag also as DENOISE_... in the environment, e.g. DENOISE_TIME_LIMIT=0.",
            allow_abbrev=False,
        )
        for knob in fields(cls):
            # a switch may stand alone, or have a value as its variable has
            is_switch = knob.type == "bool"
            extra: dict[str, Any] = {"nargs": "?", "const": True} if is_switch else {}
            parser.add_argument(
                f"--{knob.name.replace('_', '-')}",
                type=_yes_or_no if is_switch else types.get(knob.name, str),
                **extra,
                choices=knob.metadata["choices"],
                default=knob.default,
                help=knob.metadata["help"].replace("%", "%%"),
            )
        # A variable is handed over as a flag before the real ones, so both are checked alike.
        flags = [
            f"--{name.replace('_', '-')}={env[key]}" for key, name in known.items() if key in env
        ]
        config = cls(**vars(parser.parse_args([*flags, *argv])))
        config._require_sense()
        return config

    def _require_sense(self) -> None:
        """Refuse what the chosen method would silently ignore."""
        method = METHODS[AUTO[1] if self.method == "auto" else self.method]
        if self.precision != "auto" and not method.network:
            raise UsageError(
                f"--precision {self.precision}: {self.method} has no network and computes in "
                "fp32; leave it out"
            )
        if self.mean_image != "recording" and (method.low_rank or self.method == "auto"):
            raise UsageError(
                f"--mean-image {self.mean_image} belongs to the methods with windows; name one of "
                "them with --method"
            )
        if self.steps and not method.stages + method.scratch_stages:
            raise UsageError(
                f"--steps {self.steps}: {self.method} does not adapt to a stack by iterations; "
                "leave it out"
            )
        for flag, is_set in (
            ("--keep-brightness", self.keep_brightness),
            ("--stretch-16bit", self.stretch_16bit),
        ):
            if is_set and self.method != "unet_att":
                raise UsageError(f"{flag} belongs to unet_att, not to {self.method}")
