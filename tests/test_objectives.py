"""Objectives and acquisitions: information gain against the algebra of linear beliefs, sums, terminal terms, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import clock_prior, drawn, linear_data, linear_dynamics

import physppl as pp
from physppl.control.agent import Agent
from physppl.control.episodes import play
from physppl.inference import Laplace
from physppl.models import pendulum
from physppl.planning import ICEM, RandomPolicy, RandomShooting
from physppl.planning.objectives import Constrained

TASK = pp.Task(lambda x, u: x[0] - u[0] ** 2, steps=10)


@pytest.fixture(scope="module")
def posterior():
    return pp.fit(jax.random.key(0), linear_dynamics(), linear_data()[:12], Laplace())


def plan(posterior, steps: int, seed: int = 0):
    """States (steps + 1, D) and actions (steps, A), whatever they are."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(steps + 1, len(posterior.model.state)))
    return jnp.asarray(states), jnp.asarray(rng.uniform(-1, 1, (steps, len(posterior.model.action))))


def test_the_joint_gain_is_the_fall_of_entropy_that_the_data_will_bring(posterior):
    """The likelihood is linear with known noise: what the outcomes are does not matter, only where they are seen."""
    with jax.enable_x64(True):
        states, actions = plan(posterior, 8)
        gain = float(pp.InformationGain().bind(TASK, posterior)(states, actions))
        seen = pp.Transitions(np.asarray(states[:-1]), np.asarray(actions), np.asarray(states[1:]))
        after = Laplace().update(jax.random.key(1), posterior, seen)
        assert gain == pytest.approx(float(posterior.entropy() - after.entropy()), abs=1e-7)
        assert gain == pytest.approx(float(posterior.information_gain(states[:-1], actions)), abs=1e-9)


def test_what_an_episode_has_shown_already_has_no_value_any_more(posterior):
    with jax.enable_x64(True):
        states, actions = plan(posterior, 9)
        value = Constrained(pp.InformationGain().bind(TASK, posterior), TASK)
        whole, total = float(value(states, actions)), 0.0
        for t in range(9):  # the chain rule of mutual information
            total += float(value(states[t : t + 2], actions[t : t + 1]))
            value = value.after(states[t], actions[t])
        assert total == pytest.approx(whole, abs=1e-9)
        again = float(value(states, actions))
        assert 0 < again < 0.7 * whole


def test_the_sum_of_steps_counts_twice_what_two_steps_both_tell():
    with jax.enable_x64(True):
        posterior = Laplace().prior(jax.random.key(0), linear_dynamics())  # one step tells much of it
        states, actions = plan(posterior, 1)
        joint, steps = (pp.InformationGain(joint=j).bind(TASK, posterior) for j in (True, False))
        assert float(joint(states, actions)) == pytest.approx(float(steps(states, actions)), abs=1e-10)
        states, actions = jnp.tile(states[:1], (6, 1)), jnp.tile(actions, (5, 1))  # the same again and again
        assert float(steps(states, actions)) == pytest.approx(5 * float(steps(states[:2], actions[:1])), rel=1e-9)
        assert float(joint(states, actions)) < 0.8 * float(steps(states, actions))


def test_sums_weights_and_terminal_terms(posterior):
    states, actions = plan(posterior, 5)
    last = pp.Terminal(lambda x: jnp.sum(x**2))
    mixed = (2.0 * (pp.TaskReward() + pp.InformationGain() * 0.05) + last).bind(TASK, posterior)
    parts = [term.bind(TASK, posterior)(states, actions) for term in (pp.TaskReward(), pp.InformationGain(), last)]
    assert float(mixed(states, actions)) == pytest.approx(float(2 * parts[0] + 0.1 * parts[1] + parts[2]), rel=1e-5)
    assert float(parts[2]) == pytest.approx(float(jnp.sum(states[-1] ** 2)), rel=1e-6)
    # Bound anew it is the same function: nothing compiles again.
    assert jax.tree.structure(mixed) == jax.tree.structure(
        (2.0 * (pp.TaskReward() + pp.InformationGain() * 0.05) + last).bind(TASK, posterior)
    )


