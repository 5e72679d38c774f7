"""The machines against equations derived here, against Gymnasium, and against the hand-written reference."""

import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers

import physppl as pp
from physppl.models import cartpole, gym_pendulum, pendulum
from physppl.models.standing import upright_error

MODELS = [cartpole, gym_pendulum, pendulum]
named = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__.split(".")[-1])


@pytest.fixture(autouse=True)
def double(x64):
    """Equations are compared to rounding."""


def scattered(count: int, scale, seed: int = 0):
    return np.random.default_rng(seed).normal(size=(count, len(scale))) * scale


def test_gym_pendulum_is_gymnasiums():
    gymnasium = pytest.importorskip("gymnasium", reason="the [gym] extra is not installed")
    environment = gymnasium.make("Pendulum-v1").unwrapped
    transition = jax.jit(gym_pendulum.dynamics().transition(gym_pendulum.truth).__call__)
    rng, fastest = np.random.default_rng(0), 0.0
    for episode in range(4):
        environment.reset(seed=episode)
        environment.state = np.array([rng.uniform(-np.pi, np.pi), rng.uniform(-8, 8)])
        ours = environment.state.copy()
        for _ in range(150):
            # Pushing along the velocity, or at random: the speed limit of 8 rad/s is met.
            torque = 2.0 * np.sign(ours[1]) if episode % 2 else rng.uniform(-2, 2)
            environment.step(np.array([torque]))
            ours = np.asarray(transition(ours, np.array([torque])))
            assert np.abs(ours - environment.state).max() < 1e-9
            fastest = max(fastest, abs(ours[1]))
    assert fastest == gym_pendulum.MAX_SPEED
    assert (gym_pendulum.action.low, gym_pendulum.action.high) == (-environment.max_torque, environment.max_torque)
    reward = environment.step(np.array([1.3]))[1]
    angle, velocity = ours  # Gymnasium charges the state it leaves, ours the state it reaches: same function
    assert np.isclose(gym_pendulum.swing_up.reward(jnp.array([angle, velocity]), jnp.array([1.3])), reward)


