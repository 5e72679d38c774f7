"""Predictions carry the uncertainty of the noise: the Student-t of regression, in closed form."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import gammaln

import physppl as pp
from physppl.inference import HMC, Laplace, StructuredLaplace
from physppl.inference.noise_mixture import lattice

SHAPE, RATE, FLAT = 1.5, 0.02, 1e3  # prior of the noise variance, InverseGamma; prior sd of the coefficients
noise = dist.TransformedDistribution(dist.InverseGamma(SHAPE, RATE), dist.transforms.PowerTransform(0.5))


def regression(outputs: int, inputs: int) -> pp.Dynamics:
    """The next state is linear in the inputs; coefficients have a flat prior."""

    def program():
        w = numpyro.sample("w", dist.Normal(0.0, FLAT).expand([outputs, inputs]).to_event(2))
        return pp.Step(lambda t, x, u: w @ u)

    state = pp.StateSpace(**{f"x{i}": pp.Real() for i in range(outputs)})
    action = pp.ActionSpace(**{f"u{i}": pp.Bounded(-1.0, 1.0) for i in range(inputs)})
    return pp.Dynamics(program, state, action, dt=0.1, process_noise=noise)


def drawn(rng, rows: int, outputs: int, inputs: int):
    """Rows of a machine drawn from the prior of the noise, and fifty more to predict."""
    sds = np.sqrt(stats.invgamma(SHAPE, scale=RATE).rvs(size=outputs, random_state=rng))
    w = rng.normal(size=(outputs, inputs))
    u = rng.uniform(-1, 1, (rows + 50, inputs))
    y = u @ w.T + sds * rng.normal(size=(rows + 50, outputs))
    data = pp.Transitions(np.zeros((rows, outputs)), u[:rows], y[:rows])
    return data, u[rows:], y[rows:]


def student(data: pp.Transitions, inputs):
    """The exact predictive distribution: one Student-t for each output, at each input."""
    u, y = np.asarray(data.actions), np.asarray(data.next_states)
    gram = np.linalg.inv(u.T @ u)
    w = gram @ u.T @ y
    shape = SHAPE + (len(u) - u.shape[1]) / 2
    rate = RATE + np.sum((y - u @ w) ** 2, axis=0) / 2
    leverage = np.einsum("ij,jk,ik->i", inputs, gram, inputs)
    return stats.t(2 * shape, inputs @ w, np.sqrt(rate / shape * (1 + leverage[:, None])))


def gaps(rows: int, sets: int, outputs: int = 1, inputs: int = 2):
    """Mean log density below the exact one's, nats, and shares inside the 90 % intervals, of each data set."""
    model, rng = regression(outputs, inputs), np.random.default_rng(rows)
    density, inside = [], []
    for i in range(sets):
        data, u, y = drawn(rng, rows, outputs, inputs)
        predicted = pp.fit(jax.random.key(i), model, data, Laplace()).predict(np.zeros((50, outputs)), u)
        exact = student(data, u).logpdf(y).sum(axis=-1)
        density.append(np.mean(exact - np.asarray(predicted.log_prob(y))))
        inside.append(np.mean(np.abs(np.asarray(predicted.marginal_cdf(y)) - 0.5) < 0.45))
    return np.array(density), np.array(inside)


@pytest.mark.parametrize(
    ("rows", "sets"), [(4, 3), *(pytest.param(n, 500, marks=pytest.mark.science) for n in (4, 8, 20))]
)
def test_predictions_are_students_t(x64, rows, sets):
    density, inside = gaps(rows, sets)
    print(rows, density.mean(), np.quantile(np.abs(density), [0.5, 0.95, 1.0]), inside.mean())
    assert abs(density.mean()) < 0.1
    if sets > 100:
        assert 0.86 < inside.mean() < 0.94


def test_outputs_have_noises_of_their_own(x64):
    density, _ = gaps(6, 3, outputs=3)
    assert np.max(np.abs(density)) < 0.1


