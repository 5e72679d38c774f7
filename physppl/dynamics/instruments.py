"""Sensors that round or saturate: a reading tells the interval in which the true value and its noise lie."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from physppl.data.spaces import StateSpace
from physppl.internal.errors import closest
from physppl.internal.truncated import truncated

RESOLUTION, LIMITS = "measurement_resolution", "measurement_limits"
NEAR = 1e-6  # of a sensor's range: readings closer to its end are at it


class Instrument(eqx.Module):
    """Resolution and limits of d sensors, in their own units.

    Attributes:
        resolution: distance of two neighbouring readings; 0 for a sensor that does not round.
        low, high: ends of the range, at which readings stop; infinite where a sensor does not saturate.
    """

    resolution: tuple[float, ...] = eqx.field(static=True)
    low: tuple[float, ...] = eqx.field(static=True)
    high: tuple[float, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, resolution: Any, limits: Any, sensors: StateSpace, where: str) -> "Instrument | None":
        """Build from user input: one value for all sensors, or {sensor: value}; None where no sensor rounds or stops.

        Raises:
            KeyError: for a sensor that there is not.
            ValueError: for a resolution that is not positive, or limits that are not an increasing pair.
        """
        steps = _each(RESOLUTION, resolution, sensors, where)
        ranges = _each(LIMITS, limits, sensors, where)
        for name, step in steps.items():
            if not (np.ndim(step) == 0 and isinstance(step, int | float | np.number) and 0 < step < np.inf):
                raise ValueError(
                    f"{where}: {RESOLUTION} of {name} must be the positive distance of two neighbouring readings, in "
                    f"{sensors.coordinates[name].unit or 'its own unit'}; got {step!r}."
                )
        for name, ends in ranges.items():
            pair = isinstance(ends, tuple | list | np.ndarray) and np.shape(ends) == (2,)
            if not (pair and np.asarray(ends).dtype.kind in "fiu" and ends[0] < ends[1]):
                raise ValueError(
                    f"{where}: {LIMITS} of {name} must be the least and the largest reading, (low, high), with inf for "
                    f"an end that there is not; got {ends!r}."
                )
        if not (steps or ranges):
            return None
        resolutions = tuple(float(steps.get(name, 0.0)) for name in sensors.names)
        low, high = zip(*(map(float, ranges.get(name, (-np.inf, np.inf))) for name in sensors.names), strict=True)
        return cls(resolutions, low, high)

    @property
    def rounding(self) -> Array:
        """Variance (d,) of the errors of rounding."""
        return jnp.asarray(self.resolution) ** 2 / 12

    def held(self, value: Array) -> Array:
        """Values (..., d) held at the limits."""
        return jnp.clip(value, jnp.asarray(self.low), jnp.asarray(self.high))

    def recorded(self, value: Array) -> Array:
        """Readings (..., d) of values: rounded to multiples of the resolution and held at the limits."""
        step = jnp.asarray(self.resolution)
        safe = jnp.where(step > 0, step, 1.0)
        return self.held(jnp.where(step > 0, jnp.round(value / safe) * safe, value))

    def bounds(self, reading: Array | np.ndarray) -> tuple[Array, Array]:
        """Ends (..., d) of the interval of values that are recorded as these readings."""
        step, low, high = (jnp.asarray(x) for x in (self.resolution, self.low, self.high))
        range_ = jnp.where(jnp.isfinite(high - low), high - low, 0.0)
        near = jnp.maximum(step / 4, NEAR * range_)
        below = jnp.where(reading <= low + near, -jnp.inf, reading - step / 2)
        above = jnp.where(reading >= high - near, jnp.inf, reading + step / 2)
        return below, above


def _each(argument: str, value: Any, sensors: StateSpace, where: str) -> dict[str, Any]:
    """{sensor: value} of an argument that is one value for all, or a mapping."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(sensors.names, value)
    for name in value:
        if name not in sensors.names:
            raise KeyError(f"{where}: {argument} names {name!r}, which is no sensor.{closest(name, sensors.names)}")
    return dict(value)


class RecordedNormal(dist.Normal):
    """Readings of a normal variable by an instrument: where that rounds or saturates, an interval's probability."""

    pytree_aux_fields = ("instrument",)

    def __init__(self, loc: Any, scale: Any, instrument: Instrument, *, validate_args: bool | None = None):
        self.instrument = instrument
        super().__init__(loc, scale, validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.instrument.recorded(jnp.asarray(super().sample(key, sample_shape)))

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        return truncated(self.loc, self.scale, *self.instrument.bounds(value)).log_mass

    def cdf(self, value: Any) -> Array:
        """Probability of a smaller reading, and half of that of the same one."""
        low, high = (super(RecordedNormal, self).cdf(bound) for bound in self.instrument.bounds(value))
        return (jnp.asarray(low) + jnp.asarray(high)) / 2

    @property
    def mean(self) -> Array:
        """The variable's mean, held at the limits."""
        return self.instrument.held(jnp.asarray(super().mean))

    @property
    def variance(self) -> Array:
        """Variance of the variable and of the errors of rounding."""
        return jnp.asarray(super().variance) + self.instrument.rounding
