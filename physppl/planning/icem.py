"""Improved cross-entropy method (iCEM)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.spaces import ActionSpace
from physppl.planning.planner import BoundObjective, Planner, bounds, evaluate, shifted
from physppl.planning.proposals import Coloured, Proposal, White, draw


class CrossEntropyPlan(NamedTuple):
    mean: Float[Array, "H A"]
    elites: Float[Array, "H A E"]  # of the last step, shifted
    low: Float[Array, " A"]
    high: Float[Array, " A"]


class ICEM(Planner):
    """Improved cross-entropy method (C. Pinneri et al., CoRL 2020). With `proposal=White(), keep=0` it is the
    plain method with truncated normal noise.

    Attributes:
        horizon: steps ahead.
        population: candidates of an iteration, reused elites included.
        iterations: refinements of a control step.
        elites: best candidates, to which the next distribution is fitted.
        keep: number of elites reused in the next iteration and, shifted, in the next step.
        proposal: prior of the noise over time; `White()` truncates it at two sds.
        spread: initial sd, in units of half the action range.
        smoothing: weight of the old mean and sd in the new.
    """

    horizon: int = eqx.field(default=30, static=True)
    population: int = eqx.field(default=200, static=True)
    iterations: int = eqx.field(default=3, static=True)
    elites: int = eqx.field(default=20, static=True)
    keep: int = eqx.field(default=6, static=True)
    proposal: Proposal = Coloured(2.0)
    spread: float = eqx.field(default=0.5, static=True)
    smoothing: float = eqx.field(default=0.1, static=True)

    def __check_init__(self):
        if not (0 <= self.keep <= self.elites <= self.population) or self.elites < 1:
            raise ValueError(
                f"ICEM needs 0 <= keep <= elites <= population; got {self.keep}, {self.elites}, {self.population}."
            )
        if self.horizon < 1 or self.iterations < 1:
            raise ValueError(f"ICEM needs horizon and iterations >= 1; got {self.horizon}, {self.iterations}.")
        if not (self.spread > 0 and 0 <= self.smoothing < 1):
            raise ValueError(f"ICEM needs spread > 0 and 0 <= smoothing < 1; got {self.spread}, {self.smoothing}.")
        self.proposal.matrix(self.horizon)  # raises for a horizon that does not suit it

    @property
    def evaluations(self) -> int:
        """Number population x iterations x horizon."""
        return self.population * self.iterations * self.horizon

    def init(self, action: ActionSpace) -> CrossEntropyPlan:
        low, high = bounds(action)
        mean = jnp.broadcast_to((low + high) / 2, (self.horizon, len(action)))
        return CrossEntropyPlan(mean, jnp.broadcast_to(mean[..., None], (*mean.shape, self.keep)), low, high)

    def plan(self, key: PRNGKeyArray, transitions, objective: BoundObjective, state, plan_state: CrossEntropyPlan):
        low, high = plan_state.low[:, None], plan_state.high[:, None]
        first_sd = jnp.broadcast_to(self.spread * (plan_state.high - plan_state.low) / 2, plan_state.mean.shape)
        fresh = self.population - self.keep

        def iteration(carry, key):
            mean, sd, elites, best, best_value = carry
            noise = self._noise(key, (*mean.shape, fresh), mean.dtype)
            candidates = jnp.clip(mean[..., None] + sd[..., None] * noise, low, high)
            if self.keep:
                candidates = jnp.concatenate([elites, candidates], axis=-1)
            values = evaluate(transitions, objective, state, candidates)
            top, index = jax.lax.top_k(values, self.elites)
            elites = candidates[..., index]
            weight = jnp.where(top[0] > -jnp.inf, self.smoothing, 1.0)  # no update where every candidate failed
            mean = weight * mean + (1 - weight) * elites.mean(-1)
            sd = weight * sd + (1 - weight) * elites.std(-1)
            best = jnp.where(top[0] > best_value, elites[..., 0], best)
            failed = jnp.mean(values == -jnp.inf)
            return (mean, sd, elites[..., : self.keep], best, jnp.maximum(top[0], best_value)), failed

        worst = jnp.asarray(-jnp.inf, state.dtype)
        start = (plan_state.mean, first_sd, plan_state.elites, plan_state.mean, worst)
        (mean, _, elites, best, value), failed = jax.lax.scan(iteration, start, jax.random.split(key, self.iterations))
        plan_state = plan_state._replace(mean=shifted(mean), elites=shifted(elites))
        return best, plan_state, {"value": value, "failed": jnp.mean(failed)}

    def _noise(self, key, shape, dtype):
        if isinstance(self.proposal, White):
            return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
        return draw(key, self.proposal, shape, dtype)
