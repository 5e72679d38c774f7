"""Mistakes in files and tables: CSV, npz, DataFrames, xarray."""

import datetime
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas
import xarray

import physppl as pp
from mistakes.common import nuts
from mistakes.entry import Mistake, write

state = pp.StateSpace(x=pp.Real("m"), v=pp.Real("m/s"))
action = pp.ActionSpace(force=pp.Bounded(-9.0, 9.0, "N"))
cart = pp.Dynamics(lambda: lambda t, x, u: jnp.stack([x[1], u[0]]), state, action, dt=0.02)
HEAD, ROW = "t,x,v,force\n", "0.{:02d},{:.3f},1,2\n"
ROWS = [ROW.format(2 * k, 0.02 * k) for k in range(9)]
GOOD = HEAD + "".join(ROWS)
NO_UNITS = "NumPyro has no units"
NO_READER = "NumPyro reads no files"
columns = {name: np.arange(9.0) * step for name, step in (("t", 0.02), ("x", 0.02), ("v", 1.0), ("force", 0.0))}


def csv(text: str, name: str = "log.csv", **options):
    """Read a file of this text."""
    return lambda: pp.Trajectories.read(write(name, text), cart, **options)


def plain(table, force="force", x="x", t="t") -> str:
    """Force and acceleration of a table, the mass 1 kg."""

    def model(times, x, force):
        mass = numpyro.sample("mass", dist.Uniform(0.1, 3.0))
        change = jnp.diff(x, 2) / jnp.diff(times)[:-1] ** 2
        numpyro.sample("acceleration", dist.Normal(force[1:-1] / mass, 1.0), obs=change)

    nuts(model, *(jnp.asarray(np.asarray(table[name])) for name in (t, x, force)))
    missing = sum(int(np.isnan(table[name]).sum()) for name in (t, x, force))
    first = f"x in the first row is {np.asarray(table[x])[0]:g}, the force {np.asarray(table[force])[0]:g}"
    return first + (f"; {missing} of its cells are NaN" if missing else "")


def pandas_csv(text: str):
    return lambda: plain(pandas.read_csv(write("log.csv", text)))


def of_dates() -> str:
    """Times between days that a logger writes with the day first."""
    stamps = pandas.to_datetime(pandas.read_csv(write("log.csv", DATES))["t"])
    return f"one day is read as {(stamps[1] - stamps[0]) / datetime.timedelta(days=1):g}"


def interleaved(labels=("a", "b"), **more):
    """Rows of two runs in turn, without a clock."""
    table = {name: np.repeat(values, 2) for name, values in columns.items() if name != "t"}
    return table | {"run": np.array(list(labels) * 9)} | more


def plain_interleaved() -> str:
    table = interleaved()
    steps = np.diff(table["x"])
    plain(table | {"t": 0.02 * np.arange(18)})
    return f"{np.sum(steps == 0.0)} of 17 steps lead from one run into the other"


def npz(read=None, **arrays):
    """Read a file of these arrays."""

    def run():
        np.savez("log.npz", **arrays)
        return pp.Trajectories.read("log.npz", cart) if read is None else read()

    return run


def one_column(source: str, target: str):
    return pp.Transitions.read(
        {"x": columns["x"]}, pp.StateSpace(x=pp.Real(target)), pp.ActionSpace(), units={"x": source}
    )


def of_a_dataset():
    variables = {k: ("t", v, {"units": "kg"} if k == "x" else {}) for k, v in columns.items() if k != "t"}
    return pp.Trajectories.read(xarray.Dataset(variables, {"t": columns["t"]}), cart)


def cut(read):
    """Read the beginning of a file."""

    def run():
        np.savez("log.npz", **columns)
        Path("cut.npz").write_bytes(Path("log.npz").read_bytes()[:200])
        return read("cut.npz")

    return run


DATES = HEAD + "".join(f"0{k}.02.2024,{k},1,2\n" for k in range(1, 9))
objects = columns | {"x": np.array([None, *columns["x"][1:]], object)}

