"""Sensors that round or saturate: probabilities of intervals, the filter on them, and what a fit gains."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from dense import bind, dense, recording
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats

import physppl as pp
from physppl.density.curvature import _gaussian
from physppl.density.unconstrained import Gaussian
from physppl.dynamics.instruments import Instrument, RecordedNormal
from physppl.evaluation.recording_forecasts import predict_ahead, standardised_residuals
from physppl.inference import Laplace
from physppl.internal.truncated import truncated
from physppl.models import pendulum
from physppl.posterior.innovations import interval_scores

pytestmark = pytest.mark.usefixtures("x64")
TRUTH = {"stiffness": 1.2, "gain": 0.8}


def integrated(low, high):
    """Log probability, mean and variance of a standard normal between two bounds, by Gauss-Legendre quadrature."""
    near = 0.0 if low <= 0 <= high else min(low, high, key=abs)
    reach = min(12.0, 40 / max(abs(near), 1e-3))
    low, high = max(low, near - reach), min(high, near + reach)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x, weights = (low + high) / 2 + (high - low) / 2 * nodes, (high - low) / 2 * weights
    density = np.exp(-(x**2 - near**2) / 2) @ np.diag(weights)
    mass = density.sum()
    mean = density @ x / mass
    variance = density @ (x - mean) ** 2 / mass
    return np.log(mass) - near**2 / 2 - np.log(2 * np.pi) / 2, mean, variance


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1, 1), (5, 6), (-9, -8.5), (0.2, 0.2009), (-0.0051, 0.004), (-np.inf, -30), (3, np.inf), (-np.inf, 4), (35, 36)],
)
def test_an_interval_has_its_integrals_and_their_slopes(low, high):
    low, high = float(low), float(high)
    expected = integrated(low, high)
    np.testing.assert_allclose(truncated(0.0, 1.0, low, high), expected, rtol=1e-5, atol=1e-6)
    by_loc, by_scale = jax.grad(lambda m, s: truncated(m, s, low, high).log_mass, (0, 1))(0.0, 1.0)
    _, mean, variance = expected
    np.testing.assert_allclose((by_loc, by_scale), (mean, mean**2 + variance - 1), rtol=1e-6, atol=1e-6)


def test_an_interval_without_width_is_a_density():
    part = truncated(1.0, 2.0, jnp.array([0.3, 40.0]), jnp.array([0.3, 40.0]))
    np.testing.assert_allclose(part.log_mass, stats.norm.logpdf([0.3, 40.0], 1.0, 2.0), rtol=1e-14)
    np.testing.assert_allclose(part.mean, [-0.35, 19.5])
    np.testing.assert_array_equal(part.variance, 0.0)


def test_readings_tell_their_intervals():
    instrument = Instrument((0.5, 0.0), (-np.inf, 0.0), (1.0, 10.0))
    values = jnp.array([[0.7, 3.3], [7.0, 12.0], [-9.1, -1.0]])
    readings = instrument.recorded(values)
    np.testing.assert_allclose(readings, [[0.5, 3.3], [1.0, 10.0], [-9.0, 0.0]])
    low, high = instrument.bounds(readings)
    np.testing.assert_allclose(low, [[0.25, 3.3], [0.75, 10.0], [-9.25, -np.inf]])
    np.testing.assert_allclose(high, [[0.75, 3.3], [np.inf, np.inf], [-8.75, 0.0]])
    singles = instrument.bounds(readings.astype(jnp.float32) * jnp.float32(1 - 1e-7))  # a log in single precision
    assert np.isinf(singles[1][1]).all()
    assert np.all((low <= values) & (values <= high))


def test_the_probabilities_of_all_readings_are_one():
    step, limits = 0.7, (-1.4, 2.1)
    instrument = Instrument((step,), *((x,) for x in limits))
    site = RecordedNormal(0.3, 1.1, instrument)
    readings = np.arange(limits[0], limits[1] + 0.1, step)
    np.testing.assert_allclose(np.exp(site.log_prob(readings)).sum(), 1.0, rtol=1e-12)
    drawn = np.asarray(site.sample(jax.random.key(0), (20_000,)))
    shares = [(np.abs(drawn - y) < 0.1).mean() for y in readings]
    np.testing.assert_allclose(shares, np.exp(site.log_prob(readings)), atol=4 * 0.5 / np.sqrt(20_000))


def test_the_score_and_the_curvature_of_a_mean_are_those_of_the_log_probability():
    instrument = Instrument((0.5, 0.0, 1.0), (-np.inf, -1.0, -np.inf), (np.inf, 1.0, np.inf))
    readings = jnp.array([[0.5, 1.0, -2.0], [1.5, 0.2, 3.0]])
    mean, log_scale = jnp.array([[0.7, 0.2, 0.1], [0.0, 0.1, 2.9]]), jnp.log(jnp.array([0.3, 0.5, 0.8]))

    def log_mass(mean, log_scale):
        return jnp.sum(RecordedNormal(mean, jnp.exp(log_scale), instrument).log_prob(readings))

    def expansion(vary_mean: bool):
        of_mean = jnp.eye(6).reshape(2, 3, 6) * vary_mean
        of_scale = jnp.concatenate([jnp.eye(3), jnp.zeros((3, 3))], axis=1) * (not vary_mean)
        site = Gaussian(mean, log_scale, readings, jnp.ones(()), None, instrument.bounds(readings))
        return _gaussian(site, of_mean, of_scale)

    found, of_scale = expansion(True), expansion(False)
    np.testing.assert_allclose(found.log_joint, log_mass(mean, log_scale), rtol=1e-13)
    np.testing.assert_allclose(found.gradient, jax.grad(log_mass)(mean, log_scale).ravel(), rtol=1e-10)
    np.testing.assert_allclose(of_scale.gradient[:3], jax.grad(log_mass, 1)(mean, log_scale), rtol=1e-9)
    hessian = jax.jit(jax.hessian(log_mass))(mean, log_scale).reshape(6, 6)
    np.testing.assert_allclose(found.curvature, -hessian, atol=1e-9)


def log_probability(model, data) -> float:
    _, trace = log_density(model, (data,), {}, TRUTH)
    return float(jnp.sum(trace["observation"]["fn"].log_prob(trace["observation"]["value"])))


def read(data, readings):
    return pp.Trajectories(readings, data.actions, data.times, valid=data.valid, start=data.start)


@pytest.mark.parametrize(
    ("seed", "steps", "third"), [(0, (0.4, 1e-4, 0.6), (-0.9, 0.9)), (1, (1.0, 1.0, 1.0), (-np.inf, np.inf))]
)
def test_the_filter_against_the_probability_of_a_box(seed, steps, third):
    """All readings of a short recording lie in one box of a Gaussian over 9 readings: to .1 nats of it."""
    data, names = recording(6, seed), ("first", "second", "third")
    model = bind(measurement_resolution=dict(zip(names, steps, strict=True)), measurement_limits={"third": third})
    readings = np.asarray(model.sensing.instrument.recorded(jnp.asarray(data.observations)))
    data = read(data, readings)
    mean, covariance = dense(data, *TRUTH.values()).readings()
    low, high = (np.asarray(x)[np.asarray(data.valid)].ravel() for x in model.sensing.instrument.bounds(readings))
    rng = np.random.default_rng(0)
    box = [
        np.log(stats.multivariate_normal.cdf(high, mean, covariance, lower_limit=low, maxpts=400_000, rng=rng))
        for _ in range(2)
    ]
    assert abs(box[0] - box[1]) < 0.01  # of the integral itself
    assert log_probability(model, data) == pytest.approx(np.mean(box), abs=0.1)
    rounded = bind()  # the same readings, taken as exact: a density, times the widths of the intervals
    widths = np.log(np.broadcast_to(steps, readings.shape)[np.asarray(data.valid)]).sum()
    assert abs(log_probability(rounded, data) + widths - np.mean(box)) > 0.5


@pytest.mark.science
def test_fine_resolution_is_a_density():
    data = recording(8)
    fine = bind(measurement_resolution=1e-6)
    expected = log_probability(bind(), data) + 3 * int(data.valid.sum()) * np.log(1e-6)
    assert log_probability(fine, data) == pytest.approx(expected, abs=1e-8)


def test_simulated_readings_are_those_of_the_instrument():
    model = bind(measurement_resolution={"first": 0.25}, measurement_limits={"second": (-0.3, 0.4)})
    with handlers.seed(rng_seed=0), handlers.substitute(data=TRUTH):
        readings = np.asarray(model(recording(200).inputs))[0]
    np.testing.assert_allclose(readings[:, 0] % 0.25, 0.0, atol=1e-12)
    assert readings[:, 1].min() == -0.3 and readings[:, 1].max() == 0.4
    assert np.unique(readings[:, 2]).size == 200


def test_scores_of_a_right_model_are_standard_normal():
    rng = np.random.default_rng(3)
    mean, sd = rng.normal(size=5000), rng.uniform(0.2, 2.0, 5000)
    instrument = Instrument((1.0,), (-2.0,), (2.0,))
    readings = instrument.recorded(jnp.asarray(mean + sd * rng.normal(size=5000))[:, None])[:, 0]
    scores = interval_scores(mean, sd, *map(np.asarray, instrument.bounds(readings)))
    assert stats.kstest(scores, "norm").pvalue > 0.01


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"measurement_resolution": {"angel": 1.0}}, KeyError, "names 'angel', which is no sensor"),
        ({"measurement_resolution": 0.0}, ValueError, "positive distance of two neighbouring readings, in rad"),
        ({"measurement_limits": {"angle": 3.0}}, ValueError, r"\(low, high\), with inf"),
        ({"measurement_limits": (2.0, -2.0)}, ValueError, "least and the largest reading"),
        ({"measurement_limits": (-2.0, 2.0), "measurement_df": 4.0}, ValueError, "Mark outliers"),
    ],
)
def test_wrong_instruments_are_told(options, error, words):
    with pytest.raises(error, match=words):
        pendulum.dynamics(**options)


# Two instruments on which a Gaussian reading is off: an encoder of 12 bits that sees some twenty of its counts, and a
# rate gyro that saturates in up to half of its readings. The noise of the process is learned, as of a real machine.
COUNT, RANGE = 2 * np.pi / 4096, 0.6  # rad, rad/s
ENCODER = {"sensors": ("angle",), "measurement_resolution": COUNT}
GYRO = {"sensors": ("velocity",), "measurement_limits": (-RANGE, RANGE)}


def measured(options: dict, seed: int, dt: float = 0.01, rows: int = 400) -> pp.Trajectories:
    """A pendulum moved by steps of torque, integrated in NumPy, as the instrument records it."""
    rng = np.random.default_rng(seed)
    encoder = options is ENCODER
    size, noise = (0.03, 1e-5) if encoder else (2.5, 0.02)
    torques = np.repeat(size * rng.uniform(-1, 1, rows // 25), 25)
    mass, length, damping = pendulum.truth.values()

    def rates(x, u):
        return np.array([x[1], (u - damping * x[1] - mass * 9.81 * length * np.sin(x[0])) / (mass * length**2)])

    x, states, h = np.zeros(2), [], dt / 4
    for u in torques:
        states.append(x)
        for _ in range(4):
            a = rates(x, u)
            b = rates(x + h / 2 * a, u)
            c = rates(x + h / 2 * b, u)
            x = x + h / 6 * (a + 2 * b + 2 * c + rates(x + h * c, u))
    values = np.array(states)[:, [0 if encoder else 1]] + noise * rng.normal(size=(rows, 1))
    readings = np.round(values / COUNT) * COUNT if encoder else np.clip(values, -RANGE, RANGE)
    return pp.Trajectories(readings, torques[:, None], dt=dt, start=(np.zeros(2), np.full(2, 1e-4)))


def bound(options: dict) -> pp.Dynamics:
    noises = {"process_noise": dist.HalfNormal(np.array([1e-5, 1e-3])), "measurement_noise": dist.HalfNormal(0.02)}
    return pendulum.dynamics(dt=0.01, **noises, **options)


def estimates(model, data) -> np.ndarray:
    """Errors (3,) and sds (3,) of mass, length and damping."""
    samples = pp.fit(jax.random.key(0), model, data, Laplace()).samples(jax.random.key(1), 2000)
    drawn = np.stack([np.asarray(samples[name]) for name in pendulum.truth])
    return np.stack([drawn.mean(axis=1) - list(pendulum.truth.values()), drawn.std(axis=1)])


@pytest.mark.science
@pytest.mark.parametrize("options", [ENCODER, GYRO], ids=["encoder", "gyro"])
def test_truth_is_found_where_a_gaussian_reading_is_off(options):
    gaussian = {"sensors": options["sensors"]}
    data = [measured(options, seed) for seed in range(20)]
    ours = np.array([estimates(bound(options), d) for d in data])
    other = np.array([estimates(bound(gaussian), d) for d in data])
    assert np.all(np.abs(ours[:, 0]) < 3 * ours[:, 1])
    ours, other = (np.sqrt(np.mean(e[:, 0, :2] ** 2, axis=0)) for e in (ours, other))  # of mass and length
    print(options["sensors"], "RMS error of mass, length:", ours, "with Gaussian readings:", other)
    assert np.all(other > 3 * ours)


@pytest.mark.science
def test_a_saturated_gyro_is_fitted():
    data = measured(GYRO, 4)
    assert (np.abs(data.observations) >= RANGE).mean() > 0.3
    errors, sds = estimates(bound(GYRO), data)
    assert np.all(np.abs(errors) < 3 * sds) and sds[0] < 0.02


@pytest.mark.science
def test_a_saturated_gyro_is_judged_and_predicted():
    data, model = measured(GYRO, 4), bound(GYRO)
    posterior = pp.fit(jax.random.key(0), model, data[:320], Laplace())
    accused = [r.finding for r in posterior.check().reasons if "one-step errors" in r.finding]
    assert not accused
    residuals = standardised_residuals(jax.random.key(0), posterior, data)
    assert 0.85 < residuals.std() < 1.15  # 400 readings: 4 standard errors
    ahead = predict_ahead(jax.random.key(0), posterior, data, 0.2, since=3.2)
    assert np.abs(ahead.mean).max() <= RANGE + 1e-12
    assert ahead.rmse()[0] < 0.04 and ahead.inside.mean() > 0.8
