"""The three objectives of function-space inference: from a function prior at points to Gaussian weights."""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Float

from physppl.inference.function_space import (
    PriorPoints,
    SufficientStatistics,
    Weights,
    add_ridge,
    independent_sds,
    local_sd,
    prior_residuals,
    regress_prior,
    residual_variance,
    scaled,
    square_factor,
)
from physppl.internal import gaussians
from physppl.internal.choices import Choices


class FunctionObjective(Choices):
    """A rule that turns a function prior at points into a distribution over weights."""

    @abstractmethod
    def weights(self, points: PriorPoints) -> Weights:
        """The function prior as a Gaussian prior over weights, which data then update exactly."""


class Projected(FunctionObjective):
    """The function prior regressed on the features.

    Exact moments: mean A mu and factor A F with the pseudo-inverse A of the features at the points. The variance that
    the features do not span becomes independent variance of the weights, so that the total over the points is kept.
    The update with data is Bayesian linear regression.

    Attributes:
        ridge: of the pseudo-inverse, relative to the features' mean square.
    """

    ridge: float = eqx.field(default=1e-8, static=True)

    def weights(self, points: PriorPoints) -> Weights:
        projection = regress_prior(points, self.ridge)
        slack = independent_sds(points.features, residual_variance(points, projection))
        return Weights(projection.mean, square_factor(jnp.concatenate([projection.factor, jnp.diag(slack)], axis=1)))


class JointKL(FunctionObjective):
    """The Kullback-Leibler divergence over all the points jointly, correlations between them included.

    KL[q || p] of q(f) = N(Phi m, Phi S Phi') and p(f) = N(mu, K), K = F F' + nugget^2 s^2, at the points, with s the
    prior's sd at each, in the limit of zero noise added to q (its entropy is then that of the weights, up to a
    constant). Without data the minimum has precision Phi' K^-1 Phi and the mean of weighted least squares, which data
    update exactly: no collapse. It is the prior conditioned on lying in the features' span, up to the nugget, so that
    the prior's variance outside the span makes it narrower.

    Attributes:
        nugget: sd of independent noise added to the prior at each point, in units of its sd there.
        ridge: as of `Projected`.
    """

    nugget: float = eqx.field(default=0.05, static=True)
    ridge: float = eqx.field(default=1e-8, static=True)

    def __check_init__(self):
        if not 0 < self.nugget < np.inf:
            raise ValueError(
                f"JointKL: nugget must be positive prior sds; got {self.nugget}. Without it K is singular."
            )

    def weights(self, points: PriorPoints) -> Weights:
        sd = self.nugget * local_sd(points.factor)
        white = scaled(points, sd)
        projection = regress_prior(white, self.ridge)
        # Split f = along + across the features' span: in units of the nugget p has covariance I + [T; R][T; R]', with
        # T = Phi A F and the residual R = F - T. Conditioning on across = 0 gives weights with factor A F J^-1/2 and
        # the mean shifted by -A F J^-1 R' r, where J = I + R' R and r is the residual of the mean (Woodbury).
        mean, factor = prior_residuals(white, projection)
        mean, factor = mean.reshape(-1), factor.reshape(-1, factor.shape[-1])
        across = jnp.linalg.cholesky(jnp.eye(factor.shape[1]) + factor.T @ factor)
        conditioned = solve_triangular(across, projection.factor.T, lower=True).T  # A F J^-1/2'
        shift = conditioned @ solve_triangular(across, factor.T @ mean, lower=True)
        tall = white.features.reshape(-1, white.features.shape[-1])
        lower = jnp.linalg.cholesky(add_ridge(tall.T @ tall, self.ridge))
        nugget = gaussians.lower_inverse(lower).T
        return Weights(projection.mean - shift, square_factor(jnp.concatenate([conditioned, nugget], axis=1)))


