"""Blind spots: how many, where, what fills them, and a loss that sees nothing else."""

import pytest
import torch

from model.blindspot import blindspot_loss, draw_mask, draw_sources, fill_masked

CELL = (4, 4, 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_patch_of_16x32x32_hides_exactly_256_different_voxels() -> None:
    coords = draw_mask((1, 1, 16, 32, 32), CELL, seeded())
    assert len(coords) == 256
    assert len(coords.unique(dim=0)) == 256


def test_every_cell_of_every_sample_hides_one_voxel() -> None:
    coords = draw_mask((3, 1, 8, 12, 16), CELL, seeded())
    cells = torch.cat([coords[:, :1], coords[:, 1:] // 4], dim=1)
    assert len(cells.unique(dim=0)) == len(coords) == 3 * 2 * 3 * 4


def test_cells_that_stick_out_never_hide_a_voxel_outside() -> None:
    coords = draw_mask((2, 1, 5, 6, 9), CELL, seeded())
    assert (coords[:, 1:] < torch.tensor([5, 6, 9])).all()
    assert len(coords) < 2 * 2 * 2 * 3


def test_sources_lie_within_the_radius_inside_the_patch_and_never_on_the_voxel() -> None:
    sides = (5, 8, 6)
    coords = torch.cartesian_prod(torch.arange(1), *(torch.arange(side) for side in sides))
    for radius in (1, 2):
        sources = draw_sources(coords.repeat(50, 1), sides, radius, seeded())
        distance = (sources - coords.repeat(50, 1)).abs().amax(dim=1)
        assert (sources[:, 1:] >= 0).all()
        assert (sources[:, 1:] < torch.tensor(sides)).all()
        assert distance.min() == 1
        assert distance.max() == radius


def test_all_124_neighbours_are_drawn_about_equally_often() -> None:
    number = 124_000
    coords = torch.tensor([[0, 10, 10, 10]]).repeat(number, 1)
    sources = draw_sources(coords, (21, 21, 21), 2, seeded())
    _, counts = sources.unique(dim=0, return_counts=True)
    assert len(counts) == 124
    assert (counts - 1000).abs().max() < 160  # five standard deviations


@pytest.mark.parametrize("sides", [(1, 8, 8), (2, 3, 4), (5, 1, 1), (1, 1, 2)])
def test_in_a_narrow_patch_sources_are_as_near_as_it_asks_for(sides: tuple[int, int, int]) -> None:
    every = torch.cartesian_prod(torch.arange(1), *(torch.arange(side) for side in sides))
    coords = every.repeat(200, 1)
    sources = draw_sources(coords, sides, 2, seeded())
    assert (sources[:, 1:] >= 0).all()
    assert (sources[:, 1:] < torch.tensor(sides)).all()
    assert (sources != coords).any(dim=1).all()
    assert {tuple(s) for s in sources.tolist()} == {tuple(c) for c in every.tolist()}
    assert len(draw_mask((1, 1, *sides), CELL, seeded())) > 0


def test_a_voxel_without_neighbours_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="no neighbours"):
        draw_sources(torch.zeros(1, 4, dtype=torch.long), (1, 1, 1), 2, seeded())


def test_only_hidden_voxels_change_and_take_the_original_value_of_their_source() -> None:
    noisy = torch.randn(2, 1, 8, 8, 8, generator=seeded(1))
    coords = draw_mask(tuple(noisy.shape), CELL, seeded())
    sources = draw_sources(coords, (8, 8, 8), 2, seeded())
    masked = fill_masked(noisy, coords, sources)
    changed = (masked != noisy).nonzero()[:, [0, 2, 3, 4]]
    assert {tuple(c) for c in changed.tolist()} == {tuple(c) for c in coords.tolist()}
    for (b, t, h, w), (sb, st, sh, sw) in zip(coords.tolist(), sources.tolist(), strict=True):
        assert masked[b, 0, t, h, w] == noisy[sb, 0, st, sh, sw]


def test_the_same_seed_draws_the_same_mask() -> None:
    first, second = (draw_mask((1, 1, 8, 8, 8), CELL, seeded(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, draw_mask((1, 1, 8, 8, 8), CELL, seeded(8)))


def test_the_loss_has_no_gradient_outside_the_hidden_voxels() -> None:
    prediction = torch.randn(1, 1, 8, 8, 8, requires_grad=True)
    coords = draw_mask((1, 1, 8, 8, 8), CELL, seeded())
    blindspot_loss(prediction, torch.zeros(1, 1, 8, 8, 8), coords).backward()
    assert prediction.grad is not None
    touched = prediction.grad.nonzero()[:, [0, 2, 3, 4]]
    assert {tuple(c) for c in touched.tolist()} == {tuple(c) for c in coords.tolist()}


def test_the_loss_is_the_mean_square_at_the_hidden_voxels() -> None:
    noisy = torch.zeros(1, 1, 4, 4, 4)
    prediction = torch.full((1, 1, 4, 4, 4), 100.0)
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3]])
    prediction[0, 0, 0, 0, 0], prediction[0, 0, 1, 2, 3] = 1.0, 3.0
    assert blindspot_loss(prediction, noisy, coords) == 5.0
