"""Quanser cart-pole (IP02, short pole): a geared motor drives the cart; angle 0 hangs, pi is upright."""

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
# Motor and gear, both of efficiency 1: gear ratio, pinion radius in m, armature resistance in Ohm, torque
# and back-EMF constant in N m/A and V s/rad, rotor inertia in kg m2.
GEAR, PINION, RESISTANCE, MOTOR_CONSTANT, ROTOR_INERTIA = 3.71, 6.35e-3, 2.6, 0.00767, 3.9e-7
FORCE = GEAR * MOTOR_CONSTANT / (RESISTANCE * PINION)  # N/V, of the motor at standstill
BACK_EMF = FORCE * GEAR * MOTOR_CONSTANT / PINION  # N s/m, damping by the motor's back-EMF
ROTOR_MASS = GEAR**2 * ROTOR_INERTIA / PINION**2  # kg, what the rotor adds to the cart
CART_MASS, POLE_MASS, POLE_LENGTH = 0.37, 0.127, 0.3365  # kg, kg, m: the pole a uniform rod

state = StateSpace(position=Real("m", scale=0.2), angle=Angle(), speed=Real("m/s"), rate=Real("rad/s", scale=10.0))
action = ActionSpace(voltage=Bounded(-25.0, 25.0, "V"))
nominal = {
    "driven_mass": CART_MASS + ROTOR_MASS + POLE_MASS / 4,
    "pole_mgl": POLE_MASS * GRAVITY * POLE_LENGTH / 2,
    "pole_length": 2 / 3 * POLE_LENGTH,
    "cart_damping": 5.4,
    "cart_coulomb": 0.0,
    "pole_damping": 0.0048,
    "pole_coulomb": 0.0,
}
"""In SI units, of the plant that the SIM2GP experiments simulate (github.com/bhahner/MC-PILCO); no dry friction."""

LONG_POLE = {"pole_mgl": POLE_MASS * GRAVITY * POLE_LENGTH, "pole_length": 4 / 3 * POLE_LENGTH}
"""A rod twice as long, its length mistaken for half of it (github.com/JoeMWatson/input-inference-for-control)."""

POINT_POLE = {"pole_length": POLE_LENGTH / 2, "driven_mass": CART_MASS + ROTOR_MASS}
"""Parameters with the pole's mass concentrated at its middle (github.com/milutter/value_iteration)."""

_priors = {
    "driven_mass": Between(0.0, 4.5, "kg", -2.0),
    "pole_mgl": Between(0.0, 1.8, "N m", -2.0),
    "pole_length": Between(0.0, 1.9, "m", -2.0),
    "cart_damping": up_to(30.0, "N s/m"),
    "cart_coulomb": up_to(5.0, "N"),
    "pole_damping": up_to(0.03, "N m s/rad"),
    "pole_coulomb": up_to(0.03, "N m"),
}


