"""Odd-even training: which frame predicts which, and what a wrong prediction costs."""

import pytest
import torch
from torch.nn import functional

from model.odd_even import odd_even_loss, odd_even_pair


def test_a_sub_stack_of_512_frames_gives_256_odd_frames_that_predict_the_even_ones() -> None:
    recording = torch.arange(6000.0).view(-1, 1, 1).expand(6000, 512, 512)  # holds its frame number
    patch = recording[1000:1512, 96:160, 448:512][None, None]
    noisy, target = odd_even_pair(patch)
    assert noisy.shape == target.shape == (1, 1, 256, 64, 64)
    assert noisy[0, 0, :, 0, 0].tolist() == list(range(1000, 1512, 2))  # 1st, 3rd, ... of the patch
    assert target[0, 0, :, 0, 0].tolist() == list(range(1001, 1512, 2))
    assert (target - noisy == 1).all()


def test_rows_columns_and_samples_stay_where_they_are() -> None:
    patch = torch.arange(2 * 6 * 3 * 4).view(2, 1, 6, 3, 4)
    noisy, target = odd_even_pair(patch)
    for b, t, h, w in torch.cartesian_prod(*map(torch.arange, (2, 3, 3, 4))).tolist():
        assert noisy[b, 0, t, h, w] == patch[b, 0, 2 * t, h, w]
        assert target[b, 0, t, h, w] == patch[b, 0, 2 * t + 1, h, w]


def test_an_odd_number_of_frames_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="7 frames do not make pairs"):
        odd_even_pair(torch.zeros(1, 1, 7, 2, 2))


def test_the_loss_is_the_mean_of_mean_absolute_and_mean_squared_error() -> None:
    prediction, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert odd_even_loss(prediction, target) == (2.0 + 5.0) / 2  # L1 (1+3)/2, L2 (1+9)/2


def test_the_loss_equals_the_librarys_two_means_at_any_size() -> None:
    generator = torch.Generator().manual_seed(0)
    for sides in ((1, 1, 2, 3, 4), (3, 1, 5, 6, 7)):
        prediction, target = (torch.randn(sides, generator=generator) for _ in range(2))
        expected = (
            functional.l1_loss(prediction, target) + functional.mse_loss(prediction, target)
        ) / 2
        torch.testing.assert_close(odd_even_loss(prediction, target), expected)


def test_the_loss_reaches_every_voxel_of_the_prediction_and_is_least_at_the_target() -> None:
    target = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    prediction = (target + 1).requires_grad_()
    odd_even_loss(prediction, target).backward()
    assert prediction.grad is not None
    assert (prediction.grad > 0).all()
    assert odd_even_loss(target, target) == 0
