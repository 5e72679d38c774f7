"""Data of the one-step likelihood: (state, action, next state), with padding, fleets, CSV and xarray."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from physppl.data import readers, tables
from physppl.data.arguments import time_last
from physppl.data.data import Data, drawn_rows
from physppl.data.lengths import bucket
from physppl.data.spaces import ActionSpace, StateSpace
from physppl.internal.errors import as_array, is_concrete

SAME = 1e-6  # in scales: difference up to which a state counts as the previous row's outcome


class Transitions(Data):
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

    row = part = "transition"
    outcome_field = "next_states"

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
            hint = time_last(actions, states)
            raise ValueError(
                f"actions must have as many rows as states; got {actions.shape} against {states.shape}.{hint}"
            )
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
        return self.states.shape[-2]

    def __getitem__(self, rows) -> "Transitions":
        """A selection of rows."""
        outcomes = None if self.next_states is None else self.next_states[..., rows, :]
        return Transitions(
            self.states[..., rows, :], self.actions[..., rows, :], outcomes,
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
    def machines(self) -> tuple[int, ...]:
        return self.batch_shape

    def followed(self, state: StateSpace) -> np.ndarray:
        """Mask (..., N - 1) of the rows whose outcome is the next row's state, where both rows count.

        A clock that goes back is that of another recording, which may begin in the state where this one ends.
        """
        valid = np.asarray(self.valid)
        states, after = np.asarray(self.states, float), np.asarray(self.next_states, float)
        gap = np.abs(state.difference(after[..., :-1, :], states[..., 1:, :]))
        later = np.diff(np.asarray(self.times, float), axis=-1) >= 0
        return valid[..., :-1] & valid[..., 1:] & later & np.all(gap <= SAME * state.scale, axis=-1)

    @property
    def inputs(self) -> "Transitions":
        return Transitions(self.states, self.actions, valid=self.valid, times=self.times)

    def with_outcomes(self, outcomes) -> "Transitions":
        return Transitions(self.states, self.actions, outcomes, valid=self.valid, times=self.times)

    def bucketed(self, step: float) -> "Transitions":
        return self.pad(bucket(len(self)))

    def join(self, other: Any) -> "Transitions":
        # Padding of a fleet stays, so that its machines keep one length.
        rows = self if self.batch_shape else self[np.flatnonzero(self.valid)]
        return Transitions.concatenate([rows, other])

    def parts(self) -> list[bytes]:
        """Each transition that counts, at single precision."""
        if self.next_states is None:
            return []
        columns = (self.states, self.actions, self.next_states)
        rows = np.concatenate([np.asarray(x, np.float32) for x in columns], axis=-1)
        return [row.tobytes() for row in rows[np.asarray(self.valid)]]

    def notice(self) -> str | None:
        if len(self) == 0:
            return "no transitions: the prior"  # rows that are all invalid ask for the prior on purpose
        return "one transition: mostly the prior" if self.count == 1 else None

    def resampled(self, key: PRNGKeyArray) -> "Transitions":
        """A bootstrap sample: each machine's valid rows, drawn with replacement, in the places of the valid ones."""
        if self.batch_shape:
            return jax.vmap(Transitions.resampled)(self, jax.random.split(key, self.batch_shape[0]))
        rows = drawn_rows(key, self.valid, len(self))
        drawn = jax.tree.map(lambda x: jnp.asarray(x)[rows], self)
        return eqx.tree_at(lambda d: d.valid, drawn, self.valid)

    def pad(self, length: int) -> "Transitions":
        """A copy padded to `length` rows; padding repeats the last row and is not valid.

        Raises:
            ValueError: where the data are longer.
        """
        extra = length - len(self)
        if extra < 0:
            raise ValueError(f"pad: {len(self)} rows do not fit into {length}.")
        if extra == 0:
            return self

        rows = len(self.batch_shape)  # the axis

        def grow(x):
            xp = np if isinstance(x, np.ndarray) else jnp
            widths = [(0, extra if axis == rows else 0) for axis in range(x.ndim)]
            return xp.pad(x, widths, "edge" if len(self) else "constant")

        padded = jax.tree.map(grow, self)
        valid = jnp.asarray(padded.valid) & (np.arange(length) < len(self))
        return eqx.tree_at(lambda d: d.valid, padded, np.asarray(valid) if is_concrete(valid) else valid)

    @staticmethod
    def concatenate(parts: Sequence["Transitions"]) -> "Transitions":
        """The rows of several recordings of one machine, after each other."""
        _same_outcomes(parts)
        rows = len(parts[0].batch_shape)  # the axis
        return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=rows), *parts)

    @staticmethod
    def stack(parts: Sequence["Transitions"]) -> "Transitions":
        """A fleet: one leading entry per machine, padded to the longest, for `dynamics(data)` inside a plate."""
        _same_outcomes(parts)
        longest = max(len(p) for p in parts)
        return jax.tree.map(lambda *arrays: np.stack(arrays), *(p.pad(longest) for p in parts))

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
    def read(
        source,
        state: StateSpace,
        action: ActionSpace,
        *,
        columns: Mapping[str, str | None] | None = None,
        units: Mapping[str, str] | None = None,
        recording: str | None = None,
    ) -> "Transitions":
        """Transitions between consecutive rows of a file, a DataFrame, an xarray Dataset or a dict of arrays.

        One column, or variable, per coordinate, found by name. Where there is a clock, `t` or `time`, it is read: a fit
        refuses steps that are not those of its Dynamics. Units are those of the source (`attrs["units"]`), where
        `units` does not give them.

        Args:
            source: path of a CSV, npz or netCDF file, or an object.
            columns: {coordinate or "time": column} where the names differ; {"time": None}: a column `t` or `time` is
                no clock, but a temperature, say.
            units: {coordinate or "time": unit in the file} where it is not the space's, or s; converted.
            recording: a column whose values separate recordings; no transition crosses from one to the next. Rows of a
                recording need not stand together where there is a clock.

        Raises:
            FileNotFoundError: naming what the folder holds.
            KeyError: for a column or coordinate that does not exist, with close matches.
            TypeError: where a column is not numeric.
            ValueError: for times that do not increase, labels that are missing, or come back without a clock.
        """
        return _from_table(tables.read(source), state, action, columns, units, recording)

    @staticmethod
    def from_csv(path, state, action, *, columns=None, units=None, recording: str | None = None) -> "Transitions":
        """Transitions between consecutive rows of a CSV file with named columns, as `read`."""
        return _from_table(tables.read_csv(path), state, action, columns, units, recording)

    @staticmethod
    def from_xarray(dataset, state, action, *, columns=None, units=None, recording: str | None = None) -> "Transitions":
        """Transitions between consecutive entries of an xarray Dataset, one variable per coordinate, as `read`."""
        return _from_table(tables.read_xarray(dataset), state, action, columns, units, recording)

    def to_xarray(self, state: StateSpace, action: ActionSpace):
        """A Dataset with dims (transition, state) and (transition, action), units in attrs; padding is dropped."""
        import xarray

        keep, columns = np.asarray(self.valid), {"states": "state", "actions": "action", "next_states": "state"}
        arrays = {name: (("transition", axis), getattr(self, name)) for name, axis in columns.items()}
        data = {name: (dims, np.asarray(x)[keep]) for name, (dims, x) in arrays.items() if x is not None}
        coords = {"state": list(state.names), "action": list(action.names)}
        attrs = {"state_units": list(state.units), "action_units": list(action.units)}
        return xarray.Dataset(data, coords, attrs)


