"""Dynamics for `physppl identify`: a model by name, and any Dynamics bound as the recordings require."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers

import physppl as pp
from physppl import models
from physppl.dynamics.sensors import GAIN, TIMING
from physppl.internal.errors import closest
from physppl.language.integrate import Step, StepResidual
from physppl.language.noise import PROCESS
from physppl.language.program import rebuild

POSITION = 1e-5  # in units of a position's scale: prior scale of its own process noise
ROUNDING = 1e-4  # relative difference below which two steps are the same
VELOCITY = 0.1  # in units of their scales: prior scale of other process noise, as in every Dynamics
MODELS = {name: getattr(models, name) for name in models.__all__}


def model(name: str) -> pp.Dynamics:
    """Default Dynamics of a module of `physppl.models`.

    Raises:
        ValueError: for an unknown name, with close matches.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}.{closest(name, MODELS)} For another: --program my_machine.py.")
    return MODELS[name].dynamics()


def for_real_recordings(dynamics: pp.Dynamics, exact_inputs: bool) -> pp.Dynamics:
    """Dynamics with the noise of real machines, unless it specifies any noise itself.

    Positions are integrals of velocities and get hardly any process noise; recorded inputs are inexact.
    """
    unspecified = dynamics == dynamics.rebound(process_noise=None) and dynamics.sensing.gain is dynamics.sensing.timing
    if not unspecified:  # gain and timing are both None where neither is given
        return dynamics
    is_position = positions(dynamics)
    changes = {"process_noise": dist.HalfNormal(np.where(is_position, POSITION, VELOCITY))} if is_position.any() else {}
    if not exact_inputs:
        changes |= {GAIN: dist.HalfNormal(0.1), TIMING: dist.HalfNormal(0.5)}
    return dynamics.rebound(**changes)


def stepping(dynamics: pp.Dynamics, dt: float) -> pp.Dynamics:
    """Dynamics with another step, s, unless the program holds for one step alone: its data must then have that step."""
    same = abs(dt / dynamics.dt - 1) < ROUNDING
    if same or isinstance(_field(dynamics), Step | StepResidual):
        return dynamics
    return dynamics.rebound(dt=float(f"{dt:.8g}"))  # round off the error of differences of decimal times


def positions(dynamics: pp.Dynamics) -> np.ndarray:
    """Mask (D,) of the coordinates whose rate is the value of another coordinate."""
    field = _field(dynamics)
    field = field.physics if isinstance(field, StepResidual) else field
    integrates = np.ones((len(dynamics.state), len(dynamics.state)), bool)  # [i, j]: the rate of i is j
    if isinstance(field, Step):  # it has no rates
        return np.zeros(len(integrates), bool)
    random = np.random.default_rng(0)
    for _ in range(4):
        state = jnp.asarray(dynamics.state.scale * random.normal(size=len(integrates)))
        action = jnp.asarray(random.uniform(dynamics.action.low, dynamics.action.high))
        rates = np.stack([np.asarray(rate) for rate in field(0.0, state, action)])
        integrates &= rates[:, None] == np.asarray(state)
    return np.asarray(integrates.any(axis=1))


def _field(dynamics: pp.Dynamics):
    """Result of the program at a draw of the prior."""
    with handlers.seed(rng_seed=0):
        values = dynamics.sites()
    values.pop(PROCESS, None)
    return rebuild(dynamics.program, values, dynamics.name)
