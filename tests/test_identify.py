"""`physppl identify`: the numbers of a direct fit, the files it makes, and what it says to wrong input."""

import contextlib
import io
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import numpyro.distributions as dist
import pytest
import xarray

import physppl as pp
from physppl.cli import machine, main, report
from physppl.cli.identify import FILES, SAVED
from physppl.cli.recorded import _at_rest, read
from physppl.evaluation.recording_forecasts import WIDTH, _at, _held, predict_ahead, standardised_residuals
from physppl.inference import Laplace
from physppl.models import cartpole, double_pendulum, furuta, gym_pendulum, pendulum
from physppl.posterior.innovations import innovations

pytestmark = pytest.mark.usefixtures("as_user")

DT, ROWS, FITTED, DELAY, SENSOR_SD = 0.02, 400, 320, 2, 2e-3
PROGRAM = """
import numpyro.distributions as dist
import physppl as pp
from physppl.models import pendulum

dynamics = pp.Dynamics(pendulum.program, pendulum.state, pendulum.action, dt=0.02, sensors=("angle",))
"""


def record(seed: int):
    """Angles (N, 1) of an encoder and torques (N, 1), which act two samples late."""
    rng = np.random.default_rng(seed)
    torque = 2.0 * np.sin(np.cumsum(rng.uniform(0.0, 0.35, ROWS)))[:, None]
    late = np.concatenate([np.repeat(torque[:1], DELAY, axis=0), torque[: -1 - DELAY]])
    with jax.enable_x64(True):
        transition = pendulum.dynamics(dt=DT).transition(pendulum.truth)
        states = np.asarray(pp.rollout(transition, jnp.array([0.4, 0.0]), jnp.asarray(late)))
    return states[:, :1] + SENSOR_SD * rng.normal(size=(ROWS, 1)), torque


def run(*arguments):
    """(standard output, standard error) of the command."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        main(["identify", *map(str, arguments)])
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with two recordings of a pendulum and a program, and what the command made of them, twice."""
    folder = tmp_path_factory.mktemp("lab")
    (angle, torque), (second, more) = record(0), record(1)
    angle[50:53] = np.nan
    rows = zip(angle[:, 0].tolist(), torque[:, 0].tolist(), strict=True)
    cells = [f"{k * DT:.2f},{'' if np.isnan(y) else y},{u}" for k, (y, u) in enumerate(rows)]
    (folder / "first.csv").write_text("\n".join(["t,pos,torque", *cells]) + "\n")
    (folder / "my_machine.py").write_text(PROGRAM)
    common = ("--columns", "angle=pos", "--seed", "3")
    by_model = folder / "made" / "by model"
    text, _ = run("--model", "pendulum", "--data", folder / "first.csv", "--delay", 2, "--out", by_model, *common)
    by_program = folder / "by program"
    # As long as the parts of the first run, so that both share compiled programs.
    for name, rows, y, u in (("first", FITTED, angle, torque), ("second", ROWS - FITTED, second, more)):
        np.savez(folder / f"{name}.npz", time=DT * np.arange(rows), pos=y[:rows, 0], torque=u[:rows, 0])
    options = ("--held-out", folder / "second.npz", "--delay", "auto", "--json")
    source = ("--program", folder / "my_machine.py", "--data", folder / "first.npz")
    printed, progress = run(*source, "--out", by_program, "--save", *options, *common)
    return SimpleNamespace(
        folder=folder, angle=angle, torque=torque, second=(second, more), text=text, out=by_model,
        printed=printed, progress=progress, program_out=by_program,
    )  # fmt: skip


def described(delay: int) -> pp.Dynamics:
    """The Dynamics that the command should have fitted, written out."""
    return pp.Dynamics(
        pendulum.program,
        pendulum.state,
        pendulum.action,
        dt=DT,
        sensors=("angle",),
        process_noise=dist.HalfNormal(np.array([1e-5, 0.1])),
        input_gain_error=dist.HalfNormal(0.1),
        input_timing_error=dist.HalfNormal(0.5),
        input_delay=delay,
    )


