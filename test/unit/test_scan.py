"""The scan for single events: what it finds, where, and that noise is none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.scan import APART, Scan

SHAPE = (240, 24, 24)
SCAN = Scan(time_sigma=3.0, space_sigmas=(1.0, 2.0))
NOTHING = torch.empty(SHAPE[1] * SHAPE[2], 0)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE, np.float32)


def spot(row: int, column: int, sigma: float = 1.5) -> np.ndarray:
    """A round image of height 1: [h,w]."""
    rows, columns = np.ogrid[: SHAPE[1], : SHAPE[2]]
    square = np.square(rows - row) + np.square(columns - column)
    return np.exp(-0.5 * square / sigma**2)


def event(row: int, column: int, frame: int = 100, height: float = 2.0) -> np.ndarray:
    """One that decays within 6 frames or so: [T,h,w] float32."""
    course = np.zeros(SHAPE[0])
    course[frame:] = height * np.exp(-np.arange(SHAPE[0] - frame) / 6)
    return (course[:, None, None] * spot(row, column)).astype(np.float32)


@pytest.fixture(scope="module")
def scan() -> Scan:
    """With thresholds above what blocks of noise reach."""
    reached = np.array(
        [[each.max() for each in SCAN.reached(noise(seed))] for seed in range(100, 130)]
    )
    return replace(SCAN, thresholds=tuple(map(float, reached.mean(0) + 5 * reached.std(0))))


def likeness(footprint: torch.Tensor, image: np.ndarray) -> float:
    """Of a footprint of norm 1 to an image [h,w]: cosine."""
    return float(footprint @ torch.from_numpy(image.ravel()).float()) / float(np.linalg.norm(image))


@pytest.mark.parametrize(("row", "column"), [(12, 11), (2, 21), (1, 7)])
def test_an_event_is_found_where_it_is(scan: Scan, row: int, column: int) -> None:
    block = noise(0) + event(row, column)
    # too small for the block's components: noise alone reaches as much
    strength = np.linalg.norm(event(row, column))
    assert strength < np.linalg.norm(noise(0).reshape(len(block), -1), ord=2)
    footprints, above = scan.footprints(block, NOTHING)
    assert footprints.shape == (len(NOTHING), 1)
    assert float(above[0]) > 1
    assert float(footprints.norm()) == pytest.approx(1, abs=1e-5)
    assert likeness(footprints[:, 0], spot(row, column)) > 0.8


def test_noise_is_no_event(scan: Scan) -> None:
    for seed in range(30):
        footprints, above = scan.footprints(noise(seed), NOTHING)
        assert footprints.shape == (len(NOTHING), 0)
        assert len(above) == 0


def test_noise_counts_as_much_wherever_it_is() -> None:
    """At the border, too, where a blur sees values twice, and where there is more of it."""
    strength = np.ones(SHAPE, np.float32)
    strength[120:] *= 1.5
    strength *= np.linspace(1, 2, SHAPE[2], dtype=np.float32)
    shows = [
        [seen.shows for seen in SCAN._seen(noise(seed) * strength, NOTHING)] for seed in range(8)
    ]
    for one in zip(*shows, strict=True):
        deviation = np.sqrt(np.mean([np.square(each).mean(0) for each in one], axis=0))
        assert deviation == pytest.approx(1, abs=0.25)
        assert deviation.mean() == pytest.approx(1, abs=0.05)


def test_events_that_lie_apart_are_all_found_the_clearest_first(scan: Scan) -> None:
    places = (4, 5), (12, 18), (19, 6)
    heights = 4.0, 6.0, 3.0
    events = [event(*place, height=height) for place, height in zip(places, heights, strict=True)]
    footprints, above = scan.footprints(noise(1) + sum(events), NOTHING)
    assert footprints.shape[1] == len(places)
    assert list(above) == sorted(above, reverse=True)
    for footprint, place in zip(footprints.T, ((12, 18), (4, 5), (19, 6)), strict=True):
        assert likeness(footprint, spot(*place)) > 0.8


def test_what_lies_close_together_is_found_once(scan: Scan) -> None:
    block = noise(2) + event(12, 12, height=4.0) + event(12, 12 + APART - 1, height=4.0)
    assert scan.footprints(block, NOTHING)[0].shape[1] == 1


def test_what_is_known_is_not_found_again(scan: Scan) -> None:
    block = noise(3) + event(12, 11, height=6.0)
    footprints, _ = scan.footprints(block, NOTHING)
    image = torch.from_numpy(spot(12, 11).astype(np.float32)).reshape(-1, 1)
    known = image / image.norm()
    assert footprints.shape[1] == 1
    assert scan.footprints(block, known)[0].shape[1] == 0


@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_few_frames_are_scanned_too(num_frames: int) -> None:
    scan = replace(SCAN, time_sigma=num_frames / 4)
    for reached in scan.reached(noise(0)[:num_frames]):
        assert np.isfinite(reached).all()
