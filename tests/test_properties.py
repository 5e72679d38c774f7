"""What no result may depend on, tried on problems that hypothesis draws; and derivatives, everywhere and twice.

Order of the rows, padding, precision of the data and the numbers of draws that are made are no part of a belief; units
and the origin of time move it as they must. Fits are of one size, so that they share one compiled program.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    linear_action,
    linear_data,
    linear_dynamics,
    linear_mean,
    linear_program,
    linear_sd,
    linear_state,
    recording,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.infer.util import log_density, potential_energy

import physppl as pp
from physppl.data.lengths import bucket
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import Laplace
from physppl.internal.progress import compile_clock
from physppl.models import pendulum

few = settings(max_examples=10)
seeds = st.integers(0, 2**16)
ROWS = 64  # one bucket


def belief(data, dynamics=None, backend=None):
    """Mode, covariance and log evidence."""
    with jax.enable_x64(True):
        posterior = pp.fit(jax.random.key(0), dynamics or linear_dynamics(), data, backend or Laplace())
        return tuple(map(np.asarray, (posterior.mode, posterior.factor.T @ posterior.factor, posterior.log_evidence)))


def equal(ours, theirs, tolerance=1e-10):
    """Relative to the largest entry."""
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@few
@given(seeds, st.permutations(range(40)))
def test_the_order_of_transitions_says_nothing(seed, order):
    data = linear_data(seed, rows=40)
    equal(belief(data[np.array(order)]), belief(data))


@few
@given(seeds, st.lists(st.booleans(), min_size=60, max_size=60).filter(lambda x: sum(x) > 32))
def test_rows_that_do_not_count_are_no_rows(seed, valid):
    """Whatever stands in them and wherever they stand; padding to the bucket is more of them."""
    data, valid = linear_data(seed, rows=60), np.array(valid)
    wrong = np.where(valid[:, None], data.next_states, np.nan)
    equal(belief(pp.Transitions(data.states, data.actions, wrong, valid=valid)), belief(data[valid]))


@few
@given(seeds)
def test_less_data_leave_more_open_down_to_the_prior(seed):
    """In every direction: what the prior had less what is left is positive semidefinite at every number of rows."""
    data, left = linear_data(seed, rows=ROWS), []
    for rows in (ROWS, 17, 5, 1, 0):
        mode, covariance, evidence = belief(
            pp.Transitions(data.states, data.actions, data.next_states, valid=np.arange(ROWS) < rows)
        )
        left.append(covariance)
    for less, more in zip(left[:-1], left[1:], strict=True):
        assert np.linalg.eigvalsh(more - less).min() > -1e-12
    equal((mode, covariance), (linear_mean, np.diag(linear_sd**2)), 1e-12)
    assert abs(evidence) < 1e-12


UNITS = np.array([1e3, 1 / 60])  # mm for m, and per minute for per second


def rescaled_program():
    """The linear Step in other units."""
    step = linear_program()
    return pp.Step(lambda t, x, u: UNITS * step.step(t, x / UNITS, u))


def test_other_units_are_the_same_machine():
    """The parameters stay, noises grow by the factor of their unit, and a density falls by that of its volume."""
    scales = {"level": linear_state.scale[0], "flow": linear_state.scale[1]}
    space = pp.StateSpace(**{k: pp.Real("", scale=v * c) for (k, v), c in zip(scales.items(), UNITS, strict=True)})
    one = pp.Dynamics(linear_program, linear_state, linear_action, dt=0.1)
    other = pp.Dynamics(rescaled_program, space, linear_action, dt=0.1)
    backend = Laplace(starts=2)
    for seed in range(3):
        data = linear_data(seed, rows=40)
        scaled = pp.Transitions(data.states * UNITS, data.actions, data.next_states * UNITS)
        mode, covariance, evidence = belief(data, one, backend)
        moved = np.append(np.zeros(4), np.log(UNITS))  # the logarithms of the noises
        expected = mode + moved, covariance, evidence - 40 * np.log(UNITS).sum()
        equal(belief(scaled, other, backend), expected, 1e-7)


@few
@given(seeds, st.floats(-1e3, 1e3))
def test_the_origin_of_time_says_nothing_where_nothing_depends_on_it(seed, origin):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.02, 0.08, 30))
    data = recording(pendulum.dynamics(), pendulum.truth, steps=30)
    rows, later = (
        pp.Transitions(data.states, data.actions, data.next_states, times=t) for t in (times, times + origin)
    )
    with jax.enable_x64(True):
        np.testing.assert_allclose(joint(later), joint(rows), rtol=1e-12)


@jax.jit
def joint(data):
    sites = {name: jnp.asarray(1.1 * value) for name, value in pendulum.truth.items()}
    return log_density(pendulum.dynamics(process_noise=0.1), (data,), {}, sites)[0]


def test_data_of_both_precisions_agree():
    """And so do the user's own results, which have the precision of the process."""
    data = linear_data(rows=40)
    single = pp.Transitions(*(np.float32(x) for x in (data.states, data.actions, data.next_states)))
    equal(belief(single), belief(data), 1e-3)
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), data, Laplace())
    results = []
    for double in (False, True):
        with jax.enable_x64(double):
            draw = posterior.draw(jax.random.key(1))
            real = np.float64 if double else np.float32
            path = pp.rollout(draw, np.zeros(2, real), np.full((20, 1), 0.3, real))
            gain = posterior.information_gain(data.states[:9].astype(real), data.actions[:9].astype(real))
            results.append((np.asarray(path), np.asarray(gain)))
    equal(*results, tolerance=1e-3)


