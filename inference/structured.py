"""Laplace for thousands of weights: a structured covariance, noises and prior sds that maximise the evidence."""

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
from physppl.density.forms import CONVERGED, GaussianForm
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.inference.evidence import free_space, with_params
from physppl.inference.gauss_newton import Problem, descend, search
from physppl.inference.gaussian import GaussianPosterior
from physppl.inference.products import Left
from physppl.inference.structures import DataSpace, Root, Structure
from physppl.internal import gaussians
from physppl.internal.errors import fit_status
from physppl.internal.precision import doubles
from physppl.language.transition import AbstractTransition
from physppl.posterior.backend import Backend, one_machine

MIN_WEIGHTS = 64  # entries from which a site counts as weights, which start at a prior draw
QUASI_NEWTON, GAUSS_NEWTON = 300, 5  # steps in each round after the first
MAX_DECREMENT = 0.01  # of a converged search, for each effective parameter


class StructuredLaplace(Backend["StructuredPosterior"]):
    """A Gaussian posterior over thousands of parameters at their mode, physics and weights jointly.

    The posterior is that of `Laplace` with an approximate covariance. Noises maximise the evidence, not the joint
    density, in which their bias grows with the number of weights; so do the prior sds of the weights where the program
    makes them `param` sites (`residual(..., weights="all", learned=True)`, one for each matrix and bias). Both by
    D. MacKay's fixed point (Neural Computation 4, 1992), with the effective number of parameters of the whole
    covariance, whatever the structure keeps of it.

    Attributes:
        structure: `DataSpace()`, `Pathwise()`, `LowRank()`, `Diagonal()`, `LastLayer(size)` or `Full()`. The default
            costs the number of outcomes squared, times that of parameters.
        rounds: of the fixed-point iteration.
        steps: of the first quasi-Newton search, at most; for models of 64 parameters and more.
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
        """Fit.

        Raises:
            TypeError: for models that are not a Dynamics, and data that are not Transitions of one machine.
            ValueError: for priors that couple parameters, and `param` sites other than prior sds.
        """
        model = one_machine("StructuredLaplace", model, data)
        param_key, start_key, fit_key, root_key = jax.random.split(key, 4)
        space, maps = free_space(param_key, model, data)
        Problem(space, model, data).check()
        z = starting_point(start_key, space, model, data)
        free = {name: maps[name].inv(value) for name, value in space.params.items()}

        def at(free) -> Problem:
            return Problem(with_params(space, maps, free), model, data)

        def run_round(carry, inputs):
            (z, free, _), (key, index) = carry, inputs
            search_key, probe_key = jax.random.split(key)
            problem, last = at(free), index == self.rounds
            if space.size >= MIN_WEIGHTS:
                z = descend(problem, z, jnp.where(index == 0, self.steps, QUASI_NEWTON))
            end = search(search_key, problem, z, jnp.where(last, self.polish, GAUSS_NEWTON))
            left = variances_left(probe_key, problem, end.point, self.structure)
            updated = update_hyperparameters(problem, maps, free, end.point, left)
            updated = jax.tree.map(lambda new, old: jnp.where(last, old, new), updated, (end.point, free))
            return (*updated, (end, left)), None

        keys = jax.random.split(fit_key, self.rounds + 1)
        blank = jax.eval_shape(lambda: run_round((z, free, None), (keys[0], 0))[0][2])
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), blank)
        (_, free, (end, left)), _ = jax.lax.scan(run_round, (z, free, blank), (keys, jnp.arange(self.rounds + 1)))
        root = covariance(root_key, at(free), end.point, self.structure)
        return StructuredPosterior(at(free), end.point, root, left, end.decrement, self.linearised)


def at(
    key: PRNGKeyArray, model: Dynamics, data: Transitions, point: Float[Array, " P"], structure: Structure, params=None
) -> "StructuredPosterior":
    """Posterior at a given point of unconstrained space and given values of the `param` sites, without a search."""
    with jax.enable_x64(True):
        data, point, params = doubles(data), doubles(point), doubles(params or {})
        problem = Problem(UnconstrainedSpace.of(model, data, params=params), model, data)
        root_key, probe_key = jax.random.split(key)
        root = covariance(root_key, problem, point, structure)
        left = variances_left(probe_key, problem, point, structure)
        return StructuredPosterior(problem, point, root, left, jnp.zeros((), point.dtype), False)


def starting_point(
    key: PRNGKeyArray, space: UnconstrainedSpace, model: Dynamics, data: Transitions
) -> Float[Array, " P"]:
    """Medians of the prior, but weights at a prior draw: at zero a network's gradient in its hidden layers vanishes."""
    draws = space.prior_draws(key, 15, model, data)
    weights = {name for name, shape in zip(space.names, space.shapes, strict=True) if np.prod(shape) >= MIN_WEIGHTS}
    return jnp.where(space.where(weights.__contains__), draws[0], jnp.median(draws, axis=0))


