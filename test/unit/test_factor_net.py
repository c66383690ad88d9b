"""The network for factors: what its halves may depend on."""

import pytest
import torch

from model.architectures.factor_net import FactorNet, FactorNetConfig


def images(count: int = 4) -> torch.Tensor:
    return 5 * torch.randn(1, 1, count, 24, 24, generator=torch.Generator().manual_seed(0))


def courses(count: int = 3, num_frames: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return 5 * torch.randn(1, 3, count, 1, num_frames, generator=generator)


@pytest.fixture
def net() -> FactorNet:
    """With weights as after training, when nothing is zero any more."""
    torch.manual_seed(0)
    net = FactorNet(FactorNetConfig.tiny())
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize("config", [FactorNetConfig(), FactorNetConfig.tiny()])
def test_it_has_the_parameters_that_its_sizes_promise(config: FactorNetConfig) -> None:
    count = sum(parameter.numel() for parameter in FactorNet(config).parameters())
    assert count == {32: 1_189_240, 4: 16_248}[config.width]


def test_a_new_one_leaves_images_as_they_are_and_takes_courses_as_guessed() -> None:
    net = FactorNet(FactorNetConfig.tiny())
    torch.testing.assert_close(net(images()), images())
    torch.testing.assert_close(net(courses()), courses()[:, 1:2])


# ---- Images ------------------------------------------------------------------------------------


def test_the_order_of_the_images_behind_the_mean_makes_no_difference(net: FactorNet) -> None:
    order = [0, 3, 1, 2]
    turned = net(images()[:, :, order])
    torch.testing.assert_close(turned, net(images())[:, :, order], rtol=1e-4, atol=1e-5)


def test_images_of_zeros_stay_so_and_change_nothing(net: FactorNet) -> None:
    padded = torch.cat([images(), torch.zeros(1, 1, 2, 24, 24)], dim=2)
    denoised = net(padded)
    assert not denoised[:, :, 4:].any()
    torch.testing.assert_close(denoised[:, :, :4], net(images()), rtol=1e-4, atol=1e-5)


def test_the_mean_alone_is_denoised_too(net: FactorNet) -> None:
    noisy = images(1).requires_grad_()
    net(noisy).sum().backward()
    assert noisy.grad is not None and noisy.grad.isfinite().all()


@pytest.mark.parametrize("wanted", [slice(0, 1), slice(1, None)])
def test_images_that_are_not_wanted_stay_noisy(net: FactorNet, wanted: slice) -> None:
    expected = images()
    expected[:, :, wanted] = net(images())[:, :, wanted]
    torch.testing.assert_close(net(images(), wanted), expected, rtol=1e-4, atol=1e-5)


def test_images_that_do_not_divide_are_refused(net: FactorNet) -> None:
    with pytest.raises(ValueError, match="no multiple"):
        net(torch.zeros(1, 1, 2, 24, 22))


# ---- Courses -----------------------------------------------------------------------------------


def test_every_course_is_denoised_by_itself(net: FactorNet) -> None:
    one = net(courses()[:, :, 1:2])
    torch.testing.assert_close(net(courses())[:, :, 1:2], one, rtol=1e-4, atol=1e-5)


def test_courses_of_zeros_stay_so(net: FactorNet) -> None:
    padded = torch.cat([courses(), torch.zeros(1, 3, 2, 1, 50)], dim=2)
    denoised = net(padded)
    assert denoised.shape == (1, 1, 5, 1, 50)
    assert not denoised[:, :, 3:].any()


@pytest.mark.parametrize("num_frames", [16, 17, 50])
def test_courses_may_have_any_length(net: FactorNet, num_frames: int) -> None:
    assert net(courses(num_frames=num_frames)).shape == (1, 1, 3, 1, num_frames)


def test_a_course_depends_on_what_lies_in_its_past_and_future(net: FactorNet) -> None:
    noisy = courses().requires_grad_()
    net(noisy)[0, 0, 0, 0, 25].backward()
    assert noisy.grad is not None
    reached = noisy.grad[0, 0, 0, 0].nonzero()
    assert reached.min() < 20 and reached.max() > 30


def test_weights_of_before_take_no_notice_of_what_is_known(net: FactorNet) -> None:
    weights = net.state_dict()
    weights["courses.enter.weight"] = weights["courses.enter.weight"][:, :3]
    net.load_state_dict(weights)
    other = courses()
    other[:, 2] += 1
    torch.testing.assert_close(net(other), net(courses()))


@pytest.mark.parametrize(("field", "value"), [("width", 0), ("course_widths", (4, 0))])
def test_sizes_that_cannot_be_built_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        FactorNetConfig(**{field: value})  # type: ignore[arg-type]
