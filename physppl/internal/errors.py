"""Error messages and argument checks: the argument or site, what was expected, what came, and the remedy."""

import contextlib
import difflib
import enum
import logging
import threading
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

log = logging.getLogger("physppl")
_LOCK, _WITHIN = threading.Lock(), []  # what each fit that runs has found of Equinox's switch, the first one first
R_HAT_LIMIT = 1.1  # split R-hat above which chains count as not mixed


class PhyspplWarning(UserWarning):
    """Warning about a result that is still usable."""


class FitError(RuntimeError):
    """Error for a fit that must not be used; the message gives the cause and its remedy."""


class Status(enum.IntEnum):
    """Outcome of a fit, carried as an array on the Posterior, so that a batch of fits can run in one program."""

    OK = 0
    NOT_CONVERGED = 1
    NONFINITE = 2
    NOT_POSITIVE_DEFINITE = 3
    DIVERGENCES = 4
    NOT_MIXED = 5
    NO_MODE = 6
    FLAT = 7
    CLIMBING = 8

    @property
    def remedy(self) -> str:
        return _REMEDIES[self]


# Statuses of a fit without a finite density or covariance, which must not be used.
FATAL = (Status.NONFINITE, Status.NOT_POSITIVE_DEFINITE, Status.NO_MODE)

_REMEDIES = {
    Status.OK: "the fit converged",
    Status.NOT_CONVERGED: "the mode was not reached: raise `steps` or `starts` of the backend, "
    "or tighten the prior of parameters that the data do not determine",
    Status.NONFINITE: "the log density is not finite at any start: look for a state that diverges within one step "
    "(raise `substeps`), a solver that fails (stiff fields need `Adaptive(diffrax.Kvaerno5())`, or more steps), a "
    "prior that reaches zero mass or length, or a square root at zero",
    Status.NOT_POSITIVE_DEFINITE: "the curvature at the mode is not positive definite: the prior is not log-concave "
    "there and the data do not make up for it; give a prior that is proper in unconstrained space, "
    "e.g. physical(name, low, high)",
    Status.NO_MODE: "no search ended at a mode, and where the best one stopped the density is no Gaussian: raise "
    "`steps` or `starts` of the backend, refine the solver (`substeps`) where fast motions make the density rough, or "
    "give bounds that exclude them",
    Status.FLAT: "the density around the mode is flatter than its curvature says, so that sds are too small: sample "
    "with HMC, or give data or a prior for what they leave open (`physppl.identifiability`)",
    Status.CLIMBING: "the evidence still rose when the steps were used up, so that noises and features are not yet its "
    "own: raise `steps`",
    Status.DIVERGENCES: "more than one transition in a hundred of the sampler diverged: "
    "raise `target_acceptance` or `warmup`",
    Status.NOT_MIXED: f"the chains disagree (R-hat above {R_HAT_LIMIT}) or do not move: raise `warmup` and `draws`; if "
    "it persists, the posterior has several modes or a ridge, which a tighter prior or other data must settle",
}


def fit_status(converged, *, definite: jax.Array | bool = True, finite: jax.Array | bool = True) -> jax.Array:
    """Status of a fit: the gravest of what went wrong."""
    status = jnp.where(converged, Status.OK, Status.NOT_CONVERGED)
    status = jnp.where(definite, status, jnp.where(converged, Status.NOT_POSITIVE_DEFINITE, Status.NO_MODE))
    return jnp.where(finite, status, Status.NONFINITE)


def closest(name: str, known: Iterable[str]) -> str:
    """Hint for a misspelt name: ' Did you mean ...?' with the close matches, then all known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"{hint} Known: {', '.join(known) or 'none'}."


def unknown(kind: str, name: str, known: Iterable[str], where: str) -> KeyError:
    """KeyError for an undeclared name, with close matches."""
    return KeyError(f"{where} has no {kind} {name!r}.{closest(name, known)}")


def check_key(key, argument: str = "key") -> None:
    """Refuse anything but a JAX PRNG key.

    Raises:
        TypeError: naming the argument and the remedy.
    """
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return
        if key.dtype == np.uint32 and key.shape[-1:] == (2,):
            return
    got = f"{type(key).__name__} {key!r}" if isinstance(key, int | float | str) else type(key).__name__
    raise TypeError(f"`{argument}` must be a JAX random key; got {got}. Pass jax.random.key(0).")


def check_counts(where: str, **counts) -> None:
    """Refuse counts that are not whole numbers of at least 1.

    Raises:
        ValueError: naming the argument and the function.
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{where}: {name} must be a whole number of at least 1; got {value!r}.")


def as_array(value, argument: str, where: str = "") -> np.ndarray | jax.Array:
    """Real floating-point array. Concrete input stays in NumPy at its own precision, tracers pass unchanged.

    Args:
        where: words before the message, if the argument alone does not tell.

    Raises:
        TypeError: for strings, objects, complex numbers, naming the argument.
    """
    if isinstance(value, Tracer):
        return value
    if np.ma.is_masked(value):  # a mask marks what is missing, as NaN does
        value = np.ma.filled(np.ma.asanyarray(value).astype(float), np.nan)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where}`{argument}` is ragged: {error}. Rows must have one length.") from None
    if array.dtype.kind not in "fiubc":
        got = f"{array.ravel()[0]!r} (dtype {array.dtype})" if array.size else f"dtype {array.dtype}"
        remedy = "Files, DataFrames and tables are read by Transitions.read and Trajectories.read."
        if not array.ndim:
            got, remedy = repr(value), "Pass a number."
        raise TypeError(f"{where}`{argument}` must be numeric; got {got}. {remedy}")
    if array.dtype.kind == "c":
        raise TypeError(f"{where}`{argument}` must be real; got dtype {array.dtype}.")
    if array.dtype.kind != "f":
        return array.astype(np.float64)
    return value if isinstance(value, jax.Array) else array


@contextlib.contextmanager
def failed_solves_are_nan():
    """Within it, programs are traced whose linear solves return NaN where they fail, instead of raising.

    Derivatives of an implicit solver's equations raise, from within the compiled program, where the solver failed, as
    at some parameters it may. Equinox has a switch for that, but only as a variable of the environment.
    """
    module: Any = equinox._errors
    with _LOCK:
        _WITHIN.append(module.EQX_ON_ERROR)
        module.EQX_ON_ERROR = "off"
    try:
        yield
    finally:
        with _LOCK:  # fits may run in several threads: the last one to end restores what the first one found
            before = _WITHIN.pop()
            if not _WITHIN:
                module.EQX_ON_ERROR = before


def is_concrete(*arrays) -> bool:
    """True if none of the arrays is traced, so that Python can read their values."""
    return not any(isinstance(a, Tracer) for a in arrays if a is not None)
