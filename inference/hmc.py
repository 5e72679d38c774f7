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
from physppl.dynamics import NOISE
from physppl.errors import Status
from physppl.posterior import Posterior
from physppl.transition import Transition
from physppl.virtual import VirtualSpace

BASIS_DRAWS = 256  # draws from which mean and factor of the belief's functions are built


class HMC(Backend):
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

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> "HMCPosterior":
        space = VirtualSpace.of(model, data)

        def log_joint(z):
            prior, likelihood = space.log_densities(space.trace(model, z, data), z)
            return prior + likelihood

        start_key, chain_key = jax.random.split(key)
        starts = _starts(start_key, space, model, data, log_joint, self.chains)
        run = lambda key, start: self._chain(key, start, log_joint)  # noqa: E731
        points, stats = jax.vmap(run)(jax.random.split(chain_key, self.chains), starts)
        return HMCPosterior(model, data, space, points, stats)

    def _chain(self, key, start, log_joint):
        warm_key, key = jax.random.split(key)
        adaptation = blackjax.window_adaptation(
            blackjax.nuts,
            log_joint,
            is_mass_matrix_diagonal=not self.dense,
            target_acceptance_rate=self.target_acceptance,
        )
        (state, parameters), _ = adaptation.run(warm_key, start, num_steps=self.warmup)
        kernel = blackjax.nuts(log_joint, **parameters)

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


def _starts(key, space: VirtualSpace, model, data, log_joint, chains: int, tries: int = 20):
    """For each chain the likeliest of several prior draws: a chain does not begin where nothing is finite."""

    def best(key):
        draws = jax.vmap(lambda k: space.draw_prior(k, model, data))(jax.random.split(key, tries))
        densities = jax.lax.map(log_joint, draws)
        return draws[jnp.argmax(jnp.where(jnp.isfinite(densities), densities, -jnp.inf))]

    return jax.lax.map(best, jax.random.split(key, chains))


class HMCPosterior(Posterior):
    """Draws in virtual space.

    Attributes:
        points: (chains, draws, P).
        stats: per-draw diagnostics of the sampler, (chains, draws) each.
    """

    model: Any = eqx.field(static=True)
    data: Any
    status: Array
    space: VirtualSpace
    points: Float[Array, "C S P"]
    stats: dict[str, Array]

    def __init__(self, model, data, space: VirtualSpace, points, stats):
        self.model, self.data, self.space, self.points, self.stats = model, data, space, points, stats
        divergent = jnp.mean(stats["diverging"]) > 0.01
        finite = jnp.all(jnp.isfinite(points)) & jnp.all(jnp.isfinite(stats["lp"]))
        self.status = jnp.where(finite, jnp.where(divergent, Status.DIVERGENCES, Status.OK), Status.NONFINITE)

    def sample_stats(self) -> dict[str, Array]:
        return self.stats

    def _sites(self, z) -> dict[str, Array]:
        return self.space.sites(self.model.sites, z)

    def _transition(self, z) -> Transition:
        sites = self._sites(z)
        noise = self.model.noise(sites)
        sites.pop(NOISE, None)
        return Transition(sites, noise, self.model)

    def _thinned(self):
        """At most BASIS_DRAWS draws, evenly spaced over all chains."""
        flat = self.points.reshape(-1, self.points.shape[-1])
        return flat[jnp.linspace(0, len(flat) - 1, min(BASIS_DRAWS, len(flat))).round().astype(int)]

    def _draw(self, key: PRNGKeyArray) -> Transition:
        flat = self.points.reshape(-1, self.points.shape[-1])
        return self._transition(flat[jax.random.randint(key, (), 0, len(flat))])

    def _basis(self, states, actions):
        transitions = jax.vmap(self._transition)(self._thinned())
        values = jax.vmap(lambda f: jax.vmap(f)(states, actions), out_axes=-1)(transitions)
        mean = jnp.mean(values, axis=-1, keepdims=True)
        return mean[..., 0], (values - mean) / jnp.sqrt(values.shape[-1] - 1.0)

    def _samples(self, key: PRNGKeyArray, draws: int):
        """The draws themselves; `key` and `draws` do not change them."""
        del key, draws
        model, args = (self.model.sites, ()) if hasattr(self.model, "sites") else (self.model, (self.data,))
        return jax.vmap(jax.vmap(lambda z: self.space.sites(model, z, *args)))(self.points)

    def _noise(self) -> Array:
        noise = jax.vmap(lambda z: self.model.noise(self._sites(z)))(self._thinned())
        return jnp.sqrt(jnp.mean(noise**2, axis=0))
