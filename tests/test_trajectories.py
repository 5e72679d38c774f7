"""Recordings: the data object, and fits of a pendulum whose truth is known, from positions alone."""

import arviz_stats
import dense
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from helpers import coloured_actions
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive

import physppl as pp
from physppl.data.lengths import fine_bucket
from physppl.density.curvature import local
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics.sensors import lagged
from physppl.inference import Laplace
from physppl.models import pendulum

pytestmark = pytest.mark.usefixtures("x64")

STEPS, SENSOR = 200, 1e-3  # samples, rad
PROCESS = np.array([1e-3, 1e-2])  # rad, rad/s
encoder = pendulum.dynamics(sensors=("angle",))
u = np.zeros((6, 1))


def simulate(seed: int, steps=STEPS, process=PROCESS, delay=0.0) -> pp.Trajectories:
    """The pendulum at its true values, by a Runge-Kutta step of this file's own, under coloured torques."""
    rng, dt, torque = np.random.default_rng(seed), 0.05, coloured_actions(seed, steps, pendulum.action)
    mass, length, damping = pendulum.truth.values()

    def slope(x, torque):
        moment = torque - damping * x[1] - mass * 9.81 * length * np.sin(x[0])
        return np.array([x[1], moment / (mass * length**2)])

    x, angles, (whole, part) = rng.normal(size=2) * [0.5, 1.0], [], divmod(delay, 1)
    for k in range(steps):
        angles.append(x[0])
        newer, older = (torque[max(k - int(whole) - i, 0), 0] for i in (0, 1))
        held = (1 - part) * newer + part * older
        a = slope(x, held)
        b = slope(x + dt / 2 * a, held)
        c = slope(x + dt / 2 * b, held)
        x = x + dt / 6 * (a + 2 * b + 2 * c + slope(x + dt * c, held)) + process * rng.normal(size=2)
    readings = np.array(angles)[:, None] + SENSOR * rng.normal(size=(steps, 1))
    return pp.Trajectories(readings, torque, dt=dt)


def fit(dynamics, data, seed=0):
    return pp.fit(jax.random.key(seed), dynamics, data, Laplace())


def error(posterior) -> tuple[np.ndarray, np.ndarray]:
    """How far the mode (P,) is from the truth in virtual space, and the belief's factor."""
    known = {**pendulum.truth, "process_noise": PROCESS, "measurement_noise": np.array([SENSOR])}
    sites = lambda: posterior.model.sites(posterior.data)  # noqa: E731
    trace = handlers.trace(handlers.substitute(sites, data=jax.tree.map(jnp.asarray, known))).get_trace()
    return np.asarray(posterior.mode - posterior.space.unconstrain(trace)), np.asarray(posterior.factor)


def scores(posterior) -> np.ndarray:
    """(P,) errors in posterior sds."""
    off, factor = error(posterior)
    return off / np.sqrt(np.sum(factor**2, axis=0))


@eqx.filter_jit
def terms(dynamics, data):
    """Log density of every sample, (recordings, N), at the truth."""
    sites = {**pendulum.truth, "process_noise": PROCESS, "measurement_noise": np.array([SENSOR])}
    run = handlers.substitute(dynamics, data=jax.tree.map(jnp.asarray, sites))
    site = handlers.trace(run).get_trace(data)["observation"]
    return site["fn"].log_prob(site["value"])


@pytest.fixture(scope="module")
def fits():
    """Of 24 recordings, each on its own: one compiled program."""
    with jax.enable_x64(True):
        return [fit(encoder, simulate(seed), seed) for seed in range(24)]


# Known truth ----------------------------------------------------------------------------------------------------------


def test_positions_alone_recover_parameters_and_noises(fits):
    """Sums of squared errors, in posterior sds, are chi-square; mass, length, damping, two process noises, a sensor."""
    assert all(posterior.status == pp.Status.OK for posterior in fits)
    assert fits[0].space.names == ("mass", "length", "damping", "process_noise", "measurement_noise")
    z = np.array([scores(posterior) for posterior in fits])
    low, high = st.chi2.ppf([0.001, 0.999], len(fits))
    each = (z**2).sum(axis=0)
    assert np.all((low < each) & (each < high)), each
    whitened = [np.linalg.solve(factor.T, off) for off, factor in map(error, fits)]
    low, high = st.chi2.ppf([0.001, 0.999], z.size)
    assert low < np.sum(np.square(whitened)) < high


