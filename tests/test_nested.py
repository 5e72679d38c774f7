"""Nested Laplace against integrals done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
from helpers import linear_data, linear_dynamics, linear_features, linear_mean, linear_noise, linear_sd

import physppl as pp
from physppl.inference import HMC, NestedLaplace

VALUES, ERRORS = np.array([1.3, -0.4, 2.2, 0.1, 0.9, 3.0]), np.array([0.3, 0.5, 0.2, 0.8, 0.4, 1.0])


def schools(data):
    """Effects of a population with unknown centre and spread, non-centred, each measured once."""
    centre = numpyro.sample("centre", dist.Normal(0.0, 2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("member", len(VALUES)):
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
        effect = numpyro.deterministic("effect", centre + spread * offset)
        numpyro.sample("value", dist.Normal(effect, ERRORS), obs=data)


def by_quadrature():
    """Log evidence, mean and sd of the spread, and of the first effect: Gaussian given the spread."""
    grid = np.linspace(1e-3, 6.0, 4000)
    log_weights, means, seconds = [], [], []
    for s in grid:
        covariance = np.diag(s**2 + ERRORS**2) + 4.0
        log_weights.append(scipy.stats.multivariate_normal.logpdf(VALUES, np.zeros(6), covariance))
        cross = np.full(6, 4.0) + s**2 * np.eye(6)[0]
        gain = np.linalg.solve(covariance, cross)
        means.append(gain @ VALUES)
        seconds.append(4.0 + s**2 - gain @ cross + means[-1] ** 2)
    log_weights = np.array(log_weights) + scipy.stats.halfnorm.logpdf(grid)
    weights = np.exp(log_weights - log_weights.max())
    evidence = np.log(np.sum(weights) * (grid[1] - grid[0])) + log_weights.max()
    share = weights / np.sum(weights)
    mean, first = share @ grid, share @ np.array(means)
    return evidence, (mean, np.sqrt(share @ grid**2 - mean**2)), (first, np.sqrt(share @ np.array(seconds) - first**2))


def test_a_hierarchy_is_integrated_over_its_spread(x64):
    """Exact given the spread; what is left is the noise of the points in effect and of 4,000 draws."""
    posterior = pp.fit(jax.random.key(0), schools, jnp.asarray(VALUES), NestedLaplace("spread", draws=4000))
    evidence, spread, effect = by_quadrature()
    facts, samples = posterior.facts(), posterior.samples(jax.random.key(1))
    assert facts["points_in_effect"] > 100
    error = 4 / np.sqrt(facts["points_in_effect"])
    assert abs(facts["log_evidence"] - evidence) < error
    for values, (mean, sd) in ((samples["spread"], spread), (samples["effect"][:, 0], effect)):
        assert abs(np.mean(values) - mean) < error * sd
        assert abs(np.std(values) / sd - 1) < error


@pytest.mark.science
def test_where_all_is_gaussian_it_is_bayesian_linear_regression(x64):
    data = linear_data(rows=40)
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), data, NestedLaplace("gain", draws=4000))
    rows = np.concatenate([linear_features(np, x, u) for x, u in zip(data.states, data.actions, strict=True)])
    noise = np.tile(linear_noise, len(data))
    rows, change = rows / noise[:, None], (data.next_states - data.states).ravel() / noise
    covariance = np.linalg.inv(np.diag(linear_sd**-2.0) + rows.T @ rows)
    mean, sd = covariance @ (linear_mean / linear_sd**2 + rows.T @ change), np.sqrt(np.diag(covariance))
    points, error = np.asarray(posterior.points[0]), 4 / np.sqrt(posterior.facts()["points_in_effect"])
    assert np.all(np.abs(points.mean(axis=0) - mean) < error * sd)
    assert np.all(np.abs(points.std(axis=0) / sd - 1) < error)
    marginal = scipy.stats.multivariate_normal.logpdf(
        change - rows @ linear_mean, np.zeros(len(change)), (rows * linear_sd**2) @ rows.T + np.eye(len(change))
    )
    assert abs(posterior.facts()["log_evidence"] - (marginal - np.sum(np.log(noise)))) < error


@pytest.mark.science
def test_it_agrees_with_hmc_on_the_hierarchy(x64):
    nested = pp.fit(jax.random.key(0), schools, jnp.asarray(VALUES), NestedLaplace("spread", draws=4000))
    exact = pp.fit(jax.random.key(1), schools, jnp.asarray(VALUES), HMC(draws=2000, chains=4))
    ours, theirs = (p.samples(jax.random.key(2)) for p in (nested, exact))
    for name in ("centre", "spread", "effect"):
        mean, sd = np.mean(theirs[name], axis=0), np.std(theirs[name], axis=0)
        assert np.all(np.abs(np.mean(ours[name], axis=0) - mean) < 0.3 * sd)
        assert np.all(np.abs(np.std(ours[name], axis=0) / sd - 1) < 0.2)


@pytest.mark.science
def test_means_are_where_the_gaussian_is_nearest_to_a_skewed_density(x64):
    """Of exp(z) measured once: the expected gradient at a Gaussian is known, and vanishes at the corrected mean."""
    value, error, prior = 1.5, 0.6, 3.0

    def skewed(data):
        numpyro.sample("other", dist.Normal(0.0, 1.0))
        z = numpyro.sample("z", dist.Normal(0.0, prior))
        numpyro.sample("value", dist.Normal(jnp.exp(z), error), obs=data)

    posterior = pp.fit(jax.random.key(0), skewed, jnp.asarray(value), NestedLaplace("other", draws=4000))
    mode = scipy.optimize.brentq(lambda z: (value - np.exp(z)) * np.exp(z) / error**2 - z / prior**2, 0.0, 1.0)
    variance = 1 / (prior**-2 + (np.exp(mode) / error) ** 2)

    def slope(m):
        return (value * np.exp(m + variance / 2) - np.exp(2 * m + 2 * variance)) / error**2 - m / prior**2

    mean, drawn = scipy.optimize.brentq(slope, -2.0, 1.0), np.asarray(posterior.samples(jax.random.key(1))["z"])
    assert mode - mean > 0.25 * np.sqrt(variance)
    assert abs(drawn.mean() - mean) < 0.1 * np.sqrt(variance)  # of eight pairs of points, new at every proposal
    assert abs(drawn.std() / np.sqrt(variance) - 1) < 0.1


def test_what_cannot_be_is_refused():
    fit = lambda backend: pp.fit(jax.random.key(0), schools, jnp.asarray(VALUES), backend)  # noqa: E731
    with pytest.raises(KeyError, match="no latent site 'spreads'.*spread"):
        fit(NestedLaplace("spreads"))
    with pytest.raises(ValueError, match="outer has 8 of the 8 numbers of centre, spread, offset"):
        fit(NestedLaplace(("centre", "spread", "offset")))
    with pytest.raises(ValueError, match="points >= 16"):
        NestedLaplace("spread", points=3)
    with pytest.raises(ValueError, match="must name the sites"):
        NestedLaplace(())
