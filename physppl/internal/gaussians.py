"""Linear algebra of Gaussian distributions, as pure functions of arrays."""

import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float


def inverse_factor(precision: Float[Array, "P P"]) -> Float[Array, "P P"]:
    """Inverse W of the precision's Cholesky factor, covariance = W' W; NaN where it is not positive definite."""
    return lower_inverse(jnp.linalg.cholesky(precision))


def lower_inverse(lower: Float[Array, "P P"]) -> Float[Array, "P P"]:
    """Inverse of a lower triangular matrix."""
    return solve_triangular(lower, jnp.eye(len(lower), dtype=lower.dtype), lower=True)


def factor_of(covariance: Float[Array, "P P"]) -> Float[Array, "P P"]:
    """Lower triangular W with covariance = W' W, as of `inverse_factor`; NaN where it is not positive definite."""
    return jnp.linalg.cholesky(covariance[::-1, ::-1]).T[::-1, ::-1]


def log_evidence(log_joint: Float[Array, ""], factor: Float[Array, "P P"]) -> Float[Array, ""]:
    """Laplace approximation of log p(data) at a mode (D. MacKay, Neural Computation 4, 1992).

    Args:
        log_joint: log p(data, z) at the mode.
        factor: inverse factor of the curvature there.
    """
    half_log_det_covariance = jnp.sum(jnp.log(jnp.diagonal(factor)))
    return log_joint + 0.5 * len(factor) * jnp.log(2 * jnp.pi) + half_log_det_covariance


def information_gain(factor: Float[Array, "M R"], noise: Float[Array, " M"]) -> Float[Array, ""]:
    """Mutual information, nats, of M Gaussian values with covariance F F' and their measurements with sd `noise`.

    0.5 logdet(I + F' diag(1/noise^2) F), which for a linear model is half the log ratio of the precision determinants.
    """
    scaled = factor / noise[:, None]
    gram = scaled.T @ scaled if scaled.shape[0] >= scaled.shape[1] else scaled @ scaled.T
    return half_log_det(jnp.eye(len(gram), dtype=gram.dtype) + gram)


def half_log_det(positive: Float[Array, "P P"]) -> Float[Array, ""]:
    """Half the log determinant of a positive definite matrix; NaN for any other matrix."""
    return jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(positive))))


def entropy(covariance: Float[Array, "P P"]) -> Float[Array, ""]:
    """Entropy, nats, of a Gaussian."""
    return half_log_det(covariance) + 0.5 * len(covariance) * (1 + jnp.log(2 * jnp.pi))


def outer(factor: Float[Array, "*B D R"]) -> Float[Array, "*B D D"]:
    """Outer product F F' of each factor."""
    return factor @ jnp.swapaxes(factor, -1, -2)
