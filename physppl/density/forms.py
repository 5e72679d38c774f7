"""Two forms in which a posterior is held in unconstrained space: a Gaussian, or draws."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from physppl.density.mode import Mode
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.internal import gaussians

CONVERGED = 2e-4  # squared posterior sds of the remaining step, below which a search has ended at its mode
SAME = 0.3  # nats of evidence below which two modes are as good as one another
FLAT = 0.5  # nats: where a density falls by less over two sds, its own sds are twice those of its curvature


class FoundModes(NamedTuple):
    """Modes (T, P) that the searches of a fit found, the best among them, with their marginal sds and log evidences.

    Log evidence is -inf for a search that did not end at a mode.
    """

    points: Float[Array, "T P"]
    sds: Float[Array, "T P"]
    log_evidence: Float[Array, " T"]

    @staticmethod
    def of(modes: Mode) -> "FoundModes":
        """Results (T, ...) of searches, by their curvature."""
        factors = jax.vmap(gaussians.inverse_factor)(modes.local.curvature)
        evidence = jax.vmap(gaussians.log_evidence)(modes.local.log_joint, factors)
        at_mode = jnp.isfinite(evidence) & (modes.decrement < 1.0)
        sds = jnp.sqrt(jnp.sum(factors**2, axis=1))
        return FoundModes(modes.point, sds, jnp.where(at_mode, evidence, -jnp.inf))

    def best(self, modes: Mode) -> Array:
        """Index of the mode of the largest evidence; of those within SAME nats of it, of the most exact search."""
        best = jnp.max(self.log_evidence)
        exact = jnp.argmin(jnp.where(self.log_evidence >= best - SAME, modes.decrement, jnp.inf))
        return jnp.where(jnp.isfinite(best), exact, jnp.argmax(modes.local.log_joint))


class GaussianForm(NamedTuple):
    """N(mode, W' W) in unconstrained space.

    Attributes:
        space: the model's sites as a vector of size P.
        mode: (P,).
        factor: W (R, P); triangular where R is P.
        decrement: squared length, in posterior sds, of the next step of its search; None without a search.
        by_evidence: True where some coordinates maximise the evidence: the joint density has its maximum elsewhere.
        linearised: True where its functions are linear in z, so that the density far from the mode does not matter.
        recursive: True where the search was on new data alone, with the posterior before them as its prior.
        found: modes that its searches found, or None.
        drop: fall of the log density, nats, two sds from the mode where it falls least of what the data leave open;
            None where nobody looked. Of a Gaussian 2.
    """

    space: UnconstrainedSpace
    mode: Float[Array, " P"]
    factor: Float[Array, "R P"]
    decrement: Float[Array, ""] | None = None
    by_evidence: bool = False
    linearised: bool = False
    recursive: bool = False
    found: FoundModes | None = None
    drop: Float[Array, ""] | None = None

    def moments(self) -> tuple[Float[Array, " P"], Float[Array, "P P"]]:
        """Mean (P,) and covariance (P, P)."""
        return self.mode, self.factor.T @ self.factor


class DrawsForm(NamedTuple):
    """Equally weighted draws in unconstrained space.

    Attributes:
        space: the model's sites as a vector of size P.
        points: (chains, draws, P).
        found: modes that the searches of its starts found, or None.
    """

    space: UnconstrainedSpace
    points: Float[Array, "C S P"]
    found: FoundModes | None = None

    def moments(self) -> tuple[Float[Array, " P"], Float[Array, "P P"]]:
        """Mean (P,) and covariance (P, P) of the draws."""
        points = self.points.reshape(-1, self.points.shape[-1])
        return jnp.mean(points, axis=0), jnp.atleast_2d(jnp.cov(points.T))


Form = GaussianForm | DrawsForm
