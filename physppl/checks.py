"""Data against spaces: shapes, finite values, bounds, each named where it does not fit."""

import jax.numpy as jnp
import numpy as np

from physppl.errors import is_concrete
from physppl.spaces import ActionSpace, StateSpace
from physppl.transitions import Transitions


def check_data(data: Transitions, state: StateSpace, action: ActionSpace, where: str) -> None:
    """Refuse data that do not fit the spaces; `where` says who asks.

    Raises:
        TypeError: for anything but Transitions.
        ValueError: naming the row and coordinate of what is missing, not finite or out of bounds.
    """
    if not isinstance(data, Transitions):
        raise TypeError(f"{where} takes Transitions(states=, actions=, next_states=); got {type(data).__name__}.")
    for argument, space in (("states", state), ("actions", action)):
        width = getattr(data, argument).shape[-1]
        if width != len(space):
            raise ValueError(
                f"{where}: {argument} must have {len(space)} columns ({', '.join(space.names)}); got {width}."
            )
    if not is_concrete(data.states, data.actions, data.next_states, data.valid, data.times):
        return
    valid = np.asarray(data.valid)
    _check_finite(np.asarray(data.times)[..., None], valid, "times", ("time",), where)
    for argument, space in (
        ("states", state),
        ("actions", action),
        ("next_states", state),
    ):
        if getattr(data, argument) is not None:
            _check_finite(np.asarray(getattr(data, argument)), valid, argument, space.names, where)
    actions, slack = np.asarray(data.actions), 1e-6 * (action.high - action.low)
    outside = ((actions < action.low - slack) | (actions > action.high + slack)) & valid[..., None]
    if outside.any():
        *row, i = np.argwhere(outside)[0]
        name, unit = action.names[i], action.units[i]
        raise ValueError(
            f"{where}: {int(outside.sum())} actions are out of bounds, first {name!r} = {actions[(*row, i)]:.4g} "
            f"{unit} at transition {_row(row)}, outside [{action.low[i]:g}, {action.high[i]:g}]. "
            "Record what the machine received (after its own limits), or widen the ActionSpace."
        )


def check_widths(states, actions, state: StateSpace, action: ActionSpace, where: str) -> None:
    """Refuse states (..., D) and actions (..., A) that are not of the spaces, by their shapes alone.

    Raises:
        ValueError: naming the argument and the coordinates.
    """
    for argument, value, space in (("state", states, state), ("action", actions, action)):
        if jnp.shape(value)[-1:] != (len(space),):
            names, shape = ", ".join(space.names), jnp.shape(value)
            raise ValueError(f"{where}: {argument} must end in {len(space)} ({names}); got shape {shape}.")


def _check_finite(values, valid, argument: str, names, where: str) -> None:
    bad = ~np.isfinite(values) & valid[..., None]
    if bad.any():
        *row, i = np.argwhere(bad)[0]
        raise ValueError(
            f"{where}: {argument} has {int(bad.sum())} non-finite values, first at transition {_row(row)}, coordinate "
            f"{names[i]!r} ({values[(*row, i)]}). Drop the row, or mark it with valid=False."
        )


def _row(row) -> str:
    return str(int(row[0])) if len(row) == 1 else str(tuple(int(r) for r in row))
