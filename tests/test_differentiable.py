"""A fit as a function: its derivatives in both modes, its density, and a prior that takes any kind of data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import drawn
from scipy import stats

import physppl as pp
from physppl.inference import Laplace
from physppl.internal.precision import doubles
from physppl.posterior.backend import empty, union

state, action = pp.StateSpace(x=pp.Real("m")), pp.ActionSpace(u=pp.Bounded(-1.0, 1.0, "N"))
BACKEND = Laplace(starts=2, differentiable=True)


def program(loc=0.0):
    rate = pp.physical("rate", dist.LogNormal(loc, 1.0), unit="1/s")
    return lambda t, x, u: -rate * x + u


def decay(sensed: bool, loc=0.0) -> pp.Dynamics:
    sensors = {"sensors": ("x",)} if sensed else {}
    return pp.Dynamics(lambda: program(loc), state, action, dt=0.1, **sensors)


def outcomes(sensed: bool):
    rng = np.random.default_rng(0)
    x, u = [1.0], np.sin(0.3 * np.arange(24))[:, None]
    for k in range(24):
        x.append(x[-1] * np.exp(-0.13) + 0.1 * u[k, 0] + 0.01 * rng.normal())
    x = np.array(x)[:, None]
    return pp.Trajectories(x[:-1], u, dt=0.1) if sensed else pp.Transitions(x[:-1], u, x[1:])


@pytest.mark.parametrize("sensed", [False, pytest.param(True, marks=pytest.mark.science)])
def test_derivatives_of_a_fit_are_those_of_refits(sensed, x64):
    """Of mode, factor and evidence along a change of the outcomes, against differences of fourth order."""
    data = jax.tree.map(jnp.asarray, doubles(outcomes(sensed)))
    field = data.outcome_field

    @jax.jit
    def fit(shift):
        moved = getattr(data, field) + shift * jnp.sin(jnp.arange(len(data), dtype=float))[:, None]
        changed = eqx.tree_at(lambda d: getattr(d, field), data, moved)
        posterior = BACKEND.fit(jax.random.key(0), decay(sensed), changed)
        return jnp.concatenate([posterior.mode, posterior.factor.ravel(), posterior.log_evidence[None]])

    h, at = 2e-4, 1e-3
    steps = [fit(at + k * h) for k in (1, -1, 2, -2)]
    differences = (8 * (steps[0] - steps[1]) - (steps[2] - steps[3])) / (12 * h)
    scale = np.abs(differences).max()
    forward, reverse = jax.jacfwd(fit)(at), jax.jacrev(fit)(at)
    np.testing.assert_allclose(forward, differences, atol=1e-6 * scale)
    np.testing.assert_allclose(reverse, forward, atol=1e-9 * scale)


@pytest.mark.science
def test_evidence_has_derivatives_in_what_a_program_closes_over(x64):
    """By the prior's location, against the difference of two fits."""
    data = jax.tree.map(jnp.asarray, doubles(outcomes(False)))

    def evidence(loc):
        return BACKEND.fit(jax.random.key(0), decay(False, loc), data).log_evidence

    slope, h = float(jax.grad(evidence)(0.2)), 1e-4
    assert slope == pytest.approx(float(evidence(0.2 + h) - evidence(0.2 - h)) / (2 * h), rel=1e-5)


@pytest.mark.science
def test_a_differentiable_fit_says_that_it_kept_one_search(x64):
    posterior = pp.fit(jax.random.key(0), decay(False), outcomes(False), BACKEND)
    assert "other modes: the fit kept one search alone" in posterior.check().not_checked


def test_log_prob_is_the_density_of_samples(x64):
    posterior = pp.fit(jax.random.key(0), decay(False), outcomes(False), Laplace())
    mean, covariance = (np.asarray(x) for x in posterior.unconstrained().moments())
    z = mean + 0.3 * np.sqrt(np.diag(covariance))
    values = {"rate": np.exp(z[0]), "process_noise": np.exp(z[1:])}
    gaussian = stats.multivariate_normal.logpdf(z, mean, covariance)
    assert float(posterior.log_prob(values)) == pytest.approx(gaussian - z.sum(), rel=1e-5)
    with pytest.raises(KeyError, match="log_prob has no value of site 'process_noise'"):
        posterior.log_prob({"rate": 1.0})
    with pytest.raises(TypeError, match="log_prob needs a Gaussian of full rank"):
        drawn(posterior).log_prob({})


def test_after_a_prior_come_data_of_any_kind():
    rows, recordings = outcomes(False), outcomes(True)
    assert union(empty(decay(True)), recordings) is recordings
    with pytest.raises(TypeError, match="update: the posterior is of Transitions; got Trajectories"):
        union(rows, recordings)


@pytest.mark.science
def test_a_prior_is_updated_by_recordings():
    prior = Laplace().prior(jax.random.key(0), decay(True))
    updated = Laplace().update(jax.random.key(0), prior, outcomes(True))
    fitted = pp.fit(jax.random.key(0), decay(True), outcomes(True), Laplace())
    np.testing.assert_allclose(updated.mode, fitted.mode, atol=1e-6)
