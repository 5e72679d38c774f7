"""Hamiltonian Monte Carlo: BlackJAX NUTS, warm-up and all chains in one compiled program."""

from collections.abc import Callable
from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.backend import Backend
from physppl.errors import Status
from physppl.inference.draws import DrawsPosterior
from physppl.virtual import VirtualSpace

R_HAT = 1.1  # above it the chains tell different stories; ArviZ's rank version tells more, draw by draw


class HMC(Backend[DrawsPosterior]):
    """The no-U-turn sampler (Hoffman and Gelman, JMLR 2014) with window adaptation of step and dense metric.

    Takes any NumPyro model with continuous latent sites. Data are arguments of the compiled program, so a refit on
    data of the same bucket compiles nothing.

    Attributes:
        draws: kept draws of each chain.
        warmup: adaptation steps of each chain.
        chains: run side by side.
        target_acceptance: of the step-size adaptation.
        dense: adapt a dense metric; choose False beyond a few hundred latent dimensions.
    """

    draws: int = eqx.field(default=1000, static=True)
    warmup: int = eqx.field(default=500, static=True)
    chains: int = eqx.field(default=4, static=True)
    target_acceptance: float = eqx.field(default=0.8, static=True)
    dense: bool = eqx.field(default=True, static=True)

    def __check_init__(self):
        if self.draws < 4 or self.warmup < 1 or self.chains < 1:
            raise ValueError(
                f"HMC needs draws >= 4, warmup >= 1 and chains >= 1; got {self.draws}, {self.warmup}, {self.chains}."
            )

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> DrawsPosterior:
        space = VirtualSpace.of(model, data)

        def log_joint(z):
            prior, likelihood = space.log_densities(space.trace(model, z, data), z)
            return prior + likelihood

        start_key, chain_key = jax.random.split(key)
        starts = _starts(start_key, space, model, data, log_joint, self.chains)
        run = lambda key, start: self._chain(key, start, log_joint)  # noqa: E731
        points, stats = jax.vmap(run)(jax.random.split(chain_key, self.chains), starts)
        divergent = jnp.mean(stats["diverging"]) > 0.01
        status = jnp.where(divergent, Status.DIVERGENCES, Status.OK)
        status = jnp.where(jnp.max(split_r_hat(points)) > R_HAT, Status.NOT_MIXED, status)
        status = jnp.where(jnp.all(jnp.isfinite(stats["lp"])), status, Status.NONFINITE)
        return DrawsPosterior(model, data, space, points, stats, status, "HMC")

    def _chain(self, key, start, log_joint):
        warm_key, key = jax.random.split(key)
        nuts: Any = blackjax.nuts  # typed by BlackJAX as its widest protocol
        adaptation: Any = blackjax.window_adaptation(
            nuts,
            log_joint,
            is_mass_matrix_diagonal=not self.dense,
            target_acceptance_rate=self.target_acceptance,
        )
        (state, parameters), _ = adaptation.run(warm_key, start, num_steps=self.warmup)
        kernel = nuts(log_joint, **parameters)

        def body(state, key):
            state, info = kernel.step(key, state)
            stats = {
                "lp": state.logdensity,
                "diverging": info.is_divergent,
                "acceptance_rate": info.acceptance_rate,
                "n_steps": info.num_integration_steps,
                "energy": info.energy,
            }
            return state, (state.position, stats)

        _, (points, stats) = jax.lax.scan(body, state, jax.random.split(key, self.draws))
        stats["step_size"] = jnp.full(self.draws, parameters["step_size"])
        return points, stats


def split_r_hat(points: Float[Array, "C S P"]) -> Float[Array, " P"]:
    """Potential scale reduction of half chains (A. Gelman et al., Bayesian Data Analysis, 3rd ed., section 11.4)."""
    chains, draws, size = points.shape
    halves = points[:, : draws // 2 * 2].reshape(2 * chains, draws // 2, size)
    within = jnp.mean(jnp.var(halves, axis=1, ddof=1), axis=0)
    between = jnp.var(jnp.mean(halves, axis=1), axis=0, ddof=1)
    return jnp.sqrt(1.0 - 2.0 / draws + between / within)


def _starts(key, space: VirtualSpace, model, data, log_joint, chains: int, tries: int = 20):
    """For each chain the likeliest of several prior draws: a chain does not begin where nothing is finite."""

    def best(key):
        draws = jax.vmap(lambda k: space.draw_prior(k, model, data))(jax.random.split(key, tries))
        densities = jax.vmap(log_joint)(draws)
        return draws[jnp.argmax(jnp.where(jnp.isfinite(densities), densities, -jnp.inf))]

    return jax.vmap(best)(jax.random.split(key, chains))
