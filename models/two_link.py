"""Two-link arm with a motor in each joint, vertical or horizontal; angle 0 hangs, the elbow's is relative to link 1."""

from typing import Any

import jax.numpy as jnp

from physppl.control.systems import SimulatedSystem
from physppl.data.spaces import ActionSpace, Angle, Bounded, Real, StateSpace
from physppl.dynamics import Dynamics
from physppl.language.friction import friction
from physppl.models.coupled import coupled_rates
from physppl.models.priors import Between, derived, hold, sample, up_to
from physppl.models.truth import true_transition
from physppl.planning.tasks import Limits, Task

GRAVITY = 9.81  # m/s2
STRIBECK = 0.5  # rad/s, over which dry friction falls from its value at standstill
LENGTH = 0.2  # m, shoulder to elbow (the length of the second link, 0.3 m, does not matter: its end is free)

state = StateSpace(
    shoulder=Angle(),
    elbow=Angle(),
    shoulder_velocity=Real("rad/s", scale=5.0),
    elbow_velocity=Real("rad/s", scale=5.0),
)
action = ActionSpace(shoulder_torque=Bounded(-6.0, 6.0, "N m"), elbow_torque=Bounded(-6.0, 6.0, "N m"))


def combinations(bodies, length: Any = LENGTH) -> dict[str, Any]:
    """Combinations that determine the motion of two bodies: horizontal, the three pi; vertical, weights too.

    Args:
        bodies: {m1, r1, k1, m2, r2, k2: value}: masses, kg, distances from joint to centre of mass and radii of
            gyration about it, m.
        length: l1, m, shoulder to elbow.

    Returns:
        {pi1: m1 (k1^2 + r1^2) + m2 l1^2, pi2: m2 (k2^2 + r2^2), pi3: m2 l1 r2}, kg m^2, and {m1_r1_plus_m2_l1, m2_r2},
        kg m.
    """
    m1, r1, k1, m2, r2, k2 = (bodies[name] for name in ("m1", "r1", "k1", "m2", "r2", "k2"))
    return {
        "pi1": m1 * (k1**2 + r1**2) + m2 * length**2,
        "pi2": m2 * (k2**2 + r2**2),
        "pi3": m2 * length * r2,
        "m1_r1_plus_m2_l1": m1 * r1 + m2 * length,
        "m2_r2": m2 * r2,
    }


bodies = {"m1": 0.5235, "r1": 0.2, "k1": 0.1446, "m2": 0.6256, "r2": 0.2557, "k2": 0.1262}
"""kg and m: model_1.0 of design C.1 of DFKI's double pendulum, identified by its builders
(github.com/dfki-ric-underactuated-lab/double_pendulum); k from their inertias I = m (r^2 + k^2) about the joints."""

_nominal = combinations(bodies)
nominal = {
    "m1_r1_plus_m2_l1": _nominal["m1_r1_plus_m2_l1"],
    "m2_r2": _nominal["m2_r2"],
    "length_2": _nominal["pi2"] / _nominal["m2_r2"],
    "driven_inertia": _nominal["pi1"] - _nominal["pi3"] ** 2 / _nominal["pi2"],
    "split": (bodies["m2"] - _nominal["m2_r2"] ** 2 / _nominal["pi2"])
    / (_nominal["pi1"] / LENGTH**2 - _nominal["m2_r2"] ** 2 / _nominal["pi2"]),
    "motor_inertia": 6.0**2 * 6.287e-5,
    "damping_1": 0.001,
    "damping_2": 0.001,
    "coulomb_1": 0.251,
    "coulomb_2": 0.188,
    "breakaway_1": 0.0,
    "breakaway_2": 0.0,
}
"""In SI units, of the same source: the sites' values for `bodies`; the motor's from rotor inertia and gear ratio 6;
dry friction at speed, 0.16 and 0.12 N m times pi / 2, as theirs is an arctangent; no breakaway friction."""

_priors = {
    "m1_r1_plus_m2_l1": Between(0.0, 2.0, "kg m", -2.0),
    "m2_r2": Between(0.0, 1.4, "kg m", -2.0),
    "length_2": Between(0.0, 2.7, "m", -2.0),
    "driven_inertia": Between(0.0, 0.3, "kg m^2", -2.0),
    "split": Between(0.0, 1.0, "", -0.5, 1.5),
    "motor_inertia": Between(0.0, 0.03, "kg m^2", -2.0),
    "damping_1": up_to(0.03, "N m s/rad"),
    "damping_2": up_to(0.03, "N m s/rad"),
    "coulomb_1": up_to(1.5, "N m"),
    "coulomb_2": up_to(1.5, "N m"),
    "breakaway_1": up_to(0.5, "N m"),
    "breakaway_2": up_to(0.5, "N m"),
}


