"""The machines as point masses: where they are and which forces act; their equations follow by differentiating that.

Written from the geometry of each machine alone, numbers included, so that tests compare two derivations.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers

from physppl.models import double_pendulum, furuta, quanser_cartpole, simple_pendulum, two_link

tanh = jnp.tanh


class Oracle(NamedTuple):
    """One machine: L = T - V of its points, and the equation d/dt dL/dv - dL/dq = force.

    A rigid body is a dumb-bell, half its mass a radius of gyration to either side of its centre of mass.
    """

    points: Callable  # (parameters, q) -> masses (n,), positions (n, 3), the third upwards
    inertia: Callable  # (parameters) -> inertia along each coordinate that belongs to no point
    force: Callable  # (parameters, q, v, u) -> generalised forces that have no potential
    torque: Callable = lambda p, q: 0.0  # the potential beside that of weight
    gravity: float = 9.81

    def mass(self, p, q):
        """(n, n), with T = v' mass v / 2: velocities of the points are their positions' derivatives times v."""
        masses, _ = self.points(p, q)
        jacobian = jax.jacfwd(lambda q: self.points(p, q)[1])(q)
        return jnp.einsum("i,ixj,ixk->jk", masses, jacobian, jacobian) + jnp.diag(jnp.stack(self.inertia(p)))

    def potential(self, p, q):
        masses, positions = self.points(p, q)
        return self.gravity * masses @ positions[:, 2] + self.torque(p, q)

    def energy(self, p, x):
        q, v = jnp.split(x, 2)
        return 0.5 * v @ self.mass(p, q) @ v + self.potential(p, q)

    def terms(self, p, x, u):
        """mass (n, n), conservative torques (n,) and the other forces (n,): mass v' = torques + forces."""
        q, v = jnp.split(x, 2)
        # d/dt dT/dv = mass v' + (d mass/dq . v) v, and dT/dq = v' (d mass/dq) v / 2.
        slope = jax.jacfwd(self.mass, 1)(p, q)
        inertial = jnp.einsum("ijk,k,j->i", slope, v, v) - 0.5 * jnp.einsum("jki,j,k->i", slope, v, v)
        conservative = -inertial - jax.jacfwd(self.potential, 1)(p, q)
        return self.mass(p, q), conservative, jnp.stack(self.force(p, q, v, u))


def body(pivot, direction, mass, com, gyration):
    """A dumb-bell that hangs from a pivot (3,) along a direction (3,)."""
    return jnp.stack([mass / 2, mass / 2]), jnp.stack([pivot + (com + gyration * s) * direction for s in (-1, 1)])


def down(angle):
    """The direction at an angle from hanging, in the plane of the first and third axis."""
    return jnp.stack([jnp.sin(angle), 0 * angle, -jnp.cos(angle)])


def _rod(mgl, length):
    """Mass, centre of mass and radius of gyration of the uniform rod of that weight and equivalent length."""
    com = 0.75 * length
    return mgl / 9.81 / com, com, com / jnp.sqrt(3.0)


def _furuta_points(p, q):
    outwards = jnp.stack([jnp.cos(q[0]), jnp.sin(q[0]), 0 * q[0]])
    ahead = jnp.stack([-jnp.sin(q[0]), jnp.cos(q[0]), 0 * q[0]])
    direction = jnp.sin(q[1]) * ahead - jnp.cos(q[1]) * jnp.array([0.0, 0.0, 1.0])
    return body(0.085 * outwards, direction, *_rod(p["pendulum_mgl"], p["pendulum_length"]))


def _furuta_inertia(p):
    """Of the arm alone: what it has to be driven with, less what a rod that hangs free adds, a quarter of its mass."""
    return [
        p["driven_inertia"] - _rod(p["pendulum_mgl"], p["pendulum_length"])[0] * 0.085**2 / 4,
        0 * p["driven_inertia"],
    ]


def _published_points(p, q):
    """The published form: for the arm, the pendulum is a point mass."""
    masses, positions = _furuta_points(p, q)
    middle = positions.mean(0)
    return masses, jnp.stack([middle, middle])


def _published_inertia(p):
    """For the pendulum itself, it is a rod all the same."""
    mass, _, gyration = _rod(p["pendulum_mgl"], p["pendulum_length"])
    return [_furuta_inertia(p)[0], mass * gyration**2]


def _furuta_force(p, q, v, u):
    motor = 0.042 * (u[0] - 0.042 * v[0]) / 8.4
    arm = p["arm_damping"] * v[0] + p["arm_coulomb"] * tanh(v[0] / 0.3)
    return motor - arm, -p["pendulum_damping"] * v[1] - p["pendulum_coulomb"] * tanh(v[1] / 0.3)


def _cable(p, q):
    return 0.5 * p["cable_stiffness"] * q[0] ** 2 - p["cable_offset"] * q[0]


def _cartpole_points(p, q):
    pivot = jnp.stack([q[0], 0 * q[0], 0 * q[0]])
    return body(pivot, down(q[1]), *_rod(p["pole_mgl"], p["pole_length"]))


def _cartpole_inertia(p):
    return [p["driven_mass"] - _rod(p["pole_mgl"], p["pole_length"])[0] / 4, 0 * p["driven_mass"]]


def _cartpole_force(p, q, v, u):
    motor = 3.71 * 0.00767 / (2.6 * 0.00635) * (u[0] - 3.71 * 0.00767 * v[0] / 0.00635)
    cart = p["cart_damping"] * v[0] + p["cart_coulomb"] * tanh(v[0] / 0.05)
    return motor - cart, -p["pole_damping"] * v[1] - p["pole_coulomb"] * tanh(v[1] / 0.3)


