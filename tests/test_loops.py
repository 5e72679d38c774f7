"""The loop: posterior sampling swings a pendulum up from its prior; what an episode and a run record."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import clock_dynamics, example, recording

import physppl as pp
from physppl.control.episodes import Episode
from physppl.control.replay import ReplayBuffer
from physppl.inference import Laplace
from physppl.models import pendulum
from physppl.planning import ICEM, RandomPolicy, RandomShooting

psrl_pendulum = example("psrl_pendulum")
SEEDS = range(10)
SHORT = pp.Task(pendulum.swing_up.reward, steps=15)
PLANNER = RandomShooting(horizon=5, population=16)


@functools.cache
def learned(coulomb: float, seed: int) -> pp.Run:
    return psrl_pendulum.learn(pendulum.system(coulomb), seed, episodes=3)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    "coulomb, seeds",
    [(0.0, SEEDS), (0.1, SEEDS[:3]), pytest.param(0.1, SEEDS, marks=pytest.mark.science)],
    ids=["well-specified", "unknown-friction", "unknown-friction-ten"],
)
def test_psrl_swings_up_by_the_third_episode_on_every_seed(coulomb, seeds):
    runs = [learned(coulomb, seed) for seed in seeds]
    ends = np.array([np.abs(run.episodes.states[:, -50:, 0] % (2 * np.pi) - np.pi).max(axis=1) for run in runs])
    assert ends.shape == (len(seeds), 3)
    assert np.all(ends.min(axis=1) < 0.2), f"largest angle error of the last 50 steps, rad:\n{ends}"
    assert np.array_equal(ends < 0.2, [run.solved for run in runs])


@pytest.mark.usefixtures("optimised")
def test_the_oracle_stands_and_the_random_policy_does_not():
    system = pendulum.system()
    oracle = [psrl_pendulum.baseline(system, seed, ICEM()) for seed in SEEDS]
    random = [psrl_pendulum.baseline(system, seed, RandomPolicy()) for seed in SEEDS]
    assert all(pendulum.swing_up.solved(e.states) for e in oracle)
    assert not any(pendulum.swing_up.solved(e.states) for e in random)
    third = [float(learned(0.0, seed).episodes.returns[-1]) for seed in SEEDS]
    assert max(float(e.returns) for e in random) < min(third)
    # The third episode costs nothing against knowing the machine: within four standard errors of the difference.
    known = [float(e.returns) for e in oracle]
    error = np.hypot(np.std(third, ddof=1), np.std(known, ddof=1)) / np.sqrt(len(SEEDS))
    assert np.mean(third) > np.mean(known) - 4 * error


def test_the_first_episode_acts_on_a_draw_of_the_prior_and_later_ones_on_the_data():
    seen, dynamics = [], pendulum.dynamics()

    def acquisition(key, posterior):
        seen.append((posterior, key, posterior.draw(key)))
        return seen[-1][2]

    run = pp.psrl(
        jax.random.key(0), pendulum.system(), SHORT, dynamics, Laplace(), PLANNER, episodes=3, acquisition=acquisition
    )
    assert [int(np.sum(p.data.valid)) for p, _, _ in seen] == [0, 15, 30]
    assert int(np.sum(run.posterior.data.valid)) == 45
    prior, key, draw = seen[0]
    mode, factor = np.asarray(prior.mode)[:3], np.asarray(prior.factor)
    assert np.allclose(mode, 0.0, atol=1e-8)  # virtual parameters are N(0, 1)
    assert np.allclose((factor.T @ factor)[:3, :3], np.eye(3), atol=1e-8)
    again = Laplace().prior(jax.random.key(7), dynamics).draw(key)
    for ours, expected in zip(jax.tree.leaves(draw), jax.tree.leaves(again), strict=True):
        assert np.allclose(ours, expected, rtol=1e-5)
    # What the last fit knows is what the episodes recorded, in order.
    states = np.asarray(run.episodes.states)
    assert np.allclose(np.asarray(run.posterior.data.states)[:45], states[:, :-1].reshape(45, 2))
    assert np.allclose(np.asarray(run.data.next_states), states[:, 1:].reshape(45, 2))
    assert np.allclose(np.asarray(run.data.actions), np.asarray(run.episodes.actions).reshape(45, 1))


def test_data_known_before_the_first_episode_are_used():
    known, seen = recording(pendulum.dynamics(), pendulum.truth, steps=30), []

    def acquisition(key, posterior):
        seen.append(posterior)
        return posterior.draw(key)

    arguments = (jax.random.key(0), pendulum.system(), SHORT, pendulum.dynamics(), Laplace(), PLANNER)
    run = pp.psrl(*arguments, episodes=1, acquisition=acquisition, data=known)
    alone = pp.fit(jax.random.key(0), pendulum.dynamics(), known, Laplace())
    assert np.allclose(seen[0].mode, alone.mode, atol=1e-7)
    assert len(run.data) == 45 and np.allclose(run.data.states[:30], known.states)


def test_an_episode_records_what_happened():
    system = pendulum.system(noise=0.0)
    record = pp.episode(jax.random.key(3), system, SHORT, PLANNER, system.transition)
    assert record.states.shape == (16, 2) and record.actions.shape == (15, 1)
    assert np.all(record.valid) and np.all(record.failed == 0.0)
    replayed = pp.rollout(system.transition, record.states[0], record.actions)
    assert np.allclose(replayed, record.states, atol=1e-5)
    by_hand = [pendulum.swing_up.reward(x, u) for x, u in zip(record.states[1:], record.actions, strict=True)]
    assert np.allclose(record.rewards, by_hand, atol=1e-5)
    assert np.isclose(record.returns, np.sum(by_hand), atol=1e-4)
    again = pp.episode(jax.random.key(3), system, SHORT, PLANNER, system.transition)
    assert np.array_equal(record.states, again.states)


def test_measurement_noise_is_in_the_record_and_not_in_the_reward():
    system = pendulum.system(noise=0.0, measurement_sd=(0.1, 0.3), initial_sd=0.0)
    task = pp.Task(pendulum.swing_up.reward, steps=400)
    record = pp.episode(jax.random.key(0), system, task, RandomPolicy(), system.transition)
    truth = pp.rollout(system.transition, np.zeros(2), record.actions)  # it hangs at rest
    errors = np.asarray(record.states - truth)  # the first state is observed no better than the others
    assert np.all(np.abs(errors.std(0) / [0.1, 0.3] - 1) < 4 / np.sqrt(2 * 401)) and np.all(errors[0] != 0)
    rewards = jax.vmap(pendulum.swing_up.reward)(truth[1:], record.actions)
    assert np.allclose(record.rewards, rewards, atol=1e-3)


class Fragile(pp.SimulatedSystem):
    """Ends where the speed passes 1 rad/s."""

    def step(self, key, state, action):
        state, observation, _ = super().step(key, state, action)
        return state, observation, jnp.abs(self.physical(state)[1]) > 1.0


def test_a_terminated_episode_is_frozen_and_its_rest_does_not_count():
    system = Fragile(pendulum.system().transition, [0.0, 0.0])
    task = pp.Task(lambda x, u: jnp.abs(x[1]), steps=60)
    run = pp.psrl(jax.random.key(1), system, task, pendulum.dynamics(), Laplace(), PLANNER, episodes=2)
    for states, valid in zip(np.asarray(run.episodes.states), np.asarray(run.episodes.valid), strict=True):
        steps = int(valid.sum())
        assert 0 < steps < 60 and not valid[steps:].any()
        assert np.all(np.abs(states[:steps, 1]) <= 1.0) and abs(states[steps, 1]) > 1.0
        assert np.all(states[steps + 1 :] == states[steps])
    assert np.allclose(run.episodes.returns, np.where(run.episodes.valid, run.episodes.rewards, 0.0).sum(1), rtol=1e-6)
    assert int(run.data.valid.sum()) == int(np.sum(run.episodes.valid))
    assert np.all(run.episodes.terminated)  # and not by the limit of time


def test_a_system_that_diverges_is_named():
    wild = pp.Dynamics(lambda: pp.Step(lambda t, x, u: 1e12 * x), pendulum.state, pendulum.action, dt=0.05)
    wild = pp.SimulatedSystem(wild.transition({}, noise=0.0), [0.1, 0.1])
    with pytest.raises(FloatingPointError, match="'(angle|velocity)' is not finite from step"):
        pp.episode(jax.random.key(0), wild, SHORT, RandomPolicy(), wild.transition)


def test_a_run_prints_its_episodes():
    text = str(learned(0.0, 0)).splitlines()
    assert len(text) == 4 and text[0].split()[:4] == ["episode", "return", "best", "solved"]
    assert float(text[3].split()[1]) == pytest.approx(float(learned(0.0, 0).episodes.returns[2]), abs=0.006)
    with pytest.raises(ValueError, match="episodes must be a whole number of at least 1"):
        pp.psrl(jax.random.key(0), pendulum.system(), SHORT, pendulum.dynamics(), Laplace(), PLANNER, episodes=0)


@functools.cache
def clock_run() -> tuple[pp.Run, list]:
    """Three short episodes of a machine that reads the time, and the keys by which the loop drew."""
    keys, dynamics = [], clock_dynamics()

    def acquisition(key, posterior):
        keys.append(tuple(np.asarray(jax.random.key_data(key))))
        return posterior.draw(key)

    system = pp.SimulatedSystem(dynamics.transition({"gain": 1.3}, 0.0), np.zeros(1))
    task = pp.Task(lambda x, u: x[0], steps=4)
    arguments = (jax.random.key(0), system, task, dynamics, Laplace(), RandomPolicy())
    return pp.psrl(*arguments, episodes=3, acquisition=acquisition), keys


def test_episodes_have_keys_of_their_own():
    run, keys = clock_run()
    assert len(set(keys)) == 3
    assert len(np.unique(run.episodes.actions)) == run.episodes.actions.size


def test_loop_data_are_timed_in_seconds():
    """What the agent fits is s' = s + gain t without noise: the residuals vanish where its times are the machine's."""
    run, _ = clock_run()
    np.testing.assert_allclose(run.data.times, np.tile([0.0, 0.1, 0.2, 0.3], 3), atol=1e-12)
    change = np.asarray(run.data.next_states - run.data.states)[:, 0]
    np.testing.assert_allclose(change, 1.3 * run.data.times, atol=1e-6)


def test_steps_after_an_end_are_no_data():
    dynamics, valid = clock_dynamics(), np.array([True, True, False])
    record = Episode(np.arange(4.0)[:, None], np.zeros((3, 1)), np.zeros(3), valid, np.array(True), np.zeros(3))
    memory = ReplayBuffer(dynamics, 3, 2, None)
    memory.add(record)
    assert np.array_equal(memory.data().valid, [True, True, False, False, False, False])
    assert np.array_equal(memory.data().next_states[:3, 0], [1.0, 2.0, 3.0])


def test_every_episode_has_keys_of_its_own():
    """Random actions of two episodes of one loop differ in every step; those of a second loop are the same."""
    task = pp.Task(pendulum.swing_up.reward, steps=8)
    arguments = (pendulum.system(), task, pendulum.dynamics(), Laplace(starts=1), RandomPolicy(), 2)
    first, again = (pp.psrl(jax.random.key(0), *arguments).episodes.actions for _ in range(2))
    assert np.all(np.abs(first[0] - first[1]) > 1e-6) and np.array_equal(first, again)
