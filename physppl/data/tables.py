"""Tables of recordings: CSV, npz and netCDF files, DataFrames, Datasets and dicts, as named columns."""

import csv
import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from physppl.internal.errors import unknown

COMMENTS = ("#", "%", "//")
SEPARATORS = {"\t": "tab", ";": "semicolon", ",": "comma", "|": "bar"}
MISSING = {"", "nan", "na", "n/a", "#n/a", "null", "none", "-nan"}
TRUTH = {"true": "1", "false": "0"}
DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+([eE][-+]?\d+)?\s*")
ROWS = 20  # lines by which separator and decimal sign are recognised
LISTED = 8  # names, at most, that a message lists


class Table(NamedTuple):
    """Contents of a source: arrays by name, whose first axis is time, and the units that it states."""

    where: str
    arrays: Mapping[str, np.ndarray]
    units: Mapping[str, str]


def read(source: Any) -> Table:
    """Read a file by its suffix, a DataFrame, an xarray Dataset, or a dict of arrays.

    Raises:
        FileNotFoundError: naming what the folder holds.
        TypeError: for a source of another kind.
        ValueError: for a file that is no table, or of another kind.
    """
    kind = f"{type(source).__module__.split('.')[0]}.{type(source).__name__}"
    if isinstance(source, Table):
        return source
    if isinstance(source, str | Path):
        suffix = Path(source).suffix.lower()
        if suffix not in READERS:
            raise ValueError(f"recordings are {', '.join(READERS)} files; got {source}.")
        return READERS[suffix](source)
    if kind == "pandas.DataFrame":
        return read_frame(source, "DataFrame")
    if kind == "xarray.Dataset":
        return read_xarray(source)
    if isinstance(source, Mapping):
        return Table("dict of arrays", {str(name): np.ma.asanyarray(values) for name, values in source.items()}, {})
    raise TypeError(
        f"a recording is read from a file, a DataFrame, an xarray Dataset or a dict of arrays; got {kind}. Several are "
        "read one by one, and joined by Trajectories.stack or Transitions.concatenate."
    )


def read_csv(path) -> Table:
    """Read a text file whose first line that is no comment names the columns; empty cells are missing readings.

    Separator (comma, semicolon, tab, bar, blanks) and decimal comma are recognised; lines that begin with #, % or //
    and empty lines are left out.

    Raises:
        FileNotFoundError: naming what the folder holds.
        ValueError: for a file that is no table, lines of another length than the first, a name that comes twice.
    """
    where = f"CSV file {_existing(path)}"
    lines = [
        (number, line)
        for number, line in enumerate(_text(path, where).splitlines(), 1)
        if line.strip() and not line.lstrip().startswith(COMMENTS)
    ]
    if not lines:
        raise ValueError(f"{where} cannot be read as a table: it holds nothing but comments and empty lines.")
    separator = _separator(lines[0][1])
    names, rows = _fields(lines, separator, where)
    if not rows:
        raise ValueError(f"{where} has no rows, only the names of its columns.")
    sample = [cell for row in rows[:ROWS] for cell in row]
    decimal_comma = separator != "," and any(map(DECIMAL_COMMA.fullmatch, sample))
    columns = zip(*rows, strict=True)
    return Table(where, {name: _values(cells, decimal_comma) for name, cells in zip(names, columns, strict=True)}, {})


def _values(cells: Sequence[str], decimal_comma: bool) -> np.ndarray:
    """Numbers, with NaN for empty cells, or the words themselves where one is no number."""
    words = [cell.strip() for cell in cells]
    numbers = ["nan" if word.lower() in MISSING else TRUTH.get(word.lower(), word) for word in words]
    try:
        return np.array([word.replace(",", ".") for word in numbers] if decimal_comma else numbers, dtype=float)
    except ValueError:
        return np.array(
            [None if number == "nan" else word for number, word in zip(numbers, words, strict=True)], object
        )


def _text(path, where: str) -> str:
    content = Path(path).read_bytes()
    encodings = ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise ValueError(f"{where} cannot be read as a table: it is no text.")


def _separator(header: str) -> str | None:
    """The sign that divides the names of the columns into most parts; None for blanks."""
    counts = {sign: len(next(csv.reader([header], delimiter=sign))) for sign in SEPARATORS}
    most = max(counts, key=lambda sign: counts[sign])
    return most if counts[most] > 1 or len(header.split()) == 1 else None


