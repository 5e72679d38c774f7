"""Gymnasium's InvertedPendulum-v5: a capsule hinged on a cart on a rail, as in MuJoCo; angle 0 is upright.

The equations hold while the cart is on the rail (1 m to either side) and the pole above the horizontal: MuJoCo's stops
are not modelled. The pole's inertia follows from its mass and shape, a capsule of uniform density.
"""

import math

import jax.numpy as jnp

from physppl.control.systems import SimulatedSystem
from physppl.data.spaces import ActionSpace, Angle, Bounded, Real, StateSpace
from physppl.dynamics import Dynamics
from physppl.models.coupled import coupled_rates
from physppl.models.priors import Between, hold, sample, up_to
from physppl.models.truth import true_transition
from physppl.planning.tasks import Limits, Task

GRAVITY = 9.81  # m/s2
FORCE = 100.0  # N per unit action: the motor's gear
RADIUS = 0.049  # m, of the pole
DT, SUBSTEPS = 0.04, 2  # s; MuJoCo steps RK4 at 0.02 s, twice an action
FALLEN = 0.2  # rad, where Gymnasium ends an episode
RAIL = 1.0  # m, where the rail ends

state = StateSpace(
    position=Real("m"), angle=Angle(scale=0.2), speed=Real("m/s", scale=2.0), rate=Real("rad/s", scale=5.0)
)
action = ActionSpace(force=Bounded(-3.0, 3.0))


def capsule_mass(radius, length, density=1000.0):
    """Mass of a cylinder of this length with a hemisphere at either end (m, m, kg/m3 -> kg)."""
    return density * math.pi * radius**2 * (length + 4 / 3 * radius)


# MuJoCo's file gives shapes and a density; a capsule's size there is its radius and half length.
nominal = {
    "cart_mass": capsule_mass(0.1, 0.2),
    "pole_mass": capsule_mass(RADIUS, math.hypot(0.001, 0.6)),
    "pole_length": math.hypot(0.001, 0.6),
    "pole_tilt": math.atan2(0.001, 0.6),
    "cart_damping": 1.0,
    "pole_damping": 1.0,
}
_priors = {
    "cart_mass": Between(0.0, 40.0, "kg", -1.0),
    "pole_mass": Between(0.0, 20.0, "kg", -1.0),
    "pole_length": Between(0.1, 1.5, "m"),
    "pole_tilt": Between(-0.01, 0.01, "rad"),
    "cart_damping": up_to(10.0, "N s/m"),
    "pole_damping": up_to(10.0, "N m s/rad"),
}


def field(cart_mass, pole_mass, pole_length, pole_tilt, cart_damping, pole_damping):
    """Vector field d state/dt (kg, m, rad, N s/m, N m s/rad).

    Args:
        pole_length: of the cylinder, without its round ends.
        pole_tilt: of the pole where the angle reads 0.
    """
    centre = pole_length / 2
    # Transverse inertia of a capsule about its centre: the cylinder's, and two hemispheres' shifted to its ends.
    cylinder = pole_mass * pole_length / (pole_length + 4 / 3 * RADIUS)
    ends = pole_mass - cylinder
    inertia = cylinder * (pole_length**2 / 12 + RADIUS**2 / 4)
    inertia = inertia + ends * (2 / 5 * RADIUS**2 + pole_length**2 / 4 + 3 / 8 * RADIUS * pole_length)
    total, moment = cart_mass + pole_mass, pole_mass * centre
    about_hinge = inertia + moment * centre

    def field(t, state, action):
        _, angle, speed, rate = state
        sin, cos = jnp.sin(angle + pole_tilt), jnp.cos(angle + pole_tilt)
        push = FORCE * action[0] - cart_damping * speed + moment * sin * rate**2
        fall = moment * GRAVITY * sin - pole_damping * rate
        return coupled_rates(speed, rate, total, moment * cos, about_hinge, push, fall)

    return field


def program(**held):
    """Program with all six parameters unknown."""
    return field(**sample(_priors, held))


def program_with(**held):
    """`program` with some arguments of `field` fixed: `program_with(pole_tilt=0.0)`."""
    return hold(program, field, _priors, held)


def dynamics(program=program, dt: float = DT, substeps: int = SUBSTEPS, **options) -> Dynamics:
    """The machine bound to its spaces; other options are those of `Dynamics`."""
    return Dynamics(program, state, action, dt=dt, substeps=substeps, **options)


def system(dt: float = DT, noise=0.0, measurement_sd=0.0, initial_sd=0.006, **changes) -> SimulatedSystem:
    """The same machine without MuJoCo, at `nominal`, upright; it neither ends at 0.2 rad nor has a rail.

    Args:
        noise: process-noise sd of (m, rad, m/s, rad/s) over one step.
        initial_sd: of the state at a reset; Gymnasium's, uniform, is 0.006.
        changes: arguments of `field` that differ: `system(pole_mass=2.0)`.

    Raises:
        KeyError: for a name that is not a parameter, with close matches.
    """
    transition = true_transition(dynamics, program, field, nominal, changes, dt, noise)
    return SimulatedSystem(transition, [0.0] * 4, initial_sd, measurement_sd)


def _reward(state, action):
    return 1.0 - (state[1] / FALLEN) ** 2 - (state[0] / RAIL) ** 2 - 0.01 * action[0] ** 2


def _solved(states):
    return jnp.all(jnp.abs(states[..., 1]) <= FALLEN)


balance = Task(_reward, steps=1000, solved=_solved, limits=Limits(state, angle=(-FALLEN, FALLEN), position=(-0.9, 0.9)))
"""Stand for 40 s, on the rail. Gymnasium's own reward, 1 a step up to 0.2 rad, does not grade the angle."""