def test_growing_data_compile_once_a_bucket():
    """Twenty fits of 35 to 111 rows: of each bucket only the first compiles anything."""
    data, seen = linear_data(rows=111), {}
    for rows in range(35, 112, 4):
        with compile_clock() as clock:
            pp.fit(jax.random.key(rows), linear_dynamics(), data[:rows], Laplace())
        seen.setdefault(bucket(rows), []).append(clock.programs)
    assert set(seen) == {64, 128} and sum(map(len, seen.values())) == 20
    assert all(not any(later) for _, *later in seen.values()), seen


def test_nothing_traced_is_left_behind():
    """A value of a trace that outlives it is an error of the user's next call; here of the call itself."""
    task = pp.Task(lambda x, u: -jnp.sum(x**2), steps=3)
    planner = pp.planning.ICEM(horizon=3, population=8, iterations=1, elites=3, keep=1)
    with jax.checking_leaks():
        posterior = pp.fit(jax.random.key(0), linear_dynamics(), linear_data(rows=8), Laplace(starts=1, steps=50))
        draw = posterior.draw(jax.random.key(1))
        posterior.predict(np.zeros((3, 2)), np.zeros((3, 1)))
        pp.rollout(draw, np.zeros(2), np.zeros((4, 1)))
        system = pp.SimulatedSystem(draw, np.zeros(2))
        pp.episode(jax.random.key(2), system, task, planner, draw)


# Derivatives ----------------------------------------------------------------------------------------------------------

STEP = 1e-5  # of central differences
ACTIONS = np.linspace(-2.0, 2.0, 8)[:, None]


def log_joint(z):
    """Of the pendulum's five virtual parameters, per transition."""
    dynamics = pendulum.dynamics()
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(30, 2)), rng.normal(size=(30, 1))
    data = pp.Transitions(states, actions, states + 0.1 * rng.normal(size=(30, 2)))
    space = UnconstrainedSpace.of(dynamics, data)
    return -potential_energy(dynamics, (data,), {}, space.split(z - jnp.array([0, 0, 0, 2.0, 2.0]))) / 30


def path(z):
    """Eight steps, of three parameters between their bounds, the first state and the actions."""
    part = jax.nn.sigmoid(z[:3])
    sites = {"mass": 0.2 + 2.8 * part[0], "length": 0.3 + 1.5 * part[1], "damping": 0.12 * part[2]}
    return pp.rollout(pendulum.dynamics().transition(sites), z[3:5], ACTIONS + z[5:, None])


def end(z):
    return jnp.sum(path(z)[-1])


def value(z):
    """What a planner maximises."""
    return pendulum.swing_up(path(z), ACTIONS + z[5:, None])


FUNCTIONS = [(log_joint, 5), (end, 13), (value, 13)]


@pytest.mark.parametrize("function, size", FUNCTIONS, ids=["log density", "rollout", "objective"])
def test_first_and_second_derivatives_hold_in_both_modes(function, size, x64):
    """Along a direction, each order of forward and reverse mode against central differences, to 1e-4."""

    @jax.jit
    def derivatives(z, v):
        forward = lambda z: jax.jvp(function, (z,), (v,))[1]  # noqa: E731
        reverse = lambda z: jax.grad(function)(z) @ v  # noqa: E731
        second = [jax.jvp(f, (z,), (v,))[1] for f in (forward, reverse)]
        second += [jax.grad(f)(z) @ v for f in (forward, reverse)]
        difference = lambda f: (f(z + STEP * v) - f(z - STEP * v)) / (2 * STEP)  # noqa: E731
        return jnp.stack([forward(z), reverse(z)]), difference(function), jnp.stack(second), difference(reverse)

    @settings(max_examples=20)
    @given(*2 * [st.lists(st.floats(-1.5, 1.5), min_size=size, max_size=size)])
    def hold(z, v):
        first, slope, second, curvature = derivatives(jnp.array(z), jnp.array(v))
        np.testing.assert_allclose(first, slope, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(second, curvature, rtol=1e-4, atol=1e-7)

    hold()
