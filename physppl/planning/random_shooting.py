"""Random shooting: the best of many random action sequences."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from physppl.data.spaces import ActionSpace
from physppl.planning.planner import BoundObjective, Planner, PlanState, evaluate, middle, shifted
from physppl.planning.proposals import Proposal, White, draw


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

    def init(self, action: ActionSpace) -> PlanState:
        return middle(action, self.horizon)

    def plan(self, key: PRNGKeyArray, transitions, objective: BoundObjective, state, plan_state: PlanState):
        low, high = plan_state.low[:, None], plan_state.high[:, None]
        shape = (*plan_state.last.shape, self.population - 1)
        if isinstance(self.proposal, White):
            sequences = jax.random.uniform(key, shape, low.dtype, low, high)
        else:
            noise = draw(key, self.proposal, shape, low.dtype)
            sequences = jnp.clip((low + high) / 2 + (high - low) / 2 * noise, low, high)
        candidates = jnp.concatenate([plan_state.last[..., None], sequences], axis=-1)
        values = evaluate(transitions, objective, state, candidates)
        winner = jnp.argmax(values)
        best = candidates[..., winner]
        info = {"value": values[winner], "failed": jnp.mean(values == -jnp.inf)}
        return best, plan_state._replace(last=shifted(best)), info
