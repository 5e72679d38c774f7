"""Transitions: what goes in comes out, padding and stacking change nothing that counts, files keep their units."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro import handlers

import physppl as pp
from physppl.data.lengths import bucket
from physppl.models import pendulum

state = pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s", scale=8.0))
action = pp.ActionSpace(torque=pp.Bounded(-2.0, 2.0, "N m"))


def drift():
    """A Step with one site: both coordinates move by `rate` times the torque."""
    rate = pp.physical("rate", 0.0, 2.0)
    return pp.Step(lambda t, x, u: x + rate * u[0])


dynamics = pp.Dynamics(drift, state, action, dt=0.1, process_noise=(0.3, 2.0))


def random_data(rows: int, seed: int = 0, valid=None) -> pp.Transitions:
    rng = np.random.default_rng(seed)
    states, actions = rng.normal(size=(rows, 2)), rng.uniform(-2, 2, (rows, 1))
    after = states + rng.normal(size=(rows, 2))
    return pp.Transitions(states, actions, after, valid=valid, times=0.1 * np.arange(rows))


def fields(data):
    return {
        name: np.asarray(getattr(data, name))
        for name in ("states", "actions", "next_states", "valid", "times")
        if getattr(data, name) is not None
    }


def assert_same(a, b):
    assert fields(a).keys() == fields(b).keys()
    for name, value in fields(a).items():
        np.testing.assert_array_equal(value, fields(b)[name], err_msg=name)


def density(data, rate):
    """Sum of the log densities of the rows that count."""
    model = handlers.substitute(dynamics, data={"rate": rate})
    site = handlers.trace(handlers.seed(model, 0)).get_trace(data)["next_state"]
    return jnp.sum(site["fn"].log_prob(site["value"]))


compiled_density = jax.jit(density)


def log_likelihood(data):
    with jax.enable_x64(True):
        return float(compiled_density(data, 0.7))


def test_outcomes_take_the_short_way_round():
    """Of an angle alone: 3.1 to -3.1 rad are 0.08 rad onward; other coordinates are what they are."""
    data = pp.Transitions([[3.1, 3.1], [-9.0, 0.0]], [[0.0], [0.0]], [[-3.1, -3.1], [-2.5, 7.0]])
    exact = [[2 * np.pi - 3.1, -3.1], [-2.5 - 2 * np.pi, 7.0]]
    np.testing.assert_allclose(dynamics.outcomes(data), exact, atol=1e-5)


def test_a_transition_has_the_noise_that_is_known():
    np.testing.assert_allclose(dynamics.transition({"rate": 1.0}).noise, [0.3, 2.0], rtol=1e-6)


def test_arrays_lists_and_integers_are_the_same_data():
    states, actions, after = [[0, 1], [2, 3]], [[1], [0]], [[1, 1], [2, 2]]
    lists = pp.Transitions(states, actions, after)
    assert lists.states.dtype == np.float64 and len(lists) == 2 and lists.batch_shape == ()
    assert_same(lists, pp.Transitions(np.array(states), np.array(actions), np.array(after)))
    assert_same(lists, pp.Transitions(jnp.array(states), jnp.array(actions), jnp.array(after, float)))
    assert_same(lists, pp.Transitions(states, actions, after, valid=[True, True], times=[0, 0]))
    assert "2 rows (2 valid), 2 state and 1 action coordinates" in repr(lists)


def test_single_precision_stays_single_and_a_traced_construction_passes():
    data = pp.Transitions(*(np.ones((3, n), np.float32) for n in (2, 1, 2)))
    assert data.states.dtype == np.float32
    out = jax.jit(lambda s, a: pp.Transitions(s, a, 2 * s))(jnp.ones((3, 2)), jnp.zeros((3, 1)))
    np.testing.assert_array_equal(out.next_states, 2.0)


def test_inputs_are_the_rows_without_outcomes():
    data = random_data(5, valid=np.array([True, True, False, True, True]))
    assert data.inputs.next_states is None and "inputs only" in repr(data.inputs)
    assert_same(
        pp.Transitions(data.states, data.actions, valid=data.valid, times=data.times),
        data.inputs,
    )


def test_rows_are_selected_by_slices_and_indices():
    data = random_data(6)
    np.testing.assert_array_equal(data[2:4].states, data.states[2:4])
    np.testing.assert_array_equal(data[np.array([5, 0])].next_states, data.next_states[[5, 0]])
    np.testing.assert_array_equal(data[np.array([5, 0])].times, data.times[[5, 0]])
    fleet = pp.Transitions.stack([random_data(3, 1), random_data(4, 2)])
    np.testing.assert_array_equal(fleet[1:3].actions, fleet.actions[:, 1:3])


@settings(max_examples=20)
@given(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3))
def test_padding_never_counts(rows, extra, seed):
    data = random_data(rows, seed)
    padded = data.pad(rows + extra)
    assert len(padded) == rows + extra and padded.valid.sum() == rows
    assert_same(padded[:rows], data)
    for name, value in fields(padded).items():
        assert np.all(np.isfinite(value)), name
    if rows:
        np.testing.assert_array_equal(padded.states[rows:], np.broadcast_to(data.states[-1], (extra, 2)))
        assert log_likelihood(padded) == pytest.approx(log_likelihood(data), rel=1e-13)
    assert_same(padded.pad(rows + extra), padded)


def test_the_log_likelihood_is_that_of_the_valid_rows_alone():
    """An independent sum over the rows, and a NaN in a row that does not count."""
    valid = np.array([True, False, True, True, False])
    clean = random_data(5, 3)
    outcomes, states, times = clean.next_states.copy(), clean.states.copy(), clean.times.copy()
    outcomes[1], states[4, 0], times[4] = np.nan, np.inf, np.nan
    data = pp.Transitions(states, clean.actions, outcomes, valid=valid, times=times)
    sd, total = np.array([0.3, 2.0]), 0.0
    for k in np.flatnonzero(valid):
        error = clean.next_states[k] - (clean.states[k] + 0.7 * clean.actions[k, 0])
        error[0] = (error[0] + np.pi) % (2 * np.pi) - np.pi
        total += np.sum(-0.5 * (error / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi))
    assert np.all(np.abs(clean.next_states[:, 0] - clean.states[:, 0]) < np.pi)  # no branch to choose in this oracle
    assert log_likelihood(data) == pytest.approx(total, rel=1e-12)
    with jax.enable_x64(True):
        gradient = jax.grad(density, argnums=1)(data, 0.7)
    assert np.isfinite(gradient)
    for name, value in fields(data).items():
        assert np.all(np.isfinite(value)), name


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_concatenation_keeps_every_row_in_order_and_adds_log_likelihoods(lengths):
    parts = [random_data(n, seed) for seed, n in enumerate(lengths)]
    whole = pp.Transitions.concatenate(parts)
    start = 0
    for part in parts:
        assert_same(whole[start : start + len(part)], part)
        start += len(part)
    assert len(whole) == start
    if start:
        expected = sum(log_likelihood(p) for p in parts if len(p))
        assert log_likelihood(whole) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_a_stack_holds_each_machine_and_its_padding(lengths):
    parts = [random_data(n, seed) for seed, n in enumerate(lengths)]
    fleet = pp.Transitions.stack(parts)
    assert fleet.batch_shape == (len(parts),) and len(fleet) == max(lengths)
    for m, part in enumerate(parts):
        assert_same(jax.tree.map(lambda x, m=m: x[m, : lengths[m]], fleet), part)
        assert fleet.valid[m].sum() == lengths[m]
    assert f"{len(parts)} machines" in repr(fleet)


def test_inputs_alone_are_padded_joined_and_stacked_too():
    a, b = random_data(2, 1).inputs, random_data(4, 2).inputs
    assert pp.Transitions.stack([a, b]).next_states is None
    assert len(pp.Transitions.concatenate([a, b])) == 6
    with pytest.raises(ValueError, match="some Transitions have next_states and some do not; use .inputs"):
        pp.Transitions.concatenate([a, random_data(2)])
    with pytest.raises(ValueError, match="no Transitions were given"):
        pp.Transitions.stack([])


def test_a_trajectory_gives_its_consecutive_pairs():
    rng = np.random.default_rng(0)
    states, actions, times = rng.normal(size=(5, 2)), rng.normal(size=(5, 1)), np.linspace(0, 1, 5)
    data = pp.Transitions.from_trajectory(states, actions[:4], times)
    np.testing.assert_array_equal(data.next_states[:-1], data.states[1:])
    np.testing.assert_array_equal(data.next_states[-1], states[-1])
    np.testing.assert_array_equal(data.times, times[:4])
    assert_same(data, pp.Transitions.from_trajectory(states, actions, times))  # the last action moves nothing
    with pytest.raises(ValueError, match=r"from_trajectory: states \(T \+ 1, D\).*got \(5, 2\).*\(3, 1\)"):
        pp.Transitions.from_trajectory(states, actions[:3])


@given(st.integers(1, 5000))
def test_buckets_are_the_next_power_of_two(rows):
    size = bucket(rows)
    assert rows <= size < 2 * rows or (rows, size) == (1, 1)
    assert size & (size - 1) == 0


def csv(tmp_path):
    """A recording in degrees and newton centimetres, with one column that nobody asked for; two recordings."""
    path = tmp_path / "recording.csv"
    rows = ["note,phi,velocity,torque,run"]
    rows += [f"x,{10 * k},{0.5 * k},{100 - k},{'a' if k < 3 else 'b'}" for k in range(6)]
    path.write_text("\n".join(rows))
    return path


def test_a_csv_is_read_by_name_and_its_units_are_converted(tmp_path):
    data = pp.Transitions.from_csv(
        csv(tmp_path), state, action, columns={"angle": "phi"}, units={"angle": "deg", "torque": "N cm"}
    )
    k = np.arange(6.0)
    expected = np.stack([np.deg2rad(10 * k), 0.5 * k], axis=-1)
    np.testing.assert_allclose(data.states, expected[:-1], rtol=1e-12)
    np.testing.assert_allclose(data.next_states, expected[1:], rtol=1e-12)
    np.testing.assert_allclose(data.actions[:, 0], (100 - k[:-1]) / 100, rtol=1e-12)


def test_no_transition_crosses_from_one_recording_to_the_next(tmp_path):
    data = pp.Transitions.from_csv(csv(tmp_path), state, action, columns={"angle": "phi"}, recording="run")
    np.testing.assert_array_equal(data.states[:, 0], [0, 10, 30, 40])
    np.testing.assert_array_equal(data.next_states[:, 0], [10, 20, 40, 50])


def test_a_csv_that_does_not_fit_says_what_is_missing(tmp_path):
    path = csv(tmp_path)
    with pytest.raises(KeyError, match=r"no column 'angle'.*Known: note, phi, velocity, torque, run"):
        pp.Transitions.from_csv(path, state, action)
    with pytest.raises(KeyError, match=r"no coordinate 'angel'. Did you mean 'angle'"):
        pp.Transitions.from_csv(path, state, action, columns={"angel": "phi"})
    with pytest.raises(KeyError, match="no coordinate 'tork'"):
        pp.Transitions.from_csv(path, state, action, columns={"angle": "phi"}, units={"tork": "N m"})
    with pytest.raises(KeyError, match="no column 'ruin'. Did you mean 'run'"):
        pp.Transitions.from_csv(path, state, action, columns={"angle": "phi"}, recording="ruin")
    with pytest.raises(TypeError, match="column 'note' must be numeric; got 'x' in row 0"):
        pp.Transitions.from_csv(path, state, action, columns={"angle": "note"})
    with pytest.raises(ValueError, match="coordinate 'torque': cannot convert 'kg' to 'N m'"):
        pp.Transitions.from_csv(path, state, action, columns={"angle": "phi"}, units={"torque": "kg"})


def test_xarray_units_come_from_the_attributes_and_go_back():
    k = np.arange(4.0)
    dataset = xarray.Dataset(
        {
            "angle": ("time", 90 * k, {"units": "deg"}),
            "speed": ("time", k, {"units": "rpm"}),
            "torque": ("time", k / 4),
        }
    )
    data = pp.Transitions.from_xarray(dataset, state, action, columns={"velocity": "speed"})
    np.testing.assert_allclose(data.states[:, 0], np.pi / 2 * k[:-1], rtol=1e-12)
    np.testing.assert_allclose(data.next_states[:, 1], 2 * np.pi / 60 * k[1:], rtol=1e-12)
    given_unit = pp.Transitions.from_xarray(
        dataset, state, action, columns={"velocity": "speed"}, units={"velocity": "deg/s"}
    )
    np.testing.assert_allclose(given_unit.states[:, 1], np.deg2rad(k[:-1]), rtol=1e-12)  # said is more than found
    back = data.pad(8).to_xarray(state, action)
    assert dict(back.sizes) == {"transition": 3, "state": 2, "action": 1}
    np.testing.assert_array_equal(back.states.sel(state="angle"), data.states[:, 0])
    np.testing.assert_array_equal(back.next_states, data.next_states)
    assert back.attrs["state_units"] == ["rad", "rad/s"] and back.attrs["action_units"] == ["N m"]


def test_a_rollout_answers_late_inputs_late():
    """A push shows in the velocity as many steps later as the inputs are late; whatever acted before them is given."""
    late, prompt = (pendulum.dynamics(input_delay=k) for k in (2, 0))
    push, sites = np.zeros((6, 1)), pendulum.truth
    push[0] = 1.0
    start = np.zeros(len(late.state))
    acted = np.concatenate([np.full((2, 1), 0.5), push[:4]])
    expected = pp.rollout(prompt.transition(sites), start, acted)
    np.testing.assert_allclose(pp.rollout(late.transition(sites), start, push, before=0.5), expected)
    several = pp.rollouts(late.transition(sites), start, np.repeat(push[..., None], 3, axis=2), before=0.5)
    np.testing.assert_allclose(several, np.repeat(expected[..., None], 3, axis=2), rtol=1e-6)
    still = np.asarray(pp.rollout(late.transition(sites), start, push))
    assert not np.any(still[:3]) and np.any(still[3])
    unsure = pendulum.dynamics(input_delay=dist.Uniform(0, 3))
    with pytest.raises(ValueError, match="input_delay has a prior.*rebound"):
        pp.rollout(unsure.transition(sites), start, push)