def covariance(key: PRNGKeyArray, problem: Problem, z: Float[Array, " P"], structure: Structure) -> Root:
    """Covariance of the parameters (all entries but the noises), in units of their prior sds at z."""
    _, whitened = problem.whitened(z, problem.log_noise(z), problem.sds(z))
    return structure.root(key, whitened, z.dtype)


def variances_left(key: PRNGKeyArray, problem: Problem, z: Float[Array, " P"], structure: Structure) -> Left:
    """Variances that the data leave, of the parameters and of the errors, at z."""
    _, whitened = problem.whitened(z, problem.log_noise(z), problem.sds(z))
    return structure.left(key, whitened, z.dtype)


def effective(problem: Problem, left: Left) -> Float[Array, " D"]:
    """Effective number of parameters in each output: its outcomes minus the sum of the variances left of its errors."""
    valid = jnp.asarray(problem.data.valid)[:, None]
    return jnp.sum(jnp.where(valid, 1 - left.errors.reshape(len(valid), -1), 0.0), axis=0)


def update_hyperparameters(problem: Problem, maps, free, z, left: Left) -> tuple[Float[Array, " P"], dict]:
    """One fixed-point step to noises and prior sds that maximise the evidence (D. MacKay, 1992).

    At the maximum the sum of (weight / prior sd)^2 over a group of weights equals gamma, its number of effective
    parameters; and the noise variance of an output is the sum of its squared errors over N - gamma.
    """
    log_noise, sds = problem.log_noise(z), problem.sds(z)
    squares = jnp.sum(problem.error(z, log_noise) ** 2, axis=0)
    z = z.at[problem.noises].set(_noise_entries(problem, z, log_noise, squares, effective(problem, left)))

    def at(free) -> Problem:
        return problem._replace(space=with_params(problem.space, maps, free))

    # Derivatives in the log of a prior sd of `count` weights: of the log prior at z, squares - count with squares the
    # sum of (weight / sd)^2; of the log prior at zero, -count; of -tr(C H) / 2, with C the posterior covariance and H
    # the prior's curvature, count - gamma. The fixed point multiplies the sd by sqrt(squares / gamma).
    flat, unflat = ravel_pytree(free)
    if not flat.size:
        return z, free

    def log_prior(flat, z):
        return at(unflat(flat)).log_prior(z)

    count = -jax.grad(log_prior)(flat, z.at[problem.parameters].set(0.0))
    weight_squares = jax.grad(log_prior)(flat, z) + count
    variances = sds**2 * left.parameters
    trace = jax.grad(lambda flat: -0.5 * variances @ at(unflat(flat)).prior_precision(z)[problem.parameters])
    ratio = (jnp.maximum(weight_squares, 0.0) + 1e-3) / (jnp.maximum(count - trace(flat), 0.0) + 1e-3)
    return z, unflat(flat + jnp.clip(0.5 * jnp.log(ratio), -1.0, 1.0))


def _noise_entries(problem: Problem, z, log_noise, squares, gamma) -> Float[Array, " K"]:
    """Entries of the noises that maximise the evidence at fixed gamma and squared errors, by Newton's method."""
    noises, rows = problem.noises, jnp.sum(problem.data.valid)

    def density(entries):
        point = z.at[noises].set(entries)
        ratio = problem.log_noise(point) - log_noise
        return problem.log_prior(point) - jnp.sum((rows - gamma) * ratio + 0.5 * squares * jnp.exp(-2 * ratio))

    def newton(_, entries):
        slope, curvature = jax.grad(density)(entries), jax.hessian(density)(entries)
        bounded = jnp.minimum(jnp.diagonal(curvature), -1e-3)
        return entries - jnp.clip(slope / bounded, -1.0, 1.0)

    return jax.lax.fori_loop(0, 30 if len(noises) else 0, newton, z[noises])


