"""What a backend is, and `fit`: check, compile, run, judge."""

import contextlib
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro import handlers

from physppl.data.repeats import repeats
from physppl.data.trajectories import Trajectories, fine_bucket
from physppl.data.transitions import Transitions, bucket
from physppl.dynamics import Dynamics
from physppl.internal.errors import FitError, PhyspplWarning, Status, check_key, log
from physppl.internal.precision import doubles
from physppl.internal.progress import Timing, compile_clock
from physppl.posterior.base import Posterior

P = TypeVar("P", bound=Posterior)


class Backend(eqx.Module, Generic[P]):
    """An inference method: an immutable object of choices. The object is the dispatch.

    `fit` must be pure (it runs under jit and vmap): it returns its status on the Posterior and raises nothing that
    depends on values. Implementers give `fit`; the rest is derived here, once.
    """

    @abstractmethod
    def fit(self, key: PRNGKeyArray, model: Callable, data) -> P:
        """The belief about the model's sites given data, rows with `valid` False left out."""

    def prior(self, key: PRNGKeyArray, model: Dynamics) -> P:
        """The belief before any data: a fit in which no row counts."""
        if not isinstance(model, Dynamics):
            raise TypeError("prior needs a Dynamics; of another model, fit data whose rows are all valid=False.")
        return fit(key, model, empty(model), self)

    def update(self, key: PRNGKeyArray, posterior: Posterior, data: Transitions | Trajectories) -> P:
        """The belief after more data: a refit on the union.

        Raises:
            TypeError: for data of another kind than the belief's, naming both.
        """
        return fit(key, posterior.model, union(posterior.data, data), self)


def union(known, data) -> Transitions | Trajectories:
    """What a belief knows and new data of the same kind, as one; a warning where some of them are not new.

    Raises:
        TypeError: for data of another kind, naming both.
    """
    known = jax.tree.map(np.asarray, known)  # which picks and joins rows without compiling
    if isinstance(known, Transitions | Trajectories) and (count := repeats(known, data)):
        what = "recordings" if isinstance(known, Trajectories) else "transitions"
        warnings.warn(
            f"update: {count} of the new {what} are already in the belief, and now count twice. Pass only what is new.",
            PhyspplWarning, stacklevel=3,
        )  # fmt: skip
    if isinstance(known, Trajectories) and isinstance(data, Trajectories):
        return Trajectories.stack([known.rows(), data.rows()])
    if isinstance(known, Transitions) and isinstance(data, Transitions):
        if not known.batch_shape:  # padding of a fleet stays, so that its machines keep one length
            known = known[np.flatnonzero(known.valid)]
        return Transitions.concatenate([known, data])
    if isinstance(known, Transitions | Trajectories):
        raise TypeError(f"update: the belief is about {type(known).__name__}; got {type(data).__name__}.")
    raise TypeError(
        f"update joins Transitions or Trajectories; the belief is about {type(known).__name__}. Fit all data at once: "
        "fit(key, posterior.model, data, backend)."
    )


def empty(dynamics: Dynamics) -> Transitions:
    """One row that does not count."""
    state, action = np.zeros((1, len(dynamics.state))), np.zeros((1, len(dynamics.action)))
    return Transitions(
        state, np.clip(action, dynamics.action.low, dynamics.action.high), state, valid=np.zeros(1, bool)
    )


@eqx.filter_jit
def _fit(key, backend: Backend[P], model, data) -> P:
    return backend.fit(key, model, doubles(data))


def fit(key: PRNGKeyArray, model: Dynamics | Callable, data, backend: Backend[P], *, x64: bool = True) -> P:
    """Turn data into a posterior predictive transition object.

    Args:
        key: a JAX random key.
        model: Dynamics; or any NumPyro model of one data object (the Posterior then has no transition to draw).
        data: Transitions or Trajectories. They are padded, Transitions to a power of two, so that growing data rarely
            compile anew. No data at all gives the prior, with a notice.
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
    if isinstance(model, Dynamics):
        given, data = data, prepared(model, data)
        if isinstance(given, Trajectories):
            if not np.any(given.valid):
                log.warning("fit: no readings: the prior")
        elif len(given) == 0:
            log.warning("fit: no transitions: the prior")  # rows of which none counts ask for the prior on purpose
        elif int(np.sum(given.valid)) == 1:
            log.warning("fit: one transition: mostly the prior")
    else:  # traced once with the data at hand, so that a Dynamics inside checks them and names row and coordinate
        jax.eval_shape(lambda k: (handlers.seed(model, k)(data), jnp.zeros(()))[1], key)
    start = time.perf_counter()
    with compile_clock() as clock, jax.enable_x64(True) if x64 else contextlib.nullcontext():
        posterior = jax.block_until_ready(_fit(key, backend, model, data))
    seconds = time.perf_counter() - start
    if seconds > 2.0:
        log.info("%s: %.1f s, of it %.1f s compiling", type(backend).__name__, seconds, clock.seconds)
    raise_or_warn(posterior, type(backend).__name__)
    object.__setattr__(posterior, "_timing", Timing(seconds, clock.seconds))
    return posterior


def prepared(model: Dynamics, data: Transitions | Trajectories) -> Transitions | Trajectories:
    """Data as a fit takes them: checked, and padded so that growing data rarely compile anew."""
    model.check(data)
    if isinstance(data, Trajectories):
        if data.observations is None:
            raise ValueError("fit needs observations; got inputs alone.")
        return data.rows().pad(fine_bucket(len(data)), model.dt)
    if data.next_states is None:
        raise ValueError("fit needs next_states; got inputs alone.")
    if data.batch_shape:
        raise ValueError(
            f"fit: data of a fleet {data.batch_shape} need a model with a plate around dynamics(data); pass that model."
        )
    return (data if len(data) else empty(model)).pad(bucket(len(data)))


def raise_or_warn(posterior: Posterior, who: str) -> None:
    """Raise or warn as the status says."""
    status = Status(int(posterior.status))
    if status in (Status.NONFINITE, Status.NOT_POSITIVE_DEFINITE):
        raise FitError(f"{who}: {status.name.lower().replace('_', ' ')}: {status.remedy}.")
    if status is not Status.OK:
        warnings.warn(f"{who}: {status.name.lower().replace('_', ' ')}: {status.remedy}.", PhyspplWarning, stacklevel=3)
