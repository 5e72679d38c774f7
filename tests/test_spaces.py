"""Spaces and units: names, scales, wrapped differences, conversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import physppl as pp
from physppl.inference import Laplace
from physppl.internal import units


def space():
    return pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s", scale=8.0), height=pp.Real("m"))


def test_names_units_and_scales_stand_in_the_order_they_were_given():
    state = space()
    assert state.names == ("angle", "velocity", "height") and len(state) == 3
    assert state.units == ("rad", "rad/s", "m")
    np.testing.assert_array_equal(state.scale, [1.0, 8.0, 1.0])
    np.testing.assert_array_equal(state.is_angle, [True, False, False])
    assert [state.index(n) for n in state.names] == [0, 1, 2]
    np.testing.assert_array_equal(state.array(height=2.5), [0.0, 0.0, 2.5])
    action = pp.ActionSpace(left=pp.Bounded(-3.0, 1.0, "N"), right=pp.Bounded(0.0, 10.0, "V"))
    np.testing.assert_array_equal(action.low, [-3.0, 0.0])
    np.testing.assert_array_equal(action.high, [1.0, 10.0])


def test_equal_content_is_equal_and_hashes_equal_so_programs_are_shared():
    assert space() == space() and hash(space()) == hash(space())
    others = [
        pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s", scale=8.0)),
        pp.StateSpace(velocity=pp.Real("rad/s", scale=8.0), angle=pp.Angle(), height=pp.Real("m")),  # another order
        pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s", scale=7.0), height=pp.Real("m")),
        pp.StateSpace(angle=pp.Real("rad"), velocity=pp.Real("rad/s", scale=8.0), height=pp.Real("m")),
        pp.ActionSpace(angle=pp.Bounded(-1.0, 1.0)),
    ]
    assert all(other != space() for other in others)
    assert len({space(), space(), *others}) == 1 + len(others)
    assert space().__eq__("angle") is False


@given(
    st.lists(st.floats(-30, 30), min_size=3, max_size=3),
    st.lists(st.floats(-30, 30), min_size=3, max_size=3),
    st.integers(-4, 4),
)
def test_only_differences_of_angles_wrap(a, b, turns):
    state, a, b = space(), np.array(a), np.array(b)
    difference = state.difference(a, b)
    assert -np.pi <= difference[0] <= np.pi  # pi itself only by rounding
    turns_between = ((a - b) - difference)[0] / (2 * np.pi)
    np.testing.assert_allclose(turns_between, np.round(turns_between), atol=1e-12)
    np.testing.assert_array_equal(difference[1:], (a - b)[1:])
    # A full turn of either end changes nothing, on the circle: compare sine and cosine, which know no branch.
    turned = state.difference(a + np.array([2 * np.pi * turns, 0, 0]), b)
    np.testing.assert_allclose(np.exp(1j * turned[0]), np.exp(1j * difference[0]), atol=1e-12)


def test_difference_takes_batches_and_traces():
    state = space()
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 4, 3)) * 5
    with jax.enable_x64(True):
        traced = jax.jit(state.difference)(a, b)
    np.testing.assert_allclose(traced, state.difference(a, b), atol=1e-14)
    straight = pp.StateSpace(x=pp.Real(), y=pp.Real())
    np.testing.assert_array_equal(straight.difference(a[..., :2], b[..., :2]), (a - b)[..., :2])


def test_features_are_sine_and_cosine_of_angles_and_the_rest_in_its_scale(x64):
    state = space()
    x = jnp.array([0.7, 4.0, -3.0])
    np.testing.assert_allclose(state.features(x), [np.sin(0.7), np.cos(0.7), 0.5, -3.0], rtol=1e-15)
    np.testing.assert_allclose(state.features(x + jnp.array([2 * np.pi, 0, 0])), state.features(x), atol=1e-15)
    assert state.feature_size == 4


def test_actions_are_normalised_to_their_limits(x64):
    action = pp.ActionSpace(left=pp.Bounded(-3.0, 1.0, "N"), right=pp.Bounded(0.0, 10.0, "V"))
    np.testing.assert_allclose(action.normalise(jnp.asarray(action.low)), [-1, -1])
    np.testing.assert_allclose(action.normalise(jnp.asarray(action.high)), [1, 1])
    np.testing.assert_allclose(action.normalise(jnp.array([-1.0, 2.5])), [0, -0.5])


def test_units_are_parsed_and_shown():
    assert units.parse("N m s/rad", "here") == units.parse("N*m*s/rad", "there")
    assert units.parse("", "here") == ""
    assert units.label("mass", "kg") == "mass [kg]" and units.label("gain", "") == "gain"
    assert "rad" in units.pretty("rad/s") and "s" in units.pretty("rad/s")


@pytest.mark.parametrize(
    ("source", "target", "factor"),
    [
        ("deg/s", "rad/s", np.pi / 180),
        ("cm", "m", 0.01),
        ("g", "kg", 1e-3),
        ("kgf m", "N m", 9.80665),  # by definition of the kilogram-force
        ("rpm", "rad/s", 2 * np.pi / 60),
        ("m", "m", 1.0),
    ],
)
def test_units_convert_by_the_factor_that_defines_them(source, target, factor):
    assert units.factor(source, target, "here") == pytest.approx(factor, rel=1e-12)
    assert units.factor(target, source, "back") == pytest.approx(1 / factor, rel=1e-12)


def test_units_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"coordinate 'x': cannot convert 'kg' to 'm'"):
        units.factor("kg", "m", "coordinate 'x'")
    with pytest.raises(ValueError, match=r"coordinate 'x'.*has an offset; convert it before"):
        units.factor("degC", "kelvin", "coordinate 'x'")
    with pytest.raises(ValueError, match=r"Real: unit 'furlongz' is not understood.*N m s/rad"):
        pp.Real("furlongz")
    with pytest.raises(ValueError, match=r"Bounded: unit 'Nn'"):
        pp.Bounded(-1.0, 1.0, "Nn")


def test_spaces_that_make_no_sense_are_refused_by_name():
    with pytest.raises(ValueError, match=r"low < high; got low=2.0, high=-2.0"):
        pp.Bounded(2.0, -2.0)
    with pytest.raises(ValueError, match=r"finite low < high; got low=-inf"):
        pp.Bounded(-np.inf, 1.0)
    for scale in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="scale must be positive and finite"):
            pp.Real("m", scale=scale)
    with pytest.raises(ValueError, match=r"Angle is in rad; got unit 'deg'.*Convert"):
        pp.Angle("deg")
    with pytest.raises(ValueError, match=r"StateSpace: coordinate 'x' must be Real or Angle; got Bounded"):
        pp.StateSpace(x=pp.Bounded(-1.0, 1.0))
    with pytest.raises(ValueError, match=r"ActionSpace: coordinate 'u' must be Bounded; got Real"):
        pp.ActionSpace(u=pp.Real())
    with pytest.raises(ValueError, match="at least one named coordinate"):
        pp.StateSpace()


def test_an_unknown_coordinate_is_a_key_error_with_the_close_ones():
    with pytest.raises(KeyError, match=r"no coordinate 'velocty'. Did you mean 'velocity'\? Known: angle"):
        space().index("velocty")
    with pytest.raises(KeyError, match="no coordinate 'hight'.*'height'"):
        space().array(hight=1.0)


def undriven():
    """An undamped oscillator without inputs, and its states (81, 2)."""
    state, none = pp.StateSpace(x=pp.Real("m"), v=pp.Real("m/s", scale=3.0)), pp.ActionSpace()

    def oscillator():
        square = pp.physical("square", 1.0, 30.0, unit="1/s^2")
        return lambda t, x, u: jnp.stack([x[1], -square * x[0]])

    machine = pp.Dynamics(oscillator, state, none, dt=0.05)
    x = np.asarray(pp.rollout(machine.transition({"square": 9.0}), jnp.array([1.0, 0.0]), jnp.zeros((80, 0))))
    x = x + 1e-3 * np.random.default_rng(0).normal(size=x.shape)
    return machine, x


def told(posterior):
    row = posterior.summary()["square"]
    assert abs(row["mean"] - 9.0) < 4 * row["sd"] and row["sd"] < 0.1


def test_a_machine_without_inputs_is_fitted(x64):
    machine, x = undriven()
    posterior = pp.fit(jax.random.key(0), machine, pp.Transitions.from_trajectory(x, np.zeros((80, 0))), Laplace())
    assert posterior.predict(x[:3], np.zeros((3, 0))).mean.shape == (3, 2)
    told(posterior)


@pytest.mark.science
def test_recordings_without_inputs_are_fitted(x64):
    machine, x = undriven()
    encoder = machine.rebound(sensors=("x",))
    recording = pp.Trajectories.read({"t": 0.05 * np.arange(81), "x": x[:, 0]}, encoder)
    told(pp.fit(jax.random.key(0), encoder, recording, Laplace()))
