"""Two forms in which a posterior is held in unconstrained space: a Gaussian, or draws."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from physppl.density.unconstrained import UnconstrainedSpace


class GaussianForm(NamedTuple):
    """N(mode, W' W) in unconstrained space.

    Attributes:
        space: the model's sites as a vector of size P.
        mode: (P,).
        factor: W (R, P); triangular where R is P.
        decrement: squared length, in posterior sds, of the next step of its search; None without a search.
        by_evidence: True where some coordinates maximise the evidence: the joint density has its maximum elsewhere.
        linearised: True where its functions are linear in z, so that the density far from the mode does not matter.
    """

    space: UnconstrainedSpace
    mode: Float[Array, " P"]
    factor: Float[Array, "R P"]
    decrement: Float[Array, ""] | None = None
    by_evidence: bool = False
    linearised: bool = False

    def moments(self) -> tuple[Float[Array, " P"], Float[Array, "P P"]]:
        """Mean (P,) and covariance (P, P)."""
        return self.mode, self.factor.T @ self.factor


class DrawsForm(NamedTuple):
    """Equally weighted draws in unconstrained space.

    Attributes:
        space: the model's sites as a vector of size P.
        points: (chains, draws, P).
    """

    space: UnconstrainedSpace
    points: Float[Array, "C S P"]

    def moments(self) -> tuple[Float[Array, " P"], Float[Array, "P P"]]:
        """Mean (P,) and covariance (P, P) of the draws."""
        points = self.points.reshape(-1, self.points.shape[-1])
        return jnp.mean(points, axis=0), jnp.atleast_2d(jnp.cov(points.T))


Form = GaussianForm | DrawsForm
