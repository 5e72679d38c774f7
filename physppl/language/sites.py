"""Physical parameters: NumPyro sample sites with bounds and a unit."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import biject_to, constraints, transforms
from numpyro.primitives import _PYRO_STACK

from physppl.internal.errors import as_array, is_concrete
from physppl.internal.units import UNITLESS, parse


def physical(name: str, low, high=None, *, loc=0.0, scale=1.0, log: bool = False, unit: str = UNITLESS) -> Array:
    """A physical parameter: a NumPyro sample site with a unit.

    `physical("mass", 0.1, 2.0, unit="kg")` is low + (high - low) sigmoid(z), z ~ Normal(loc, scale): a Gaussian
    prior in unconstrained space between hard bounds (J. Watson et al., "Tractable Bayesian Dynamics Priors from
    Differentiable Physics", with the range corrected to high - low). `loc` and `scale` may be sites themselves, for
    hierarchical priors. `physical("damping", dist.HalfNormal(0.1), unit="N m s/rad")` takes any NumPyro prior.

    By default 95 % of the prior lie between 12 and 88 % of the way from low to high, so that of bounds a factor of a
    hundred apart almost nothing lies in the lower decade. Where only the order of magnitude is known, `log=True` says
    the same of the logarithm: `physical("friction", 1e-5, 1e-2, log=True)` has its median at 3.2e-4.

    Args:
        low: lower bound, in `unit`; or a NumPyro distribution, without `high`.
        high: upper bound, in `unit`.
        loc, scale: mean and sd of z, unitless. A guess g of the value is loc = logit((g - low) / (high - low)).
        log: low (high / low)^sigmoid(z) in place of low + (high - low) sigmoid(z); low must be positive.

    Raises:
        TypeError: for a name that is no text, and bounds that are no numbers.
        ValueError: for low >= high or bounds that are not finite, with `log` also that are not positive; for a scale
            that is not positive; for a unit pint does not know.
    """
    if not isinstance(name, str):
        raise TypeError(f"physical begins with the site's name, physical('mass', 0.1, 3.0); got {name!r}.")
    parse(unit, f"physical({name!r})")
    if isinstance(low, dist.Distribution):
        if high is not None or log:
            got = f"high={high}" if high is not None else "log=True"
            raise ValueError(f"physical({name!r}): give a distribution or two bounds; got a distribution and {got}.")
        prior = low
    else:
        prior = bounded(low, high, loc, scale, name, log)
    if not _PYRO_STACK:
        raise ValueError(
            f"physical({name!r}) was called outside a running program. Pass the program itself to Dynamics, uncalled: "
            "Dynamics(pendulum, ...), not Dynamics(pendulum(), ...)."
        )
    return jnp.asarray(numpyro.sample(name, prior, infer={"physppl": {"unit": unit}}))


def bounded(low, high, loc=0.0, scale=1.0, name: str = "site", log: bool = False) -> dist.Distribution:
    """Distribution of low + (high - low) sigmoid(Normal(loc, scale)), or of the same on a logarithmic scale."""
    if high is None:
        raise ValueError(f"physical({name!r}): needs low and high, or a NumPyro distribution; got low={low!r} alone.")
    for argument, value in (("low", low), ("high", high), ("loc", loc), ("scale", scale)):
        as_array(value, argument, f"physical({name!r}): ")  # refuses what is no number
    low, high = (np.asarray(x) if isinstance(x, list | tuple) else x for x in (low, high))
    if is_concrete(low, high) and not (np.all(np.isfinite(low)) and np.all(np.isfinite(high)) and np.all(low < high)):
        raise ValueError(f"physical({name!r}): needs finite low < high; got low={low}, high={high}.")
    if log and is_concrete(low) and not np.all(low > 0):
        raise ValueError(
            f"physical({name!r}, log=True): needs 0 < low; got low={low}. Take the smallest value that would matter."
        )
    if is_concrete(scale) and not np.all(np.asarray(scale) > 0):
        raise ValueError(f"physical({name!r}): scale must be positive, the sd in unconstrained space; got {scale}.")
    if log:
        return dist.TransformedDistribution(dist.Normal(loc, scale), to_log_bounds(LogInterval(low, high)))
    to_bounds = transforms.AffineTransform(low, high - low, domain=constraints.unit_interval)
    return dist.TransformedDistribution(dist.Normal(loc, scale), [transforms.SigmoidTransform(), to_bounds])


class LogInterval(type(constraints.interval(0.0, 1.0))):
    """Values between two positive bounds, whose unconstrained coordinate is that of their logarithm."""

    def __repr__(self) -> str:
        return f"log_interval(lower_bound={self.lower_bound}, upper_bound={self.upper_bound})"


class Exp(transforms.ExpTransform):
    """The exponential function, onto a `LogInterval`."""

    @property
    def codomain(self) -> constraints.Constraint:
        interval: Any = self.domain
        return LogInterval(jnp.exp(interval.lower_bound), jnp.exp(interval.upper_bound))


@biject_to.register(LogInterval)
def to_log_bounds(interval: LogInterval) -> transforms.ComposeTransform:
    """Map of an unconstrained coordinate z to low (high / low)^sigmoid(z)."""
    low, high = jnp.log(interval.lower_bound), jnp.log(interval.upper_bound)
    to_bounds = transforms.AffineTransform(low, high - low, domain=constraints.unit_interval)
    return transforms.ComposeTransform([transforms.SigmoidTransform(), to_bounds, Exp(constraints.interval(low, high))])
