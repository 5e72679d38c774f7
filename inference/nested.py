"""Nested Laplace: a few sites are explored by their marginal density, all else is Gaussian given them.

In a hierarchy the joint mode of a population's spread lies far from its posterior's mass, because the volume that the
members' offsets lose with it is not counted, and one Gaussian cannot follow the ridge between spread and offsets. Given
the spreads both difficulties are gone (H. Rue, S. Martino, N. Chopin, J. Royal Statistical Society B 71, 2009). What
remains is skewness, which a mode ignores: each Gaussian's mean is moved to where it is nearest to the density in
Kullback-Leibler divergence, its covariance kept (J. van Niekerk, H. Rue, J. Machine Learning Research 25, 2024).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float, PRNGKeyArray

from physppl.density.curvature import Local, local
from physppl.density.mode import find_mode, unit_of
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference.draws import DrawsPosterior
from physppl.internal import gaussians
from physppl.internal.errors import Status, closest
from physppl.posterior.backend import Backend
from physppl.posterior.verdict import status_reasons

DF = 5.0  # of the Student-t that proposes: heavier tails than what it explores
ENOUGH = 1e-3  # posterior sds from the mode where a search ends: the evidence is then right to its square
PAIRS, CLIMBS = 8, 3  # antithetic points, and steps, by which a mode becomes a mean


class Point(NamedTuple):
    """At one value of the outer sites: mode, mean and factor of all else, and the log density of value and data."""

    mode: Float[Array, " P"]
    mean: Float[Array, " P"]
    factor: Float[Array, "Q Q"]
    log_density: Float[Array, ""]


class ImportanceProposal(NamedTuple):
    """A Student-t with DF degrees of freedom."""

    center: Float[Array, " M"]
    lower: Float[Array, "M M"]

    @property
    def distribution(self) -> dist.MultivariateStudentT:
        return dist.MultivariateStudentT(DF, self.center, self.lower)


class Known(NamedTuple):
    """What the rounds have found: proposals (R, ...), values (R, K, M), points (R, K, ...)."""

    proposals: ImportanceProposal
    values: Array
    found: Point


class NestedLaplace(Backend["NestedPosterior"]):
    """Laplace within an exploration of some sites, by adaptive importance sampling.

    (J. Cornuet et al., "Adaptive Multiple Importance Sampling", Scandinavian J. Statistics 39, 2012.) Rounds of
    proposals, the first as wide as the prior, each later one with the moments found so far; at each proposal a search
    for the mode of all else, and a weight against the mixture of all rounds. The belief is held by draws of the
    weighted Gaussians, their means corrected for skewness. For a hierarchy: the population's spreads.

    Attributes:
        outer: names of the sites that are explored, or a function of a name that says so; altogether a few numbers,
            six at most.
        points: proposals in each round.
        rounds: how many.
        steps: evaluations of each search, at most.
        draws: of the belief.
    """

    outer: tuple[str, ...] | Callable[[str], bool] = eqx.field(static=True, converter=lambda names: _names(names))
    points: int = eqx.field(default=48, static=True)
    rounds: int = eqx.field(default=6, static=True)
    steps: int = eqx.field(default=50, static=True)
    draws: int = eqx.field(default=1000, static=True)

    def __check_init__(self):
        if not self.outer:
            raise ValueError("NestedLaplace: outer must name the sites that are explored, e.g. ('mass_spread',).")
        if self.points < 16 or min(self.rounds, self.steps, self.draws) < 1:
            raise ValueError(
                "NestedLaplace needs points >= 16 and rounds, steps, draws >= 1; got "
                f"{self.points}, {self.rounds}, {self.steps} and {self.draws}."
            )

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> "NestedPosterior":
        """The belief.

        Raises:
            KeyError: for a name that is no latent site, with close matches.
            ValueError: where the outer sites are all sites, or more than six numbers.
        """
        space = UnconstrainedSpace.of(model, data)
        for name in () if callable(self.outer) else self.outer:
            if name not in space.names:
                raise KeyError(f"NestedLaplace: the model has no latent site {name!r}.{closest(name, space.names)}")
        chosen = space.where(self.outer if callable(self.outer) else self.outer.__contains__)
        outer, inner = np.flatnonzero(chosen), np.flatnonzero(~chosen)
        if not len(inner) or not 1 <= len(outer) <= 6:
            raise ValueError(
                f"NestedLaplace: outer has {len(outer)} of the {space.size} numbers of {', '.join(space.names)}; it "
                "must have one to six and leave some out. Explore the population's spreads only."
            )
        prior_key, *keys, pick_key, noise_key = jax.random.split(key, 3 + self.rounds)
        draws = jax.vmap(lambda k: space.draw_prior(k, model, data))(jax.random.split(prior_key, self.points))
        unit, middle = unit_of(draws), jnp.median(draws, axis=0)

        def moved(key, mode, factor):
            """The mean at which the gradient of the log density vanishes on average over the Gaussian."""
            half = jax.random.normal(key, (PAIRS, len(inner)))
            nodes = jnp.concatenate([half, -half]) @ factor
            slope = jax.grad(lambda z: space.log_joint(model, z, data))

            def climb(mean, _):
                slopes = jax.vmap(lambda node: slope(mean.at[inner].add(node))[inner])(nodes)
                step = factor @ jnp.mean(slopes, axis=0)  # in posterior sds
                step = step / jnp.maximum(1.0, jnp.linalg.norm(step))
                return mean.at[inner].add(jnp.where(jnp.all(jnp.isfinite(step)), step @ factor, 0.0)), None

            return jax.lax.scan(climb, mode, length=CLIMBS)[0]

        def given(start, key, value) -> Point:
            """All else at one value of the outer sites."""

            def evaluate(z):
                here = local(space, model, data, z)
                block = jnp.eye(len(z)).at[np.ix_(inner, inner)].set(here.curvature[np.ix_(inner, inner)])
                return Local(here.log_joint, here.gradient.at[outer].set(0.0), block)

            found = find_mode(
                evaluate, start.at[outer].set(value)[None], unit, self.steps, patience=0, tolerance=ENOUGH
            )
            factor = gaussians.inverse_factor(found.local.curvature[np.ix_(inner, inner)])
            density = gaussians.log_evidence(found.local.log_joint, factor)
            usable = jnp.isfinite(density) & (found.decrement < 2e-4)
            mean = moved(key, found.point, factor)
            return Point(found.point, mean, factor, jnp.where(usable, density, -jnp.inf))

        def tried(proposal: ImportanceProposal, start, key) -> tuple[Float[Array, "K M"], Point]:
            value_key, node_key = jax.random.split(key)
            values = proposal.distribution.sample(value_key, (self.points,))
            return values, jax.vmap(given, (None, 0, 0))(start, jax.random.split(node_key, self.points), values)

        def weighed(known: Known, done) -> Float[Array, " N"]:
            """Log weights of all values so far against the mixture of their proposals."""
            values = known.values.reshape(-1, len(outer))
            proposed = jax.vmap(lambda p: p.distribution.log_prob(values))(known.proposals)  # (rounds, values)
            proposed = jnp.where((jnp.arange(self.rounds) < done)[:, None], proposed, -jnp.inf)
            return known.found.log_density.reshape(-1) - logsumexp(proposed, axis=0) + jnp.log(done)

        def round_of(carry, key_and_number):  # one copy of the model is compiled
            known, proposal, start = carry
            key, number = key_and_number
            new = Known(proposal, *tried(proposal, start, key))
            known = jax.tree.map(lambda all_, own: all_.at[number].set(own), known, new)
            weights = weighed(known, number + 1.0)
            modes = known.found.mode.reshape(-1, space.size)
            start = modes[jnp.argmax(known.found.log_density.reshape(-1))]
            return (known, _matched(known.values.reshape(-1, len(outer)), weights, proposal), start), None

        first = ImportanceProposal(middle[outer], jnp.diag(unit[outer]))
        shapes = jax.eval_shape(lambda k: Known(first, *tried(first, middle, k)), keys[0])
        nothing = jax.tree.map(lambda x: jnp.zeros((self.rounds, *x.shape), x.dtype), shapes)
        nothing = eqx.tree_at(lambda k: k.found.log_density, nothing, replace_fn=lambda x: x - jnp.inf)
        carry = (nothing, first, middle)
        (known, _, _), _ = jax.lax.scan(round_of, carry, (jnp.stack(keys), jnp.arange(self.rounds)))
        weights = weighed(known, float(self.rounds))
        found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), known.found)
        share = jax.nn.softmax(weights)
        even = (jnp.arange(self.draws) + jax.random.uniform(pick_key)) / self.draws
        pick = jnp.searchsorted(jnp.cumsum(share), even * jnp.sum(share)).clip(0, len(share) - 1)
        noise = jax.random.normal(noise_key, (self.draws, len(inner)))
        points = found.mean[pick].at[:, inner].add(jnp.einsum("sab,sa->sb", found.factor[pick], noise))
        log_evidence = logsumexp(weights) - jnp.log(len(weights))
        return NestedPosterior(model, data, space, points, log_evidence, 1 / jnp.sum(share**2))


def _matched(values: Float[Array, "K M"], weights: Float[Array, " K"], last: ImportanceProposal) -> ImportanceProposal:
    """The proposal with the moments of weighted values; of few in effect, not much narrower than the last one."""
    share = jax.nn.softmax(weights)
    in_effect, center = 1 / jnp.sum(share**2), share @ values
    rest = (values - center) * jnp.sqrt(share)[:, None]
    spread = rest.T @ rest * in_effect / jnp.maximum(in_effect - 1, 0.5)
    return ImportanceProposal(center, jnp.linalg.cholesky(spread + last.lower @ last.lower.T / (16 * in_effect)))


class NestedPosterior(DrawsPosterior):
    """Draws, each of the Gaussian at one value of the explored sites.

    Attributes:
        log_evidence: by importance sampling over the explored sites, nats.
        points_in_effect: what the proposals were worth as independent draws of the explored sites.
    """

    log_evidence: Float[Array, ""]
    points_in_effect: Float[Array, ""]

    def __init__(self, model, data, space: UnconstrainedSpace, points: Float[Array, "S P"], log_evidence, in_effect):
        status = jnp.where(in_effect >= 20, Status.OK, Status.NOT_CONVERGED)
        status = jnp.where(jnp.isfinite(log_evidence), status, Status.NONFINITE)
        super().__init__(model, data, space, points[None], {}, status, "NestedLaplace")
        self.log_evidence, self.points_in_effect = log_evidence, in_effect

    def findings(self):
        return status_reasons(self.status), {}

    def facts(self) -> dict[str, float]:
        return {"log_evidence": float(self.log_evidence), "points_in_effect": float(self.points_in_effect)}


def _names(names: Sequence[str] | str | Callable[[str], bool]) -> tuple[str, ...] | Callable[[str], bool]:
    return (names,) if isinstance(names, str) else names if callable(names) else tuple(names)
