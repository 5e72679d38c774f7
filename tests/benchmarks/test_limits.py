"""Time against hand-written JAX: the median ratio of nine interleaved pairs, warm, same dtype, one process.

The references stand in the folder that PHYSPPL_PERF names. Run with `make bench`; `-s` shows the table.
"""

import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import physppl as pp
from physppl.inference import laplace
from physppl.language.transition import LinearisedTransition
from physppl.models import cartpole
from physppl.planning import ICEM, White

folder = os.environ.get("PHYSPPL_PERF")
if not folder:
    pytest.skip("PHYSPPL_PERF is not set: no references to stand beside", allow_module_level=True)
_spec = importlib.util.spec_from_file_location("reference", Path(folder) / "reference.py")
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

block = jax.block_until_ready
physics = reference.Cartpole()
FREE = ("cart_mass", "pole_mass", "half_length", "cart_friction")


def program():
    """The reference's four log-parameters, standard normal in log."""
    parameters = {name: numpyro.sample(name, dist.LogNormal(0.0, 1.0)) for name in FREE}
    return cartpole.field(**parameters, pole_friction=physics.pole_friction)


def heun():
    import diffrax

    return diffrax.Heun()


dynamics = pp.Dynamics(program, cartpole.state, cartpole.action, dt=0.05, solver=heun(), process_noise=0.02)
rk4 = pp.Dynamics(program, cartpole.state, cartpole.action, dt=0.05, process_noise=0.02)
true = {name: getattr(physics, name) for name in FREE}
start = jnp.array([0.0, 0.1, 0.0, 0.0])


def ratio(benchmark, ours, limit, bound, goal=None):
    """Run the pairs, keep the figures with the benchmark, judge the median ratio."""
    result = benchmark.pedantic(reference.paired, args=({"ours": ours, "reference": limit},), rounds=1)
    seconds, value = result["ours"]
    benchmark.extra_info |= {"ratio": value, "seconds": seconds, "reference": result["reference"][0], "bound": bound}
    print(f"\n{benchmark.name}: {1e3 * seconds:.3f} ms, ratio {value:.3f} (bound {bound}, goal {goal or bound})")
    assert value <= bound


actions = jax.random.uniform(jax.random.key(0), (1000, 50), minval=-1.0, maxval=1.0)
candidates_last = lambda tr, a: pp.rollouts(tr, start, a.T[:, None, :])  # noqa: E731
vmapped = lambda tr, a: jax.vmap(lambda u: pp.rollout(tr, start, u))(a[..., None])  # noqa: E731


@pytest.mark.parametrize("parameters", ["known", "drawn"])
@pytest.mark.parametrize("solver", ["Heun", "RK4"])
@pytest.mark.parametrize("rollouts", [candidates_last, vmapped], ids=["rollouts", "vmap of rollout"])
def test_rollouts(benchmark, rollouts, solver, parameters):
    """1000 x 50 cart-poles. Known parameters are constants of both programs, drawn ones arguments of both: a constant
    lets XLA turn divisions into products, which is worth a third."""
    bound, step = (dynamics, reference.heun) if solver == "Heun" else (rk4, reference.rk4)
    transition, drawn = bound.transition(true, 0.02), reference.Cartpole(*map(jnp.float32, physics))
    if parameters == "known":
        ours = jax.jit(lambda a: rollouts(transition, a))
        limit = jax.jit(lambda a: reference.rollout(physics, start, a, step=step))
        calls = (lambda: block(ours(actions)), lambda: block(limit(actions)))
    else:
        ours = jax.jit(rollouts)
        limit = jax.jit(lambda p, a: reference.rollout(p, start, a, step=step))
        calls = (lambda: block(ours(transition, actions)), lambda: block(limit(drawn, actions)))
    states = calls[0]() if rollouts is candidates_last else jnp.moveaxis(calls[0](), 0, -1)
    np.testing.assert_allclose(states[1:], calls[1](), atol=2e-3)
    ratio(benchmark, *calls, 1.2, 1.05)