def test_the_numbers_are_those_of_a_direct_fit(lab):
    found = json.loads((lab.out / "identified.json").read_text())
    data = pp.Trajectories(lab.angle, lab.torque, dt=DT)
    posterior = pp.fit(jax.random.key(3), described(DELAY), data[:FITTED], Laplace())
    rows = posterior.summary().rows
    assert list(found["parameters"]) == [row["name"] for row in rows]
    for row in rows:
        entry = found["parameters"][row["name"]]
        keys = {"mean": "mean", "sd": "sd", "low": "p5", "high": "p95"}
        # Two compiled programs and decimal times: the modes agree to the tolerance at which a search stops.
        for ours, theirs in keys.items():
            assert abs(row[ours] - entry[theirs]) < 0.02 * row["sd"], (row["name"], ours)
        assert entry["verdict"] == row["verdict"]
    assert found["parameters"]["mass"]["unit"] == "kg" and found["parameters"]["damping"]["unit"] == "N·m·s/rad"
    check = posterior.check()
    assert found["verdict"] == check.verdict and len(found["reasons"]) == len(check.reasons)
    assert found["input_delay"] == DELAY and found["log_evidence_by_delay"] is None
    assert found["sensors"] == {"angle": "rad"} and found["inputs"] == {"torque": "N·m"}
    assert len(found["identifiability"]["combinations"]) == 3
    first = found["initial_states"]
    assert [(row["name"], row["unit"]) for row in first] == [("angle", "rad"), ("velocity", "rad/s")]
    assert abs(first[0]["mean"] - lab.angle[0, 0]) < 5 * SENSOR_SD and first[0]["sd"] < SENSOR_SD
    for name in ("mass", "length"):  # 5 sds: a false alarm in two million
        entry = found["parameters"][name]
        assert abs(entry["mean"] - pendulum.truth[name]) < 5 * entry["sd"]


def test_held_out_scores_are_those_of_direct_predictions(lab):
    found = json.loads((lab.out / "identified.json").read_text())
    short, long = found["held_out"]
    assert short["horizon"] == pytest.approx(0.1) and long["horizon"] == pytest.approx(0.5)
    data = pp.Trajectories(lab.angle, lab.torque, dt=DT)
    posterior = pp.fit(jax.random.key(3), described(DELAY), data[:FITTED], Laplace())
    ahead = predict_ahead(jax.random.key(0), posterior, data, 0.1, since=float(data.times[FITTED]))
    assert short["predictions"] == len(ahead.times) == ROWS - FITTED - 5
    assert short["rmse"] == pytest.approx(ahead.rmse()[0], rel=0.02)  # other draws of a narrow belief
    assert short["rmse_constant"] == pytest.approx(ahead.rmse("constant")[0], rel=1e-3)
    assert short["coverage_90"] == pytest.approx(ahead.inside.mean(), abs=0.03)
    assert SENSOR_SD / 2 < short["rmse"] < short["rmse_straight"] < short["rmse_constant"]


def test_predictions_against_plain_loops(lab):
    """A filter and rollouts written out, at the belief's mean."""
    data = pp.Trajectories(lab.angle, lab.torque, dt=DT)
    model = described(DELAY)
    posterior = pp.fit(jax.random.key(3), model, data[:FITTED], Laplace())
    ahead = predict_ahead(jax.random.key(0), posterior, data, 0.1, since=6.0, most=1000)
    assert ahead.times[0] == pytest.approx(6.1) and len(ahead.times) == 95
    np.testing.assert_allclose(ahead.readings[:, 0], lab.angle[305:400, 0], atol=1e-12)
    samples = posterior.samples(jax.random.key(1), 4000)
    mean = {k: np.asarray(v, float).mean(0) for k, v in samples.items()}
    with jax.enable_x64(True):
        transition = model.transition({k: mean[k] for k in pendulum.truth})
        step = jax.jit(lambda x, u: transition(x, u))
        push = jax.jit(jax.jacfwd(transition, argnums=(0, 1)))
        late = lab.torque[np.maximum(np.arange(ROWS) - DELAY, 0)]
        change = np.abs(np.diff(late[:, 0], prepend=late[0, 0]))
        errors = np.hypot(mean["input_gain_error"][0] * late[:, 0], mean["input_timing_error"][0] * change)
        x, covariance = np.array([lab.angle[0, 0], 0.0]), np.diag([1.0, 16.0])
        sensor, process = mean["measurement_noise"][0] ** 2, np.diag(mean["process_noise"] ** 2)
        means, surprise = [], []
        for k in range(ROWS):
            spread = covariance[0, 0] + sensor
            error = lab.angle[k, 0] - x[0]
            surprise.append(error / np.sqrt(spread))
            if np.isfinite(error):
                x, covariance = (
                    x + covariance[:, 0] / spread * error,
                    covariance - np.outer(covariance[:, 0], covariance[0]) / spread,
                )
            means.append(x)
            by_state, by_input = map(np.asarray, push(x, late[k]))
            covariance = by_state @ covariance @ by_state.T + process + errors[k] ** 2 * by_input @ by_input.T
            x = np.asarray(step(x, late[k]))
        predicted = []
        for k in range(300, 395):
            x = means[k]
            for i in range(5):
                x = np.asarray(step(x, late[k + i]))
            predicted.append(x[0])
    # Means of 256 against 4000 draws, and of rollouts under 64 draws: each within a few standard errors of the belief.
    np.testing.assert_allclose(ahead.mean[:, 0], predicted, atol=float(ahead.sd.mean()) / 4)
    own = standardised_residuals(jax.random.key(1), posterior, data)[:, 0]
    seen = np.isfinite(own)
    assert np.array_equal(seen, np.isfinite(lab.angle[:, 0]))
    np.testing.assert_allclose(own[seen], np.array(surprise)[seen], atol=0.1)
    at_mode = innovations(posterior)  # at the mode instead of the mean; an input acts after the reading of its own row
    fitted = at_mode.seen[0, :, 0]  # the rest of the recording was held out
    np.testing.assert_allclose(at_mode.errors[0, fitted, 0], own[: len(fitted)][fitted], atol=0.1)
    assert at_mode.lag == 1 and at_mode.names == ("angle",) and not at_mode.errors[0, ~fitted].any()
    assert np.all(ahead.inside == (np.abs(ahead.readings - ahead.mean) <= WIDTH * ahead.sd))


