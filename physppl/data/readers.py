"""Recordings in files: CSV, npz and netCDF, with one column per sensor and per input, found by name."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from physppl.internal.errors import closest, unknown
from physppl.internal.units import factor

TIME = "time"  # name of the clock in `columns` and `units`
CLOCKS = ("t", "time")  # its columns by default
LISTED = 8  # columns of one array, at most, that a message lists
SMALL_ROUNDING = 0.1  # of a step: times rounded more coarsely are not moved onto an even grid


class Table(NamedTuple):
    """Contents of a file: arrays by name, whose first axis is time, and the units that the file states."""

    where: str
    arrays: Mapping[str, np.ndarray]
    units: Mapping[str, str]


def read_csv(path) -> Table:
    """Read a CSV file whose first line names the columns; empty cells are missing readings.

    Raises:
        FileNotFoundError: naming what the folder holds.
        ValueError: for a file that is no table.
    """
    import pandas  # 0.3 s, xarray's own dependency

    where = f"CSV file {_existing(path)}"
    try:
        table = pandas.read_csv(path, skipinitialspace=True)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{where} cannot be read as a table ({error}).") from None
    if not len(table):
        raise ValueError(f"{where} has no rows, only the names of its columns.")
    return Table(where, {str(name): table[name].to_numpy() for name in table.columns}, {})


def read_npz(path) -> Table:
    """Read the arrays that `numpy.savez` wrote.

    Raises:
        FileNotFoundError: naming what the folder holds.
        ValueError: for a file of another kind.
    """
    where = f"npz file {_existing(path)}"
    try:
        with np.load(path) as file:
            return Table(where, {name: file[name] for name in file.files}, {})
    except (ValueError, OSError, EOFError, BadZipFile, AttributeError, TypeError) as error:  # or of one unnamed array
        raise ValueError(f"{where} cannot be read ({error}). Write it with numpy.savez(path, t=..., u=...).") from None


def read_xarray(dataset) -> Table:
    """Read an xarray Dataset, or a netCDF file by its path; units are those of `attrs["units"]`.

    Raises:
        FileNotFoundError: naming what the folder holds.
        ValueError: for a file of another kind.
    """
    import xarray

    where = "xarray Dataset"
    if not isinstance(dataset, xarray.Dataset):
        where = f"netCDF file {_existing(dataset)}"
        try:
            with xarray.open_dataset(dataset, engine="h5netcdf", decode_times=False) as file:
                dataset = file.load()
        except (ValueError, OSError) as error:
            raise ValueError(f"{where} cannot be read ({error}).") from None
    arrays, units = {}, {}
    for name, variable in dataset.variables.items():
        values = variable.to_numpy()
        if values.dtype.kind in "mM" and values.size:
            values = (values - values[0]) / np.timedelta64(1, "s")
        elif "units" in variable.attrs:
            units[str(name)] = str(variable.attrs["units"]).split(" since ")[0]
        arrays[str(name)] = values
    return Table(where, arrays, units)


READERS = {".csv": read_csv, ".npz": read_npz, ".nc": read_xarray}


def read(path) -> Table:
    """Read a file of one of the three kinds, by its suffix.

    Raises:
        FileNotFoundError: naming what the folder holds.
        ValueError: for another kind of file.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"recordings are {', '.join(READERS)} files; got {path}.")
    return READERS[suffix](path)


def recording(
    table: Table,
    dynamics,
    *,
    columns: Mapping[str, str] | None = None,
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
        units: {sensor, input or "time": unit in the file} where it is not the dynamics'; converted.
        dt: s, in place of a time column, which is then not read.
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
    columns = dict(columns or {})
    if dt is None and TIME not in columns:
        columns[TIME] = _clock(table)
    names = [name for name in targets if dt is None or name != TIME]
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
    readings = np.stack([values[name] for name in sensors.names], axis=-1)
    for i in np.flatnonzero(sensors.is_angle & unwrap):
        seen = np.isfinite(readings[:, i])  # missing readings stay missing
        readings[seen, i] = np.unwrap(readings[seen, i])
    arrays = {"observations": readings, "actions": np.stack([values[name] for name in action.names], axis=-1)}
    return arrays | ({"dt": dt} if dt is not None else {"times": _times(values[TIME], keys[TIME], table.where)})


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
        values[name] = _column(table, name, key) * factor(source, targets[name], f"{table.where}, {kind} {name!r}")
    return values


def labels(table: Table, column: str) -> np.ndarray:
    """A column whose changes separate recordings.

    Raises:
        KeyError: where there is none of that name, with close matches.
    """
    if column not in table.arrays:
        raise unknown("column", column, table.arrays, table.where)
    return table.arrays[column]


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
    values = np.asarray(table.arrays[array])
    if values.dtype.kind not in "fiub":
        import pandas

        cells = pandas.Series(values.ravel())
        row = int(np.argmax([*(pandas.isna(pandas.to_numeric(cells, errors="coerce")) & cells.notna()), False]))
        got = repr(str(values.ravel()[row])) if values.size else values.dtype
        raise TypeError(f"{table.where}: column {key!r} must be numeric; got {got} in row {row}.")
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


def _clock(table: Table) -> str:
    for name in CLOCKS:
        if name in table.arrays:
            return name
    raise KeyError(
        f"{table.where} has no column {' or '.join(map(repr, CLOCKS))}.{closest(TIME, _keys(table))} Map the clock, "
        f"{TIME}=column, or give dt, the seconds between samples."
    )


def _times(times: np.ndarray, key: str, where: str) -> np.ndarray:
    """Times, s, moved onto an even grid if they differ from it by rounding alone."""
    steps = np.diff(times)
    if np.any(steps <= 0):
        row = int(np.argmax(steps <= 0))
        raise ValueError(
            f"{where}: times ({key!r}) must increase; from row {row} to {row + 1} they go from {times[row]:.10g} to "
            f"{times[row + 1]:.10g}. Give recordings that follow each other as files, or columns, of their own."
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


def _existing(path) -> Path:
    path = Path(path)
    if path.is_file():
        return path
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no file {path}: there is no folder {folder}.")
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in READERS)
    near = " or ".join(difflib.get_close_matches(path.name, names, n=2))
    hint = f" Did you mean {near}?" if near else f" The folder holds {', '.join(names[:LISTED]) or 'none'}."
    raise FileNotFoundError(f"there is no file {path}.{hint}")
