"""Gradient shooting: action sequences improved by the gradient of their value."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.spaces import ActionSpace
from physppl.planning.planner import BoundObjective, Planner, PlanState, better, bounds, evaluate, shifted
from physppl.planning.proposals import Coloured, Proposal, draw


class GradientShooting(Planner):
    """First-order shooting: several starts, each improved by an optimiser through the rollout; the best sequence
    evaluated is executed, so a plan is never worse, under the model, than the last one, shifted.

    Actions are optimised in units of half their range and projected onto [-1, 1] after each update: the best plans
    often lie on the bounds, where a squashing function's gradient vanishes and which it never reaches. A start whose
    gradient is not finite skips that update.

    Attributes:
        horizon: steps ahead.
        starts: sequences improved in parallel: the last plan, shifted, and draws of the proposal.
        steps: updates of each.
        optimiser: an optax GradientTransformation that needs gradients alone; by default Adam at a rate of 0.1 of
            half the action range, falling to zero over the steps along a cosine. Two equal calls of optax give two
            objects: construct it once, or every planner compiles again.
        proposal: prior of the random starts over time.
        spread: their sd, in units of half the action range.
    """

    horizon: int = eqx.field(default=30, static=True)
    starts: int = eqx.field(default=8, static=True)
    steps: int = eqx.field(default=25, static=True)
    optimiser: optax.GradientTransformation | None = eqx.field(default=None, static=True)
    proposal: Proposal = Coloured(2.0)
    spread: float = eqx.field(default=0.5, static=True)

    def __check_init__(self):
        if self.horizon < 1 or self.starts < 1 or self.steps < 1:
            raise ValueError(
                "GradientShooting needs horizon, starts and steps >= 1; "
                f"got {self.horizon}, {self.starts}, {self.steps}."
            )
        if not self.spread > 0:
            raise ValueError(f"GradientShooting needs spread > 0; got {self.spread}.")
        self.proposal.matrix(self.horizon)  # raises for a horizon that does not suit it

    @property
    def evaluations(self) -> int:
        """Number starts x (steps + 1) x horizon, forward; all but the last starts x horizon include a reverse pass."""
        return self.starts * (self.steps + 1) * self.horizon

    def init(self, action: ActionSpace) -> PlanState:
        low, high = bounds(action)
        return PlanState(jnp.zeros((self.horizon, len(action)), low.dtype), low, high)

    def plan(self, key: PRNGKeyArray, transitions, objective: BoundObjective, state, plan_state: PlanState):
        low, high = plan_state.low, plan_state.high
        optimiser = self.optimiser or optax.adam(optax.cosine_decay_schedule(0.1, self.steps))

        def actions(shares: Float[Array, "H A N"]) -> Float[Array, "H A N"]:
            middle, half = (low + high) / 2, (high - low) / 2
            return jnp.clip(middle[:, None] + half[:, None] * shares, low[:, None], high[:, None])  # rounding errors

        def loss(shares):
            values = evaluate(transitions, objective, state, actions(shares))
            return -jnp.sum(values), values  # the sum separates: each candidate gets the gradient of its own value

        def update(shares, opt_state, gradient):  # of one start
            finite = jnp.all(jnp.isfinite(gradient))
            step, after = optimiser.update(gradient, opt_state, shares)
            updated = jnp.clip(shares + step, -1.0, 1.0)
            return jax.tree.map(lambda new, old: jnp.where(finite, new, old), (updated, after), (shares, opt_state))

        def body(carry, _):
            shares, opt_state, best, best_value = carry
            (_, values), gradient = jax.value_and_grad(loss, has_aux=True)(shares)
            best, best_value = better(best, best_value, shares, values)
            shares, opt_state = jax.vmap(update, in_axes=-1, out_axes=-1)(shares, opt_state, gradient)
            return (shares, opt_state, best, best_value), jnp.mean(values == -jnp.inf)

        last = plan_state.last
        noise = draw(key, self.proposal, (*last.shape, self.starts - 1), last.dtype)
        shares = jnp.concatenate([last[..., None], jnp.clip(self.spread * noise, -1.0, 1.0)], axis=-1)
        opt_state = jax.vmap(optimiser.init, in_axes=-1, out_axes=-1)(shares)
        start = (shares, opt_state, last, jnp.asarray(-jnp.inf, state.dtype))
        (shares, _, best, best_value), failed = jax.lax.scan(body, start, length=self.steps)
        values = evaluate(transitions, objective, state, actions(shares))
        best, best_value = better(best, best_value, shares, values)
        failed = (jnp.sum(failed) + jnp.mean(values == -jnp.inf)) / (self.steps + 1)
        info = {"value": best_value, "failed": failed}
        return actions(best[..., None])[..., 0], plan_state._replace(last=shifted(best)), info
