"""Standard deviations of noise: known, or one site with a prior in units of each coordinate's scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from physppl.internal.errors import as_array, is_concrete

PROCESS = "process_noise"  # the site of a Dynamics
FLOOR = 1e-6  # in units of the coordinate's scale: a smaller sd is numerically zero


@dataclass(frozen=True)
class Scale:
    """Standard deviations of one noise, one per coordinate.

    Attributes:
        name: of the site.
        prior: a NumPyro distribution of each sd in units of `unit`; or the known sds themselves.
        unit: the coordinates' scales.
        units: the coordinates' units, for tables.
    """

    name: str
    prior: dist.Distribution | tuple[float, ...]
    unit: tuple[float, ...]
    units: str

    @classmethod
    def of(cls, name: str, value: Any, unit, units: str, where: str) -> "Scale":
        """Build from user input: a prior distribution, one sd, or one sd per coordinate.

        Raises:
            ValueError: for sds that are not positive, and priors that are not over one positive number.
        """
        unit = tuple(np.asarray(unit, float).tolist())
        if not isinstance(value, dist.Distribution):
            if callable(value):
                raise TypeError(
                    f"{where}: {name} must be a NumPyro distribution or known sds; got a function. Noise that "
                    "depends on the state is not offered. For readings whose error is a share of their size, read "
                    "their logarithm through observe=; for outliers there is measurement_df."
                )
            sd = np.asarray(as_array(value, name), float)
            if sd.shape not in ((), (1,), (len(unit),)):
                raise ValueError(
                    f"{where}: {name} must be one sd or one of each of the {len(unit)} coordinates; got shape "
                    f"{sd.shape}."
                )
            sd = np.broadcast_to(sd, (len(unit),))
            if not (np.all(np.isfinite(sd)) and np.all(sd > 0)):
                raise ValueError(f"{where}: a known {name} must be positive; got {value}.")
            return cls(name, tuple(sd.tolist()), unit, units)
        if value.event_shape or not _is_positive(value):
            raise ValueError(
                f"{where}: the prior of {name} must be over one positive number, in units of each coordinate's scale; "
                f"got {type(value).__name__}. HalfNormal and LogNormal are."
            )
        return cls(name, value, unit, units)

    @property
    def known(self) -> bool:
        return not isinstance(self.prior, dist.Distribution)

    def sample(self, count: int | None = None) -> None:
        """Declare the site, unless the sds are known; with `count` sds where all share one scale."""
        if isinstance(self.prior, dist.Distribution):
            support: Any = self.prior.support
            units = dist.transforms.AffineTransform(0.0, np.asarray(self.unit), domain=support)
            prior = dist.TransformedDistribution(self.prior.expand((count or len(self.unit),)), units)
            numpyro.sample(self.name, prior.to_event(1))

    def value(self, sites: Mapping[str, Array]) -> Array:
        """Standard deviations (..., n) at given site values."""
        if self.known:
            return jnp.asarray(self.prior)
        return sites[self.name] + FLOOR * jnp.asarray(self.unit)


def _is_positive(prior: dist.Distribution) -> bool:
    """True if the support of a scalar prior excludes negative numbers (tested at -1)."""
    support: Any = prior.support
    allowed = support(np.full(prior.batch_shape, -1.0))
    return not (is_concrete(allowed) and np.any(allowed))
