"""Moments of the prior in unconstrained space, and the information of data there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from physppl.density import curvature
from physppl.density.unconstrained import UnconstrainedSpace

DRAWS = 4000  # of a prior that is not Gaussian in unconstrained space; sample variances of a Gaussian have an sd of 2 %
PLACES = 4  # points at which the prior's curvature is compared: it is constant for a Gaussian


def prior(space: UnconstrainedSpace, model, data) -> tuple[np.ndarray, np.ndarray]:
    """Prior median (P,) and covariance (P, P) in unconstrained space: exact where it is Gaussian, else of draws."""
    draws = _draws(space, model, data)
    slopes, hessians = map(np.asarray, _shape(space, model, data, draws[:PLACES]))
    draws = np.asarray(draws)
    median, covariance = np.median(draws, axis=0), np.atleast_2d(np.cov(draws.T))
    # Coordinates of constant curvature that are coupled only to such are exactly Gaussian.
    gaussian = np.ptp(hessians, axis=0).max(axis=1) <= 1e-6 * np.abs(hessians[0]).max(axis=1)
    while np.any(tied := gaussian & np.any(hessians[0][:, ~gaussian] != 0, axis=1)):
        gaussian &= ~tied
    if gaussian.any():
        block = np.linalg.inv(-hessians[0][np.ix_(gaussian, gaussian)])
        median[gaussian] = draws[0, gaussian] + block @ slopes[0, gaussian]
        covariance[gaussian] = covariance[:, gaussian] = 0.0
        covariance[np.ix_(gaussian, gaussian)] = block
    return median, covariance


@eqx.filter_jit
def _draws(space: UnconstrainedSpace, model, data) -> Float[Array, "S P"]:
    return space.prior_draws(jax.random.key(0), DRAWS, model, data)


@eqx.filter_jit
def _shape(space: UnconstrainedSpace, model, data, points: Float[Array, "K P"]):
    """Slopes (K, P) and Hessians (K, P, P) of the log prior density."""

    def density(z):
        return space.log_prior_alone(model, z, data)

    return jax.vmap(jax.grad(density))(points), jax.vmap(jax.hessian(density))(points)


local = eqx.filter_jit(curvature.local)  # compiled once for all that ask


def information(space: UnconstrainedSpace, model, data, z: Float[Array, " P"]) -> Float[np.ndarray, "P P"]:
    """Fisher information of the data at a point of unconstrained space: their part of the curvature."""
    _, hessians = _shape(space, model, data, jnp.broadcast_to(z, (PLACES, len(z))))  # compiled for the prior already
    return np.asarray(local(space, model, data, z)[2] + hessians[0])


@eqx.filter_jit
def log_joint(space: UnconstrainedSpace, model, data, points: Float[Array, "K P"]) -> Float[Array, " K"]:
    """Log joint densities at points of unconstrained space; without derivatives it compiles several times faster."""
    return jax.vmap(lambda z: space.log_joint(model, z, data))(points)
