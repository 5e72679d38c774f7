"""The planner contract, and the evaluation of candidates."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.spaces import ActionSpace
from physppl.internal.choices import Choices
from physppl.language.integrate import rollouts

BoundObjective = Callable[[Array, Array], Array]


class PlanState(NamedTuple):
    """Plan state of planners that remember one sequence; A action, H horizon.

    Attributes:
        last: the last plan, shifted by a step, or the last action, in the planner's own units.
        low, high: action limits.
    """

    last: Float[Array, "*H A"]
    low: Float[Array, " A"]
    high: Float[Array, " A"]


class Planner(Choices):
    """Immutable settings of an algorithm that plans action sequences.

    Axes: H horizon, A action, D state, N candidates, K particles.
    """

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Budget: model evaluations of a control step, per particle."""

    @abstractmethod
    def init(self, action: ActionSpace) -> Any:
        """Plan state before the first step."""

    @abstractmethod
    def plan(
        self, key: PRNGKeyArray, transitions, objective: BoundObjective, state: Float[Array, " D"], plan_state: Any
    ) -> tuple[Float[Array, "H A"], Any, dict[str, Array]]:
        """Plan actions, within bounds, for the next H steps; the caller applies the first and plans again.

        Args:
            transitions: a Transition with a leading particle axis K (Thompson sampling: 1).
            objective: (states (H + 1, D), actions (H, A)) -> scalar to maximise, of one particle's whole trajectory;
                the planner averages over particles.
            state: the machine's current state.
            plan_state: from `init` or the last step.

        Returns:
            actions, the plan state for the next step, and info: `value` of the plan, `failed` share of candidates.
        """


def evaluate(transitions, objective: BoundObjective, state, candidates: Float[Array, "H A N"]) -> Float[Array, " N"]:
    """Mean objective of each candidate over the particles; -inf where a rollout is not finite."""

    def values_of(transition):
        states = rollouts(transition, state, candidates)
        return jax.vmap(objective, in_axes=-1)(states, candidates)

    values = jnp.mean(jax.vmap(values_of)(transitions), axis=0)
    return jnp.where(jnp.isfinite(values), values, -jnp.inf)


def better(best: Float[Array, "H A"], best_value, candidates: Float[Array, "H A N"], values: Float[Array, " N"]):
    """The best candidate and its value where that is larger than the best so far, else these."""
    winner = jnp.argmax(values)
    best = jnp.where(values[winner] > best_value, candidates[..., winner], best)
    return best, jnp.maximum(values[winner], best_value)


def shifted(sequence: Float[Array, "H ..."]) -> Float[Array, "H ..."]:
    """Shift a sequence by one control step: drop the first entry, repeat the last."""
    return jnp.concatenate([sequence[1:], sequence[-1:]])


def bounds(action: ActionSpace) -> tuple[Array, Array]:
    """Action limits (A,) at JAX's current precision."""
    return jnp.asarray(action.low, float), jnp.asarray(action.high, float)


def middle(action: ActionSpace, horizon: int) -> PlanState:
    """Plan state before the first step: the middle of the action range throughout."""
    low, high = bounds(action)
    return PlanState(jnp.broadcast_to((low + high) / 2, (horizon, len(action))), low, high)