def test_readings_between_samples_are_read_where_both_neighbours_are():
    times = np.array([0.0, 0.1, 0.19, 0.31, 0.6, 0.7])
    readings = np.stack([2 * times, 1 - times], axis=1)
    valid = np.array([True, True, True, True, True, False])
    when = np.array([0.1, 0.145, 0.25, 0.31, 0.4, 0.6, 0.65])
    space = pp.StateSpace(x=pp.Real("m"), y=pp.Real("m"))
    values, seen = _at(times, readings, valid, when, 0.1, space)
    # Over the gap from 0.31 to 0.6 nothing is known, and after 0.6 a reading is missing.
    assert seen.tolist() == [True, True, True, True, False, True, False]
    np.testing.assert_allclose(values[seen], np.stack([2 * when, 1 - when], axis=1)[seen], atol=1e-12)


def test_inputs_of_uneven_times_keep_their_impulse():
    rng = np.random.default_rng(0)
    even, inputs = 0.1 * np.arange(50), rng.normal(size=(50, 2))
    starts = np.array([0, 7, 30])
    edges = even[starts, None] + 0.1 * np.arange(11)
    np.testing.assert_allclose(_held(even, inputs, edges), inputs[starts[:, None] + np.arange(10)], atol=1e-12)
    times = np.cumsum(rng.uniform(0.05, 0.15, 50))
    edges = times[3] + 0.1 * np.arange(21)[None]
    fine = times[3] + 1e-5 * (np.arange(200_000) + 0.5)  # 2 s in steps that are short against all others
    held = inputs[np.searchsorted(times, fine, side="right") - 1]
    np.testing.assert_allclose(_held(times, inputs, edges)[0], held.reshape(20, 10_000, 2).mean(axis=1), atol=1e-3)


def test_it_narrates_and_says_what_it_saved(lab):
    assert "pendulum: sensors angle [rad]; inputs torque [N·m]; every 0.02 s" in lab.text
    assert (
        "first.csv: 320 samples from 0 to 6.38 s, 3 without a reading" in lab.text
        and "the last fifth of each" in lab.text
    )
    assert lab.text.count("compiling)") == 4 and "combinations determined" in lab.text
    assert "held out: RMSE of" in lab.text and "mass " in lab.text and "\nmeasured: " in lab.text
    for name in FILES:
        assert name in lab.text


def test_every_file_is_made_and_holds_something(lab):
    for out in (lab.out, lab.program_out):
        assert {p.name for p in out.iterdir()} == set(FILES) | ({SAVED} if out == lab.program_out else set())
        for name in (n for n in FILES if n.endswith(".png")):
            picture = matplotlib.image.imread(out / name)
            assert picture.shape[0] > 300 and picture.shape[1] > 600
            assert len(np.unique(picture.reshape(-1, picture.shape[2])[::7], axis=0)) > 20
    with xarray.open_datatree(lab.out / "posterior.nc", engine="h5netcdf") as tree:
        found = json.loads((lab.out / "identified.json").read_text())
        assert abs(float(tree["posterior"]["mass"].mean()) - found["parameters"]["mass"]["mean"]) < 0.01
        assert tree["observed_data"]["observation"].shape == (317, 1) and tree.attrs["check"] == found["verdict"]


