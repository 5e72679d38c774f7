"""Friction law of a joint: viscous and dry friction, breakaway near standstill, and quadratic drag."""

from typing import Any

import jax.numpy as jnp


def friction(
    velocity,
    damping,
    coulomb: Any = 0.0,
    breakaway: Any = 0.0,
    quadratic: Any = 0.0,
    width: Any = 0.1,
    stribeck: Any = 0.5,
):
    """Friction torque of a joint, with the sign of its velocity v: subtract it from the applied torque.

    damping v + (coulomb + breakaway exp(-(v / stribeck)^2)) tanh(v / width) + quadratic v |v|

    With non-negative coefficients it only dissipates energy. The tanh replaces a sign function, so that solvers and
    derivatives work: below about `width` the joint creeps where a real one sticks, and `breakaway` shows in full
    only if `width` is far below `stribeck`. The law is that of B. Armstrong-Helouvry (Control of Machines with
    Friction, 1991), without memory; the last term is the drag of turbulent air.

    A coefficient that is the Python number 0.0 costs nothing: its term is omitted. The term of an array of 0, such as
    a site, is computed, so that it can be changed and differentiated.

    Args:
        velocity: v, rad/s; any shape that broadcasts with the coefficients'.
        damping: N m s/rad, viscous.
        coulomb: N m, dry, away from standstill.
        breakaway: N m, by how much dry friction is larger near standstill.
        quadratic: N m s^2/rad^2.
        width: rad/s, over which dry friction changes sign.
        stribeck: rad/s, over which dry friction falls from its value near standstill.

    Units are those of a rotary joint; for a joint on a rail read m for rad and N for N m.

    Returns:
        N m, of the shape of the velocity; the Python number 0.0 if all coefficients are.
    """
    resistance: Any = 0.0 if _absent(damping) else damping * velocity
    if not (_absent(coulomb) and _absent(breakaway)):
        dry = coulomb if _absent(breakaway) else coulomb + breakaway * jnp.exp(-((velocity / stribeck) ** 2))
        resistance = _plus(resistance, dry * jnp.tanh(velocity / width))
    if not _absent(quadratic):
        resistance = _plus(resistance, quadratic * (velocity * jnp.abs(velocity)))
    return resistance


def _absent(coefficient) -> bool:
    return isinstance(coefficient, float) and coefficient == 0.0


def _plus(resistance, term):
    return term if _absent(resistance) else resistance + term
