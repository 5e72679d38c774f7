"""A matrix by its products: its leading directions, and traces of its functions, through matfree."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float, PRNGKeyArray
from matfree import decomp, eig

PROBES, DEPTH = 8, 40  # vectors of a stochastic trace, and the products that each may cost
BATCH = 4  # vectors that pass a model at once


class Whitened(NamedTuple):
    """The matrix A (n, P) by its products: `push` is v -> A v, `pull` is u -> A' u, one vector each.

    `dense` is the matrix itself, made when it is called.
    """

    push: Callable[[Array], Array]
    pull: Callable[[Array], Array]
    dense: Callable[[], Array]
    shape: tuple[int, int]

    @staticmethod
    def of(matrix: Float[Array, "n P"]) -> "Whitened":
        """Of a matrix that is at hand."""
        shape = (matrix.shape[0], matrix.shape[1])
        return Whitened(lambda v: matrix @ v, lambda u: u @ matrix, lambda: matrix, shape)

    def pushed(self, vectors: Float[Array, "k P"]) -> Float[Array, "k n"]:
        """A v of several vectors."""
        return jax.lax.map(self.push, vectors, batch_size=BATCH)

    def pulled(self, vectors: Float[Array, "k n"]) -> Float[Array, "k P"]:
        """A' u of several vectors."""
        return jax.lax.map(self.pull, vectors, batch_size=BATCH)

    def gram(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """A' A v."""
        return self.pull(self.push(vector))


class Leading(NamedTuple):
    """Approximate eigenpairs of A' A: values (k,), orthonormal directions (k, P)."""

    values: Float[Array, " k"]
    directions: Float[Array, "k P"]

    @staticmethod
    def lanczos(key: PRNGKeyArray, whitened: Whitened, rank: int, dtype) -> "Leading":
        """One product after the other. Ritz vectors are coupled to all others through Lanczos' last vector alone,
        which is neglected, so that what is left is treated apart although few of the pairs have converged."""
        start = jax.random.normal(key, whitened.shape[1:], dtype)
        values, directions = eig.eigh_partial(decomp.tridiag_sym(rank, reortho="full"))(whitened.gram, start)
        return Leading(jnp.maximum(values, 0.0), directions)

    @staticmethod
    def sketched(key: PRNGKeyArray, whitened: Whitened, rank: int, dtype) -> "Leading":
        """Products with as many random vectors, all at once: less accurate, but several times faster."""
        sketch = jax.random.normal(key, (rank, whitened.shape[1]), dtype)
        seen = whitened.pulled(whitened.pushed(sketch))
        jitter = jnp.finfo(dtype).eps * (1 + jnp.linalg.norm(seen))
        seen = seen + jitter * sketch
        core = seen @ sketch.T
        part = solve_triangular(jnp.linalg.cholesky((core + core.T) / 2), seen, lower=True)
        squares, vectors = jnp.linalg.eigh(part @ part.T)
        squares = jnp.maximum(squares, jitter)
        return Leading(squares - jitter, (vectors / jnp.sqrt(squares)).T @ part)

    def without(self, vectors: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Their part orthogonal to the directions."""
        return vectors - (vectors @ self.directions.T) @ self.directions

    def halved(self, vectors: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Times the inverse square root of I + the approximation of A' A."""
        excess = (1 + self.values) ** -0.5 - 1
        return vectors + ((vectors @ self.directions.T) * excess) @ self.directions


def traces(
    key: PRNGKeyArray, product: Callable[[Array], Array], size: int, functions: Callable[[Array], Array], dtype
) -> Float[Array, " f"]:
    """Traces of functions (f,) of a positive semi-definite matrix, by stochastic Lanczos quadrature."""
    tridiagonal = decomp.tridiag_sym(min(DEPTH, size), reortho="full")

    def quadrature(start):
        _, matrix, *_ = tridiagonal(product, start)
        values, vectors = jnp.linalg.eigh(matrix)
        return size * (functions(jnp.maximum(values, 0.0)) @ vectors[0] ** 2)

    starts = jax.random.rademacher(key, (PROBES, size), dtype)
    return jnp.mean(jax.lax.map(quadrature, starts), axis=0)
