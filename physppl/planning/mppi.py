"""Model predictive path integral control: candidates averaged with weights by their value."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.spaces import ActionSpace
from physppl.planning.planner import BoundObjective, Planner, PlanState, better, evaluate, middle, shifted
from physppl.planning.proposals import Coloured, Proposal, draw


class MPPI(Planner):
    """Information-theoretic MPC (G. Williams et al., ICRA 2017): the plan is the mean of candidates around the last
    plan, shifted, each weighted by exp(value / temperature).

    The temperature is relative to the best value less the median: plans are invariant to scaling the reward or adding
    a constant, and robust to a few disastrous candidates. The published control cost is left to the objective. A mean
    whose rollout diverges is replaced by the best candidate.

    Attributes:
        horizon: steps ahead.
        population: candidates of an iteration.
        iterations: updates of the mean in a control step.
        temperature: in units of best minus median value; small follows the best, large averages all.
        proposal: prior of the perturbations over time; `White()` as published.
        spread: their sd, in units of half the action range.
    """

    horizon: int = eqx.field(default=30, static=True)
    population: int = eqx.field(default=200, static=True)
    iterations: int = eqx.field(default=3, static=True)
    temperature: float = eqx.field(default=0.1, static=True)
    proposal: Proposal = Coloured(2.0)
    spread: float = eqx.field(default=0.5, static=True)

    def __check_init__(self):
        if self.horizon < 1 or self.population < 2 or self.iterations < 1:
            raise ValueError(
                "MPPI needs horizon >= 1, population >= 2, iterations >= 1; "
                f"got {self.horizon}, {self.population}, {self.iterations}."
            )
        if not (self.temperature > 0 and self.spread > 0):
            raise ValueError(f"MPPI needs temperature > 0 and spread > 0; got {self.temperature}, {self.spread}.")
        self.proposal.matrix(self.horizon)  # raises for a horizon that does not suit it

    @property
    def evaluations(self) -> int:
        """Number (population x iterations + 1) x horizon: the mean is evaluated too."""
        return (self.population * self.iterations + 1) * self.horizon

    def init(self, action: ActionSpace) -> PlanState:
        return middle(action, self.horizon)

    def plan(self, key: PRNGKeyArray, transitions, objective: BoundObjective, state, plan_state: PlanState):
        low, high = plan_state.low, plan_state.high
        sd = (self.spread * (high - low) / 2)[:, None]

        def iteration(carry, key):
            mean, best, best_value = carry
            noise = draw(key, self.proposal, (*mean.shape, self.population), mean.dtype)
            candidates = jnp.clip(mean[..., None] + sd * noise, low[:, None], high[:, None])
            values = evaluate(transitions, objective, state, candidates)
            best, best_value = better(best, best_value, candidates, values)
            step = jnp.sum(weights(values, self.temperature) * (candidates - mean[..., None]), axis=-1)
            mean = jnp.clip(mean + step, low, high)
            return (mean, best, best_value), jnp.mean(values == -jnp.inf)

        start = (plan_state.last, plan_state.last, jnp.asarray(-jnp.inf, state.dtype))
        (mean, best, best_value), failed = jax.lax.scan(iteration, start, jax.random.split(key, self.iterations))
        value = evaluate(transitions, objective, state, mean[..., None])[0]
        finite = jnp.isfinite(value)
        mean, value = jnp.where(finite, mean, best), jnp.where(finite, value, best_value)
        return mean, plan_state._replace(last=shifted(mean)), {"value": value, "failed": jnp.mean(failed)}


def weights(values: Float[Array, " N"], temperature: float) -> Float[Array, " N"]:
    """Weights exp((value - best) / (temperature (best - median))), normalised to sum to 1.

    The median is of the finite values; other values have weight zero. All weights are zero where no value is finite.
    """
    finite = jnp.isfinite(values)
    best = jnp.max(values)
    gap = best - jnp.nanmedian(jnp.where(finite, values, jnp.nan))
    scale = jnp.maximum(temperature * gap, jnp.finfo(values.dtype).tiny)  # equal values get equal weights
    shares = jnp.where(finite, jnp.exp((values - best) / scale), 0.0)
    return shares / jnp.maximum(jnp.sum(shares), 1.0)  # the sum is at least 1 where a value is finite
