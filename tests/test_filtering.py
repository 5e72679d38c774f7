"""The likelihood of recordings against dense algebra in NumPy: one Gaussian over all states and readings at once."""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from dense import (
    DT,
    B,
    C,
    Linear,
    Q,
    R,
    action,
    bind,
    dense,
    differences,
    log_normal,
    matrix,
    program,
    recording,
    sensors,
    sites,
    state,
    values,
)  # fmt: skip
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy.linalg import block_diag

import physppl as pp
from physppl.density.curvature import Local, _gaussian, local
from physppl.density.mode import Mode
from physppl.density.unconstrained import Gaussian, UnconstrainedSpace
from physppl.dynamics.kalman import propagate, smooth
from physppl.dynamics.recordings import filtered
from physppl.inference import Laplace, LaplacePosterior
from physppl.inference.laplace import at

pytestmark = pytest.mark.usefixtures("x64")


def continuous():
    stiffness, gain = sites()
    return lambda t, x, u: rates(stiffness) @ x + gain * (B @ u)


def rates(stiffness):
    return jnp.array([[0.0, 1.0], [0.0, -0.4]]) + stiffness * jnp.array([[0.0, 0.0], [-1.0, 0.0]])


def likelihood(dynamics, data, sites=values) -> float:
    """Sum of the log densities of all readings."""
    _, trace = log_density(dynamics, (data,), {}, sites)
    return float(jnp.sum(trace["observation"]["fn"].log_prob(trace["observation"]["value"])))


late_and_inexact = {"input_delay": 2, "input_gain_error": 0.1, "input_timing_error": 0.3}


@pytest.mark.parametrize(
    "segment, options",
    [(1, {}), (7, late_and_inexact), pytest.param(1000, {}, marks=pytest.mark.science), (1000, late_and_inexact)],
    ids=["state-space", "segments-of-7", "single-shooting", "single-shooting-inexact"],
)
def test_a_linear_machine_is_one_big_gaussian(segment, options):
    """Density and smoothed states of three recordings of different lengths, padded, with gaps."""
    parts = [recording(rows, seed, segment) for seed, rows in enumerate((25, 40, 9))]
    data, dynamics = pp.Trajectories.stack(parts), bind(**options)
    oracles = [dense(part, **values, **{k.removeprefix("input_"): v for k, v in options.items()}) for part in parts]
    readings = [np.asarray(part.observations) for part in parts]
    expected = sum(oracle.log_density(y) for oracle, y in zip(oracles, readings, strict=True))
    np.testing.assert_allclose(likelihood(dynamics, data), expected, rtol=1e-11)
    means, covariances = jax.vmap(smooth)(filtered(dynamics, jax.tree.map(jnp.asarray, values), data))
    for i, (oracle, y) in enumerate(zip(oracles, readings, strict=True)):
        mean, covariance = oracle.smoothed(y)
        np.testing.assert_allclose(means[i, : len(y)], mean, rtol=0, atol=1e-10)
        np.testing.assert_allclose(covariances[i, : len(y)], covariance, rtol=0, atol=1e-12)


def test_a_sensor_that_saw_nothing_silences_no_other():
    data, rng = recording(30), np.random.default_rng(5)
    readings = np.where(rng.uniform(size=(30, 3)) < 0.4, np.nan, np.asarray(data.observations))
    partly = pp.Trajectories(readings, data.actions, data.times, valid=data.valid, start=data.start)
    assert 0 < int(partly.seen.sum()) < 3 * int(partly.valid.sum())
    seen = np.isfinite(readings[data.valid].ravel())
    mean, covariance = dense(data, **values).readings()
    expected = log_normal(readings[data.valid].ravel()[seen], mean[seen], covariance[np.ix_(seen, seen)])
    np.testing.assert_allclose(likelihood(bind(), partly), expected, rtol=1e-11)