def test_a_program_file_with_held_out_recordings_and_delays_by_evidence(lab):
    found = json.loads(lab.printed)  # nothing but the JSON
    assert found == json.loads((lab.program_out / "identified.json").read_text())
    assert "fitted" in lab.progress and "log evidence" in lab.progress and "mass" not in lab.progress
    assert found["model"] == "my_machine" and found["input_delay"] == DELAY
    evidence = found["log_evidence_by_delay"]
    assert list(evidence) == ["0", "1", "2", "3", "4"] and max(evidence, key=evidence.get) == "2"
    [fitted], [predicted] = found["files"]["fitted"], found["files"]["predicted"]
    assert fitted["samples"] == FITTED and predicted["path"].endswith("second.npz")
    assert [row["horizon"] for row in found["held_out"]] == pytest.approx([0.1, 0.5])
    for row in found["held_out"]:
        steps = round(row["horizon"] / DT)
        settling = round(row["begins"][0] / DT)
        assert row["predictions"] == ROWS - FITTED - steps - settling and 0 < settling < 30
        assert row["rmse"] < row["rmse_straight"]
    assert found["options"]["delay"] == "auto" and found["versions"]["physppl"]


def test_what_predictions_warn_of():
    row = {"sensor": "arm", "horizon": 0.5, "rmse": 0.1, "rmse_straight": 0.3, "rmse_constant": 0.2, "coverage_90": 0.9}
    assert report.remarks([row], None) == []
    [narrow] = report.remarks([row | {"coverage_90": 0.69}, row], None)
    assert "too narrow for what was held out (arm at 0.5 s)" in narrow and "--variation" in narrow
    [idle] = report.remarks([row | {"rmse": 0.2}], None)
    assert "predictions of arm are no better" in idle and "--delay" in idle


def test_a_saved_posterior_is_loaded_and_acts(lab):
    found = json.loads(lab.printed)
    posterior = pp.load(lab.program_out / SAVED, described(DELAY))
    assert posterior.summary()["mass"]["mean"] == pytest.approx(found["parameters"]["mass"]["mean"], rel=1e-6)
    assert posterior.draw(jax.random.key(0))(np.zeros(2), np.zeros(1)).shape == (2,)


def test_a_machine_that_stood_still_says_so():
    readings = np.array([[np.nan], [0.3], [0.4]])
    mean, sd = _at_rest(described(0), pp.Trajectories(readings, np.zeros((3, 1)), dt=DT)).start
    np.testing.assert_allclose(mean, [0.3, 0.0])
    assert sd[1] < 0.02 < sd[0]


def test_fit_percent_is_matlabs(lab):
    for row in json.loads(lab.printed)["held_out"]:
        angle = lab.second[0][: ROWS - FITTED, 0]
        rough = 100 * (1 - row["rmse"] / angle.std())  # of all readings, not of those that are predicted
        assert abs(row["fit_percent"] - rough) < 5 and row["fit_percent"] > 80
    assert " fit " in lab.text


def test_a_delay_that_cannot_be_told_is_not_told():
    assert report.remarks([], {"0": 1.0, "1": 9.0, "2": 5.0}) == []
    [rivals] = report.remarks([], {"0": 1.0, "1": 9.0, "2": 7.5})
    assert "a delay of 1 samples from 2 (log evidence 1.5 nats lower)" in rivals and "--exact-inputs" in rivals
    [longest] = report.remarks([], {"0": 1.0, "1": 9.0, "2": 17.5})
    assert "the longest delay that was tried, 2 samples" in longest


def test_noises_of_real_recordings_unless_the_program_says_otherwise():
    silent = pendulum.dynamics(dt=DT, sensors=("angle",))
    assert machine.for_real_recordings(silent, False).rebound(input_delay=2) == described(2)
    exact = machine.for_real_recordings(silent, True)
    assert exact.sensing.gain is exact.sensing.timing is None
    np.testing.assert_array_equal(exact.noise.prior.scale, [1e-5, 0.1])
    for said in ({"process_noise": dist.HalfNormal(0.2)}, {"input_gain_error": 0.1}):
        dynamics = pendulum.dynamics(sensors=("angle",), **said)
        assert machine.for_real_recordings(dynamics, False) is dynamics


