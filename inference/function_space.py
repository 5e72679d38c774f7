"""The linear algebra of function-space inference, on arrays alone.

Functions are f(x) = Phi(x) w with Gaussian weights w; a function prior is Gaussian at M points of a measure rho, with
mean (M, D) and factor (M, D, R), whose outer product is its covariance. Outputs are in units of their scales. A
distribution over weights is a mean and a factor too, so that a singular covariance needs no inverse.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.linalg import cho_solve
from jaxtyping import Float

from physppl.internal import gaussians
from physppl.internal.choices import Choices


class PriorPoints(NamedTuple):
    """A Gaussian function prior at M points, and the features there."""

    features: Float[Array, "M D P"]
    mean: Float[Array, "M D"]
    factor: Float[Array, "M D R"]


class Weights(NamedTuple):
    """The distribution N(mean, factor factor') of the weights."""

    mean: Float[Array, " P"]
    factor: Float[Array, "P K"]


class SufficientStatistics(NamedTuple):
    """Sums over the data's rows that determine the posterior of e in weights = mean + factor e, e standard normal.

    With rows Psi = Phi factor and residuals r = y - Phi mean of each output: Psi' Psi, Psi' r, r' r and the count.
    """

    gram: Float[Array, "D K K"]
    slope: Float[Array, "D K"]
    square: Float[Array, " D"]
    rows: Float[Array, ""]


def least_squares(features: Float[Array, "M D P"], values: Float[Array, "M D K"], ridge: float) -> Float[Array, "P K"]:
    """Least-squares weights for each column; two rounds of iterative refinement remove the ridge's bias.

    Args:
        ridge: relative to the features' mean square, small: it bounds weights in directions that features do not span.
    """
    tall, targets = features.reshape(-1, features.shape[-1]), values.reshape(-1, values.shape[-1])
    gram, slope = tall.T @ tall, tall.T @ targets
    lower = jnp.linalg.cholesky(add_ridge(gram, ridge))
    weights = cho_solve((lower, True), slope)
    for _ in range(2):
        weights = weights + cho_solve((lower, True), slope - gram @ weights)
    return weights


def prior_residuals(points: PriorPoints, weights: Weights) -> tuple[Float[Array, "M D"], Float[Array, "M D K"]]:
    """Residuals of the prior's mean and factor after projection on the features."""
    return points.mean - points.features @ weights.mean, points.factor - points.features @ weights.factor


def residual_variance(points: PriorPoints, weights: Weights) -> Float[Array, " D"]:
    """Mean square over the points, (D,), of the prior's functions outside the span of the features."""
    mean, factor = prior_residuals(points, weights)
    return jnp.mean(mean**2 + jnp.sum(factor**2, axis=-1), axis=0)


def independent_sds(features: Float[Array, "M D P"], variance: Float[Array, " D"]) -> Float[Array, " P"]:
    """Sds of independent weights that give the functions this variance (D,), on average over the points.

    Each weight serves the outputs in proportion to its features there; exact where it serves one.
    """
    square = jnp.mean(features**2, axis=0)
    share = square / jnp.maximum(jnp.sum(square, axis=0), jnp.finfo(square.dtype).tiny)
    return jnp.sqrt((variance / jnp.sum(share * square, axis=1)) @ share)


class Slack(Choices):
    """A Gaussian process added to the function prior, for discrepancies that the prior's functions cannot represent.

    Independent between outputs, squared exponential (the sim-to-real prior of SIM-FSVGD, J. Rothfuss et al., 2024).

    Attributes:
        lengthscale: in a network's inputs: sines and cosines of angles, coordinates in units of their scales, actions
            from -1 to 1.
        scale: sd of the change over one step, in units of the coordinates' scales: one number, or one of each.
    """

    lengthscale: float = eqx.field(default=1.0, static=True)
    scale: float | tuple[float, ...] = eqx.field(default=0.01, static=True)

    def __check_init__(self):
        scale = np.array(self.scale)
        if not (0 < self.lengthscale < np.inf and np.all((0 < scale) & (scale < np.inf))):
            raise ValueError(f"Slack needs lengthscale > 0 and scale > 0; got {self.lengthscale} and {self.scale}.")

    def factor(self, inputs: Float[Array, "M I"], outputs: int) -> Float[Array, "M D K"]:
        """Factor of the covariance at points, with K = M D columns.

        Raises:
            ValueError: where the number of scales is not that of outputs.
        """
        if np.ndim(self.scale) and np.shape(self.scale) != (outputs,):
            raise ValueError(f"Slack: scale has {np.size(self.scale)} entries; the state has {outputs} coordinates.")
        square = jnp.sum((inputs[:, None] - inputs) ** 2, axis=-1)
        lower = jnp.linalg.cholesky(jnp.exp(-0.5 * square / self.lengthscale**2) + 1e-9 * jnp.eye(len(inputs)))
        return jnp.einsum(
            "mk,de->mdke", lower, jnp.diag(jnp.broadcast_to(jnp.asarray(self.scale), (outputs,)))
        ).reshape(len(inputs), outputs, -1)


def typical(factor: Float[Array, "M D R"]) -> Float[Array, " D"]:
    """Root-mean-square prior sd of each output over the points, plus 1e-8 for a prior of zero variance."""
    return jnp.sqrt(jnp.mean(jnp.sum(factor**2, axis=-1), axis=0)) + 1e-8


def local_sd(factor: Float[Array, "M D R"]) -> Float[Array, "M D"]:
    """Prior sd of each output at each point, but no less than a hundredth of the typical one."""
    return jnp.maximum(jnp.sqrt(jnp.sum(factor**2, axis=-1)), 0.01 * typical(factor))


def square_factor(factor: Float[Array, "P K"]) -> Float[Array, "P P"]:
    """Square triangular factor of the same covariance."""
    size, columns = factor.shape
    lower = jnp.linalg.qr(factor.T, mode="r").T
    return lower if columns >= size else jnp.pad(lower, ((0, 0), (0, size - columns)))


def sufficient_statistics(
    weights: Weights, features: Float[Array, "N D P"], values: Float[Array, "N D"], valid: Float[Array, " N"]
) -> SufficientStatistics:
    """Sufficient statistics of the valid rows of the data."""
    design = jnp.swapaxes(features @ weights.factor, 0, 1)  # (D, N, K)
    residuals = ((values - features @ weights.mean) * valid[:, None]).T
    gram = jnp.swapaxes(design * valid[:, None], 1, 2) @ design
    slope, square = jnp.einsum("dnk,dn->dk", design, residuals), jnp.sum(residuals**2, axis=1)
    return SufficientStatistics(gram, slope, square, jnp.sum(valid))


def conditioned(
    statistics: SufficientStatistics, noise: Float[Array, " D"]
) -> tuple[Float[Array, " K"], Float[Array, "K K"]]:
    """Posterior mean and precision of e, standard normal before data; no prior covariance is inverted."""
    precision = jnp.eye(statistics.slope.shape[1]) + jnp.tensordot(noise**-2, statistics.gram, 1)
    lower = jnp.linalg.cholesky(precision)
    return cho_solve((lower, True), noise**-2 @ statistics.slope), precision


def log_evidence(statistics: SufficientStatistics, noise: Float[Array, " D"]) -> Float[Array, ""]:
    """Log marginal density of the values, in units of their scales."""
    mean, precision = conditioned(statistics, noise)
    square = jnp.sum(statistics.square / noise**2 + statistics.rows * jnp.log(2 * jnp.pi * noise**2))
    return -0.5 * (square - mean @ precision @ mean) - gaussians.half_log_det(precision)


def learn_features(
    features: Callable[[Array], Float[Array, "M F"]],
    start: Array,
    targets: Float[Array, "M K"],
    steps: int,
    rate: float,
    ridge: float = 1e-8,
) -> Array:
    """Parameters of features that span the targets: Adam on the log mean squared residual of least squares.

    The weights are eliminated at every step (variable projection: G. Golub, V. Pereyra, SIAM J. Numerical Analysis 10,
    1973). At their minimum the loss has no derivative in them, so they are constants of the gradient.
    """

    def loss(hidden):
        units = features(hidden)
        constant = jax.lax.stop_gradient(units)
        lower = jnp.linalg.cholesky(add_ridge(constant.T @ constant, ridge))
        residuals = targets - units @ cho_solve((lower, True), constant.T @ targets)
        return jnp.log(jnp.mean(residuals**2) + 1e-12)

    optimiser = optax.adam(optax.cosine_decay_schedule(rate, max(steps, 1)))

    def climb(carry, _):
        hidden, state = carry
        slope = jax.grad(loss)(hidden)
        change, state = optimiser.update(slope, state)
        usable = jnp.all(jnp.isfinite(slope))
        proposal = (optax.apply_updates(hidden, change), state)
        return jax.tree.map(lambda new, old: jnp.where(usable, new, old), proposal, carry), None

    (hidden, _), _ = jax.lax.scan(climb, (start, optimiser.init(start)), length=steps)
    return hidden


def scaled(points: PriorPoints, sd: Float[Array, "M D"]) -> PriorPoints:
    """Prior and features with each output at each point divided by `sd`."""
    return PriorPoints(points.features / sd[..., None], points.mean / sd, points.factor / sd[..., None])


def regress_prior(points: PriorPoints, ridge: float) -> Weights:
    """Least-squares weights of the prior's mean and factor on the features."""
    both = least_squares(points.features, jnp.concatenate([points.mean[..., None], points.factor], axis=-1), ridge)
    return Weights(both[:, 0], both[:, 1:])


def add_ridge(gram: Float[Array, "P P"], ridge: float) -> Float[Array, "P P"]:
    """Add `ridge` times the mean diagonal to the diagonal."""
    return gram + ridge * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))
