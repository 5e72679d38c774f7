"""Random shooting: the best of many random action sequences."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.planning.planner import Objective, Planner, bounds, colouring, evaluate, shifted
from physppl.spaces import ActionSpace


class PlanState(NamedTuple):
    best: Float[Array, "H A"]  # of the step before, shifted
    low: Float[Array, " A"]
    high: Float[Array, " A"]


class RandomShooting(Planner):
    """The best of `population` sequences: the last plan, shifted, and random ones.

    A control step costs population x horizon model evaluations.

    Attributes:
        horizon: steps ahead.
        population: candidates.
        colour: exponent of the noise's power spectrum 1/f^colour; 0 draws uniformly between the bounds.
    """

    horizon: int = eqx.field(default=30, static=True)
    population: int = eqx.field(default=600, static=True)
    colour: float = eqx.field(default=0.0, static=True)

    def __check_init__(self):
        if self.horizon < 1 or self.population < 2:
            raise ValueError(
                f"RandomShooting needs horizon >= 1, population >= 2; got {self.horizon}, {self.population}."
            )

    def init(self, action: ActionSpace) -> PlanState:
        low, high = bounds(action)
        return PlanState(jnp.broadcast_to((low + high) / 2, (self.horizon, len(action))), low, high)

    def plan(self, key: PRNGKeyArray, transitions, objective: Objective, state, plan_state: PlanState):
        low, high = plan_state.low[:, None], plan_state.high[:, None]
        shape = (*plan_state.best.shape, self.population - 1)
        if self.colour == 0:
            fresh = jax.random.uniform(key, shape, low.dtype, low, high)
        else:
            white = jax.random.normal(key, shape, low.dtype)
            noise = jnp.tensordot(jnp.asarray(colouring(self.horizon, self.colour), low.dtype), white, axes=1)
            fresh = jnp.clip((low + high) / 2 + (high - low) / 2 * noise, low, high)
        candidates = jnp.concatenate([plan_state.best[..., None], fresh], axis=-1)
        values = evaluate(transitions, objective, state, candidates)
        winner = jnp.argmax(values)
        best = candidates[..., winner]
        info = {"value": values[winner], "failed": jnp.mean(values == -jnp.inf)}
        return best, plan_state._replace(best=shifted(best)), info
