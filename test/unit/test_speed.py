"""The speed table compares what is comparable."""

import pytest
import torch

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
