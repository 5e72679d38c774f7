"""Threads and processes: fits side by side, a refit beside a control loop, and posteriors that travel by pickle."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import linear_action, linear_data, linear_dynamics, linear_state

import physppl as pp
from physppl.control.agent import Agent
from physppl.inference import Laplace
from physppl.planning import RandomShooting
from physppl.planning.objectives import Constrained

ROUNDS = [2, pytest.param(20, marks=pytest.mark.science)]
BACKEND = Laplace(starts=2)
SIZES = (8, 16, 32, 64)
TASK = pp.Task(lambda x, u: -(x[0] ** 2), steps=10)


def new_dynamics() -> pp.Dynamics:
    """A Dynamics whose program is an object of its own, so that every fit of it runs the model anew."""

    def program():
        gain = pp.physical("gain", 0.0, 2.0, unit="m")
        leak = pp.physical("leak", 0.0, 1.0)
        return pp.Step(lambda t, x, u: x + gain * u[0] - leak * jnp.flip(x))

    return pp.Dynamics(program, linear_state, linear_action, dt=0.1, process_noise=[0.05, 0.2])


def refit(rows: int) -> bytes:
    """Mode and factor, bit by bit, of a fit of `rows` transitions."""
    posterior = pp.fit(jax.random.key(rows), new_dynamics(), linear_data(rows=rows), BACKEND)
    return np.asarray(posterior.mode).tobytes() + np.asarray(posterior.factor).tobytes()


def act(steps: int) -> list[bytes]:
    """Actions of an agent that plans in a program of its own."""
    transitions = jax.tree.map(lambda x: x[None, None], new_dynamics().transition({"gain": 1.0, "leak": 0.1}))
    agent = Agent(RandomShooting(horizon=5, population=16), transitions, Constrained(TASK.earned, TASK), None)
    actor = agent.actor(jax.random.key(3))
    return [actor.act(np.array([0.1 * k, 0.0])).tobytes() for k in range(steps)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_fits_in_threads_are_those_one_after_the_other(rounds):
    alone = [refit(rows) for rows in SIZES]
    with ThreadPoolExecutor(len(SIZES)) as pool:
        for _ in range(rounds):
            assert list(pool.map(refit, SIZES)) == alone


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_refit_beside_a_loop_disturbs_neither(rounds):
    fitted, actions = refit(16), act(20)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            running = pool.submit(act, 20)
            assert pool.submit(refit, 16).result() == fitted and running.result() == actions


@pytest.fixture(scope="module")
def posterior():
    return pp.fit(jax.random.key(0), linear_dynamics(), linear_data(), BACKEND)


def test_pickle_keeps_precision_and_draws(posterior):
    again = pickle.loads(pickle.dumps(posterior))
    for one, other in zip(jax.tree.leaves(posterior), jax.tree.leaves(again), strict=True):
        assert one.dtype == other.dtype and np.asarray(one).tobytes() == np.asarray(other).tobytes()
    state, action, key = np.ones(2), np.ones(1), jax.random.key(1)
    np.testing.assert_array_equal(again.draw(key)(state, action), posterior.draw(key)(state, action))
    assert again.timing == posterior.timing


def test_pickle_keeps_transitions_data_and_keys(posterior, x64):
    transition = posterior.draw(jax.random.key(1))
    switching = pp.TrajectorySampling(draws=2, switch=True).particles(jax.random.key(2), posterior)
    for value in (transition, switching, jax.tree.map(jnp.asarray, linear_data())):
        again = pickle.loads(pickle.dumps(value))
        for one, other in zip(jax.tree.leaves(value), jax.tree.leaves(again), strict=True):
            assert one.dtype == other.dtype
            if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
                one, other = map(jax.random.key_data, (one, other))
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