class Printed(FunctionObjective):
    """Equation 4 of the SIM2GP paper, as printed: E_q log p(data | f) - beta E_rho KL[q(y | x) || p(y | x)].

    The divergence is of noisy outputs at one point at a time, averaged over rho, with the prior's full covariance
    between outputs there and the likelihood's noise in q and p. The mean solves a linear equation and the covariance a
    concave problem. The optimum has zero covariance once the data's Gram matrix exceeds that of the measure: for
    study, not for use.

    Attributes:
        beta: weight of the divergence; at 1 the prior counts as one observation.
        iterations: of the ascent for the covariance.
        ridge: as of `Projected`.
    """

    beta: float = eqx.field(default=1.0, static=True)
    iterations: int = eqx.field(default=300, static=True)
    ridge: float = eqx.field(default=1e-8, static=True)

    def __check_init__(self):
        if not 0 < self.beta < np.inf or self.iterations < 1:
            raise ValueError(f"Printed needs beta > 0 and iterations >= 1; got {self.beta} and {self.iterations}.")

    def weights(self, points: PriorPoints) -> Weights:
        """Weights of `Projected`, by whose evidence an unknown noise is chosen."""
        return Projected(self.ridge).weights(points)

    def solve(self, points: PriorPoints, statistics: SufficientStatistics, noise: Float[Array, " D"]) -> Weights:
        """The optimum: mean in closed form, covariance by minorise-maximise steps, which never decrease the objective.

        With costs C = H + beta Q of the covariance, S = C^-1/2 T C^-1/2 and the slope G of the log determinants, a step
        is T <- (T G T)^1/2: log det(A + Phi U^-1 Phi') is convex in U, and this is the maximum over its tangent.

        Args:
            statistics: of the data, for weights that are themselves standard normal.
            noise: sd of each output.
        """
        precision = self._precision(points, noise)
        cost = jnp.tensordot(noise**-2, statistics.gram, 1) + self.beta * _mean_gram(points.features, precision)
        slope = noise**-2 @ statistics.slope
        slope = slope + self.beta * jnp.einsum("mdp,mde,me->p", points.features, precision, points.mean) / len(
            precision
        )
        lower = jnp.linalg.cholesky(add_ridge(cost, self.ridge))
        white = jnp.swapaxes(solve_triangular(lower, points.features.reshape(-1, len(cost)).T, lower=True), 0, 1)
        white = white.reshape(points.features.shape)

        def step(_, scatter):  # T
            within = white @ scatter @ jnp.swapaxes(white, 1, 2) + jnp.diag(noise**2)
            gram = self.beta * _mean_gram(white, jnp.linalg.inv(within))
            return _root(scatter @ gram @ scatter)

        root = _root(jax.lax.fori_loop(0, self.iterations, step, jnp.eye(len(cost))))
        return Weights(cho_solve((lower, True), slope), solve_triangular(lower, root, lower=True, trans=1))

    def value(
        self, points: PriorPoints, statistics: SufficientStatistics, noise: Float[Array, " D"], weights: Weights
    ) -> Float[Array, ""]:
        """Value of the objective, nats."""
        mean, factor = weights
        square = statistics.square - 2 * statistics.slope @ mean
        square = square + jnp.einsum("p,dpq,q->d", mean, statistics.gram, mean)
        square = square + jnp.einsum("pk,dpq,qk->d", factor, statistics.gram, factor)
        fit = -0.5 * jnp.sum(square / noise**2 + statistics.rows * jnp.log(2 * jnp.pi * noise**2))
        precision = self._precision(points, noise)
        within = gaussians.outer(points.features @ factor) + jnp.diag(noise**2)
        error = points.mean - points.features @ mean
        distance = jnp.einsum("mde,med->m", precision, within) + jnp.einsum("md,mde,me->m", error, precision, error)
        divergence = 0.5 * (distance - len(noise) - jnp.linalg.slogdet(precision)[1] - jnp.linalg.slogdet(within)[1])
        return fit - self.beta * jnp.mean(divergence)

    def _precision(self, points: PriorPoints, noise) -> Float[Array, "M D D"]:
        """Inverse covariance of the prior's noisy outputs at each point."""
        return jnp.linalg.inv(gaussians.outer(points.factor) + jnp.diag(noise**2))


def _mean_gram(features: Float[Array, "M D P"], precision: Float[Array, "M D D"]) -> Float[Array, "P P"]:
    """Average of Phi' precision Phi."""
    weighted = (jnp.swapaxes(precision, 1, 2) @ features).reshape(-1, features.shape[-1])
    return weighted.T @ features.reshape(weighted.shape) / len(features)


def _root(positive: Float[Array, "P P"]) -> Float[Array, "P P"]:
    """Symmetric square root."""
    values, vectors = jnp.linalg.eigh(positive)
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0)) @ vectors.T
