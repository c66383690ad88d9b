"""The speed table compares what is comparable."""

import pytest
import torch

from lab.roofline import Peaks, Work
from lab.speed import ROUTES, Route


@pytest.mark.parametrize("route", ROUTES[1:], ids=lambda route: route.name)
def test_every_route_computes_the_same(route: Route) -> None:
    noisy = torch.rand(1, 1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    found = []
    for each in (ROUTES[0], route):
        with each.layers(), torch.inference_mode():
            found.append(each.network()(noisy).float())
    tolerance = 1e-4 if route.precision == "fp32" else 0.05
    torch.testing.assert_close(*found, rtol=0, atol=tolerance * float(found[0].abs().max()))


def test_work_is_counted_by_its_definition() -> None:
    left, right = torch.rand(3, 5), torch.rand(5, 7, requires_grad=True)
    product = 2 * 3 * 5 * 7
    forward = Work.of(lambda: left @ right.detach())
    assert forward == Work(operations=product, bytes=4 * (3 * 5 + 5 * 7 + 3 * 7))
    trained = Work.of(lambda: (left @ right).sum(), backward=True)
    assert trained.operations == 3 * product
    assert trained.bytes > 2 * forward.bytes


def test_the_roofline_is_the_slower_of_computing_and_moving() -> None:
    peaks = Peaks(operations=10.0, bytes=2.0)
    assert peaks.least_seconds(Work(operations=40, bytes=4)) == 4
    assert peaks.least_seconds(Work(operations=10, bytes=4)) == 2


def test_this_machine_computes_and_copies_something() -> None:
    peaks = Peaks.measured()
    assert peaks.operations > 1e9
    assert peaks.bytes > 1e8
