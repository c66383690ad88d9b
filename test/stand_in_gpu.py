"""Runs a program of this repository as on a GPU, on the CPU: `python test/stand_in_gpu.py process`.

Tensors that would lie on the GPU are computed on the CPU, but marked: whoever joins them with
others, asks them for an array, or hands them a generator of the other place meets the error that a
GPU would answer with. So what is written for a GPU runs from beginning to end. What this cannot
show: the GPU's own kernels, their speed and memory, and what is joined wrongly in a backward pass.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
MEMORY = 15 * 2**30  # of a T4
MARK = "lies_on_the_gpu"

MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda}
COPIES = {Tensor.copy_, Tensor.__setitem__, torch._has_compatible_shallow_copy_type}  # from either
INDEXES = {Tensor.__getitem__, Tensor.index_put_, Tensor.index_put}  # by indices in either
ARRAYS = {Tensor.numpy, Tensor.__array__}


def is_there(tensor: Tensor) -> bool:
    """Whether a tensor would lie on the GPU."""
    return MARK in tensor.__dict__


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _marked(result: Any, there: bool) -> Any:
    for tensor in _tensors(result):
        if there:
            tensor.__dict__[MARK] = True
        else:
            tensor.__dict__.pop(MARK, None)
    return result


def _is_gpu(device: Any) -> bool:
    return torch.device(device).type == "cuda"


class Generator(torch.Generator):
    """Random numbers of one place, the same in both."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        """With the first seed of all."""
        made = super().__new__(cls)
        made.place = GPU if _is_gpu(device) else CPU
        return made

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return self.place


class StandInGpu(TorchFunctionMode):
    """Knows of every call to torch where its tensors would lie."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """What a call gives, computed on the CPU and marked."""
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func == Tensor.device.__get__:
            return GPU if is_there(first) else CPU
        if func == Tensor.is_cuda.__get__:
            return is_there(first)
        if func == Tensor.data.__set__:
            func(*args)
            return _marked(first, is_there(args[1]))
        if func == Tensor.pin_memory:
            assert not is_there(first), "cannot pin what lies on the GPU"
            return first.clone()
        if func in MOVES:
            return self._moved(func, first, args[1:], kwargs)
        if func in COPIES:
            there = is_there(first)
        elif func in ARRAYS and is_there(first):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        else:
            there = self._place(func, args, kwargs)
        kwargs.pop("device", None)
        kwargs.pop("pin_memory", None)
        return _marked(func(*args, **kwargs), there)

    def _moved(
        self, func: Any, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """What Tensor.to, cpu and cuda give: a copy in the other place, or what it was."""
        target, dtype = is_there(tensor), kwargs.get("dtype", tensor.dtype)
        if func != Tensor.to:
            target = func == Tensor.cuda
        for each in (*args, kwargs.get("device")):
            if isinstance(each, torch.device | str):
                target = _is_gpu(each)
            elif isinstance(each, Tensor):
                target, dtype = is_there(each), each.dtype
            elif isinstance(each, torch.dtype):
                dtype = each
        layout = kwargs.get("memory_format", torch.preserve_format)
        moves = target != is_there(tensor) or kwargs.get("copy", False)
        return _marked(tensor.to(dtype, copy=moves, memory_format=layout), target)

    def _place(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Where a result will lie; RuntimeError where arguments do not lie together."""
        given = [*_tensors(args), *_tensors(kwargs)]
        if func in INDEXES and is_there(given[0]):
            given = given[:1]
        # a number, which is a tensor without axes, may come from the CPU
        places = {is_there(each) for each in given if each.ndim or is_there(each)}
        if len(places) > 1:
            raise RuntimeError(
                f"{getattr(func, '__name__', func)}: Expected all tensors to be on the same "
                "device, but found at least two devices, cuda:0 and cpu!"
            )
        there = places == {True}
        if kwargs.get("device") is not None:
            there = _is_gpu(kwargs["device"])
        generator = kwargs.get("generator")
        if generator is not None and _is_gpu(generator.device) != there:
            raise RuntimeError(f"{func.__name__}: Expected a generator of the other device")
        return there


class Autocast(torch.autocast):
    """On the CPU instead."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        """As on the GPU, but there."""
        assert device_type == "cuda", "of what lies on the GPU"
        super().__init__("cpu", *args, **kwargs)


class Event:
    """Nothing is ever under way."""

    def record(self) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Done."""


def install() -> None:
    """From here on there is a GPU, in this thread and all that are begun."""
    torch.backends.cuda.is_built = lambda: True
    cuda: Any = torch.cuda
    cuda.Event = Event
    cuda.get_device_name = lambda *_: "stand-in"
    cuda.get_device_properties = lambda *_: SimpleNamespace(uuid="of none")
    cuda.mem_get_info = lambda *_: (MEMORY, MEMORY)
    cuda.memory_reserved = cuda.memory_allocated = cuda.max_memory_allocated = lambda *_: 0
    cuda.empty_cache = cuda.reset_peak_memory_stats = lambda *_: None
    cuda.is_bf16_supported = lambda **_: True
    torch.autocast = Autocast  # type: ignore[misc]
    torch.Generator = Generator  # type: ignore[misc]

    copied, run = nn.Parameter.__deepcopy__, threading.Thread.run

    def copied_there(parameter: nn.Parameter, memo: dict[int, Any]) -> nn.Parameter:
        return _marked(copied(parameter, memo), is_there(parameter))

    def run_there(thread: threading.Thread) -> None:
        with StandInGpu():
            run(thread)

    nn.Parameter.__deepcopy__ = copied_there  # type: ignore[method-assign]
    threading.Thread.run = run_there  # type: ignore[method-assign]
    StandInGpu().__enter__()


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    sys.path.insert(0, str(Path.cwd()))
    install()
    program = importlib.import_module(name)
    sys.exit(program.main(rest, os.environ) if name == "process" else program.main(rest))
