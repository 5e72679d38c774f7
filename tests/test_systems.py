"""Simulated machines with what real ones have: dead bands, delays, lags, changes while they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import physppl as pp
from physppl.control.agent import Agent
from physppl.control.episodes import solved_episodes
from physppl.inference import Laplace
from physppl.models import furuta, pendulum
from physppl.planning import ICEM, Planner, RandomPolicy, RandomShooting
from physppl.planning.objectives import Constrained

DT = 0.05
TASK = pp.Task(lambda x, u: x[0], 20)


class Seer(Planner):
    """Does nothing and says where that leads in five steps."""

    @property
    def evaluations(self):
        return 5

    def init(self, action):
        return None

    def plan(self, key, transitions, objective, state, plan_state):
        still = jnp.zeros((5, 1, 1))
        seen = pp.rollouts(jax.tree.map(lambda x: x[0], transitions), state, still)
        return still[..., 0], None, {"value": seen[-1, 0, 0], "failed": jnp.zeros(())}


def driven(actuator: pp.Actuator, commands) -> np.ndarray:
    """What acts, step by step."""
    memory, out = actuator.init(np.shape(commands)[1]), []
    for command in commands:
        acting, memory = actuator.drive(jnp.asarray(command), memory, DT)
        out.append(np.asarray(acting))
    return np.array(out)


def test_a_dead_band_swallows_small_commands_and_shortens_large_ones():
    commands = np.array([[0.1], [-0.3], [0.5], [-2.0]], np.float32)
    np.testing.assert_allclose(driven(pp.Actuator(dead_band=0.3), commands)[:, 0], [0, 0, 0.2, -1.7], atol=1e-6)
    both = np.array([[1.0, 1.0]], np.float32)
    np.testing.assert_allclose(driven(pp.Actuator(dead_band=(0.0, 0.4)), both), [[1.0, 0.6]], atol=1e-6)


def test_a_delay_is_a_whole_number_of_steps_of_rest_and_then_the_past():
    commands = np.arange(1.0, 8.0, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(driven(pp.Actuator(delay=3), commands)[:, 0], [0, 0, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(driven(pp.Actuator(), commands), commands)
    with pytest.raises(ValueError, match="delay must be a whole number of control steps from 0 on; got -1"):
        pp.Actuator(delay=-1)
    with pytest.raises(ValueError, match="dead_band must not be negative"):
        pp.Actuator(dead_band=(0.1, -0.1))
    with pytest.raises(ValueError, match="lag must be seconds"):
        pp.Actuator(lag=-0.1)


def test_a_lag_is_the_mean_of_a_first_order_response_over_each_step():
    rng, lag = np.random.default_rng(0), 0.08
    commands = rng.uniform(-1, 1, (12, 1))
    output, means = 0.0, []
    for command in commands[:, 0]:  # the output, and its integral beside it
        rate = lambda t, y, u=command: [(u - y[0]) / lag, y[0]]  # noqa: E731
        found = solve_ivp(rate, (0, DT), [output, 0.0], rtol=1e-10, atol=1e-12).y[:, -1]
        output = found[0]
        means.append(found[1] / DT)
    with jax.enable_x64(True):
        np.testing.assert_allclose(driven(pp.Actuator(lag=lag), commands)[:, 0], means, atol=1e-8)


def test_a_machine_behind_an_actuator_feels_what_passes_it():
    plain = pendulum.system(noise=0.0, initial_sd=0.0)
    imperfect = plain.with_actuator(dead_band=0.4, delay=2, lag=0.1)
    task = pp.Task(pendulum.swing_up.reward, steps=40)
    record = pp.episode(jax.random.key(0), imperfect, task, RandomPolicy(), plain.transition)
    acting = driven(pp.Actuator(dead_band=0.4, delay=2, lag=0.1), np.asarray(record.actions))
    np.testing.assert_allclose(record.states, pp.rollout(plain.transition, np.zeros(2), acting), atol=2e-5)
    commanded = pp.rollout(plain.transition, np.zeros(2), record.actions)
    assert np.abs(np.asarray(record.states) - np.asarray(commanded)).max() > 0.05


def test_parameters_change_at_their_step_of_their_episode_and_stay_changed():
    system = furuta.system(0.01, initial_sd=0.0).changed(step=10, episode=1, pendulum_mgl=0.03)
    task = pp.Task(lambda x, u: x[0], steps=30)
    known = furuta.system(0.01).transition
    heavy = known.dynamics.transition({**known.sites, "pendulum_mgl": 0.03}, 0.0)
    for episode, change in ((0, 30), (1, 10), (2, 0), (5, 0)):
        record = pp.episode(jax.random.key(episode), system.at(episode), task, RandomPolicy(), known)
        x = np.zeros(4)
        for k, action in enumerate(np.asarray(record.actions)):
            x = (known if k < change else heavy)(x, action)
            np.testing.assert_allclose(record.states[k + 1], x, atol=2e-4)
    with pytest.raises(ValueError, match="changes once"):
        system.changed(pendulum_mgl=0.02)
    with pytest.raises(KeyError, match="pendulum_mgll.*Did you mean"):
        furuta.system(0.01).changed(pendulum_mgll=0.03)


def test_a_loop_meets_the_change_when_it_comes():
    system = pendulum.system(noise=0.0).changed(episode=2, mass=2.0)
    task, planner = pp.Task(pendulum.swing_up.reward, steps=20), RandomShooting(horizon=5, population=16)
    run = pp.psrl(jax.random.key(0), system, task, pendulum.dynamics(), Laplace(), planner, episodes=3)
    light = pendulum.system(noise=0.0).transition
    heavy = light.dynamics.transition({**light.sites, "mass": 2.0}, 0.0)
    for i, truth in enumerate((light, light, heavy)):
        states, actions = run.episodes.states[i], run.episodes.actions[i]
        replayed = pp.rollout(truth, states[0], actions)
        np.testing.assert_allclose(states, replayed, atol=1e-4)
    assert [s["compile"] for s in run.seconds[1:]] == [0.0, 0.0]  # a change is a value


def test_the_time_of_an_episode_reaches_the_machine():
    """x' = t: after k steps x is the sum of the starts of the steps and half a step each."""
    state, action = pp.StateSpace(place=pp.Real("m")), pp.ActionSpace(push=pp.Bounded(-1.0, 1.0))
    clock = pp.Dynamics(lambda: lambda t, x, u: jnp.full_like(x, t), state, action, dt=0.1)
    system = pp.SimulatedSystem(clock.transition({}, noise=0.0), [0.0])
    record = pp.episode(jax.random.key(0), system, pp.Task(lambda x, u: x[0], 20), RandomPolicy(), system.transition)
    times = 0.1 * np.arange(21)
    np.testing.assert_allclose(record.states[:, 0], times**2 / 2, atol=1e-6)
    # And the plans: five steps on from step k, x is where the true machine will be.
    agent = Agent(Seer(), jax.tree.map(lambda x: x[None, None], system.transition), Constrained(sum, TASK), None)
    memory = agent.init()
    for k in range(8):
        _, memory, info = agent.control(jax.random.key(0), memory, record.states[k])
        np.testing.assert_allclose(info["value"], times[k + 5] ** 2 / 2, atol=1e-6)