def reference():
    folder = os.environ.get("PHYSPPL_PERF")
    if not folder:
        pytest.skip("PHYSPPL_PERF is not set: the hand-written reference is not here")
    spec = importlib.util.spec_from_file_location("perf_reference", Path(folder) / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cartpole_is_the_reference():
    hand = reference()
    for seed, truth in enumerate([cartpole.truth, dict.fromkeys(cartpole.truth, 0.3)]):
        states, actions = scattered(200, [1, 3, 2, 5], seed), scattered(200, [1.0], seed + 9)
        ours = jax.vmap(lambda x, u: cartpole.field(**truth)(0.0, x, u))(states, actions)  # noqa: B023
        theirs = hand.field(hand.Cartpole(**truth), states.T, actions[:, 0]).T
        assert np.abs(ours - theirs).max() < 1e-11


def lagrangian_acceleration(lagrangian, q, v, force):
    """Accelerations (n,) from d/dt dL/dv - dL/dq = force, by differentiating L twice."""
    mass = jax.hessian(lagrangian, 1)(q, v)
    coupling = jax.jacfwd(jax.grad(lagrangian, 1), 0)(q, v) @ v
    return jnp.linalg.solve(mass, force + jax.grad(lagrangian, 0)(q, v) - coupling)


def cartpole_lagrangian(q, v):
    """A uniform pole of length 2 l on a cart, angle 0 upright, written down from its centre of mass."""
    p = cartpole.truth
    length = p["half_length"]
    centre = jnp.array([v[0] + length * jnp.cos(q[1]) * v[1], -length * jnp.sin(q[1]) * v[1]])
    spin = p["pole_mass"] * (2 * length) ** 2 / 12
    kinetic = 0.5 * p["cart_mass"] * v[0] ** 2 + 0.5 * p["pole_mass"] * centre @ centre + 0.5 * spin * v[1] ** 2
    return kinetic - p["pole_mass"] * cartpole.GRAVITY * length * jnp.cos(q[1])


def pendulum_lagrangian(q, v):
    p = pendulum.truth
    height = -p["length"] * jnp.cos(q[0])
    return 0.5 * p["mass"] * (p["length"] * v[0]) ** 2 - p["mass"] * pendulum.GRAVITY * height


def test_pendulum_follows_from_its_lagrangian():
    def derived(x, u):
        v = x[1:]
        dry = (0.1 + 0.3 * jnp.exp(-((v / 0.4) ** 2))) * jnp.tanh(v / 0.2)
        torque = u - pendulum.truth["damping"] * v - dry - 0.02 * jnp.sign(v) * v**2
        return jnp.concatenate([x[1:], lagrangian_acceleration(pendulum_lagrangian, x[:1], x[1:], torque)])

    states, actions = scattered(100, [2, 4]), scattered(100, [1.0], 1)
    states[:50, 1] *= 0.1  # slow, where dry friction falls
    field = pendulum.field(**pendulum.truth, coulomb=0.1, breakaway=0.3, quadratic=0.02, width=0.2, stribeck=0.4)
    ours = jax.vmap(lambda x, u: field(0.0, x, u))(states, actions)
    assert np.abs(ours - jax.vmap(derived)(states, actions)).max() < 1e-11


def test_cartpole_follows_from_its_lagrangian():
    truth = cartpole.truth

    def derived(x, u):
        friction = jnp.stack([truth["cart_friction"] * x[2], truth["pole_friction"] * x[3]])
        force = jnp.stack([cartpole.FORCE * u[0], 0.0]) - friction
        return jnp.concatenate([x[2:], lagrangian_acceleration(cartpole_lagrangian, x[:2], x[2:], force)])

    states, actions = scattered(100, [1, 3, 2, 5]), scattered(100, [1.0], 1)
    ours = jax.vmap(lambda x, u: cartpole.field(**truth)(0.0, x, u))(states, actions)
    assert np.abs(ours - jax.vmap(derived)(states, actions)).max() < 1e-10


def energy(lagrangian, x):
    """v dL/dv - L."""
    q, v = jnp.split(x, 2)
    return v @ jax.grad(lagrangian, 1)(q, v) - lagrangian(q, v)


@pytest.mark.parametrize(
    "model, lagrangian, frictions, start",
    [
        (pendulum, pendulum_lagrangian, ["damping"], [2.5, 0.5]),
        (cartpole, cartpole_lagrangian, ["cart_friction", "pole_friction"], [0.2, 0.4, 0.3, -0.5]),
    ],
    ids=["pendulum", "cartpole"],
)
def test_energy_is_kept_without_friction_and_lost_with_it(model, lagrangian, frictions, start):
    start, still = jnp.array(start), jnp.zeros((400, 1))
    rest = float(abs(energy(lagrangian, start)))
    errors = []
    for halvings in (0, 1):  # RK4: the drift falls by 2^4 to 2^5 when the step is halved
        field = model.field(**(model.truth | dict.fromkeys(frictions, 0.0)))
        states = pp.rollout(field, start, still, dt=0.01, substeps=2**halvings)
        errors.append(np.abs(jax.vmap(lambda x: energy(lagrangian, x))(states) - energy(lagrangian, start)).max())
    assert errors[0] < 1e-4 * rest
    assert 12 < errors[0] / errors[1] < 40
    states = pp.rollout(model.field(**model.truth), start, still, dt=0.01)
    levels = np.asarray(jax.vmap(lambda x: energy(lagrangian, x))(states))
    assert np.all(np.diff(levels) < 1e-9) and levels[-1] < levels[0] - 1e-3


def test_pendulum_hangs_at_zero_and_stands_at_pi():
    field = pendulum.field(**pendulum.truth)
    for angle, stable in ((0.0, True), (np.pi, False)):
        rest = jnp.array([angle, 0.0])
        assert np.allclose(field(0.0, rest, jnp.zeros(1)), 0.0, atol=1e-12)
        slopes = np.linalg.eigvals(jax.jacfwd(lambda x: field(0.0, x, jnp.zeros(1)))(rest))
        assert bool(np.all(slopes.real < 0)) is stable
        assert upright_error(rest[0]) == pytest.approx(0.0 if not stable else np.pi, abs=1e-12)
        if stable:  # small swings about hanging have the period 2 pi sqrt(l / g)
            assert np.allclose(np.abs(slopes), np.sqrt(pendulum.GRAVITY / pendulum.truth["length"]))


def test_cartpole_stands_at_zero_and_hangs_at_pi():
    field = cartpole.field(**cartpole.truth)
    for angle, stable in ((0.0, False), (np.pi, True)):
        rest = jnp.array([0.3, angle, 0.0, 0.0])
        assert np.allclose(field(0.0, rest, jnp.zeros(1)), 0.0, atol=1e-12)
        slopes = np.linalg.eigvals(jax.jacfwd(lambda x: field(0.0, x, jnp.zeros(1)))(rest)).real
        assert bool(np.all(slopes < 1e-9)) is stable


@named
def test_the_truth_lies_in_the_middle_80_percent_of_its_prior(model):
    dynamics = model.dynamics()
    draws = jax.vmap(lambda key: handlers.seed(dynamics.sites, key)())(jax.random.split(jax.random.key(0), 4000))
    assert set(draws) - {"process_noise"} == set(model.truth)
    for name, value in model.truth.items():
        rank = float(np.mean(np.asarray(draws[name]) < value))
        assert 0.1 < rank < 0.9, f"{name} = {value} is at the {100 * rank:.0f} % quantile of its prior"


@named
def test_systems_start_hanging_and_their_tasks_know_when_they_are_solved(model):
    system = model.system()
    x0 = system.physical(system.reset(jax.random.key(0))[0])
    assert x0.shape == (len(model.state),)
    angle = model.state.index("angle")
    hanging = 0.0 if model is pendulum else np.pi
    assert abs(x0[angle] - hanging) < 0.5
    if model.swing_up.solved is not None:
        standing = np.zeros((model.swing_up.steps + 1, len(model.state)))
        standing[:, angle] = np.pi - hanging
        turned = standing.copy()
        turned[:, angle] += 6 * np.pi  # states stay unwrapped: three turns later it still stands
        falling = standing.copy()
        falling[-2, angle] += 0.3
        assert model.swing_up.solved(jnp.asarray(standing)) and model.swing_up.solved(jnp.asarray(turned))
        assert not model.swing_up.solved(jnp.asarray(falling))
        assert not model.swing_up.solved(jnp.asarray(standing * 0 + np.asarray(x0)))
    best = model.swing_up.reward(jnp.asarray(standing_state(model, angle, hanging)), jnp.zeros(1))
    assert best > model.swing_up.reward(x0, jnp.zeros(1))


def standing_state(model, angle, hanging):
    x = np.zeros(len(model.state))
    x[angle] = np.pi - hanging
    return x
