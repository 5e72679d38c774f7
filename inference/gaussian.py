"""Posteriors that are Gaussian in unconstrained space, and what an uncertain process noise adds to them."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.transitions import Transitions
from physppl.density.curvature import MANY, row_jacobians, scatter
from physppl.density.forms import CONVERGED, FLAT, FoundModes, GaussianForm
from physppl.density.mode import Mode
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics.sensors import OFFSETS
from physppl.inference import noise_mixture
from physppl.inference.noise_mixture import NoiseMixture
from physppl.internal import gaussians
from physppl.internal.errors import Status, fit_status
from physppl.language.noise import PROCESS
from physppl.language.transition import AbstractTransition, LinearisedTransition, Transition
from physppl.posterior.base import of_program, root_mean_square, with_fields
from physppl.posterior.posterior import Posterior

NODES = 16  # values of an uncertain noise in a predictive distribution


class GaussianPosterior(Posterior):
    """A Gaussian in unconstrained space, with the functions at its points or linearised at the mode."""

    space: eqx.AbstractVar[UnconstrainedSpace]
    mode: eqx.AbstractVar[Float[Array, " P"]]
    linearised: eqx.AbstractVar[bool]
    log_evidence: eqx.AbstractVar[Float[Array, ""]]
    decrement: eqx.AbstractVar[Float[Array, ""]]

    def facts(self) -> dict[str, float]:
        return {"log_evidence": float(self.log_evidence), "decrement": float(self.decrement)}

    @abstractmethod
    def _points(self, key: PRNGKeyArray, count: int) -> Float[Array, "count P"]:
        """Draws in unconstrained space."""

    def _transition(self, z) -> Transition:
        return self.model.bind(self.space.sites(self.model, z, self.data))

    def _linearised(self, shift: Float[Array, " P"]) -> LinearisedTransition:
        """The function at `shift` from the mode, linear in the shift."""
        transition, tangent = jax.jvp(self._transition, (self.mode,), (shift,))
        return LinearisedTransition(transition.sites, transition.noise, self.model, tangent.sites)

    def _mean(self) -> AbstractTransition:
        return self._transition(self.mode)

    @abstractmethod
    def _noise_factor(self) -> Float[Array, "R N"]:
        """Factor of the covariance of the process noise's entries."""

    def _noise(self) -> Array:
        return root_mean_square(self._noises())

    def _noises(self) -> Float[Array, "K D"]:
        if self.model.knows_noise or PROCESS not in self.space.names:
            return self._transition(self.mode).noise[None]
        _, entries = noise_mixture.entries(self.space)
        factor = self._noise_factor()
        lower = jnp.linalg.cholesky(factor.T @ factor)
        nodes = self.mode[entries] + noise_mixture.lattice(NODES, len(entries)) @ lower.T
        return jax.vmap(lambda values: self._transition(self.mode.at[entries].set(values)).noise)(nodes)

    def _samples(self, key: PRNGKeyArray, draws: int):
        samples = jax.vmap(lambda z: self.space.values(self.model, z, self.data))(self._points(key, draws))
        return jax.tree.map(lambda x: x[None], samples)