def test_rebinding_changes_what_it_is_told_to_and_nothing_else():
    tip = pp.StateSpace(x=pp.Real("m"))
    dynamics = pp.Dynamics(
        pendulum.program, pendulum.state, pendulum.action, dt=0.03, substeps=2, process_noise=(1e-3, 0.1),
        sensors=tip, observe=lambda s: jnp.sin(s[:1]), measurement_noise=0.2, measurement_df=5.0,
        input_delay=dist.Uniform(0, 3), input_gain_error=0.1, input_timing_error=dist.HalfNormal(0.5), variation=0.05,
    )  # fmt: skip
    assert dynamics.rebound() == dynamics
    assert dynamics.rebound(dt=0.04) != dynamics and dynamics.rebound(dt=0.04).dt == 0.04
    whole = pendulum.dynamics(sensors=("velocity",))
    assert whole.rebound(sensors=("angle",)).sensing.space.names == ("angle",)


def test_positions_are_those_that_velocities_move():
    for module in (furuta, double_pendulum, cartpole):
        assert machine.positions(module.dynamics()).tolist() == [True, True, False, False]
    step = double_pendulum.dynamics(double_pendulum.euler_as_published, dt=double_pendulum.EULER_DT)
    assert not machine.positions(step).any() and machine.stepping(step, 0.05) is step
    assert machine.stepping(pendulum.dynamics(), 0.02).dt == 0.02
    assert machine.stepping(pendulum.dynamics(dt=0.02), 0.02 * (1 + 1e-9)).dt == 0.02
    assert machine.stepping(pendulum.dynamics(), float(np.diff([0.04, 0.06])[0])).dt == 0.02
    assert machine.MODELS.keys() >= {"furuta", "pendulum", "two_link", "gym_pendulum", "simple_pendulum"}
    assert isinstance(machine.model("gym_pendulum"), pp.Dynamics) and gym_pendulum.state


def test_a_part_of_each_recording_is_read(tmp_path):
    """Seconds 3 to 6, a hundred and fifty samples: a fifth of them is held out, the input before them is known."""
    (angle, torque), base, path = record(0), machine.model("pendulum"), tmp_path / "first.npz"
    np.savez(path, time=DT * np.arange(ROWS), angle=angle[:, 0], torque=torque[:, 0])
    options = {"segment": 1, "before": 0.0, "columns": {}, "units": {}, "dt": None, "unwrap": False}
    found = read(base, [path], (), (), since=3.0, until=6.0, at_rest=False, **options)
    [train], [test], [since] = found.train, found.test, found.since
    assert len(train) == 120 and len(test) == 150 and since == pytest.approx(5.4)
    assert float(test.times[0]) == pytest.approx(3.0) and float(test.times[-1]) == pytest.approx(5.98)
    assert np.allclose(train.before, torque[149]) and np.allclose(train.observations, angle[150:270])
    others = read(base, [path], [path], (), since=None, until=6.0, at_rest=True, **options)
    assert len(others.test[0]) == len(others.train[0]) == 300 and others.train[0].start is not None