@pytest.mark.parametrize("segment", [1, 4])
def test_irregular_samples_are_steps_of_their_own_length(segment):
    """The classical Runge-Kutta step of a linear field is the exponential's series to fourth order."""
    rng = np.random.default_rng(3)
    lengths = DT * rng.uniform(0.5, 2.0, 29)
    data = recording(30, segment=segment, times=np.concatenate([[0.0], lengths.cumsum()]))
    F, A, drift, noise = np.asarray(rates(values["stiffness"])), [], [], []
    for k, h in enumerate(lengths):
        powers = [np.linalg.matrix_power(h * F, n) for n in range(5)]
        A.append(powers[0] + powers[1] + powers[2] / 2 + powers[3] / 6 + powers[4] / 24)
        integral = h * (powers[0] + powers[1] / 2 + powers[2] / 6 + powers[3] / 24)
        drift.append(integral @ B[:, 0] * values["gain"] * np.asarray(data.actions)[k, 0])
        ends = (k + 1) % segment == 0
        noise.append(ends * lengths[k + 1 - segment : k + 1].sum() / DT * np.diag(Q**2))
    mean, sd = map(np.asarray, data.start)
    oracle = Linear(np.array(A), np.array(drift), np.array(noise), C, R, mean, sd, np.asarray(data.valid))
    expected = oracle.log_density(np.asarray(data.observations))
    np.testing.assert_allclose(likelihood(bind(continuous), data), expected, rtol=1e-11)


def test_regular_samples_need_no_path_of_their_own():
    data = recording(30, segment=3)
    irregular = copy.copy(data)
    object.__setattr__(irregular, "regular", False)
    dynamics = bind(continuous)
    np.testing.assert_allclose(likelihood(dynamics, irregular), likelihood(dynamics, data), rtol=1e-12)


# Curvature ------------------------------------------------------------------------------------------------------------

uncertain = {
    "process": dist.LogNormal(-3.0, 1.0),
    "measurement": dist.LogNormal(-2.0, 1.0),
    "input_gain_error": dist.LogNormal(-1.0, 0.5),
}
point = np.array([1.3, 0.8, -3.2, -2.5, -2.0, -1.5, -1.8, -1.0])  # virtual: stiffness, gain and log noises


def dense_at(z, data) -> Linear:
    q, r = np.exp(z[2:4]) + 1e-6 * state.scale, np.exp(z[4:7]) + 1e-6 * sensors.scale
    return dense(data, z[0], z[1], q, r, gain_error=np.exp(z[7]) + 1e-6)


@pytest.mark.parametrize("df", [None, 4.0])
def test_the_gradient_is_that_of_the_log_joint(df):
    data = pp.Trajectories.stack([recording(25), recording(12, 1)])
    dynamics = bind(**uncertain, measurement_df=df, variation=dist.LogNormal(-1.0, 0.5))
    space = UnconstrainedSpace.of(dynamics, data)
    z = np.append(point, [-1.2, -0.7, 0.5, -0.3, 1.1, 0.2])  # log sds of the variation, offsets of two recordings
    log_joint = lambda z: sum(space.log_densities(space.trace(dynamics, z, data), z))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(log_joint))(z)
    here = jax.jit(lambda z: local(space, dynamics, data, z))(z)
    np.testing.assert_allclose(here.log_joint, value, rtol=1e-12)
    np.testing.assert_allclose(here.gradient, gradient, rtol=1e-9, atol=1e-9)


def test_curvature_is_the_fisher_information_of_the_whole_recording():
    """The filter sums what each reading tells, given those before: that is a quadratic function of the readings, which
    is compared as it is, and whose mean, the Fisher information, is exact on 2 n points along the covariance's root."""
    data = recording(15, segment=3)
    dynamics = bind(**uncertain)
    space = UnconstrainedSpace.of(dynamics, data)
    assert space.names == ("stiffness", "gain", "process_noise", "measurement_noise", "input_gain_error")
    (mean, covariance), count = dense_at(point, data).readings(), 3 * int(data.valid.sum())
    root = np.sqrt(count) * np.linalg.cholesky(covariance).T
    readings = np.zeros((2 * count, 15, 3))
    readings[:, np.asarray(data.valid)] = (mean + np.concatenate([root, -root])).reshape(2 * count, -1, 3)

    @jax.jit
    @jax.vmap
    def information(observations):
        moved = eqx.tree_at(lambda d: d.observations, data, observations)
        return local(space, dynamics, moved, jnp.asarray(point)).curvature

    prior = np.array([0.3, 0.5, 1, 1, 1, 1, 1, 0.5])
    found = np.asarray(information(readings)) - np.diag(prior**-2.0)
    d_mean, d_covariance = differences(lambda z: dense_at(z, data).readings(), point)
    precision = np.linalg.inv(covariance)
    by_covariance = np.einsum("ab,bci->aci", precision, d_covariance)
    fisher = d_mean.T @ precision @ d_mean + 0.5 * np.einsum("abi,baj->ij", by_covariance, by_covariance)
    size = np.sqrt(np.outer(np.diag(fisher), np.diag(fisher)))
    noises = np.arange(8) >= 2
    bounded = np.diag(noises).astype(bool)  # see below
    np.testing.assert_allclose((found.mean(0) / size)[~bounded], (fisher / size)[~bounded], rtol=0, atol=1e-8)
    for i in (3, 40):
        d_expected, d_sd = differences(lambda z: dense_at(z, data).one_by_one(readings[i]), point)  # noqa: B023
        sd = dense_at(point, data).one_by_one(readings[i])[1][:, None]
        told = (d_expected / sd).T @ (d_expected / sd) + 2 * (d_sd / sd).T @ (d_sd / sd)
        # A noise's own entry is at least minus twice its slope: the curvature of a log likelihood linear in its square.
        (slope,) = differences(lambda z: [np.atleast_1d(dense_at(z, data).log_density(readings[i]))], point)  # noqa: B023
        told[bounded] = np.maximum(told[bounded], -2 * slope[0, noises])
        np.testing.assert_allclose(found[i] / size, told / size, rtol=0, atol=1e-7)