def test_cem_control_step(benchmark):
    planner = ICEM(horizon=25, population=400, iterations=5, elites=40, keep=0, proposal=White())
    task = pp.Task(lambda state, action: reference.reward(state, action[0]), steps=1)
    transition = dynamics.transition(true, 0.02).particles()
    plan_state = planner.init(cartpole.action)
    ours = jax.jit(lambda key, tr, state: planner.plan(key, tr, task, start, state)[0])
    limit = jax.jit(lambda key, mean: reference.cem(physics, key, start, mean))
    key, mean = jax.random.key(0), jnp.zeros(25)
    ratio(
        benchmark,
        lambda: block(ours(key, transition, plan_state)),
        lambda: block(limit(key, mean)),
        1.2,
    )


@pytest.mark.parametrize("parameters", ["known", "drawn"])
@pytest.mark.parametrize("draws", ["nonlinear", "linearised"])
def test_icem_control_step(benchmark, draws, parameters):
    """What users run: coloured noise, elites kept, horizon 40. The reference's parameters as constants, and as
    arguments, as a planner's draws are. Linearised draws, which cost a tangent beside the state, are shown alone."""
    planner = ICEM(horizon=40, population=200, iterations=3)
    task = pp.Task(lambda state, action: reference.reward(state, action[0]), steps=1)
    transition = dynamics.transition(true, 0.02)
    if draws == "linearised":
        tangents = {name: 0.1 * value for name, value in transition.sites.items()}
        transition = LinearisedTransition(transition.sites, transition.noise, transition.dynamics, tangents)
    ours = jax.jit(lambda key, tr, state: planner.plan(key, tr, task, start, state)[0])
    cem = jax.tree_util.Partial(reference.cem, population=200, iterations=3, elites=20)
    key, mean, particles = jax.random.key(0), jnp.zeros(40), transition.particles()
    plan_state = planner.init(cartpole.action)
    if parameters == "known":
        limit = jax.jit(lambda key, mean: cem(physics, key, start, mean))
    else:
        drawn, compiled = reference.Cartpole(*map(jnp.float32, physics)), jax.jit(cem)
        limit = lambda key, mean: compiled(drawn, key, start, mean)  # noqa: E731
    bound = 1.3 if draws == "nonlinear" else float("inf")
    ratio(benchmark, lambda: block(ours(key, particles, plan_state)), lambda: block(limit(key, mean)), bound)


def rows(count):
    states = jax.random.normal(jax.random.key(1), (count, 4)) * jnp.array([0.5, 2.0, 1.0, 3.0])
    actions = jax.random.uniform(jax.random.key(2), (count,), minval=-1.0, maxval=1.0)
    return states.astype(float), actions.astype(float)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_laplace_curvature(benchmark, x64):
    states, actions = rows(2000)
    theta = jnp.log(jnp.array(list(true.values())))
    outcomes = jax.vmap(reference.one_step, (None, 0, 0))(theta, states, actions)
    data = pp.Transitions(states, actions[:, None], outcomes)
    ours = jax.jit(lambda theta, data: laplace.at(dynamics, data, theta).factor)
    limit = jax.jit(reference.laplace_fit)
    np.testing.assert_allclose(ours(theta, data), limit(theta, states, actions), rtol=1e-6, atol=1e-12)
    ratio(benchmark, lambda: block(ours(theta, data)), lambda: block(limit(theta, states, actions)), 1.3)


def test_laplace_predict(benchmark, x64):
    states, actions = rows(10_000)
    theta = jnp.log(jnp.array(list(true.values())))
    data = pp.Transitions(states[:2000], actions[:2000, None], states[:2000])
    posterior = laplace.at(dynamics, data, theta)

    @jax.jit
    def ours(posterior, states, actions):
        predictive = posterior.predict(states, actions)
        return predictive.mean, predictive.covariance_matrix

    limit = jax.jit(reference.laplace_predict)
    mean, covariance = ours(posterior, states, actions[:, None])
    expected_mean, expected = limit(theta, posterior.factor, states, actions)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(covariance - 0.02**2 * jnp.eye(4), expected, rtol=1e-5, atol=1e-12)
    ratio(
        benchmark,
        lambda: block(ours(posterior, states, actions[:, None])),
        lambda: block(limit(theta, posterior.factor, states, actions)),
        1.3,
    )
