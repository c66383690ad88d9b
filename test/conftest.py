"""`pytest test/golden --record` writes the stored numbers anew; the commit says why they moved."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="store golden numbers anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[list[float]], list[float]]:
    """Gives the stored numbers of the test that asks, or stores the ones it found."""

    def stored(found: list[float]) -> list[float]:
        path = Path(request.path).with_suffix(".json")
        numbers = json.loads(path.read_text()) if path.exists() else {}
        if request.config.getoption("--record"):
            numbers[request.node.name] = [float(f"{value:.7g}") for value in found]
            path.write_text(json.dumps(numbers, indent=1) + "\n")
        return numbers[request.node.name]

    return stored
