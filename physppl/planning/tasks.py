"""Tasks: a reward per step, and limits of the state."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from physppl.data.spaces import StateSpace
from physppl.internal.choices import Choices


class Limits(eqx.Module):
    """Limits of the state: `Limits(state, arm=(-0.75, 0.75))`, in the coordinates' units.

    Attributes:
        index: of the coordinates that are limited.
        low, high: their limits; -inf and inf leave a side open.
        scale: of these coordinates.
    """

    index: tuple[int, ...] = eqx.field(static=True)
    low: tuple[float, ...] = eqx.field(static=True)
    high: tuple[float, ...] = eqx.field(static=True)
    scale: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, state: StateSpace, **bounds: tuple[Any, Any]):
        """Raise KeyError for an unknown coordinate, ValueError where low < high does not hold."""
        self.index = tuple(state.index(name) for name in bounds)
        for name, (low, high) in bounds.items():
            if not low < high:
                raise ValueError(f"Limits: {name} needs low < high; got {low} and {high}.")
        self.low, self.high = (tuple(float(pair[i]) for pair in bounds.values()) for i in (0, 1))
        self.scale = tuple(float(state.scale[i]) for i in self.index)

    def excess(self, state: Float[Array, " D"]) -> Float[Array, ""]:
        """Distance of a state from the limits, in units of the coordinates' scales; 0 inside."""
        x = state[np.array(self.index, int)]
        low, high, scale = (jnp.asarray(bound, x.dtype) for bound in (self.low, self.high, self.scale))
        return jnp.sum(jnp.maximum(jnp.maximum(low - x, x - high), 0.0) / scale)


class Task(Choices):
    """Reward and length of an episode. A Task is itself an objective that planners accept.

    Attributes:
        reward: (next state (D,), action (A,)) -> scalar.
        steps: control steps of an episode.
        terminal: last planned state (D,) -> scalar, added to planned returns only.
        solved: states (T + 1, D) of an episode, fewer where it was truncated -> bool, for tables. An episode that
            terminated is not solved.
        limits: a constraint of planning, whatever the objective: each planned state outside costs `penalty` times
            (1 + its `excess`). Returns of episodes do not include it.
        penalty: in units of the objective; large compared with the reward of a step.
    """

    reward: Callable[[Array, Array], Array] = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    terminal: Callable[[Array], Array] | None = eqx.field(default=None, static=True)
    solved: Callable[[Array], Array] | None = eqx.field(default=None, static=True)
    limits: Limits | None = None
    penalty: float = eqx.field(default=10.0, static=True)

    def __check_init__(self):
        if self.steps < 1:
            raise ValueError(f"Task: steps must be at least 1; got {self.steps}.")
        if not self.penalty >= 0:
            raise ValueError(f"Task: penalty must not be negative; got {self.penalty}.")

    def stage(self, state: Float[Array, " D"], action: Float[Array, " A"]) -> Float[Array, ""]:
        """Reward of arriving in `state` by `action`."""
        value = jnp.asarray(self.reward(state, action))
        if value.shape != ():
            raise ValueError(
                f"Task: reward must return a scalar; got shape {value.shape}. An action is (A,): write action[0]."
            )
        return value

    def earned(self, states: Float[Array, "H1 D"], actions: Float[Array, "H A"]) -> Float[Array, ""]:
        """Reward of a planned trajectory, its terminal term included."""
        value = jnp.sum(jax.vmap(self.stage)(states[1:], actions))
        return value if self.terminal is None else value + self.terminal(states[-1])

    def trespass(self, states: Float[Array, "H1 D"]) -> Float[Array, ""]:
        """Penalty of a planned trajectory for leaving the limits."""
        if self.limits is None:
            return jnp.zeros((), states.dtype)
        excess = jax.vmap(self.limits.excess)(states[1:])
        return self.penalty * jnp.sum(jnp.where(excess > 0, 1.0 + excess, 0.0))

    def penalised(self, value: Float[Array, ""] | float, states: Float[Array, "H1 D"]) -> Float[Array, ""]:
        """A value of a planned trajectory less what it pays for leaving the limits."""
        return value - self.trespass(states)

    def __call__(self, states: Float[Array, "H1 D"], actions: Float[Array, "H A"]) -> Float[Array, ""]:
        """Value of a planned trajectory: its reward less its penalty."""
        return self.penalised(self.earned(states, actions), states)
