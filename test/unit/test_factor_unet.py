"""The network for the images of factors: what it may depend on."""

import pytest
import torch

from model.architectures.factor_unet import FactorUNet, FactorUNetConfig


def images(count: int = 4) -> torch.Tensor:
    return 5 * torch.randn(1, 1, count, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> FactorUNet:
    torch.manual_seed(0)
    return FactorUNet(FactorUNetConfig.tiny())


@pytest.mark.parametrize("config", [FactorUNetConfig(), FactorUNetConfig.tiny()])
def test_it_has_the_parameters_that_its_sizes_promise(config: FactorUNetConfig) -> None:
    count = sum(parameter.numel() for parameter in FactorUNet(config).parameters())
    assert count == {32: 967_808, 4: 15_248}[config.width]


def test_a_signal_twice_as_strong_comes_out_twice_as_strong(net: FactorUNet) -> None:
    torch.testing.assert_close(net(2 * images()), 2 * net(images()), rtol=1e-4, atol=1e-4)


def test_the_order_of_the_images_behind_the_mean_makes_no_difference(net: FactorUNet) -> None:
    order = [0, 3, 1, 2]
    turned = net(images()[:, :, order])
    torch.testing.assert_close(turned, net(images())[:, :, order], rtol=1e-4, atol=1e-5)


def test_images_of_zeros_stay_so_and_change_nothing(net: FactorUNet) -> None:
    padded = torch.cat([images(), torch.zeros(1, 1, 2, 24, 24)], dim=2)
    denoised = net(padded)
    assert not denoised[:, :, 4:].any()
    torch.testing.assert_close(denoised[:, :, :4], net(images()), rtol=1e-4, atol=1e-5)


def test_the_mean_alone_is_denoised_too(net: FactorUNet) -> None:
    noisy = images(1).requires_grad_()
    net(noisy).sum().backward()
    assert noisy.grad is not None and noisy.grad.isfinite().all()


def test_images_that_do_not_divide_are_refused(net: FactorUNet) -> None:
    with pytest.raises(ValueError, match="no multiple"):
        net(torch.zeros(1, 1, 2, 24, 22))


def test_a_width_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="width 0"):
        FactorUNetConfig(width=0)
