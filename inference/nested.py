"""Nested Laplace: importance sampling of a few sites, and a Gaussian of all other sites given them.

In a hierarchy the joint mode of a population's spread lies far from its posterior's mass, because the joint density
does not count the volume of the members' offsets, which shrinks with the spread, and one Gaussian cannot follow the
ridge between spread and offsets. Conditionally on the spreads both difficulties are gone: with outer sites theta and
inner sites x, p(theta | y) is proportional to p(x, theta, y) / q(x | theta, y) at the mode of x, q the Laplace
approximation (H. Rue, S. Martino, N. Chopin, J. Royal Statistical Society B 71, 2009). The skewness that remains is
corrected in the mean: each Gaussian is moved to minimise its Kullback-Leibler divergence from the density at fixed
covariance (J. van Niekerk, H. Rue, J. Machine Learning Research 25, 2024).
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
from physppl.density.forms import CONVERGED
from physppl.density.mode import find_mode, unit_of
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference.draws import DrawsPosterior
from physppl.internal import gaussians
from physppl.internal.errors import closest, fit_status
from physppl.posterior.backend import Backend
from physppl.posterior.verdict import StatusAlone

DF = 5.0  # of the Student-t proposals, whose tails must be heavier than the posterior's
TOLERANCE = 1e-3  # of a search, in posterior sds; the error of the evidence is its square
PAIRS, CORRECTIONS = 8, 3  # antithetic pairs, and steps, of the correction of the mean


class Conditional(NamedTuple):
    """The Gaussian of the inner sites at one value of the outer sites, and log p(value, data)."""

    mode: Float[Array, " P"]
    mean: Float[Array, " P"]
    factor: Float[Array, "Q Q"]
    log_density: Float[Array, ""]


class ImportanceProposal(NamedTuple):
    """A multivariate Student-t with DF degrees of freedom."""

    center: Float[Array, " M"]
    lower: Float[Array, "M M"]

    @property
    def distribution(self) -> dist.MultivariateStudentT:
        return dist.MultivariateStudentT(DF, self.center, self.lower)


class Rounds(NamedTuple):
    """Results of all rounds: proposals (R, ...), values (R, K, M) of the outer sites, conditionals (R, K, ...)."""

    proposals: ImportanceProposal
    values: Array
    conditionals: Conditional


class NestedLaplace(Backend["NestedPosterior"]):
    """Adaptive importance sampling of some sites, with a Laplace approximation of all others at each sample.

    (J. Cornuet et al., "Adaptive Multiple Importance Sampling", Scandinavian J. Statistics 39, 2012.) Rounds of
    proposals, the first as wide as the prior, each later one with the weighted moments of all samples so far; for each
    sample a search for the mode of the other sites, and an importance weight against the mixture of all rounds. The
    posterior is represented by draws from the weighted Gaussians, their means corrected for skewness. For a hierarchy
    the outer sites are the population's spreads.

    Attributes:
        outer: names of the sites to sample, or a predicate on names; six numbers altogether, at most.
        points: samples in each round.
        rounds: number of rounds.
        steps: evaluations of each search, at most.
        draws: draws that represent the posterior.
    """

    outer: tuple[str, ...] | Callable[[str], bool] = eqx.field(static=True, converter=lambda names: _names(names))
    points: int = eqx.field(default=48, static=True)
    rounds: int = eqx.field(default=6, static=True)
    steps: int = eqx.field(default=50, static=True)
    draws: int = eqx.field(default=1000, static=True)

    def __check_init__(self):
        if not self.outer:
            raise ValueError("NestedLaplace: outer must name the sites to explore, e.g. ('mass_spread',).")
        if self.points < 16 or min(self.rounds, self.steps, self.draws) < 1:
            raise ValueError(
                "NestedLaplace needs points >= 16 and rounds, steps, draws >= 1; got "
                f"{self.points}, {self.rounds}, {self.steps} and {self.draws}."
            )

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> "NestedPosterior":
        """Fit.

        Raises:
            KeyError: for a name that is no latent site, with close matches.
            ValueError: where the outer sites are all sites, or more than six numbers.
        """
        space = UnconstrainedSpace.of(model, data)
        for name in () if callable(self.outer) else self.outer:
            if name not in space.names:
                raise KeyError(f"NestedLaplace: the model has no latent site {name!r}.{closest(name, space.names)}")
        is_outer = space.where(self.outer if callable(self.outer) else self.outer.__contains__)
        outer, inner = np.flatnonzero(is_outer), np.flatnonzero(~is_outer)
        if not len(inner) or not 1 <= len(outer) <= 6:
            raise ValueError(
                f"NestedLaplace: outer has {len(outer)} of the {space.size} numbers of {', '.join(space.names)}; it "
                "must have one to six and leave some out. Explore the population's spreads only."
            )
        prior_key, *keys, pick_key, noise_key = jax.random.split(key, 3 + self.rounds)
        draws = space.prior_draws(prior_key, self.points, model, data)
        unit, middle = unit_of(draws), jnp.median(draws, axis=0)

        # KL[N(m, W' W) || p] is minimal in m where E[grad log p(m + W' e)] = 0, e standard normal. Fixed-point steps
        # m <- m + W' W E[grad log p], the expectation over antithetic nodes; no step is longer than one posterior sd.
        def corrected_mean(key, mode, factor):
            half = jax.random.normal(key, (PAIRS, len(inner)))
            nodes = jnp.concatenate([half, -half]) @ factor
            slope = jax.grad(lambda z: space.log_joint(model, z, data))

            def correct(mean, _):
                slopes = jax.vmap(lambda node: slope(mean.at[inner].add(node))[inner])(nodes)
                step = factor @ jnp.mean(slopes, axis=0)  # in posterior sds
                step = step / jnp.maximum(1.0, jnp.linalg.norm(step))
                return mean.at[inner].add(jnp.where(jnp.all(jnp.isfinite(step)), step @ factor, 0.0)), None

            return jax.lax.scan(correct, mode, length=CORRECTIONS)[0]

        def conditional(start, key, value) -> Conditional:
            def evaluate(z):
                density = local(space, model, data, z)
                block = jnp.eye(len(z)).at[np.ix_(inner, inner)].set(density.curvature[np.ix_(inner, inner)])
                return Local(density.log_joint, density.gradient.at[outer].set(0.0), block)

            mode = find_mode(
                evaluate, start.at[outer].set(value)[None], unit, self.steps, patience=0, tolerance=TOLERANCE
            )
            factor = gaussians.inverse_factor(mode.local.curvature[np.ix_(inner, inner)])
            log_density = gaussians.log_evidence(mode.local.log_joint, factor)
            usable = jnp.isfinite(log_density) & (mode.decrement < CONVERGED)
            mean = corrected_mean(key, mode.point, factor)
            return Conditional(mode.point, mean, factor, jnp.where(usable, log_density, -jnp.inf))

        def sample(proposal: ImportanceProposal, start, key) -> tuple[Float[Array, "K M"], Conditional]:
            value_key, node_key = jax.random.split(key)
            values = proposal.distribution.sample(value_key, (self.points,))
            return values, jax.vmap(conditional, (None, 0, 0))(start, jax.random.split(node_key, self.points), values)

        # Deterministic mixture weights p(theta, y) / mean over rounds r < done of q_r(theta) (A. Owen, Y. Zhou, J.
        # American Statistical Association 95, 2000).
        def log_weights(rounds: Rounds, done) -> Float[Array, " N"]:
            values = rounds.values.reshape(-1, len(outer))
            log_proposals = jax.vmap(lambda p: p.distribution.log_prob(values))(rounds.proposals)  # (rounds, values)
            log_proposals = jnp.where((jnp.arange(self.rounds) < done)[:, None], log_proposals, -jnp.inf)
            return rounds.conditionals.log_density.reshape(-1) - logsumexp(log_proposals, axis=0) + jnp.log(done)

        def run_round(carry, key_and_number):  # one copy of the model is compiled
            rounds, proposal, start = carry
            key, number = key_and_number
            new = Rounds(proposal, *sample(proposal, start, key))
            rounds = jax.tree.map(lambda all_, row: all_.at[number].set(row), rounds, new)
            modes = rounds.conditionals.mode.reshape(-1, space.size)
            start = modes[jnp.argmax(rounds.conditionals.log_density.reshape(-1))]
            values = rounds.values.reshape(-1, len(outer))
            return (rounds, _match_moments(values, log_weights(rounds, number + 1.0), proposal), start), None

        first = ImportanceProposal(middle[outer], jnp.diag(unit[outer]))
        shapes = jax.eval_shape(lambda k: Rounds(first, *sample(first, middle, k)), keys[0])
        blank = jax.tree.map(lambda x: jnp.zeros((self.rounds, *x.shape), x.dtype), shapes)
        blank = eqx.tree_at(lambda r: r.conditionals.log_density, blank, replace_fn=lambda x: x - jnp.inf)
        (rounds, _, _), _ = jax.lax.scan(run_round, (blank, first, middle), (jnp.stack(keys), jnp.arange(self.rounds)))
        weights = log_weights(rounds, float(self.rounds))
        conditionals = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rounds.conditionals)
        share = jax.nn.softmax(weights)
        even = (jnp.arange(self.draws) + jax.random.uniform(pick_key)) / self.draws  # systematic resampling
        pick = jnp.searchsorted(jnp.cumsum(share), even * jnp.sum(share)).clip(0, len(share) - 1)
        noise = jax.random.normal(noise_key, (self.draws, len(inner)))
        shifts = jnp.einsum("sab,sa->sb", conditionals.factor[pick], noise)
        points = conditionals.mean[pick].at[:, inner].add(shifts)
        log_evidence = logsumexp(weights) - jnp.log(len(weights))
        return NestedPosterior(model, data, space, points, log_evidence, 1 / jnp.sum(share**2))


def _match_moments(
    values: Float[Array, "K M"], log_weights: Float[Array, " K"], last: ImportanceProposal
) -> ImportanceProposal:
    """Proposal with the moments of the weighted values; the smaller their effective number, the wider."""
    share = jax.nn.softmax(log_weights)
    effective, center = 1 / jnp.sum(share**2), share @ values
    deviations = (values - center) * jnp.sqrt(share)[:, None]
    covariance = deviations.T @ deviations * effective / jnp.maximum(effective - 1, 0.5)
    return ImportanceProposal(center, jnp.linalg.cholesky(covariance + last.lower @ last.lower.T / (16 * effective)))


class NestedPosterior(StatusAlone, DrawsPosterior):
    """Draws, each from the Gaussian at one value of the explored sites.

    Attributes:
        log_evidence: by importance sampling over the explored sites, nats.
        points_in_effect: effective sample size of the explored sites.
    """

    log_evidence: Float[Array, ""]
    points_in_effect: Float[Array, ""]

    def __init__(self, model, data, space: UnconstrainedSpace, points: Float[Array, "S P"], log_evidence, in_effect):
        status = fit_status(in_effect >= 20, finite=jnp.isfinite(log_evidence))
        super().__init__(model, data, space, points[None], {}, status, "NestedLaplace")
        self.log_evidence, self.points_in_effect = log_evidence, in_effect

    def facts(self) -> dict[str, float]:
        return {"log_evidence": float(self.log_evidence), "points_in_effect": float(self.points_in_effect)}


def _names(names: Sequence[str] | str | Callable[[str], bool]) -> tuple[str, ...] | Callable[[str], bool]:
    return (names,) if isinstance(names, str) else names if callable(names) else tuple(names)