def field(
    driven_mass,
    pole_mgl,
    pole_length,
    cart_damping: Any = 0.0,
    cart_coulomb: Any = 0.0,
    pole_damping: Any = 0.0,
    pole_coulomb: Any = 0.0,
    cart_width: Any = 0.05,
    pole_width: Any = 0.3,
    cart_stribeck: Any = 0.25,
    pole_stribeck: Any = 1.5,
    cart_breakaway: Any = 0.0,
    cart_quadratic: Any = 0.0,
    pole_breakaway: Any = 0.0,
    pole_quadratic: Any = 0.0,
    as_published: bool = False,
):
    """Vector field d state/dt of a pole hinged on a cart that a DC motor without inductance drives.

    With m, l, J the pole's mass, centre of mass and inertia about the hinge, M the mass of cart, rotor and pole:
    `[[M, m l cos theta], [m l cos theta, J]] [x''; theta''] = [F + m l sin(theta) theta'^2; -m g l sin(theta)]` less
    friction, F = FORCE voltage - BACK_EMF x'. Motion identifies m l, J and M but not m. The first three arguments are
    positive for every body and give a positive definite mass matrix whenever they are.

    Args:
        driven_mass: M - (m l)^2 / J, kg: mass at the motor with the pole hanging free.
        pole_mgl: m g l, N m.
        pole_length: J / (m l), m: the length of an ideal pendulum with the same period; 4/3 l in a uniform rod.
        cart_damping: N s/m, viscous, without the motor's back-EMF.
        cart_coulomb: N, dry; the sign is smoothed as tanh(x' / cart_width).
        pole_damping: N m s/rad.
        pole_coulomb: N m, dry, as tanh(theta' / pole_width).
        cart_width, cart_stribeck: m/s, as in `friction`.
        pole_width, pole_stribeck: rad/s, likewise.
        cart_breakaway, pole_breakaway: N and N m, by how much dry friction is larger near standstill.
        cart_quadratic, pole_quadratic: N s^2/m^2 and N m s^2/rad^2, drag.
        as_published: with -m l sin(theta) theta'^2, as in several public simulators of this machine. This does not
            follow from any Lagrangian: the pole's swing then creates energy.
    """
    moment = pole_mgl / GRAVITY
    total, inertia = driven_mass + moment / pole_length, moment * pole_length
    centrifugal = -moment if as_published else moment

    def field(t, state, action):
        _, angle, speed, rate = state
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        # Viscous friction is a separate term: the order of summation affects the last bit of published results.
        dry = friction(speed, 0.0, cart_coulomb, cart_breakaway, cart_quadratic, cart_width, cart_stribeck)
        push = FORCE * action[0] - (BACK_EMF + cart_damping) * speed - dry
        push = push + centrifugal * sin * rate**2
        dry = friction(rate, 0.0, pole_coulomb, pole_breakaway, pole_quadratic, pole_width, pole_stribeck)
        swing = -pole_mgl * sin - pole_damping * rate - dry
        return coupled_rates(speed, rate, total, moment * cos, inertia, push, swing)

    return field


def program(**held):
    """Program with seven unknown parameters; the motor is known, as voltage does not identify the scale of masses.

    Tables also show `total_mass` = M and `pole_inertia` = J about the hinge.
    """
    p = sample(_priors, held)
    moment, length = p["pole_mgl"] / GRAVITY, p["pole_length"]
    derived("total_mass", p["driven_mass"] + moment / length, "kg")
    derived("pole_inertia", moment * length, "kg m^2")
    return field(**p)


def program_with(**held):
    """`program` with some arguments of `field` fixed: `program_with(cart_coulomb=0.0, pole_coulomb=0.0)`."""
    return hold(program, field, _priors, held)


def dynamics(program=program, dt: float = 0.01, **options) -> Dynamics:
    """The cart-pole bound to its spaces; other options are those of `Dynamics`."""
    return Dynamics(program, state, action, dt=dt, **options)


def system(dt: float = 0.01, noise=0.0, measurement_sd=0.0, initial_sd=0.01, **changes) -> SimulatedSystem:
    """A simulated cart-pole at `nominal`, hanging.

    Args:
        noise: process-noise sd of (m, rad, m/s, rad/s) over one step.
        initial_sd: of the state at a reset, one number or one per coordinate.
        changes: arguments of `field` that differ: `system(cart_coulomb=1.0)`, `system(**LONG_POLE)`,
            `system(as_published=True)`.

    Raises:
        KeyError: for a name that is not a parameter, with close matches.
    """
    transition = true_transition(dynamics, program, field, nominal, changes, dt, noise)
    return SimulatedSystem(transition, jnp.zeros(4), initial_sd, measurement_sd)


TRACK = 0.407  # m, either way: half of the rail
STEPS = {0.01: 256, 0.05: 60}  # control steps of an episode, by dt in s


def _reward(state, action):
    position, angle, speed, rate = state
    value = 1 - (upright_error(angle) / jnp.pi) ** 2 - 1e-3 * (rate**2 + speed**2) - (action[0] / 25) ** 2
    return jnp.clip(value, 0.0, 1.0) - (jnp.abs(position) > TRACK)


def swing_up(dt: float = 0.01) -> Task:
    """Swing-up from hanging on a rail of 0.814 m; solved if upright for the last half second.

    Reward (at most 1 a step), limits, and lengths of episodes of the SIM2GP experiments
    (github.com/bhahner/MC-PILCO): 2.56 s at 0.01 s, 3 s at 0.05 s.
    """
    limits = Limits(state, position=(-TRACK, TRACK))
    steps = STEPS.get(dt, round(3.0 / dt))
    return Task(_reward, steps, solved=stays_upright(1, max(1, round(0.5 / dt))), limits=limits, penalty=1.0)
