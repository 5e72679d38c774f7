"""Files as loggers write them: what goes in comes out as the same data, or a refusal that names the place."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.infer.util import log_density

import physppl as pp
from physppl.data import tables
from physppl.dynamics.recordings import filtered

state = pp.StateSpace(x=pp.Real("m"), v=pp.Real("m/s"))
action = pp.ActionSpace(force=pp.Bounded(-9.0, 9.0, "N"))
cart = pp.Dynamics(lambda: lambda t, x, u: jnp.stack([x[1], u[0]]), state, action, dt=0.02)
NAMES = ("t", "x", "v", "force")
REFUSED = (ValueError, KeyError, TypeError)


def numbers(seed: int, rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"t": 0.02 * np.arange(rows), **{name: rng.normal(size=rows).round(4) for name in NAMES[1:]}}


def written(columns: dict, separator=",", decimal=".", comment="", ends="", newline="\n", blanks="") -> str:
    def cell(value):
        return ("" if value is None else str(value)).replace(".", decimal)

    lines = [
        separator.join(map(str, columns)),
        *(separator.join(map(cell, row)) for row in zip(*columns.values(), strict=True)),
    ]
    return newline.join([*([comment] if comment else []), *(blanks + line + ends for line in lines)]) + newline


def same(data, columns) -> bool:
    """True if the recording is that of the columns."""
    readings = np.stack([columns["x"], columns["v"]], axis=-1)
    return (
        data.observations.shape == readings.shape
        and np.array_equal(data.observations, readings)
        and np.array_equal(data.actions[:, 0], columns["force"])
        and np.allclose(data.times - data.times[0], columns["t"] - columns["t"][0], atol=1e-9)
    )


dialects = st.fixed_dictionaries(
    {
        "separator": st.sampled_from([",", ";", "\t", "|", " "]),
        "decimal": st.sampled_from([".", ","]),
        "comment": st.sampled_from(["", "# a logger, 3.1", "% t;x", "// made on Monday\n\n# by hand"]),
        "newline": st.sampled_from(["\n", "\r\n"]),
        "blanks": st.sampled_from(["", " "]),
        "ends": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    dialects,
    st.integers(0, 10**6),
    st.integers(2, 30),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    st.permutations(NAMES),
)
def test_any_dialect_is_read(tmp_path_factory, dialect, seed, rows, encoding, order):
    if dialect["separator"] == ",":
        dialect = dialect | {"decimal": "."}
    ends = dialect["separator"] if dialect["ends"] and dialect["separator"] != " " else ""
    columns = numbers(seed, rows)
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_bytes(written({name: columns[name] for name in order}, **dialect | {"ends": ends}).encode(encoding))
    assert same(pp.Trajectories.read(path, cart), columns)
    transitions = pp.Transitions.read(path, state, action)
    assert np.array_equal(transitions.states[:, 0], columns["x"][:-1]) and len(transitions) == rows - 1


def damaged(text: str, rng) -> str:
    """One structural fault: a separator too many or too few, names that come twice, lines lost, doubled or swapped."""
    lines = text.split("\n")[:-1]
    k, kind = int(rng.integers(len(lines))), int(rng.integers(9))
    places = [i for i, c in enumerate(lines[k]) if c == ","]
    at = places[int(rng.integers(len(places)))]
    if kind == 0:
        lines[k] = lines[k][:at] + "," + lines[k][at:]
    elif kind == 1:
        lines[k] = lines[k][:at] + lines[k][at + 1 :]
    elif kind == 2:
        lines[k] += ","
    elif kind == 3:
        lines = [line + ("," if i else "") for i, line in enumerate(lines)]
    elif kind == 4:
        lines[0] = lines[0].replace("v", "x")
    elif kind == 5:
        lines.insert(k, lines[k])
    elif kind == 6:
        lines.insert(k, "")
    elif kind == 7:
        lines[k] = lines[k][:at] + ";" + lines[k][at + 1 :]
    else:
        lines.insert(k, "# restarted")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.science)])
def test_damaged_files_are_read_right_or_refused(tmp_path, count):
    rng, read = np.random.default_rng(0), 0
    for i in range(count):
        columns = numbers(i, 12)
        path = tmp_path / "log.csv"
        path.write_text(damaged(written(columns), rng))
        try:
            data = pp.Trajectories.read(path, cart)
        except REFUSED as error:
            assert "log.csv" in str(error), error
            continue
        read += 1
        assert same(data, columns), path.read_text()
    assert 0.2 * count < read < 0.8 * count


FAULTS = [
    ("t,x,v,force\n0,1,2,3,4\n0.02,1,2,3,4\n", "line 2: 5 fields, where line 1 names 4 columns"),
    ("t,x,v,force\n0,1,2,3\n0.02,1,2\n", "line 3: 3 fields"),
    ("t,x,x,force\n0,1,2,3\n", "columns 1 and 2 are both named 'x'"),
    ("0,1,2,3\n0.02,1,2,3\n", "the first line must name the columns"),
    ("# t,x,v,force\n0,1,2,3\n", "take its sign away"),
    ("t,x,v,force\n", "has no rows"),
    ("# nothing\n\n", "comments and empty lines"),
    ("t,x,v,force\n0,stop,2,3\n", "column 'x' must be numeric; got 'stop' in row 0"),
    ("t,x,v,force\n01.02.2024,1,2,3\n02.02.2024,1,2,3\n", "Write dates as 2024-01-31T22:00:00"),
    ("t,x,v,force\n0,1,2,3\n0.02,1,2,3\n0.02,1,2,3\n", "from row 1 to 2 they go from 0.02 to 0.02.*equal or swapped"),
    ("t,x,v,force\n0,1,2,3\n0.02,1,2,\n", "column 'force' .* is empty"),
    ("t,x,v,force\n0,1,2,3\n0.02,inf,2,3\n", "observations are infinite, first at sample 1"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_faults_are_named(tmp_path, text, message):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(REFUSED, match=message):
        pp.Trajectories.read(path, cart)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(2, 12), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from(["text", "number"]),
)
def test_labels_are_gathered_however_rows_are_sorted(seed, lengths, by_time, kind):
    parts = [numbers(seed + i, n) for i, n in enumerate(lengths)]
    frames = [pandas.DataFrame(part).assign(run=f"run {i}" if kind == "text" else i) for i, part in enumerate(parts)]
    table = pandas.concat(frames, ignore_index=True)
    if by_time:
        table = table.sort_values(["t", "run"], kind="stable", ignore_index=True)
    stacked = pp.Trajectories.read(table, cart, recording="run")
    for one, part in zip(stacked.recordings(), parts, strict=True):
        assert same(one, part)
    transitions = pp.Transitions.read(table, state, action, recording="run")
    assert len(transitions) == sum(lengths) - len(lengths)
    np.testing.assert_array_equal(transitions.next_states[:, 0], np.concatenate([part["x"][1:] for part in parts]))


def test_labels_that_say_nothing_are_refused():
    columns = numbers(0, 6) | {"run": np.array(["a", "b"] * 3)}
    del columns["t"]
    with pytest.raises(ValueError, match="labels of 'run' come back, and without a clock"):
        pp.Transitions.read(columns, state, action, recording="run")
    with pytest.raises(ValueError, match="come back, and dt= does not say"):
        pp.Trajectories.read(columns, cart, dt=0.02, recording="run")
    with pytest.raises(ValueError, match="'run', which separates recordings, is empty in row 2"):
        pp.Trajectories.read(columns | {"run": np.array([1, 1, np.nan, 1, 1, 1])}, cart, dt=0.02, recording="run")
    with pytest.raises(KeyError, match="no column 'rum'.*run"):
        pp.Trajectories.read(columns, cart, dt=0.02, recording="rum")


CLOCKS = {
    "s": lambda t, origin: (origin + t, None),
    "ms": lambda t, origin: (1e3 * (origin + t), "ms"),
    "ns": lambda t, origin: (np.round(1e9 * t).astype(np.int64) + int(origin) * 10**9, "ns"),
    "min": lambda t, origin: ((origin + t) / 60, "min"),
    "dates": lambda t, origin: (np.datetime64(int(origin), "s") + (np.round(1e9 * t).astype("m8[ns]")), None),
    "text": lambda t, origin: (
        (np.datetime64(int(origin), "s") + np.round(1e9 * t).astype("m8[ns]")).astype(str),
        None,
    ),
}


@pytest.mark.parametrize("kind", CLOCKS)
@pytest.mark.parametrize("origin", [0, 1_706_738_400])
def test_the_origin_and_unit_of_a_clock_do_not_matter(tmp_path, kind, origin):
    columns = numbers(3, 50)
    stamps, unit = CLOCKS[kind](columns["t"], origin)
    units = None if unit is None else {"time": unit}
    path = tmp_path / "log.csv"
    pandas.DataFrame(columns | {"t": stamps}).to_csv(path, index=False)
    for source in (path, pandas.DataFrame(columns | {"t": stamps}), columns | {"t": stamps}):
        data = pp.Trajectories.read(source, cart, units=units)
        np.testing.assert_allclose(np.diff(data.times), 0.02, rtol=2e-5)
        cart.check(data)
        transitions = pp.Transitions.read(source, state, action, units=units)
        cart.check(transitions)
        np.testing.assert_allclose(np.diff(transitions.times), 0.02, rtol=2e-5)


def test_stamps_in_single_precision_are_refused_where_they_cannot_tell():
    columns = numbers(0, 9)
    stamps = (1.7e9 + columns["t"]).astype(np.float32)
    with pytest.raises(ValueError, match="times of float32 around 1.7e.09 s are rounded to .* subtract the first"):
        pp.Trajectories(columns["x"][:, None], columns["force"][:, None], stamps)
    assert pp.Trajectories(columns["x"][:, None], columns["force"][:, None], columns["t"].astype(np.float32)).regular


def test_an_index_of_dates_is_a_clock():
    index = pandas.date_range("2024-03-31 00:00", periods=10, freq="20ms", tz="Europe/Berlin")
    columns = numbers(0, 10)
    frame = pandas.DataFrame({name: columns[name] for name in NAMES[1:]}, index=index)
    assert same(pp.Trajectories.read(frame, cart), columns)


def test_steps_of_another_length_are_refused():
    columns = numbers(0, 9)
    with pytest.raises(ValueError, match=r"do not take dt=0.02 s, first transition 0 with 0.04 s.*dt=0.04"):
        cart.check(pp.Transitions.read(columns | {"t": 2 * columns["t"]}, state, action))
    uneven = columns["t"].copy()
    uneven[5:] += 0.005
    with pytest.raises(ValueError, match=r"1 transitions do not take .* transition 4 with 0.025 s.*Resample"):
        cart.check(pp.Transitions.read(columns | {"t": uneven}, state, action))
    with pytest.raises(ValueError, match="dt=0.02 s was given, but its clock 't' has a sample every 0.1 s"):
        pp.Trajectories.read(columns | {"t": 5 * columns["t"]}, cart, dt=0.02)
    apart = pp.Transitions.read(columns, state, action)[np.array([0, 3, 6])]  # rows that do not follow each other
    cart.check(apart)
    cart.check(pp.Transitions(apart.states, apart.actions, apart.next_states))  # no times at all


def test_recordings_of_different_rates_are_integrated_each_on_its_own(x64):
    """Their density is the sum of those of each alone, bound to its own step; noise grows with the root of the time."""
    rng = np.random.default_rng(0)
    noisy = cart.rebound(process_noise=0.01, measurement_noise=0.02, sensors=("x",))
    fast, slow = (
        pp.Trajectories(rng.normal(size=(n, 1)), rng.normal(size=(n, 1)), dt=dt) for n, dt in ((20, 0.02), (15, 0.04))
    )
    whole = pp.Trajectories.stack([fast, slow])
    alone = log_density(noisy, (fast,), {}, {})[0]
    alone += log_density(noisy.rebound(dt=0.04, process_noise=0.01 * np.sqrt(2)), (slow,), {}, {})[0]
    assert float(log_density(noisy, (whole,), {}, {})[0]) == pytest.approx(float(alone), rel=1e-9)
    assert not whole.regular and all(part.regular for part in whole.recordings())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 19), max_size=6))
def test_masks_mark_what_is_missing(seed, hidden):
    columns = numbers(seed, 20)
    masked = np.ma.array(columns["x"], mask=np.isin(np.arange(20), hidden))
    masked.data[hidden] = 9999.0
    data = pp.Trajectories.read(columns | {"x": masked}, cart)
    np.testing.assert_array_equal(np.asarray(data.seen)[:, 0], ~masked.mask)
    direct = pp.Trajectories(
        np.ma.stack([masked, np.ma.array(columns["v"])], axis=-1), columns["force"][:, None], dt=0.02
    )
    np.testing.assert_array_equal(direct.seen, data.seen)
    transitions = pp.Transitions.read(columns | {"x": masked}, state, action)
    if hidden:
        with pytest.raises(ValueError, match="non-finite"):
            cart.check(transitions)


turning = pp.StateSpace(angle=pp.Angle(), rate=pp.Real("rad/s"))
shaft = pp.Dynamics(lambda: lambda t, x, u: jnp.stack([x[1], u[0]]), turning, action, dt=0.02, sensors=("angle",))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["rad", "deg", "turn", "turn/4096", "mrad"]))
def test_wrapped_angles_are_counted_in_any_unit(seed, unit):
    angle = np.cumsum(np.random.default_rng(seed).uniform(-1.0, 1.5, 40))
    wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
    per_radian = {"rad": 1.0, "deg": 180 / np.pi, "turn": 0.5 / np.pi, "turn/4096": 2048 / np.pi, "mrad": 1e3}[unit]
    source = {"t": 0.02 * np.arange(40), "angle": wrapped * per_radian, "force": np.zeros(40)}
    data = pp.Trajectories.read(source, shaft, units={"angle": unit}, unwrap=True)
    np.testing.assert_allclose(np.diff(data.observations[:, 0]), np.diff(angle), atol=1e-9)
    shaft.check(pp.Trajectories.read(source, shaft, units={"angle": unit}))  # or as they are: differences wrap


@pytest.mark.parametrize("unit", ["rad", "deg", "turn"])
def test_a_wrapped_column_on_a_plain_coordinate_is_noticed(unit):
    plain = pp.StateSpace(angle=pp.Real(unit), rate=pp.Real("rad/s"))
    dynamics = pp.Dynamics(shaft.program, plain, action, dt=0.02)
    turn = {"rad": 2 * np.pi, "deg": 360.0, "turn": 1.0}[unit]
    x = np.stack([(0.13 * np.arange(30) % 1.0) * turn, np.zeros(30)], axis=-1)
    with pytest.raises(ValueError, match="'angle' jumps by a whole turn after row 7.*Angle()"):
        dynamics.check(pp.Transitions.from_trajectory(x, np.zeros((29, 1))))
    with pytest.raises(ValueError, match="'angle' jumps by a whole turn after row 7.*np.unwrap"):
        dynamics.check(pp.Trajectories(x, np.zeros((30, 1)), dt=0.02))
    dynamics.check(pp.Transitions.from_trajectory(np.unwrap(x, axis=0, period=turn), np.zeros((29, 1))))


@pytest.mark.parametrize(
    ("source", "target", "factor"),
    [
        ("rpm", "rad/s", np.pi / 30), ("turn/s", "rad/s", 2 * np.pi), ("turn/4096", "rad", 2 * np.pi / 4096),
        ("deg", "turn", 1 / 360), ("Hz", "1/s", 1.0), ("percent", "", 0.01), ("2 mm", "m", 2e-3), ("kHz", "1/s", 1e3),
        ("Hz", "rad/s", None), ("count", "rad", None), ("count/s", "rad/s", None), ("bit", "rad", None),
        ("rad", "", None),
        ("N m", "N m/rad", None), ("rad/s", "Hz", None), ("count", "", None), ("degC", "K", None), ("m", "s", None),
    ],
)  # fmt: skip
def test_an_angle_is_no_pure_number(source, target, factor):
    space = pp.StateSpace(x=pp.Real(target))
    table = {"x": np.array([1.0, 2.0, 3.0])}
    if factor is None:
        with pytest.raises(ValueError, match="no pure number|offset|cannot convert"):
            pp.Transitions.read(table, space, pp.ActionSpace(), units={"x": source})
    else:
        data = pp.Transitions.read(table, space, pp.ActionSpace(), units={"x": source})
        np.testing.assert_allclose(data.states[:, 0], factor * np.array([1.0, 2.0]))


@pytest.mark.parametrize(
    ("unit", "meant"), [("Nm", "N m"), ("rads/s", "rad/s"), ("kgm^2", "kg m^2"), ("rev/min", "turn/min")]
)
def test_misspelt_units_are_told(unit, meant):
    with pytest.raises(ValueError, match=f"Did you mean {meant!r}".replace("^", r"\^")):
        pp.Real(unit)


def test_a_recording_is_taken_out_of_a_stack_and_cut_by_seconds():
    parts = [pp.Trajectories.read(numbers(i, n), cart) for i, n in enumerate((10, 17, 5))]
    for one, part in zip(pp.Trajectories.stack(parts).recordings(), parts, strict=True):
        assert same(
            one,
            {"x": part.observations[:, 0], "v": part.observations[:, 1], "force": part.actions[:, 0], "t": part.times},
        )
    late = parts[1].between(0.1, 0.2)
    np.testing.assert_allclose(late.times, [0.1, 0.12, 0.14, 0.16, 0.18])
    with pytest.raises(ValueError, match=r"between\(9, 10\): the recording has samples from 0 to 0.32 s"):
        parts[1].between(9, 10)
    with pytest.raises(TypeError, match="take it out of the stack"):
        pp.Trajectories.stack(parts).between(0, 1)


def test_what_acted_before_the_first_sample(x64):
    """A cart under voltage that is 2 samples late, recorded from its start and from a sample in its motion."""
    late = cart.rebound(sensors=("x",), input_delay=2, process_noise=1e-6, measurement_noise=1e-3)
    u = np.repeat(np.random.default_rng(0).normal(size=12), 5)[:, None]
    acting = np.concatenate([np.zeros((2, 1)), u])[:60]
    x = np.asarray(pp.rollout(cart.transition({}), jnp.zeros(2), jnp.asarray(acting)))[:60]
    whole = pp.Trajectories(x[:, :1], u, dt=0.02, start=(x[0], np.full(2, 1e-6)))
    piece = whole[20:]
    assert piece.before == u[19] and whole.before == 0.0 and piece.pad(64).before == u[19]
    np.testing.assert_array_equal(pp.Trajectories.stack([whole[20:40], piece]).before, [u[19], u[19]])
    known = pp.Trajectories(
        piece.observations, piece.actions, piece.times, before=u[19], start=(x[20], np.full(2, 1e-6))
    )
    unknown = eqx.tree_at(lambda d: d.before, known, np.zeros(1))
    right, wrong = (np.asarray(late_errors(late, data)) for data in (known, unknown))
    assert np.abs(right).max() < 1e-12 and np.abs(wrong).max() > 1e-4
    first = pp.Trajectories.read({"t": whole.times, "x": x[:, 0], "force": u[:, 0]}, late, before="first")
    assert first.before == u[0]
    with pytest.raises(ValueError, match="before must be numbers, one per input, or 'first'; got 'last'"):
        pp.Trajectories(x[:, :1], u, dt=0.02, before="last")
    with pytest.raises(ValueError, match=r"before must have one number per input, \(1,\); got shape \(2,\)"):
        pp.Trajectories(x[:, :1], u, dt=0.02, before=np.zeros(2))


def late_errors(dynamics, data):
    """Errors of readings expected by the filter, whose state is known at the start."""
    return (filtered(dynamics, {}, data).expected - data.observations)[0]


def test_other_sources_are_named(tmp_path):
    with pytest.raises(TypeError, match="file, a DataFrame, an xarray Dataset or a dict of arrays; got builtins.int"):
        tables.read(3)
    with pytest.raises(TypeError, match="joined by Trajectories.stack"):
        tables.read([tmp_path])
    frame = pandas.DataFrame(np.zeros((3, 2)), columns=["x", "x"])
    with pytest.raises(ValueError, match="DataFrame: columns 0 and 1 are both named 'x'"):
        tables.read(frame)
    whole = pandas.DataFrame({"x": pandas.array([1, None, 3], dtype="Int64")})
    np.testing.assert_array_equal(tables.read(whole).arrays["x"], [1.0, np.nan, 3.0])