def _two_link_points(p, q):
    shoulder, elbow = jnp.zeros(3), 0.2 * down(q[0])
    first = body(shoulder, down(q[0]), p["m1"], p["r1"], p["k1"])
    second = body(elbow, down(q[0] + q[1]), p["m2"], p["r2"], p["k2"])
    return jnp.concatenate([first[0], second[0]]), jnp.concatenate([first[1], second[1]])


def two_bodies(p):
    """Bodies that have the sites of the two-link arm: the split says m2, and the first link weighs 1 kg.

    What the first link's inertia about the shoulder lacks or has too much is `extra`.
    """
    gyration_2 = p["m2_r2"] / p["length_2"]  # m2 r2 / (J2 / (m2 r2)): the least mass
    pi1 = p["driven_inertia"] + 0.2**2 * gyration_2
    m2 = gyration_2 + p["split"] * (pi1 / 0.2**2 - gyration_2)
    r1, r2 = p["m1_r1_plus_m2_l1"] - 0.2 * m2, p["m2_r2"] / m2
    k2 = jnp.sqrt(p["length_2"] * r2 - r2**2)
    one = jnp.ones_like(m2)
    extra = pi1 - 0.2**2 * m2 - r1**2
    return p | {"m1": one, "r1": r1, "k1": 0 * one, "m2": m2, "r2": r2, "k2": k2, "extra": extra}


def _two_link_force(p, q, v, u):
    dry = [p[f"coulomb_{i}"] + p[f"breakaway_{i}"] * jnp.exp(-4 * v[i - 1] ** 2) for i in (1, 2)]
    return [u[i] - p[f"damping_{i + 1}"] * v[i] - dry[i] * tanh(v[i] / 0.1) for i in (0, 1)]


def _simple_force(p, q, v, u):
    return [u[0] - p["damping"] * v[0] - p["coulomb"] * tanh(v[0] / 0.1)]


def _double_points(p, q):
    end = p["l1"] * down(q[0])
    return jnp.stack([1 + 0 * p["l1"], p["mass_ratio"]]), jnp.stack([end, end + p["l2"] * down(q[1])])


def _double_force(p, q, v, u):
    first = p["damping_1"] * v[0] + p["coulomb_1"] * tanh(v[0] / 0.1)
    second = p["damping_2"] * (v[1] - v[0]) + p["coulomb_2"] * tanh((v[1] - v[0]) / 0.1)
    return second - first, -second  # the second hinge pushes both rods, oppositely


_furuta = Oracle(_furuta_points, _furuta_inertia, _furuta_force, _cable)
_cartpole = Oracle(_cartpole_points, _cartpole_inertia, _cartpole_force)
_two_link = Oracle(
    lambda p, q: _two_link_points(two_bodies(p), q),
    lambda p: [p["motor_inertia"] + two_bodies(p)["extra"], p["motor_inertia"]],
    _two_link_force,
)
_simple = Oracle(
    lambda p, q: body(jnp.zeros(3), down(q[0]), *_rod(p["mgl"], p["equivalent_length"])),
    lambda p: [0 * p["mgl"]],
    _simple_force,
    lambda p, q: -p["torque_offset"] * q[0],
)
_double = Oracle(_double_points, lambda p: [0 * p["l1"], 0 * p["l1"]], _double_force)

oracles: dict[str, tuple[Any, Callable, Oracle]] = {
    "furuta": (furuta, furuta.program, _furuta),
    "furuta-published": (
        furuta,
        furuta.program_with(as_published=True),
        _furuta._replace(points=_published_points, inertia=_published_inertia),
    ),
    "quanser_cartpole": (quanser_cartpole, quanser_cartpole.program, _cartpole),
    "two_link": (two_link, two_link.program, _two_link),
    "two_link-flat": (two_link, two_link.program_with(gravity=0.0), _two_link._replace(gravity=0.0)),
    "simple_pendulum": (simple_pendulum, simple_pendulum.program, _simple),
    "double_pendulum": (double_pendulum, double_pendulum.program_with_friction, _double),
}
machines = [furuta, quanser_cartpole, two_link, simple_pendulum, double_pendulum]


def published(model) -> dict[str, float]:
    """What the machine's source says of every site."""
    return model.truth if model is double_pendulum else model.nominal


@functools.cache
def prior_draws(dynamics, count: int) -> dict[str, np.ndarray]:
    """{site of the program: (count,)}, the process noise left out."""

    def draw():
        with numpyro.plate("draw", count):
            return dynamics.sites()

    trace = handlers.trace(handlers.seed(draw, 0)).get_trace()
    sites = {k: np.asarray(s["value"]) for k, s in trace.items() if s["type"] == "sample"}
    return {k: v for k, v in sites.items() if k != "process_noise"}


def scattered(dynamics, count: int) -> tuple[np.ndarray, np.ndarray]:
    """States (count, D), positions all around and velocities twice their scales, and actions between the limits."""
    rng, size, space = np.random.default_rng(0), len(dynamics.state), dynamics.action
    states = rng.normal(size=(count, size)) * 2 * dynamics.state.scale
    states[:, : size // 2] = rng.uniform(-np.pi, np.pi, (count, size // 2))
    return states, rng.uniform(space.low, space.high, (count, len(space)))
