"""Random shooting: the best of many random action sequences."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.spaces import ActionSpace
from physppl.planning.planner import BoundObjective, Planner, bounds, evaluate, shifted
from physppl.planning.proposals import Proposal, White, draw


class RandomShootingPlan(NamedTuple):
    best: Float[Array, "H A"]  # the last plan, shifted
    low: Float[Array, " A"]
    high: Float[Array, " A"]


class RandomShooting(Planner):
    """The best of `population` sequences: the last plan, shifted, and random ones.

    Attributes:
        horizon: steps ahead.
        population: candidates.
        proposal: prior of the sequences over time; `White()` draws uniformly between the bounds.
    """

    horizon: int = eqx.field(default=30, static=True)
    population: int = eqx.field(default=600, static=True)
    proposal: Proposal = White()

    def __check_init__(self):
        if self.horizon < 1 or self.population < 2:
            raise ValueError(
                f"RandomShooting needs horizon >= 1, population >= 2; got {self.horizon}, {self.population}."
            )
        self.proposal.matrix(self.horizon)  # raises for a horizon that does not suit it

    @property
    def evaluations(self) -> int:
        """Number population x horizon."""
        return self.population * self.horizon

    def init(self, action: ActionSpace) -> RandomShootingPlan:
        low, high = bounds(action)
        return RandomShootingPlan(jnp.broadcast_to((low + high) / 2, (self.horizon, len(action))), low, high)

    def plan(self, key: PRNGKeyArray, transitions, objective: BoundObjective, state, plan_state: RandomShootingPlan):
        low, high = plan_state.low[:, None], plan_state.high[:, None]
        shape = (*plan_state.best.shape, self.population - 1)
        if isinstance(self.proposal, White):
            sequences = jax.random.uniform(key, shape, low.dtype, low, high)
        else:
            noise = draw(key, self.proposal, shape, low.dtype)
            sequences = jnp.clip((low + high) / 2 + (high - low) / 2 * noise, low, high)
        candidates = jnp.concatenate([plan_state.best[..., None], sequences], axis=-1)
        values = evaluate(transitions, objective, state, candidates)
        winner = jnp.argmax(values)
        best = candidates[..., winner]
        info = {"value": values[winner], "failed": jnp.mean(values == -jnp.inf)}
        return best, plan_state._replace(best=shifted(best)), info
