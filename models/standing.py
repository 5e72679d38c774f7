"""Success criterion of a swing-up: the pendulum stays upright."""

import functools

import jax.numpy as jnp

TOLERANCE = 0.2  # rad from upright


def upright_error(angles):
    """Distance |angle - pi| on the circle, rad; angle 0 hangs."""
    return jnp.abs(angles % (2 * jnp.pi) - jnp.pi)


@functools.cache  # equal arguments give the same function, so that equal tasks compare equal
def stays_upright(index: int, last: int):
    """Predicate of an episode's states (T + 1, D): angle `index` is within 0.2 rad of upright for the `last` steps."""

    def upright(states):
        return jnp.all(upright_error(states[-last:, index]) < TOLERANCE)

    return upright