class LaplacePosterior(GaussianPosterior):
    """The posterior N(mode, W' W) in unconstrained space.

    Attributes:
        mode: (P,) in unconstrained space.
        factor: W (P, P), the inverse Cholesky factor of the curvature.
        log_evidence: Laplace's estimate of log p(data), nats.
        decrement: squared length of the remaining step to the mode, in posterior sds.
        by_evidence: noises maximise the evidence, not the joint density.
        recursive: the last search was on new data alone.
        found: modes of all searches, or None.
        drop: least fall of the log density two sds from the mode, as in `GaussianForm`; None where nobody looked.
        mixture: the posterior itself where the noise is uncertain and rows are few; mode and factor are its moments.
    """

    space: UnconstrainedSpace
    mode: Float[Array, " P"]
    factor: Float[Array, "P P"]
    log_evidence: Float[Array, ""]
    decrement: Float[Array, ""]
    steps: Array
    linearised: bool = eqx.field(static=True)
    by_evidence: bool = eqx.field(static=True)
    recursive: bool = eqx.field(default=False, static=True, kw_only=True)
    found: FoundModes | None = eqx.field(default=None, kw_only=True)
    drop: Float[Array, ""] | None = eqx.field(default=None, kw_only=True)
    mixture: NoiseMixture | None = eqx.field(default=None, kw_only=True)

    def __init__(
        self,
        model,
        data,
        space: UnconstrainedSpace,
        mode: Mode,
        linearised: bool,
        method="Laplace",
        by_evidence=False,
        found: FoundModes | None = None,
        drop=None,
        recursive=False,
    ):
        self.model, self.data, self.space, self.linearised = model, data, space, linearised
        self.method, self.by_evidence, self.recursive = method, by_evidence, recursive
        self.found, self.drop, self.mixture = found, drop, None
        self.mode, self.decrement, self.steps = mode.point, mode.decrement, mode.steps
        self.factor = gaussians.inverse_factor(mode.local.curvature)
        self.log_evidence = gaussians.log_evidence(mode.local.log_joint, self.factor)
        definite, finite = jnp.all(jnp.isfinite(self.factor)), jnp.isfinite(mode.local.log_joint)
        status = fit_status(mode.decrement < CONVERGED, definite=definite, finite=finite)
        flat = jnp.zeros((), bool) if drop is None else drop < FLAT
        self.status = jnp.where((status == Status.OK) & flat, Status.FLAT, status)

    def facts(self) -> dict[str, float]:
        return super().facts() | {"steps": int(self.steps)}

    def unconstrained(self) -> GaussianForm:
        return GaussianForm(
            self.space, self.mode, self.factor, self.decrement, self.by_evidence, self.linearised, self.recursive,
            self.found, self.drop,
        )  # fmt: skip

    def about(self, model, data, form: Any) -> "LaplacePosterior":
        return with_fields(self, model=model, data=data, space=form.space, mode=form.mode, factor=form.factor)

    def _draw(self, key: PRNGKeyArray) -> AbstractTransition:
        posterior_key, recording_key = jax.random.split(key)
        shift = self._points(posterior_key, 1)[0] - self.mode
        variation = scatter(self.space, self.model, self.data, self.mode)
        shift = shift + variation * jax.random.normal(recording_key, shift.shape, shift.dtype)
        return self._linearised(shift) if self.linearised else self._transition(self.mode + shift)

    def _basis(self, states, actions, times):
        """Derivatives along the factor's rows: half the time of a Jacobian and its product with the factor."""
        directions = self.factor
        if OFFSETS in self.space.names:
            directions = jnp.concatenate([directions, jnp.diag(scatter(self.space, self.model, self.data, self.mode))])
        if len(self.mode) > MANY * len(self.model.state):  # reverse mode is the cheaper
            rows = Transitions(states, actions, times=times)
            means, jacobians = row_jacobians(self.space, self.model, rows, self.mode, self.data)
            return means, jacobians @ directions.T
        mean, push = jax.linearize(self._transition, self.mode)
        tangents = jax.vmap(push)(directions)

        def row(time, state, action):
            def step(transition):
                return transition.stepper()(time, state, action)

            return step(mean), jax.vmap(lambda t: jax.jvp(step, (mean,), (t,))[1], out_axes=-1)(tangents)

        return jax.vmap(row)(times, states, actions)

    def _entropy(self) -> Float[Array, ""]:
        columns = self.factor[:, np.flatnonzero(of_program(self.space))]
        return gaussians.entropy(columns.T @ columns)

    def _noise_factor(self) -> Float[Array, "R N"]:
        return self.factor[:, noise_mixture.entries(self.space)[1]]

    def _noise(self) -> Array:
        if self.mixture is None:
            return super()._noise()
        return jnp.sqrt(jnp.exp(self.mixture.log_weights) @ self.mixture.noises**2)

    def _predictive(self, states, actions, times):
        if self.mixture is None:
            return super()._predictive(states, actions, times)
        log_weights, points, factors, noises, _ = self.mixture
        parameters, _ = noise_mixture.entries(self.space)
        rows = Transitions(states, actions, times=times)
        mean, jacobian = row_jacobians(self.space, self.model, rows, self.mode, self.data)
        means = mean[:, None] + jnp.einsum("mdp,kp->mkd", jacobian, points - self.mode)
        spread = jnp.einsum("mdp,krp->mkdr", jacobian[..., parameters], factors)
        return log_weights, means, gaussians.outer(spread) + jax.vmap(jnp.diag)(noises**2)

    def _points(self, key: PRNGKeyArray, count: int) -> Float[Array, "count P"]:
        if self.mixture is not None:
            return self.mixture.draws(key, count, self.space)
        return self.mode + jax.random.normal(key, (count, len(self.mode)), self.mode.dtype) @ self.factor
