"""Checks of data against spaces: shapes, finite values and bounds; errors name row and coordinate."""

import jax.numpy as jnp
import numpy as np

from physppl.data.spaces import ActionSpace, Angle, StateSpace
from physppl.data.trajectories import Trajectories
from physppl.data.transitions import Transitions
from physppl.internal.errors import is_concrete
from physppl.internal.units import factor, is_angle

STEP = 1e-3  # share of dt by which a step may differ
WRAPPED = 0.2  # of a turn, about a whole one, in which a jump counts as one
AMBIGUOUS = 0.9  # of half a turn, from which a jump of an angle may have gone either way


def check_transitions(data: Transitions, state: StateSpace, action: ActionSpace, dt: float, where: str) -> None:
    """Refuse data that do not fit the spaces or the step; messages begin with `where`.

    Raises:
        ValueError: naming the row and coordinate of what is missing, not finite or out of bounds; for rows that follow
            each other at another step.
    """
    spaces = {"states": state, "actions": action, "next_states": state}
    _check_columns(data, spaces, where)
    if not is_concrete(data.states, data.actions, data.next_states, data.valid, data.times):
        return
    valid = np.asarray(data.valid)
    _check_finite(np.asarray(data.times)[..., None], valid, "times", ("time",), where)
    for argument, space in spaces.items():
        if getattr(data, argument) is not None:
            _check_finite(np.asarray(getattr(data, argument)), valid, argument, space.names, where)
    _check_bounds(np.asarray(data.actions), valid, action, where, "transition")
    if data.next_states is not None and len(data) > 1:
        _check_steps(data, state, dt, where)
        _check_turns(np.asarray(data.next_states) - np.asarray(data.states), valid, state, where)


def _check_steps(data: Transitions, state: StateSpace, dt: float, where: str) -> None:
    """Refuse rows whose outcome is the next row's state, but whose times are not dt apart."""
    times = np.asarray(data.times, float)
    steps = np.diff(times, axis=-1)
    joined = data.followed(state) & (steps != 0)  # else no times were given
    rounding = 4 * np.finfo(np.asarray(data.times).dtype).eps * np.abs(times).max(initial=0.0)
    off = joined & (np.abs(steps - dt) > STEP * dt + rounding)
    if off.any():
        at = tuple(np.argwhere(off)[0])
        low, high = steps[joined].min(), steps[joined].max()
        even = high - low <= 2 * STEP * high
        remedy = f"Bind it with dt={np.median(steps[joined]):.4g}" if even else "Resample them evenly"
        raise ValueError(
            f"{where}: by `times` {int(off.sum())} transitions do not take dt={dt:.4g} s, first transition {_row(at)} "
            f"with {steps[at]:.4g} s (between {low:.4g} and {high:.4g} s in all). {remedy}, or give the states as "
            "readings of Trajectories, where each step has its own length."
        )


def _check_turns(moved, valid, space: StateSpace, where: str) -> None:
    """Refuse coordinates in units of an angle, but not declared as Angle, that jump by a whole turn."""
    for i, (name, coordinate) in enumerate(space.coordinates.items()):
        if isinstance(coordinate, Angle) or not is_angle(coordinate.unit):
            continue
        turn = factor("turn", coordinate.unit, where)
        jumps = np.abs(moved[..., i])
        wrapped = (np.abs(jumps - turn) < WRAPPED * turn) & valid
        if wrapped.any() and np.median(jumps) < WRAPPED * turn:
            raise ValueError(
                f"{where}: {name!r} jumps by a whole turn after row {_row(np.argwhere(wrapped)[0])}: a Real coordinate "
                "does not wrap. Pass np.unwrap of the column, or declare it as Angle()."
            )