def field(m1, r1, k1, m2, r2, k2, length: Any = LENGTH, **options):
    """Vector field d state/dt of two bodies: masses, centres of mass, radii of gyration about these (kg, m, m).

    All values of the six are physical: the inertia about a joint is m (r^2 + k^2), at least m r^2.

    Args:
        length: m, shoulder to elbow.
        options: from `motor_inertia` on, as in `arm`.
    """
    bodies = {"m1": m1, "r1": r1, "k1": k1, "m2": m2, "r2": r2, "k2": k2}
    return _field(**combinations(bodies, length), **options)


def arm(
    m1_r1_plus_m2_l1,
    m2_r2,
    length_2,
    driven_inertia,
    length: Any = LENGTH,
    motor_inertia: Any = 0.0,
    damping_1: Any = 0.0,
    damping_2: Any = 0.0,
    coulomb_1: Any = 0.0,
    coulomb_2: Any = 0.0,
    breakaway_1: Any = 0.0,
    breakaway_2: Any = 0.0,
    gravity: Any = GRAVITY,
    width: Any = 0.1,
    locked: bool = False,
    quadratic_1: Any = 0.0,
    quadratic_2: Any = 0.0,
    stribeck: Any = STRIBECK,
):
    """Vector field d state/dt of an arm in identifiable parameters; `combinations` relates them to two bodies.

    The first four are positive for every pair of bodies, and give a positive definite mass matrix whenever they are.

    Args:
        m1_r1_plus_m2_l1: kg m, first moment of both links about the shoulder, the second's mass placed at the elbow.
        m2_r2: kg m, first moment of the second link about the elbow.
        length_2: m, pi2 / m2_r2: of an ideal pendulum with the period of the second link.
        driven_inertia: kg m^2, pi1 - pi3^2 / pi2: inertia at the shoulder with the second link hanging free.
        length: m, shoulder to elbow.
        motor_inertia: kg m^2, of a rotor times its gear ratio squared, the same in both joints. Unlike a link's
            inertia it resists the elbow's own motion but not the shoulder's. (Its cross terms, smaller by the gear
            ratio, are left out: the other parameters can compensate them exactly.)
        damping_1, damping_2: N m s/rad, viscous, of shoulder and elbow.
        coulomb_1, coulomb_2: N m, dry; the sign is smoothed as tanh(velocity / width).
        breakaway_1, breakaway_2: N m, by how much dry friction is larger near standstill.
        gravity: m/s^2; 0 for a horizontal arm.
        width, stribeck: rad/s, of both joints, as in `friction`.
        locked: True if the shoulder is fixed by an unrecorded torque: it stays where it is, whatever its velocity in
            the state.
        quadratic_1, quadratic_2: N m s^2/rad^2, drag.
    """
    pi1, pi2 = driven_inertia + m2_r2 * length**2 / length_2, m2_r2 * length_2
    frictions = (damping_1, damping_2, coulomb_1, coulomb_2, breakaway_1, breakaway_2)
    options = (gravity, width, locked, quadratic_1, quadratic_2, stribeck)
    return _field(pi1, pi2, m2_r2 * length, m1_r1_plus_m2_l1, m2_r2, motor_inertia, *frictions, *options)


def _field(
    pi1,
    pi2,
    pi3,
    m1_r1_plus_m2_l1,
    m2_r2,
    motor_inertia: Any = 0.0,
    damping_1: Any = 0.0,
    damping_2: Any = 0.0,
    coulomb_1: Any = 0.0,
    coulomb_2: Any = 0.0,
    breakaway_1: Any = 0.0,
    breakaway_2: Any = 0.0,
    gravity: Any = GRAVITY,
    width: Any = 0.1,
    locked: bool = False,
    quadratic_1: Any = 0.0,
    quadratic_2: Any = 0.0,
    stribeck: Any = STRIBECK,
):
    """Vector field d state/dt in the combinations of `combinations`, with J = motor_inertia and the mass matrix

    [[pi1 + pi2 + 2 pi3 cos q2 + J, pi2 + pi3 cos q2], [pi2 + pi3 cos q2, pi2 + J]].
    """
    m22 = pi2 + motor_inertia

    def field(t, state, action):
        q1, q2, v1, v2 = state
        sin, cos = jnp.sin(q2), jnp.cos(q2)
        v1 = jnp.zeros_like(v1) if locked else v1
        hanging = gravity * m2_r2 * jnp.sin(q1 + q2)
        friction_2 = friction(v2, damping_2, coulomb_2, breakaway_2, quadratic_2, width, stribeck)
        elbow = action[1] - friction_2 - hanging - pi3 * sin * v1**2
        if locked:
            return jnp.stack([v1, v2, jnp.zeros_like(v1), elbow / m22])
        friction_1 = friction(v1, damping_1, coulomb_1, breakaway_1, quadratic_1, width, stribeck)
        shoulder = action[0] - friction_1 - hanging
        shoulder = shoulder - gravity * m1_r1_plus_m2_l1 * jnp.sin(q1) + pi3 * sin * (2 * v1 * v2 + v2**2)
        m11, m12 = pi1 + pi2 + 2 * pi3 * cos + motor_inertia, pi2 + pi3 * cos
        return coupled_rates(v1, v2, m11, m12, m22, shoulder, elbow)

    return field


