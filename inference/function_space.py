"""The algebra of function-space inference: arrays in, arrays out, no model in sight.

Functions are f(x) = Phi(x) w with Gaussian weights w; a function prior is Gaussian at M points of a measure rho, with
mean (M, D) and factor (M, D, R), whose outer product is its covariance. Outputs are in units of their scales. A belief
about weights is a mean and a factor too, so that a covariance without full rank needs no inverse.
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


class Points(NamedTuple):
    """A Gaussian function prior at M points, and the features there."""

    features: Float[Array, "M D P"]
    mean: Float[Array, "M D"]
    factor: Float[Array, "M D R"]


class Weights(NamedTuple):
    """N(mean, factor factor')."""

    mean: Float[Array, " P"]
    factor: Float[Array, "P K"]


class Told(NamedTuple):
    """What data tell of weights mean + factor e, e standard normal: sums over rows, of each output by itself."""

    gram: Float[Array, "D K K"]
    slope: Float[Array, "D K"]
    square: Float[Array, " D"]
    rows: Float[Array, ""]


def regression(features: Float[Array, "M D P"], values: Float[Array, "M D K"], ridge: float) -> Float[Array, "P K"]:
    """Weights of least squares for each column; two rounds of refinement take out what the ridge bends.

    Args:
        ridge: in units of the features' mean square, small: it bounds weights in directions that features lack.
    """
    tall, targets = features.reshape(-1, features.shape[-1]), values.reshape(-1, values.shape[-1])
    gram, slope = tall.T @ tall, tall.T @ targets
    lower = jnp.linalg.cholesky(ridged(gram, ridge))
    weights = cho_solve((lower, True), slope)
    for _ in range(2):
        weights = weights + cho_solve((lower, True), slope - gram @ weights)
    return weights


def missed(points: Points, weights: Weights) -> tuple[Float[Array, "M D"], Float[Array, "M D K"]]:
    """What of the prior's mean and of its factor the weights do not reproduce."""
    return points.mean - points.features @ weights.mean, points.factor - points.features @ weights.factor


def missing_variance(points: Points, weights: Weights) -> Float[Array, " D"]:
    """Mean square over the points, (D,), of the part of the prior's functions that the weights do not reproduce."""
    mean, factor = missed(points, weights)
    return jnp.mean(mean**2 + jnp.sum(factor**2, axis=-1), axis=0)


def spread(features: Float[Array, "M D P"], variance: Float[Array, " D"]) -> Float[Array, " P"]:
    """Sds of independent weights that give the functions this variance (D,), on average over the points.

    Each weight serves the outputs in proportion to its features there; exact where it serves one.
    """
    square = jnp.mean(features**2, axis=0)
    share = square / jnp.maximum(jnp.sum(square, axis=0), jnp.finfo(square.dtype).tiny)
    return jnp.sqrt((variance / jnp.sum(share * square, axis=1)) @ share)


class Slack(eqx.Module):
    """A Gaussian process that is added to the function prior: what the prior's functions may lack.

    Independent between outputs, squared exponential (the sim-to-real prior of SIM-FSVGD, J. Rothfuss et al., 2024).

    Attributes:
        lengthscale: in a network's inputs: sines and cosines of angles, coordinates in units of their scales, actions
            from -1 to 1.
        scale: sd of the change over one step, in units of the coordinates' scales: one number, or one of each.
    """

    lengthscale: float = eqx.field(default=1.0, static=True)
    scale: float | tuple[float, ...] = eqx.field(default=0.01, static=True)

    def __check_init__(self):
        if not 0 < self.lengthscale < np.inf or not (
            np.isfinite(self.scale).all() and np.all(np.array(self.scale) > 0)
        ):
            raise ValueError(f"Slack needs lengthscale > 0 and scale > 0; got {self.lengthscale} and {self.scale}.")

    def factor(self, inputs: Float[Array, "M I"], outputs: int) -> Float[Array, "M D K"]:
        """Of its covariance at points, K = M D columns.

        Raises:
            ValueError: where there are other outputs than scales.
        """
        if np.ndim(self.scale) and np.shape(self.scale) != (outputs,):
            raise ValueError(f"Slack: scale has {np.size(self.scale)} entries; the state has {outputs} coordinates.")
        square = jnp.sum((inputs[:, None] - inputs) ** 2, axis=-1)
        lower = jnp.linalg.cholesky(jnp.exp(-0.5 * square / self.lengthscale**2) + 1e-9 * jnp.eye(len(inputs)))
        return jnp.einsum(
            "mk,de->mdke", lower, jnp.diag(jnp.broadcast_to(jnp.asarray(self.scale), (outputs,)))
        ).reshape(len(inputs), outputs, -1)


def typical(factor: Float[Array, "M D R"]) -> Float[Array, " D"]:
    """Root-mean-square prior sd of each output over the points; of a prior without any, a small number."""
    return jnp.sqrt(jnp.mean(jnp.sum(factor**2, axis=-1), axis=0)) + 1e-8


def local_sd(factor: Float[Array, "M D R"]) -> Float[Array, "M D"]:
    """Prior sd of each output at each point, but no less than a hundredth of the typical one."""
    return jnp.maximum(jnp.sqrt(jnp.sum(factor**2, axis=-1)), 0.01 * typical(factor))


def square_factor(factor: Float[Array, "P K"]) -> Float[Array, "P P"]:
    """A triangular factor of the same covariance."""
    size, columns = factor.shape
    lower = jnp.linalg.qr(factor.T, mode="r").T
    return lower if columns >= size else jnp.pad(lower, ((0, 0), (0, size - columns)))


def told(
    weights: Weights, features: Float[Array, "N D P"], values: Float[Array, "N D"], valid: Float[Array, " N"]
) -> Told:
    """Sums over the rows of data that count."""
    design = jnp.swapaxes(features @ weights.factor, 0, 1)  # (D, N, K)
    rest = ((values - features @ weights.mean) * valid[:, None]).T
    gram = jnp.swapaxes(design * valid[:, None], 1, 2) @ design
    return Told(gram, jnp.einsum("dnk,dn->dk", design, rest), jnp.sum(rest**2, axis=1), jnp.sum(valid))


def conditioned(told: Told, noise: Float[Array, " D"]) -> tuple[Float[Array, " K"], Float[Array, "K K"]]:
    """Mean and precision of the standard normal e after data: the update needs no inverse of a prior covariance."""
    precision = jnp.eye(told.slope.shape[1]) + jnp.tensordot(noise**-2, told.gram, 1)
    lower = jnp.linalg.cholesky(precision)
    return cho_solve((lower, True), noise**-2 @ told.slope), precision


def log_evidence(told: Told, noise: Float[Array, " D"]) -> Float[Array, ""]:
    """Log marginal density of the values, in units of their scales."""
    mean, precision = conditioned(told, noise)
    square = jnp.sum(told.square / noise**2 + told.rows * jnp.log(2 * jnp.pi * noise**2))
    return -0.5 * (square - mean @ precision @ mean) - gaussians.half_log_det(precision)


def learned(
    features: Callable[[Array], Float[Array, "M F"]],
    start: Array,
    targets: Float[Array, "M K"],
    steps: int,
    rate: float,
    ridge: float = 1e-8,
) -> Array:
    """Parameters of features that span the targets: Adam on the log mean square of what least squares leaves.

    The weights are eliminated at every step (variable projection: G. Golub, V. Pereyra, SIAM J. Numerical Analysis 10,
    1973).
    """

    def loss(hidden):
        units = features(hidden)
        held = jax.lax.stop_gradient(units)  # at the minimum over weights the slope in them vanishes
        lower = jnp.linalg.cholesky(ridged(held.T @ held, ridge))
        rest = targets - units @ cho_solve((lower, True), held.T @ targets)
        return jnp.log(jnp.mean(rest**2) + 1e-12)

    optimiser = optax.adam(optax.cosine_decay_schedule(rate, max(steps, 1)))

    def climb(carry, _):
        hidden, state = carry
        slope = jax.grad(loss)(hidden)
        change, following = optimiser.update(slope, state)
        usable = jnp.all(jnp.isfinite(slope))
        carry = jax.tree.map(
            lambda new, old: jnp.where(usable, new, old), (optax.apply_updates(hidden, change), following), carry
        )
        return carry, None

    (hidden, _), _ = jax.lax.scan(climb, (start, optimiser.init(start)), length=steps)
    return hidden


def in_units(points: Points, sd: Float[Array, "M D"]) -> Points:
    """Each output at each point divided by a number."""
    return Points(points.features / sd[..., None], points.mean / sd, points.factor / sd[..., None])


def regressed(points: Points, ridge: float) -> Weights:
    """The prior's mean and factor by least squares on the features."""
    both = regression(points.features, jnp.concatenate([points.mean[..., None], points.factor], axis=-1), ridge)
    return Weights(both[:, 0], both[:, 1:])


def ridged(gram: Float[Array, "P P"], ridge: float) -> Float[Array, "P P"]:
    """With `ridge` times its mean diagonal added."""
    return gram + ridge * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))
