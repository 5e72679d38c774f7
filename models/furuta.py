"""Furuta pendulum (Quanser Qube): a motor turns the arm, the pendulum swings at its end; angle 0 hangs, pi stands."""

from typing import Any

import jax.numpy as jnp

from physppl.control.systems import SimulatedSystem
from physppl.data.spaces import ActionSpace, Angle, Bounded, Real, StateSpace
from physppl.dynamics import Dynamics
from physppl.language.friction import friction
from physppl.models.coupled import coupled_rates
from physppl.models.priors import Between, derived, hold, sample, up_to
from physppl.models.standing import stays_upright, upright_error
from physppl.models.truth import true_transition
from physppl.planning.tasks import Limits, Task

GRAVITY = 9.81  # m/s2
ARM_LENGTH = 0.085  # m, motor axis to the pendulum's pivot
MOTOR_CONSTANT = 0.042  # V s/rad, and N m/A
RESISTANCE = 8.4  # Ohm
ARM_MASS, PENDULUM_MASS, PENDULUM_LENGTH = 0.095, 0.024, 0.129  # kg, kg, m: two uniform rods, by the manufacturer

# The arm's angle is real-valued, not circular: stops limit it, and the encoder's cable pulls it back.
state = StateSpace(
    arm=Real("rad"),
    pendulum=Angle(),
    arm_velocity=Real("rad/s", scale=5.0),
    pendulum_velocity=Real("rad/s", scale=10.0),
)
action = ActionSpace(voltage=Bounded(-6.0, 6.0, "V"))
nominal = {
    "pendulum_mgl": PENDULUM_MASS * GRAVITY * PENDULUM_LENGTH / 2,
    "pendulum_length": 2 / 3 * PENDULUM_LENGTH,
    "driven_inertia": (ARM_MASS / 12 + PENDULUM_MASS / 4) * ARM_LENGTH**2,
    "arm_damping": 5e-4,
    "arm_coulomb": 0.0,
    "pendulum_damping": 1e-4,
    "pendulum_coulomb": 0.0,
    "cable_stiffness": 0.0,
    "cable_offset": 0.0,
}
"""In SI units: the manufacturer's rods, the arm turning about its middle, and the damping of the plant that the SIM2GP
experiments simulate (github.com/bhahner/MC-PILCO). Neither has dry friction or a cable: these are 0."""

PIVOT_INERTIA = (ARM_MASS / 3 + PENDULUM_MASS / 4) * ARM_LENGTH**2
"""kg m^2: `driven_inertia` if the arm's rod turns about its end, as some public models of this machine have it."""

_priors = {
    "pendulum_mgl": Between(0.0, 0.12, "N m", -2.0),
    "pendulum_length": Between(0.0, 0.7, "m", -2.0),
    "driven_inertia": Between(0.0, 9e-4, "kg m^2", -2.0),
    "arm_damping": up_to(0.003, "N m s/rad"),
    "arm_coulomb": up_to(0.005, "N m"),
    "pendulum_damping": up_to(0.0004, "N m s/rad"),
    "pendulum_coulomb": up_to(0.001, "N m"),
    "cable_stiffness": up_to(0.008, "N m/rad"),
    "cable_offset": Between(-2e-3, 2e-3, "N m"),
}