wrong = [
    ("", "give either --model, one of .*furuta.*or --program"),
    ("--model pendulum --program {lab}/my_machine.py", "give either --model"),
    ("--model pendulm --data {csv}", "there is no model 'pendulm'. Did you mean 'pendulum'"),
    ("--model pendulum", r"no recording: --data is empty; pendulum takes .*angle \[rad\], .*torque \[N·m\]"),
    ("--model pendulum --data {lab}/frist.csv", r"there is no file .*frist\.csv\. Did you mean first\.csv"),
    ("--model pendulum --data {csv}", r"has no column 'angle'\..*Known: t, pos, torque"),
    ("--model pendulum --data {csv} --columns angle", r"--columns takes name=value, e\.g\. columns arm=state:0; got"),
    ("--model pendulum --data {csv} --columns angel=pos", "no sensor or input 'angel'.*mean 'angle'"),
    ("--model pendulum --data {csv} --columns angle=pos --sensors angel", "no coordinate 'angel'"),
    ("--model pendulum --data {csv} --columns angle=pos --units angle=m", "cannot convert 'm' to 'rad'"),
    ("--model pendulum --data {csv} --columns angle=pos --delay soon", "--delay must be a whole number.*got soon"),
    ("--model pendulum --data {csv} --columns angle=pos --horizon 0.05", "at least 5 steps of 0.02 s; got 0.05"),
    ("--model pendulum --data {csv} --columns angle=pos --horizon 3", r"first\.csv: 1\.58 s are held out, too little"),
    (
        "--model pendulum --data {csv} --columns angle=pos --since 9",
        r"first\.csv: --since 9 leaves no sample: .*to 7\.98",
    ),
    ("--model pendulum --data {csv} --columns angle=pos --since 3 --until 2", "--since 3 --until 2 leaves no sample"),
    ("--model pendulum --data {csv} --columns angle=pos --until 2", r"first\.csv: 0\.38 s are held out, too little"),
    ("--model pendulum --data {csv} --columns angle=pos --out {csv}", "cannot write to --out .*Choose another folder"),
    ("--model pendulum --data {lab}/degrees.csv", r"degrees\.csv: .*jumps by about half a turn.*name=deg"),
    ("--model pendulum --data {lab}/strong.csv", r"strong\.csv: .*out of bounds, first 'torque' = 20"),
    ("--model pendulum --data {lab}/empty.csv", r"empty\.csv: not one sample has a reading"),
    ("--model gym_pendulum --data {csv} --columns angle=pos --dt x", ""),
    ("--program {lab}/nowhere.py --data {csv}", r"there is no program file .*nowhere\.py"),
    (
        "--program {lab}/none.py --data {csv}",
        r"none\.py must define dynamics = .*nothing of the name `dynamics`",
    ),
    ("--program {lab}/other.py --data {csv}", r"must define dynamics = .*; it has a `dynamics` of type Bounded"),
    ("--program {lab}/broken.py --data {csv}", r"broken\.py, line 2: '\(' was never closed"),
    ("--program {lab}/failing.py --data {csv}", r"failing\.py, line 3: NameError: name 'pendulam' is not defined"),
    (
        "--program {lab}/late.py --data {csv} --columns angle=pos",
        r"late\.py, line 7: TypeError: .*mul got incompatible",
    ),
]


@pytest.fixture(scope="module")
def traps(lab):
    """Files that are wrong, each in one way."""
    rows = [f"{k * DT:.2f},{{}},{{}}" for k in range(300)]
    files = {
        "degrees.csv": ["t,angle,torque", *(r.format(3 * k, 0) for k, r in enumerate(rows))],
        "strong.csv": ["t,angle,torque", *(r.format(0.1, 20) for r in rows)],
        "empty.csv": ["t,angle,torque", *(r.format("", 0) for r in rows)],
        "none.py": ["import physppl as pp"],
        "other.py": ["import physppl as pp", "dynamics = pp.Bounded(0.0, 1.0)"],
        "broken.py": ["import physppl as pp", "dynamics = pp.Dynamics("],
        "failing.py": ["import physppl as pp", "", "dynamics = pp.Dynamics(pendulam)"],
        "late.py": [
            "import jax.numpy as jnp",
            "import physppl as pp",
            "from physppl.models import pendulum",
            "def program():",
            "    mass = pp.physical('mass', 0.1, 2.0)",
            "    def field(t, x, u):",
            "        return mass * jnp.zeros(3) * jnp.zeros(2)",
            "    return field",
            "dynamics = pp.Dynamics(program, pendulum.state, pendulum.action, dt=0.02)",
        ],
    }
    for name, lines in files.items():
        (lab.folder / name).write_text("\n".join(lines) + "\n")
    return lab.folder


@pytest.mark.parametrize(("arguments", "message"), wrong, ids=[f"{i}" for i in range(len(wrong))])
def test_wrong_input_ends_with_one_line(traps, arguments, message, tmp_path):
    words = [w.format(lab=traps, csv=traps / "first.csv") for w in arguments.split()]
    words += [] if "--out" in words else ["--out", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        run(*words)
    if not message:  # the parser's own
        assert caught.value.code == 2
        return
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    assert caught.value.code.startswith("physppl identify: ")
    with pytest.raises(SystemExit, match=message):
        raise caught.value
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_a_failure_to_the_shell(tmp_path):
    command = [sys.executable, "-m", "physppl", "identify", "--model", "pendulum", "--data", str(tmp_path / "no.csv")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr.splitlines()[-1].startswith("physppl identify: there is no file") and "Traceback" not in done.stderr
    )
