"""Every planner: its contract, its bounds, its budget."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import blind_planners, planners
from planning_problem import DT, action, dynamics, particles, reach, simulate, state

import physppl as pp
from physppl.planning import ICEM, MPPI, GradientShooting, Multisine, RandomPolicy, RandomShooting, Spline, White

parametrise = pytest.mark.parametrize("planner", planners)


def furthest_return(states, actions):
    """Not a sum of stages: how far out, times how near to the start in the end."""
    return states[:, 0].max() - 2.0 * abs(states[-1, 0] - states[0, 0]) - 0.1 * states[:, 1].var()


task = pp.Task(lambda x, u: -((x[0] - 1.0) ** 2) - 0.01 * jnp.sum(u**2), steps=40)


@pytest.mark.parametrize("planner", planners + blind_planners)
def test_plans_keep_their_shapes_and_bounds(planner, getkey):
    plan_state = planner.init(action)
    step = jax.jit(lambda k, s: planner.plan(k, particles(1.0), lambda x, u: 50 * x[-1, 0], jnp.zeros(2), s))
    for _ in range(3):
        actions, after, info = step(getkey(), plan_state)
        horizon = getattr(planner, "horizon", 1)
        assert actions.shape == (horizon, 2)
        assert np.all(actions >= action.low) and np.all(actions <= action.high)
        assert jax.tree.structure(after) == jax.tree.structure(plan_state)
        assert [x.shape for x in jax.tree.leaves(after)] == [x.shape for x in jax.tree.leaves(plan_state)]
        assert info["failed"] == 0.0 and jnp.shape(info["value"]) == ()
        plan_state = after


@parametrise
def test_the_value_of_a_plan_is_the_objective_of_its_trajectory_averaged_over_particles(planner):
    objective = furthest_return
    start, gains = jnp.array([0.1, -0.2]), (0.5, 1.0, 1.8)
    plan = jax.jit(lambda k: planner.plan(k, particles(*gains), objective, start, planner.init(action)))
    actions, _, info = plan(jax.random.key(3))
    values = [objective(simulate(g, start, actions), np.asarray(actions, float)) for g in gains]
    assert abs(info["value"] - np.mean(values)) < 2e-5 * max(1.0, np.abs(values).max())  # float32

    rng = np.random.default_rng(0)
    blind = rng.uniform(action.low, action.high, (60, len(actions), 2))
    random = np.array([np.mean([objective(simulate(g, start, u), u) for g in gains]) for u in blind])
    assert info["value"] > random.max()


@parametrise
def test_acting_on_plans_reaches_the_goal_and_random_actions_do_not(planner):
    system = pp.SimulatedSystem(dynamics.transition({"gain": 1.0}), [0.0, 0.0])
    planned = pp.episode(jax.random.key(0), system, task, planner, system.transition)
    blind = pp.episode(jax.random.key(0), system, task, RandomPolicy(), system.transition)
    assert np.all(np.abs(planned.states[-10:, 0] - 1.0) < 0.1)
    assert not np.all(np.abs(blind.states[-10:, 0] - 1.0) < 0.1)
    assert planned.returns > blind.returns


def test_kept_elites_are_candidates_of_the_next_step(x64):
    """With few fresh candidates, whose best is often worse, the plan is at least as good as every elite kept."""
    planner, start = ICEM(horizon=10, population=8, iterations=1, elites=6, keep=4), jnp.zeros(2)
    plan = jax.jit(lambda k, s: planner.plan(k, particles(1.0), reach, start, s))
    plan_state, kept_won = planner.init(action), 0
    for key in jax.random.split(jax.random.key(0), 12):
        kept = np.moveaxis(np.asarray(plan_state.elites), -1, 0)
        best_kept = max(reach(simulate(1.0, start, u), u) for u in kept)
        actions, plan_state, info = plan(key, plan_state)
        assert info["value"] >= best_kept - 1e-12
        kept_won += any(np.array_equal(actions, u) for u in kept)
    assert 0 < kept_won < 12


def exploding_program():
    """Beyond 0.5 m the model is not a number, as a field with a square root or a logarithm can be."""
    gain = pp.physical("gain", dist.Normal(1.0, 0.5))

    def step(t, x, u):
        place = jnp.where(x[0] > 0.5, jnp.nan, x[0] + DT * x[1])
        return jnp.stack([place, x[1] + DT * (gain * u[0] + u[1])])

    return pp.Step(step)


@parametrise
def test_a_candidate_that_is_not_finite_never_wins(planner):
    broken = pp.Dynamics(exploding_program, state, action, dt=DT, process_noise=1e-3).transition({"gain": 1.0})
    plan_state = planner.init(action)
    start = jnp.array([0.2, 0.0])
    actions, _, info = planner.plan(jax.random.key(0), broken.particles(), lambda x, u: x[-1, 0], start, plan_state)
    states = simulate(1.0, start, actions)
    assert 0.0 < info["failed"] < 1.0, "the problem must have candidates of both kinds"
    assert np.all(states[:-1, 0] <= 0.5) and np.isfinite(info["value"])


@parametrise
def test_where_every_candidate_fails_the_plan_is_still_within_bounds(planner):
    broken = pp.Dynamics(exploding_program, state, action, dt=DT, process_noise=1e-3).transition({"gain": 1.0})
    actions, after, info = planner.plan(
        jax.random.key(0), broken.particles(), reach, jnp.array([0.6, 0.0]), planner.init(action)
    )
    assert info["failed"] == 1.0 and info["value"] == -jnp.inf
    assert np.all(actions >= action.low) and np.all(actions <= action.high)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))


def counting_program(count):
    """Counts its evaluations as they happen, candidate by candidate."""

    def step(t, x, u):
        jax.debug.callback(lambda _: count.append(1), x)
        return jnp.stack([x[0] + DT * x[1], x[1] + DT * (u[0] + u[1])])

    return lambda: pp.Step(step)


@pytest.mark.parametrize(
    "planner",
    [
        RandomShooting(horizon=3, population=7),
        ICEM(horizon=3, population=8, iterations=2, elites=4, keep=2),
        MPPI(horizon=3, population=8, iterations=2, proposal=White()),
        GradientShooting(horizon=3, starts=4, steps=2, proposal=White()),
        RandomPolicy(),
        Multisine(),
    ],
    ids=lambda planner: type(planner).__name__,
)
def test_the_stated_budget_is_what_a_control_step_spends(planner):
    count = []
    transition = pp.Dynamics(counting_program(count), state, action, dt=DT, process_noise=1e-3).transition({})
    planner.plan(jax.random.key(0), transition.particles(), reach, jnp.zeros(2), planner.init(action))
    jax.effects_barrier()
    assert len(count) == planner.evaluations


@pytest.mark.parametrize(
    "make",
    [
        lambda: ICEM(keep=30, elites=20),
        lambda: ICEM(elites=300),
        lambda: ICEM(elites=0, keep=0),
        lambda: ICEM(iterations=0),
        lambda: ICEM(spread=-1.0),
        lambda: ICEM(smoothing=1.0),
        lambda: RandomShooting(population=1),
        lambda: RandomShooting(horizon=0),
        lambda: ICEM(horizon=5, proposal=Spline(6)),
        lambda: RandomShooting(horizon=5, proposal=Spline(6)),
        lambda: MPPI(horizon=5, proposal=Spline(6)),
        lambda: MPPI(population=1),
        lambda: MPPI(iterations=0),
        lambda: MPPI(temperature=0.0),
        lambda: MPPI(spread=-1.0),
        lambda: GradientShooting(horizon=5, proposal=Spline(6)),
        lambda: GradientShooting(starts=0),
        lambda: GradientShooting(steps=0),
        lambda: GradientShooting(spread=0.0),
    ],
)
def test_choices_that_make_no_planner_are_refused(make):
    with pytest.raises(ValueError, match="needs"):
        make()
