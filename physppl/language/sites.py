"""Physical parameters: NumPyro sample sites with bounds and a unit."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints, transforms
from numpyro.primitives import _PYRO_STACK

from physppl.internal.errors import is_concrete
from physppl.internal.units import UNITLESS, parse


def physical(name: str, low, high=None, *, loc=0.0, scale=1.0, unit: str = UNITLESS) -> Array:
    """A physical parameter: a NumPyro sample site with a unit.

    `physical("mass", 0.1, 2.0, unit="kg")` is low + (high - low) sigmoid(z), z ~ Normal(loc, scale): a Gaussian
    prior in unconstrained space between hard bounds (J. Watson et al., "Tractable Bayesian Dynamics Priors from
    Differentiable Physics", with the range corrected to high - low). `loc` and `scale` may be sites themselves, for
    hierarchical priors. `physical("damping", dist.HalfNormal(0.1), unit="N m s/rad")` takes any NumPyro prior.

    Args:
        low: lower bound, in `unit`; or a NumPyro distribution, without `high`.
        high: upper bound, in `unit`.
        loc, scale: mean and sd of z, unitless.

    Raises:
        ValueError: for low >= high or bounds that are not finite; for a unit pint does not know.
    """
    parse(unit, f"physical({name!r})")
    if isinstance(low, dist.Distribution):
        if high is not None:
            raise ValueError(
                f"physical({name!r}): give a distribution or two bounds; got a distribution and high={high}."
            )
        prior = low
    else:
        prior = bounded(low, high, loc, scale, name)
    if not _PYRO_STACK:
        raise ValueError(
            f"physical({name!r}) was called outside a running program. Pass the program itself to Dynamics, uncalled: "
            "Dynamics(pendulum, ...), not Dynamics(pendulum(), ...)."
        )
    return jnp.asarray(numpyro.sample(name, prior, infer={"physppl": {"unit": unit}}))


def bounded(low, high, loc=0.0, scale=1.0, name: str = "site") -> dist.Distribution:
    """Distribution of low + (high - low) sigmoid(Normal(loc, scale))."""
    if high is None:
        raise ValueError(f"physical({name!r}): needs low and high, or a NumPyro distribution; got low={low!r} alone.")
    low, high = (np.asarray(x) if isinstance(x, list | tuple) else x for x in (low, high))
    if is_concrete(low, high) and not (np.all(np.isfinite(low)) and np.all(np.isfinite(high)) and np.all(low < high)):
        raise ValueError(f"physical({name!r}): needs finite low < high; got low={low}, high={high}.")
    to_bounds = transforms.AffineTransform(low, high - low, domain=constraints.unit_interval)
    return dist.TransformedDistribution(dist.Normal(loc, scale), [transforms.SigmoidTransform(), to_bounds])
