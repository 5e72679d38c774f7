"""A Gaussian posterior whose process noise is uncertain, as a mixture over values of the noise.

At the joint mode a noise variance is the sum of squares over the number of rows, as if no parameter had been fitted,
and one value stands for all. From the curvature at the mode the evidence of any other noise follows, and with it the
parameters' Gaussian there: exact where the program is linear in the parameters, as the Student-t of conjugate
regression (A. Gelman et al., Bayesian Data Analysis, 3rd ed., section 14.2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float, PRNGKeyArray
from scipy import stats

from physppl.data.transitions import Transitions
from physppl.density.curvature import row_jacobians
from physppl.density.mode import Mode
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.dynamics.likelihood import Dependence
from physppl.internal import gaussians
from physppl.language.noise import PROCESS

NODES = 64  # of a mixture by evidence
ROUNDS = 4  # in which the proposal of the nodes moves to the evidence's mass
WIDER = 1.25  # the proposal's sds over the evidence's
KERNEL = 0.3  # share of the noise's sds by which draws are spread about the nodes, keeping both moments
FEW, EACH, SMALL = 128, 16, 64  # rows, rows for each parameter, and parameters, up to which the mixture pays


class NoiseMixture(NamedTuple):
    """Gaussians N(points_k, factors_k' factors_k) of the program's parameters, each at one value of the noise.

    Attributes:
        log_weights: (K,), of sum one.
        points: (K, P) in unconstrained space.
        factors: (K, Q, Q) of the Q parameters.
        noises: (K, D) process-noise sds.
        spread: (N, N) lower factor of the covariance of the noise's N entries.
    """

    log_weights: Float[Array, " K"]
    points: Float[Array, "K P"]
    factors: Float[Array, "K Q Q"]
    noises: Float[Array, "K D"]
    spread: Float[Array, "N N"]

    def moments(self, space: UnconstrainedSpace) -> tuple[Float[Array, " P"], Float[Array, "P P"]]:
        """Mean and covariance in unconstrained space."""
        weights, (parameters, _) = jnp.exp(self.log_weights), entries(space)
        mean = weights @ self.points
        apart = self.points - mean
        covariance = (apart.T * weights) @ apart
        within = jnp.einsum("k,krp,krq->pq", weights, self.factors, self.factors)
        return mean, covariance.at[np.ix_(parameters, parameters)].add(within)

    def draws(self, key: PRNGKeyArray, count: int, space: UnconstrainedSpace) -> Float[Array, "count P"]:
        """Points of unconstrained space, with noises between the nodes."""
        node_key, parameter_key, noise_key = jax.random.split(key, 3)
        parameters, noises = entries(space)
        node = jax.random.categorical(node_key, self.log_weights, shape=(count,))
        normal = jax.random.normal(parameter_key, (count, len(parameters)), self.points.dtype)
        points = self.points[node].at[:, parameters].add(jnp.einsum("cr,crp->cp", normal, self.factors[node]))
        mean = jnp.exp(self.log_weights) @ self.points[:, noises]
        kernel = jax.random.normal(noise_key, (count, len(noises)), self.points.dtype) @ self.spread.T
        about = mean + np.sqrt(1 - KERNEL**2) * (self.points[node][:, noises] - mean) + KERNEL * kernel
        return points.at[:, noises].set(about)


def entries(space: UnconstrainedSpace) -> tuple[np.ndarray, np.ndarray]:
    """Entries of the program's parameters, and of the process noise."""
    noises = space.where(PROCESS.__eq__)
    return np.flatnonzero(~noises), np.flatnonzero(noises)


def lattice(count: int, width: int) -> Float[np.ndarray, "count width"]:
    """Standard normal nodes of equal weight, a Sobol sequence; `count` is a power of 2."""
    uniform = stats.qmc.Sobol(width, scramble=False).random(count)
    return stats.norm.ppf(uniform + 0.5 / count)  # midpoints in every coordinate


def applies(space: UnconstrainedSpace, model, data) -> bool:
    """True where the noise is unknown and rows and parameters are few."""
    if not isinstance(model, Dynamics) or not isinstance(data, Transitions) or PROCESS not in space.names:
        return False
    rows = model.likelihood(data).dependence is Dependence.ROWS and not data.batch_shape
    few = len(data) <= max(FEW, EACH * space.size) and space.size <= SMALL
    return rows and few and len(entries(space)[0]) > 0


def over_noise(
    space: UnconstrainedSpace, model: Dynamics, data: Transitions, mode: Mode
) -> tuple[NoiseMixture, Float[Array, ""]]:
    """The mixture about a joint mode, and its log evidence, nats."""
    parameters, noises = entries(space)
    center, spread = mode.point[noises], gaussians.inverse_factor(mode.local.curvature)[:, noises]

    @jax.jit  # the program is run once for all uses
    def noise_and_prior(z):
        return model.bind(space.sites(model, z, data)).noise, space.log_prior(model, z, data)

    means, jacobian = row_jacobians(space, model, data, mode.point)
    valid = jnp.asarray(data.valid)[:, None].astype(means.dtype)
    jacobian, error = jacobian[..., parameters] * valid[..., None], (model.outcomes(data) - means) * valid
    gram = jnp.einsum("ndp,ndq->dpq", jacobian, jacobian)
    pull, squares, rows = jnp.einsum("ndp,nd->dp", jacobian, error), jnp.sum(error**2, axis=0), jnp.sum(valid)
    # The terms of the mode's slope and curvature that do not depend on the noise are the prior's.
    precision = noise_and_prior(mode.point)[0] ** -2
    slope = mode.local.gradient[parameters] - precision @ pull
    curvature = mode.local.curvature[np.ix_(parameters, parameters)] - jnp.einsum("d,dpq->pq", precision, gram)

    def at(values):
        """Log evidence at values of the noise's entries, the parameters' shift and factor, and the noise."""
        sd, log_prior = noise_and_prior(mode.point.at[noises].set(values))
        factor = gaussians.inverse_factor(curvature + jnp.einsum("d,dpq->pq", sd**-2, gram))
        white = factor @ (slope + sd**-2 @ pull)
        misfit = 0.5 * jnp.sum(squares / sd**2) + rows * jnp.sum(jnp.log(sd) + 0.5 * jnp.log(2 * jnp.pi))
        log_evidence = gaussians.log_evidence(log_prior - misfit + 0.5 * white @ white, factor)
        usable = jnp.isfinite(log_evidence)
        shift, factor = (jnp.where(usable, x, 0.0) for x in (white @ factor, factor))
        return jnp.where(usable, log_evidence, -jnp.inf), shift, factor, sd

    normal = jnp.asarray(lattice(NODES, len(noises)))

    def weighed(proposal, _):
        center, lower = proposal
        nodes = center + WIDER * normal @ lower.T
        log_evidence, shifts, factors, sds = jax.vmap(at)(nodes)
        log_q = -0.5 * jnp.sum(normal**2 + jnp.log(2 * jnp.pi), axis=1) - jnp.sum(jnp.log(WIDER * jnp.diagonal(lower)))
        log_weights = log_evidence - log_q
        weights = jax.nn.softmax(log_weights)
        mean = weights @ nodes
        # Where a single node holds the weight the proposal only moves there.
        least = 1e-3 * jnp.diag(jnp.diagonal(lower @ lower.T))
        lower = jnp.linalg.cholesky(((nodes - mean).T * weights) @ (nodes - mean) + least)
        return (mean, lower), (log_weights, nodes, shifts, factors, sds)

    start = center, jnp.linalg.cholesky(spread.T @ spread)
    (_, spread), rounds = jax.lax.scan(weighed, start, length=ROUNDS)  # compiled once for all rounds
    log_weights, nodes, shifts, factors, sds = jax.tree.map(lambda x: x[-1], rounds)
    total = logsumexp(log_weights)
    points = jnp.tile(mode.point, (NODES, 1)).at[:, noises].set(nodes).at[:, parameters].add(shifts)
    return NoiseMixture(log_weights - total, points, factors, sds, spread), total - jnp.log(NODES)
