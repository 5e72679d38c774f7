"""The joint density around one point of unconstrained space: value, gradient, curvature.

Curvature is the Fisher information of the observed Gaussians in (mean, log scale) plus the negative Hessian of all
other log densities, as a rule the prior's. A mean-only Gauss-Newton would leave the noise with its prior's curvature,
and the exact Hessian of the likelihood can be indefinite.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import polygamma
from jaxtyping import Float

from physppl.data.trajectories import Trajectories
from physppl.data.transitions import Transitions
from physppl.density.unconstrained import Gaussian, UnconstrainedSpace, gaussians, latent_part
from physppl.dynamics import Dynamics
from physppl.dynamics.likelihood import Dependence
from physppl.dynamics.sensors import GAIN, MEASUREMENT, OFFSETS, TIMING, of_program
from physppl.internal.gaussians import lower_inverse
from physppl.internal.truncated import truncated
from physppl.language.noise import FLOOR, PROCESS

NOISES = (PROCESS, MEASUREMENT, GAIN, TIMING)
# A half-normal prior of an sd has the sd pi / sqrt(8) in its logarithm, but no curvature far below its scale.
NOISE_CURVATURE = 8 / np.pi**2
MANY = 16  # inputs per output above which reverse mode is faster


class Local(NamedTuple):
    """Log joint density around one point of unconstrained space, to second order."""

    log_joint: Float[Array, ""]
    gradient: Float[Array, " P"]
    curvature: Float[Array, "P P"]


def local(
    space: UnconstrainedSpace, model: Callable, data, z: Float[Array, " P"], *, noises_held: bool = False
) -> Local:
    """Log joint density at z, its gradient and its curvature.

    Args:
        noises_held: True to hold the noises of a Dynamics fixed, without derivatives along them.
    """
    (rest, slope), push = jax.linearize(jax.value_and_grad(lambda z: space.log_prior(model, z, data)), z)
    _, hessian = jax.vmap(push)(jnp.eye(len(z), dtype=z.dtype))
    total = Local(rest, slope, -hessian)
    if isinstance(model, Dynamics) and model.likelihood(data).dependence is Dependence.RECORDINGS:
        # Readings tell sums of noises, and a Gaussian would let one of them grow without bound as another shrinks. Each
        # keeps at least its prior's own width.
        short = jnp.maximum(NOISE_CURVATURE + jnp.diagonal(hessian), 0.0)
        total = total._replace(
            curvature=total.curvature + jnp.diag(jnp.where(space.where(NOISES.__contains__), short, 0.0))
        )
    for site, *jacobians in _observed(lambda z: space.trace(*latent_part(model, z, data)), z):
        total = added(total, _gaussian(site, *jacobians))
    if isinstance(model, Dynamics):
        total = added(total, likelihood(space, model, data, z, noises_held=noises_held))
    return total


def likelihood(
    space: UnconstrainedSpace, model: Dynamics, data, z: Float[Array, " P"], *, noises_held: bool = False
) -> Local:
    """Likelihood of a Dynamics' outcomes, without the prior, differentiated as their dependence allows."""
    dependence = model.likelihood(data).dependence
    if dependence is Dependence.ROWS:
        return _rows(space, model, data, z, noises_held or model.knows_noise)
    return _recordings(space, model, data, z) if dependence is Dependence.RECORDINGS else _joint(space, model, data, z)


def gaussian_prior(mode: Float[Array, " P"], factor: Float[Array, "P P"], z: Float[Array, " P"]) -> Local:
    """A Gaussian N(mode, W' W) in the place of the prior; W is the inverse factor of its precision."""
    lower = lower_inverse(factor)
    white = lower.T @ (z - mode)
    log_density = -0.5 * (white @ white + len(z) * jnp.log(2 * jnp.pi)) + jnp.sum(jnp.log(jnp.diagonal(lower)))
    return Local(log_density, -lower @ white, lower @ lower.T)


def added(one: Local, other: Local) -> Local:
    """Sum of two log densities, of their gradients and of their curvatures."""
    return Local(*(a + b for a, b in zip(one, other, strict=True)))


