"""Cart-pole with viscous friction: angle 0 is upright; the force acts on the cart."""

import jax.numpy as jnp

from physppl.control.systems import SimulatedSystem
from physppl.data.spaces import ActionSpace, Angle, Bounded, Real, StateSpace
from physppl.dynamics import Dynamics
from physppl.models.priors import Between, hold, sample
from physppl.models.truth import true_transition
from physppl.planning.tasks import Task

GRAVITY = 9.81  # m/s2
FORCE = 10.0  # N per unit action

state = StateSpace(position=Real("m"), angle=Angle(), speed=Real("m/s", scale=2.0), rate=Real("rad/s", scale=5.0))
action = ActionSpace(force=Bounded(-1.0, 1.0))
truth = {"cart_mass": 1.0, "pole_mass": 0.1, "half_length": 0.5, "cart_friction": 0.05, "pole_friction": 0.05}
_priors = {
    "cart_mass": Between(0.3, 2.0, "kg"),
    "pole_mass": Between(0.03, 0.3, "kg"),
    "half_length": Between(0.2, 1.0, "m"),
    "cart_friction": Between(0.0, 0.2, "N s/m"),
    "pole_friction": Between(0.0, 0.2, "N m s/rad"),
}


def field(cart_mass, pole_mass, half_length, cart_friction, pole_friction):
    """Vector field d state/dt of a uniform pole of length 2 half_length hinged on a cart (kg, m, N s/m, N m s/rad).

    The equations of A. Barto, R. Sutton, C. Anderson (1983) with viscous friction at the cart and the hinge.
    """
    total, moment = cart_mass + pole_mass, pole_mass * half_length

    def field(t, state, action):
        _, angle, speed, rate = state
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        drive = (FORCE * action[0] - cart_friction * speed + moment * rate**2 * sin) / total
        turn = GRAVITY * sin - cos * drive - pole_friction * rate / moment
        turn = turn / (half_length * (4 / 3 - pole_mass * cos**2 / total))
        return jnp.stack([speed, rate, drive - moment * turn * cos / total, turn])

    return field


def program(**held):
    """Program with all five parameters unknown."""
    return field(**sample(_priors, held))


def program_with(**held):
    """`program` with some arguments of `field` fixed: `program_with(cart_friction=0.0)`."""
    return hold(program, field, _priors, held)


def dynamics(program=program, dt: float = 0.05, **options) -> Dynamics:
    """The cart-pole bound to its spaces; other options are those of `Dynamics`."""
    return Dynamics(program, state, action, dt=dt, **options)


def system(
    dt: float = 0.05, noise=(1e-3, 1e-3, 1e-2, 1e-2), measurement_sd=0.0, initial_sd=0.05, **changes
) -> SimulatedSystem:
    """A simulated cart-pole at `truth`, starting at rest with the pole hanging.

    Args:
        noise: process-noise sd of (m, rad, m/s, rad/s) over one step.
        initial_sd: of the state at a reset, one number or one per coordinate.
        changes: arguments of `field` that differ: `system(pole_mass=0.2)`.

    Raises:
        KeyError: for a name that is not a parameter, with close matches.
    """
    transition = true_transition(dynamics, program, field, truth, changes, dt, noise)
    return SimulatedSystem(transition, [0.0, jnp.pi, 0.0, 0.0], initial_sd, measurement_sd)


def _reward(state, action):
    tip = (state[0] + jnp.sin(state[1])) ** 2 + (jnp.cos(state[1]) - 1) ** 2
    return jnp.exp(-tip) - 0.01 * action[0] ** 2


def upright_error(states):
    """Distance |angle| on the circle, rad; states (..., 4)."""
    return jnp.abs((states[..., 1] + jnp.pi) % (2 * jnp.pi) - jnp.pi)


def _solved(states):
    return jnp.all(upright_error(states[-30:]) < 0.2)


swing_up = Task(_reward, steps=100, solved=_solved)
"""From hanging to standing, 5 s at 0.05 s; solved if within 0.2 rad of upright for the last 30 steps."""
