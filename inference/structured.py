"""Laplace for thousands of weights: the covariance held by a structure, noises and prior sds by the evidence."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PRNGKeyArray

from physppl.data.transitions import Transitions
from physppl.density.curvature import row_jacobians
from physppl.density.forms import GaussianForm
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.inference.evidence import free_space
from physppl.inference.gauss_newton import Problem, descend, search
from physppl.inference.structures import DataSpace, Root, Structure
from physppl.internal import gaussians
from physppl.internal.errors import Status
from physppl.internal.precision import doubles
from physppl.language.transition import AbstractTransition, LinearisedTransition
from physppl.posterior.backend import Backend
from physppl.posterior.posterior import Posterior

MANY = 64  # entries of a site from which they are taken for weights, which start at a draw of their prior
PROBES = 64  # draws by which effective parameters are counted
ROUND = (300, 5)  # quasi-Newton and Gauss-Newton steps of each later round of evidence
NEAR = 0.01  # squared sds to the mode of an effective parameter, up to which a search has converged


class StructuredLaplace(Backend["StructuredPosterior"]):
    """A Gaussian belief about thousands of parameters at their mode, physics and weights jointly.

    The posterior is that of `Laplace` but for how its covariance is held. Noises maximise the evidence, not the joint
    density, in which their bias grows with the number of weights; so do the prior sds of the weights where the program
    leaves them open (`residual(..., weights="all", learned=True)`, one for each matrix and bias). Both by D. MacKay's
    fixed point (Neural Computation 4, 1992), with effective parameters counted by draws of the belief.

    Attributes:
        structure: `DataSpace()`, `Pathwise()`, `LowRank()`, `Diagonal()`, `LastLayer(size)` or `Full()`; of the default
            the cost is the number of outcomes squared, times that of parameters.
        rounds: of the fixed point.
        steps: of the quasi-Newton search at most, from the start of 64 parameters and more.
        polish: Gauss-Newton steps at the end, at most.
        linearised: draws of the linearised function, as in `Laplace`.
    """

    structure: Structure = DataSpace()
    rounds: int = eqx.field(default=8, static=True)
    steps: int = eqx.field(default=1500, static=True)
    polish: int = eqx.field(default=20, static=True)
    linearised: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        if not isinstance(self.structure, Structure):
            got = self.structure if isinstance(self.structure, type) else type(self.structure)
            raise TypeError(f"StructuredLaplace: `structure` must be an object such as DataSpace(); got {got}.")
        if self.rounds < 0 or self.steps < 0 or self.polish < 1:
            raise ValueError(
                "StructuredLaplace needs rounds >= 0, steps >= 0 and polish >= 1; got "
                f"{self.rounds}, {self.steps} and {self.polish}."
            )

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> "StructuredPosterior":
        """The belief.

        Raises:
            TypeError: for models that are not a Dynamics, and data that are not Transitions of one machine.
            ValueError: for priors that couple parameters, and `param` sites that are no prior's sds.
        """
        if not isinstance(model, Dynamics) or not isinstance(data, Transitions) or data.batch_shape:
            got = f"{type(model).__name__} and {type(data).__name__}"
            raise TypeError(f"StructuredLaplace takes Transitions of one machine and a Dynamics; got {got}.")
        param_key, start_key, fit_key = jax.random.split(key, 3)
        space, maps = free_space(param_key, model, data)
        Problem(space, model, data).check()
        z = start(start_key, space, model, data)
        free = {name: maps[name].inv(value) for name, value in space.params.items()}

        def at(free) -> Problem:
            params = {name: maps[name](value) for name, value in free.items()}
            return Problem(space.holding(params), model, data)

        def one(carry, inputs):
            (z, free, _), (key, index) = carry, inputs
            search_key, root_key, probe_key = jax.random.split(key, 3)
            problem, last = at(free), index == self.rounds
            if space.size >= MANY:
                z = descend(problem, z, jnp.where(index == 0, self.steps, ROUND[0]))
            found = search(search_key, problem, z, jnp.where(last, self.polish, ROUND[1]))
            root = covariance(root_key, problem, found.point, self.structure)
            moved = improved(probe_key, problem, maps, free, found.point, root)
            later = jax.tree.map(lambda new, old: jnp.where(last, old, new), moved, (found.point, free))
            return (*later, (found, root)), None

        keys = jax.random.split(fit_key, self.rounds + 1)
        nothing = jax.eval_shape(lambda: one((z, free, None), (keys[0], 0))[0][2])
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nothing)
        (_, free, (found, root)), _ = jax.lax.scan(one, (z, free, nothing), (keys, jnp.arange(self.rounds + 1)))
        return StructuredPosterior(at(free), found.point, root, found.decrement, self.linearised)


def at(
    key: PRNGKeyArray, model: Dynamics, data: Transitions, point: Float[Array, " P"], structure: Structure, params=None
) -> "StructuredPosterior":
    """The belief at a given point of virtual space and values of the `param` sites: no search."""
    with jax.enable_x64(True):
        data, point, params = doubles(data), doubles(point), doubles(params or {})
        problem = Problem(UnconstrainedSpace.of(model, data, params=params), model, data)
        root = covariance(key, problem, point, structure)
        return StructuredPosterior(problem, point, root, jnp.zeros((), point.dtype), False)


def start(key: PRNGKeyArray, space: UnconstrainedSpace, model: Dynamics, data: Transitions) -> Float[Array, " P"]:
    """Medians of the prior, but weights at a draw: at zero a network has no slope along its hidden layers."""
    draws = jax.vmap(lambda k: space.draw_prior(k, model, data))(jax.random.split(key, 15))
    many = {name for name, shape in zip(space.names, space.shapes, strict=True) if np.prod(shape) >= MANY}
    return jnp.where(space.where(many.__contains__), draws[0], jnp.median(draws, axis=0))


def covariance(key: PRNGKeyArray, problem: Problem, z: Float[Array, " P"], structure: Structure) -> Root:
    """Of all but the noises, in units of the prior's sds at z."""
    _, whitened = problem.whitened(z, problem.log_noise(z), problem.sds(z))
    return structure.root(key, whitened, z.dtype)


