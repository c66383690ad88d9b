"""Runs process.py with one thing going wrong on the way:  python -m lab.inject FAULT [FLAGS ...].

What goes wrong is done to the process and the machine it sees, never to the program's own logic: a
signal in the middle of a stage, a request for memory that fails, a file that is gone. unet3d adapts
with smaller patches here and is judged by fewer, so that both take moments.
"""

from __future__ import annotations

import importlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from lab.limits import limit_more_data
from model.config import METHODS, RunConfig

Action = Callable[[RunConfig], None]
NOTHING = "nothing"  # goes wrong
SMALL_PATCH = (16, 32, 32)
SPARE_BYTES = 40 * 2**20  # that a process short of memory may still take


class Injector:
    """Acts when a function of the program is called, counted from a given stack on."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.stack = 0  # counted from 1
        self._count_stacks()

    @staticmethod
    def _replace(where: str, made: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put what `made` makes of a function or method, "module:name", in its place."""
        module, _, path = where.partition(":")
        holder: Any = importlib.import_module(module)
        *classes, name = path.split(".")
        for each in classes:
            holder = getattr(holder, each)
        setattr(holder, name, made(getattr(holder, name)))

    def _count_stacks(self) -> None:
        def made(denoise: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **kwargs: Any) -> Any:
                self.stack += 1
                return denoise(*args, **kwargs)

            return counted

        self._replace("model.pipeline:Denoiser.denoise", made)

    def at(self, where: str, action: Action, *, stack: int = 2, call: int = 1) -> None:
        """Act before one call of a function in one stack."""

        def made(function: Callable[..., Any]) -> Callable[..., Any]:
            calls = 0

            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += self.stack == stack
                if self.stack == stack and calls == call:
                    action(self.config)
                return function(*args, **kwargs)

            return counted

        self._replace(where, made)

    def returns(self, where: str, change: Callable[[Any], Any], *, stack: int = 2) -> None:
        """Change what a function gives in one stack."""

        def made(function: Callable[..., Any]) -> Callable[..., Any]:
            def changed(*args: Any, **kwargs: Any) -> Any:
                found = function(*args, **kwargs)
                return change(found) if self.stack == stack else found

            return changed

        self._replace(where, made)


# ---- What happens -----------------------------------------------------------------------------


def _terminate(_: RunConfig) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)  # the program's own thread ends it


def _kill(_: RunConfig) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail_to_allocate(_: RunConfig) -> NoReturn:
    import torch

    raise torch.OutOfMemoryError("out of memory, injected")


def _limit_memory(_: RunConfig) -> None:
    limit_more_data(SPARE_BYTES)


def _lose_second_recording(config: RunConfig) -> None:
    sorted(config.input_dir.iterdir())[1].unlink()


def _cut_second_recording(config: RunConfig) -> None:
    os.truncate(sorted(config.input_dir.iterdir())[1], 1000)


def _lose_output(config: RunConfig) -> None:
    shutil.rmtree(config.output_dir)


def _not_a_number(found: Any) -> Any:
    return found * float("nan")


def _jumping_clock(_: Injector) -> None:
    """The time of day goes to and fro by years; the monotonic clock cannot."""
    whole, jumps = time.time, random.Random(0)  # noqa: S311
    time.time = lambda: whole() + jumps.uniform(-1e8, 1e8)


def _acting_at(where: str, action: Action) -> Callable[[Injector], None]:
    return lambda run: run.at(where, action)


STAGES = {
    "reading": "model.pipeline:read_stack",
    "measuring": "model.lowrank:measure_background",
    "decomposing": "model.factor_denoiser:FactorDenoiser.courses",
    "denoising images": "model.factor_denoiser:FactorDenoiser.images",
    "writing": "model.result_writer:ResultWriter.append",
    "finishing the file": "os:fsync",
    "adapting": "model.adapt:_Adapter._gradients",
    "inference": "model.inference:_run",
}
FORWARD = "model.architectures.factor_net:FactorNet.forward"
INJECTIONS: dict[str, Callable[[Injector], None]] = {
    NOTHING: lambda _: None,
    **{f"SIGTERM, {name}": _acting_at(where, _terminate) for name, where in STAGES.items()},
    **{f"SIGKILL, {name}": _acting_at(where, _kill) for name, where in STAGES.items()},
    "no memory in adaptation": lambda run: run.at(STAGES["adapting"], _fail_to_allocate, call=2),
    "no memory in inference": lambda run: run.at(STAGES["inference"], _fail_to_allocate),
    "no memory for images": lambda run: run.at(STAGES["denoising images"], _fail_to_allocate),
    "a limit on memory": lambda run: run.at(STAGES["measuring"], _limit_memory, stack=4),
    "input gone": lambda run: run.at(STAGES["reading"], _lose_second_recording),
    "input cut off while read": lambda run: run.at(STAGES["decomposing"], _cut_second_recording),
    "output folder gone": lambda run: run.at(STAGES["decomposing"], _lose_output),
    "loss not finite": lambda run: run.returns(STAGES["adapting"], _not_a_number),
    "network not finite": lambda run: run.returns(FORWARD, _not_a_number),
    "clock that jumps": _jumping_clock,
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run the program with the fault of this name; its exit code."""
    # before numpy's threads start, which would die of what they do not block (model.interrupt)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    fault, *flags = argv
    adapt = replace(METHODS["unet3d"].adapt, patch=SMALL_PATCH, batch=1, judge_patches=1)
    METHODS["unet3d"] = replace(METHODS["unet3d"], adapt=adapt)
    INJECTIONS[fault](Injector(RunConfig.parse(flags, {})))
    import process

    return process.main(flags, {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