@pytest.mark.science
def test_outliers_neither_move_the_estimates_nor_pass_for_noise(fits):
    """One reading in twenty is off by 100 sds. Of Gaussian noise that makes a sensor 20 times worse than it is."""
    robust = pendulum.dynamics(sensors=("angle",), measurement_df=4.0)
    for seed in (0, 1, 2):
        clean, rng = simulate(seed), np.random.default_rng(seed)
        wrong = rng.random(STEPS) < 0.05
        readings = np.array(clean.observations)
        readings[wrong] += 100 * SENSOR * rng.choice([-1, 1], size=(wrong.sum(), 1))
        data = pp.Trajectories(readings, clean.actions, dt=0.05)
        gaussian, heavy = fit(encoder, data), fit(robust, data)
        assert heavy.status == pp.Status.OK
        assert np.abs(scores(heavy)[:5]).max() < 4  # parameters, and the motion's own noise
        sensor = [np.exp(posterior.mode[-1]) / SENSOR for posterior in (gaussian, heavy)]
        assert sensor[0] > 15 and sensor[1] < 3, sensor
        widths = [np.sqrt(np.sum(np.asarray(p.factor) ** 2, axis=0))[:3] for p in (fits[seed], heavy)]
        assert np.all(widths[1] < 1.5 * widths[0]), widths  # little is lost against clean readings


def test_an_unknown_delay_is_found_with_its_fraction():
    process = np.array([2e-4, 5e-3])
    late = pendulum.dynamics(sensors=("angle",), process_noise=process, input_delay=dist.Uniform(0.0, 4.0))
    z = []
    for seed in range(8):
        posterior = fit(late, simulate(seed, 120, process, delay=1.4))
        delay = posterior.samples(jax.random.key(1), 2000)["input_delay"]
        assert delay.std() < 0.1
        z.append((delay.mean() - 1.4) / delay.std())
    low, high = st.chi2.ppf([0.001, 0.999], len(z))
    assert low < np.sum(np.square(z)) < high and np.abs(z).max() < 3, z


@pytest.mark.science  # these four compile for more than ten seconds each
def test_the_evidence_tells_whole_delays_apart():
    """Of a recording that the linear machine simulates two samples late."""
    values = {k: jnp.full(1, v) for k, v in dense.values.items()}
    inputs = dense.recording(60).inputs
    readings = Predictive(dense.bind(input_delay=2), values)(jax.random.key(0), inputs)["observation"][0, 0]
    data = pp.Trajectories(readings, inputs.actions, dt=dense.DT, start=inputs.start)
    evidence = [fit(dense.bind(input_delay=delay), data).log_evidence for delay in range(4)]
    assert np.argmax(evidence) == 2 and evidence[2] > np.delete(evidence, 2).max() + 5, evidence


@pytest.fixture(scope="module")
def machines():
    """Readings of four recordings, the last shorter, of a linear machine whose stiffness is not the same twice."""
    with jax.enable_x64(True):
        parts, inputs = [], dense.recording(400).inputs
        for key, stiffness in zip(jax.random.split(jax.random.key(3), 4), (0.7, 1.1, 1.9, 2.3), strict=True):
            values = {"stiffness": jnp.full(1, stiffness), "gain": jnp.ones(1)}
            readings = Predictive(dense.bind(), values)(key, inputs)["observation"][0, 0]
            parts.append(pp.Trajectories(readings, inputs.actions, dt=dense.DT, start=inputs.start))
        data = pp.Trajectories.stack([*parts[:3], parts[3][:350]])
        noise = dist.LogNormal(-2.0, 1.0)
        models = [dense.bind(measurement=noise, variation=v) for v in (None, 0.5)]
        return [fit(model, data) for model in models]


@pytest.mark.science
def test_parameters_that_differ_between_recordings_are_less_certain(machines):
    same, varying = machines
    sd = [posterior.samples(jax.random.key(0), 2000)["stiffness"].std() for posterior in machines]
    assert sd[1] > 2 * sd[0], sd
    assert varying.log_evidence > same.log_evidence + 3