def _filled(states, actions, next_states, valid, times):
    """Replace NaN and inf in invalid rows by the first valid row: even masked, they would give NaN gradients."""
    flat = np.asarray(valid).reshape(-1)
    source = int(np.argmax(flat)) if flat.any() else None

    def fill(x):
        rows = x.reshape(flat.size, x.shape[-1])
        xp = np if isinstance(x, np.ndarray) else jnp
        finite = rows[source] if source is not None else xp.nan_to_num(rows)
        return xp.where(flat[:, None], rows, xp.where(xp.isfinite(rows), rows, finite)).reshape(x.shape)

    return *jax.tree.map(fill, (states, actions, next_states)), fill(times[..., None])[..., 0]


def _same_outcomes(parts: Sequence[Transitions]) -> None:
    if not parts:
        raise ValueError("no Transitions were given.")
    if len({p.next_states is None for p in parts}) > 1:
        raise ValueError("some Transitions have next_states and some do not; use .inputs on all or none.")


def _from_table(table: tables.Table, state: StateSpace, action: ActionSpace, columns, units, recording) -> Transitions:
    """Transitions between consecutive rows; none crosses from one recording to another."""
    targets = dict(zip((*state.names, *action.names), (*state.units, *action.units), strict=True))
    clock, columns = readers.clock(table, columns, targets)
    targets |= {readers.TIME: "s"} if clock or readers.TIME in (units or {}) else {}
    pieces, apart = ([table], False) if recording is None else tables.labelled(table, recording)
    if apart and not clock:
        raise ValueError(
            f"{table.where}: labels of {recording!r} come back, and without a clock ('t' or 'time') nothing says in "
            "which order their rows follow each other. Map the clock, time=column, or sort the rows by recording."
        )
    parts = []
    for piece in pieces:
        values = readers.converted(piece, targets, columns, units, "coordinate", piece.where)
        length = len(values[state.names[0]])
        states, actions = (readers.stacked(values, space.names, length) for space in (state, action))
        times = readers.clock_times(values[readers.TIME], clock, piece.where)[:-1] if clock else None
        parts.append(Transitions(states[:-1], actions[:-1], states[1:], times=times))
    return Transitions.concatenate(parts)