def linear_in_parameters():
    theta = jnp.stack([pp.physical(name, dist.Normal(0.2, sd)) for name, sd in (("a", 0.5), ("b", 2.0), ("c", 1.0))])
    return pp.Step(lambda t, x, u: matrix(1.5) @ x + features(jnp, t, u[0]) @ theta)


def features(xp, t, u):
    """(2, 3): what each parameter adds to the next state."""
    return xp.stack([xp.stack([0 * t, 0.02 * u, 0.1 * xp.sin(t)]), xp.stack([0.1 + 0 * t, 0.3 * u, 0 * t])])


@pytest.mark.parametrize("variation", [pytest.param(None, marks=pytest.mark.science), 0.5])
def test_laplace_is_bayesian_regression_with_the_states_integrated_out(variation):
    """Closed form: readings are linear in the parameters, and in what a recording's own parameters differ by, with the
    covariance of noise that the states carry along."""
    parts = [recording(25, 0, segment=2), recording(40, 1, segment=2)]
    data = pp.Trajectories.stack(parts)
    posterior = pp.fit(jax.random.key(0), bind(linear_in_parameters, variation=variation), data, Laplace(starts=2))
    designs, blocks = [], []
    for part in parts:
        inputs, times = np.asarray(part.actions)[:-1, 0], np.asarray(part.times)[:-1]
        parameters = np.array([features(np, t, u) for t, u in zip(times, inputs, strict=True)])
        oracle = dense(part, 1.5, 0.0)
        mean, covariance = oracle.readings()
        of = [oracle._replace(drift=p, mean=np.zeros(2)).readings()[0] for p in np.moveaxis(parameters, -1, 0)]
        designs.append(np.stack(of, axis=1))
        blocks.append((np.asarray(part.observations)[part.valid].ravel() - mean, covariance))
    design, prior, sd = np.concatenate(designs), np.full(3, 0.2), np.array([0.5, 2.0, 1.0])
    if variation is not None:  # sites a, b, c and offsets (2, 3), in units of the variation
        design = np.concatenate([design, variation * block_diag(*designs)], axis=1)
        prior, sd = np.append(prior, np.zeros(6)), np.append(sd, np.ones(6))
    errors, covariance = np.concatenate([b[0] for b in blocks]), block_diag(*(b[1] for b in blocks))
    precision = np.diag(sd**-2.0) + design.T @ np.linalg.solve(covariance, design)
    mode = np.linalg.solve(precision, prior / sd**2 + design.T @ np.linalg.solve(covariance, errors))
    np.testing.assert_allclose(posterior.factor.T @ posterior.factor, np.linalg.inv(precision), rtol=1e-8, atol=1e-12)
    exact = at(posterior.model, posterior.data, jnp.asarray(mode))
    evidence = log_normal(errors, design @ prior, covariance + design * sd**2 @ design.T)
    np.testing.assert_allclose(exact.log_evidence, evidence, rtol=1e-11)
    here = local(posterior.space, posterior.model, posterior.data, jnp.asarray(mode))
    np.testing.assert_allclose(exact.factor @ here.gradient, 0.0, atol=1e-10)
    off = np.linalg.cholesky(precision).T @ (np.asarray(posterior.mode) - mode)
    assert np.linalg.norm(off) < 0.014, off  # posterior sds: where the search may end


