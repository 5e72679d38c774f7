"""Stochastic variational inference with any of NumPyro's guides."""

import inspect
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.infer
import optax
from jax import Array
from jaxtyping import Float, PRNGKeyArray
from numpyro.infer import Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoGuide, AutoMultivariateNormal

from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference.draws import DrawsPosterior, unconstrained
from physppl.inference.evidence import free_space
from physppl.inference.laplace import Laplace
from physppl.internal.errors import fit_status
from physppl.posterior.backend import Backend
from physppl.posterior.verdict import StatusAlone

CLIP = 100.0  # gradient norm, so that one draw of very low density does not determine the step


class SVI(Backend["VariationalPosterior"]):
    """A NumPyro guide, fitted by stochastic gradients of the ELBO and represented by draws from it.

    (R. Ranganath, S. Gerrish, D. Blei, AISTATS 2014; A. Kucukelbir et al., J. Machine Learning Research 18, 2017.)

    A program's `param` sites maximise the ELBO with the guide. A mean-field guide (`AutoNormal`) is too narrow where
    the posterior is correlated, as for most parameters of one machine; compare with `Laplace` or `HMC`.

    Attributes:
        guide: model -> guide, such as a class of `numpyro.infer.autoguide` or `partial(AutoBNAFNormal, num_flows=2)`.
        steps: of Adam, whose rate falls to zero along a cosine.
        rate: step size of Adam, in the guide's parameters.
        particles: draws of the guide for each gradient.
        draws: draws of the guide that represent the posterior.
        search: evaluations of the search for the mode, as in `Laplace`, at which a guide with NumPyro's `init_loc_fn`
            starts; 0: NumPyro's own start.
    """

    guide: Callable[..., AutoGuide] = eqx.field(default=AutoMultivariateNormal, static=True)
    steps: int = eqx.field(default=4000, static=True)
    rate: float = eqx.field(default=0.02, static=True)
    particles: int = eqx.field(default=4, static=True)
    draws: int = eqx.field(default=1000, static=True)
    search: int = eqx.field(default=100, static=True)

    def __check_init__(self):
        if not callable(self.guide) or isinstance(self.guide, AutoGuide):
            raise TypeError(
                f"SVI: guide must make a guide of a model, e.g. the class AutoNormal; got {type(self.guide).__name__}."
            )
        if min(self.steps, self.particles, self.draws) < 1 or self.search < 0 or not 0 < self.rate < np.inf:
            raise ValueError(
                "SVI needs steps, particles, draws >= 1, search >= 0 and rate > 0; got "
                f"{self.steps}, {self.particles}, {self.draws}, {self.search} and {self.rate}."
            )

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> "VariationalPosterior":
        """Fit; raises ValueError for a guide that leaves sites out."""
        param_key, search_key, climb_key, draw_key = jax.random.split(key, 4)
        space, _ = free_space(param_key, model, data)
        options = {}
        takes_start = "init_loc_fn" in inspect.signature(self.guide).parameters
        if self.search and takes_start and not space.params:
            mode = Laplace(steps=self.search).fit(search_key, model, data).mode
            usable = jnp.all(jnp.isfinite(mode))
            options["init_loc_fn"] = init_to_value(values=space.sites(model, jnp.where(usable, mode, 0.0), data))
        guide = self.guide(model, **options)
        elbo = Trace_ELBO(num_particles=self.particles)
        optimiser = optax.chain(
            optax.clip_by_global_norm(CLIP), optax.adam(optax.cosine_decay_schedule(self.rate, self.steps))
        )
        svi = numpyro.infer.SVI(model, guide, optimiser, elbo)

        def climb(state, _):
            state, loss = svi.stable_update(state, data)
            return state, -loss

        state, bounds = jax.lax.scan(climb, svi.init(climb_key, data), length=self.steps)
        params = svi.get_params(state)
        samples = guide.sample_posterior(draw_key, params, sample_shape=(1, self.draws))
        if missing := [name for name in space.names if name not in samples]:
            raise ValueError(f"SVI: the guide has no site for {', '.join(map(repr, missing))}.")
        space = space.holding({name: params[name] for name in space.params})
        points = unconstrained(space, model, data, {name: samples[name] for name in space.names})
        return VariationalPosterior(model, data, space, points, bounds)


class VariationalPosterior(StatusAlone, DrawsPosterior):
    """Draws of a fitted guide.

    Attributes:
        elbo: noisy estimate of the bound at each step (S,), nats.
    """

    elbo: Float[Array, " S"]

    def __init__(self, model, data, space: UnconstrainedSpace, points: Float[Array, "C K P"], elbo: Float[Array, " S"]):
        super().__init__(model, data, space, points, {}, _convergence(elbo), "SVI")
        self.elbo = elbo

    def facts(self) -> dict[str, float]:
        """Scalars of the fit: `elbo`, a noisy lower bound of the log evidence, is the mean of the last steps."""
        last = np.asarray(self.elbo)[-max(len(self.elbo) // 10, 1) :]
        return {"elbo": float(np.mean(last)), "elbo_error": float(np.std(last) / np.sqrt(len(last)))}


def _convergence(elbo: Float[Array, " S"]) -> Array:
    """Status OK if the last tenth of the steps gained no more than one nat over the tenth before, within noise."""
    tenth = max(len(elbo) // 10, 1)
    before, last = elbo[-2 * tenth : -tenth], elbo[-tenth:]
    noise = jnp.sqrt((jnp.var(before) + jnp.var(last)) / tenth)
    rising = jnp.mean(last) - jnp.mean(before) > 1.0 + 4 * noise
    return fit_status(~rising, finite=jnp.all(jnp.isfinite(last)))