def _fields(lines: list[tuple[int, str]], separator: str | None, where: str) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and the cells of each line below.

    Raises:
        ValueError: naming the line that does not fit.
    """
    if separator is None:
        cells = [line.split() for _, line in lines]
        if len(cells) > 1 and len(cells[1]) == 1 < len(cells[0]):  # blanks in the name of a single column
            cells = [[line.strip()] for _, line in lines]
    else:
        cells = list(csv.reader((line for _, line in lines), delimiter=separator, skipinitialspace=True))
    names, rows = [name.strip() for name in cells[0]], cells[1:]
    if all(map(_is_number, names)):
        raise ValueError(
            f"{where}, line {lines[0][0]}: the first line must name the columns; got {lines[0][1].strip()[:60]!r}. "
            "If a comment names them, take its sign away."
        )
    ends = {len(names) + 1, len(names)} if names[-1:] == [""] else {len(names) + 1}
    if rows and all(len(row) in ends and not row[-1].strip() for row in rows):  # a separator at the end of each line
        rows = [row[:-1] for row in rows]
        names = names[: len(rows[0])]
    for (number, _), row in zip(lines[1:], rows, strict=True):
        if len(row) != len(names):
            sign = "blanks" if separator is None else f"{SEPARATORS[separator]}s as separator"
            raise ValueError(
                f"{where}, line {number}: {len(row)} fields, where line {lines[0][0]} names {len(names)} columns "
                f"({', '.join(names[:LISTED])}), with {sign}. Each line needs one field for each name."
            )
    names = [name or f"column {i}" for i, name in enumerate(names)]
    return _distinct(names, where), rows


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _distinct(names: list[str], where: str) -> list[str]:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(
                f"{where}: columns {names.index(name)} and {i} are both named {name!r}. Rename one of them."
            )
    return names


def read_frame(frame, where: str) -> Table:
    """Columns of a DataFrame, its index among them if it has a name or holds dates."""
    names = _distinct([str(name).strip() for name in frame.columns], where)
    arrays = {name: _plain(frame.iloc[:, i]) for i, name in enumerate(names)}
    if (index := frame.index).nlevels == 1 and (index.name is not None or index.dtype.kind in "mM"):
        arrays.setdefault("time" if index.name is None else str(index.name), _plain(index.to_series()))
    if not len(frame):
        raise ValueError(f"{where} has no rows, only the names of its columns.")
    return Table(where, arrays, {})


def _plain(series) -> np.ndarray:
    """A column as NumPy has it; missing entries of pandas' own kinds of numbers are NaN."""
    if getattr(series.dtype, "na_value", None) is not None and series.dtype.kind in "fiub":
        return series.to_numpy(dtype=float, na_value=np.nan)
    if getattr(series.dtype, "tz", None) is not None:
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    return series.to_numpy()


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
        arrays[str(name)] = variable.to_numpy()
        if arrays[str(name)].dtype.kind not in "mM" and "units" in variable.attrs:
            units[str(name)] = str(variable.attrs["units"]).split(" since ")[0]
    return Table(where, arrays, units)


READERS = {
    ".csv": read_csv, ".tsv": read_csv, ".txt": read_csv, ".dat": read_csv, ".npz": read_npz, ".nc": read_xarray,
}  # fmt: skip


def labelled(table: Table, column: str) -> tuple[list[Table], bool]:
    """The rows of each label, in the order of their first appearance; True if rows of one label do not stand together.

    Raises:
        KeyError: where there is no such column, with close matches.
        ValueError: for a row without a label.
    """
    import pandas

    if column not in table.arrays:
        raise unknown("column", column, table.arrays, table.where)
    labels = table.arrays[column]
    if (missing := pandas.isna(labels)).any():
        row = int(np.argmax(missing))
        raise ValueError(f"{table.where}: column {column!r}, which separates recordings, is empty in row {row}.")
    codes, names = pandas.factorize(labels)
    apart = int(np.sum(codes[1:] != codes[:-1])) >= len(names)
    pieces = []
    for code, label in enumerate(names):
        rows = np.flatnonzero(codes == code)
        arrays = {name: values[rows] for name, values in table.arrays.items() if len(values) == len(codes)}
        label = f"{label:g}" if isinstance(label, float) else label
        pieces.append(Table(f"{table.where}, {column} {label}", arrays, table.units))
    return pieces, apart


def seconds(values: np.ndarray) -> np.ndarray | None:
    """Seconds since the first of dates and times, given as such or as text; None for anything else."""
    import pandas

    if values.dtype.kind not in "mMOUT":
        return None
    if values.dtype.kind not in "mM":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stamps = pandas.to_datetime(pandas.Series(values), format="ISO8601", utc=True)
        except (ValueError, TypeError, OverflowError):
            return None
        values = stamps.dt.tz_localize(None).to_numpy()
    missing, first = np.isnat(values), values[~np.isnat(values)][:1]
    return np.where(missing, np.nan, (values - first) / np.timedelta64(1, "s")) if len(first) else None


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