@pytest.mark.science
def test_arviz_has_sensors_and_the_log_likelihood_of_each_sample(machines):
    posterior = machines[1]
    tree, count = posterior.to_arviz(), 3 * 400 + 350
    likelihood, observed = tree["log_likelihood"]["observation"], tree["observed_data"]["observation"]
    assert likelihood.shape == (1, 1000, count)  # padding is no sample
    assert observed.shape == (count, 3) and observed.dims == ("reading", "sensor")
    assert list(observed["sensor"].values) == ["first", "second", "third"]
    np.testing.assert_array_equal(observed[-350:], posterior.data.observations[3, :350])
    np.testing.assert_array_equal(np.unique(observed["recording"], return_counts=True)[1], [400, 400, 400, 350])
    np.testing.assert_allclose(observed["time"][-1], 34.9)
    noise = tree["posterior"]["measurement_noise"]
    assert noise.dims == ("chain", "draw", "sensor") and noise.attrs["units"] == "m, m/s, m"
    assert tree["posterior"]["variation_offsets"].sizes["recording"] == 4
    loo = arviz_stats.loo(tree)
    assert loo.n_data_points == count and 0 < loo.p < 13  # sites, offsets included
    table = posterior.summary(truth={"gain": 1.0})
    assert table["measurement_noise[second]"]["unit"] == "m/s" and f"{count} samples in 4 recordings" in str(table)


# The model as NumPyro sees it -----------------------------------------------------------------------------------------


@pytest.mark.science
def test_numpyro_predicts_and_samples_recordings():
    """Predictions have the moments of the dense Gaussian; NUTS those of the dense posterior, integrated on a grid."""
    data, draws = dense.recording(30), 4000
    values = {k: jnp.full(draws, v) for k, v in dense.values.items()}
    readings = Predictive(dense.bind(), values)(jax.random.key(2), data.inputs)["observation"]
    assert readings.shape == (draws, 1, 30, 3)
    mean, covariance = dense.dense(data, **dense.values).readings()
    white = np.linalg.solve(
        np.linalg.cholesky(covariance), (np.asarray(readings)[:, 0, data.valid].reshape(draws, -1) - mean).T
    )
    low, high = st.chi2.ppf([0.001, 0.999], len(mean))
    assert low < draws * np.sum(white.mean(1) ** 2) < high
    assert abs(np.mean(white**2) - 1) < 4 * np.sqrt(2 / white.size)

    sampler = MCMC(NUTS(dense.bind()), num_warmup=150, num_samples=400, progress_bar=False)
    sampler.run(jax.random.key(0), data)
    axes = np.linspace(0.3, 2.7, 25), np.linspace(-1.0, 1.0, 25)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    prior = st.norm.logpdf(grid, [1.5, 1.0], [0.3, 0.5]).sum(1)
    weight = prior + [dense.dense(data, *point).log_density(np.asarray(data.observations)) for point in grid]
    weight = np.exp(weight - weight.max())
    for name, column in zip(("stiffness", "gain"), grid.T, strict=True):
        center = np.average(column, weights=weight)
        drawn = np.asarray(sampler.get_samples()[name])[None]
        assert abs(drawn.mean() - center) < 4 * arviz_stats.mcse(drawn)


# Padding, gaps, order -------------------------------------------------------------------------------------------------


