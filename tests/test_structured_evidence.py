"""Noise and evidence of every structure against the exact ones, on programs that are linear in many weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats

import physppl as pp
from physppl.inference import DataSpace, Diagonal, Full, LastLayer, LowRank, Pathwise, StructuredLaplace
from physppl.inference.products import Whitened
from physppl.language.noise import FLOOR

ROWS, NOISE, PRIOR = 150, 0.05, 0.1  # rows, true sd in m, scale of the half-normal prior of the noise
state, action = pp.StateSpace(x=pp.Real("m")), pp.ActionSpace(u=pp.Bounded(-1.0, 1.0, "N"))


@functools.cache
def problem(size: int, seed: int, spread: float):
    """Dynamics of `size` random features, data of it, and its design matrix."""
    rng = np.random.default_rng(seed)
    frequency, phase = spread * rng.normal(size=size), rng.uniform(0, 6.28, size)

    def program():
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        return pp.Step(lambda t, x, u: x + 0.1 * jnp.cos(frequency * x + phase) @ w)

    x = rng.uniform(-1, 1, (ROWS, 1))
    design = 0.1 * np.cos(frequency * x + phase)
    after = x + (design @ rng.normal(size=size))[:, None] + NOISE * rng.normal(size=(ROWS, 1))
    return pp.Dynamics(program, state, action, dt=0.1), pp.Transitions(x, np.zeros((ROWS, 1)), after), design


def log_evidence(design, change, log_sd: float) -> float:
    """log p(changes, log sd of the noise), the weights integrated out."""
    sd = np.exp(log_sd)
    covariance = design @ design.T + (sd + FLOOR) ** 2 * np.eye(ROWS)
    prior = scipy.stats.halfnorm.logpdf(sd, scale=PRIOR) + log_sd
    return scipy.stats.multivariate_normal.logpdf(change, np.zeros(ROWS), covariance) + prior


STRUCTURES = [Full(), DataSpace(64), Pathwise(64, rank=32), LowRank(20), LowRank(5), Diagonal(), LastLayer(40)]
CASES = [(size, seed, spread) for size in (80, 400) for seed in (0, 1) for spread in (2.0, 8.0)]


@pytest.mark.science
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_noise_and_evidence_are_the_exact_ones(structure, case):
    """Noise within 5 %, of draws whose relative error is about 1 %; evidence within four of its own standard errors."""
    dynamics, data, design = problem(*case)
    change = (data.next_states - data.states)[:, 0]
    best = scipy.optimize.minimize_scalar(
        lambda log_sd: -log_evidence(design, change, log_sd),
        bounds=(-6.0, 0.0),
        method="bounded",
        options={"xatol": 1e-8},
    )
    posterior = pp.fit(jax.random.key(3), dynamics, data, StructuredLaplace(structure))
    assert float(posterior.noise()[0]) == pytest.approx(np.exp(best.x), rel=0.05)
    log_sd, width = float(posterior.mode[-1]), float(posterior.noise_factor[0, 0])
    exact = log_evidence(design, change, log_sd) + 0.5 * np.log(2 * np.pi) + np.log(width)
    facts = posterior.facts()
    # A noise off the optimum costs the square of its distance; the Gaussian over the weights is exact.
    assert abs(facts["log_evidence"] - exact) <= 4 * facts["log_evidence_error"] + 0.02
    finite = not isinstance(structure, Diagonal | LastLayer)
    assert np.isfinite(facts["log_evidence_error"]) == finite


def test_variances_left_count_no_more_parameters_than_rows(x64):
    """Of a Jacobian whose traces exceed its rows by far, as a prior kept along most directions would count them."""
    matrix = np.random.default_rng(0).normal(size=(30, 200)) * np.geomspace(30, 0.1, 200)
    left = Diagonal().left(jax.random.key(0), Whitened.of(jnp.asarray(matrix)), float)
    exact = np.diag(np.linalg.inv(np.eye(30) + matrix @ matrix.T))
    assert np.all(np.asarray(left.errors) >= 0)
    assert float(left.errors.sum()) == pytest.approx(exact.sum(), rel=4 * np.sqrt(2 / 32))
    full = Full().left(jax.random.key(0), Whitened.of(jnp.asarray(matrix)), float)
    np.testing.assert_allclose(full.errors, exact, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(full.parameters, np.diag(np.linalg.inv(np.eye(200) + matrix.T @ matrix)), rtol=1e-8)
    data_space = DataSpace(8).left(jax.random.key(0), Whitened.of(jnp.asarray(matrix)), float)
    np.testing.assert_allclose(data_space.errors, exact, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(data_space.parameters, full.parameters, rtol=1e-7, atol=1e-12)
