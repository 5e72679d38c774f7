"""The contract of the posterior predictive transition object, which backends return and consumers take."""

import math
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray

from physppl.data.data import Data
from physppl.density.forms import Form
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics, sensors
from physppl.internal import gaussians
from physppl.internal.errors import Status, check_counts, check_key, is_concrete
from physppl.internal.precision import ExactPickle
from physppl.internal.progress import Timing
from physppl.language.transition import AbstractTransition, AverageTransition
from physppl.posterior.predictive import PredictiveDistribution
from physppl.posterior.verdict import Figures, Reason

MEAN_DRAWS, ENTROPY_DRAWS = 16, 4096  # where a posterior has no closed form

States = Float[Array | np.ndarray, "*B D"]
Actions = Float[Array | np.ndarray, "*B A"]
StateRows = Float[Array | np.ndarray, "M D"]
ActionRows = Float[Array | np.ndarray, "M A"]


class AbstractPosterior(ExactPickle, eqx.Module):
    """The contract of a posterior about dynamics: functions and sites. Users hold a `Posterior`, which adds reports.

    Implementers derive from `physppl.Posterior` and define four methods, on arrays in double precision and without
    batching over calls: `_draw(key)`, `_basis(states, actions, times)`, `_samples(key, n)` and `_noise()`. The public
    methods here call them under x64, reshape, and cast draws to the caller's precision.

    The rest is optional, with a default on this class:

    - `unconstrained()`: the posterior in the space of the model's sites, as a `GaussianForm` or `DrawsForm`
      (`physppl.density.forms`), and `site_space()`, that space, where it is to be had at less cost. Without them
      `check` answers `not checked`, and `identifiability` and `machine` refuse.
    - `findings()`: reasons against the fit that only its backend can find, and figures; None for no statement.
    - `sample_stats()` of a sampler, `facts()`, scalars worth keeping; closed forms of `_mean`, `_entropy`, `_several`;
      `_noises()`, where the process noise is uncertain.

    Attributes:
        model: the Dynamics, or another NumPyro model (then only `samples` and `to_arviz` have a meaning).
        data: the data of the fit, padding included.
        status: how the fit ended (`physppl.Status`).
        method: name of the backend, for tables.
    """

    model: Any = eqx.field(static=True)
    data: Any
    status: Array
    method: str = eqx.field(static=True)

    @abstractmethod
    def _draw(self, key: PRNGKeyArray) -> AbstractTransition:
        """One coherent function, drawn from the posterior."""

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
        """Process-noise sd of the predictive distribution: the root of the mean variance."""

    def _noises(self) -> Float[Array, "K D"]:
        """Process-noise sds, equally likely, that stand for the posterior of the noise."""
        return self._noise()[None]

    def _mean(self) -> AbstractTransition:
        """The predictive mean as a function; without a closed form, the average of a few draws."""
        return averaged(self._several(jax.random.key(0), MEAN_DRAWS))

    def _entropy(self) -> Float[Array, ""]:
        """Entropy of the Gaussian with the posterior's covariance in unconstrained space, from samples."""
        space = UnconstrainedSpace.of(self.model, self.data)
        samples = {k: v.reshape(-1, *v.shape[2:]) for k, v in self._samples(jax.random.key(0), ENTROPY_DRAWS).items()}
        points = jax.vmap(lambda sites: space.point(self.model, sites, self.data))(samples)
        points = points[:, np.flatnonzero(of_program(space))]
        return gaussians.entropy(jnp.atleast_2d(jnp.cov(points, rowvar=False)))

    def _several(self, key: PRNGKeyArray, count: int) -> AbstractTransition:
        return jax.vmap(self._draw)(jax.random.split(key, count))

    def site_space(self) -> UnconstrainedSpace | None:
        """The unconstrained space of the model's sites in which the posterior is held, or None."""
        form = self.unconstrained()
        return None if form is None else form.space

    def unconstrained(self) -> Form | None:
        """The posterior in unconstrained space, as a Gaussian or as draws; None where it is held in neither form."""
        return None

    def about(self, model: Dynamics, data: Data, form: Any) -> "AbstractPosterior":
        """A posterior of this kind about another model, in the same form: of one machine of a fleet."""
        raise TypeError(f"machine: {self.method} posteriors are not about fleets.")

    def findings(self) -> tuple[list[Reason], Figures] | None:
        """Reasons against the fit that only its backend can find, and figures; None for no statement."""
        return None

    @property
    def params(self) -> dict[str, Array]:
        """{`param` site: value} of sites without a prior, which the fit optimised, such as learned features."""
        space = self.site_space()
        return {} if space is None else space.params

    def sample_stats(self) -> dict[str, Array]:
        """The sampler's own diagnostics, (chains, draws) each; empty where nothing was sampled."""
        return {}

    def facts(self) -> dict[str, float]:
        """Scalars to be stored with the fit."""
        return {}

    def draw(self, key: PRNGKeyArray) -> AbstractTransition:
        """One coherent transition function, drawn from the posterior; new draws never retrace."""
        check_key(key)
        return self._call("_draw", key)

    def draws(self, key: PRNGKeyArray, count: int) -> AbstractTransition:
        """Several transition functions on a leading axis; of an ensemble its members, all equally often."""
        check_key(key)
        check_counts("draws", count=count)
        return self._call("_several", key, count)

    def mean(self) -> AbstractTransition:
        """The posterior mean as a transition function, for certainty-equivalent control."""
        return self._call("_mean")

    def entropy(self) -> Float[Array, ""]:
        """Posterior entropy, nats, of the program's parameters, in unconstrained space and in Gaussian approximation.

        Its decrease from one fit to the next is the information in the data between, whatever the parameters' units.
        """
        return self._call("_entropy")

    def basis(self, states: States, actions: Actions, t=0.0) -> tuple[Array, Array]:
        """Mean (..., D) and factor (..., D, R) of the next state, process noise excluded.

        The factors of any two inputs give their covariance, Cov[f(x), f(x')] = F(x) F(x')': the posterior is over
        functions, not over points. `t` is the time of each input, s, or one for all.
        """
        return self._call("_flat_basis", states, actions, t)

    def covariance(self, states: StateRows, actions: ActionRows, t=0.0) -> Float[Array, "MD MD"]:
        """Joint covariance (M D, M D) of the next states at M inputs, process noise excluded."""
        return self._call("_covariance", states, actions, t)

    def predict(self, states: States, actions: Actions, t=0.0) -> PredictiveDistribution:
        """The predictive distribution of the next state, process noise included: a NumPyro distribution over (..., D).

        Its mean and covariance are the posterior's; sample-based backends take those of their draws. It is a mixture
        of Gaussians over values of the process noise, where that is uncertain: of few rows its tails are a Student-t's.
        """
        return PredictiveDistribution(*self._call("_mixture", states, actions, t))

    def information_gain(self, states: StateRows, actions: ActionRows, t=0.0) -> Float[Array, ""]:
        """Information, nats, from measuring the next states at these inputs, jointly (a per-step sum counts twice)."""
        return self._call("_information_gain", states, actions, t)

    def noise(self) -> Float[Array, " D"]:
        """Process-noise sd (D,) of the predictive distribution, in the coordinates' units."""
        return self._call("_noise")

    def samples(self, key: PRNGKeyArray, draws: int = 1000, *, group_by_chain: bool = False) -> dict[str, Array]:
        """{site: values} in constrained space and the sites' units; (draws, ...), or (chains, draws, ...)."""
        check_key(key)
        check_counts("samples", draws=draws)
        samples = self._call("_samples", key, draws)
        if group_by_chain:
            return samples
        return {name: value.reshape(-1, *value.shape[2:]) for name, value in samples.items()}

    def _flat(self, states, actions, t) -> tuple[Array, Array, Array]:
        """Inputs (..., D), (..., A) and their times as (M, D), (M, A) and (M,)."""
        self.model.check_widths(states, actions)
        shape = states.shape[:-1]
        if actions.shape[:-1] != shape:
            got = f"{states.shape} and {actions.shape}"
            raise ValueError(f"states (..., D) and actions (..., A) must go together; got {got}.")
        rows = math.prod(shape)  # -1 cannot tell them where there are no inputs
        states, actions = (x.reshape(rows, x.shape[-1]) for x in (states, actions))
        return states, actions, jnp.broadcast_to(t, shape).reshape(-1)

    def _flat_basis(self, states, actions, t):
        """The basis at (..., D) inputs, through the implementer's (M, D)."""
        mean, factor = self._basis(*self._flat(states, actions, t))
        return mean.reshape(states.shape), factor.reshape(*states.shape, -1)

    def _covariance(self, states, actions, t):
        _, factor = self._flat_basis(states, actions, t)
        factor = factor.reshape(-1, factor.shape[-1])
        return factor @ factor.T

    def _predictive(
        self, states: Float[Array, "M D"], actions: Float[Array, "M A"], times: Float[Array, " M"]
    ) -> tuple[Array, Array, Array]:
        """Log weights (K,), means (M, K, D) and covariances (M, K, D, D) of the predictive distribution's Gaussians."""
        mean, factor = self._basis(states, actions, times)
        noises = self._noises()
        covariance = gaussians.outer(factor)[:, None] + jax.vmap(jnp.diag)(noises**2)
        means = jnp.broadcast_to(mean[:, None], covariance.shape[:-1])
        return jnp.full(len(noises), -jnp.log(len(noises))), means, covariance

    def _mixture(self, states, actions, t):
        """Arguments of the predictive distribution at (..., D) inputs."""
        log_weights, *moments = self._predictive(*self._flat(states, actions, t))
        means, covariances = (x.reshape(*states.shape[:-1], *x.shape[1:]) for x in moments)
        return log_weights, means, jnp.linalg.cholesky(covariances)

    def _information_gain(self, states, actions, t):
        _, factor = self._flat_basis(states, actions, t)
        noise = jnp.broadcast_to(self._noise(), factor.shape[:-1]).reshape(-1)
        return gaussians.information_gain(factor.reshape(-1, factor.shape[-1]), noise)

    def _call(self, method: str, *args):
        """Call a method, compiled, in double precision, and cast its result to the caller's."""
        if method != "_samples" and not isinstance(self.model, Dynamics):
            raise TypeError(
                "this posterior is about a NumPyro model that is not a Dynamics: it has samples() and to_arviz(). "
                "Of a fleet, posterior.machine(index) has the rest; else build a transition from its samples with "
                "`dynamics.transition(values)`."
            )
        dtype = jnp.result_type(float)
        with jax.enable_x64(True):
            args = [jnp.asarray(a, float) if isinstance(a, float | list) else a for a in args]
            return _run(self, method, args, dtype)

    @property
    def timing(self) -> Timing | None:
        """Duration of the call of `physppl.fit`; None of a posterior that is not the very object it returned.

        It belongs to the object that `fit` returned, not to the posterior: no leaf, no part of the tree's structure, so
        that equal fits stay equal and share compiled programs.
        """
        return self.__dict__.get("_timing")

    def __repr__(self) -> str:
        status = Status(int(self.status)).name if is_concrete(self.status) else "not known yet"
        took = "" if self.timing is None else f"; {self.timing}"
        return f"{self.method} posterior of {self.model}; status {status}{took}"


