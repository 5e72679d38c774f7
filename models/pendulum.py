"""Torque pendulum: a point mass on a massless rod; angle 0 hangs, pi is upright."""

from typing import Any

import jax.numpy as jnp

from physppl.control.systems import SimulatedSystem
from physppl.data.spaces import ActionSpace, Angle, Bounded, Real, StateSpace
from physppl.dynamics import Dynamics
from physppl.language.friction import friction
from physppl.models.priors import Between, hold, sample
from physppl.models.standing import stays_upright
from physppl.models.truth import true_transition
from physppl.planning.tasks import Task

GRAVITY = 9.81  # m/s2

state = StateSpace(angle=Angle(), velocity=Real("rad/s", scale=4.0))
action = ActionSpace(torque=Bounded(-2.5, 2.5, "N m"))
truth = {"mass": 1.0, "length": 1.0, "damping": 0.05}  # kg, m, N m s/rad


_priors = {
    "mass": Between(0.2, 3.0, "kg"),
    "length": Between(0.3, 1.8, "m"),
    "damping": Between(0.0, 0.12, "N m s/rad"),
}
_dry = {"coulomb": Between(0.0, 0.5, "N m")}


def field(
    mass,
    length,
    damping,
    coulomb: Any = 0.0,
    breakaway: Any = 0.0,
    quadratic: Any = 0.0,
    width: Any = 0.1,
    stribeck: Any = 0.5,
):
    """Vector field d state/dt of m l^2 angle'' = torque - friction - m g l sin(angle).

    Args:
        mass: kg.
        length: m, pivot to mass.
        damping: N m s/rad, viscous.
        coulomb: N m, dry friction; the sign is smoothed as tanh(angle' / width).
        breakaway: N m, by how much dry friction is larger near standstill.
        quadratic: N m s^2/rad^2, drag.
        width, stribeck: rad/s, as in `friction`.
    """
    inertia = mass * length**2

    def field(t, state, action):
        angle, velocity = state
        resistance = friction(velocity, damping, coulomb, breakaway, quadratic, width, stribeck)
        torque = action[0] - resistance - mass * GRAVITY * length * jnp.sin(angle)
        return jnp.stack([velocity, torque / inertia])

    return field


def program(**held):
    """Program with unknown mass, length and viscous damping; no dry friction."""
    return field(**sample(_priors, held))


def program_with_coulomb(**held):
    """Program with unknown mass, length, viscous damping and dry friction."""
    return field(**sample(_priors | _dry, held))


def program_with(**held):
    """`program` with some arguments of `field` fixed: `program_with(coulomb=0.1)`."""
    return hold(program, field, _priors, held)


def dynamics(program=program, dt: float = 0.05, **options) -> Dynamics:
    """The pendulum bound to its spaces; other options are those of `Dynamics`."""
    return Dynamics(program, state, action, dt=dt, **options)


def system(
    coulomb: float = 0.0, dt: float = 0.05, noise=(1e-3, 1e-2), measurement_sd=0.0, initial_sd=0.05, **changes
) -> SimulatedSystem:
    """A simulated pendulum at `truth`, starting at rest, hanging.

    Args:
        coulomb: dry friction, N m, that `program` lacks.
        noise: process-noise sd of (angle rad, velocity rad/s) over one step.
        initial_sd: of the state at a reset, one number or one per coordinate.
        changes: arguments of `field` that differ: `system(breakaway=0.1, mass=1.2)`.

    Raises:
        KeyError: for a name that is not a parameter, with close matches.
    """
    changes = {"coulomb": coulomb, **changes}
    transition = true_transition(dynamics, program, field, truth, changes, dt, noise)
    return SimulatedSystem(transition, [0.0, 0.0], initial_sd, measurement_sd)


def _reward(state, action):
    angle, velocity = state
    return 0.5 * (1 - jnp.cos(angle)) - 2e-3 * velocity**2 - 1e-3 * action[0] ** 2


swing_up = Task(_reward, steps=200, solved=stays_upright(0, 50))
"""From hanging to standing, 10 s at 0.05 s; solved if within 0.2 rad of upright for the last 50 steps."""
