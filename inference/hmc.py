"""Hamiltonian Monte Carlo: BlackJAX NUTS, warm-up and all chains in one compiled program."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from physppl.density.curvature import local
from physppl.density.forms import FoundModes
from physppl.density.mode import find_mode, unit_of
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference.draws import DrawsPosterior, chain_status
from physppl.inference.nuts import Engine, Plan, blackjax_nuts
from physppl.internal import gaussians
from physppl.internal.errors import Status
from physppl.internal.parallel import parallel_vmap
from physppl.posterior.backend import Backend


class HMC(Backend[DrawsPosterior]):
    """The no-U-turn sampler (Hoffman and Gelman, JMLR 2014) with window adaptation of step and dense metric.

    Each chain starts near a mode, drawn from those found by several searches, in coordinates whitened by its curvature.

    Takes any NumPyro model with continuous latent sites. Data are arguments of the compiled program, so a refit on
    data of the same bucket compiles nothing.

    Attributes:
        draws: draws of each chain after warm-up.
        warmup: adaptation steps of each chain.
        chains: number of chains, run in parallel.
        target_acceptance: mean acceptance rate aimed at by the step-size adaptation.
        dense: adapt a dense metric; choose False beyond a few hundred latent dimensions.
        engine: `blackjax_nuts`, or `numpyro_nuts` of `physppl.inference.nuts`: the same density and start, another
            implementation of the sampler and of its warm-up.
    """

    draws: int = eqx.field(default=1000, static=True)
    warmup: int = eqx.field(default=300, static=True)
    chains: int = eqx.field(default=4, static=True)
    target_acceptance: float = eqx.field(default=0.8, static=True)
    dense: bool = eqx.field(default=True, static=True)
    engine: Engine = eqx.field(default=blackjax_nuts, static=True)

    def __check_init__(self):
        if self.draws < 4 or self.warmup < 1 or self.chains < 1:
            raise ValueError(
                f"HMC needs draws >= 4, warmup >= 1 and chains >= 1; got {self.draws}, {self.warmup}, {self.chains}."
            )
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"HMC needs 0 < target_acceptance < 1, a rate such as 0.8; got {self.target_acceptance:g}."
            )

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> DrawsPosterior:
        space = UnconstrainedSpace.of(model, data)
        start_key, chain_key = jax.random.split(key)
        centres, factors, found = _starts(start_key, space, model, data, self.chains)
        plan = Plan(self.draws, self.warmup, self.target_acceptance, self.dense)

        def chain(key, centre, factor):
            """One chain in coordinates in which the Laplace posterior at its mode is standard normal."""

            def density(x):
                # A momentum that overflows makes the energy minus infinity, and the step is accepted for good. So far
                # from all mass the density is set to zero, and with it the gradient.
                value = space.log_joint(model, centre + factor.T @ x, data)
                return jnp.where(value > -1e30, value, -jnp.inf)

            start_key, key = jax.random.split(key)
            start = jax.random.normal(start_key, centre.shape, centre.dtype)
            start = jnp.where(jnp.isfinite(density(start)), start, 0.0)
            positions, stats = self.engine(key, density, start, plan)
            return centre + positions @ factor, stats

        points, stats = parallel_vmap(chain, jax.random.split(chain_key, self.chains), centres, factors)
        status = jnp.where(jnp.all(jnp.isfinite(stats["lp"])), chain_status(points, stats), Status.NONFINITE)
        return DrawsPosterior(model, data, space, points, stats, status, "HMC", found)


def _starts(
    key, space: UnconstrainedSpace, model, data, chains: int, searches: int = 4, tries: int = 5, steps: int = 40
):
    """Mode (C, P) and factor of the inverse curvature (C, P, P) for each chain, drawn by share of the evidence; modes.

    Trajectory likelihoods are so narrow that a sampler does not find their mass from the prior, and a chain never
    leaves a minor mode. So the searches, several for each chain and each from the likeliest of a few prior draws, are
    pooled. They are drawn at even spacings of their cumulated evidence, so that a mode with a chain's share of it has
    a chain, and multimodality still shows as chains that disagree.
    """
    prior_key, mode_key = jax.random.split(key)
    draws = space.prior_draws(prior_key, chains * searches * tries, model, data)
    unit, evaluate = unit_of(draws), partial(local, space, model, data)
    densities = jax.lax.map(lambda z: evaluate(z).log_joint, draws).reshape(-1, tries)
    best = jnp.argmax(jnp.where(jnp.isfinite(densities), densities, -jnp.inf), axis=1)
    starts = draws.reshape(len(best), tries, -1)[jnp.arange(len(best)), best]
    modes = jax.vmap(lambda z: find_mode(evaluate, z[None], unit, steps))(starts)
    factors = jax.vmap(gaussians.inverse_factor)(modes.local.curvature)
    evidence = jax.vmap(gaussians.log_evidence)(modes.local.log_joint, factors)
    # A mode counts once, however many searches ended there.
    found = FoundModes.of(modes)
    gaps = jnp.abs(found.points[:, None] - found.points[None]) / found.sds
    ends = jnp.maximum(jnp.sum(jnp.max(gaps, axis=-1) < 1.0, axis=1), 1)
    share = jax.nn.softmax(jnp.where(jnp.isfinite(evidence), evidence - jnp.log(ends), -1e30))
    # Ends of one mode must stand side by side for even spacings to count them together.
    order = jnp.lexsort((*modes.point.T, jnp.round(modes.local.log_joint, 1)))
    even = (jnp.arange(chains) + jax.random.uniform(mode_key)) / chains
    indices = order[jnp.searchsorted(jnp.cumsum(share[order]), even).clip(0, len(share) - 1)]
    factors = jnp.where(jnp.isfinite(evidence)[:, None, None], factors, jnp.diag(unit))
    return modes.point[indices], factors[indices], found
