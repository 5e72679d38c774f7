"""Approximate covariances of thousands of parameters, computed from the Jacobian of the data alone.

All of them approximate (I + A' A)^-1, the posterior covariance of a linear Gaussian model in coordinates in which prior
and noise are standard normal: A (n, P) are the derivatives of the outcomes. `Full` is exact; cost and error of
the others are measured in docs/results/large_laplace.md.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.typing import DTypeLike
from jaxtyping import Float, PRNGKeyArray

from physppl.inference.products import Leading, Left, Whitened, perturbed, traces
from physppl.internal import gaussians
from physppl.internal.choices import Choices

LEFT_DRAWS, LEFT_RANK = 32, 64  # draws of the variances left by the data, and rank of their preconditioner


class Root(eqx.Module):
    """A covariance R R' given by products with R (P, r).

    Attributes:
        half_log_det: half the log determinant of (R R')^-1, log volume of the prior over the posterior's; nats.
        error: its standard error as an estimate of that of I + A' A; not finite where it is no estimate of it.
    """

    half_log_det: eqx.AbstractVar[Float[Array, ""]]
    error: eqx.AbstractVar[Float[Array, ""]]

    @abstractmethod
    def along(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B r"]:
        """Product of rows with R: a factor of the covariance of the linear functions with these rows."""

    @abstractmethod
    def draw(self, key: PRNGKeyArray, count: int) -> Float[Array, "count P"]:
        """Independent draws."""

    @abstractmethod
    def spread(self, key: PRNGKeyArray, count: int) -> Float[Array, "k P"]:
        """Rows whose outer products add up to the covariance: exactly, or on average over `count` random rows."""


class Rows(Root):
    """An explicit root, stored as its transpose R' (r, P)."""

    rows: Float[Array, "r P"]
    half_log_det: Float[Array, ""]
    error: Float[Array, ""]

    def along(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B r"]:
        return rows @ self.rows.T

    def draw(self, key: PRNGKeyArray, count: int) -> Float[Array, "count P"]:
        return jax.random.normal(key, (count, len(self.rows)), self.rows.dtype) @ self.rows

    def spread(self, key: PRNGKeyArray, count: int) -> Float[Array, "k P"]:
        return self.rows if len(self.rows) <= count else self.draw(key, count) / np.sqrt(count)


class Shrunk(Root):
    """A diagonal root, corrected along a few orthonormal directions: symmetric, r = P.

    Attributes:
        sds: the diagonal.
        directions: orthonormal rows (k, P).
        excess: sd along each direction minus that of the diagonal.
    """

    sds: Float[Array, " P"]
    directions: Float[Array, "k P"]
    excess: Float[Array, " k"]
    half_log_det: Float[Array, ""]
    error: Float[Array, ""]

    def along(self, rows: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        return rows * self.sds + ((rows @ self.directions.T) * self.excess) @ self.directions

    def draw(self, key: PRNGKeyArray, count: int) -> Float[Array, "count P"]:
        return self.along(jax.random.normal(key, (count, len(self.sds)), self.sds.dtype))

    def spread(self, key: PRNGKeyArray, count: int) -> Float[Array, "k P"]:
        return self.draw(key, count) / np.sqrt(count)


class Structure(Choices):
    """Base class of the approximate covariances."""

    @abstractmethod
    def root(self, key: PRNGKeyArray, whitened: Whitened, dtype: DTypeLike = float) -> Root:
        """Root of the covariance for a Jacobian in coordinates in which prior and noise are standard normal."""

    def left(self, key: PRNGKeyArray, whitened: Whitened, dtype: DTypeLike = float) -> Left:
        """Variances left by the data under the whole covariance, whatever the structure keeps of it.

        Noises and prior sds come from these: with a structure's own variances a covariance that keeps little would
        count more effective parameters than there are rows. Estimated from draws unless the structure is exact.
        """
        return perturbed(key, whitened, LEFT_DRAWS, min(LEFT_RANK, *whitened.shape), 0.05, 300, dtype).left()


class Full(Structure):
    """The exact covariance, by a Cholesky factor (P, P): P^2 (n + P) operations, and P^2 numbers."""

    def root(self, key: PRNGKeyArray, whitened: Whitened, dtype: DTypeLike = float) -> Rows:
        matrix = whitened.dense()
        factor = gaussians.inverse_factor(jnp.eye(whitened.shape[1], dtype=dtype) + matrix.T @ matrix)
        return Rows(factor, -jnp.sum(jnp.log(jnp.diagonal(factor))), jnp.zeros((), dtype))

    def left(self, key: PRNGKeyArray, whitened: Whitened, dtype: DTypeLike = float) -> Left:
        matrix = whitened.dense()
        factor = gaussians.inverse_factor(jnp.eye(whitened.shape[1], dtype=dtype) + matrix.T @ matrix)
        explained = jnp.sum((matrix @ factor.T) ** 2, axis=1)
        return Left(jnp.sum(factor**2, axis=0), jnp.maximum(1 - explained, 0.0))


class LastLayer(Structure):
    """The exact covariance of the last parameters, all others fixed at the mode.

    `residual` lays out its output matrix last, so of a network of `width` and D outputs `LastLayer(width * D)`. Call it
    after the physics: otherwise later sites are the last parameters, and the weights are fixed.

    Attributes:
        size: number of parameters.
    """

    size: int = eqx.field(static=True)

    def __check_init__(self):
        if self.size < 1:
            raise ValueError(f"LastLayer(size): at least one parameter; got {self.size}.")

    def root(self, key: PRNGKeyArray, whitened: Whitened, dtype: DTypeLike = float) -> Rows:
        size = whitened.shape[1]
        if self.size > size:
            raise ValueError(f"LastLayer: the model has {size} parameters beside its noise; got size={self.size}.")
        fixed, no_estimate = size - self.size, jnp.asarray(jnp.inf if size > self.size else 0.0, dtype)
        last = Full().root(key, Whitened.of(whitened.dense()[:, fixed:]), dtype)
        return Rows(
            jnp.concatenate([jnp.zeros((self.size, fixed), dtype), last.rows], axis=1), last.half_log_det, no_estimate
        )


class Diagonal(Structure):
    """Inverse of the curvature's diagonal, whose determinant is at least that of the curvature (J. Hadamard, 1893)."""

    def root(self, key: PRNGKeyArray, whitened: Whitened, dtype: DTypeLike = float) -> Shrunk:
        precision = 1 + jnp.sum(whitened.dense() ** 2, axis=0)
        size = whitened.shape[1]
        directions = jnp.zeros((0, size), dtype)
        half, no_estimate = 0.5 * jnp.sum(jnp.log(precision)), jnp.asarray(jnp.inf, dtype)
        return Shrunk(precision**-0.5, directions, jnp.zeros(0, dtype), half, no_estimate)


class LowRank(Structure):
    """Leading directions of the curvature by Lanczos' method, through matfree; the prior on all others.

    The information along the remaining directions is missing, so predictions near the data are too wide.

    Attributes:
        rank: number of directions.
        calibrated: one sd for all other directions, such that the mean variance at the data is right. Away from data,
            where it should be the prior's, predictions are then too narrow.
    """

    rank: int = eqx.field(default=200, static=True)
    calibrated: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        if self.rank < 1:
            raise ValueError(f"LowRank(rank): at least one direction; got {self.rank}.")

    def root(self, key: PRNGKeyArray, whitened: Whitened, dtype: DTypeLike = float) -> Root:
        if self.rank >= min(whitened.shape):
            return Full().root(key, whitened, dtype)
        lanczos_key, probe_key = jax.random.split(key)
        leading = Leading.lanczos(lanczos_key, whitened, self.rank, dtype)

        def remainder(v):
            return leading.without(whitened.gram(leading.without(v)))

        # With B the remainder of A' A: tr(B (I + B)^-1) / tr(B) is the mean variance at the data along the remaining
        # directions, relative to the prior's; log det(I + B) completes the determinant.
        (explained, total, log_det), (*_, error) = traces(
            probe_key, remainder, whitened.shape[1], lambda x: jnp.stack([x / (1 + x), x, jnp.log1p(x)]), dtype
        )
        sd = jnp.sqrt(explained / total) if self.calibrated else jnp.ones((), dtype)
        excess = (1 + leading.values) ** -0.5 - sd
        half = 0.5 * (jnp.sum(jnp.log1p(leading.values)) + log_det)
        return Shrunk(jnp.full(whitened.shape[1], sd), leading.directions, excess, half, 0.5 * error)


class Pathwise(Structure):
    """Draws of the whole covariance, each the solution of a linear system with perturbed outcomes.

    "Perturb and optimise" (G. Papandreou, A. Yuille, NeurIPS 2010; J. Antoran et al., ICLR 2023). Conjugate gradients
    solve all systems together, preconditioned by a randomised Nystrom approximation (Z. Frangella, J. Tropp,
    M. Udell, SIAM J. Matrix Analysis 44, 2023). Sds have a relative error of 1 / sqrt(2 draws),
    near the data and away, and no bias; nothing larger than (draws + rank, P) is stored.

    Attributes:
        draws: number of draws.
        rank: of the preconditioner; it changes the number of iterations, not the result.
        tolerance: relative residual of the linear systems; larger ones make predictions near the data too wide.
        iterations: at most.
    """

    draws: int = eqx.field(default=64, static=True)
    rank: int = eqx.field(default=256, static=True)
    tolerance: float = eqx.field(default=0.05, static=True)
    iterations: int = eqx.field(default=300, static=True)

    def __check_init__(self):
        if self.rank < 1 or self.draws < 1 or self.iterations < 1 or not 0 < self.tolerance < 1:
            raise ValueError(
                "Pathwise needs draws, rank and iterations of at least 1 and a tolerance between 0 and 1; got "
                f"{self.draws}, {self.rank}, {self.iterations} and {self.tolerance}."
            )

    def root(self, key: PRNGKeyArray, whitened: Whitened, dtype: DTypeLike = float) -> Rows:
        rows, size = whitened.shape
        if self.rank >= min(rows, size):
            return DataSpace(self.draws).root(key, whitened, dtype)
        draw_key, probe_key = jax.random.split(key)
        draws = perturbed(draw_key, whitened, self.draws, self.rank, self.tolerance, self.iterations, dtype)

        def precision(v):
            return draws.leading.preconditioned(whitened, v[None])[0]

        (log_det,), (error,) = traces(probe_key, precision, size, lambda x: jnp.log(x)[None], dtype)
        half = 0.5 * (jnp.sum(jnp.log1p(draws.leading.values)) + log_det)
        return Rows(draws.parameters / np.sqrt(self.draws), half, 0.5 * error)


class DataSpace(Structure):
    """Draws as in `Pathwise`, by a Cholesky factor (n, n): for many parameters and few data.

    Attributes:
        draws: number of draws; sds have a relative error of 1 / sqrt(2 draws).
    """

    draws: int = eqx.field(default=256, static=True)

    def __check_init__(self):
        if self.draws < 1:
            raise ValueError(f"DataSpace(draws): at least one; got {self.draws}.")

    def root(self, key: PRNGKeyArray, whitened: Whitened, dtype: DTypeLike = float) -> Rows:
        rows, size = whitened.shape
        if size <= self.draws:
            return Full().root(key, whitened, dtype)
        prior_key, noise_key = jax.random.split(key)
        matrix = whitened.dense()
        lower = jnp.linalg.cholesky(jnp.eye(rows, dtype=dtype) + matrix @ matrix.T)
        prior = jax.random.normal(prior_key, (self.draws, size), dtype)
        noise = jax.random.normal(noise_key, (self.draws, rows), dtype)
        # Matheron's rule: e - A' (I + A A')^-1 (A e + n) has covariance (I + A' A)^-1, e and n standard normal.
        correction = cho_solve((lower, True), (prior @ matrix.T + noise).T).T @ matrix
        half = jnp.sum(jnp.log(jnp.diagonal(lower)))
        return Rows((prior - correction) / np.sqrt(self.draws), half, jnp.zeros((), dtype))

    def left(self, key: PRNGKeyArray, whitened: Whitened, dtype: DTypeLike = float) -> Left:
        rows, size = whitened.shape
        if size <= self.draws:
            return Full().left(key, whitened, dtype)
        matrix = whitened.dense()
        # A' A and A A' have the same eigenvalues: with L L' = I + A A' and V = L^-1 A, the diagonals are 1 - |V_j|^2 of
        # the columns of V, and the squares of the columns of L^-1.
        lower = jnp.linalg.cholesky(jnp.eye(rows, dtype=dtype) + matrix @ matrix.T)
        white = solve_triangular(lower, matrix, lower=True)
        inverse = solve_triangular(lower, jnp.eye(rows, dtype=dtype), lower=True)
        return Left(jnp.maximum(1 - jnp.sum(white**2, axis=0), 0.0), jnp.sum(inverse**2, axis=0))
