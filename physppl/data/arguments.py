"""Arguments of recordings: what is missing is filled in, what does not fit is refused."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from physppl.internal.errors import as_array, is_concrete

COARSE = 0.1  # of a step: rounding of stamps that no longer tell the samples apart


def time_last(one, other) -> str:
    """Hint for two arrays that have as many columns, but not as many rows."""
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or one.shape[1] == 1:
        return ""
    return " Rows are samples, (N, D) and (N, A): transpose arrays whose columns are, as MATLAB has them."


def times(given: Any, dt: Any, rows: tuple[int, ...]) -> tuple[Any, bool]:
    """Times of all samples, s, from one of times and dt; True if their steps are all the same.

    Raises:
        ValueError: for both or none, another shape, times that do not increase or are too coarse.
    """
    if (given is None) == (dt is None):
        raise ValueError("Trajectories needs exactly one of times, (N,) s, and dt, s.")
    if dt is not None:
        given = np.broadcast_to(dt * np.arange(rows[-1]), rows)
    given = as_array(given, "times")
    if given.shape != rows:
        raise ValueError(f"times must have shape {rows}, one per sample; got {given.shape}.")
    if not is_concrete(given) or rows[-1] < 2:
        return given, True
    steps = np.diff(np.asarray(given, float), axis=-1)
    rounding = 4 * np.finfo(given.dtype).eps * np.abs(given).max()
    if given.dtype != np.float64 and rounding > COARSE * np.ptp(given) / (rows[-1] - 1):
        raise ValueError(
            f"times of {given.dtype} around {np.abs(given).max():.4g} s are rounded to {rounding / 4:.2g} s, too "
            "coarse for their steps. Pass them in double precision, or subtract the first."
        )
    if np.any(steps <= 0):
        k = int(np.argwhere(steps <= 0)[0, -1])
        raise ValueError(f"times must increase; from sample {k} to {k + 1} they do not.")
    return given, bool(np.ptp(steps) <= 1e-5 * np.median(steps) + rounding)


def valid(given: Any, rows: tuple[int, ...]) -> Any:
    """Mask of the samples that count; all by default.

    Raises:
        ValueError: for another shape or kind.
    """
    if given is None or isinstance(given, list | tuple):
        given = np.ones(rows, bool) if given is None else np.asarray(given)
    if given.shape != rows or given.dtype != bool:
        raise ValueError(f"valid must be bool of shape {rows}; got {given.dtype} {given.shape}.")
    return given


def start(given: Any) -> tuple[Any, Any] | None:
    """Mean and sd of the first state, if they are given.

    Raises:
        ValueError: for anything but a pair.
    """
    if given is None:
        return None
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError("start must be a pair (mean, sd) of the first state, (D,) each.")
    return as_array(given[0], "start"), as_array(given[1], "start")


def readings(observations, valid) -> tuple[np.ndarray, np.ndarray]:
    """Readings, zero where a sample has none, and the samples that have one.

    NaN is the missing reading of one sensor; readings of the others in that sample count.

    Raises:
        ValueError: for readings that are infinite.
    """
    valid = np.asarray(valid)
    if np.any(infinite := np.isinf(observations) & valid[..., None]):
        raise ValueError(
            f"{int(infinite.sum())} observations are infinite, first at sample {np.argwhere(infinite)[0][-2]}. Mark a "
            "missing reading by NaN; a sensor at the end of its range reads that end (`measurement_limits`)."
        )
    valid = valid & np.isfinite(observations).any(-1)
    return np.where(valid[..., None], observations, 0.0), valid


def before(given: Any, actions) -> Any:
    """Inputs (..., A) before the first sample.

    Raises:
        ValueError: for another word than "first", or numbers that do not fit.
    """
    if isinstance(given, str):
        if given != "first":
            raise ValueError(f"before must be numbers, one per input, or 'first'; got {given!r}.")
        return actions[..., 0, :]
    given, shape = as_array(given, "before"), (*actions.shape[:-2], actions.shape[-1])
    try:
        return np.broadcast_to(given, shape) if is_concrete(given) else jnp.broadcast_to(given, shape)
    except ValueError:
        raise ValueError(f"before must have one number per input, {shape}; got shape {given.shape}.") from None
