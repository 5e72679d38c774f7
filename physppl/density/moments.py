"""Moments of the prior in unconstrained space, and the information of data there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from physppl.density import curvature
from physppl.density.unconstrained import Gaussian, UnconstrainedSpace, gaussians

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
def log_joint(space: UnconstrainedSpace, model, data, points: Float[Array | np.ndarray, "K P"]) -> Float[Array, " K"]:
    """Log joint densities at points of unconstrained space; without derivatives it compiles several times faster."""
    return jax.vmap(lambda z: space.log_joint(model, z, data))(points)


@eqx.filter_jit
def log_joint_and_outcomes(
    space: UnconstrainedSpace, model, data, points: Float[Array | np.ndarray, "K P"]
) -> tuple[Float[Array, " K"], Int[Array, " K"], dict[str, Gaussian]]:
    """Log joint densities (K,) at points of unconstrained space, numbers of failed rows, and sites at the first point.

    A row fails where the mean of an outcome that counts is not finite. Sites are the observed Gaussian ones: arrays
    (..., N, d), transitions on the axis before the last.
    """

    def at(z):
        trace = space.trace(model, z, data)
        sites = {name: _rows_last(site, trace[name]) for name, site in gaussians(trace).items()}
        failed = [jnp.sum(jnp.any(~jnp.isfinite(s.mean) & (s.root_weight > 0), axis=-1)) for s in sites.values()]
        return sum(space.log_densities(trace, z), jnp.zeros(())), sum(failed, jnp.zeros((), int)), sites

    density, failed, sites = jax.vmap(at)(points)
    return density, failed, jax.tree.map(lambda x: x[0], sites)


def _rows_last(gaussian: Gaussian, site: dict) -> Gaussian:
    """A site's arrays at the full shape, with the plate of transitions on the axis before the last."""
    shape = jnp.shape(site["value"])
    frames = [f.dim for f in site["cond_indep_stack"] if f.name.split("/")[-1] == "transition"]
    axis = frames[0] - site["fn"].event_dim if frames else -2
    full = jax.tree.map(lambda x: jnp.broadcast_to(x, shape), gaussian)
    return full if len(shape) < 2 else jax.tree.map(lambda x: jnp.moveaxis(x, axis, -2), full)