def test_evidence_and_moments_are_the_exact_ones(x64):
    """The integral over the noise in closed form (conjugate regression with a flat prior)."""
    data, u, _ = drawn(np.random.default_rng(1), 8, 1, 2)
    posterior = pp.fit(jax.random.key(0), regression(1, 2), data, Laplace())
    x, y = np.asarray(data.actions), np.asarray(data.next_states)[:, 0]
    w = np.linalg.lstsq(x, y, rcond=None)[0]
    shape, rate = SHAPE + 3, RATE + np.sum((y - x @ w) ** 2) / 2
    log_evidence = (
        SHAPE * np.log(RATE) - gammaln(SHAPE) + gammaln(shape) - shape * np.log(rate)
        - 3 * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(x.T @ x)[1] - 2 * np.log(FLAT) - np.log(2 * np.pi)
    )  # fmt: skip
    assert posterior.facts()["log_evidence"] == pytest.approx(log_evidence, abs=0.02)
    exact = student(data, u)
    predicted = posterior.predict(np.zeros((50, 1)), u)
    np.testing.assert_allclose(predicted.mean, exact.mean(), atol=1e-4)
    np.testing.assert_allclose(np.sqrt(predicted.variance), exact.std(), rtol=0.03)
    mean, factor = posterior.basis(np.zeros((50, 1)), u)
    covariance = np.einsum("mdr,mer->mde", factor, factor) + np.asarray(posterior.noise()) ** 2
    np.testing.assert_allclose(predicted.covariance_matrix, covariance, rtol=1e-6)
    np.testing.assert_allclose(mean, predicted.mean, rtol=1e-6, atol=1e-9)


def test_draws_have_the_predictions_moments(x64):
    data, u, _ = drawn(np.random.default_rng(2), 6, 2, 2)
    posterior = pp.fit(jax.random.key(0), regression(2, 2), data, Laplace())
    draws = posterior.draws(jax.random.key(1), 4000)
    means = np.einsum("sop,mp->smo", np.asarray(draws.sites["w"]), u)
    predicted = posterior.predict(np.zeros((50, 2)), u)
    variance = means.var(axis=0) + np.mean(np.asarray(draws.noise) ** 2, axis=0)
    np.testing.assert_allclose(np.sqrt(variance), np.sqrt(predicted.variance), rtol=0.1)
    np.testing.assert_allclose(
        posterior.samples(jax.random.key(1), 4000)["w"].mean(0), draws.sites["w"].mean(0), atol=0.05
    )


@pytest.mark.parametrize("backend", [HMC(draws=200, warmup=200), StructuredLaplace()])
@pytest.mark.filterwarnings("ignore::physppl.PhyspplWarning")
@pytest.mark.science
def test_every_backend_predicts_with_several_noises(backend, x64):
    data, u, y = drawn(np.random.default_rng(3), 20, 1, 2)
    posterior = pp.fit(jax.random.key(0), regression(1, 2), data, backend)
    predicted = posterior.predict(np.zeros((50, 1)), u)
    assert predicted.component_distribution.batch_shape[-1] > 1
    exact = student(data, u)
    assert np.mean(exact.logpdf(y)[:, 0] - np.asarray(predicted.log_prob(y))) < 0.1
    mean, factor = posterior.basis(np.zeros((50, 1)), u)
    covariance = np.einsum("mdr,mer->mde", factor, factor) + np.asarray(posterior.noise()) ** 2
    np.testing.assert_allclose(predicted.covariance_matrix, covariance, rtol=1e-6)
    np.testing.assert_allclose(predicted.mean, mean, atol=1e-9)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_nodes_are_standard_normal(width):
    nodes = lattice(512, width)
    np.testing.assert_allclose(nodes.mean(axis=0), 0.0, atol=0.04)
    np.testing.assert_allclose(np.cov(nodes.T), np.eye(width), atol=0.06)
