"""A Gaussian of which only an interval is known: the interval's probability, and what is left to expect within it."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr
from jaxtyping import Float

NARROW = 1e-2  # sds: in a narrower interval the density is constant to first order, and differences would be rounding
FAR = 1e3  # sds: stands for infinity, whose derivatives are not numbers


class Truncated(NamedTuple):
    """Log probability of an interval, and mean and variance within it of the standardised error z = (x - loc) / scale.

    Of an interval without width the log probability is the log density, and the error is exact.
    """

    log_mass: Float[Array, "*N"]
    mean: Float[Array, "*N"]
    variance: Float[Array, "*N"]


def truncated(loc, scale, low, high) -> Truncated:
    """The part of N(loc, scale^2) between `low` and `high`, either of which may be infinite."""
    width = high - low
    bounded = jnp.isfinite(width)
    middle = jnp.where(bounded, low + 0.5 * jnp.where(bounded, width, 0.0), jnp.where(jnp.isfinite(low), low, high))
    width = jnp.where(bounded, width, 0.0)
    z, size = (middle - loc) / scale, width / scale
    narrow = bounded & (size * (1 + jnp.abs(z)) < NARROW)
    # To second order in the width: log (Phi(b) - Phi(a)) = log phi(z) + log w + w^2 (z^2 - 1) / 24.
    log_width = jnp.log(jnp.where(width > 0, width, 1.0) / scale)
    log_density = -0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi)
    thin = Truncated(log_density + log_width + size**2 * (z**2 - 1) / 24, z * (1 - size**2 / 12), size**2 / 12)
    # The wide interval, turned to the side of its nearer tail; narrow ones stand aside as (-1, 1).
    at, size = jnp.where(narrow, 0.0, z), jnp.where(narrow, 2.0, size)
    a = jnp.where(bounded, at - 0.5 * size, jnp.where(jnp.isfinite(low), at, at - FAR))
    b = jnp.where(bounded, at + 0.5 * size, jnp.where(jnp.isfinite(low), at + FAR, at))
    turned = a + b > 0
    a, b = jnp.where(turned, -b, a), jnp.where(turned, -a, b)
    upper = log_ndtr(b)
    log_mass = upper + jnp.log1p(-jnp.exp(log_ndtr(a) - upper))
    at_a, at_b = (jnp.exp(-0.5 * x**2 - 0.5 * jnp.log(2 * jnp.pi) - log_mass) for x in (a, b))
    mean = at_a - at_b
    wide = Truncated(log_mass, jnp.where(turned, -mean, mean), 1 + a * at_a - b * at_b - mean**2)
    return Truncated(*(jnp.where(narrow, x, y) for x, y in zip(thin, wide, strict=True)))
