"""Torque pendulum: a point mass on a massless rod; angle 0 hangs, pi stands."""

import functools
from typing import Any

import jax.numpy as jnp

from physppl.dynamics import Dynamics
from physppl.sites import physical
from physppl.spaces import ActionSpace, Angle, Bounded, Real, StateSpace
from physppl.systems import SimulatedSystem
from physppl.tasks import Task

GRAVITY = 9.81  # m/s2

state = StateSpace(angle=Angle(), velocity=Real("rad/s", scale=4.0))
action = ActionSpace(torque=Bounded(-2.5, 2.5, "N m"))
truth = {"mass": 1.0, "length": 1.0, "damping": 0.05}  # kg, m, N m s/rad


def field(mass, length, damping, coulomb: Any = 0.0):
    """d state/dt of m l^2 angle'' = torque - damping angle' - coulomb sign(angle') - m g l sin(angle).

    Args:
        mass: kg.
        length: m, pivot to mass.
        damping: N m s/rad, viscous.
        coulomb: N m, dry friction; the sign is smoothed as tanh(angle' / 0.1 rad/s).
    """
    inertia = mass * length**2

    def field(t, state, action):
        angle, velocity = state
        friction = damping * velocity + coulomb * jnp.tanh(velocity / 0.1)
        torque = action[0] - friction - mass * GRAVITY * length * jnp.sin(angle)
        return jnp.stack([velocity, torque / inertia])

    return field


def program():
    """Mass, length and viscous damping unknown; no dry friction."""
    return field(*_parameters())


def program_with_coulomb():
    """As `program`, and dry friction unknown."""
    return field(*_parameters(), coulomb=physical("coulomb", 0.0, 0.5, unit="N m"))


def _parameters():
    mass = physical("mass", 0.2, 3.0, unit="kg")
    length = physical("length", 0.3, 1.8, unit="m")
    damping = physical("damping", 0.0, 0.12, unit="N m s/rad")
    return mass, length, damping


def dynamics(program=program, dt: float = 0.05, **options) -> Dynamics:
    """The pendulum bound to its spaces; options as of `Dynamics`."""
    return Dynamics(program, state, action, dt=dt, **options)


@functools.cache  # one function per friction, so that equal systems share compiled programs
def _true_program(coulomb: float):
    def true_program():
        units = {"mass": "kg", "length": "m", "damping": "N m s/rad"}
        return field(*(physical(name, 0.0, 4.0, unit=unit) for name, unit in units.items()), coulomb=coulomb)

    return true_program


def system(coulomb: float = 0.0, dt: float = 0.05, noise=(1e-3, 1e-2), measurement_sd=0.0) -> SimulatedSystem:
    """A simulated pendulum at `truth`, starting at rest, hanging.

    Args:
        coulomb: dry friction, N m, that `program` does not know.
        noise: process-noise sd of (angle rad, velocity rad/s) over one step.
    """
    transition = dynamics(_true_program(coulomb), dt).transition(truth, noise)
    return SimulatedSystem(transition, [0.0, 0.0], [0.05, 0.05], measurement_sd)


def _reward(state, action):
    angle, velocity = state
    return 0.5 * (1 - jnp.cos(angle)) - 2e-3 * velocity**2 - 1e-3 * action[0] ** 2


def upright_error(states):
    """|angle - pi| on the circle, rad; states (..., 2)."""
    return jnp.abs(states[..., 0] % (2 * jnp.pi) - jnp.pi)


def _solved(states):
    return jnp.all(upright_error(states[-50:]) < 0.2)


swing_up = Task(_reward, steps=200, solved=_solved)
"""From hanging to standing, 10 s at 0.05 s; solved if within 0.2 rad of upright for the last 50 steps."""
