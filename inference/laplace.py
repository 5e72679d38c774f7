"""Linearised Laplace: a Gaussian belief in virtual space at the joint mode."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.data import is_sequential
from physppl.data.transitions import Transitions
from physppl.density.curvature import MANY, added, gaussian_prior, likelihood, local, row_jacobians, scatter
from physppl.density.forms import GaussianForm
from physppl.density.mode import Mode, find_mode, tolerance_of, unit_of
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.dynamics.sensors import MEASUREMENT, OFFSETS, VARIATION
from physppl.internal import gaussians
from physppl.internal.errors import Status, check_key
from physppl.internal.precision import doubles
from physppl.language.transition import AbstractTransition, LinearisedTransition
from physppl.posterior.backend import Backend, prepared, raise_or_warn, union
from physppl.posterior.base import of_program, with_fields
from physppl.posterior.posterior import Posterior


class Laplace(Backend["LaplacePosterior"]):
    """Multi-start mode and Fisher curvature (MacKay 1992; Immer, Korzepa, Bauer, AISTATS 2021).

    Takes any NumPyro model; observed sites that are not Normal enter the curvature with their exact Hessian.

    Attributes:
        starts: searches run at once: the median of the prior, then prior draws. Of Trajectories only the likeliest of
            these is searched.
        steps: evaluations of each search, at most.
        linearised: draws of the linearised function instead of the nonlinear program at sampled parameters. From a
            wide prior the linearised function can be unphysical (a negative control gain).
        recursive: `update` at the cost of the new data alone, exact for linear programs with known noise.
    """

    starts: int = eqx.field(default=8, static=True)
    steps: int = eqx.field(default=200, static=True)
    linearised: bool = eqx.field(default=False, static=True)
    recursive: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        if self.starts < 1 or self.steps < 1:
            raise ValueError(f"Laplace needs starts >= 1 and steps >= 1; got {self.starts} and {self.steps}.")

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> "LaplacePosterior":
        """The belief; of recordings whose `variation` has a prior it raises ValueError."""
        space = UnconstrainedSpace.of(model, data)
        if VARIATION in space.names:
            raise ValueError(
                "Laplace: `variation` has a prior, and the joint mode of that sd and of the recordings' offsets lies "
                "far from the posterior's mass. Give a number, variation=0.04 (log_evidence compares several), or use "
                "HMC, which samples it."
            )
        evaluate = lambda z: local(space, model, data, z)  # noqa: E731
        keys = jax.random.split(key, max(self.starts, 15))
        draws = jax.vmap(lambda k: space.draw_prior(k, model, data))(keys)
        draws = draws.at[0].set(jnp.median(draws, axis=0))
        starts = draws[: self.starts]
        unit = unit_of(draws)
        if is_sequential(data):
            start = _likeliest(space, model, data, draws)
            found = find_mode(evaluate, start[None], unit, self.steps, tolerance=tolerance_of(data), patience=0)
        else:
            found = find_mode(evaluate, starts, unit, self.steps)
        return LaplacePosterior(model, data, space, found, self.linearised)

    def update(self, key: PRNGKeyArray, posterior: Posterior, data) -> "LaplacePosterior":
        """The belief after more data, by one search from yesterday's mode.

        The search is over all data, in a few evaluations, and ends where the batch fit does if that ends at the same
        mode. With `recursive`, yesterday's Gaussian is the prior of the new data (D. Spiegelhalter, S. Lauritzen,
        Networks 20, 1990), at their cost alone: precisions and log evidences add up. That is exact where the program is
        linear and the noise known; elsewhere the belief drifts from the batch fit's, and `check` tells how far. `data`
        of the belief are the union in both.

        Priors, beliefs of other backends, models that are not a Dynamics, and recordings with `variation`, whose
        offsets are the recordings' own, are refitted to the union.

        Raises:
            TypeError: for data of another kind than the belief's, naming both.
            ValueError: for data that do not fit the model's spaces, naming row and coordinate.
            FitError: where the belief cannot be used, with the cause and its remedy.
        """
        check_key(key)
        model, known = posterior.model, posterior.data
        if (
            not isinstance(posterior, LaplacePosterior)
            or not isinstance(model, Dynamics)
            or OFFSETS in posterior.space.names
            or not np.asarray(known.valid).any()
        ):
            return super().update(key, posterior, data)
        whole, new = union(known, data), prepared(model, data)
        if not np.asarray(new.valid).any():
            return posterior
        belief = (posterior.mode, posterior.factor, posterior.log_evidence)
        with jax.enable_x64(True):
            whole, new = (doubles(x, np) for x in (prepared(model, whole), new))  # compiles nothing as data grow
            later = _after(self, model, posterior.space, belief, new if self.recursive else whole)
            later = eqx.tree_at(lambda p: p.data, later, jax.tree.map(jnp.asarray, whole))
        raise_or_warn(later, type(self).__name__)
        return later


@eqx.filter_jit
def _after(backend: Laplace, model: Dynamics, space: UnconstrainedSpace, belief, data) -> "LaplacePosterior":
    """The belief after data that are new to it where the backend is recursive, else after all data."""
    mode, factor, log_evidence = jax.tree.map(lambda x: x.astype(float), belief)
    if backend.recursive:
        evaluate = lambda z: added(gaussian_prior(mode, factor, z), likelihood(space, model, data, z))  # noqa: E731
    else:
        evaluate, log_evidence = (lambda z: local(space, model, data, z)), 0.0
    unit = jnp.linalg.norm(factor, axis=0)
    found = find_mode(evaluate, mode[None], unit, backend.steps, tolerance=tolerance_of(data))
    later = LaplacePosterior(model, data, space, found, backend.linearised)
    return eqx.tree_at(lambda p: p.log_evidence, later, later.log_evidence + log_evidence)


def _likeliest(space: UnconstrainedSpace, model, data, draws) -> Float[Array, " P"]:
    """The likeliest of prior draws, with their sensors as they are and e^4 times better.

    A density costs little beside its curvature, so one start is searched. It should trust the sensors: with the reverse
    error a search can end where noise explains the motion.
    """
    sensors = space.where(lambda name: name.endswith(MEASUREMENT))
    draws = jnp.concatenate([draws, draws - 4.0 * sensors])
    density = jax.lax.map(lambda z: space.log_joint(model, z, data), draws)
    return draws[jnp.argmax(jnp.where(jnp.isfinite(density), density, -jnp.inf))]


def at(model: Callable, data, point: Float[Array, " P"], *, linearised: bool = False) -> "LaplacePosterior":
    """The Laplace belief at a given point of virtual space: curvature and factor, no search."""
    space = UnconstrainedSpace.of(model, data)
    found = Mode(point, local(space, model, data, point), jnp.zeros(()), jnp.zeros((), int))
    return LaplacePosterior(model, data, space, found, linearised)


class LaplacePosterior(Posterior):
    """N(mode, W' W) in virtual space.

    Attributes:
        mode: (P,) in virtual space.
        factor: W (P, P), the inverse Cholesky factor of the curvature.
        log_evidence: Laplace's estimate of log p(data), nats.
        decrement: squared length of the step left to the mode, in posterior sds.
        by_evidence: noises maximise the evidence, not the joint density.
    """

    space: UnconstrainedSpace
    mode: Float[Array, " P"]
    factor: Float[Array, "P P"]
    log_evidence: Float[Array, ""]
    decrement: Float[Array, ""]
    steps: Array
    linearised: bool = eqx.field(static=True)
    by_evidence: bool = eqx.field(static=True)

    def __init__(
        self, model, data, space: UnconstrainedSpace, found: Mode, linearised: bool, method="Laplace", by_evidence=False
    ):
        self.model, self.data, self.space, self.linearised = model, data, space, linearised
        self.method, self.by_evidence = method, by_evidence
        self.mode, self.decrement, self.steps = found.point, found.decrement, found.steps
        self.factor = gaussians.inverse_factor(found.local.curvature)
        self.log_evidence = gaussians.log_evidence(found.local.log_joint, self.factor)
        definite = jnp.all(jnp.isfinite(self.factor))
        status = jnp.where(found.decrement < 2e-4, Status.OK, Status.NOT_CONVERGED)
        status = jnp.where(definite, status, Status.NOT_POSITIVE_DEFINITE)
        self.status = jnp.where(jnp.isfinite(found.local.log_joint), status, Status.NONFINITE)

    def facts(self) -> dict[str, float]:
        return {
            "log_evidence": float(self.log_evidence),
            "decrement": float(self.decrement),
            "steps": int(self.steps),
        }

    def site_space(self) -> UnconstrainedSpace:
        return self.space

    def unconstrained(self) -> GaussianForm:
        return GaussianForm(self.space, self.mode, self.factor, self.decrement, self.by_evidence, self.linearised)

    def about(self, model, data, form: Any) -> "LaplacePosterior":
        return with_fields(self, model=model, data=data, space=form.space, mode=form.mode, factor=form.factor)

    def _sites(self, z) -> dict[str, Array]:
        return self.space.sites(self.model, z, self.data)

    def _draw(self, key: PRNGKeyArray) -> AbstractTransition:
        belief_key, recording_key = jax.random.split(key)
        shift = self.factor.T @ jax.random.normal(belief_key, self.mode.shape, self.mode.dtype)
        own = scatter(self.space, self.model, self.data, self.mode)
        shift = shift + own * jax.random.normal(recording_key, shift.shape, shift.dtype)
        if not self.linearised:
            return self.model.bind(self._sites(self.mode + shift))
        bind = lambda z: self.model.bind(self._sites(z))  # noqa: E731
        transition, tangent = jax.jvp(bind, (self.mode,), (shift,))
        return LinearisedTransition(transition.sites, transition.noise, self.model, tangent.sites)

    def _basis(self, states, actions, times):
        """Derivatives along the factor's rows at once: half the time of a Jacobian and its product with the factor."""
        along = self.factor
        if OFFSETS in self.space.names:
            along = jnp.concatenate([along, jnp.diag(scatter(self.space, self.model, self.data, self.mode))])
        if len(self.mode) > MANY * len(self.model.state):  # fewer derivatives back from the outputs
            rows = Transitions(states, actions, times=times)
            means, jacobians = row_jacobians(self.space, self.model, rows, self.mode, self.data)
            return means, jacobians @ along.T
        mean, push = jax.linearize(lambda z: self.model.bind(self._sites(z)), self.mode)
        tangents = jax.vmap(push)(along)

        def row(time, state, action):
            step = lambda transition: transition.stepper()(time, state, action)  # noqa: E731
            return step(mean), jax.vmap(lambda t: jax.jvp(step, (mean,), (t,))[1], out_axes=-1)(tangents)

        return jax.vmap(row)(times, states, actions)

    def _mean(self) -> AbstractTransition:
        return self.model.bind(self._sites(self.mode))

    def _entropy(self) -> Float[Array, ""]:
        columns = self.factor[:, np.flatnonzero(of_program(self.space))]
        return gaussians.entropy(columns.T @ columns)

    def _samples(self, key: PRNGKeyArray, draws: int):
        noise = jax.random.normal(key, (draws, len(self.mode)), self.mode.dtype)
        points = self.mode + noise @ self.factor
        samples = jax.vmap(lambda z: self.space.values(self.model, z, self.data))(points)
        return jax.tree.map(lambda x: x[None], samples)

    def _noise(self) -> Array:
        return self.model.bind(self._sites(self.mode)).noise