@pytest.mark.science
def test_padding_changes_nothing(fits):
    data = simulate(0)
    padded = data.pad(300)
    assert len(padded) == 300 and padded.valid.sum() == STEPS
    np.testing.assert_allclose(terms(encoder, padded)[:, :STEPS], terms(encoder, data), rtol=1e-12)
    longer, again = fit(encoder, padded), pendulum.dynamics(sensors=("angle",))
    assert again == encoder and hash(again) == hash(encoder) and pendulum.dynamics(input_delay=1) != pendulum.dynamics()
    np.testing.assert_allclose(longer.mode, fits[0].mode, rtol=1e-9)
    np.testing.assert_allclose(longer.factor, fits[0].factor, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(longer.log_evidence, fits[0].log_evidence, rtol=1e-11)


def test_an_unstable_machine_stays_finite_through_long_padding():
    """Upright, its states would grow by e^3 a second: through 2000 samples beyond any number."""
    readings = np.pi + 1e-3 * np.random.default_rng(0).normal(size=(20, 1))
    data = pp.Trajectories(readings, np.zeros((20, 1)), dt=0.05)
    long = data.pad(2020)
    np.testing.assert_allclose(terms(encoder, long)[:, :20], terms(encoder, data), rtol=1e-12)
    space = UnconstrainedSpace.of(encoder, long)
    here = jax.jit(lambda z: local(space, encoder, long, z))(jnp.full(space.size, -1.0))
    assert all(np.all(np.isfinite(x)) for x in here)


def test_recordings_are_exchangeable_and_their_readings_enter_one_by_one():
    parts = [simulate(seed, 40 + 10 * seed) for seed in range(3)]
    forth, back = (np.sum(terms(encoder, pp.Trajectories.stack(p)), axis=1) for p in (parts, parts[::-1]))
    np.testing.assert_allclose(forth, back[::-1], rtol=1e-12)
    half = np.arange(40) < 20
    start = {"start": (np.zeros(2), np.ones(2)), "dt": 0.05}
    whole = pp.Trajectories(parts[0].observations, parts[0].actions, **start)
    cut = pp.Trajectories(parts[0].observations, parts[0].actions, valid=half, **start)
    np.testing.assert_allclose(terms(encoder, cut), terms(encoder, whole) * half, rtol=1e-12)
    np.testing.assert_allclose(terms(encoder, whole[:20])[0], terms(encoder, whole)[0, :20], rtol=1e-12)


def test_a_reading_that_is_not_a_number_is_none():
    data = simulate(0, 30)
    readings, valid = np.array(data.observations), np.arange(30) % 7 != 3
    readings[~valid] = np.nan
    holes = pp.Trajectories(readings, data.actions, dt=0.05)
    np.testing.assert_array_equal(holes.valid, valid)
    known = pp.Trajectories(data.observations, data.actions, dt=0.05, valid=valid)
    np.testing.assert_array_equal(terms(encoder, holes), terms(encoder, known))
    assert np.all(terms(encoder, holes)[0, ~valid] == 0)


def test_the_data_object_pads_stacks_and_cuts():
    one, two = simulate(0, 30), simulate(1, 20)
    both = pp.Trajectories.stack([one, two, two[:1]])
    assert both.batch_shape == (3,) and len(both) == 30 and both.regular
    assert list(both.valid.sum(1)) == [30, 20, 1]
    np.testing.assert_array_equal(both.actions[1, 20:], np.repeat(two.actions[-1:], 10, 0))
    np.testing.assert_allclose(both.times, np.tile(0.05 * np.arange(30), (3, 1)), atol=1e-12)
    np.testing.assert_array_equal(both[5:12].observations[0], one.observations[5:12])
    assert repr(both) == "Trajectories(3 recordings of 30 samples (51 valid), 1 sensors, 1 inputs)"
    assert both.inputs.observations is None and "inputs only" in repr(both.inputs)
    again = pp.Trajectories.stack([both, both])
    assert again.batch_shape == (6,)
    clock = (100 + 0.004 * np.arange(3000)).astype(np.float32)  # which float32 knows to 8 us
    assert pp.Trajectories(np.zeros((3000, 1)), np.zeros((3000, 1)), clock).regular
    assert not pp.Trajectories(u, u, [0.0, 0.1, 0.2, 0.3, 0.4, 0.51]).regular
    lengths = [fine_bucket(n) for n in range(1, 2000)]
    assert all(n <= b <= max(8, 1.25 * n) for n, b in enumerate(lengths, 1)) and len(set(lengths)) == 33
    ramp = jnp.arange(5.0)[:, None]
    np.testing.assert_allclose(lagged(ramp, 2, jnp.array([-3.0]))[:, 0], [-3, -3, 0, 1, 2])
    np.testing.assert_allclose(lagged(ramp, 7, jnp.zeros(1))[:, 0], 0)
    np.testing.assert_allclose(lagged(ramp, jnp.array(1.25), jnp.array([-4.0]))[:, 0], [-4, -1, 0.75, 1.75, 2.75])
    assert eqx.tree_equal(both, pp.Trajectories.stack([one, two, two[:1]]))
