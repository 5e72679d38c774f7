"""Where to linearise bent sensors at the first sample, of whose state little is known.

A Gaussian about zero, a scale wide, is the usual start. Sine and cosine of an angle, linearised at its mean, would
place a pendulum that stands upright anywhere. They are linearised at the state that is most probable under the first
readings instead; the prior stays as it is.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float
from scipy import stats

from physppl.data.spaces import StateSpace

CANDIDATES = 256  # states that are tried, spread over the prior
STEPS = 8  # of Gauss and Newton, from the best of them


@cache
def _spread(size: int) -> Float[np.ndarray, "K D"]:
    """Points of a standard normal distribution, the first of them zero."""
    uniform = stats.qmc.Halton(size, scramble=False).random(CANDIDATES)[1:]
    return np.concatenate([np.zeros((1, size)), stats.norm.ppf(uniform)])


def most_probable(
    observe: Callable[[Array], Array],
    sensor_sd: Float[Array, " d"],
    mean: Float[Array, " D"],
    sd: Float[Array, " D"],
    readings: Float[Array, " d"],
    seen: Bool[Array, " d"],
    sensors: StateSpace,
) -> Float[Array, " D"]:
    """The most probable state under N(mean, sd^2) and one sample's readings, of which angles wrap.

    Derivatives are those of the last step, which at the end of the search are the optimum's.
    """
    weight = jnp.where(seen, 1 / sensor_sd, 0.0)

    def errors(q):
        return weight * sensors.difference(readings, observe(mean + sd * q))

    def cost(q):
        return jnp.sum(q**2) + jnp.sum(errors(q) ** 2)

    def step(q):
        error, jacobian = errors(q), jax.jacfwd(errors)(q)
        slope = q + jacobian.T @ error
        return q - jnp.linalg.solve(jnp.eye(len(q), dtype=q.dtype) + jacobian.T @ jacobian, slope)

    def improve(_, q):
        new = step(q)
        return jnp.where(cost(new) < cost(q), new, q)

    candidates = jnp.asarray(_spread(len(mean)), mean.dtype)
    best = candidates[jnp.argmin(jax.vmap(cost)(candidates))]
    best = jax.lax.stop_gradient(jax.lax.fori_loop(0, STEPS, improve, jax.lax.stop_gradient(best)))
    new = step(best)
    return mean + sd * jnp.where(cost(new) <= cost(best), new, best)
