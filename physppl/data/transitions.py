"""Data of the one-step likelihood: (state, action, next state), with padding, fleets, CSV and xarray."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from physppl.data.spaces import ActionSpace, StateSpace
from physppl.internal.errors import as_array, is_concrete, unknown
from physppl.internal.units import factor


class Transitions(eqx.Module):
    """Transitions (s, a, s'), one row each.

    Attributes:
        states: (..., N, D), in the StateSpace's order and units; leading axes are machines of a fleet.
        actions: (..., N, A), each held over the step.
        next_states: (..., N, D), or None: inputs alone, for predictive use.
        valid: (..., N) bool; False marks padding, whose outcomes do not count.
        times: (..., N) s, time at the start of each step; zero where the dynamics do not depend on time.

    Raises:
        TypeError: for strings and other non-numbers, naming the argument.
        ValueError: for shapes that do not fit, naming both arguments.
    """

    states: Any
    actions: Any
    next_states: Any
    valid: Any
    times: Any

    def __init__(self, states, actions, next_states=None, *, valid=None, times=None):
        states, actions = as_array(states, "states"), as_array(actions, "actions")
        if states.ndim < 2 or actions.ndim < 2:
            raise ValueError(
                f"states and actions must be (N, D) and (N, A); got {states.shape} and {actions.shape}. "
                "A single coordinate is a column: x[:, None]."
            )
        rows = states.shape[:-1]
        if actions.shape[:-1] != rows:
            raise ValueError(f"actions must have as many rows as states; got {actions.shape} against {states.shape}.")
        if next_states is not None:
            next_states = as_array(next_states, "next_states")
            if next_states.shape != states.shape:
                raise ValueError(
                    f"next_states must have the shape of states; got {next_states.shape} against {states.shape}. "
                    "(N, 1) against (N,) would broadcast to a wrong posterior, so it is refused."
                )
        valid = np.ones(rows, bool) if valid is None else np.asarray(valid) if isinstance(valid, list) else valid
        if valid.shape != rows or valid.dtype != bool:
            raise ValueError(f"valid must be bool of shape {rows}; got {valid.dtype} {valid.shape}.")
        times = np.zeros(rows) if times is None else as_array(times, "times")
        if times.shape != rows:
            raise ValueError(f"times must have shape {rows}, one per transition; got {times.shape}.")
        if is_concrete(states, actions, next_states, valid, times) and not np.all(valid):
            states, actions, next_states, times = _filled(states, actions, next_states, valid, times)
        self.states, self.actions, self.next_states = states, actions, next_states
        self.valid, self.times = valid, times

    def __len__(self) -> int:
        """Rows, padding included."""
        return self.states.shape[-2]

    def __getitem__(self, rows) -> "Transitions":
        """A selection of rows."""
        pick = lambda x: None if x is None else x[..., rows, :]  # noqa: E731
        return Transitions(
            pick(self.states), pick(self.actions), pick(self.next_states),
            valid=self.valid[..., rows], times=self.times[..., rows],
        )  # fmt: skip

    def __repr__(self) -> str:
        fleet = f"{'x'.join(map(str, self.batch_shape))} machines, " if self.batch_shape else ""
        outcomes = "" if self.next_states is not None else ", inputs only"
        counted = "" if not is_concrete(self.valid) else f" ({int(np.sum(self.valid))} valid)"
        d, a = self.states.shape[-1], self.actions.shape[-1]
        return f"Transitions({fleet}{len(self)} rows{counted}, {d} state and {a} action coordinates{outcomes})"

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes: () for one machine, (machines,) for a fleet."""
        return tuple(self.states.shape[:-2])

    @property
    def inputs(self) -> "Transitions":
        """The same rows without outcomes, for `numpyro.infer.Predictive`."""
        return Transitions(self.states, self.actions, valid=self.valid, times=self.times)

    def with_outcomes(self, next_states) -> "Transitions":
        """The same inputs with these next states (..., N, D)."""
        return Transitions(self.states, self.actions, next_states, valid=self.valid, times=self.times)

    def pad(self, length: int) -> "Transitions":
        """Padded to `length` rows; padding repeats the last row and is not valid.

        Raises:
            ValueError: where the data are longer.
        """
        extra = length - len(self)
        if extra < 0:
            raise ValueError(f"pad: {len(self)} rows do not fit into {length}.")
        if extra == 0:
            return self

        def grow(x, axis):
            if x is None:
                return None
            if not len(self):  # nothing to repeat
                return np.zeros((*x.shape[:axis], length, *x.shape[axis % x.ndim + 1 :]), x.dtype)
            last = x[..., -1:, :] if axis == -2 else x[..., -1:]
            xp = np if isinstance(x, np.ndarray) else jnp
            return xp.concatenate([x, xp.repeat(last, extra, axis=axis)], axis=axis)

        valid = jnp.asarray(grow(self.valid, -1)) & (np.arange(length) < len(self))
        valid = np.asarray(valid) if is_concrete(valid) else valid
        return Transitions(
            grow(self.states, -2), grow(self.actions, -2), grow(self.next_states, -2),
            valid=valid, times=grow(self.times, -1),
        )  # fmt: skip

    @staticmethod
    def concatenate(parts: Sequence["Transitions"]) -> "Transitions":
        """The rows of several recordings of one machine, after each other."""
        _same_outcomes(parts)
        return _combined(parts, lambda xs: np.concatenate(xs, axis=-2), lambda xs: np.concatenate(xs, axis=-1))

    @staticmethod
    def stack(parts: Sequence["Transitions"]) -> "Transitions":
        """A fleet: one leading entry per machine, padded to the longest, for `dynamics(data)` inside a plate."""
        _same_outcomes(parts)
        longest = max(len(p) for p in parts)
        return _combined([p.pad(longest) for p in parts], np.stack, np.stack)

    @staticmethod
    def from_trajectory(states, actions, times=None) -> "Transitions":
        """The T transitions of one trajectory.

        Args:
            states: (T + 1, D).
            actions: (T, A), or (T + 1, A) with the last one unused.
        """
        states, actions = as_array(states, "states"), as_array(actions, "actions")
        steps = len(states) - 1
        if states.ndim != 2 or actions.ndim != 2 or len(actions) not in (steps, steps + 1):
            raise ValueError(
                f"from_trajectory: states (T + 1, D), actions (T, A) must fit; got {states.shape}, {actions.shape}."
            )
        times = None if times is None else as_array(times, "times")[:steps]
        return Transitions(states[:-1], actions[:steps], states[1:], times=times)

    @staticmethod
    def from_csv(
        path,
        state: StateSpace,
        action: ActionSpace,
        *,
        columns: Mapping[str, str] | None = None,
        units: Mapping[str, str] | None = None,
        recording: str | None = None,
    ) -> "Transitions":
        """Transitions between consecutive rows of a CSV file with named columns.

        Args:
            columns: {coordinate: column} where the names differ.
            units: {coordinate: unit in the file} where it is not the space's; converted.
            recording: a column whose changes separate recordings; no transition crosses them.

        Raises:
            KeyError: for a column or coordinate that does not exist, with close matches.
            TypeError: where a column is not numeric.
        """
        import pandas  # 0.3 s, xarray's own dependency

        table = pandas.read_csv(path)
        where = f"CSV file {path}"
        split = None
        if recording is not None:
            if recording not in table.columns:
                raise unknown("column", recording, map(str, table.columns), where)
            split = table[recording].to_numpy()
        read = lambda column: table[column].to_numpy()  # noqa: E731
        return _from_columns(read, list(map(str, table.columns)), state, action, columns, units or {}, split, where)

    @staticmethod
    def from_xarray(dataset, state: StateSpace, action: ActionSpace, *, columns=None, units=None) -> "Transitions":
        """Transitions between consecutive entries of an xarray Dataset with one variable per coordinate, (time,) each.

        Units are taken from each variable's `attrs["units"]` where `units` does not give them.
        """
        names = list(map(str, dataset.data_vars))
        given = {}
        for coordinate in (*state.names, *action.names):
            column = (columns or {}).get(coordinate, coordinate)
            if column in names and "units" in dataset[column].attrs:
                given[coordinate] = dataset[column].attrs["units"]
        read = lambda column: dataset[column].to_numpy()  # noqa: E731
        return _from_columns(read, names, state, action, columns, given | dict(units or {}), None, "xarray Dataset")

    def to_xarray(self, state: StateSpace, action: ActionSpace):
        """A Dataset with dims (transition, state) and (transition, action), units in attrs; padding is dropped."""
        import xarray

        keep = np.asarray(self.valid)
        dims = ("transition", "state")
        data: dict[str, Any] = {"states": (dims, np.asarray(self.states)[keep])}
        data["actions"] = (("transition", "action"), np.asarray(self.actions)[keep])
        if self.next_states is not None:
            data["next_states"] = (dims, np.asarray(self.next_states)[keep])
        coords = {"state": list(state.names), "action": list(action.names)}
        attrs = {"state_units": list(state.units), "action_units": list(action.units)}
        return xarray.Dataset(data, coords, attrs)


def _filled(states, actions, next_states, valid, times):
    """NaN and inf in invalid rows replaced from the first valid row: masked or not, they would give NaN gradients."""
    flat = np.asarray(valid).reshape(-1)
    source = int(np.argmax(flat)) if flat.any() else None

    def fill(x):
        rows = x.reshape(-1, x.shape[-1])
        xp = np if isinstance(x, np.ndarray) else jnp
        good = rows[source] if source is not None else xp.nan_to_num(rows)
        return xp.where(flat[:, None], rows, xp.where(xp.isfinite(rows), rows, good)).reshape(x.shape)

    outcomes = None if next_states is None else fill(next_states)
    return fill(states), fill(actions), outcomes, fill(times[..., None])[..., 0]


def _same_outcomes(parts: Sequence[Transitions]) -> None:
    if not parts:
        raise ValueError("no Transitions were given.")
    if len({p.next_states is None for p in parts}) > 1:
        raise ValueError("some Transitions have next_states and some do not; use .inputs on all or none.")


def _combined(parts, join_columns, join_rows) -> Transitions:
    outcomes = None if parts[0].next_states is None else join_columns([p.next_states for p in parts])
    return Transitions(
        join_columns([p.states for p in parts]), join_columns([p.actions for p in parts]), outcomes,
        valid=join_rows([p.valid for p in parts]), times=join_rows([p.times for p in parts]),
    )  # fmt: skip


def _from_columns(read, available, state, action, columns, units, split, where) -> Transitions:
    columns = dict(columns or {})
    coordinates = (*state.names, *action.names)
    for mapping in (columns, units):
        for name in mapping:
            if name not in coordinates:
                raise unknown("coordinate", name, coordinates, where)

    def matrix(space):
        out = []
        for name, unit in zip(space.names, space.units, strict=True):
            column = columns.get(name, name)
            if column not in available:
                raise unknown("column", column, available, f"{where} (for coordinate {name!r})")
            values = as_array(read(column), f"column {column!r}")
            out.append(values * factor(units.get(name, unit), unit, f"{where}, coordinate {name!r}"))
        return np.stack(out, axis=-1)

    states, actions = matrix(state), matrix(action)
    keep = slice(None) if split is None else split[1:] == split[:-1]
    return Transitions(states[:-1][keep], actions[:-1][keep], states[1:][keep])


def bucket(length: int) -> int:
    """The power of two that holds `length` rows: data of one bucket share compiled programs."""
    return max(1, 1 << (length - 1).bit_length())
