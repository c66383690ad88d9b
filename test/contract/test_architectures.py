"""What every network in ARCHITECTURES promises."""

from pathlib import Path

import pytest
import torch
from torch import nn

from model.architectures import ARCHITECTURES
from model.architectures.factor_net import FactorNet
from model.checkpoint import load_network, read_checkpoint, save_checkpoint
from model.config import METHODS


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    net = architecture.network(architecture.config.tiny())
    for parameter in net.parameters():
        if not parameter.any():  # as no weight is after training
            nn.init.normal_(parameter, std=0.1)
    return net


def patch_for(net: nn.Module, times: int = 2) -> torch.Tensor:
    sides = [max(times * step, 5 if step == 1 else 0) for step in net.stride]
    return torch.rand(2, 1, *sides, generator=torch.Generator().manual_seed(1))


def test_output_has_the_shape_of_the_input_at_every_multiple_of_the_stride(net: nn.Module) -> None:
    for times in (1, 2, 3):
        patch = patch_for(net, times)
        assert net(patch).shape == patch.shape


def test_gradients_reach_every_parameter(net: nn.Module) -> None:
    net(patch_for(net)).square().sum().backward()
    if isinstance(net, FactorNet):  # its other half
        net(torch.rand(2, 3, 3, 1, 20)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_evaluation_is_deterministic(net: nn.Module) -> None:
    net.eval()
    patch = patch_for(net)
    assert torch.equal(net(patch), net(patch))


def test_samples_of_a_batch_do_not_influence_each_other(net: nn.Module) -> None:
    net.eval()
    patch = patch_for(net)
    alone = torch.cat([net(patch[:1]), net(patch[1:])])
    torch.testing.assert_close(net(patch), alone, rtol=1e-4, atol=1e-6)


def test_saving_and_loading_gives_bit_identical_results(
    net: nn.Module, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    method = next(key for key, method in METHODS.items() if method.network == name)
    save_checkpoint(path, net, method=method, provenance={"steps": 3})
    checkpoint = read_checkpoint(path, method)
    assert checkpoint.provenance == {"steps": 3}
    net.eval()
    patch = patch_for(net)
    assert torch.equal(load_network(checkpoint).eval()(patch), net(patch))
