"""The backend contract, and `fit`: check, compile, run, report the status."""

import contextlib
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers

from physppl.data.data import Data, repeats
from physppl.data.transitions import Transitions
from physppl.dynamics import Dynamics
from physppl.internal.choices import Choices
from physppl.internal.errors import FATAL, FitError, PhyspplWarning, Status, check_key, failed_solves_are_nan, log
from physppl.internal.precision import doubles
from physppl.internal.progress import Timing, compile_clock
from physppl.language.program_errors import explained, takes
from physppl.posterior.posterior import Posterior

P = TypeVar("P", bound=Posterior)


class Backend(Choices, Generic[P]):
    """An inference method: an immutable object that holds its options.

    `fit` must be pure (it runs under jit and vmap): it returns its status on the Posterior and raises nothing that
    depends on values. Implementers define `fit`; the rest is derived from it.
    """

    @abstractmethod
    def fit(self, key: PRNGKeyArray, model: Callable, data) -> P:
        """The posterior of the model's sites given data, without the rows whose `valid` is False."""

    def prior(self, key: PRNGKeyArray, model: Dynamics) -> P:
        """The prior: a fit in which no row counts."""
        if not isinstance(model, Dynamics):
            raise TypeError("prior needs a Dynamics; of another model, fit data whose rows are all valid=False.")
        return fit(key, model, empty(model), self)

    def update(self, key: PRNGKeyArray, posterior: Posterior, data: Data) -> P:
        """The posterior after more data: a refit on the union.

        Raises:
            TypeError: for data of another kind than the posterior's, naming both.
        """
        return fit(key, posterior.model, union(posterior.data, data), self)


def union(known, data) -> Data:
    """Known and new data of one kind, as one object; with a warning where some of the new data are known.

    A prior has no data: after it come new ones of any kind.

    Raises:
        TypeError: for data of another kind, naming both.
    """
    kind = type(known).__name__
    if not isinstance(known, Data):
        raise TypeError(
            f"update joins Transitions or Trajectories; the posterior is of {kind}. Fit all data at once: "
            "fit(key, posterior.model, data, backend)."
        )
    if isinstance(data, Data) and not known.count:  # a prior, of no kind of data
        return data
    if type(data) is not type(known):
        raise TypeError(f"update: the posterior is of {kind}; got {type(data).__name__}.")
    known = jax.tree.map(np.asarray, known)  # NumPy indexes and joins rows without compiling
    if count := repeats(known, data):
        warnings.warn(
            f"update: {count} of the new {known.part}s are already in the posterior, and now count twice. Pass only "
            "what is new.",
            PhyspplWarning, stacklevel=3,
        )  # fmt: skip
    return known.join(data)


def empty(dynamics: Dynamics) -> Transitions:
    """Data of one row that does not count."""
    state, action = np.zeros((1, len(dynamics.state))), np.zeros((1, len(dynamics.action)))
    return Transitions(
        state, np.clip(action, dynamics.action.low, dynamics.action.high), state, valid=np.zeros(1, bool)
    )


def one_machine(backend: str, model, data) -> Dynamics:
    """The model, if it is a Dynamics and the data are Transitions of one machine.

    Raises:
        TypeError: naming the backend and what came.
    """
    if not isinstance(model, Dynamics) or not isinstance(data, Transitions) or data.batch_shape:
        got = f"{type(model).__name__} and {type(data).__name__}"
        raise TypeError(f"{backend} takes Transitions of one machine and a Dynamics; got {got}.")
    return model


@eqx.filter_jit
def _fit(key, backend: Backend[P], model, data) -> P:
    return backend.fit(key, model, doubles(data))


def fit(key: PRNGKeyArray, model: Dynamics | Callable, data, backend: Backend[P], *, x64: bool = True) -> P:
    """Turn data into a posterior predictive transition object.

    Args:
        key: a JAX random key.
        model: Dynamics; or any NumPyro model of one data object (the Posterior then has no transition to draw).
        data: Transitions, Trajectories or another kind of Data, padded to one of a few lengths, so that growing data
            rarely recompile. No data at all gives the prior, with a notice.
        backend: e.g. `Laplace()` or `HMC()`.
        x64: compute in double precision whatever the process-wide setting.

    Raises:
        TypeError: for a key or data of the wrong type.
        ValueError: for data that do not fit the model's spaces, naming row and coordinate.
        FitError: where the fit cannot be used, with the cause and its remedy.
    """
    check_key(key)
    if not isinstance(backend, Backend):
        raise TypeError(f"`backend` must be an object such as Laplace() or HMC(); got {backend!r}.")
    if not callable(model) or isinstance(data, Dynamics):
        got = f"{type(model).__name__}, {type(data).__name__}"
        raise TypeError(f"fit(key, model, data, backend): model must be a Dynamics or a NumPyro model; got {got}.")
    if not isinstance(model, Dynamics) and not takes(model, 1):
        name = getattr(model, "__name__", type(model).__name__)
        bind = f" A program is bound first: Dynamics({name}, state, action, dt=...)." if takes(model, 0) else ""
        raise TypeError(f"fit: a NumPyro model must take one argument, the data; {name} does not.{bind}")
    with explained(model.owner if isinstance(model, Dynamics) else getattr(model, "__name__", "the model")):
        return _run(key, model, data, backend, x64)


def _run(key, model, data, backend: Backend[P], x64: bool) -> P:
    """Check and pad the data, compile, fit, and report the status."""
    if isinstance(model, Dynamics):
        if notice := data.notice() if isinstance(data, Data) else None:
            log.warning("fit: %s", notice)
        data = prepared(model, data)
    else:  # traced once with concrete data, so that a Dynamics inside checks them and names row and coordinate
        jax.eval_shape(lambda k: (handlers.seed(model, k)(data), jnp.zeros(()))[1], key)
    start = time.perf_counter()
    precision = jax.enable_x64(True) if x64 else contextlib.nullcontext()
    with compile_clock() as clock, failed_solves_are_nan(), precision:
        posterior = jax.block_until_ready(_fit(key, backend, model, data))
    seconds = time.perf_counter() - start
    if seconds > 2.0:
        log.info("%s: %.1f s, of it %.1f s compiling", type(backend).__name__, seconds, clock.seconds)
    raise_or_warn(posterior, type(backend).__name__)
    object.__setattr__(posterior, "_timing", Timing(seconds, clock.seconds))
    return posterior


def prepared(model: Dynamics, data: Any) -> Data:
    """Check data and pad them for a fit, so that growing data rarely recompile."""
    model.check(data)
    if data.outcomes is None:
        raise ValueError(f"fit needs {data.outcome_field}; got inputs alone.")
    if data.machines:
        raise ValueError(
            f"fit: data of a fleet {data.machines} need a model with a plate around dynamics(data); pass that model."
        )
    return (data if len(data) else empty(model)).bucketed(model.dt)


def raise_or_warn(posterior: Posterior, who: str) -> None:
    """Raise or warn according to the status of a fit."""
    status = Status(int(posterior.status))
    if status in FATAL:
        raise FitError(f"{who}: {status.name.lower().replace('_', ' ')}: {status.remedy}.")
    if status is not Status.OK:
        warnings.warn(f"{who}: {status.name.lower().replace('_', ' ')}: {status.remedy}.", PhyspplWarning, stacklevel=3)
