"""The network's function and its first adaptation losses, as recorded."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.adapt import adapt
from model.architectures import ARCHITECTURES, build
from model.budget import Budget
from model.config import METHODS, Stage
from model.device import pick_device, place
from model.normalise import fit_scale
from model.stack_io import read_stack

SAMPLE = Path(__file__).parent.parent / "input/images/stacked-neuron-images-with-noise"
Golden = Callable[[list[float]], list[float]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded_patch(*shape: int) -> torch.Tensor:
    # numpy's generator: torch does not promise the same numbers in another release.
    return torch.from_numpy(np.random.default_rng(0).random(shape, dtype=np.float32))


def set_seeded_weights(net: torch.nn.Module) -> None:
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = 1 / np.sqrt(max(1, parameter[0].numel()))
            values = rng.normal(0, spread, parameter.shape) + (parameter.ndim == 1)
            parameter.copy_(torch.from_numpy(values))


def test_the_full_network_computes_what_it_always_did(golden: Golden) -> None:
    net = build("restormer3d")
    set_seeded_weights(net)
    with torch.inference_mode():
        result = place(net, pick_device("cpu"))(seeded_patch(1, 1, 4, 16, 24))
    found = result.flatten()[::97].tolist()
    # fp32 sums over up to 1024 products in another order on another processor
    assert found == pytest.approx(golden(found), rel=1e-3, abs=2e-4)


def test_the_first_losses_are_what_they_always_were(golden: Golden) -> None:
    architecture = ARCHITECTURES["restormer3d"]
    net = architecture.network(architecture.config.tiny())
    set_seeded_weights(net)
    device = pick_device("cpu")
    (path,) = SAMPLE.glob("*.tif")
    frames = read_stack(path).frames[:32]
    report = adapt(
        place(net, device),
        frames,
        fit_scale(frames),
        stages=(
            Stage(kind="warm_up", steps=2, learning_rate=1e-3),
            Stage(kind="blindspot", steps=4, learning_rate=1e-3),
        ),
        config=replace(METHODS["restormer3d"].adapt, patch=(8, 16, 16), batch=2, judge_patches=0),
        device=device,
        budget=Budget(float("inf")),
        seed=0,
        micro_batch=2,
        is_pretrained=True,
    )
    assert report.losses == pytest.approx(golden(report.losses), rel=1e-3)
