"""The recordings' protocol: against the reference reader of the data where they are, on made-up files everywhere."""

import importlib.util
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import clock_prior, example, linear_data, linear_dynamics
from scipy.linalg import expm
from scipy.signal import savgol_coeffs

import physppl as pp
from physppl.dynamics.first_state import most_probable
from physppl.evaluation import benchmarks
from physppl.evaluation.benchmarks import Recording
from physppl.evaluation.forecasts import forecast_readings
from physppl.inference import Laplace
from physppl.models import pendulum

DATA = os.environ.get("PHYSPPL_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="PHYSPPL_DATA names no folder of real recordings")


def module(path: Path):
    """A script as a module, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def reference():
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the data folder stays as it is
    try:
        return module(Path(DATA) / "recordings.py")
    finally:
        sys.dont_write_bytecode = written


def made_up(samples=200, coordinates=2, inputs=1, **protocol):
    """A cubic in each coordinate, which a cubic smoother leaves unchanged and differentiates exactly."""
    t = 0.01 * np.arange(samples)
    shape = 1.0 + np.arange(coordinates)
    position = shape * (t[:, None] ** 3) - t[:, None] ** 2
    velocity = 3 * shape * (t[:, None] ** 2) - 2 * t[:, None]
    torque = np.arange(samples)[:, None] + 1000.0 * np.arange(inputs)
    return Recording.smoothed("cubic", 0.01, position, torque, window=9, **protocol), velocity


@needs_data
@pytest.mark.parametrize("machine", ["furuta", "two_link", "simple_pendulum"])
def test_readers_windows_and_scores_agree_with_the_reference(reference, machine):
    train, tests = getattr(benchmarks, machine)(DATA)
    their_train, their_tests = getattr(reference, machine)()
    assert list(tests) == list(their_tests)
    assert all(r.delay > 0 for r in train) == (machine != "simple_pendulum")
    pairs = [(train, their_train)] + [(tests[name], their_tests[name]) for name in tests]
    for mine, theirs in pairs:
        for a, b in zip(mine, theirs, strict=True):
            assert (a.name, a.dt, a.delay, a.stride, a.margin) == (b.name, b.dt, b.delay, b.stride, b.margin)
            for part in ("position", "state", "inputs"):
                np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
        for horizon in (0.1, 0.2, 0.5):
            a, b = benchmarks.windows(mine, horizon), reference.windows(theirs, horizon)
            for part in ("initial_state", "inputs", "position"):
                np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
            predicted = benchmarks.constant_velocity(a)
            np.testing.assert_array_equal(predicted, reference.constant_velocity(b))
            np.testing.assert_array_equal(benchmarks.rmse(a, predicted), reference.rmse(b, predicted))
            bounds = predicted - 0.1, predicted + 0.2
            np.testing.assert_array_equal(benchmarks.coverage(a, *bounds), reference.coverage(b, *bounds))


def test_smoothing_is_the_least_squares_cubic():
    recording, velocity = made_up()
    np.testing.assert_allclose(recording.state[:, :2], recording.position, atol=1e-12)
    np.testing.assert_allclose(recording.state[:, 2:], velocity, atol=1e-10)
    noisy = np.random.default_rng(0).standard_normal((60, 1))
    smooth = Recording.smoothed("noise", 0.02, noisy, noisy, window=9).state
    at = 30
    window = slice(at - 4, at + 5)
    cubic = np.polynomial.Polynomial.fit(0.02 * np.arange(-4, 5), noisy[window, 0], 3)
    np.testing.assert_allclose(smooth[at], [cubic(0.0), cubic.deriv()(0.0)], atol=1e-10)
    np.testing.assert_allclose(smooth[at, 0], savgol_coeffs(9, 3, use="dot") @ noisy[window, 0], atol=1e-12)


def test_windows_start_where_the_protocol_says():
    recording, _ = made_up(delay=3, stride=7, margin=5)
    found = benchmarks.windows([recording, recording], 0.1)
    starts = np.arange(5, 200 - 50 - 5, 7)  # 50 samples, the longest horizon, follow every start
    assert len(found) == 2 * len(starts) and found.horizon == pytest.approx(0.1)
    assert found.inputs.shape == (len(found), 10, 1) and found.position.shape == (len(found), 11, 2)
    np.testing.assert_array_equal(found.inputs[: len(starts), 0, 0], starts - 3)  # the made-up input is its own index
    np.testing.assert_array_equal(found.initial_state[: len(starts)], recording.state[starts])
    np.testing.assert_array_equal(found.position[: len(starts), -1], recording.position[starts + 10])
    longest = benchmarks.windows([recording, recording], 0.5)
    np.testing.assert_array_equal(longest.initial_state, found.initial_state)  # the same starts for every horizon


def test_scores_by_hand():
    recording, _ = made_up(margin=5)
    found = benchmarks.windows([recording], 0.2)
    end = found.position[:, -1]
    shift = np.where(np.arange(len(found))[:, None] % 2, 0.3, -0.1) * np.ones(2)
    odd = np.mean(np.arange(len(found)) % 2)
    np.testing.assert_allclose(benchmarks.rmse(found, end + shift), np.sqrt(odd * 0.09 + (1 - odd) * 0.01))
    np.testing.assert_allclose(benchmarks.coverage(found, end - 0.2, end + shift), odd)
    with pytest.raises(ValueError, match="ends of the windows must have shape"):
        benchmarks.rmse(found, end[:, 0])
    with pytest.raises(ValueError, match="ends of the windows must have shape"):
        benchmarks.coverage(found, 0.0, 1.0)


def test_transitions_keep_to_one_recording_and_delay_inputs():
    first, _ = made_up(samples=60, margin=4, delay=2)
    second, _ = made_up(samples=80, margin=4, delay=2)
    data = benchmarks.transitions([first, second])
    assert len(data) == (60 - 8 - 1) + (80 - 8 - 1)
    np.testing.assert_array_equal(data.states[:51], first.state[4:55])
    np.testing.assert_array_equal(data.next_states[:51], first.state[5:56])
    np.testing.assert_array_equal(data.states[51], second.state[4])
    np.testing.assert_array_equal(data.actions[[0, 51], 0], [2, 2])  # sample 4, two samples late
    np.testing.assert_allclose(data.times[[0, 1, 51]], [0.04, 0.05, 0.04])


def test_between_cuts_a_recording():
    recording, _ = made_up()
    piece = recording.between(0.5, 0.8)
    assert len(piece.times) == 30
    np.testing.assert_array_equal(piece.state, recording.state[50:80])


def files(folder: Path, *names: str):
    """Pendulum files of 6 s at 1 kHz with a torque ramp of 2 N m/s, as the reader expects them."""
    folder = folder / "dfki_simple_pendulum"
    folder.mkdir()
    t = np.arange(0, 6, 1e-3)
    for name in names:
        np.savez(folder / f"{name}.npz", t=t, pos=np.sin(t), vel=np.cos(t), torque=2 * t)


def test_reader_resamples_to_the_mean_torque(tmp_path):
    files(tmp_path, "ddp", "energy_shaping", "direct_collocation", "sac")
    train, tests = benchmarks.simple_pendulum(tmp_path)
    assert [len(r.times) for r in train] == [600, 400] and list(tests) == ["direct collocation", "sac 0-4 s"]
    sac = tests["sac 0-4 s"][0]
    np.testing.assert_allclose(sac.inputs[:, 0], 2 * (sac.times + 0.005), atol=1e-9)  # a ramp's mean: its middle
    inner = slice(10, -10)
    np.testing.assert_allclose(sac.state[inner, 0], np.sin(sac.times)[inner], atol=1e-6)
    np.testing.assert_allclose(sac.state[inner, 1], np.cos(sac.times)[inner], atol=1e-5)


def qube_files(folder: Path, groups: dict[str, int]):
    """Furuta files of 2 s: cubic angles, wrong velocities, an artefact at the end, the number of the file as volts."""
    folder = folder / "furuta_qube"
    folder.mkdir()
    t = 0.004 * np.arange(501)
    for group, count in groups.items():
        for i in range(count):
            state = np.stack([t**3 + i, -(t**2), 0 * t + 99, 0 * t + 99], 1)
            state[-1] = 1000.0
            np.savez(folder / f"{group}_2021-0{i + 1}.npz", t=t, state=state, u=np.full(500, float(i)))


GROUPS = ("qq_chrip_10to0Hz_p1.5V", "qq_chrip_10to0Hz_m1.5V", "qq-su_250Hz_7s_", "qq-su_250Hz_5s_")


def test_furuta_reader_differentiates_angles_and_drops_the_artefact(tmp_path):
    qube_files(tmp_path, dict.fromkeys(GROUPS, 5))
    train, tests = benchmarks.furuta(tmp_path)
    assert [r.inputs[0, 0] for r in train] == [0, 1, 0, 1] and {k: len(v) for k, v in tests.items()} == {
        "chirp": 5,
        "swing-up": 5,
    }
    second = train[1]
    assert len(second.times) == 500 and (second.delay, second.stride) == (2, 10)
    t = second.times
    np.testing.assert_allclose(second.state, np.stack([t**3 + 1, -(t**2), 3 * t**2, -2 * t], 1), atol=1e-9)


def test_furuta_reader_counts_its_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="'furuta_qube' is missing"):
        benchmarks.furuta(tmp_path)
    qube_files(tmp_path, dict.fromkeys(GROUPS, 5) | {GROUPS[2]: 4})  # one less would move a test into training
    with pytest.raises(FileNotFoundError, match="holds 4 files 'qq-su_250Hz_7s__.* instead of 5"):
        benchmarks.furuta(tmp_path)


def test_two_link_reader_resamples_to_250_hz(tmp_path):
    folder = tmp_path / "dfki_double_pendulum"
    folder.mkdir()
    rng = np.random.default_rng(0)
    t = 3.0 + np.cumsum(rng.uniform(0.001, 0.003, 2000))  # irregular, and not from zero
    runs = ["143339", "143524", "143704", "154220", "143601", "143747", "154548"]
    for i, run in enumerate(runs):
        pos, torque = np.stack([2 * t, -t], 1), np.stack([t, 0 * t + i], 1)  # lines, which interpolation keeps
        arrays = {
            "pos": pos.astype(np.float32),
            "vel": 0 * pos,
            "tau_con": torque.astype(np.float32),
            "tau_meas": 0 * pos,
        }
        np.savez(folder / f"C1_sysid_20230629-{run}.npz", t=t, **arrays)
    train, tests = benchmarks.two_link(tmp_path)
    assert [r.name for r in train] == runs[:4] and [tests[k][0].name for k in tests] == runs[4:]
    one = train[1]
    now = t[0] + one.times
    assert len(now) == len(np.arange(t[0], t[-1], 0.004)) and (one.delay, one.stride) == (1, 5)
    np.testing.assert_allclose(one.inputs, np.stack([now, 0 * now + 1], 1), atol=1e-6)  # float32 files
    np.testing.assert_allclose(one.state[:, :2], np.stack([2 * now, -now], 1), atol=2e-6)
    np.testing.assert_allclose(one.state[:, 2:], np.ones_like(one.position) * [2, -1], atol=1e-3)


def test_missing_folder_and_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        benchmarks.simple_pendulum(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="'ddp.npz' is missing"):
        benchmarks.simple_pendulum(tmp_path)
    files(tmp_path, "ddp")
    with pytest.raises(FileNotFoundError, match="'energy_shaping.npz' is missing; .* holds ddp.npz"):
        benchmarks.simple_pendulum(tmp_path)


def test_bad_recordings_are_refused():
    wave = np.sin(np.arange(60.0))[:, None]
    with pytest.raises(ValueError, match="fewer than the smoothing window"):
        Recording.smoothed("short", 0.01, wave[:5], wave[:5], window=9)
    broken = wave.copy()
    broken[17] = np.nan
    with pytest.raises(ValueError, match="'gap': position is not finite, first at sample 17"):
        Recording.smoothed("gap", 0.01, broken, wave, window=9)
    short = Recording.smoothed("short", 0.01, wave, wave, window=9)
    with pytest.raises(ValueError, match="no recording is longer than 0.5 s"):
        benchmarks.windows([short], 0.1)
    with pytest.raises(ValueError, match="horizon must lie between 0.01 s and 0.5 s"):
        benchmarks.windows([made_up()[0]], 0.6)
    with pytest.raises(ValueError, match="one sampling time"):
        benchmarks.transitions([short, Recording.smoothed("slow", 0.02, wave, wave, window=9)])
    with pytest.raises(ValueError, match="nothing is left"):
        benchmarks.transitions([Recording.smoothed("short", 0.01, wave[:41], wave[:41], window=9)])


def test_forecast_is_the_belief_rolled_out():
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), linear_data(), Laplace())
    data, draws = linear_data(), 2000
    states, actions = np.asarray(data.states)[:3], np.asarray(data.actions)[:3]
    key = jax.random.key(1)
    noisy = benchmarks.forecast(key, posterior, states, actions[:, None], draws)[:, :, 1]
    plain = benchmarks.forecast(key, posterior, states, actions[:, None], draws, noise=False)[:, :, 1]
    # Linear in its parameters with a Gaussian belief: one step is Gaussian, with the moments of predict and basis.
    mean, factor = (np.asarray(x) for x in posterior.basis(states, actions))
    believed = np.einsum("ndr,ner->nde", factor, factor)
    predicted = np.asarray(posterior.predict(states, actions).covariance_matrix)
    for sample, covariance in ((noisy, predicted), (plain, believed)):
        sd = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
        assert np.all(np.abs(sample.mean(0) - mean) < 4.5 * sd / np.sqrt(draws))
        for i in range(3):
            # the sd of an entry of a sample covariance is at most sqrt(2 / K) sd_i sd_j
            error = np.abs(np.cov(sample[:, i].T) - covariance[i])
            assert np.all(error < 4.5 * np.sqrt(2 / draws) * np.outer(sd[i], sd[i]))
    # Every draw holds for the whole rollout: two steps are one step from where the first ended, with the same sites.
    two = benchmarks.forecast(key, posterior, states[:1], actions[None, :2], 5, noise=False)
    drawn = jax.vmap(posterior.draw)(jax.random.split(jax.random.split(key)[0], 5))
    for k in range(5):
        transition = jax.tree.map(lambda leaf, k=k: leaf[k], drawn)
        np.testing.assert_allclose(two[k, 0, 2], transition(transition(states[0], actions[0]), actions[1]), rtol=1e-5)


@pytest.mark.parametrize("noise", [False, True])
def test_forecast_counts_time(noise):
    """Of s' = s + gain t, next to no noise: n steps from time b on a draw is at gain (n b + n (n - 1) dt / 2)."""
    prior = clock_prior(noise=1e-9)
    begin, states, inputs = np.array([0.0, 0.5]), np.zeros((2, 1)), np.zeros((2, 4, 1))
    ends = benchmarks.forecast(jax.random.key(1), prior, states, inputs, draws=3, noise=noise, times=begin)[..., 0]
    steps = np.arange(5)
    exact = steps * begin[:, None] + 0.1 * steps * (steps - 1) / 2
    gain = ends[:, 1, 1] / 0.5
    assert np.ptp(gain) > 0.01
    np.testing.assert_allclose(ends, gain[:, None, None] * exact, atol=1e-6)
    first = benchmarks.forecast(jax.random.key(1), prior, states, inputs, draws=3, noise=noise)[..., 0]
    np.testing.assert_allclose(first[:, 1], ends[:, 0], atol=1e-6)  # windows begin at 0 unless told


def test_student_t_readings_are_forecast_with_their_variance():
    """Nothing else is uncertain at time 0: the variance of df = 5 is 5/3 of the squared scale."""
    prior = clock_prior(noise=1e-9, measurement_noise=0.3, measurement_df=5.0)
    found = forecast_readings(jax.random.key(1), prior, np.zeros((1, 1)), np.zeros((1, 1, 1)), draws=2)
    np.testing.assert_allclose(found.sd, 0.3 * np.sqrt(5 / 3), rtol=1e-6)


@pytest.mark.science
@needs_data
def test_real_pendulum_is_predicted_nearly_as_well_as_by_a_trajectory_fit():
    script = example("real_pendulum")
    train, tests = benchmarks.simple_pendulum(DATA)
    posteriors = script.fits(train)
    rows = {(row["test"], row["horizon"]): row for row in script.scores(posteriors, tests)}
    for backend, posterior in posteriors.items():
        assert pp.Status(int(posterior.status)) is pp.Status.OK
        # One-step regression on smoothed states against the trajectory fit: what such data allow.
        assert rows["direct collocation", 0.2][f"{backend} ratio"] <= 2.0
        assert rows["sac 0-4 s", 0.2][f"{backend} ratio"] <= 1.5
        assert all(row[backend] < 0.2 * row["constant velocity"] for row in rows.values())


@pytest.mark.science
def test_a_noise_that_readings_do_not_show_keeps_its_priors_width(x64):
    """Exact positions at 5 Hz tell the sum of two process noises, and that it is small: neither may grow in draws."""
    state, action = pp.StateSpace(x=pp.Real("m"), v=pp.Real("m/s")), pp.ActionSpace(u=pp.Bounded(-2.0, 2.0, "m/s^2"))

    def program():
        theta = pp.physical("theta", -20.0, 20.0, unit="1/s")
        return lambda t, x, u: jnp.stack([x[1], theta * x[1] + u[0]])

    u, exact = np.random.default_rng(0).choice([-1.0, 1.0], 100), np.zeros((100, 2))
    decay = np.exp(-3.0 * 0.2)
    for k in range(99):
        x, v = exact[k]
        exact[k + 1] = x + v * (1 - decay) / 3 + u[k] / 3 * (0.2 - (1 - decay) / 3), v * decay + u[k] / 3 * (1 - decay)
    dynamics = pp.Dynamics(program, state, action, dt=0.2, substeps=8, sensors=("x",))
    posterior = pp.fit(jax.random.key(0), dynamics, pp.Trajectories(exact[:, :1], u[:, None], dt=0.2), Laplace())
    sd = np.sqrt(np.sum(np.asarray(posterior.factor) ** 2, axis=0))
    noises = posterior.space.where(lambda name: name.endswith("_noise"))
    assert np.all(sd[noises] <= np.pi / np.sqrt(8) * (1 + 1e-9))
    table = posterior.summary()
    assert table["process_noise[v]"]["mean"] < 0.01 and abs(table["theta"]["mean"] + 3.0) < 1e-3
    assert "recursive" not in str(posterior.check())


# Simulated positions as they are, from public reports (meco-group/nlgreyfast 2, PEtab 555): no noise to be told.
LOGS = {
    "a slow log of a fast motion": (0.2, lambda p: [[0.0, 1.0], [0.0, p]], -3.0, (-20.0, 20.0)),
    "a faster one": (0.1, lambda p: [[0.0, 1.0], [0.0, p]], -8.0, (-30.0, 30.0)),
    "a spring": (0.1, lambda p: [[0.0, 1.0], [-p, -0.5]], 12.0, (1.0, 40.0)),
}


@pytest.mark.science
@pytest.mark.parametrize("log", LOGS)
@pytest.mark.filterwarnings("ignore::physppl.PhyspplWarning")
def test_a_noise_that_is_not_there_is_not_told(log):
    dt, rates, truth, bounds = LOGS[log]
    rows, u = 100, np.random.default_rng(0).choice([-1.0, 1.0], 100)[:, None]
    whole = np.zeros((3, 3))
    whole[:2, :2], whole[1, 2] = rates(truth), 1.0
    advance, x = expm(whole * dt), np.zeros((rows, 3))
    for k in range(rows - 1):
        x[k, 2] = u[k, 0]
        x[k + 1] = advance @ x[k]

    def program():
        (a, b), (c, d) = rates(pp.physical("p", *bounds))
        return lambda t, x, u: jnp.stack([a * x[0] + b * x[1], c * x[0] + d * x[1] + u[0]])

    space = pp.StateSpace(x=pp.Real("m"), v=pp.Real("m/s"))
    dynamics = pp.Dynamics(program, space, pp.ActionSpace(u=pp.Bounded(-2.0, 2.0)), dt=dt, sensors=("x",))
    posterior = pp.fit(jax.random.key(0), dynamics, pp.Trajectories(x[:, :1], u, dt=dt), Laplace())
    table, check = posterior.summary(), posterior.check()
    assert abs(table["p"]["mean"] - truth) < 0.005 * abs(truth)
    assert "recursive" not in str(check)  # advice for an update that nobody made
    assert table["process_noise[v]"]["mean"] < 0.1  # the prior's scale


def turning(seed: int, sensed: str) -> tuple[pp.Dynamics, pp.Trajectories]:
    """A pendulum that starts anywhere, its angle read within one turn, or by sine and cosine."""
    rng, rows, dt = np.random.default_rng(seed), 150, 0.05
    noises = {"process_noise": (1e-3, 0.02), "measurement_noise": 0.01}
    waves = pp.StateSpace(cosine=pp.Real(), sine=pp.Real())
    bent = {"sensors": waves, "observe": lambda x: jnp.stack([jnp.cos(x[0]), jnp.sin(x[0])])}
    model = pendulum.dynamics(dt=dt, **noises, **(bent if sensed == "waves" else {"sensors": ("angle",)}))
    start = np.array([rng.uniform(-np.pi, np.pi), rng.normal() * (9.0 if sensed == "turns" else 1.0)])
    u = 2.0 * np.sin(2 * np.pi * rng.uniform(0.3, 0.9) * dt * np.arange(rows))[:, None]
    with jax.enable_x64(True):
        x = np.asarray(pp.rollout(model.transition(pendulum.truth), start, u))[:-1, 0]
    noise = 0.01 * rng.normal(size=(rows, 2))
    if sensed == "waves":
        return model, pp.Trajectories(np.stack([np.cos(x), np.sin(x)], axis=1) + noise, u, dt=dt)
    readings = (x[:, None] + noise[:, :1] + np.pi) % (2 * np.pi) - np.pi
    readings[rng.uniform(size=rows) < 0.1] = np.nan  # gaps, some of them where the angle wraps
    return model, pp.Trajectories(readings, u, dt=dt)


@pytest.mark.parametrize("sensed", ["waves", "turns"])
@pytest.mark.parametrize("seeds", [pytest.param((3,), id="one"), pytest.param(range(20), marks=pytest.mark.science)])
def test_angles_are_told_from_any_start_in_any_turn(sensed, seeds):
    for seed in seeds:
        model, data = turning(seed, sensed)
        samples = pp.fit(jax.random.key(seed), model, data, Laplace()).samples(jax.random.key(1), 1000)
        for name, value in pendulum.truth.items():
            assert abs(np.mean(samples[name]) - value) < 3 * np.std(samples[name]), (seed, name)


def test_a_first_state_is_looked_for_in_the_readings_turn():
    """An angle read through `observe`, three turns away: the state nearest to the prior that reads so."""
    space = pp.StateSpace(angle=pp.Angle(), rate=pp.Real("rad/s"))
    reading, zeros = jnp.array([6 * np.pi + 0.4, 2.0]), jnp.zeros(2)
    seen = jnp.ones(2, bool)
    found = most_probable(lambda x: x, jnp.full(2, 1e-3), zeros, jnp.ones(2), reading, seen, space)
    np.testing.assert_allclose(found, [0.4, 2.0], atol=1e-4)
