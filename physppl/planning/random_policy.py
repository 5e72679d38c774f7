"""Coloured random actions: exploration without a model, and a baseline."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from physppl.data.spaces import ActionSpace
from physppl.planning.planner import BoundObjective, Planner, PlanState, bounds


class RandomPolicy(Planner):
    """First-order autoregressive process squashed between the bounds; it uses no model.

    Attributes:
        correlation: of successive actions, in [0, 1); 0 is white.
        amplitude: share of the range, around its middle, that they fill, in (0, 1].
    """

    correlation: float = eqx.field(default=0.8, static=True)
    amplitude: float = eqx.field(default=1.0, static=True)

    def __check_init__(self):
        if not 0 <= self.correlation < 1:
            raise ValueError(f"RandomPolicy: correlation must lie in [0, 1); got {self.correlation}.")
        if not 0 < self.amplitude <= 1:
            raise ValueError(f"RandomPolicy: amplitude must lie in (0, 1]; got {self.amplitude}.")

    @property
    def evaluations(self) -> int:
        return 0

    def init(self, action: ActionSpace) -> PlanState:
        low, high = bounds(action)
        return PlanState(jnp.zeros_like(low), low, high)  # `last`: a standard normal number per action

    def plan(self, key: PRNGKeyArray, transitions, objective: BoundObjective, state, plan_state: PlanState):
        del transitions, objective, state
        innovation = jax.random.normal(key, plan_state.last.shape, plan_state.last.dtype)
        current = self.correlation * plan_state.last + jnp.sqrt(1 - self.correlation**2) * innovation
        share = 0.5 + self.amplitude * (jax.scipy.stats.norm.cdf(current) - 0.5)  # uniform
        action = plan_state.low + (plan_state.high - plan_state.low) * share
        return action[None], plan_state._replace(last=current), {"value": jnp.asarray(jnp.nan), "failed": jnp.zeros(())}