# Heavy tails ----------------------------------------------------------------------------------------------------------


def test_the_curvature_of_a_student_t_is_its_score_s_covariance():
    """Where mean, log scale and degrees of freedom depend on the parameters."""
    rng, df, scale, count = np.random.default_rng(0), 4.0, 0.7, 40_000
    y = 1.0 + scale * rng.standard_t(df, count)
    jacobians = jnp.array([[[1.0, 0.3, 0.1]], [[0.2, 1.0, -0.1]], [[0.0, 0.5, 2.0]]])

    def density(z, y):
        mean, log_scale, own = jacobians[:, 0] @ z
        return dist.StudentT(df + own, 1.0 + mean, scale * jnp.exp(log_scale)).log_prob(y)

    zero = jnp.zeros(3)
    scores = np.asarray(jax.vmap(lambda y: jax.grad(density)(zero, y))(y))
    site = Gaussian(*(jnp.full(1, x) for x in (1.0, np.log(scale), y[0], 1.0, df)))
    found = _gaussian(site, *jacobians)
    np.testing.assert_allclose(found.gradient, scores[0], rtol=1e-9)
    np.testing.assert_allclose(found.log_joint, density(zero, y[0]), rtol=1e-12)
    products = scores[:, :, None] * scores[:, None, :]
    z = (products.mean(0) - np.asarray(found.curvature)) / (products.std(0) / np.sqrt(count))
    assert np.abs(z).max() < 4, z
    assert np.abs(np.diag(products.mean(0)) / np.diag(found.curvature) - 1).max() < 0.05


def random_walk():
    return pp.Step(lambda t, x, u: x)


def test_the_robust_filter_loses_little_against_the_exact_one():
    """A random walk read with t noise; the exact filter carries its density on a grid. By Gibbs' inequality any other
    predictive density scores worse on average, and how much is what the approximation costs."""
    df, r, count = 4.0, 0.5, 1500
    space, rng = pp.StateSpace(x=pp.Real()), np.random.default_rng(1)
    for q in (0.3, 1.0):
        x = rng.normal() + np.concatenate([[0.0], q * rng.normal(size=count - 1)]).cumsum()
        y = x + r * rng.standard_t(df, count)
        data = pp.Trajectories(y[:, None], np.zeros((count, 1)), dt=DT, start=(np.zeros(1), np.ones(1)))
        grid, h = np.linspace(x.min() - 8, x.max() + 8, 4001, retstep=True)
        density, kernel = st.norm.pdf(grid), st.norm.pdf(np.arange(-6 * q, 6 * q, h), 0, q)
        exact, means = np.empty(count), np.empty(count)
        for k in range(count):
            joint = density * st.t.pdf((y[k] - grid) / r, df) / r
            exact[k], posterior = np.log(joint.sum() * h), joint / joint.sum()
            means[k] = posterior @ grid
            density = np.convolve(posterior / h, kernel / kernel.sum(), "same")
        errors = []
        for own, sd in ((df, r), (None, r * np.sqrt(df / (df - 2)))):  # and a Gaussian of the same variance
            noises = {"process_noise": q, "measurement_noise": sd, "measurement_df": own}
            dynamics = pp.Dynamics(random_walk, space, action, dt=DT, **noises)
            course = filtered(dynamics, {}, data)
            errors.append(np.sqrt(np.mean((np.asarray(course.mean)[0, :, 0] - means) ** 2)))
            if own is not None:
                found = log_density(dynamics, (data,), {}, {})[1]["observation"]
                loss = exact - np.asarray(found["fn"].log_prob(found["value"]))[0]
                error = loss.std() / np.sqrt(count)
                assert -3 * error < loss.mean() < 0.01 + 3 * error, (q, loss.mean(), error)  # nats a reading
        assert errors[0] < 0.7 * errors[1], errors


def test_predicted_readings_have_the_variance_of_state_and_sensor():
    """Of a Student-t sensor df / (df - 2) times its squared scale, and that of the state in full."""
    space, df, r = pp.StateSpace(x=pp.Real()), 4.0, 0.5
    dynamics = pp.Dynamics(random_walk, space, action, dt=DT, process_noise=1.0, measurement_noise=r, measurement_df=df)
    data = pp.Trajectories(np.zeros((3, 1)), np.zeros((3, 1)), dt=DT, start=(np.zeros(1), np.full(1, 0.7)))
    variance = jax.jit(lambda data: log_density(dynamics, (data,), {}, {})[1]["observation"]["fn"].variance)(data)
    np.testing.assert_allclose(variance[0, 0], 0.7**2 + r**2 * df / (df - 2), rtol=1e-12)


