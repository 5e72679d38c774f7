"""What a machine should do: a reward per step, summed by planners over whole trajectories."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


class Task(eqx.Module):
    """An episode of `steps` control steps and its reward. A Task is an objective that planners take.

    Attributes:
        reward: (next state (D,), action (A,)) -> scalar.
        steps: control steps of an episode.
        terminal: last planned state (D,) -> scalar, added to planned returns only.
        solved: states (T + 1, D) of an episode -> bool, for tables.
    """

    reward: Callable[[Array, Array], Array] = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    terminal: Callable[[Array], Array] | None = eqx.field(default=None, static=True)
    solved: Callable[[Array], Array] | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        if self.steps < 1:
            raise ValueError(f"Task: steps must be at least 1; got {self.steps}.")

    def stage(self, state: Float[Array, " D"], action: Float[Array, " A"]) -> Float[Array, ""]:
        """Reward of arriving in `state` by `action`."""
        value = jnp.asarray(self.reward(state, action))
        if value.shape != ():
            raise ValueError(
                f"Task: reward must return a scalar; got shape {value.shape}. An action is (A,): write action[0]."
            )
        return value

    def __call__(self, states: Float[Array, "H1 D"], actions: Float[Array, "H A"]) -> Float[Array, ""]:
        """The return of a planned trajectory."""
        value = jnp.sum(jax.vmap(self.stage)(states[1:], actions))
        return value if self.terminal is None else value + self.terminal(states[-1])
