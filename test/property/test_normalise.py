import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.normalise import fit_scale, temporal_median

# Repeatable in the pipeline of checks, and no deadline on a shared machine.
same_every_time = settings(derandomize=True, deadline=None, max_examples=60)

shapes = hnp.array_shapes(min_dims=3, max_dims=3, max_side=12)
narrow_integers = hnp.arrays(
    st.one_of(
        hnp.unsigned_integer_dtypes(sizes=(8, 16), endianness="?"),
        hnp.integer_dtypes(sizes=(8, 16), endianness="?"),
    ),
    shapes,
)
percents = st.floats(0, 100)


@same_every_time
@given(frames=narrow_integers, low=percents, high=percents)
def test_histogram_percentiles_equal_those_of_numpy(
    frames: np.ndarray, low: float, high: float
) -> None:
    scale = fit_scale(frames, low, high)
    expected = np.percentile(frames.astype(np.float64), [low, high])
    if expected[0] == expected[1]:  # no contrast between them: the whole range instead
        expected = np.array([frames.min(), frames.max()], np.float64)
    np.testing.assert_allclose([scale.low, scale.high], expected, atol=1e-9, rtol=0)


@same_every_time
@given(
    frames=narrow_integers,
    spread=st.floats(1, 1e4),
    offset=st.floats(-1e9, 1e9),
)
def test_inverting_undoes_normalising(frames: np.ndarray, spread: float, offset: float) -> None:
    # Any contrast on any pedestal: float32 must not lose the one beside the other.
    raw = offset + spread * frames.astype(np.float64)
    scale = fit_scale(raw, 0, 100)
    if not scale.is_constant:
        round_trip = scale.invert(scale.apply(raw))
        np.testing.assert_allclose(round_trip, raw, atol=1e-5 * scale.gain, rtol=0)


@same_every_time
@given(frames=narrow_integers)
def test_the_temporal_median_equals_that_of_numpy(frames: np.ndarray) -> None:
    expected = np.median(frames.astype(np.float64), axis=0)
    assert np.array_equal(temporal_median(frames), expected)


@same_every_time
@given(frames=narrow_integers, gain=st.integers(1, 50), offset=st.integers(-1000, 1000))
def test_normalised_values_do_not_depend_on_the_detector_s_gain_and_offset(
    frames: np.ndarray, gain: int, offset: int
) -> None:
    other = frames.astype(np.int32) * gain + offset
    scale, other_scale = fit_scale(frames), fit_scale(other)
    if not (scale.is_constant or other_scale.is_constant):
        np.testing.assert_allclose(
            other_scale.apply(other), scale.apply(frames), rtol=1e-5, atol=1e-5
        )
