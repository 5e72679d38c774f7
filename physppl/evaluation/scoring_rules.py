"""Proper scores and calibration of predictive distributions that are mixtures, one component per posterior draw.

Components are independent between coordinates: Gaussian, or with `df` Student-t. S draws, N outcomes, d coordinates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import ndtr
from jax.scipy.stats import norm
from jaxtyping import Bool, Float

from physppl.dynamics.instruments import Instrument, RecordedNormal

LEVELS = (0.5, 0.8, 0.9, 0.95)  # of central intervals
PAIRS = 16  # other draws with which each draw is paired


class NormalMixture(NamedTuple):
    """The predictive distribution of N outcomes: S components of equal weight.

    Attributes:
        means, sds: (S, N, d), or broadcastable to it; with `df`, location and scale of the components.
        df: degrees of freedom, of the same shape; None is Gaussian.
        instrument: of outcomes that are readings of sensors which round or saturate.
    """

    means: Float[Array, " S #N #d"]
    sds: Float[Array, " S #N #d"]
    df: Float[Array, " S #N #d"] | None = None
    instrument: Instrument | None = None

    @property
    def components(self) -> dist.Distribution:
        if self.instrument is not None:
            return RecordedNormal(self.means, self.sds, self.instrument)
        if self.df is None:
            return dist.Normal(self.means, self.sds)
        return dist.StudentT(self.df, self.means, self.sds)

    @property
    def mean(self) -> Float[Array, " #N #d"]:
        means = self.means if self.instrument is None else self.instrument.held(self.means)
        return jnp.mean(means, axis=0)


def log_density(
    outcomes: Float[Array, "N d"], mixture: NormalMixture, counted: Bool[Array, " #N #d"] | bool = True
) -> Float[Array, " N"]:
    """Log density of each outcome, jointly over its coordinates, or over those where `counted`."""
    logs = jnp.where(counted, mixture.components.log_prob(outcomes), 0.0).sum(axis=-1)
    return jax.nn.logsumexp(logs, axis=0) - jnp.log(len(logs))


def cdf(outcomes: Float[Array, "N d"], mixture: NormalMixture) -> Float[Array, "N d"]:
    """Predictive distribution function at the outcomes: uniform where the posterior is calibrated."""
    return jnp.mean(mixture.components.cdf(outcomes), axis=0)


def inside(outcomes: Float[Array, "N d"], mixture: NormalMixture, levels=LEVELS) -> Bool[Array, "L N d"]:
    """True where the outcomes lie in the central intervals of these levels."""
    distance = jnp.abs(cdf(outcomes, mixture) - 0.5)
    return jnp.stack([distance <= level / 2 for level in levels])


def crps(outcomes: Float[Array, "N d"], mixture: NormalMixture, shifts: int = PAIRS) -> Float[Array, "N d"]:
    """Continuous ranked probability score E|X - y| - E|X - X'| / 2, in the coordinates' units; smaller is better.

    Closed form for Gaussian components (E. Grimit et al., Quarterly J. Royal Meteorological Society 132, 2006), with
    X and X' from different draws: unbiased, however few they are (C. Ferro, same journal 140, 2014). A single component
    is taken for the whole distribution. NaN for Student-t components and for sensors that round or saturate, which have
    no closed form.

    Args:
        shifts: other draws with which each is paired, at most: the next ones, as the order of draws is random.
    """
    if mixture.df is not None or mixture.instrument is not None:
        return jnp.full(outcomes.shape, jnp.nan)
    shape = (len(mixture.means), *outcomes.shape)
    means, sds = (jnp.broadcast_to(x, shape) for x in (mixture.means, mixture.sds))
    error = jnp.mean(_absolute(outcomes - means, sds), axis=0)
    if len(means) == 1:
        return error - sds[0] / jnp.sqrt(jnp.pi)

    def pairs(total, shift):
        difference = means - jnp.roll(means, shift, axis=0)
        return total + jnp.mean(_absolute(difference, jnp.hypot(sds, jnp.roll(sds, shift, axis=0))), axis=0), None

    count = min(shifts, len(means) - 1)
    total, _ = jax.lax.scan(pairs, jnp.zeros(outcomes.shape), 1 + jnp.arange(count))
    return error - total / (2 * count)


def _absolute(mean, sd):
    """Mean absolute value E|X| of a Gaussian X."""
    z = mean / sd
    return 2 * sd * norm.pdf(z) + mean * (2 * ndtr(z) - 1)
