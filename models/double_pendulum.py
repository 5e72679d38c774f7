"""Double pendulum: two point masses on massless rods; both angles are 0 hanging; actions are accelerations."""

from typing import Any

import jax.numpy as jnp

from physppl.control.systems import SimulatedSystem
from physppl.data.spaces import ActionSpace, Angle, Bounded, Real, StateSpace
from physppl.dynamics import Dynamics
from physppl.language.friction import friction
from physppl.language.integrate import Step
from physppl.models.priors import Between, hold, sample, up_to
from physppl.models.truth import true_transition

GRAVITY = 9.81  # m/s2
EULER_DT = 0.1  # s, of the explicit Euler map that PhyDream learns

state = StateSpace(
    angle_1=Angle(), angle_2=Angle(), velocity_1=Real("rad/s", scale=4.0), velocity_2=Real("rad/s", scale=4.0)
)
action = ActionSpace(
    acceleration_1=Bounded(-5.0, 5.0, "rad/s^2"), acceleration_2=Bounded(-5.0, 5.0, "rad/s^2")
)  # the source gives no range
truth = {"mass_ratio": 1.0, "l1": 1.0, "l2": 1.0}  # m2 / m1, m, m: the source gives no values

_priors = {
    "mass_ratio": Between(0.05, 5.0, "", -1.5),
    "l1": Between(0.2, 3.0, "m", -1.0),
    "l2": Between(0.2, 3.0, "m", -1.0),
}
_frictions = {  # for m1 = 1 kg
    "damping_1": up_to(1.0, "N m s/rad"),
    "damping_2": up_to(1.0, "N m s/rad"),
    "coulomb_1": up_to(1.0, "N m"),
    "coulomb_2": up_to(1.0, "N m"),
}


def field(
    mass_ratio,
    l1,
    l2,
    damping_1: Any = 0.0,
    damping_2: Any = 0.0,
    coulomb_1: Any = 0.0,
    coulomb_2: Any = 0.0,
    m1: Any = 1.0,
    gravity: Any = GRAVITY,
    width: Any = 0.1,
):
    """Vector field d state/dt of PhyDream (J. Lee et al., Brown University), with friction in the hinges.

    Actions are added to the angular accelerations; they are not torques, so that the scale of masses is not
    identifiable: m1 is the unit of mass. Friction in the second hinge acts on the rods' relative velocity.

    Args:
        mass_ratio: m2 / m1.
        l1, l2: m.
        damping_1, damping_2: N m s/rad.
        coulomb_1, coulomb_2: N m; the sign is smoothed as tanh(velocity / width).
        m1: kg.
        gravity: m/s^2.
        width: rad/s.
    """
    m2 = mass_ratio * m1

    def field(t, state, action):
        angle_1, angle_2, v1, v2 = state
        sin, cos = jnp.sin(angle_1 - angle_2), jnp.cos(angle_1 - angle_2)
        hinge_1 = friction(v1, damping_1, coulomb_1, width=width)
        hinge_2 = friction(v2 - v1, damping_2, coulomb_2, width=width)
        # Torques over lengths, and the mass matrix [[m1 + m2, m2 cos], [m2 cos, m2]] of l1 angle_1'', l2 angle_2''.
        force_1 = (hinge_2 - hinge_1) / l1 - m2 * l2 * sin * v2**2 - (m1 + m2) * gravity * jnp.sin(angle_1)
        force_2 = -hinge_2 / l2 + m2 * l1 * sin * v1**2 - m2 * gravity * jnp.sin(angle_2)
        determinant = m1 + m2 * sin**2  # over m2
        turn_1 = (force_1 - cos * force_2) / (l1 * determinant)
        turn_2 = ((m1 + m2) * force_2 / m2 - cos * force_1) / (l2 * determinant)
        return jnp.stack([v1, v2, turn_1 + action[0], turn_2 + action[1]])

    return field


def program(**held):
    """Program with unknown mass ratio and lengths, without friction: as in PhyDream."""
    return field(**sample(_priors, held))


def program_with_friction(**held):
    """Program with unknown viscous and dry friction in both hinges too, for m1 = 1 kg."""
    return field(**sample(_priors | _frictions, held))


def euler_as_published(**held):
    """One explicit Euler step of `program` over EULER_DT: the map that PhyDream learns. It gains energy at every swing.

    Use it with `dynamics(euler_as_published, dt=EULER_DT)`.
    """
    slope = program(**held)
    return Step(lambda t, state, action: state + EULER_DT * slope(t, state, action))


def program_with(**held):
    """`program` with some arguments of `field` fixed: `program_with(l1=1.0, l2=1.0)`."""
    return hold(program, field, _priors, held)


def dynamics(program=program, dt: float = 0.05, **options) -> Dynamics:
    """The double pendulum bound to its spaces; other options are those of `Dynamics`."""
    return Dynamics(program, state, action, dt=dt, **options)


def system(dt: float = 0.05, noise=0.0, measurement_sd=0.0, initial_sd=0.1, **changes) -> SimulatedSystem:
    """A simulated double pendulum at `truth`, starting near hanging.

    Args:
        noise: process-noise sd of (rad, rad, rad/s, rad/s) over one step.
        initial_sd: of the state at a reset, one number or one per coordinate.
        changes: arguments of `field` that differ: `system(coulomb_1=0.1)`.

    Raises:
        KeyError: for a name that is not a parameter, with close matches.
    """
    transition = true_transition(dynamics, program, field, truth, changes, dt, noise)
    return SimulatedSystem(transition, jnp.zeros(4), initial_sd, measurement_sd)