def field(
    pendulum_mgl,
    pendulum_length,
    driven_inertia,
    arm_damping: Any = 0.0,
    arm_coulomb: Any = 0.0,
    pendulum_damping: Any = 0.0,
    pendulum_coulomb: Any = 0.0,
    cable_stiffness: Any = 0.0,
    cable_offset: Any = 0.0,
    arm_length: Any = ARM_LENGTH,
    motor_constant: Any = MOTOR_CONSTANT,
    resistance: Any = RESISTANCE,
    width: Any = 0.3,
    stribeck: Any = 1.5,
    arm_breakaway: Any = 0.0,
    arm_quadratic: Any = 0.0,
    pendulum_breakaway: Any = 0.0,
    pendulum_quadratic: Any = 0.0,
    as_published: bool = False,
):
    """Vector field d state/dt of a rigid Furuta pendulum driven by a DC motor without inductance.

    With m, l, J the pendulum's mass, centre of mass and inertia about its pivot, L the arm's length:
    `[[c0 + c3 sin^2 alpha, c2 cos alpha], [c2 cos alpha, c3]] [theta''; alpha''] = torques`, c2 = m l L, c3 = J.
    Motion identifies m l, J and c0 but not m. The first three arguments are positive for every body and give a positive
    definite mass matrix whenever they are.

    Args:
        pendulum_mgl: m g l, N m.
        pendulum_length: J / (m l), m: the length of an ideal pendulum with the same period; 4/3 l in a uniform rod.
        driven_inertia: c0 - c2^2 / c3, kg m^2: inertia at the motor with the pendulum hanging free.
        arm_damping, pendulum_damping: N m s/rad, viscous.
        arm_coulomb, pendulum_coulomb: N m, dry; the sign is smoothed as tanh(velocity / width).
        cable_stiffness: N m/rad, of the pendulum encoder's cable, which pulls the arm towards zero.
        cable_offset: N m, its torque on the arm at zero.
        arm_length: L, m.
        motor_constant: V s/rad, of back-EMF and torque alike.
        resistance: Ohm.
        width, stribeck: rad/s, of both joints, as in `friction`.
        arm_breakaway, pendulum_breakaway: N m, by how much dry friction is larger near standstill.
        arm_quadratic, pendulum_quadratic: N m s^2/rad^2, drag.
        as_published: with m l^2, for a uniform rod 3/4 J, in place of J where the pendulum adds to the arm's inertia,
            as in most public models: correct for a point mass, wrong for the rod whose J they use elsewhere.
    """
    moment = pendulum_mgl / GRAVITY
    inertia, coupling = moment * pendulum_length, moment * arm_length
    hub = driven_inertia + coupling * arm_length / pendulum_length
    added = 0.75 * inertia if as_published else inertia  # what a raised pendulum adds about the motor's axis

    def field(t, state, action):
        arm, angle, turn, rate = state
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        drive = motor_constant * (action[0] - motor_constant * turn) / resistance
        # Viscous friction is a separate term: the order of summation affects the last bit of published results.
        dry = friction(turn, 0.0, arm_coulomb, arm_breakaway, arm_quadratic, width, stribeck)
        drive = drive - arm_damping * turn - dry
        drive = drive - cable_stiffness * arm + cable_offset
        drive = drive - 2 * added * sin * cos * turn * rate + coupling * sin * rate**2
        swing = added * sin * cos * turn**2 - pendulum_mgl * sin
        dry = friction(rate, 0.0, pendulum_coulomb, pendulum_breakaway, pendulum_quadratic, width, stribeck)
        swing = swing - pendulum_damping * rate - dry
        m11, m12 = hub + added * sin**2, coupling * cos
        return coupled_rates(turn, rate, m11, m12, inertia, drive, swing)

    return field


def program(**held):
    """Program with nine unknown parameters; motor and arm length are known, as voltage alone does not identify scales.

    Tables also show `pendulum_inertia` = J about the pivot and `hub_inertia` = c0, about the motor's axis.
    """
    p = sample(_priors, held)
    moment, length = p["pendulum_mgl"] / GRAVITY, p["pendulum_length"]
    derived("pendulum_inertia", moment * length, "kg m^2")
    arm_length = p.get("arm_length", ARM_LENGTH)
    derived("hub_inertia", p["driven_inertia"] + moment * arm_length**2 / length, "kg m^2")
    return field(**p)


def program_with(**held):
    """`program` with some arguments of `field` fixed: `program_with(cable_stiffness=0.0, cable_offset=0.0)`."""
    return hold(program, field, _priors, held)


def dynamics(program=program, dt: float = 0.004, **options) -> Dynamics:
    """The Furuta pendulum bound to its spaces, at the 250 Hz of its recordings; options are those of `Dynamics`."""
    return Dynamics(program, state, action, dt=dt, **options)


def system(dt: float = 0.01, noise=0.0, measurement_sd=0.0, initial_sd=0.01, **changes) -> SimulatedSystem:
    """A simulated Furuta pendulum at `nominal`, hanging.

    Args:
        noise: process-noise sd of (rad, rad, rad/s, rad/s) over one step.
        initial_sd: of the state at a reset, one number or one per coordinate.
        changes: arguments of `field` that differ: `system(arm_coulomb=1e-3, driven_inertia=PIVOT_INERTIA)`;
            `as_published=True` is the plant of the SIM2GP experiments.

    Raises:
        KeyError: for a name that is not a parameter, with close matches.
    """
    transition = true_transition(dynamics, program, field, nominal, changes, dt, noise)
    return SimulatedSystem(transition, jnp.zeros(4), initial_sd, measurement_sd)


ARM_RANGE = 0.75  # rad, either way
STEPS = {0.01: 256, 0.02: 150, 0.05: 60}  # control steps of an episode, by dt in s


def _reward(state, action):
    arm, angle, turn, rate = state
    near, level, quiet = 1 - upright_error(angle) / jnp.pi, 1 - jnp.abs(arm) / 2, 1 - jnp.abs(action[0]) / 5
    value = 0.96 * near**2 + 0.039 * level**2 + 0.001 * quiet**2 - 3e-5 * (turn**2 + rate**2)
    return jnp.clip(value, 0.0, 1.0) - (jnp.abs(arm) > ARM_RANGE)


def swing_up(dt: float = 0.01) -> Task:
    """Swing-up from hanging, the arm within 0.75 rad; solved if upright for the last half second.

    Reward (at most 1 a step), limits, and lengths of episodes of the SIM2GP experiments
    (github.com/bhahner/MC-PILCO): 2.56 s at 0.01 s, 3 s at 0.02 and 0.05 s.
    """
    limits = Limits(state, arm=(-ARM_RANGE, ARM_RANGE))
    steps = STEPS.get(dt, round(3.0 / dt))
    return Task(_reward, steps, solved=stays_upright(1, max(1, round(0.5 / dt))), limits=limits, penalty=1.0)