def test_a_sample_based_belief_has_a_gain_too(posterior):
    """Its factor comes from draws, so that it holds to their number: the gain is half a log determinant of sums."""
    states, actions = plan(posterior, 6)
    both = (posterior, drawn(posterior))
    gains = [float(pp.InformationGain().bind(TASK, p)(states, actions)) for p in both]
    rank = int(posterior.factor.shape[0])
    assert abs(gains[0] - gains[1]) < 4 * np.sqrt(rank / (2 * 256)), gains  # sd of half a log determinant, 256 draws
    entropies = [float(p.entropy()) for p in both]
    assert abs(entropies[0] - entropies[1]) < 4 * np.sqrt(rank / (2 * 1600)), entropies


def test_limits_cost_for_every_planned_state_outside():
    limits = pp.Limits(pendulum.state, angle=(-1.0, 2.0))
    task = pp.Task(lambda x, u: 0.0, steps=5, limits=limits, penalty=3.0)
    states = jnp.array([[9.0, 0.0], [2.0, 50.0], [-1.0, 0.0], [2.5, 0.0], [-3.0, 0.0]])  # the first is where it is
    assert float(task(states, jnp.zeros((4, 1)))) == pytest.approx(-3.0 * ((1 + 0.5) + (1 + 2.0)))
    assert float(task.earned(states, jnp.zeros((4, 1)))) == 0.0
    fast = pp.Limits(pendulum.state, velocity=(-np.inf, 8.0))  # in units of the scale, 4 rad/s
    assert float(fast.excess(jnp.array([0.0, 10.0]))) == pytest.approx(0.5)
    assert float(fast.excess(jnp.array([0.0, -1e6]))) == 0.0
    with pytest.raises(KeyError, match="has no coordinate 'anlge'. Did you mean 'angle'"):
        pp.Limits(pendulum.state, anlge=(0, 1))
    with pytest.raises(ValueError, match="angle needs low < high; got 1 and 0"):
        pp.Limits(pendulum.state, angle=(1, 0))


def test_planners_pay_what_a_task_says_for_its_limits():
    limits = pp.Limits(pendulum.state, angle=(-1.0, 2.0))
    task = pp.Task(lambda x, u: x[1], steps=3, limits=limits, penalty=3.0)
    states, actions = jnp.array([[0.0, 0.0], [2.5, 1.0], [0.0, 4.0]]), jnp.zeros((2, 1))
    assert float(Constrained(task.earned, task)(states, actions)) == float(task(states, actions)) == 5.0 - 3.0 * 1.5


def test_a_terminal_value_is_counted_once():
    task = pp.Task(lambda x, u: x[0] - u[0], steps=3, terminal=lambda x: 10.0 * x[1])
    states, actions = jnp.array([[9.0, 9.0], [1.0, 9.0], [2.0, 0.5]]), jnp.array([[0.25], [0.5]])
    assert float(task(states, actions)) == (1.0 - 0.25) + (2.0 - 0.5) + 10.0 * 0.5


@pytest.mark.parametrize("joint", [True, False])
def test_information_gain_counts_time(joint):
    """Of s' = s + gain t, gain of sd .1: a step at time t tells about gain with the factor t .1 / noise."""
    with jax.enable_x64(True):
        value = Constrained(pp.InformationGain(joint=joint).bind(TASK, clock_prior(noise=0.01)), TASK)
        states, actions = jnp.zeros((4, 1)), jnp.zeros((3, 1))
        for begin in (0, 1, 2):
            told = (0.1 * np.arange(6) * 0.1 / 0.01) ** 2
            now, past = told[begin : begin + 3], told[:begin].sum()
            exact = 0.5 * np.log((1 + past + now.sum()) / (1 + past)) if joint else 0.5 * np.log1p(now).sum()
            assert float(value(states, actions)) == pytest.approx(exact, abs=1e-9)
            value = value.after(states[0], actions[0])


@pytest.mark.science
def test_an_exploring_machine_keeps_to_its_limits():
    """One joint free to turn, told to stay within half a radian: information alone would swing it around."""
    limits = pp.Limits(pendulum.state, angle=(-0.5, 0.5))
    system, known = pendulum.system(noise=1e-3), pendulum.dynamics()
    share = {}
    for name, keep in (("kept", limits), ("free", None)):
        task, planner = pp.Task(pendulum.swing_up.reward, 60, limits=keep), ICEM(horizon=15, population=64)
        run = pp.psal(jax.random.key(0), system, task, known, Laplace(), planner, episodes=3)
        share[name] = np.mean(np.abs(np.asarray(run.episodes.states)[1:, :, 0]) > 0.5)  # once it has seen anything
        assert run.information[0] > 0
    assert share["kept"] < 0.05 < 0.15 < share["free"], share