def test_propagation_is_exact_for_squares():
    """Of a Gaussian x of mean m and variance v, x^2 has mean m^2 + v, variance 4 m^2 v + 2 v^2, covariance 2 m v."""
    m, v = 0.7, 0.3
    found = propagate(lambda x, u: x**2, jnp.array([m]), jnp.array([[v]]), jnp.zeros(1), None)
    exact = m**2 + v, 4 * m**2 * v + 2 * v**2, 2 * m * v
    np.testing.assert_allclose([float(x.squeeze()) for x in found], exact, rtol=1e-12)


def test_a_start_that_nobody_states_is_the_first_reading():
    """With the state's scale as its sd: a reading at the start is expected there, with both variances."""
    dynamics = pp.Dynamics(program, state, action, dt=DT, process_noise=Q, measurement_noise=0.5)
    readings = np.array([[np.nan, np.nan], [1.5, -0.7], [0.0, 0.0]])
    data = pp.Trajectories(readings, np.zeros((3, 1)), dt=DT)
    course = jax.jit(lambda sites: filtered(dynamics, sites, data))(jax.tree.map(jnp.asarray, values))
    np.testing.assert_allclose(course.expected[0, 0], readings[1], rtol=1e-12)
    np.testing.assert_allclose(course.spread[0, 0], np.hypot(state.scale, 0.5), rtol=1e-12)


def test_a_draw_is_the_machine_of_a_new_recording():
    """Its parameters scatter by the belief's sd and by the variation between recordings."""
    dynamics, data = bind(variation=0.5), pp.Trajectories.stack([recording(4), recording(4, 1)])
    space = UnconstrainedSpace.of(dynamics, data)
    nothing = Local(jnp.zeros(()), jnp.zeros(space.size), jnp.eye(space.size) / 0.3**2)
    mode = Mode(jnp.ones(space.size), nothing, jnp.zeros(()), jnp.zeros((), int))
    posterior = LaplacePosterior(dynamics, data, space, mode, False)
    sites = jax.jit(jax.vmap(posterior._draw))(jax.random.split(jax.random.key(0), 4000)).sites
    for name in ("stiffness", "gain"):
        assert abs(np.std(sites[name]) / np.hypot(0.3, 0.5) - 1) < 4 / np.sqrt(8000)


def simulated(dynamics, design, count: int) -> np.ndarray:
    """Readings (count, N, d) of recordings with these inputs, at `values`."""
    stacked = pp.Trajectories.stack([design] * count).inputs
    model = handlers.seed(handlers.substitute(dynamics, values), jax.random.key(0))
    return np.asarray(jax.jit(model)(stacked))


def test_simulated_recordings_have_their_moments():
    """Late and inexact inputs, and segments: 18 means and 171 covariances by their standard errors."""
    count, design = 4000, recording(6, segment=2)
    dynamics = bind(input_delay=2, input_gain_error=1.0, input_timing_error=1.0)
    readings = simulated(dynamics, design, count).reshape(count, -1)
    oracle = dense(design, **values, delay=2, gain_error=1.0, timing_error=1.0)
    mean, covariance = oracle._replace(valid=np.ones(6, bool)).readings()
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(readings.mean(0) - mean) < 4.5 * sd / np.sqrt(count))
    error = np.sqrt((np.outer(sd**2, sd**2) + covariance**2) / count)
    assert np.all(np.abs(np.cov(readings.T) - covariance) < 4.5 * error)


def test_simulated_sensors_have_students_tails():
    """With a start and a process that are next to exact: readings less their expectation are the sensors' noise."""
    still = pp.Trajectories(np.zeros((4, 3)), np.zeros((4, 1)), dt=DT, start=((0.0, 0.0), (1e-9, 1e-9)))
    noise = simulated(bind(process=1e-9, measurement_df=3.0), still, 500) / R
    assert st.kstest(noise.ravel(), st.t(3.0).cdf).pvalue > 1e-3
    assert st.kstest(noise.ravel(), st.norm.cdf).pvalue < 1e-6
