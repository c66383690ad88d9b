"""The challenge's stack, whole, through everything but a network."""

from lab.benchmark import PEAK, measured


def test_a_stack_of_1500_frames_of_490x490_passes_within_12_gib() -> None:  # C10
    """Under a data limit of 12 GiB, by a network that returns its input: so must the program."""
    assert measured((1500, 490, 490))[PEAK] < 12
