"""Linearised Laplace: a Gaussian posterior in unconstrained space at the joint mode."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.data import is_sequential
from physppl.density.curvature import added, gaussian_prior, likelihood, local
from physppl.density.forms import FoundModes
from physppl.density.mode import EXACT, Mode, differentiable_mode, find_mode, find_modes, tolerance_of, unit_of
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.dynamics.sensors import OFFSETS, VARIATION
from physppl.inference import noise_mixture
from physppl.inference.exploration import SCREENED, SearchTask, search_recordings
from physppl.inference.gaussian import LaplacePosterior
from physppl.internal import gaussians
from physppl.internal.errors import check_key
from physppl.internal.precision import doubles
from physppl.posterior.backend import Backend, prepared, raise_or_warn, union
from physppl.posterior.base import with_fields
from physppl.posterior.posterior import Posterior


class Laplace(Backend[LaplacePosterior]):
    """Multi-start mode and Fisher curvature (MacKay 1992; Immer, Korzepa, Bauer, AISTATS 2021).

    Takes any NumPyro model; observed sites that are not Normal enter the curvature with their exact Hessian.

    Attributes:
        starts: searches: from the prior's median, then from prior draws, side by side; the mode of the largest evidence
            is taken. On Trajectories they run one after the other, from the likeliest of many draws on, until two
            have ended at the same best mode.
        steps: evaluations of each search, at most.
        linearised: draws of the linearised function instead of the nonlinear program at sampled parameters. From a
            wide prior the linearised function can be unphysical (a negative control gain).
        recursive: `update` at the cost of the new data alone, exact for linear programs with known noise.
        differentiable: `fit` has derivatives with respect to all that it depends on, in both modes: those of the mode
            by the implicit function theorem, at the cost of an exact Hessian where they are taken.
    """

    starts: int = eqx.field(default=8, static=True)
    steps: int = eqx.field(default=200, static=True)
    linearised: bool = eqx.field(default=False, static=True)
    recursive: bool = eqx.field(default=False, static=True)
    differentiable: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        if self.starts < 1 or self.steps < 1:
            raise ValueError(f"Laplace needs starts >= 1 and steps >= 1; got {self.starts} and {self.steps}.")

    def fit(self, key: PRNGKeyArray, model: Callable, data) -> LaplacePosterior:
        """Fit; raises ValueError for recordings whose `variation` has a prior."""
        space = UnconstrainedSpace.of(model, data)
        if VARIATION in space.names:
            raise ValueError(
                "Laplace: `variation` has a prior, and the joint mode of that sd and of the recordings' offsets lies "
                "far from the posterior's mass. Give a number, variation=0.04 (log_evidence compares several), or use "
                "HMC, which samples it."
            )

        if not self.differentiable:
            mode, found, drop = self._searched(key, space, model, data)
            posterior = LaplacePosterior(model, data, space, mode, self.linearised, found=found, drop=drop)
            return over_noise(posterior, mode)
        point, (decrement, steps) = differentiable_mode(
            lambda z: space.log_joint(model, z, data), lambda: self._searched(key, space, model, data)[0]
        )
        mode = Mode(point, local(space, model, data, point), decrement, steps)
        return over_noise(LaplacePosterior(model, data, space, mode, self.linearised), mode)

    def _searched(self, key, space: UnconstrainedSpace, model, data) -> tuple[Mode, FoundModes, Array | None]:
        """The mode of the largest evidence, all modes that were found, and the fall of the density beside the best."""
        sequential = is_sequential(data)
        draws = space.prior_draws(key, SCREENED if sequential else max(self.starts, 15), model, data)
        draws = draws.at[0].set(jnp.median(draws, axis=0))
        unit, drop = unit_of(draws), None
        if sequential:
            tolerance = EXACT if self.differentiable else tolerance_of(data)
            modes, drop = search_recordings(
                SearchTask(space, model, data, unit, self.steps, self.starts, tolerance), draws
            )
        else:
            modes = find_modes(partial(local, space, model, data), draws[: self.starts], unit, self.steps)
        found = FoundModes.of(modes)
        best = found.best(modes)
        return jax.tree.map(lambda x: x[best], modes), found, drop

    def update(self, key: PRNGKeyArray, posterior: Posterior, data) -> LaplacePosterior:
        """Posterior after more data, by one search from the previous mode.

        The search is over all data, in a few evaluations, and ends where the batch fit does if that reaches the same
        mode. With `recursive`, the previous Gaussian is the prior for the new data (D. Spiegelhalter, S. Lauritzen,
        Networks 20, 1990), at their cost alone: precisions and log evidences add up. That is exact where the program is
        linear and the noise known; elsewhere the posterior drifts from the batch fit's, and `check` measures by how
        much. `data` of the new posterior are the union in both cases.

        Priors, posteriors of other backends, models that are not a Dynamics, and recordings with `variation`, each of
        which has its own offsets, are refitted to the union.

        Raises:
            TypeError: for data of another kind than the posterior's, naming both.
            ValueError: for data that do not fit the model's spaces, naming row and coordinate.
            FitError: where the posterior cannot be used, with the cause and its remedy.
        """
        check_key(key)
        model, old = posterior.model, posterior.data
        if (
            not isinstance(posterior, LaplacePosterior)
            or not isinstance(model, Dynamics)
            or OFFSETS in posterior.space.names
            or not np.asarray(old.valid).any()
        ):
            return super().update(key, posterior, data)
        whole, new = union(old, data), prepared(model, data)
        if not np.asarray(new.valid).any():
            return posterior
        gaussian = (posterior.mode, posterior.factor, posterior.log_evidence)
        with jax.enable_x64(True):
            whole, new = (doubles(x, np) for x in (prepared(model, whole), new))  # compiles nothing as data grow
            updated = _update(self, model, posterior.space, gaussian, new if self.recursive else whole)
            updated = eqx.tree_at(lambda p: p.data, updated, jax.tree.map(jnp.asarray, whole))
        raise_or_warn(updated, type(self).__name__)
        return updated


@eqx.filter_jit
def _update(backend: Laplace, model: Dynamics, space: UnconstrainedSpace, gaussian, data) -> LaplacePosterior:
    """Posterior from one search that starts at the mode of `gaussian`.

    Args:
        gaussian: mode, factor and log evidence of the previous posterior.
        data: the new data where the backend is recursive, else all data.
    """
    mode, factor, log_evidence = jax.tree.map(lambda x: x.astype(float), gaussian)

    def evaluate(z):
        if backend.recursive:
            return added(gaussian_prior(mode, factor, z), likelihood(space, model, data, z))
        return local(space, model, data, z)

    unit = jnp.linalg.norm(factor, axis=0)
    new_mode = find_mode(evaluate, mode[None], unit, backend.steps, tolerance=tolerance_of(data))
    updated = LaplacePosterior(model, data, space, new_mode, backend.linearised, recursive=backend.recursive)
    if not backend.recursive:
        return over_noise(updated, new_mode)
    return eqx.tree_at(lambda p: p.log_evidence, updated, updated.log_evidence + log_evidence)


def over_noise(posterior: LaplacePosterior, mode: Mode) -> LaplacePosterior:
    """The posterior with the uncertainty of its process noise: the moments of a mixture over values of the noise."""
    space, model, data = posterior.space, posterior.model, posterior.data
    if not noise_mixture.applies(space, model, data):
        return posterior
    mixture, log_evidence = noise_mixture.over_noise(space, model, data, mode)
    mean, covariance = mixture.moments(space)
    factor = gaussians.factor_of(covariance)
    return with_fields(
        posterior, mode=mean, factor=factor, log_evidence=log_evidence, mixture=mixture, by_evidence=True
    )


def at(model: Callable, data, point: Float[Array, " P"], *, linearised: bool = False) -> LaplacePosterior:
    """Laplace posterior at a given point of unconstrained space, without a search."""
    space = UnconstrainedSpace.of(model, data)
    mode = Mode(point, local(space, model, data, point), jnp.zeros(()), jnp.zeros((), int))
    return LaplacePosterior(model, data, space, mode, linearised)
