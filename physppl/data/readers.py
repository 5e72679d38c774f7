"""Recordings in tables: a column for the clock, one per sensor and one per input, found by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from physppl.data.tables import LISTED, Table, seconds
from physppl.internal.errors import closest, unknown
from physppl.internal.units import factor

TIME = "time"  # name of the clock in `columns` and `units`
CLOCKS = ("t", "time")  # its columns by default
SMALL_ROUNDING = 0.1  # of a step: times rounded more coarsely are not moved onto an even grid
CLOCK_OFF = 0.1  # share by which a given step may differ from a clock's


def recording(
    table: Table,
    dynamics,
    *,
    columns: Mapping[str, str | None] | None = None,
    units: Mapping[str, str] | None = None,
    dt: float | None = None,
    unwrap: bool = False,
) -> dict[str, Any]:
    """Readings, inputs and times of one recording, as `Trajectories` takes them.

    A last reading without an input, the outcome of the last input, is left out: columns whose lengths differ by one
    are cut to the shortest. Times that differ from an even grid by the rounding of their digits alone become that grid.

    Args:
        dynamics: the Dynamics whose sensors and inputs name the columns.
        columns: {sensor, input or "time": column} where the names differ; "state:0" is the first column of an array.
            {"time": None}: no column is the clock, whatever its name.
        units: {sensor, input or "time": unit in the file} where it is not the dynamics'; converted.
        dt: s, in place of a clock; a clock that is there must agree with it to 10 % in its median step.
        unwrap: count the turns of angles that the file keeps between -pi and pi.

    Raises:
        KeyError: for a column, sensor or input that does not exist, with those that do.
        TypeError: for a column that is not numeric; for anything but a Dynamics.
        ValueError: for columns that do not fit together, missing inputs or times, times that do not increase.
    """
    if not hasattr(dynamics, "sensing"):
        got = type(dynamics).__name__
        raise TypeError(
            f"reading a recording takes the Dynamics, whose sensors and inputs name the columns; got {got}."
        )
    sensors, action = dynamics.sensing.space, dynamics.action
    targets = dict(zip((*sensors.names, *action.names), (*sensors.units, *action.units), strict=True)) | {TIME: "s"}
    key, columns = clock(table, columns, targets)
    if key is None and dt is None:
        raise KeyError(
            f"{table.where} has no column {' or '.join(map(repr, CLOCKS))}.{closest(TIME, _keys(table))} Map the "
            f"clock, {TIME}=column, or give dt, the seconds between samples."
        )
    names = [name for name in targets if key is not None or name != TIME]
    values = converted(table, targets, columns, units, "sensor or input", f"Dynamics({dynamics.name})", names)
    keys = {name: columns.get(name, name) for name in names}
    lengths = {keys[name]: len(column) for name, column in values.items()}
    length = min(lengths.values())
    if max(lengths.values()) > length + 1 or length == 0:
        listed = ", ".join(f"{key} {n}" for key, n in lengths.items())
        raise ValueError(f"{table.where}: columns must be equally long, or differ by one sample; got {listed}.")
    values = {name: column[:length] for name, column in values.items()}
    for name in (*action.names, TIME):
        missing = ~np.isfinite(values.get(name, np.zeros(1)))
        if missing.any():
            row = int(np.argmax(missing))
            raise ValueError(
                f"{table.where}: column {keys[name]!r} ({name}) is empty or not finite in row {row}. Only readings may "
                "be missing: inputs and times are needed at every sample."
            )
    readings = stacked(values, sensors.names, length)
    for i in np.flatnonzero(sensors.is_angle & unwrap):
        seen = np.isfinite(readings[:, i])  # missing readings stay missing
        readings[seen, i] = np.unwrap(readings[seen, i])
    arrays = {"observations": readings, "actions": stacked(values, action.names, length)}
    if key is None:
        return arrays | {"dt": dt}
    times = clock_times(values[TIME], key, table.where)
    if dt is None:
        return arrays | {"times": times}
    step = float(np.median(np.diff(times))) if length > 1 else dt
    if abs(step - dt) > CLOCK_OFF * dt:
        raise ValueError(
            f"{table.where}: dt={dt:g} s was given, but its clock {key!r} has a sample every {step:.4g} s. Leave dt "
            f"out, or give the clock's unit, as in units={{'{TIME}': 'ms'}}."
        )
    return arrays | {"dt": dt}


def converted(
    table: Table,
    targets: Mapping[str, str],
    columns: Mapping[str, str] | None,
    units: Mapping[str, str] | None,
    kind: str,
    owner: str,
    names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """{name: column (N,) in its target unit}, double precision.

    Args:
        targets: {name: unit} of all names that are allowed.
        columns: {name: column} where they differ.
        units: {name: unit in the file}, in place of what the file states.
        kind, owner: kind and owner of the names, for errors.
        names: those to read; all by default.

    Raises:
        KeyError: for an unknown name or column, with close matches.
        TypeError: for a column that is not numeric.
        ValueError: for units that do not convert.
    """
    columns, units = dict(columns or {}), dict(units or {})
    for name in (*columns, *units):
        if name not in targets:
            raise unknown(kind, name, targets, owner)
    values = {}
    for name in targets if names is None else names:
        key = columns.get(name, name)
        source = units.get(name) or table.units.get(key) or targets[name]
        if name == TIME and key in table.arrays and (stamps := seconds(np.asarray(table.arrays[key]))) is not None:
            values[name] = stamps
            continue
        values[name] = _column(table, name, key) * factor(source, targets[name], f"{table.where}, {kind} {name!r}")
    return values


def stacked(values: Mapping[str, np.ndarray], names: Sequence[str], length: int) -> np.ndarray:
    """Columns (length, n) of n names, which may be none."""
    return np.array([values[name] for name in names], float).reshape(len(names), length).T


def has_column(table: Table, key: str) -> bool:
    """True if a file holds the column "name" or "name:index"."""
    return key in table.arrays or _split(table, key)[0] in table.arrays


def _split(table: Table, key: str) -> tuple[str, int | None]:
    """(array, column) of a key such as "state:0"."""
    name, colon, index = key.rpartition(":")
    return (name, int(index)) if key not in table.arrays and colon and index.isdigit() else (key, None)


def _column(table: Table, name: str, key: str) -> np.ndarray:
    array, index = _split(table, key)
    if array not in table.arrays:
        for_whom = "" if name == key else f" (for {name!r})"
        hint = closest(key, _keys(table))
        raise KeyError(f"{table.where} has no column {key!r}{for_whom}.{hint} Map names to columns: {name}=column.")
    values = table.arrays[array]
    if np.ma.is_masked(values):
        values = np.ma.filled(np.ma.asanyarray(values).astype(float), np.nan)
    values = np.asarray(values)
    if values.dtype.kind not in "fiub":
        import pandas

        cells = pandas.Series(values.ravel())
        row = int(np.argmax([*(pandas.isna(pandas.to_numeric(cells, errors="coerce")) & cells.notna()), False]))
        got = repr(str(values.ravel()[row])) if values.size else values.dtype
        hint = " Write dates as 2024-01-31T22:00:00." if name == TIME else ""
        raise TypeError(f"{table.where}: column {key!r} must be numeric; got {got} in row {row}.{hint}")
    if values.ndim == 2 and values.shape[1] == 1 and index is None:
        index = 0
    if index is None and values.ndim == 1:
        return values.astype(float)
    if index is None or values.ndim != 2 or index >= values.shape[1]:
        raise ValueError(
            f"{table.where}: {array!r} has shape {values.shape}, of which {name!r} needs one column; got {key!r}. "
            f"{'Its columns are ' + ', '.join(_indexed(array, values)) if values.ndim == 2 else 'It is one column'}."
        )
    return values[:, index].astype(float)


def _keys(table: Table) -> list[str]:
    """Keys of all columns of a file, "name" or "name:index"."""
    return [
        key
        for name, values in table.arrays.items()
        for key in (_indexed(name, values) if np.ndim(values) == 2 else [name])
    ]


def _indexed(name: str, values) -> list[str]:
    width = np.shape(values)[1]
    return [f"{name}:{i}" for i in range(width)] if width <= LISTED else [f"{name}:0", "...", f"{name}:{width - 1}"]


def clock(
    table: Table, columns: Mapping[str, str | None] | None, taken: Mapping[str, str]
) -> tuple[str | None, dict[str, str]]:
    """Name of the column that holds the time, or None, and the columns with it.

    By default the one that is called so, unless a coordinate has that name; none where `columns` gives None for it.
    """
    named = {name: column for name, column in (columns or {}).items() if column is not None}
    key = named.get(TIME)
    if key is None and TIME not in (columns or {}):
        key = next((name for name in CLOCKS if name in table.arrays and (name == TIME or name not in taken)), None)
    return key, named | ({} if key is None else {TIME: key})


def clock_times(times: np.ndarray, key: str, where: str) -> np.ndarray:
    """Times, s, moved onto an even grid if they differ from it by rounding alone."""
    steps = np.diff(times)
    if np.any(steps <= 0):
        row = int(np.argmax(steps <= 0))
        raise ValueError(
            f"{where}: times ({key!r}) must increase; from row {row} to {row + 1} they go from {times[row]:.10g} to "
            f"{times[row + 1]:.10g}. Where another recording begins, name the column that tells them apart, "
            "recording=; where stamps are equal or swapped, drop or sort those rows; where the column is no clock, "
            f"say columns={{'{TIME}': None}}."
        )
    if len(times) < 3:
        return times
    grid = np.linspace(times[0], times[-1], len(times))
    for digits in range(10):
        if np.all(np.abs(times - np.round(times, digits)) <= 8 * np.spacing(np.abs(times).max())):
            # Rounding moves each time, and the two ends of the grid, by up to half of the last digit.
            even = 10.0**-digits < SMALL_ROUNDING * np.median(steps) and np.ptp(times - grid) <= 2 * 10.0**-digits
            return grid if even else times
    return times