class StructuredPosterior(GaussianPosterior):
    """A Gaussian in unconstrained space with a structured covariance, at noises that maximise the evidence.

    Attributes:
        mode: (P,) in unconstrained space.
        root: of the covariance of the parameters (all entries but the noises), in units of `sds`, their prior sds.
        noise_factor: (K, K), the inverse Cholesky factor of the noises' curvature.
        log_evidence: Laplace's estimate of log p(data), nats, with the determinant that the structure gives; its facts
            have that determinant's standard error, infinite for `Diagonal` and `LastLayer`, which give another one.
        decrement: squared length of the remaining step to the mode, in posterior sds.
        effective: number of effective parameters.
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

    def __init__(self, problem: Problem, mode, root: Root, left: Left, decrement, linearised: bool):
        self.space, self.model, self.data = problem
        self.mode, self.root, self.decrement, self.linearised = mode, root, decrement, linearised
        self.method, self.sds = "StructuredLaplace", problem.sds(mode)
        noises, rows = problem.noises, jnp.sum(problem.data.valid)
        slopes = jax.jacfwd(problem.log_noise)(mode)[:, noises]
        prior = jnp.diag(problem.prior_precision(mode)[noises])
        self.noise_factor = gaussians.inverse_factor(2 * rows * slopes.T @ slopes + prior)
        log_noise = problem.log_noise(mode)
        log_joint = problem.log_joint(mode, log_noise)
        # Half the log determinant of the covariance, diag(sds) (I + A' A)^-1 diag(sds) with the block of the noises.
        log_root = jnp.sum(jnp.log(self.sds)) - root.half_log_det + jnp.sum(jnp.log(jnp.diagonal(self.noise_factor)))
        self.log_evidence = log_joint + 0.5 * len(mode) * jnp.log(2 * jnp.pi) + log_root
        self.effective = jnp.sum(effective(problem, left))
        converged = decrement < jnp.maximum(CONVERGED, MAX_DECREMENT * self.effective)
        definite = jnp.isfinite(log_root) & jnp.all(problem.prior_precision(mode)[problem.parameters] > 0)
        self.status = fit_status(converged, definite=definite, finite=jnp.isfinite(log_joint))

    def facts(self) -> dict[str, float]:
        facts = {name: float(getattr(self, name)) for name in ("log_evidence", "decrement", "effective")}
        return facts | {"log_evidence_error": float(self.root.error)}

    @property
    def _problem(self) -> Problem:
        return Problem(self.space, self.model, self.data)

    @property
    def factor(self) -> Float[Array, "r P"]:
        """Explicit factor W, where the covariance is W' W."""
        with jax.enable_x64(True):
            problem, identity = self._problem, jnp.eye(len(self.sds), dtype=self.mode.dtype)
            block = self.root.along(identity).T * self.sds
            factor = jnp.zeros((len(block) + len(problem.noises), len(self.mode)), self.mode.dtype)
            factor = factor.at[: len(block), problem.parameters].set(block)
            return factor.at[len(block) :, problem.noises].set(self.noise_factor)

    def site_space(self) -> UnconstrainedSpace:
        return self.space

    def unconstrained(self) -> GaussianForm:
        return GaussianForm(self.space, self.mode, self.factor, self.decrement, True, self.linearised)

    def _noise_factor(self) -> Float[Array, "K K"]:
        return self.noise_factor

    def _points(self, key: PRNGKeyArray, count: int) -> Float[Array, "count P"]:
        parameter_key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (count, len(self.noise_factor)), self.mode.dtype)
        shifts = self.root.draw(parameter_key, count) * self.sds
        points = jnp.tile(self.mode, (count, 1)).at[:, self._problem.parameters].add(shifts)
        return points.at[:, self._problem.noises].add(noise @ self.noise_factor)

    def _draw(self, key: PRNGKeyArray) -> AbstractTransition:
        point = self._points(key, 1)[0]
        return self._linearised(point - self.mode) if self.linearised else self._transition(point)

    def _basis(self, states, actions, times):
        rows = Transitions(states, actions, times=times)
        means, jacobians = row_jacobians(self.space, self.model, rows, self.mode, self.data)
        return means, self.root.along(jacobians[..., self._problem.parameters] * self.sds)

    def _entropy(self) -> Float[Array, ""]:
        """Entropy of the parameters with the structure's determinant; fixed parameters count with their prior's."""
        gaussian = 0.5 * len(self.sds) * (1 + jnp.log(2 * jnp.pi))
        return gaussian + jnp.sum(jnp.log(self.sds)) - self.root.half_log_det
