"""One chain of the no-U-turn sampler, warm-up and draws in one scan: BlackJAX's engine, or NumPyro's.

Both start in coordinates in which the Laplace posterior is standard normal, so the identity is already a good metric
and a short warm-up refines it. One copy of the kernel is compiled, which halves the time to the first draw.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.mass_matrix import mass_matrix_adaptation
from blackjax.adaptation.step_size import dual_averaging_adaptation
from blackjax.adaptation.window_adaptation import build_schedule
from blackjax.mcmc import nuts
from jax import Array
from jaxtyping import Float, PRNGKeyArray
from numpyro.infer.hmc import hmc

METRIC_WEIGHT = 25  # warm-up draws that the metric counts as when a window's covariance is blended into it
MAX_TREE_DEPTH = 10  # doublings of a trajectory


class Plan(NamedTuple):
    """Settings of an engine: the fields of `HMC` with the same names."""

    draws: int
    warmup: int
    target_acceptance: float
    dense: bool


Engine = Callable[[PRNGKeyArray, Callable, Array, Plan], tuple[Array, dict[str, Array]]]
"""(key, log density, start (P,), plan) -> positions (S, P) and {diagnostic: (S,)}, under ArviZ's names."""


def blackjax_nuts(
    key: PRNGKeyArray, density: Callable, start: Float[Array, " P"], plan: Plan
) -> tuple[Float[Array, "S P"], dict[str, Array]]:
    """BlackJAX's NUTS (M. Hoffman, A. Gelman, JMLR 15, 2014), with Stan's windows of warm-up.

    Each window's covariance is blended into the previous metric.
    """
    metric_of, collect, refine = mass_matrix_adaptation(not plan.dense, imm_shrinkage_to_previous=METRIC_WEIGHT)
    averaging_of, average, averaged = dual_averaging_adaptation(plan.target_acceptance)
    kernel: Any = nuts.build_kernel()  # its types demand a concrete step size

    def restart(averaging, metric):
        return averaging_of(averaged(averaging)), refine(metric)

    def body(carry, step):
        state, averaging, metric = carry
        key, warming, collecting, last = step
        size = jnp.where(warming, jnp.exp(averaging.log_step_size), averaged(averaging))
        state, info = kernel(key, state, density, size, metric.inverse_mass_matrix, MAX_TREE_DEPTH)

        def adapt(averaging, metric):
            averaging = average(averaging, info.acceptance_rate)
            metric = jax.lax.cond(collecting, lambda m: collect(m, state.position), lambda m: m, metric)
            return jax.lax.cond(last, restart, lambda *same: same, averaging, metric)

        averaging, metric = jax.lax.cond(warming, adapt, lambda *same: same, averaging, metric)
        stats = {
            "lp": state.logdensity,
            "diverging": info.is_divergent,
            "acceptance_rate": info.acceptance_rate,
            "n_steps": info.num_integration_steps,
            "tree_depth": info.num_trajectory_expansions,
            "reached_max_tree_depth": info.num_trajectory_expansions >= MAX_TREE_DEPTH,
            "energy": info.energy,
            "step_size": size,
        }
        return (state, averaging, metric), (state.position, stats)

    stages = jnp.asarray(build_schedule(plan.warmup))
    still = jnp.zeros(plan.draws, bool)
    warming = jnp.concatenate([jnp.ones(plan.warmup, bool), still])
    collecting, last = (jnp.concatenate([stages[:, i].astype(bool), still]) for i in range(2))
    keys = jax.random.split(key, plan.warmup + plan.draws)
    carry = (nuts.init(start, density), averaging_of(1.0), metric_of(len(start)))
    _, course = jax.lax.scan(body, carry, (keys, warming, collecting, last))
    return jax.tree.map(lambda x: x[plan.warmup :], course)


def numpyro_nuts(
    key: PRNGKeyArray, density: Callable, start: Float[Array, " P"], plan: Plan
) -> tuple[Float[Array, "S P"], dict[str, Array]]:
    """NumPyro's iterative NUTS (D. Phan, N. Pradhan, M. Jankowiak, arXiv 1912.11554) with its own warm-up."""
    initial, kernel = hmc(lambda x: -density(x), algo="NUTS")
    state = initial(
        start, plan.warmup, rng_key=key, dense_mass=plan.dense, target_accept_prob=plan.target_acceptance,
        max_tree_depth=MAX_TREE_DEPTH,
    )  # fmt: skip

    def body(state: Any, _):
        state = kernel(state)
        depth = jnp.ceil(jnp.log2(state.num_steps + 1.0)).astype(int)  # doublings for this number of steps
        stats = {
            "lp": -state.potential_energy,
            "diverging": state.diverging,
            "acceptance_rate": state.accept_prob,
            "n_steps": state.num_steps,
            "tree_depth": depth,
            "reached_max_tree_depth": depth >= MAX_TREE_DEPTH,
            "energy": state.energy,
            "step_size": state.adapt_state.step_size,
        }
        return state, (state.z, stats)

    _, course = jax.lax.scan(body, state, length=plan.warmup + plan.draws)
    return jax.tree.map(lambda x: x[plan.warmup :], course)
