"""Ensembles: a posterior as a few members, each the mode of its own density."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference.diversity import Anchored, Diversity, Joint
from physppl.inference.draws import DrawsPosterior
from physppl.inference.search import Adam, Newton, Search
from physppl.internal.errors import fit_status
from physppl.language.transition import AbstractTransition
from physppl.posterior.backend import Backend
from physppl.posterior.base import MEAN_DRAWS, averaged, of_program
from physppl.posterior.posterior import Posterior
from physppl.posterior.verdict import StatusAlone

MAX_NEWTON_SIZE = 300  # parameters up to which Newton's linear algebra is cheaper than Adam
DRAWS = 15  # prior draws, at least, from which the prior's sds are estimated
SAME = 1e-6  # distance in unconstrained space below which members count as equal


class Ensemble(Backend["EnsemblePosterior"]):
    """A few members instead of a distribution, each the mode of its own density, all searched in parallel.

    Takes any NumPyro model: physics, physics with a residual, and networks alone (`residual(..., weights="all")`). The
    noise is a site like any other, learned by every member, one sd per output, and bounded as its prior is:
    `process_noise=dist.Uniform(0.001, 0.1)`.

    Attributes:
        members: how many.
        diversity: what makes them differ: `Anchored()`, `Bootstrap()` or `RandomStarts()`.
        search: `Newton()` or `Adam()`; by default Newton for programs of up to 300 parameters, and Adam beyond.
    """

    members: int = eqx.field(default=8, static=True)
    diversity: Diversity = Anchored()
    search: Search | None = None

    def __check_init__(self):
        if self.members < 2:
            raise ValueError(f"Ensemble needs members >= 2 to have a spread; got {self.members}.")
        if not isinstance(self.diversity, Diversity):
            raise TypeError(
                f"Ensemble: diversity must be Anchored(), Bootstrap() or RandomStarts(); got {self.diversity!r}."
            )
        if self.search is not None and not isinstance(self.search, Search):
            raise TypeError(f"Ensemble: search must be Newton(), Adam() or None; got {self.search!r}.")

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> "EnsemblePosterior":
        space = UnconstrainedSpace.of(model, data)
        search = self.search or (Newton() if space.size <= MAX_NEWTON_SIZE else Adam())
        draw_key, member_key, search_key = jax.random.split(key, 3)
        draws = space.prior_draws(draw_key, max(self.members, DRAWS), model, data)
        joint, keys = Joint(space, model, data), jax.random.split(member_key, self.members)
        members = jax.vmap(lambda k, draw: self.diversity.member(k, joint, draw))(keys, draws[: self.members])
        modes = search.run(search_key, joint, members, draws, self.diversity.near)
        status = fit_status(jnp.all(modes.converged), finite=jnp.all(jnp.isfinite(modes.log_joint)))
        return EnsemblePosterior(model, data, space, modes.points, modes.log_joint, status)


class EnsemblePosterior(StatusAlone, DrawsPosterior):
    """Equally weighted members.

    Attributes:
        log_joint: log density of each member (K,), by its own density.
    """

    log_joint: Float[Array, " K"]

    def __init__(self, model, data, space: UnconstrainedSpace, points: Float[Array, "K P"], log_joint, status):
        super().__init__(model, data, space, points[None], {}, status, "Ensemble")
        self.log_joint = log_joint

    def facts(self) -> dict[str, float]:
        """`spread`: sd between members in unconstrained space, root mean square over the program's parameters."""
        sd = np.std(np.asarray(self.points[0])[:, of_program(self.space)], axis=0, ddof=1)
        return {
            "members": float(self.points.shape[1]),
            "spread": float(np.sqrt(np.mean(sd**2))),
            "log_joint": float(np.mean(np.asarray(self.log_joint))),
        }

    def _several(self, key: PRNGKeyArray, count: int) -> AbstractTransition:
        """Members in random order, each as often as any other, plus or minus one."""
        member_key, recording_key = jax.random.split(key)
        order = jax.random.permutation(member_key, self.points.shape[1])
        points = self.points[0][order[jnp.arange(count) % len(order)]]
        return jax.vmap(self._in_new_recording)(jax.random.split(recording_key, count), points)

    def _mean(self) -> AbstractTransition:
        """Average over members, at most MEAN_DRAWS of them."""
        return averaged(self._several(jax.random.key(0), min(self.points.shape[1], MEAN_DRAWS)))

    def _entropy(self) -> Float[Array, ""]:
        """Entropy of a Gaussian with the members' sds and their correlations shrunk towards zero.

        Without shrinkage the covariance is singular where there are more parameters than members. The weight is the
        oracle approximating shrinkage (OAS) of Y. Chen et al., IEEE Trans. Signal Processing 58, 2010, equation 23:
        rho = min(1, ((1 - 2/p) tr(S^2) + tr(S)^2) / ((n + 1 - 2/p) (tr(S^2) - tr(S)^2 / p))), S the correlation
        matrix, tr(S) = p.
        """
        points = self.points[0][:, np.flatnonzero(of_program(self.space))]
        count, size = points.shape
        centred = points - jnp.mean(points, axis=0)
        sd = jnp.sqrt(jnp.sum(centred**2, axis=0) / (count - 1) + SAME**2)
        eigenvalues = jnp.linalg.svd(centred / sd, compute_uv=False) ** 2 / (count - 1)  # of the correlation matrix
        square = jnp.sum(eigenvalues**2)
        denominator = (count + 1 - 2 / size) * jnp.maximum(square - size, 1e-12)
        shrinkage = jnp.minimum(1.0, ((1 - 2 / size) * square + size**2) / denominator)
        shrunk = jnp.concatenate([eigenvalues, jnp.zeros(max(size - count, 0))]) * (1 - shrinkage) + shrinkage
        return jnp.sum(jnp.log(sd)) + 0.5 * jnp.sum(jnp.log(shrunk)) + 0.5 * size * (1 + jnp.log(2 * jnp.pi))


def disagreement(posterior: Posterior, states, actions, t=0.0) -> Float[Array, "*B D"]:
    """Epistemic sd of each output (..., D), in units of the coordinates' scales: process noise excluded.

    Of an ensemble it is the sd between the means of its members; of other posteriors, the sd between functions drawn.
    The information in an outcome, in nats and jointly over inputs, is `posterior.information_gain`.
    """
    _, factor = posterior.basis(states, actions, t)
    return jnp.linalg.norm(factor, axis=-1) / jnp.asarray(posterior.model.state.scale, factor.dtype)


def widest_disagreement(posterior: Posterior, states, actions, t=0.0) -> Float[Array, " *B"]:
    """Largest distance between the means of two members (...), in units of the coordinates' scales.

    Where it exceeds a threshold, a rollout has left the region of the data (R. Kidambi et al., "MOReL", NeurIPS 2020).

    Raises:
        TypeError: for other posteriors, for which the largest distance grows with the number of draws.
    """
    if not isinstance(posterior, EnsemblePosterior):
        raise TypeError(
            f"widest_disagreement compares the members of an ensemble; got a posterior by {posterior.method}. For any "
            "posterior use `disagreement`."
        )
    _, factor = posterior.basis(states, actions, t)  # (..., D, K): deviations of K members over sqrt(K - 1)
    scale = jnp.asarray(posterior.model.state.scale, factor.dtype)
    members = factor * jnp.sqrt(factor.shape[-1] - 1.0) / scale[:, None]
    return jnp.max(jnp.linalg.norm(members[..., :, None] - members[..., None, :], axis=-3), axis=(-2, -1))
