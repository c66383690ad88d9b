"""The challenge's stack, whole, through everything but a network."""

from lab.benchmark import PEAK, measured


def test_a_stack_of_1500_frames_of_490x490_passes_within_12_gib() -> None:
    """Under a data limit of 12 GiB, by a network that returns its input: so must the program."""
    assert measured((1500, 490, 490))[PEAK] < 12


def test_the_low_rank_methods_are_measured_as_they_run() -> None:
    found = measured((40, 50, 60), "lowrank_unet")
    assert {"decompose", "learn", "denoise images", "render", "write", "total", PEAK} <= set(found)
    assert found["total"] > 0
    assert "denoise images" not in measured((40, 50, 60), "lowrank")