MISTAKES = [
    Mistake(
        "A file whose name is misspelt",
        lambda: (write("swing.csv", GOOD), pp.Trajectories.read("swign.csv", cart)),
        ("there is no file swign.csv", "Did you mean swing.csv"),
        lambda: (write("swing.csv", GOOD), pandas.read_csv("swign.csv")),
    ),
    Mistake(
        "A MATLAB file",
        csv(GOOD, "log.mat"), ("recordings are .csv", "got log.mat"), None, NO_READER,
    ),
    Mistake(
        "A comma and a checksum at the end of each row",
        csv(HEAD + "".join(row[:-1] + ",0.25\n" for row in ROWS)), ("line 2: 5 fields, where line 1 names 4 columns",),
        pandas_csv(HEAD + "".join(row[:-1] + ",0.25\n" for row in ROWS)),
    ),
    Mistake(
        "A row that was cut short",
        csv(GOOD + "0.18,1\n"), ("line 11: 2 fields, where line 1 names 4 columns",), pandas_csv(GOOD + "0.18,1\n"),
    ),
    Mistake(
        "A file without a line of names",
        csv("".join(ROWS)), ("the first line must name the columns",),
        lambda: plain(pandas.read_csv(write("log.csv", "".join(ROWS))).set_axis(["t", "x", "v", "force"], axis=1)),
    ),
    Mistake(
        "Names behind a `#`",
        csv("# " + GOOD), ("take its sign away",), pandas_csv("# " + GOOD),
    ),
    Mistake(
        "Two columns of one name",
        csv(GOOD.replace("v", "x", 1)), ("columns 1 and 2 are both named 'x'",), pandas_csv(GOOD.replace("v", "x", 1)),
    ),
    Mistake(
        "A file that ends after its names",
        csv(HEAD), ("has no rows",), pandas_csv(HEAD),
    ),
    Mistake(
        "A word among numbers",
        csv(GOOD.replace("0.020", "stop", 1)), ("column 'x' must be numeric; got 'stop' in row 1",),
        pandas_csv(GOOD.replace("0.020", "stop", 1)),
    ),
    Mistake(
        "Dates with the day first, 01.02.2024",
        csv(DATES), ("Write dates as 2024-01-31T22:00:00",), of_dates,
    ),
    Mistake(
        "Rows in the wrong order",
        csv(HEAD + "".join(ROWS[::-1])), ("go from", "equal or swapped"), pandas_csv(HEAD + "".join(ROWS[::-1])),
    ),
    Mistake(
        "An empty cell among the inputs",
        csv(GOOD.replace(",2\n", ",\n", 1)),
        ("column 'force'", "is empty or not finite in row 0", "inputs and times are needed"),
        pandas_csv(GOOD.replace(",2\n", ",\n", 1)),
    ),
    Mistake(
        "A column of another name",
        csv(GOOD.replace("force", "F")),
        ("has no column 'force'", "Known: t, x, v, F"), pandas_csv(GOOD.replace("force", "F")),
    ),
    Mistake(
        "A misspelt coordinate in `columns=`",
        csv(GOOD, columns={"fore": "force"}), ("no sensor or input 'fore'", "'force'"), None, NO_READER,
    ),
    Mistake(
        "A step that the file's clock contradicts",
        csv(GOOD, dt=0.1), ("dt=0.1 s was given, but its clock 't' has a sample every 0.02 s",),
        lambda: plain(pandas.read_csv(write("log.csv", GOOD)).assign(t=0.1 * np.arange(9))),
    ),
    Mistake(
        "A file without times",
        csv("".join(line.partition(",")[2] + "\n" for line in GOOD.split("\n")[:-1])),
        ("has no column 't' or 'time'", "or give dt"),
        pandas_csv("".join(line.partition(",")[2] + "\n" for line in GOOD.split("\n")[:-1])),
    ),
    Mistake(
        "Mass in place of force: a unit of another kind",
        csv(GOOD, units={"force": "kg"}), ("cannot convert 'kg' to 'N'",), None, NO_UNITS,
    ),
    Mistake(
        "Turns per second as Hz, counts as radians",
        lambda: one_column("Hz", "rad/s"),
        ("an angle is no pure number", "turn/s or rpm for a rate"), None, NO_UNITS,
    ),
    Mistake(
        "Degrees Celsius, whose zero lies elsewhere",
        lambda: one_column("degC", "K"),
        ("has an offset; convert it beforehand",), None, NO_UNITS,
    ),
    Mistake(
        "Rows of two runs in turn, without a clock",
        lambda: pp.Transitions.read(interleaved(), state, action, recording="run"),
        ("labels of 'run' come back", "sort the rows"),
        plain_interleaved,
    ),
    Mistake(
        "A label of a run that is missing",
        lambda: pp.Trajectories.read(interleaved((1.0, np.nan)), cart, dt=0.02, recording="run"),
        ("which separates recordings, is empty in row 1",),
        None, NO_READER,
    ),
    Mistake(
        "A whole state matrix as one column of an npz file",
        npz(**(columns | {"x": np.zeros((9, 2))})), ("shape (9, 2)", "'x' needs one column", "x:0"),
        npz(lambda: plain(np.load("log.npz")), **(columns | {"x": np.zeros((9, 2))})),
    ),
    Mistake(
        "Arrays of different length in an npz file",
        npz(**(columns | {"force": np.zeros(7)})), ("equally long", "force 7"),
        npz(lambda: plain(np.load("log.npz")), **(columns | {"force": np.zeros(7)})),
    ),
    Mistake(
        "An npz file with a None in it",
        npz(**objects), ("log.npz", "Write it with numpy.savez"), npz(lambda: plain(np.load("log.npz")), **objects),
    ),
    Mistake(
        "An npz file that was cut short",
        cut(lambda name: pp.Trajectories.read(name, cart)), ("cut.npz cannot be read",), cut(np.load),
    ),
    Mistake(
        "An xarray variable whose unit is of another kind",
        of_a_dataset,
        ("cannot convert 'kg' to 'm'",), None, NO_UNITS,
    ),
    Mistake(
        "Spaces in place of the Dynamics, whose sensors name the columns",
        lambda: pp.Trajectories.read(write("log.csv", GOOD), state),
        ("takes the Dynamics, whose sensors and inputs name the columns; got StateSpace",),
        None, NO_READER,
    ),
]  # fmt: skip
