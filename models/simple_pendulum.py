"""Torque-limited simple pendulum (DFKI): a geared motor drives a mass on a rod; angle 0 hangs, pi is upright.

Unlike in `pendulum`, the rod has mass, friction is dry too, and the torque sensor's scale is uncertain.
"""

from typing import Any

import jax.numpy as jnp

from physppl.control.systems import SimulatedSystem
from physppl.data.spaces import ActionSpace, Angle, Bounded, Real, StateSpace
from physppl.dynamics import Dynamics
from physppl.language.friction import friction
from physppl.models.priors import Between, derived, hold, sample, up_to
from physppl.models.truth import true_transition

GRAVITY = 9.81  # m/s2
WEIGHT, ROD, LENGTH = 0.546, 0.13, 0.5  # kg, at the end of the rod; kg; m

state = StateSpace(angle=Angle(), velocity=Real("rad/s", scale=5.0))
# Range of the drive's 12-bit torque word; recorded torques lie on its grid of 36 / 4095 N m, up to 17.6 N m.
action = ActionSpace(torque=Bounded(-18.0, 18.0, "N m"))
nominal = {
    "mgl": (WEIGHT + ROD / 2) * GRAVITY * LENGTH,
    "equivalent_length": (WEIGHT + ROD / 3) / (WEIGHT + ROD / 2) * LENGTH,
    "damping": 0.0,
    "coulomb": 0.0,
    "torque_offset": 0.0,
}
"""In SI units: a point mass at the end of a rod, as documented by
github.com/dfki-ric-underactuated-lab/torque_limited_simple_pendulum; friction and offset are not, and 0 here."""

_priors = {
    "mgl": Between(0.0, 25.0, "N m", -2.0),
    "equivalent_length": Between(0.0, 4.0, "m", -2.0),
    "damping": up_to(1.0, "N m s/rad"),
    "coulomb": up_to(1.0, "N m"),
    "torque_offset": Between(-0.3, 0.3, "N m"),
}


def field(
    mgl,
    equivalent_length,
    damping: Any = 0.0,
    coulomb: Any = 0.0,
    torque_offset: Any = 0.0,
    width: Any = 0.1,
):
    """Vector field d state/dt of J angle'' = torque + offset - damping angle' - dry friction - m g l sin(angle).

    Recorded torque is assumed correct. If the sensor is wrong by a factor, mgl, J and friction are wrong by it too, and
    motion does not reveal it; equivalent_length is not affected.

    Args:
        mgl: m g l, N m, l from pivot to centre of mass.
        equivalent_length: J / (m l), m: the length of an ideal pendulum with the same period.
        damping: N m s/rad.
        coulomb: N m; the sign is smoothed as tanh(angle' / width).
        torque_offset: N m.
        width: rad/s.
    """
    inertia = mgl * equivalent_length / GRAVITY

    def field(t, state, action):
        angle, velocity = state
        resistance = friction(velocity, damping, coulomb, width=width)
        torque = action[0] + torque_offset - resistance - mgl * jnp.sin(angle)
        return jnp.stack([velocity, torque / inertia])

    return field


def program(**held):
    """Program with five unknown parameters.

    Tables also show the `inertia` about the pivot and the `torque_scale`: true over recorded torque, if mass and
    lengths are as documented.
    """
    p = sample(_priors, held)
    derived("inertia", p["mgl"] * p["equivalent_length"] / GRAVITY, "kg m^2")
    derived("torque_scale", nominal["mgl"] / p["mgl"], "")
    return field(**p)


def program_with(**held):
    """`program` with some arguments of `field` fixed: `program_with(torque_offset=0.0)`."""
    return hold(program, field, _priors, held)


def dynamics(program=program, dt: float = 0.01, **options) -> Dynamics:
    """The pendulum bound to its spaces, at the 100 Hz of its recordings; other options are those of `Dynamics`."""
    return Dynamics(program, state, action, dt=dt, **options)


def system(dt: float = 0.01, noise=0.0, measurement_sd=0.0, initial_sd=0.0, **changes) -> SimulatedSystem:
    """A simulated pendulum at `nominal`, which has no friction, hanging at rest.

    Args:
        noise: process-noise sd of (rad, rad/s) over one step.
        initial_sd: of the state at a reset, one number or one per coordinate.
        changes: arguments of `field` that differ: `system(coulomb=0.05)`.

    Raises:
        KeyError: for a name that is not a parameter, with close matches.
    """
    transition = true_transition(dynamics, program, field, nominal, changes, dt, noise)
    return SimulatedSystem(transition, jnp.zeros(2), initial_sd, measurement_sd)
