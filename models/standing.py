"""When a swung-up pendulum counts as held."""

import functools

import jax.numpy as jnp

HELD = 0.2  # rad from upright


def upright_error(angles):
    """|angle - pi| on the circle, rad; angle 0 hangs."""
    return jnp.abs(angles % (2 * jnp.pi) - jnp.pi)


@functools.cache  # one function for equal tasks, so that they are equal
def held(index: int, last: int):
    """Of an episode's states (T + 1, D): whether angle `index` is within 0.2 rad of upright for the `last` steps."""

    def held_upright(states):
        return jnp.all(upright_error(states[-last:, index]) < HELD)

    return held_upright