def program(length: Any = LENGTH, **held):
    """Program with twelve unknown parameters, eleven of which are identifiable; the first link's length is known.

    The twelfth, `split`, has no effect on motion: it places the second link's mass between the least and the largest
    that bodies with these inertias can have. Tables also show the derived `m2`, `m1_r1`, and `pi1`, `pi2`.
    """
    p = sample(_priors, held)
    split, moment, length_2 = p.pop("split"), p["m2_r2"], p["length_2"]
    pi1 = derived("pi1", p["driven_inertia"] + moment * length**2 / length_2, "kg m^2")
    derived("pi2", moment * length_2, "kg m^2")
    # pi2 >= m2 r2^2 = (m2 r2)^2 / m2, and pi1 >= m2 l1^2
    least, most = moment / length_2, pi1 / length**2
    m2 = derived("m2", least + (most - least) * split, "kg")
    derived("m1_r1", p["m1_r1_plus_m2_l1"] - m2 * length, "kg m")
    return arm(length=length, **p)


def program_with(**held):
    """`program` with some of its sites, or options of `arm`, fixed.

    The arm of the SIM2GP paper, horizontal and without motors: `program_with(gravity=0.0, motor_inertia=0.0)`, its
    first data set `program_with(gravity=0.0, motor_inertia=0.0, locked=True)`.
    """
    return hold(program, arm, _priors, held)


def dynamics(program=program, dt: float = 0.004, **options) -> Dynamics:
    """The arm bound to its spaces, at the 250 Hz of its recordings; other options are those of `Dynamics`."""
    return Dynamics(program, state, action, dt=dt, **options)


def system(dt: float = 0.004, noise=0.0, measurement_sd=0.0, initial_sd=0.0, **changes) -> SimulatedSystem:
    """A simulated arm at `nominal`, hanging at rest.

    Args:
        noise: process-noise sd of (rad, rad, rad/s, rad/s) over one step.
        initial_sd: of the state at a reset, one number or one per coordinate.
        changes: arguments of `arm` that differ: `system(gravity=0.0, locked=True)`, `system(quadratic_2=0.01)`.

    Raises:
        KeyError: for a name that is not a parameter, with close matches.
    """
    transition = true_transition(dynamics, program, arm, nominal, changes, dt, noise)
    return SimulatedSystem(transition, jnp.zeros(4), initial_sd, measurement_sd)


TARGET = (1.0, 1.0)  # rad, shoulder and elbow
FASTEST = 20.0  # rad/s, of either joint


def _reward(state, action):
    error = state[:2] - jnp.asarray(TARGET, state.dtype)
    near = jnp.exp(-jnp.sum(1 - jnp.cos(error)) / 0.1)
    return near - 1e-3 * jnp.sum(state[2:] ** 2) - 1e-3 * jnp.sum(action**2)


def _arrived(states):
    return jnp.all(jnp.abs(states[-25:, :2] - jnp.asarray(TARGET, states.dtype)) < 0.1)


def reach(dt: float = 0.02) -> Task:
    """Reaching task: both joints to 1 rad, in 2 s; solved if within 0.1 rad of it for the last 25 steps.

    At most 1 a step. The joints' speeds are limited to 20 rad/s. Use it with the horizontal arm at the same step,
    `system(0.02, gravity=0.0)` and `dynamics(program_with(gravity=0.0), 0.02)`.
    """
    limits = Limits(state, shoulder_velocity=(-FASTEST, FASTEST), elbow_velocity=(-FASTEST, FASTEST))
    return Task(_reward, round(2.0 / dt), solved=_arrived, limits=limits)