def improved(key, problem: Problem, maps, free, z, root: Root) -> tuple[Float[Array, " P"], dict]:
    """Noises and prior sds where the evidence has its maximum, if effective parameters and errors stay what they are.

    At the maximum, what the data explain of a group of weights is the number of its parameters that they determine:
    the sum of (weight / prior sd)^2 equals gamma; and N - gamma squared errors of an output are its noise variance.
    """
    log_noise, sds = problem.log_noise(z), problem.sds(z)
    error, whitened = problem.whitened(z, log_noise, sds)
    shape = (-1, len(log_noise))
    along = root.spread(key, PROBES)
    gamma = jnp.sum(whitened.pushed(along) ** 2, axis=0).reshape(shape).sum(axis=0)
    squares = jnp.sum(error.reshape(shape) ** 2, axis=0)
    z = z.at[problem.noises].set(_noises(problem, z, log_noise, squares, gamma))

    def prior(free, z):
        params = {name: maps[name](value) for name, value in free.items()}
        return problem._replace(space=problem.space.holding(params))

    # With the log of a prior sd the log density changes by squares - count, at zero by -count; half of the curvature's
    # trace with the belief's covariance by count - gamma.
    flat, unflat = ravel_pytree(free)
    if not flat.size:
        return z, free
    logs = lambda flat: prior(unflat(flat), z)  # noqa: E731
    origin = z.at[problem.others].set(0.0)
    own = jax.grad(lambda flat: logs(flat).log_prior(z))(flat)
    count = -jax.grad(lambda flat: logs(flat).log_prior(origin))(flat)
    spread = sds**2 * jnp.sum(along**2, axis=0)
    left = jax.grad(lambda flat: -0.5 * spread @ logs(flat).prior_precision(z)[problem.others])(flat)
    explained, determined = own + count, count - left
    ratio = (jnp.maximum(explained, 0.0) + 1e-3) / (jnp.maximum(determined, 0.0) + 1e-3)
    return z, unflat(flat + jnp.clip(0.5 * jnp.log(ratio), -1.0, 1.0))


def _noises(problem: Problem, z, log_noise, squares, gamma) -> Float[Array, " K"]:
    """Entries of the noises at the maximum, by Newton's method."""
    noises, rows = problem.noises, jnp.sum(problem.data.valid)

    def density(entries):
        later = z.at[noises].set(entries)
        ratio = problem.log_noise(later) - log_noise
        return problem.log_prior(later) - jnp.sum((rows - gamma) * ratio + 0.5 * squares * jnp.exp(-2 * ratio))

    def newton(_, entries):
        slope, curvature = jax.grad(density)(entries), jax.hessian(density)(entries)
        bounded = jnp.minimum(jnp.diagonal(curvature), -1e-3)
        return entries - jnp.clip(slope / bounded, -1.0, 1.0)

    return jax.lax.fori_loop(0, 30 if len(noises) else 0, newton, z[noises])