@eqx.filter_jit
def _run(posterior, method: str, args, dtype):
    """Result of a method, with inputs in double precision and floating results in `dtype`."""
    args = [a.astype(float) if eqx.is_array(a) and jnp.issubdtype(a.dtype, jnp.floating) else a for a in args]
    result = getattr(posterior, method)(*args)
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, result)


def averaged(members: AbstractTransition) -> AverageTransition:
    """The average of the functions on a leading axis."""
    first = jax.tree.map(lambda x: x[0], members)
    return AverageTransition(first.sites, jnp.mean(members.noise, axis=0), first.dynamics, members)


def root_mean_square(noises: Float[Array, "K D"]) -> Float[Array, " D"]:
    """The sd whose square is the mean of equally likely variances."""
    return jnp.sqrt(jnp.mean(noises**2, axis=0))


def with_fields(posterior, **fields):
    """A copy of a posterior with other values of some fields, bypassing its `__init__`."""
    other = object.__new__(type(posterior))
    for name, value in (vars(posterior) | fields | {"_timing": None}).items():
        object.__setattr__(other, name, value)
    return other


def of_program(space: UnconstrainedSpace) -> Bool[np.ndarray, " P"]:
    """Mask of the entries of unconstrained space that are the program's parameters; the others are noises."""
    return space.where(sensors.of_program)
