"""The posterior predictive transition object: what every backend returns and every consumer takes."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray
from numpyro import handlers

from physppl.density.unconstrained import UnconstrainedSpace, latent_part
from physppl.dynamics import Dynamics, sensors
from physppl.internal import gaussians
from physppl.internal.errors import Status, check_key, is_concrete
from physppl.internal.progress import Timing
from physppl.language.transition import AbstractTransition, AverageTransition

MEAN_DRAWS, ENTROPY_DRAWS = 16, 4096  # where a belief has no closed form


class Posterior(eqx.Module):
    """A belief about dynamics, as functions and as sites.

    Implementers give four methods, on arrays in double precision and without batching over calls: `_draw(key)`,
    `_basis(states, actions, times)`, `_samples(key, n)` and `_noise()`. The public methods here call them under x64,
    reshape, and cast draws to the caller's precision.

    Attributes:
        model: the Dynamics, or another NumPyro model (then only `samples` and `to_arviz` have a meaning).
        data: what it was fitted on, padding included.
        status: how the fit ended (`physppl.Status`).
        method: name of the backend, for tables.
    """

    model: Any = eqx.field(static=True)
    data: Any
    status: Array
    method: str = eqx.field(static=True)

    @abstractmethod
    def _draw(self, key: PRNGKeyArray) -> AbstractTransition:
        """One coherent function of the belief."""

    @abstractmethod
    def _basis(
        self, states: Float[Array, "M D"], actions: Float[Array, "M A"], times: Float[Array, " M"]
    ) -> tuple[Array, Array]:
        """Mean (M, D) and factor (M, D, R) of the next state: Cov[f(x), f(x')] = F(x) F(x')'."""

    @abstractmethod
    def _samples(self, key: PRNGKeyArray, draws: int) -> dict[str, Array]:
        """{site: (chains, draws per chain, ...)}."""

    @abstractmethod
    def _noise(self) -> Float[Array, " D"]:
        """Process-noise sd of the predictive distribution."""

    def _mean(self) -> AbstractTransition:
        """The predictive mean as a function; where an implementer has no closed form, the average of a few draws."""
        members = jax.vmap(self._draw)(jax.random.split(jax.random.key(0), MEAN_DRAWS))
        first = jax.tree.map(lambda x: x[0], members)
        return AverageTransition(first.sites, jnp.mean(members.noise, axis=0), first.dynamics, members)

    def _entropy(self) -> Float[Array, ""]:
        """Of the Gaussian with the belief's covariance in virtual space, from samples."""
        space, (model, *args) = UnconstrainedSpace.of(self.model, self.data), latent_part(self.model, self.data)
        flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in self._samples(jax.random.key(0), ENTROPY_DRAWS).items()}
        point = lambda s: space.unconstrain(handlers.trace(handlers.substitute(model, s)).get_trace(*args))  # noqa: E731
        chosen = np.flatnonzero(of_program(space))
        return gaussians.entropy(jnp.atleast_2d(jnp.cov(jax.vmap(point)(flat)[:, chosen], rowvar=False)))

    def _several(self, key: PRNGKeyArray, count: int) -> AbstractTransition:
        return jax.vmap(self._draw)(jax.random.split(key, count))

    @property
    def params(self) -> dict[str, Array]:
        """{`param` site: value}: what the fit chose and holds to be known, such as learned features."""
        return getattr(getattr(self, "space", None), "params", {})

    def sample_stats(self) -> dict[str, Array]:
        """The sampler's own diagnostics, (chains, draws) each; empty where nothing was sampled."""
        return {}

    def facts(self) -> dict[str, float]:
        """Scalars worth keeping with the fit."""
        return {}

    def draw(self, key: PRNGKeyArray) -> AbstractTransition:
        """One coherent transition function of the belief; new draws never retrace."""
        check_key(key)
        return self._call(_draw, key)

    def draws(self, key: PRNGKeyArray, count: int) -> AbstractTransition:
        """Several functions, with a leading particle axis; of an ensemble its members, each as often as any other."""
        check_key(key)
        return self._call(_several, key, count)

    def mean(self) -> AbstractTransition:
        """The belief's mean as a transition function: what certainty-equivalent control acts on."""
        return self._call(_mean)

    def entropy(self) -> Float[Array, ""]:
        """Entropy, nats, of the belief about the program's parameters, in virtual space and in Gaussian approximation.

        Its fall from one fit to the next is what the data between have told, whatever the parameters' units.
        """
        return self._call(_entropy)

    def basis(
        self, states: Float[Array | np.ndarray, "*B D"], actions: Float[Array | np.ndarray, "*B A"], t=0.0
    ) -> tuple[Array, Array]:
        """Mean (..., D) and factor (..., D, R) of the next state, process noise excluded.

        The factors of any two inputs give their covariance, Cov[f(x), f(x')] = F(x) F(x')': the belief is about
        functions, not about points. `t` is the time of each input, s, or one for all.
        """
        return self._call(_basis, states, actions, t)

    def covariance(
        self, states: Float[Array | np.ndarray, "M D"], actions: Float[Array | np.ndarray, "M A"], t=0.0
    ) -> Float[Array, "MD MD"]:
        """Joint covariance (M D, M D) of the next states at M inputs, process noise excluded."""
        return self._call(_covariance, states, actions, t)

    def predict(
        self, states: Float[Array | np.ndarray, "*B D"], actions: Float[Array | np.ndarray, "*B A"], t=0.0
    ) -> dist.MultivariateNormal:
        """The predictive distribution of the next state, process noise included: a NumPyro distribution over (..., D).

        Its two moments are the belief's own; sample-based backends state those of their draws.
        """
        mean, covariance, lower = self._call(_moments, states, actions, t)
        distribution = dist.MultivariateNormal(mean, scale_tril=lower)
        distribution.covariance_matrix = covariance
        return distribution

    def information_gain(
        self, states: Float[Array | np.ndarray, "M D"], actions: Float[Array | np.ndarray, "M A"], t=0.0
    ) -> Float[Array, ""]:
        """What measuring the next states at these inputs would tell, in nats, jointly (a per-step sum counts twice)."""
        return self._call(_information_gain, states, actions, t)

    def noise(self) -> Float[Array, " D"]:
        """Process-noise sd (D,) of the predictive distribution, in the coordinates' units."""
        return self._call(_noise)

    def samples(self, key: PRNGKeyArray, draws: int = 1000, *, group_by_chain: bool = False) -> dict[str, Array]:
        """{site: values} in constrained space and the sites' units; (draws, ...), or (chains, draws, ...)."""
        check_key(key)
        samples = self._call(_samples, key, draws)
        if group_by_chain:
            return samples
        return {name: value.reshape(-1, *value.shape[2:]) for name, value in samples.items()}

    def to_arviz(self, key: PRNGKeyArray | None = None, draws: int = 1000):
        """An xarray DataTree for ArviZ: posterior, prior, log_likelihood, observed_data, sample_stats; padding dropped.

        Use it with `arviz_stats` and `arviz_plots` (`import arviz as az` from Python 3.12, `arviz.preview` on 3.11).
        """
        from physppl.posterior.arviz import datatree  # ArviZ takes a second to import

        return datatree(jax.random.key(0) if key is None else key, self, draws)

    def summary(self, key: PRNGKeyArray | None = None, *, truth: dict[str, Any] | None = None):
        """The table of sites with units and verdicts, beside the truth where it is known; print it."""
        from physppl.posterior.summary import summarise

        return summarise(jax.random.key(0) if key is None else key, self, truth=truth)

    def machine(self, *index: int, **plates: int):
        """The belief about one machine of a fleet, a `physppl.MachinePosterior`: to draw, predict and act with.

        What the other machines tell is in it. `posterior.machine(3)`; with plates in plates one index each, outermost
        first, or by name: `posterior.machine(hall=1, machine=3)`.

        Raises:
            TypeError: for a belief whose model has no plate around one Dynamics, or an index that is not whole.
            KeyError: for a plate that is not there, with close matches.
            ValueError: for an index out of range, naming plate and size.
        """
        from physppl.posterior.fleet import machine  # it makes posteriors

        return machine(self, *index, **plates)

    def save(self, path: str | Path) -> None:
        """Writes the belief to one file, which `physppl.load(path, model)` reads; its program is not in it.

        The file is written whole or not at all, holds every array bit by bit, and runs no code when it is read.
        """
        from physppl.posterior.saving import save  # it reads posteriors

        save(path, self)

    def check(self, key: PRNGKeyArray | None = None):
        """One verdict on the fit, with its reasons and their remedies; print it."""
        from physppl.posterior.diagnostics import check  # it reads posteriors

        return check(self, key)

    def _call(self, function, *args):
        """A compiled function of the belief in double precision, its result in the caller's."""
        if function is not _samples and not isinstance(self.model, Dynamics):
            raise TypeError(
                "this posterior is about a NumPyro model that is not a Dynamics: it has samples() and to_arviz(). "
                "Of a fleet, posterior.machine(index) has the rest; else build a transition from its samples with "
                "`dynamics.transition(values)`."
            )
        dtype = jnp.result_type(float)
        with jax.enable_x64(True):
            args = [jnp.asarray(a, float) if isinstance(a, float | list) else a for a in args]
            return function(self, *args, dtype)

    @property
    def timing(self) -> Timing | None:
        """How long `physppl.fit` took; None of a belief that did not come from it as it is.

        It belongs to the object that `fit` returned, not to the belief: no leaf, and no part of the tree's structure,
        so that equal fits stay equal and share compiled programs.
        """
        return self.__dict__.get("_timing")

    def __repr__(self) -> str:
        status = Status(int(self.status)).name if is_concrete(self.status) else "not known yet"
        took = "" if self.timing is None else f"; {self.timing}"
        return f"{self.method} posterior of {self.model}; status {status}{took}"


