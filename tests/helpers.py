"""What the tests share: the one list of backends, the one list of planners, and small problems to try them on."""

import importlib
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import physppl as pp
from physppl.inference import (
    HMC,
    SVI,
    Anchored,
    DrawsPosterior,
    Ensemble,
    FunctionSpaceVI,
    Laplace,
    LaplacePosterior,
    NestedLaplace,
    NeuralLinear,
    StructuredLaplace,
    laplace,
)
from physppl.internal.precision import doubles
from physppl.planning import (
    ICEM,
    MPPI,
    Autoregressive,
    Coloured,
    GradientShooting,
    Multisine,
    RandomPolicy,
    RandomShooting,
    Spline,
    White,
)
from physppl.posterior.backend import empty


def own_features(x, u):
    """The linear Step's, (D, 4), for a belief about functions in their span."""
    return linear_features(jnp, x, u)


def explored(name: str) -> bool:
    """Sites of the linear Step and of the pendulum that a nested belief explores."""
    return name in ("gain", "process_noise")


# A new backend or planner is one line here; every contract test runs over it.
backends = [
    pytest.param(Laplace(), id="Laplace"),
    pytest.param(Laplace(linearised=True), id="Laplace-linearised"),
    pytest.param(HMC(draws=250, warmup=250, chains=2), id="HMC"),
    pytest.param(NeuralLinear(steps=100), id="NeuralLinear", marks=pytest.mark.science),
    pytest.param(SVI(steps=2000), id="SVI", marks=pytest.mark.science),
    pytest.param(NestedLaplace(explored), id="NestedLaplace", marks=pytest.mark.science),
    pytest.param(Ensemble(members=256, diversity=Anchored()), id="Ensemble", marks=pytest.mark.science),
    pytest.param(FunctionSpaceVI(features=own_features, points=64), id="FunctionSpaceVI", marks=pytest.mark.science),
    pytest.param(StructuredLaplace(), id="StructuredLaplace", marks=pytest.mark.science),
]
planners = [
    pytest.param(RandomShooting(horizon=12, population=256), id="RandomShooting"),
    pytest.param(RandomShooting(horizon=12, population=256, proposal=Coloured(2.0)), id="RandomShooting-coloured"),
    pytest.param(ICEM(horizon=12, population=64, elites=8, keep=3), id="ICEM"),
    pytest.param(ICEM(horizon=12, population=64, elites=8, keep=0, proposal=White()), id="CEM"),
    pytest.param(ICEM(horizon=12, population=128, elites=8, keep=3, proposal=Autoregressive()), id="ICEM-AR"),
    pytest.param(MPPI(horizon=12, population=128), id="MPPI"),
    pytest.param(MPPI(horizon=12, population=128, proposal=Spline(5)), id="MPPI-spline"),
    pytest.param(GradientShooting(horizon=12, starts=16), id="GradientShooting"),
]
blind_planners = [  # these look at no objective
    pytest.param(RandomPolicy(), id="RandomPolicy"),
    pytest.param(RandomPolicy(amplitude=0.4), id="RandomPolicy-gentle"),
    pytest.param(Multisine(), id="Multisine"),
]


# A Step that is linear in its parameters, with two outputs that share them.
linear_state = pp.StateSpace(level=pp.Real("m", scale=2.0), flow=pp.Real("m/s"))
linear_action = pp.ActionSpace(valve=pp.Bounded(-1.0, 1.0))
linear_mean = np.array([0.3, -0.2, 0.5, 0.0])  # prior of (drift, gain, weights[0], weights[1])
linear_sd = np.array([0.5, 2.0, 0.7, 0.1])
linear_noise = np.array([0.05, 0.2])
linear_truth = {"drift": 0.45, "gain": 1.4, "weights": np.array([-0.3, 0.05])}


def linear_features(xp, x, u):
    """Phi(s, a) (D, 4) with s' = s + Phi theta; xp is numpy or jax.numpy."""
    one, zero = xp.ones(()), xp.zeros(())
    return xp.stack(
        [
            xp.stack([one, u[0], x[1], zero]),
            xp.stack([zero, x[0] * u[0], xp.sin(x[0]), one]),
        ]
    )


def linear_program():
    """s' = s + Phi(s, a) theta, with Normal priors of different means and sds."""
    drift = pp.physical("drift", dist.Normal(linear_mean[0], linear_sd[0]), unit="m")
    gain = pp.physical("gain", dist.Normal(linear_mean[1], linear_sd[1]))
    weights = numpyro.sample("weights", dist.Normal(linear_mean[2:], linear_sd[2:]).to_event(1))
    theta = jnp.concatenate([jnp.stack([drift, gain]), weights])
    return pp.Step(lambda t, x, u: x + linear_features(jnp, x, u) @ theta.astype(x.dtype))


