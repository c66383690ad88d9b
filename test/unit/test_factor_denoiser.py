"""Networks for factors in use: what is asked of them, in which precision, and where memory ends."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.architectures.factor_net import FactorNet, FactorNetConfig
from model.device import pick_device
from model.factor_denoiser import FactorDenoiser
from model.inference import InferenceError

CPU = pick_device("cpu")
IMAGES = np.ones((1, 3, 8, 8), np.float32)


class Answer(nn.Module):
    """A network that is a plain function of factors [B,C,K,h,w]."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, factors: Tensor, wanted: slice | None = None) -> Tensor:
        """Of all, whichever are wanted."""
        return self.function(factors)


TWICE = Answer(lambda images: 2 * images)


def failing(message: str) -> Answer:
    def fail(images: Tensor) -> Tensor:
        raise RuntimeError(message)

    return Answer(fail)


@pytest.fixture(scope="module")
def net() -> FactorNet:
    torch.manual_seed(0)
    net = FactorNet(FactorNetConfig.tiny()).eval()
    torch.nn.init.normal_(net.images.out.weight)
    torch.nn.init.normal_(net.courses.out.weight, std=0.1)
    return net


def noisy(*shape: int) -> np.ndarray:
    return 5 * np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_the_mean_alone_is_what_it_is_among_all_images(net: FactorNet) -> None:
    denoiser, images = FactorDenoiser(net=net, device=CPU), noisy(2, 4, 16, 16)
    means = denoiser.images(images)[:, 0]
    assert np.abs(means - images[:, 0]).max() > 0.1
    np.testing.assert_allclose(denoiser.means(images), means, rtol=1e-4, atol=1e-4)


def test_images_of_a_block_are_the_same_beside_other_blocks(net: FactorNet) -> None:
    denoiser, images = FactorDenoiser(net=net, device=CPU), noisy(3, 4, 16, 16)
    images[1, 2:] = 0  # fewer than the others have
    together = denoiser.images(images)
    assert together.dtype == np.float32
    for number, count in enumerate((4, 2, 4)):
        alone = denoiser.images(images[number : number + 1, :count])[0]
        np.testing.assert_allclose(together[number, :count], alone, rtol=1e-4, atol=1e-4)
        assert not together[number, count:].any()


def test_bf16_gives_nearly_the_same_in_fp32(net: FactorNet) -> None:
    images, courses = noisy(4, 16, 16), noisy(80, 3)
    exact, fast = (
        FactorDenoiser(net=net, device=CPU, precision=precision) for precision in ("fp32", "bf16")
    )
    for found, wanted in (
        (fast.images(images[None]), exact.images(images[None])),
        (fast.means(images[None]), exact.means(images[None])),
        (
            fast.courses(courses, courses / 2, courses / 4),
            exact.courses(courses, courses / 2, courses / 4),
        ),
    ):
        assert found.dtype == wanted.dtype == np.float32
        assert 0 < np.abs(found - wanted).max() < 0.05 * wanted.std()


def test_where_the_gpu_is_full_a_spare_network_denoises_factors() -> None:
    full = failing("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    denoiser = FactorDenoiser(net=full, device=CPU, spare=TWICE)
    assert (denoiser.images(IMAGES) == 2).all()


@pytest.mark.parametrize("message, spare", [("shape is invalid", TWICE), ("out of memory", None)])
def test_what_a_spare_network_cannot_help_is_told(message: str, spare: nn.Module | None) -> None:
    with pytest.raises(RuntimeError, match=message):
        FactorDenoiser(net=failing(message), device=CPU, spare=spare).images(IMAGES)


def test_an_answer_that_is_not_finite_is_none() -> None:
    with pytest.raises(InferenceError, match="--method lowrank"):
        FactorDenoiser(net=Answer(lambda images: images / 0), device=CPU).images(IMAGES)


def test_a_spare_network_takes_what_the_other_has_learned() -> None:
    first, spare, taught = (nn.Linear(1, 1, bias=False) for _ in range(3))
    FactorDenoiser(net=first, device=CPU, spare=spare).take(taught.state_dict())
    assert first.weight == spare.weight == taught.weight
