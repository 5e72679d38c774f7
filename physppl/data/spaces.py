"""Named, typed coordinates of states and actions, with units and scales."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from physppl.internal.errors import as_array, unknown
from physppl.internal.units import UNITLESS, parse


@dataclass(frozen=True)
class Real:
    """A coordinate on the real line.

    Attributes:
        unit: e.g. "rad/s"; "" for a pure number.
        scale: a typical magnitude, in `unit`; priors of noise and network inputs are stated in it.
    """

    unit: str = UNITLESS
    scale: float = 1.0

    def __post_init__(self):
        parse(self.unit, "Real")
        _check_scale(self.scale, "Real")


@dataclass(frozen=True)
class Angle:
    """A coordinate on the circle: differences wrap, the states themselves stay unwrapped."""

    unit: str = "rad"
    scale: float = 1.0

    def __post_init__(self):
        if self.unit != "rad":
            raise ValueError(f"Angle is in rad; got unit {self.unit!r}. Convert where the data are read (units=...).")
        _check_scale(self.scale, "Angle")


@dataclass(frozen=True)
class Bounded:
    """An action between two limits, in `unit`."""

    low: float
    high: float
    unit: str = UNITLESS

    def __post_init__(self):
        parse(self.unit, "Bounded")
        for argument in ("low", "high"):
            as_array(getattr(self, argument), argument, "Bounded: ")  # refuses what is no number
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"Bounded needs finite low < high; got low={self.low}, high={self.high}.")


def _check_scale(scale: float, where: str) -> None:
    as_array(scale, "scale", f"{where}: ")
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"{where}: scale must be positive and finite; got {scale}.")


class _Space:
    """Coordinates in order, each with a name. Equal content hashes equal."""

    kinds: tuple[type, ...] = ()
    required = True  # at least one coordinate

    def __init__(self, *unnamed, **coordinates):
        name = type(self).__name__
        if unnamed:
            raise TypeError(
                f"{name} takes named coordinates, {name}(x={self.kinds[0].__name__}(...)); got {unnamed[0]!r} without "
                f"a name. Of a dict: {name}(**coordinates)."
            )
        if not coordinates and self.required:
            raise ValueError(
                f"{name} needs at least one named coordinate, e.g. {name}(x={self.kinds[0].__name__}(...))."
            )
        for key, value in coordinates.items():
            if not isinstance(value, self.kinds):
                kinds = " or ".join(k.__name__ for k in self.kinds)
                got = type(value).__name__
                if isinstance(value, type):
                    got = f"the class {value.__name__} itself: write {value.__name__}(...)"
                raise ValueError(f"{name}: coordinate {key!r} must be {kinds}; got {got}.")
        self.coordinates = coordinates

    def __eq__(self, other) -> bool:
        return type(self) is type(other) and tuple(self.coordinates.items()) == tuple(other.coordinates.items())

    def __hash__(self) -> int:
        return hash((type(self), tuple(self.coordinates.items())))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self.coordinates.items())})"

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.coordinates)

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(c.unit for c in self.coordinates.values())

    def index(self, name: str) -> int:
        """Position of a coordinate.

        Raises:
            KeyError: for an unknown name, with close matches.
        """
        if name not in self.coordinates:
            raise unknown("coordinate", name, self.names, type(self).__name__)
        return self.names.index(name)

    def array(self, **values: float) -> Float[Array, " D"]:
        """A point of the space from named values; those not named are zero.

        Raises:
            KeyError: for an unknown name.
        """
        point = np.zeros(len(self))
        for name, value in values.items():
            point[self.index(name)] = value
        return jnp.asarray(point)


class StateSpace(_Space):
    """Named state coordinates: `StateSpace(angle=Angle(), velocity=Real("rad/s", scale=8.0))`."""

    kinds = (Real, Angle)

    @property
    def scale(self) -> np.ndarray:
        """Typical magnitudes (D,), each in its coordinate's unit."""
        return np.array([c.scale for c in self.coordinates.values()])

    @property
    def is_angle(self) -> np.ndarray:
        return np.array([isinstance(c, Angle) for c in self.coordinates.values()])

    def difference(self, a, b):
        """a - b with angles wrapped to [-pi, pi); (..., D) each."""
        delta = a - b
        if not self.is_angle.any():
            return delta
        xp = jnp if isinstance(delta, Array) else np
        return xp.where(self.is_angle, (delta + np.pi) % (2 * np.pi) - np.pi, delta)

    def features(self, state: Float[Array, " D"]) -> Float[Array, " F"]:
        """Network inputs: sine and cosine of angles, other coordinates in units of their scale."""
        parts = []
        for i, c in enumerate(self.coordinates.values()):
            parts += [jnp.sin(state[i]), jnp.cos(state[i])] if isinstance(c, Angle) else [state[i] / c.scale]
        return jnp.stack(parts)

    @property
    def feature_size(self) -> int:
        return len(self) + int(self.is_angle.sum())


class ActionSpace(_Space):
    """Named, bounded actions: `ActionSpace(torque=Bounded(-2.0, 2.0, "N m"))`; none for a machine without inputs."""

    kinds = (Bounded,)
    required = False

    @property
    def low(self) -> np.ndarray:
        """Lower limits (A,)."""
        return np.array([c.low for c in self.coordinates.values()])

    @property
    def high(self) -> np.ndarray:
        """Upper limits (A,)."""
        return np.array([c.high for c in self.coordinates.values()])

    def normalise(self, action: Float[Array, " A"]) -> Float[Array, " A"]:
        """Actions as -1 to 1 between their limits."""
        return (2 * action - (self.low + self.high)) / (self.high - self.low)


@runtime_checkable
class HasSpaces(Protocol):
    """Anything with a state and an action space, such as a Dynamics."""

    state: StateSpace
    action: ActionSpace