def _gaussian(site: Gaussian, of_mean: Float[Array, "*N P"], of_scale: Float[Array, "*S P"], of_df=None) -> Local:
    """One observed Gaussian site with the Jacobians of its mean, of its log scale and, of a Student-t, of its df."""
    size = of_mean.shape[-1]
    root_weight = jnp.broadcast_to(site.root_weight, site.mean.shape)
    weight, precision = root_weight**2, root_weight * jnp.exp(-site.log_scale)
    error = (site.value - site.mean) * precision  # whitened
    df = square = jnp.ones(())
    excess = None  # mean of the squared errors minus 1, in weights
    if site.bounds is not None:
        # The log probability of an interval is concave in the mean, with the curvature 1 - variance within it; that of
        # the log scale is what a reading would tell that moves the mean as much.
        part = truncated(site.mean, jnp.exp(site.log_scale), *site.bounds)
        told = 1 - part.variance
        density, error = weight * part.log_mass, root_weight * part.mean
        excess = weight * (part.mean**2 + part.variance - 1)
        pull, of_mean_weight, of_scale_weight = jnp.ones(()), told, 2 * told**2
    elif site.df is None:
        density = -0.5 * error**2 - weight * (site.log_scale + 0.5 * jnp.log(2 * jnp.pi))
        pull, of_mean_weight, of_scale_weight = jnp.ones(()), jnp.ones(()), jnp.full((), 2.0)
    else:  # Fisher information of a Student-t: K. Lange, R. Little, J. Taylor, J. American Statistical Assoc. 84, 1989
        df = jnp.broadcast_to(site.df, site.mean.shape)
        square = ((site.value - site.mean) * jnp.exp(-site.log_scale)) ** 2
        density = weight * (dist.StudentT(df).log_prob(jnp.sqrt(square)) - site.log_scale)
        pull = (df + 1) / (df + square)
        of_mean_weight, of_scale_weight = (df + 1) / (df + 3), 2 * df / (df + 3)
    of_mean = (of_mean * precision[..., None]).reshape(-1, size)
    of_scale = of_scale.reshape(-1, size)
    gradient = (pull * error).reshape(-1) @ of_mean
    excess = pull * error**2 - weight if excess is None else excess
    gradient = gradient + _reduced(excess, site.log_scale.shape) @ of_scale
    # Tall factors multiply fastest with the long axis first.
    curvature = (of_mean.T * of_mean_weight.reshape(-1)) @ of_mean
    curvature = curvature + (of_scale.T * _reduced(of_scale_weight * weight, site.log_scale.shape)) @ of_scale
    if site.df is not None and of_df is not None:

        def broadcast(x, shape):
            return jnp.broadcast_to(x.reshape(*shape, size), (*df.shape, size)).reshape(-1, size)

        of_df, of_scale = broadcast(of_df, site.df.shape), broadcast(of_scale, site.log_scale.shape)
        score = jax.grad(lambda df: jnp.sum(dist.StudentT(df).log_prob(jnp.sqrt(square))))(df)
        gradient = gradient + (weight * score).reshape(-1) @ of_df
        df_weight = (polygamma(1, df / 2) - polygamma(1, (df + 1) / 2)) / 4 - (df + 5) / (2 * df * (df + 1) * (df + 3))
        cross = (of_df.T * (-2 * weight / ((df + 1) * (df + 3))).reshape(-1)) @ of_scale
        curvature = curvature + (of_df.T * (df_weight * weight).reshape(-1)) @ of_df + cross + cross.T
    return Local(jnp.sum(density), gradient, curvature)


def _moments(site: Gaussian) -> tuple[Array, ...]:
    """Parameters of a site's distribution, in the order of `_gaussian`'s Jacobians."""
    return (site.mean, site.log_scale) if site.df is None else (site.mean, site.log_scale, site.df)


def _reduced(value, shape):
    """Sum over the axes along which a scale of this shape was broadcast; flat."""
    shape = (1,) * (value.ndim - len(shape)) + tuple(shape)
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and value.shape[i] != 1)
    return jnp.sum(value, axes, keepdims=True).reshape(-1)


def _observed(trace: Callable[[Array], dict[str, Any]], z) -> Iterator[tuple]:
    """Observed Gaussian sites of a trace at z, with their moments' Jacobians."""

    def moments(z):
        sites = gaussians(trace(z))
        return {name: _moments(site) for name, site in sites.items()}, sites

    _, push, sites = jax.linearize(moments, z, has_aux=True)
    jacobians = jax.vmap(push, out_axes=-1)(jnp.eye(len(z), dtype=z.dtype))
    for name, site in sites.items():
        yield site, *jacobians[name]


def _joint(space: UnconstrainedSpace, model: Dynamics, data, z) -> Local:
    """Likelihood of any outcomes, differentiated as a whole; the exact Hessian unless they are Normal or Student-t."""
    name = model.likelihood(data).site

    def outcomes(z):
        return {name: space.trace(model, z, data)[name]}

    def log_density(z):
        return space.log_densities(outcomes(z), z)[1]

    if gaussians(outcomes(z)):
        [(site, *jacobians)] = _observed(outcomes, z)
        return _gaussian(site, *jacobians)
    return Local(*jax.value_and_grad(log_density)(z), -jax.hessian(log_density)(z))


