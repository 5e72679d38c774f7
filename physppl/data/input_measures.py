"""Measures over states and actions, at which two posteriors over functions are compared."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.checks import check_widths
from physppl.data.spaces import HasSpaces
from physppl.data.transitions import Transitions
from physppl.internal.choices import Choices
from physppl.internal.errors import unknown

Points = tuple[Float[Array, "N D"], Float[Array, "N A"]]


class Measure(Choices):
    """A distribution over inputs (the rho of function-space inference). Implementers define `sample`."""

    @abstractmethod
    def sample(self, key: PRNGKeyArray, count: int, model: HasSpaces, data: Transitions) -> Points:
        """States (count, D) and actions (count, A) of a model's spaces; pure.

        Args:
            data: Transitions, whose valid inputs a measure may use.

        Raises:
            ValueError, KeyError: where the measure does not fit the model's spaces.
        """


def _ranges(bounds) -> tuple[tuple[str, float, float], ...]:
    if not isinstance(bounds, Mapping):
        return tuple(bounds)
    for name, limits in bounds.items():
        if np.shape(limits) != (2,):
            raise ValueError(f"Box: bounds of {name!r} must be (low, high); got {limits!r}.")
    return tuple((name, float(low), float(high)) for name, (low, high) in bounds.items())


class Box(Measure):
    """Uniform: angles over the full circle, other coordinates within `extent` scales, actions within their limits.

    Attributes:
        extent: half the width of a coordinate, in units of its scale.
        bounds: {coordinate of state or action: (low, high)} in its unit, in place of these ranges.
    """

    extent: float = eqx.field(default=2.0, static=True)
    bounds: tuple[tuple[str, float, float], ...] = eqx.field(default=(), static=True, converter=_ranges)

    def __check_init__(self):
        if not 0 < self.extent < np.inf:
            raise ValueError(f"Box: extent must be positive scales; got {self.extent}.")
        for name, low, high in self.bounds:
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ValueError(f"Box: bounds of {name!r} must be finite, low < high; got {low}, {high}.")

    def limits(self, model: HasSpaces) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper limits (D + A,) of states, then actions."""
        state, action = model.state, model.action
        half = np.where(state.is_angle, np.pi, self.extent * state.scale)
        low, high = np.concatenate([-half, action.low]), np.concatenate([half, action.high])
        names = [*state.names, *action.names]
        for name, *bounds in self.bounds:
            if name not in names:
                raise unknown("coordinate", name, names, f"Box: {model}")
            i = names.index(name)
            if i >= len(state) and not low[i] <= bounds[0] < bounds[1] <= high[i]:
                raise ValueError(f"Box: action {name!r} lies in [{low[i]:g}, {high[i]:g}]; got bounds {tuple(bounds)}.")
            low[i], high[i] = bounds
        return low, high

    def sample(self, key: PRNGKeyArray, count: int, model: HasSpaces, data: Transitions) -> Points:
        low, high = self.limits(model)
        inputs = jax.random.uniform(key, (count, len(low)), minval=low, maxval=high)
        return inputs[:, : len(model.state)], inputs[:, len(model.state) :]


class JitteredData(Measure):
    """Inputs of the data with Gaussian noise; actions stay within their limits. Without data, a `Box()`.

    Attributes:
        sd: noise in units of the scales of states, and of half the range of actions.
    """

    sd: float = eqx.field(default=0.3, static=True)

    def __check_init__(self):
        if not 0 <= self.sd < np.inf:
            raise ValueError(f"JitteredData: sd must be a number of scales, at least 0; got {self.sd}.")

    def sample(self, key: PRNGKeyArray, count: int, model: HasSpaces, data: Transitions) -> Points:
        uniform_key, normal_key = jax.random.split(key)
        size, (low, high) = len(model.state), Box().limits(model)
        uniform = jax.random.uniform(uniform_key, (count, 1 + len(low)))
        ranks = jnp.cumsum(jnp.asarray(data.valid))  # of the rows that count
        row = jnp.searchsorted(ranks, uniform[:, 0] * ranks[-1], side="right")
        inputs = jnp.concatenate([jnp.asarray(data.states), jnp.asarray(data.actions)], axis=-1)[row]
        unit = np.concatenate([model.state.scale, (high - low)[size:] / 2])
        inputs = inputs + self.sd * unit * jax.random.normal(normal_key, inputs.shape)
        inputs = jnp.where(ranks[-1] > 0, inputs, low + (high - low) * uniform[:, 1:])
        return inputs[:, :size], jnp.clip(inputs[:, size:], model.action.low, model.action.high)


class Visited(Measure):
    """States that a machine or a planner visited, with their actions; each row is equally likely.

    `Visited(episode.states, episode.actions)` of an episode, a run or rollouts of posterior draws; a trajectory
    with one state more than actions loses its last state.

    Attributes:
        states: (..., D).
        actions: (..., A).
    """

    states: Array
    actions: Array

    def __init__(self, states, actions):
        states, actions = jnp.asarray(states), jnp.asarray(actions)
        if states.ndim > 1 and states.ndim == actions.ndim and states.shape[-2] == actions.shape[-2] + 1:
            states = states[..., :-1, :]
        if states.ndim < 2 or states.shape[:-1] != actions.shape[:-1] or not states.size:
            raise ValueError(
                f"Visited: states (..., D) and actions (..., A) must go together; got {states.shape} and "
                f"{actions.shape}."
            )
        self.states, self.actions = (x.reshape(-1, x.shape[-1]) for x in (states, actions))

    def sample(self, key: PRNGKeyArray, count: int, model: HasSpaces, data: Transitions) -> Points:
        check_widths(self.states, self.actions, model.state, model.action, f"Visited: {model}")
        row = jax.random.randint(key, (count,), 0, len(self.states))
        return self.states[row], self.actions[row]


class Mixture(Measure):
    """A mixture of measures, each with its share of the points: `Mixture(Box(), Visited(...), JitteredData())`.

    Attributes:
        parts: the measures.
        weights: their shares, in any unit; equal by default.
    """

    parts: tuple[Measure, ...]
    weights: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, *parts: Measure, weights: Sequence[float] | None = None):
        self.parts, self.weights = parts, tuple(map(float, weights or [1.0] * len(parts)))
        if not parts or not all(isinstance(part, Measure) for part in parts):
            raise TypeError("Mixture takes measures, e.g. Mixture(Box(), JitteredData(), weights=(3, 1)).")
        if len(self.weights) != len(parts) or not all(0 < w < np.inf for w in self.weights):
            raise ValueError(f"Mixture: weights must be {len(parts)} positive numbers; got {self.weights}.")

    def sample(self, key: PRNGKeyArray, count: int, model: HasSpaces, data: Transitions) -> Points:
        stops = np.round(count * np.cumsum(self.weights) / np.sum(self.weights)).astype(int)
        counts, keys = np.diff(stops, prepend=0), jax.random.split(key, len(self.parts))
        drawn = [part.sample(k, int(n), model, data) for part, k, n in zip(self.parts, keys, counts, strict=True) if n]
        return jnp.concatenate([states for states, _ in drawn]), jnp.concatenate([actions for _, actions in drawn])