def _compiled(function):
    """Jitted, inputs in double precision, floating results in the dtype of the last argument."""

    @eqx.filter_jit
    def run(posterior, *args):
        *args, dtype = args
        args = [a.astype(float) if eqx.is_array(a) and jnp.issubdtype(a.dtype, jnp.floating) else a for a in args]
        result = function(posterior, *args)
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, result)

    return run


@_compiled
def _draw(posterior, key):
    return posterior._draw(key)


@_compiled
def _several(posterior, key, count):
    return posterior._several(key, count)


@_compiled
def _mean(posterior):
    return posterior._mean()


@_compiled
def _entropy(posterior):
    return posterior._entropy()


@_compiled
def _basis(posterior, states, actions, t):
    return _flat_basis(posterior, states, actions, t)


@_compiled
def _covariance(posterior, states, actions, t):
    _, factor = _flat_basis(posterior, states, actions, t)
    factor = factor.reshape(-1, factor.shape[-1])
    return factor @ factor.T


@_compiled
def _moments(posterior, states, actions, t):
    mean, factor = _flat_basis(posterior, states, actions, t)
    covariance = gaussians.outer(factor) + jnp.diag(posterior._noise() ** 2)
    return mean, covariance, jnp.linalg.cholesky(covariance)


@_compiled
def _information_gain(posterior, states, actions, t):
    _, factor = _flat_basis(posterior, states, actions, t)
    noise = jnp.broadcast_to(posterior._noise(), factor.shape[:-1]).reshape(-1)
    return gaussians.information_gain(factor.reshape(-1, factor.shape[-1]), noise)


@_compiled
def _noise(posterior):
    return posterior._noise()


@_compiled
def _samples(posterior, key, draws):
    return posterior._samples(key, draws)


def _flat_basis(posterior, states, actions, t):
    """The basis at (..., D) inputs, through the implementer's (M, D)."""
    posterior.model.check_widths(states, actions)
    shape = states.shape
    if actions.shape[:-1] != shape[:-1]:
        raise ValueError(f"states (..., D) and actions (..., A) must go together; got {shape} and {actions.shape}.")
    times = jnp.broadcast_to(t, shape[:-1]).reshape(-1)
    mean, factor = posterior._basis(states.reshape(-1, shape[-1]), actions.reshape(-1, actions.shape[-1]), times)
    return mean.reshape(shape), factor.reshape(*shape, -1)


def of_program(space: UnconstrainedSpace) -> Bool[np.ndarray, " P"]:
    """Which entries of virtual space are the program's parameters; the others are noises."""
    return space.where(sensors.of_program)