def linear_dynamics() -> pp.Dynamics:
    """The linear Step with known noise."""
    return pp.Dynamics(linear_program, linear_state, linear_action, dt=0.1, process_noise=linear_noise)


def clock_program():
    """s' = s + gain t: a program that reads the time."""
    gain = numpyro.sample("gain", dist.Normal(1.0, 0.1))
    return pp.Step(lambda t, x, u: x + gain * t)


def clock_dynamics(noise: float = 0.2, **options) -> pp.Dynamics:
    """The clock in one coordinate, steps of 0.1 s."""
    state, action = pp.StateSpace(place=pp.Real("m")), pp.ActionSpace(push=pp.Bounded(-1.0, 1.0))
    return pp.Dynamics(clock_program, state, action, dt=0.1, process_noise=noise, **options)


def clock_prior(noise: float = 0.2, **options) -> LaplacePosterior:
    """The belief about the clock before data: gain is N(1, .1)."""
    dynamics = clock_dynamics(noise, **options)
    with jax.enable_x64(True):
        return eqx.filter_jit(laplace.at)(dynamics, doubles(empty(dynamics)), jnp.ones(1))


def linear_data(seed: int = 0, rows: int = 40) -> pp.Transitions:
    """Transitions of the linear Step at `linear_truth` from scattered states, float64."""
    rng = np.random.default_rng(seed)
    states, actions = rng.normal(size=(rows, 2)) * [2.0, 1.0], rng.uniform(-1, 1, (rows, 1))
    theta = np.concatenate([[linear_truth["drift"], linear_truth["gain"]], linear_truth["weights"]])
    mean = states + np.array([linear_features(np, x, u) @ theta for x, u in zip(states, actions, strict=True)])
    return pp.Transitions(states, actions, mean + linear_noise * rng.normal(size=mean.shape))


def coloured_actions(seed: int, steps: int, action: pp.ActionSpace, correlation: float = 0.9) -> np.ndarray:
    """(steps, A): a first-order autoregressive process, squashed between the bounds by tanh."""
    rng = np.random.default_rng(seed)
    noise, value = rng.normal(size=(steps, len(action))), rng.normal(size=len(action))
    out = np.empty_like(noise)
    for i, fresh in enumerate(noise):
        value = correlation * value + np.sqrt(1 - correlation**2) * fresh
        out[i] = np.tanh(value)
    return (action.low + action.high) / 2 + (action.high - action.low) / 2 * out


def recording(
    dynamics: pp.Dynamics, truth, seed: int = 0, steps: int = 200, noise: float = 0.02, start=None
) -> pp.Transitions:
    """One trajectory under coloured random actions, float64.

    Args:
        truth: {site: value} of the program.
        noise: process-noise sd in units of the coordinates' scales.
        start: (D,); zero by default.
    """
    actions = coloured_actions(seed, steps, dynamics.action)
    with jax.enable_x64(True):
        transition = dynamics.transition(truth, noise * dynamics.state.scale)
        x0 = jnp.zeros(len(dynamics.state)) if start is None else jnp.asarray(start, float)

        @jax.jit
        def simulate(actions, keys):
            def body(x, inputs):
                x = transition.sample(inputs[1], x, inputs[0])
                return x, x

            return jax.lax.scan(body, x0, (actions, keys))[1]

        states = np.asarray(simulate(actions, jax.random.split(jax.random.key(seed), steps)))
    return pp.Transitions.from_trajectory(np.concatenate([x0[None], states]), actions)


def drawn(posterior, chains: int = 4, draws: int = 400, seed: int = 0) -> DrawsPosterior:
    """A Gaussian belief held as independent draws in virtual space, as a perfect sampler would hand it on."""
    noise = np.random.default_rng(seed).normal(size=(chains, draws, len(posterior.mode)))
    with jax.enable_x64(True):
        points = jnp.asarray(np.asarray(posterior.mode) + noise @ np.asarray(posterior.factor))
        return DrawsPosterior(posterior.model, posterior.data, posterior.space, points, {}, method="Drawn")


def leaves(tree) -> list[np.ndarray]:
    """The floating leaves of a pytree."""
    return [np.asarray(x) for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)]


def example(name: str):
    """A script of examples/ as a module, found where Python finds a script's neighbours."""
    folder = str(Path(__file__).parent.parent / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
