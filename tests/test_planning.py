"""Every planner: its contract, its bounds, and the numbers of a plain loop written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import blind_planners, planners

import physppl as pp
from physppl.planning import ICEM, RandomPolicy, RandomShooting
from physppl.planning.planner import colouring

DT = 0.2  # s
state = pp.StateSpace(place=pp.Real("m"), speed=pp.Real("m/s"))
action = pp.ActionSpace(thrust=pp.Bounded(-1.0, 2.0, "N"), brake=pp.Bounded(-0.3, 0.1, "N"))  # not symmetric
parametrise = pytest.mark.parametrize("planner", planners)


def program():
    gain = pp.physical("gain", dist.Normal(1.0, 0.5), unit="1/kg")
    return pp.Step(lambda t, x, u: jnp.stack([x[0] + DT * x[1], x[1] + DT * (gain * u[0] + u[1])]))


dynamics = pp.Dynamics(program, state, action, dt=DT, process_noise=1e-3)


def particles(*gains):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(dynamics.transition({"gain": g}) for g in gains))


def simulate(gain: float, start, actions) -> np.ndarray:
    """(H + 1, D) in plain NumPy."""
    states = [np.asarray(start, float)]
    for thrust, brake in np.asarray(actions, float):
        place, speed = states[-1]
        states.append(np.array([place + DT * speed, speed + DT * (gain * thrust + brake)]))
    return np.array(states)


def reach(states, actions):
    """Minus the squared distance to 1 m and a cost of effort; of JAX and NumPy arrays alike."""
    return -((states[1:, 0] - 1.0) ** 2).sum() - 0.01 * (actions**2).sum()


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
@pytest.mark.parametrize("objective", [reach, furthest_return])
def test_the_value_of_a_plan_is_the_objective_of_its_trajectory_averaged_over_particles(planner, objective):
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


def cem_by_hand(planner: ICEM, key, gain, start, mean):
    """The cross-entropy method as a textbook writes it (R. Rubinstein, D. Kroese, 2004), one candidate at a time."""
    sd = np.broadcast_to(planner.spread * (action.high - action.low) / 2, mean.shape)
    best, best_value = mean, -np.inf
    for k in jax.random.split(key, planner.iterations):
        noise = np.asarray(jax.random.truncated_normal(k, -2.0, 2.0, (*mean.shape, planner.population), jnp.float64))
        candidates = [np.clip(mean + sd * noise[..., i], action.low, action.high) for i in range(planner.population)]
        values = np.array([reach(simulate(gain, start, u), u) for u in candidates])
        order = np.argsort(-values)[: planner.elites]
        elites = np.array([candidates[i] for i in order])
        mean = planner.smoothing * mean + (1 - planner.smoothing) * elites.mean(0)
        sd = planner.smoothing * sd + (1 - planner.smoothing) * elites.std(0)
        if values[order[0]] > best_value:
            best, best_value = candidates[order[0]], values[order[0]]
    return best, best_value, mean


def test_icem_without_its_memory_is_the_cross_entropy_method(x64):
    planner = ICEM(horizon=6, population=50, iterations=4, elites=7, keep=0, colour=0.0, smoothing=0.2)
    plan_state, mean = planner.init(action), np.tile((action.low + action.high) / 2, (6, 1))
    start = np.array([0.1, -0.2])
    for seed in range(3):  # three control steps in a row: the shifted mean is handed on
        best, plan_state, info = planner.plan(
            jax.random.key(seed), particles(0.8), reach, jnp.asarray(start), plan_state
        )
        ours, value, mean = cem_by_hand(planner, jax.random.key(seed), 0.8, start, mean)
        mean = np.concatenate([mean[1:], mean[-1:]])
        assert np.allclose(best, ours, atol=1e-12) and abs(info["value"] - value) < 1e-12
        assert np.allclose(plan_state.mean, mean, atol=1e-12)


def test_kept_elites_are_candidates_of_the_next_step(x64):
    """With few fresh candidates, whose best is often worse, the plan is at least as good as every elite kept."""
    planner, start = ICEM(horizon=10, population=8, iterations=1, elites=6, keep=4), jnp.zeros(2)
    plan = jax.jit(lambda k, s: planner.plan(k, particles(1.0), reach, start, s))
    plan_state, kept_won = planner.init(action), 0
    for key in jax.random.split(jax.random.key(0), 12):
        kept = np.moveaxis(np.asarray(plan_state.kept), -1, 0)
        best_kept = max(reach(simulate(1.0, start, u), u) for u in kept)
        actions, plan_state, info = plan(key, plan_state)
        assert info["value"] >= best_kept - 1e-12
        kept_won += any(np.array_equal(actions, u) for u in kept)
    assert 0 < kept_won < 12


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("horizon", [1, 2, 15, 30])
def test_coloured_noise_has_unit_variance_and_the_right_spectrum(horizon, exponent):
    matrix = colouring(horizon, exponent)
    covariance = matrix @ matrix.T
    assert np.allclose(np.diag(covariance), 1.0, atol=1e-12)
    fourier = np.fft.fft(np.eye(horizon))
    power = np.einsum("fi,ij,fj->f", fourier, covariance, fourier.conj()).real  # expected |FFT|^2 of the noise
    frequencies = np.arange(1, (horizon + 1) // 2)  # without the constant and the highest
    if len(frequencies) > 1:
        slope = np.diff(np.log(power[frequencies])) / np.diff(np.log(frequencies))
        assert np.allclose(slope, -exponent, atol=1e-9)


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


def test_random_actions_are_uniform_and_correlated():
    policy, steps = RandomPolicy(correlation=0.6), 20_000

    def body(plan_state, key):
        actions, plan_state, _ = policy.plan(key, None, reach, None, plan_state)
        return plan_state, actions[0]

    keys = jax.random.split(jax.random.key(0), steps)
    actions = np.asarray(jax.lax.scan(body, policy.init(action), keys)[1], float)
    share = (actions - action.low) / (action.high - action.low)
    # Effective size of a mean under correlation 0.6 is steps x (1 - 0.6) / (1 + 0.6); four standard errors.
    error = 4 / np.sqrt(steps * 0.25)
    assert np.all(np.abs(share.mean(0) - 0.5) < error * np.sqrt(1 / 12))
    assert np.all(np.abs(share.var(0) - 1 / 12) < error * np.sqrt(1 / 180))
    # Of uniform ranks of a Gaussian pair with correlation r: (6 / pi) asin(r / 2).
    expected = 6 / np.pi * np.arcsin(0.6 / 2)
    found = [np.corrcoef(s[1:], s[:-1])[0, 1] for s in share.T]
    assert np.all(np.abs(np.array(found) - expected) < error)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ICEM(keep=30, elites=20),
        lambda: ICEM(elites=300),
        lambda: ICEM(elites=0, keep=0),
        lambda: ICEM(iterations=0),
        lambda: RandomShooting(population=1),
        lambda: RandomShooting(horizon=0),
        lambda: RandomPolicy(correlation=1.0),
    ],
)
def test_choices_that_make_no_planner_are_refused(make):
    with pytest.raises(ValueError, match="needs|must lie"):
        make()