def check_trajectories(data: Trajectories, sensors: StateSpace, dynamics, where: str) -> None:
    """Refuse recordings that do not fit the sensors, the inputs or the step.

    Raises:
        ValueError: naming sample and coordinate, with the remedy.
    """
    remedy = " Name what is recorded: Dynamics(..., sensors=('angle',))."
    _check_columns(data, {"observations": sensors, "actions": dynamics.action}, where, remedy)
    if data.start is not None:
        shape = (*data.batch_shape, len(dynamics.state))
        for name, value in zip(("mean", "sd"), data.start, strict=True):
            if value.shape != shape:
                raise ValueError(f"{where}: the {name} of `start` must have shape {shape}; got {value.shape}.")
            numbers = np.asarray(value) if is_concrete(value) else np.zeros(0)
            if not (np.all(np.isfinite(numbers)) and (name == "mean" or np.all(numbers >= 0))):
                raise ValueError(f"{where}: the {name} of `start` must be finite, and an sd not negative; got {value}.")
    if not is_concrete(data.observations, data.actions, data.valid, data.times):
        return
    valid = np.asarray(data.valid)
    everywhere = np.ones_like(valid)
    _check_finite(np.asarray(data.times)[..., None], everywhere, "times", ("time",), where, "sample")
    _check_finite(np.asarray(data.actions), everywhere, "actions", dynamics.action.names, where, "sample")
    steps = np.diff(np.asarray(data.times, float), axis=-1)
    if data.regular and steps.size and not np.isclose(np.mean(steps), dynamics.dt, rtol=1e-3):
        raise ValueError(
            f"{where}: the recording has a sample every {np.mean(steps):.4g} s, the Dynamics a step of "
            f"{dynamics.dt:.4g} s. Bind it with dt={np.mean(steps):.4g}, or resample the recording."
        )
    if steps.size and steps.max() > 3 * dynamics.dt:
        k = int(np.argwhere(steps > 3 * dynamics.dt)[0, -1])
        raise ValueError(
            f"{where}: {steps.max():.4g} s pass without a sample after sample {k}, more than three steps of "
            f"{dynamics.dt:.4g} s. Add samples with valid=False at the missing times, or cut the recording there."
        )
    _check_bounds(np.asarray(data.actions), everywhere, dynamics.action, where, "sample")
    if data.observations is not None:
        readings = np.asarray(data.observations)
        seen = valid & np.isfinite(readings).all(-1)
        _check_turns(np.diff(readings, axis=-2), seen[..., 1:] & seen[..., :-1], sensors, where)
    if data.observations is not None and sensors.is_angle.any():
        moved = np.diff(np.asarray(data.observations, float), axis=-2)
        jumps = np.abs(moved - 2 * np.pi * np.round(moved / (2 * np.pi))) > AMBIGUOUS * np.pi
        jumps &= (valid[..., 1:] & valid[..., :-1])[..., None] & sensors.is_angle  # a missing reading is no jump
        if jumps.any():
            *at, i = np.argwhere(jumps)[0]
            raise ValueError(
                f"{where}: angle {sensors.names[i]!r} jumps by about half a turn after sample {_row(at)}, and whether "
                "forwards or backwards cannot be told. Is it in rad? Mark a sample that is wrong with valid=False, and "
                "sample a fast machine more often."
            )


def check_widths(states, actions, state: StateSpace, action: ActionSpace, where: str) -> None:
    """Refuse states (..., D) and actions (..., A) whose last axis does not fit the spaces.

    Raises:
        ValueError: naming the argument and the coordinates.
    """
    for argument, value, space in (("state", states, state), ("action", actions, action)):
        if jnp.shape(value)[-1:] != (len(space),):
            names, shape = ", ".join(space.names), jnp.shape(value)
            raise ValueError(f"{where}: {argument} must end in {len(space)} ({names}); got shape {shape}.")


def _check_columns(data, spaces: dict[str, StateSpace | ActionSpace], where: str, remedy: str = "") -> None:
    for argument, space in spaces.items():
        values = getattr(data, argument)
        if values is not None and values.shape[-1] != len(space):
            got, names = values.shape[-1], ", ".join(space.names)
            raise ValueError(f"{where}: {argument} must have {len(space)} columns ({names}); got {got}.{remedy}")


def _check_bounds(actions, valid, action: ActionSpace, where: str, row: str) -> None:
    slack = 1e-6 * (action.high - action.low)
    outside = ((actions < action.low - slack) | (actions > action.high + slack)) & valid[..., None]
    if outside.any():
        *at, i = np.argwhere(outside)[0]
        name, unit = action.names[i], action.units[i]
        raise ValueError(
            f"{where}: {int(outside.sum())} actions are out of bounds, first {name!r} = {actions[(*at, i)]:.4g} "
            f"{unit} at {row} {_row(at)}, outside [{action.low[i]:g}, {action.high[i]:g}]. "
            "Record what the machine received (after its own limits), or widen the ActionSpace."
        )


def _check_finite(values, valid, argument: str, names, where: str, kind: str = "transition") -> None:
    bad = ~np.isfinite(values) & valid[..., None]
    if bad.any():
        *row, i = np.argwhere(bad)[0]
        raise ValueError(
            f"{where}: {argument} has {int(bad.sum())} non-finite values, first at {kind} {_row(row)}, coordinate "
            f"{names[i]!r} ({values[(*row, i)]}). Drop the row, or mark it with valid=False."
        )


def _row(row) -> str:
    return str(int(row[0])) if len(row) == 1 else str(tuple(int(r) for r in row))
