"""What is made of a function prior at points, and of data: the three objectives of function-space inference."""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Float

from physppl.inference.function_space import (
    Points,
    Told,
    Weights,
    in_units,
    local_sd,
    missed,
    missing_variance,
    regressed,
    ridged,
    spread,
    square_factor,
)
from physppl.internal import gaussians


class FunctionObjective(eqx.Module):
    """What makes a belief about weights of a function prior at points."""

    @abstractmethod
    def weights(self, points: Points) -> Weights:
        """The function prior as one about weights, which data then update exactly."""


class Projected(FunctionObjective):
    """The function prior regressed on the features.

    Exact moments: mean A mu and factor A F with the pseudo-inverse A of the features at the points. What the features
    miss becomes independent variance of the weights, so that over the points no variance is lost. The update with data
    is Bayesian linear regression.

    Attributes:
        ridge: of the pseudo-inverse.
    """

    ridge: float = eqx.field(default=1e-8, static=True)

    def weights(self, points: Points) -> Weights:
        own = regressed(points, self.ridge)
        slack = spread(points.features, missing_variance(points, own))
        return Weights(own.mean, square_factor(jnp.concatenate([own.factor, jnp.diag(slack)], axis=1)))


class JointKL(FunctionObjective):
    """The Kullback-Leibler divergence over all the points jointly, correlations between them included.

    Of q(f) = N(Phi m, Phi S Phi') from p(f) = N(mu, F F' + nugget^2 s^2) at the points, with s the prior's sd at each,
    as the noise that q needs to have a density too goes to zero (its entropy is then that of the weights, up to a
    constant). Without data the minimum is precision Phi' K^-1 Phi and its weighted least squares, which data update
    exactly: no collapse. It is the prior conditioned on having no part outside the features' span, but for the nugget:
    what features miss makes it surer.

    Attributes:
        nugget: sd of what the prior leaves free at each point, in units of its sd there.
        ridge: as of `Projected`.
    """

    nugget: float = eqx.field(default=0.05, static=True)
    ridge: float = eqx.field(default=1e-8, static=True)

    def __check_init__(self):
        if not 0 < self.nugget < np.inf:
            raise ValueError(
                f"JointKL: nugget must be positive prior sds; got {self.nugget}. Without it K is singular."
            )

    def weights(self, points: Points) -> Weights:
        sd = self.nugget * local_sd(points.factor)
        white = in_units(points, sd)
        own = regressed(white, self.ridge)
        # In coordinates along the span and across it, p's covariance is I + [T; F][T; F]': condition on zero across.
        mean, factor = missed(white, own)
        mean, factor = mean.reshape(-1), factor.reshape(-1, factor.shape[-1])
        across = jnp.linalg.cholesky(jnp.eye(factor.shape[1]) + factor.T @ factor)
        kept = solve_triangular(across, own.factor.T, lower=True).T  # A F J^-1/2'
        shift = kept @ solve_triangular(across, factor.T @ mean, lower=True)
        tall = white.features.reshape(-1, white.features.shape[-1])
        lower = jnp.linalg.cholesky(ridged(tall.T @ tall, self.ridge))
        free = gaussians.lower_inverse(lower).T
        return Weights(own.mean - shift, square_factor(jnp.concatenate([kept, free], axis=1)))


class Printed(FunctionObjective):
    """Equation 4 of the SIM2GP paper, as printed: E_q log p(data | f) - beta E_rho KL[q(y | x) || p(y | x)].

    The divergence is of noisy outputs at one point at a time, averaged over rho, with the prior's full covariance
    between outputs there and the likelihood's noise in q and p. The mean solves a linear equation and the covariance a
    concave problem. The optimum has no covariance at all once the data's Gram matrix exceeds that of the measure:
    it is here to be looked at, not to be relied on.

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

    def weights(self, points: Points) -> Weights:
        """Of `Projected`: by its evidence a noise that is not known is chosen."""
        return Projected(self.ridge).weights(points)

    def solve(self, points: Points, told: Told, noise: Float[Array, " D"]) -> Weights:
        """The optimum: mean in closed form, covariance by minorise-maximise steps, which never descend.

        With costs C = H + beta Q of the covariance, S = C^-1/2 T C^-1/2 and the slope G of the log determinants, a step
        is T <- (T G T)^1/2: log det(A + Phi U^-1 Phi') is convex in U, and this is the maximum over its tangent.

        Args:
            told: by data, of weights that are themselves standard normal.
            noise: sd of each output.
        """
        precision = self._precision(points, noise)
        cost = jnp.tensordot(noise**-2, told.gram, 1) + self.beta * _mean_gram(points.features, precision)
        slope = noise**-2 @ told.slope
        slope = slope + self.beta * jnp.einsum("mdp,mde,me->p", points.features, precision, points.mean) / len(
            precision
        )
        lower = jnp.linalg.cholesky(ridged(cost, self.ridge))
        white = jnp.swapaxes(solve_triangular(lower, points.features.reshape(-1, len(cost)).T, lower=True), 0, 1)
        white = white.reshape(points.features.shape)

        def step(_, scatter):  # T
            within = white @ scatter @ jnp.swapaxes(white, 1, 2) + jnp.diag(noise**2)
            gram = self.beta * _mean_gram(white, jnp.linalg.inv(within))
            return _root(scatter @ gram @ scatter)

        root = _root(jax.lax.fori_loop(0, self.iterations, step, jnp.eye(len(cost))))
        return Weights(cho_solve((lower, True), slope), solve_triangular(lower, root, lower=True, trans=1))

    def value(self, points: Points, told: Told, noise: Float[Array, " D"], weights: Weights) -> Float[Array, ""]:
        """The objective, nats."""
        mean, factor = weights
        square = told.square - 2 * told.slope @ mean + jnp.einsum("p,dpq,q->d", mean, told.gram, mean)
        square = square + jnp.einsum("pk,dpq,qk->d", factor, told.gram, factor)
        fit = -0.5 * jnp.sum(square / noise**2 + told.rows * jnp.log(2 * jnp.pi * noise**2))
        precision = self._precision(points, noise)
        within = gaussians.outer(points.features @ factor) + jnp.diag(noise**2)
        error = points.mean - points.features @ mean
        apart = jnp.einsum("mde,med->m", precision, within) + jnp.einsum("md,mde,me->m", error, precision, error)
        divergence = 0.5 * (apart - len(noise) - jnp.linalg.slogdet(precision)[1] - jnp.linalg.slogdet(within)[1])
        return fit - self.beta * jnp.mean(divergence)

    def _precision(self, points: Points, noise) -> Float[Array, "M D D"]:
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