def _recordings(space: UnconstrainedSpace, model: Dynamics, data: Trajectories, z) -> Local:
    """Likelihood of recordings, each differentiated at its own parameters, then along z by the chain rule."""
    single = model.without_variation()
    single_space = UnconstrainedSpace.of(single, data)

    def recording(v, row: Trajectories) -> Local:
        row = jax.tree.map(lambda x: x[None], row)

        def moments(v):
            site = gaussians(single_space.trace(single, v, row))["observation"]
            return _moments(site), site

        # jax.linearize would store all intermediate values along a recording; forward mode needs none.
        def push(tangent):
            return jax.jvp(moments, (v,), (tangent,), has_aux=True)

        _, jacobians, site = jax.vmap(push, out_axes=(None, -1, None))(jnp.eye(len(v), dtype=v.dtype))
        return _gaussian(site, *jacobians)

    def points(z):
        return recording_points(space, single_space, model, data, z)

    expansions = jax.vmap(recording)(points(z), data.rows())
    jacobian = jax.jacfwd(points)(z)
    gradient = jnp.einsum("rp,rpq->q", expansions.gradient, jacobian)
    curvature = jnp.einsum("rap,rab,rbq->pq", jacobian, expansions.curvature, jacobian)
    # Where the data show no noise, the log density falls in proportion to its variance, -c exp(2 l) in its log sd l:
    # the curvature 4 c exp(2 l) is minus twice the slope. The Fisher information of l vanishes there, with which the
    # posterior would reach to a noise of any size.
    lacking = jnp.maximum(-2 * gradient - jnp.diagonal(curvature), 0.0)
    curvature = curvature + jnp.diag(jnp.where(space.where(NOISES.__contains__), lacking, 0.0))
    return Local(jnp.sum(expansions.log_joint), gradient, curvature)


def recording_points(
    space: UnconstrainedSpace, single: UnconstrainedSpace, model: Dynamics, data: Trajectories, z
) -> Float[Array, "R Q"]:
    """Each recording's point in unconstrained space `single`, of the model without variation."""
    parts, count = space.split(z), data.rows().batch_shape[0]
    points = jnp.broadcast_to(jnp.concatenate([parts[name].reshape(-1) for name in single.names]), (count, single.size))
    if model.sensing.variation is None:
        return points
    sd = model.sensing.variation.value(space.sites(model, z, data))
    return points + varying(single, sd * parts[OFFSETS])


def varying(single: UnconstrainedSpace, offsets: Float[Array, "... V"]) -> Float[Array, "... Q"]:
    """Offsets of the program's sites, with zeros for the others."""
    entries = np.flatnonzero(single.where(of_program))
    return jnp.zeros((*offsets.shape[:-1], single.size), offsets.dtype).at[..., entries].set(offsets)


def scatter(space: UnconstrainedSpace, model, data, z: Float[Array, " P"]) -> Float[Array, " P"]:
    """Sd, in unconstrained space, of a new recording's parameters about those at z; zero without variation."""
    if OFFSETS not in space.names or not isinstance(model, Dynamics) or model.sensing.variation is None:
        return jnp.zeros_like(z)
    sd = model.sensing.variation.value(space.sites(model, z, data))
    return varying(space, jnp.broadcast_to(sd, space.split(z)[OFFSETS].shape[-1:]))


def _rows(space: UnconstrainedSpace, model: Dynamics, data, z, noises_held: bool) -> Local:
    """Likelihood of transitions, differentiated row by row: a fifth faster than the batch as a whole."""
    means, of_mean = row_jacobians(space, model, data, z)

    def log_noise(z):
        return jnp.log(model.bind(space.sites(model, z, data)).noise)

    site = Gaussian(means, log_noise(z), model.outcomes(data), data.valid[:, None].astype(z.dtype))
    if noises_held:
        return _gaussian(site, of_mean, jnp.zeros((*site.log_scale.shape, len(z)), z.dtype))
    rows = _gaussian(site, of_mean, jax.jacfwd(log_noise)(z))
    # Where the data are less noisy than the noise's floor, the Fisher information of the log noise vanishes, and only
    # the floor's own curvature bounds the noise from above.
    excess = jnp.sum(site.root_weight * (1 - ((site.value - means) * jnp.exp(-site.log_scale)) ** 2), axis=0)
    at_floor = site.log_scale < jnp.log(10 * FLOOR * model.state.scale)
    excess = jnp.where(at_floor, jnp.maximum(excess, 0.0), 0.0)
    bound = jnp.diagonal(jax.hessian(lambda z: excess @ log_noise(z))(z))
    return rows._replace(curvature=rows.curvature + jnp.diag(jnp.maximum(bound, 0.0)))


def row_jacobians(
    space: UnconstrainedSpace, model: Dynamics, rows: Transitions, z, data=None
) -> tuple[Float[Array, "N D"], Float[Array, "N D P"]]:
    """Predicted next states of each row and their derivatives in unconstrained space, that of a fit to `data`."""
    fitted = rows if data is None else data

    def row(time, state, action):
        return value_and_jacobian(lambda z: model.bind(space.sites(model, z, fitted)).stepper()(time, state, action), z)

    return jax.vmap(row)(rows.times, rows.states, rows.actions)


def value_and_jacobian(function: Callable[[Array], Array], z: Float[Array, " P"]) -> tuple[Array, Float[Array, "D P"]]:
    """Value and Jacobian of a function to D numbers: in forward mode, or in reverse mode for many inputs."""
    size = jax.eval_shape(function, z).shape[0]
    if len(z) > MANY * size:
        value, pull = jax.vjp(function, z)
        return value, jax.vmap(pull)(jnp.eye(size, dtype=value.dtype))[0]
    value, push = jax.linearize(function, z)
    return value, jax.vmap(push, out_axes=-1)(jnp.eye(len(z), dtype=z.dtype))