def test_thompson_redraws_and_averages_and_the_mean_does_neither(posterior):
    key = jax.random.key(3)
    one = pp.Thompson().stages(key, posterior, 10)
    assert all(leaf.shape[:2] == (1, 1) for leaf in jax.tree.leaves(one))
    again = pp.Thompson(every=4, draws=3).stages(key, posterior, 10)
    leaves = jax.tree.leaves(again.sites)
    assert all(leaf.shape[:2] == (3, 3) for leaf in leaves)  # 4 + 4 + 2 steps, three draws each
    assert all(len(np.unique(np.asarray(leaf))) == leaf.size for leaf in leaves)
    mean = pp.PosteriorMean()(key, posterior)
    states, actions = plan(posterior, 6)
    for x, u in zip(states, actions, strict=False):
        np.testing.assert_allclose(mean(x, u), posterior.basis(x, u)[0], atol=1e-5)
    with pytest.raises(ValueError, match="every must be at least 1"):
        pp.Thompson(every=0)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        pp.Thompson(draws=0)


def test_the_mean_of_a_belief_held_as_draws_is_the_mean_of_their_functions(posterior):
    sampled = drawn(posterior)
    states, actions = plan(sampled, 5)
    mean, spread = sampled.basis(states[0], actions[0])
    sd = np.sqrt(np.sum(np.asarray(spread) ** 2, axis=-1))
    found = sampled.mean()(states[0], actions[0])
    assert np.all(np.abs(found - mean) < 4 * sd / np.sqrt(16) + 1e-6)  # of 16 draws


def test_a_part_of_an_episode_acts_on_its_own_draw(posterior):
    """Where two draws differ, plans change at the step where the second begins, and not before."""
    system = pp.SimulatedSystem(posterior.model.transition(dict(posterior.mean().sites), 0.0), np.zeros(2))
    task, planner = pp.Task(lambda x, u: -jnp.sum((x - 1.0) ** 2), steps=8), RandomShooting(horizon=4, population=32)
    runs = []
    for last in (1.0, -1.0):
        a = posterior.draw(jax.random.key(0))
        b = jax.tree.map(lambda x, last=last: last * x, posterior.draw(jax.random.key(1)))
        stages = jax.tree.map(lambda *x: jnp.stack(x)[:, None], a, b)
        agent = Agent(planner, stages, Constrained(task.earned, task), 5)
        runs.append(np.asarray(play(jax.random.key(2), system, task, agent).actions))
    assert np.array_equal(runs[0][:5], runs[1][:5]) and not np.array_equal(runs[0][5:], runs[1][5:])


def test_act_is_the_same_agent_as_in_the_loop():
    """It swings the machine up, and its actions are those of the pure agent with the same keys."""
    system, key = pendulum.system(noise=0.0), jax.random.key(1)
    run = pp.psrl(
        jax.random.key(0), system, pendulum.swing_up, pendulum.dynamics(), Laplace(), ICEM(), 1, explore=RandomPolicy()
    )
    actor, state = run.agent(key, pp.PosteriorMean()), np.zeros(2)
    states = [state]
    for _ in range(pendulum.swing_up.steps):
        action = actor.act(states[-1])
        assert action.shape == (1,) and np.all(action >= pendulum.action.low) and np.all(action <= pendulum.action.high)
        states.append(np.asarray(system.transition(states[-1], action)))
    assert pendulum.swing_up.solved(jnp.asarray(np.array(states)))
    # By hand: the pure agent of the loop, with the keys that the actor folds.
    transitions = pp.PosteriorMean().stages(key, run.posterior, 1)
    value = pp.TaskReward().bind(run.task, run.posterior)
    agent, act_key = Agent(ICEM(), transitions, Constrained(value, run.task), None), jax.random.split(key)[1]
    actor.reset()
    for episode in (1, 2):
        memory = agent.init()
        for step, x in enumerate(states[:4]):
            folded = jax.random.fold_in(jax.random.fold_in(act_key, episode), step)
            expected, memory, _ = jax.jit(Agent.control)(agent, folded, memory, jnp.asarray(x, jnp.float32))
            np.testing.assert_allclose(actor.act(x), expected, atol=1e-6)
        actor.reset()
    with pytest.raises(ValueError, match=r"one observation is \(2,\) \(angle, velocity\); got shape \(3,\)"):
        actor.act(np.zeros(3))
