"""The algebra of function-space inference: arrays in, arrays out, no model in sight.

Functions are f(x) = Phi(x) w with Gaussian weights w; a function prior is Gaussian at M points of a measure rho, with
mean (M, D) and factor (M, D, R), whose outer product is its covariance. Outputs are in units of their scales. A belief
about weights is a mean and a factor too, so that a covariance without full rank needs no inverse.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Float

from physppl import linear


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
    lower = jnp.linalg.cholesky(_ridged(gram, ridge))
    weights = cho_solve((lower, True), slope)
    for _ in range(2):
        weights = weights + cho_solve((lower, True), slope - gram @ weights)
    return weights


def missed(points: Points, weights: Weights) -> tuple[Float[Array, "M D"], Float[Array, "M D K"]]:
    """What of the prior's mean and of its factor the weights do not reproduce."""
    return points.mean - points.features @ weights.mean, points.factor - points.features @ weights.factor


def missing_variance(points: Points, ridge: float = 1e-8) -> Float[Array, " D"]:
    """Mean square over the points, (D,), of the part of the prior's functions that lies outside the features' span."""
    mean, factor = missed(points, _regressed(points, ridge))
    return jnp.mean(mean**2 + jnp.sum(factor**2, axis=-1), axis=0)


def spread(features: Float[Array, "M D P"], variance: Float[Array, " D"]) -> Float[Array, " P"]:
    """Sds of independent weights that give the functions this variance (D,), on average over the points.

    Each weight serves the outputs in proportion to its features there; exact where it serves one.
    """
    square = jnp.mean(features**2, axis=0)
    share = square / jnp.maximum(jnp.sum(square, axis=0), jnp.finfo(square.dtype).tiny)
    return jnp.sqrt((variance / jnp.sum(share * square, axis=1)) @ share)


class Objective(eqx.Module):
    """What makes a belief about weights of a function prior at points."""

    @abstractmethod
    def weights(self, points: Points) -> Weights:
        """The function prior as one about weights, which data then update exactly."""


class Projected(Objective):
    """The function prior regressed on the features.

    Exact moments: mean A mu and factor A F with the pseudo-inverse A of the features at the points. What the features
    miss becomes independent variance of the weights, so that over the points no variance is lost. The update with data
    is Bayesian linear regression.

    Attributes:
        ridge: of the pseudo-inverse.
    """

    ridge: float = eqx.field(default=1e-8, static=True)

    def weights(self, points: Points) -> Weights:
        own = _regressed(points, self.ridge)
        slack = spread(points.features, missing_variance(points, self.ridge))
        return Weights(own.mean, square_factor(jnp.concatenate([own.factor, jnp.diag(slack)], axis=1)))


class JointKL(Objective):
    """The Kullback-Leibler divergence over all the points jointly, correlations between them included.

    Of q(f) = N(Phi m, Phi S Phi') from p(f) = N(mu, F F' + nugget^2 I) at the points, as the noise that q needs to have
    a density too goes to zero (its entropy is then that of the weights, up to a constant). Without data the minimum is
    precision Phi' K^-1 Phi and its weighted least squares, which data update exactly: no collapse. It is the prior
    conditioned on having no part outside the features' span, but for the nugget: what features miss makes it surer.

    Attributes:
        nugget: sd of what the prior leaves free at each point, in units of its root-mean-square sd of each output.
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
        sd = self.nugget * typical(points.factor)
        white = Points(points.features / sd[:, None], points.mean / sd, points.factor / sd[:, None])
        own = _regressed(white, self.ridge)
        # In coordinates along the span and across it, p's covariance is I + [T; F][T; F]': condition on zero across.
        mean, factor = missed(white, own)
        mean, factor = mean.reshape(-1), factor.reshape(-1, factor.shape[-1])
        across = jnp.linalg.cholesky(jnp.eye(factor.shape[1]) + factor.T @ factor)
        kept = solve_triangular(across, own.factor.T, lower=True).T  # A F J^-1/2'
        shift = kept @ solve_triangular(across, factor.T @ mean, lower=True)
        tall = white.features.reshape(-1, white.features.shape[-1])
        lower = jnp.linalg.cholesky(_ridged(tall.T @ tall, self.ridge))
        free = linear.lower_inverse(lower).T
        return Weights(own.mean - shift, square_factor(jnp.concatenate([kept, free], axis=1)))


class Printed(Objective):
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
        lower = jnp.linalg.cholesky(_ridged(cost, self.ridge))
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
        within = linear.outer(points.features @ factor) + jnp.diag(noise**2)
        error = points.mean - points.features @ mean
        apart = jnp.einsum("mde,med->m", precision, within) + jnp.einsum("md,mde,me->m", error, precision, error)
        divergence = 0.5 * (apart - len(noise) - jnp.linalg.slogdet(precision)[1] - jnp.linalg.slogdet(within)[1])
        return fit - self.beta * jnp.mean(divergence)

    def _precision(self, points: Points, noise) -> Float[Array, "M D D"]:
        """Inverse covariance of the prior's noisy outputs at each point."""
        return jnp.linalg.inv(linear.outer(points.factor) + jnp.diag(noise**2))


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
    return -0.5 * (square - mean @ precision @ mean) - linear.half_log_det(precision)


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
        lower = jnp.linalg.cholesky(_ridged(held.T @ held, ridge))
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


def _regressed(points: Points, ridge: float) -> Weights:
    both = regression(points.features, jnp.concatenate([points.mean[..., None], points.factor], axis=-1), ridge)
    return Weights(both[:, 0], both[:, 1:])


def _mean_gram(features: Float[Array, "M D P"], precision: Float[Array, "M D D"]) -> Float[Array, "P P"]:
    """Average of Phi' precision Phi."""
    weighted = (jnp.swapaxes(precision, 1, 2) @ features).reshape(-1, features.shape[-1])
    return weighted.T @ features.reshape(weighted.shape) / len(features)


def _root(positive: Float[Array, "P P"]) -> Float[Array, "P P"]:
    """Symmetric square root."""
    values, vectors = jnp.linalg.eigh(positive)
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0)) @ vectors.T


def _ridged(gram, ridge: float):
    return gram + ridge * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))
