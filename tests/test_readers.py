"""Recordings in files: what was written is read back, to the bit, whatever it is called; what does not fit is named."""

import numpy as np
import pandas
import pytest
import xarray

import physppl as pp
from physppl.cli.identify import _pairs
from physppl.data import readers, tables
from physppl.models import furuta, pendulum

pytestmark = pytest.mark.usefixtures("as_user")

machine = furuta.dynamics(sensors=("arm", "pendulum"))
encoder = pendulum.dynamics(sensors=("angle",))
random = np.random.default_rng(0)
ROWS = 40
# So few digits that every reader of decimal numbers finds the same double.
times = np.cumsum(random.uniform(0.003, 0.005, ROWS)).round(7)
state = random.normal(size=(ROWS, 4)).round(7)
volts = random.uniform(-6.0, 6.0, ROWS).round(7)
state[7, 1] = np.nan  # a reading that is missing
columns = {"arm": "state:0", "pendulum": "state:1", "voltage": "u"}


def write(path, **arrays):
    """The arrays in a file of the kind that the path says."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".csv":
        pandas.DataFrame(arrays).to_csv(path, index=False)
    else:
        dims = {name: ["row", *(f"{name}_{i}" for i in range(1, np.ndim(a)))] for name, a in arrays.items()}
        xarray.Dataset({name: (dims[name], a) for name, a in arrays.items()}).to_netcdf(path, engine="h5netcdf")
    return path


def load(path, dynamics=machine, **reading) -> pp.Trajectories:
    by_suffix = {".csv": pp.Trajectories.from_csv, ".npz": pp.Trajectories.from_npz, ".nc": pp.Trajectories.from_xarray}
    return by_suffix[path.suffix](path, dynamics, **reading)


def assert_recorded(data, observations, actions, times):
    """The Trajectories of these arrays, to the bit."""
    expected = pp.Trajectories(observations, actions, times)
    for name in ("observations", "actions", "times", "valid"):
        np.testing.assert_array_equal(getattr(data, name), getattr(expected, name), err_msg=name)
    assert data.regular == expected.regular


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".nc"])
def test_named_columns_come_back_to_the_bit(tmp_path, suffix):
    path = write(tmp_path / f"log{suffix}", t=times, arm=state[:, 0], pendulum=state[:, 1], voltage=volts, other=times)
    data = load(path, segment=5)
    assert_recorded(data, state[:, :2], volts[:, None], times)
    assert data.segment == 5 and data.valid.all() and np.argwhere(~data.seen).tolist() == [[7, 1]]
    machine.check(data)


@pytest.mark.parametrize("suffix", [".npz", ".nc"])
def test_columns_of_arrays_are_counted_from_zero(tmp_path, suffix):
    path = write(tmp_path / f"log{suffix}", stamp=times, state=state, u=volts[:, None])
    data = load(path, columns=columns | {"time": "stamp"})
    assert_recorded(data, state[:, :2], volts[:, None], times)


def test_a_table_names_columns_as_it_likes(tmp_path):
    (tmp_path / "log.csv").write_text("time, pos, tau\n0.00, 10, 1.5\n0.05, , 1.0\n0.10, 12, -1\n")
    data = load(tmp_path / "log.csv", encoder, columns={"angle": "pos", "torque": "tau"}, units={"angle": "deg"})
    expected = np.deg2rad([[10.0], [np.nan], [12.0]])  # an empty cell is a missing reading
    np.testing.assert_allclose(data.observations[[0, 2]], expected[[0, 2]], rtol=1e-14)
    assert data.valid.tolist() == [True, False, True] and data.regular


def test_a_column_separates_recordings(tmp_path):
    run = np.repeat([3, 1], [25, 15])
    clock = np.where(run == 3, 0.05 * np.arange(ROWS), 0.05 * (np.arange(ROWS) - 25))
    path = write(tmp_path / "log.csv", t=clock, angle=state[:, 0], torque=volts / 6, run=run)
    data = load(path, encoder, recording="run")
    assert data.batch_shape == (2,) and data.valid.sum(axis=1).tolist() == [25, 15]
    np.testing.assert_array_equal(data.observations[1, :15, 0], state[25:, 0])
    np.testing.assert_array_equal(data.times[1, :15], clock[25:])


def test_the_reading_after_the_last_input_is_left_out(tmp_path):
    path = write(tmp_path / "log.npz", t=times, state=state, u=volts[:-1])
    assert_recorded(load(path, columns=columns), state[:-1, :2], volts[:-1, None], times[:-1])


def test_dt_stands_in_for_the_clock(tmp_path):
    path = write(tmp_path / "log.npz", t=times, state=state, u=volts)
    data = load(path, columns=columns, dt=0.004)
    np.testing.assert_array_equal(data.times, 0.004 * np.arange(ROWS))
    assert data.regular and not load(path, columns=columns).regular


def test_times_that_were_rounded_are_an_even_grid_again(tmp_path):
    even = 3.0 + np.arange(200) / 60
    rounded = np.round(even, 3)  # 60 Hz to the millisecond: steps of 16 and 17 ms
    path = write(tmp_path / "log.csv", t=rounded, angle=np.zeros(200), torque=np.zeros(200))
    assert not pp.Trajectories(np.zeros((200, 1)), np.zeros((200, 1)), rounded).regular
    data = load(path, encoder)
    assert data.regular
    np.testing.assert_allclose(data.times, even, atol=1e-3, rtol=0)
    lost = np.delete(np.arange(201), 100) / 60  # one sample was not written: no rounding explains that
    for clock in (np.round(lost, 3), np.delete(np.arange(201.0), 100)):
        path = write(tmp_path / "log.csv", t=clock, angle=np.zeros(200), torque=np.zeros(200))
        data = load(path, encoder)
        np.testing.assert_array_equal(data.times, clock)
        assert not data.regular


def test_units_of_a_file_are_converted():
    moments = np.datetime64("2021-04-14T18:52:33") + np.arange(ROWS) * np.timedelta64(4, "ms")
    dataset = xarray.Dataset(
        {
            "arm": ("time", np.rad2deg(state[:, 0]), {"units": "deg"}),
            "pendulum": ("time", state[:, 1], {"units": "rad"}),
            "voltage": ("time", 1e3 * volts, {"units": "mV"}),
        },
        coords={"time": moments},
    )
    data = pp.Trajectories.from_xarray(dataset, machine)
    np.testing.assert_allclose(data.observations[data.valid], state[data.valid, :2], rtol=1e-14)
    np.testing.assert_allclose(data.actions[:, 0], volts, rtol=1e-14)
    np.testing.assert_allclose(data.times, 0.004 * np.arange(ROWS), atol=1e-12)
    clock = dataset.assign_coords(time=("time", 4.0 * np.arange(ROWS), {"units": "ms"}))
    assert pp.Trajectories.from_xarray(clock, machine).regular
    np.testing.assert_allclose(pp.Trajectories.from_xarray(clock, machine).times, data.times, atol=1e-12)
    stated = pp.Trajectories.from_xarray(dataset, machine, units={"arm": "mrad"})  # what the caller says counts
    np.testing.assert_allclose(stated.observations[0, 0], 1e-3 * np.rad2deg(state[0, 0]), rtol=1e-14)


def test_turns_are_counted_across_missing_readings(tmp_path):
    turning = 0.3 * np.arange(60.0)
    wrapped = (turning + np.pi) % (2 * np.pi) - np.pi
    wrapped[[20, 21, 22]] = np.nan
    path = write(tmp_path / "log.npz", angle=wrapped, torque=np.zeros(60))
    data = load(path, encoder, dt=0.05, unwrap=True)
    np.testing.assert_allclose(data.observations[data.valid, 0], turning[data.valid], atol=1e-12)
    encoder.check(data)
    encoder.check(load(path, encoder, dt=0.05))  # or not counted: differences wrap


def test_any_kind_is_found_by_the_end_of_its_name(tmp_path):
    for suffix in (".csv", ".npz", ".nc"):
        path = write(tmp_path / f"log{suffix}", t=times, angle=state[:, 0], torque=volts / 6)
        np.testing.assert_array_equal(readers.recording(tables.read(path), encoder)["observations"][:, 0], state[:, 0])
    with pytest.raises(ValueError, match=r"recordings are \.csv, .* \.nc files; got .*log\.mat"):
        tables.read(tmp_path / "log.mat")


good = {"t": times, "state": state, "u": volts}
wrong = [
    (KeyError, {}, {"columns": {}}, r"log\.npz has no column 'arm'\. Known: t, state:0, state:1, state:2, state:3, u"),
    (KeyError, {}, {"columns": columns | {"arm": "stat:0"}}, r"no column 'stat:0' \(for 'arm'\).*mean 'state:0'"),
    (KeyError, {}, {"columns": columns | {"volts": "u"}}, "no sensor or input 'volts'.*mean 'voltage'.*arm, pendulum"),
    (KeyError, {}, {"columns": columns, "units": {"arn": "deg"}}, "no sensor or input 'arn'.*mean 'arm'"),
    (KeyError, {"t": None}, {"columns": columns}, "has no column 't' or 'time'.*time=column, or give dt"),
    (ValueError, {}, {"columns": columns | {"arm": "state"}}, r"shape \(40, 4\).*'arm' needs one column.*state:3"),
    (ValueError, {}, {"columns": columns | {"arm": "state:4"}}, "'arm' needs one column; got 'state:4'"),
    (ValueError, {}, {"columns": columns | {"voltage": "u:1"}}, r"shape \(40,\).*got 'u:1'\. It is one column"),
    (ValueError, {"u": volts[:30]}, {"columns": columns}, "equally long.*state:0 40, state:1 40, u 30, t 40"),
    (
        ValueError,
        {"u": np.where(volts > 0, np.nan, volts)},
        {"columns": columns},
        r"column 'u' \(voltage\) is empty.*row",
    ),
    (ValueError, {"t": times[::-1]}, {"columns": columns}, "times .'t'. must increase; from row 0 to 1"),
    (
        ValueError,
        {},
        {"columns": columns, "units": {"arm": "m"}},
        "log.npz, sensor or input 'arm': cannot convert 'm' to 'rad'",
    ),
    (TypeError, {"u": volts.astype(str)}, {"columns": columns}, "column 'u' must be numeric; got '"),
]


@pytest.mark.parametrize(("kind", "arrays", "reading", "message"), wrong, ids=[w[-1][:36] for w in wrong])
def test_what_does_not_fit_is_named(tmp_path, kind, arrays, reading, message):
    arrays = {name: a for name, a in (good | arrays).items() if a is not None}
    with pytest.raises(kind, match=message):
        load(write(tmp_path / "log.npz", **arrays), **reading)


def test_a_cell_that_is_no_number_is_named(tmp_path):
    (tmp_path / "log.csv").write_text("t,angle,torque\n0,1,0\n0.05,high,0\n")
    with pytest.raises(TypeError, match=r"CSV file .*log\.csv: column 'angle' must be numeric; got 'high' in row 1"):
        load(tmp_path / "log.csv", encoder)
    with pytest.raises(KeyError, match="has no column 'rum'.*Known: t, angle, torque"):
        load(tmp_path / "log.csv", encoder, recording="rum")
    with pytest.raises(
        TypeError, match="takes the Dynamics, whose sensors and inputs name the columns; got StateSpace"
    ):
        load(tmp_path / "log.csv", pendulum.state)


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".nc"])
def test_files_that_are_none(tmp_path, suffix):
    near = write(tmp_path / f"swing{suffix}", t=times, angle=times, torque=times)
    with pytest.raises(FileNotFoundError, match=f"there is no file .*Did you mean swing{suffix}"):
        load(tmp_path / f"swings{suffix}", encoder)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load(near.parent / "elsewhere" / f"swing{suffix}", encoder)
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(b"")
    with pytest.raises(ValueError, match=f"broken{suffix} cannot be read"):
        load(broken, encoder)


def test_a_single_array_has_no_names(tmp_path):
    np.save(tmp_path / "log.npy", volts)
    (tmp_path / "log.npy").rename(tmp_path / "log.npz")
    with pytest.raises(ValueError, match="Write it with numpy.savez"):
        load(tmp_path / "log.npz")


def test_a_column_called_t_may_be_no_clock():
    """A temperature that falls: refused as a clock, with what to say, and then not read."""
    table = {"arm": state[:, 0], "pendulum": state[:, 0], "voltage": volts, "t": np.linspace(30.0, 20.0, ROWS)}
    with pytest.raises(ValueError, match=r"times \('t'\) must increase.*columns=\{'time': None\}"):
        pp.Trajectories.read(table, machine)
    read = pp.Trajectories.read(table, machine, columns={"time": None}, dt=0.004)
    assert np.allclose(read.times, 0.004 * np.arange(ROWS))
    with pytest.raises(KeyError, match="or give dt"):
        pp.Trajectories.read(table, machine, columns={"time": None})
    names = dict(zip(furuta.state.names, state[:, [0, 2, 3, 3]].T, strict=True))
    rows = names | {"voltage": volts, "t": table["t"]}
    with pytest.raises(ValueError, match=r"columns=\{'time': None\}"):
        pp.Transitions.read(rows, furuta.state, furuta.action)
    bare = pp.Transitions.read(rows, furuta.state, furuta.action, columns={"time": None})
    assert len(bare) == ROWS - 1 and not np.any(bare.times)


def test_the_command_line_declines_a_clock():
    assert _pairs(("time=", "arm=theta"), "columns") == {"time": None, "arm": "theta"}
    for texts, option in ((("arm=",), "columns"), (("time=",), "units")):
        with pytest.raises(ValueError, match="takes name=value"):
            _pairs(texts, option)