def test_a_machine_and_an_agent_of_different_steps_are_refused():
    task, planner, backend = pendulum.swing_up, RandomPolicy(), Laplace(starts=1)
    with pytest.raises(ValueError, match=r"the machine's dt, s, and .* of the agent's dynamics differ: 0.05 and 0.02"):
        pp.psrl(jax.random.key(0), pendulum.system(), task, pendulum.dynamics(dt=0.02), backend, planner, 1)
    with pytest.raises(ValueError, match="state coordinates .* differ"):
        pp.episode(jax.random.key(0), pendulum.system(), task, planner, furuta.system(0.05).transition)


class Falls(pp.SimulatedSystem):
    """Ends after one step."""

    def step(self, key, state, action):
        state, observation, _ = super().step(key, state, action)
        return state, observation, jnp.ones((), bool)


def test_an_episode_that_ended_by_itself_is_not_solved_by_its_padding():
    system = Falls(pendulum.system().transition, [np.pi, 0.0])
    record = pp.episode(jax.random.key(0), system, pendulum.swing_up, RandomPolicy(), system.transition)
    assert bool(pendulum.swing_up.solved(record.states)) and bool(record.terminated)
    assert not solved_episodes(pendulum.swing_up, record)
    still = pp.SimulatedSystem(pendulum.system(noise=0.0).transition, [np.pi, 0.0])
    record = pp.episode(jax.random.key(0), still, pendulum.swing_up, ICEM(), still.transition)
    assert solved_episodes(pendulum.swing_up, record)


def test_plans_without_a_finite_value_are_told():
    system = pendulum.system()
    task = pp.Task(lambda x, u: jnp.log(-1 - x[0] ** 2), steps=5)
    with pytest.warns(pp.PhyspplWarning, match="at 5 of 5 control steps no plan had a finite value"):
        pp.episode(jax.random.key(0), system, task, ICEM(horizon=5, population=30), system.transition)