class StructuredPosterior(Posterior):
    """A Gaussian in virtual space whose covariance is held by a structure; its noises maximise the evidence.

    Attributes:
        mode: (P,) in virtual space.
        root: of the covariance of all but the noises, in units of `sds`, their prior sds.
        noise_factor: (K, K), the inverse Cholesky factor of the noises' curvature.
        log_evidence: Laplace's estimate of log p(data), nats, with the structure's determinant.
        decrement: squared length of the step left to the mode, in posterior sds.
        effective: parameters that the data determine.
    """

    space: UnconstrainedSpace
    mode: Float[Array, " P"]
    root: Root
    sds: Float[Array, " O"]
    noise_factor: Float[Array, "K K"]
    log_evidence: Float[Array, ""]
    decrement: Float[Array, ""]
    effective: Float[Array, ""]
    linearised: bool = eqx.field(static=True)

    def __init__(self, problem: Problem, mode, root: Root, decrement, linearised: bool):
        self.space, self.model, self.data = problem
        self.mode, self.root, self.decrement, self.linearised = mode, root, decrement, linearised
        self.method, self.sds = "StructuredLaplace", problem.sds(mode)
        noises, rows = problem.noises, jnp.sum(problem.data.valid)
        slopes = jax.jacfwd(problem.log_noise)(mode)[:, noises]
        prior = jnp.diag(problem.prior_precision(mode)[noises])
        self.noise_factor = gaussians.inverse_factor(2 * rows * slopes.T @ slopes + prior)
        log_noise = problem.log_noise(mode)
        log_joint = problem.log_joint(mode, log_noise)
        narrower = jnp.sum(jnp.log(self.sds)) - root.half_log_det + jnp.sum(jnp.log(jnp.diagonal(self.noise_factor)))
        self.log_evidence = log_joint + 0.5 * len(mode) * jnp.log(2 * jnp.pi) + narrower
        _, whitened = problem.whitened(mode, log_noise, self.sds)
        self.effective = jnp.sum(whitened.pushed(root.spread(jax.random.key(0), PROBES)) ** 2)
        close = decrement < jnp.maximum(2e-4, NEAR * self.effective)
        status = jnp.where(close, Status.OK, Status.NOT_CONVERGED)
        definite = jnp.isfinite(narrower) & jnp.all(problem.prior_precision(mode)[problem.others] > 0)
        status = jnp.where(definite, status, Status.NOT_POSITIVE_DEFINITE)
        self.status = jnp.where(jnp.isfinite(log_joint), status, Status.NONFINITE)

    def facts(self) -> dict[str, float]:
        return {name: float(getattr(self, name)) for name in ("log_evidence", "decrement", "effective")}

    @property
    def _problem(self) -> Problem:
        return Problem(self.space, self.model, self.data)

    @property
    def factor(self) -> Float[Array, "r P"]:
        """W with covariance = W' W, multiplied out."""
        with jax.enable_x64(True):
            problem, own = self._problem, self.root.along(jnp.eye(len(self.sds), dtype=self.mode.dtype)).T * self.sds
            whole = jnp.zeros((len(own) + len(problem.noises), len(self.mode)), self.mode.dtype)
            whole = whole.at[: len(own), problem.others].set(own)
            return whole.at[len(own) :, problem.noises].set(self.noise_factor)

    def site_space(self) -> UnconstrainedSpace:
        return self.space

    def unconstrained(self) -> GaussianForm:
        return GaussianForm(self.space, self.mode, self.factor, self.decrement, True, self.linearised)

    def _points(self, key: PRNGKeyArray, count: int) -> Float[Array, "count P"]:
        own_key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (count, len(self.noise_factor)), self.mode.dtype)
        points = (
            jnp.tile(self.mode, (count, 1)).at[:, self._problem.others].add(self.root.draw(own_key, count) * self.sds)
        )
        return points.at[:, self._problem.noises].add(noise @ self.noise_factor)

    def _bind(self, z) -> AbstractTransition:
        return self.model.bind(self.space.sites(self.model, z, self.data))

    def _draw(self, key: PRNGKeyArray) -> AbstractTransition:
        point = self._points(key, 1)[0]
        if not self.linearised:
            return self._bind(point)
        transition, tangent = jax.jvp(self._bind, (self.mode,), (point - self.mode,))
        return LinearisedTransition(transition.sites, transition.noise, self.model, tangent.sites)

    def _basis(self, states, actions, times):
        rows = Transitions(states, actions, times=times)
        means, jacobians = row_jacobians(self.space, self.model, rows, self.mode, self.data)
        return means, self.root.along(jacobians[..., self._problem.others] * self.sds)

    def _mean(self) -> AbstractTransition:
        return self._bind(self.mode)

    def _entropy(self) -> Float[Array, ""]:
        """With the structure's determinant: of parameters that it holds, the prior's."""
        gaussian = 0.5 * len(self.sds) * (1 + jnp.log(2 * jnp.pi))
        return gaussian + jnp.sum(jnp.log(self.sds)) - self.root.half_log_det

    def _samples(self, key: PRNGKeyArray, draws: int):
        samples = jax.vmap(lambda z: self.space.values(self.model, z, self.data))(self._points(key, draws))
        return jax.tree.map(lambda x: x[None], samples)

    def _noise(self) -> Array:
        return self._bind(self.mode).noise
