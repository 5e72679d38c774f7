"""Matrix-free linear algebra on a Jacobian: leading eigenpairs, traces of matrix functions, draws by linear solves."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.scipy.sparse.linalg import cg
from jaxtyping import Float, PRNGKeyArray
from matfree import decomp, eig

PROBES, DEPTH = 8, 40  # probe vectors of a stochastic trace, and Lanczos iterations for each
BATCH = 4  # vectors in one batched product


class Whitened(NamedTuple):
    """A matrix A (n, P) given by its products: `push` is v -> A v, `pull` is u -> A' u, one vector each.

    `dense` computes the matrix itself.
    """

    push: Callable[[Array], Array]
    pull: Callable[[Array], Array]
    dense: Callable[[], Array]
    shape: tuple[int, int]

    @staticmethod
    def of(matrix: Float[Array, "n P"]) -> "Whitened":
        """Wrap an explicit matrix."""
        shape = (matrix.shape[0], matrix.shape[1])
        return Whitened(lambda v: matrix @ v, lambda u: u @ matrix, lambda: matrix, shape)

    def pushed(self, vectors: Float[Array, "k P"]) -> Float[Array, "k n"]:
        """Products A v with several vectors."""
        return jax.lax.map(self.push, vectors, batch_size=BATCH)

    def pulled(self, vectors: Float[Array, "k n"]) -> Float[Array, "k P"]:
        """Products A' u with several vectors."""
        return jax.lax.map(self.pull, vectors, batch_size=BATCH)

    def gram(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Product A' A v."""
        return self.pull(self.push(vector))


class Leading(NamedTuple):
    """Approximate eigenpairs of A' A: values (k,), orthonormal directions (k, P)."""

    values: Float[Array, " k"]
    directions: Float[Array, "k P"]

    @staticmethod
    def lanczos(key: PRNGKeyArray, whitened: Whitened, rank: int, dtype) -> "Leading":
        """Ritz pairs of Lanczos' method with full reorthogonalisation, one product after the other.

        Their coupling to the complement, through Lanczos' last vector alone, is neglected: the complement can be
        treated by itself although few of the pairs have converged."""
        start = jax.random.normal(key, whitened.shape[1:], dtype)
        values, directions = eig.eigh_partial(decomp.tridiag_sym(rank, reortho="full"))(whitened.gram, start)
        return Leading(jnp.maximum(values, 0.0), directions)

    @staticmethod
    def sketched(key: PRNGKeyArray, whitened: Whitened, rank: int, dtype) -> "Leading":
        """Randomised Nystrom approximation from one batch of products: less accurate, but several times faster.

        With Y = A' A S' + jitter S' and C = S Y the approximation is Y C^-1 Y' (Z. Frangella, J. Tropp, M. Udell, SIAM
        J. Matrix Analysis 44, 2023, algorithm 2.1); the jitter keeps C positive definite and is subtracted again."""
        sketch = jax.random.normal(key, (rank, whitened.shape[1]), dtype)
        products = whitened.pulled(whitened.pushed(sketch))
        jitter = jnp.finfo(dtype).eps * (1 + jnp.linalg.norm(products))
        products = products + jitter * sketch
        core = products @ sketch.T
        factor = solve_triangular(jnp.linalg.cholesky((core + core.T) / 2), products, lower=True)
        eigenvalues, vectors = jnp.linalg.eigh(factor @ factor.T)
        eigenvalues = jnp.maximum(eigenvalues, jitter)
        return Leading(eigenvalues - jitter, (vectors / jnp.sqrt(eigenvalues)).T @ factor)

    def without(self, vectors: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Projection on the complement of the directions."""
        return vectors - (vectors @ self.directions.T) @ self.directions

    def precondition(self, vectors: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Product with the inverse square root of I + the approximation of A' A."""
        excess = (1 + self.values) ** -0.5 - 1
        return vectors + ((vectors @ self.directions.T) * excess) @ self.directions

    def preconditioned(self, whitened: Whitened, vectors: Float[Array, "k P"]) -> Float[Array, "k P"]:
        """Products with I + A' A, preconditioned on both sides: close to the identity."""
        vectors = self.precondition(vectors)
        return self.precondition(vectors + whitened.pulled(whitened.pushed(vectors)))


def traces(
    key: PRNGKeyArray, product: Callable[[Array], Array], size: int, functions: Callable[[Array], Array], dtype
) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
    """Traces of functions (f,) of a positive semi-definite matrix, by stochastic Lanczos quadrature, and their sds."""
    tridiagonal = decomp.tridiag_sym(min(DEPTH, size), reortho="full")

    def quadrature(start):
        _, matrix, *_ = tridiagonal(product, start)
        values, vectors = jnp.linalg.eigh(matrix)
        return size * (functions(jnp.maximum(values, 0.0)) @ vectors[0] ** 2)

    starts = jax.random.rademacher(key, (PROBES, size), dtype)
    estimates = jax.lax.map(quadrature, starts)
    return jnp.mean(estimates, axis=0), jnp.std(estimates, axis=0, ddof=1) / PROBES**0.5


class Left(NamedTuple):
    """Variances after the data, in units of those before: of the parameters (P,), and of the errors at the data (n,).

    The diagonals of (I + A' A)^-1 and of (I + A A')^-1: the second adds up to n minus the effective number of
    parameters, and is positive however they are estimated.
    """

    parameters: Float[Array, " P"]
    errors: Float[Array, " n"]


class PerturbedDraws(NamedTuple):
    """Draws from the whole covariance, the whitened errors that they leave at the data, and the preconditioner."""

    parameters: Float[Array, "S P"]
    errors: Float[Array, "S n"]
    leading: Leading

    def left(self) -> Left:
        """Variances that the data leave, by mean squares."""
        return Left(jnp.mean(self.parameters**2, axis=0), jnp.mean(self.errors**2, axis=0))


def perturbed(
    key: PRNGKeyArray, whitened: Whitened, count: int, rank: int, tolerance: float, iterations: int, dtype
) -> PerturbedDraws:
    """Draws by conjugate gradients, with perturbed outcomes.

    (I + A' A)^-1 (e + A' n), with e and n standard normal, has covariance (I + A' A)^-1; and n - A times it, the error
    that is left, has (I + A A')^-1.
    """
    rows, size = whitened.shape
    sketch_key, prior_key, noise_key = jax.random.split(key, 3)
    leading = Leading.sketched(sketch_key, whitened, rank, dtype)
    prior = jax.random.normal(prior_key, (count, size), dtype)
    noise = jax.random.normal(noise_key, (count, rows), dtype)
    right = leading.precondition(prior + whitened.pulled(noise))
    white, _ = cg(lambda v: leading.preconditioned(whitened, v), right, tol=tolerance, maxiter=iterations)
    parameters = leading.precondition(white)
    return PerturbedDraws(parameters, noise - whitened.pushed(parameters), leading)
