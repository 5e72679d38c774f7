"""Identifiability: against closed forms, exact where the data touch nothing, in words that name it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.linalg
from helpers import (
    example,
    linear_data,
    linear_dynamics,
    linear_features,
    linear_mean,
    linear_noise,
    linear_sd,
    recording,
)

import physppl as pp
from physppl.density import moments
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import DrawsPosterior, Laplace
from physppl.models import pendulum
from physppl.posterior.combinations import compare

space = pp.StateSpace(level=pp.Real("m"))
action = pp.ActionSpace(valve=pp.Bounded(-1.0, 1.0))


@functools.cache
def tank(rate, noise=0.05) -> pp.Dynamics:
    """level' = level + rate() u; `rate` samples the sites."""

    def program():
        gain = rate()
        return pp.Step(lambda t, x, u: x + gain * u)

    return pp.Dynamics(program, space, action, dt=0.1, process_noise=noise)


def tank_data(rows=50, gain=0.7, noise=0.05) -> pp.Transitions:
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(rows, 1)), rng.uniform(-1, 1, (rows, 1))
    return pp.Transitions(states, actions, states + gain * actions + noise * rng.normal(size=(rows, 1)))


def product():
    return pp.physical("a", dist.LogNormal(0.0, 0.5), unit="m") * pp.physical("b", dist.LogNormal(0.0, 0.5))


def linear_posterior(data):
    """Covariances before and after of Bayesian linear regression, in plain NumPy."""
    phi = np.concatenate([linear_features(np, x, u) for x, u in zip(data.states, data.actions, strict=True)])
    whitened = phi / np.tile(linear_noise, len(data))[:, None]
    before = np.diag(linear_sd**2)
    return before, np.linalg.inv(np.linalg.inv(before) + whitened.T @ whitened)


def test_a_linear_program_gives_the_eigenvalues_of_regression():
    data = linear_data(rows=6)
    before, after = linear_posterior(data)
    report = pp.identifiability(linear_dynamics(), data.inputs)
    assert report.names == ("drift", "gain", "weights[0]", "weights[1]") and report.units[0] == "m"
    np.testing.assert_allclose(report.eigenvalues, scipy.linalg.eigh(after, before, eigvals_only=True), rtol=1e-9)
    np.testing.assert_allclose(report.contraction, 1 - np.diag(after) / np.diag(before), rtol=1e-9)
    np.testing.assert_allclose(report.values, linear_mean, atol=1e-12)  # before a fit: the prior's median
    np.testing.assert_allclose(report.sds, np.sqrt(np.diag(after)), rtol=1e-9)
    rows = report.directions / linear_sd  # as functionals of the parameters themselves
    np.testing.assert_allclose(rows @ after @ rows.T, np.diag(np.diag(rows @ after @ rows.T)), atol=1e-12)
    ratio = np.diag(rows @ after @ rows.T) / np.diag(rows @ before @ rows.T)
    np.testing.assert_allclose(ratio, report.eigenvalues, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(report.directions, axis=1), 1.0)


def test_after_a_fit_it_is_the_same_belief():
    data = linear_data(rows=6)
    before, after = linear_posterior(data)
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), data, Laplace(starts=2))
    report = pp.identifiability(posterior)
    np.testing.assert_allclose(report.eigenvalues, scipy.linalg.eigh(after, before, eigvals_only=True), rtol=1e-9)
    draws = np.random.default_rng(1).multivariate_normal(np.zeros(4), after, size=(4, 5000))
    with jax.enable_x64(True):
        sampled = DrawsPosterior(posterior.model, posterior.data, posterior.space, jnp.asarray(draws))
    found = pp.identifiability(sampled).eigenvalues
    np.testing.assert_allclose(found / report.eigenvalues, 1.0, atol=5 * np.sqrt(2 / 20_000))  # a variance's own error


def test_what_the_data_do_not_touch_keeps_its_variance_exactly():
    def with_spare():
        pp.physical("spare", dist.HalfNormal(2.0), unit="V")
        return product()

    for data in (tank_data(), tank_data().inputs):
        report = pp.identifiability(tank(with_spare), data)
        assert report.names == ("spare", "a", "b")
        np.testing.assert_allclose(report.eigenvalues[1:], 1.0, rtol=0, atol=1e-6)
        # s = sum u^2 gain^2 / noise^2 of each log factor, at the prior's median gain of 1
        signal = 0.25 * np.sum(data.actions**2) / 0.05**2
        np.testing.assert_allclose(report.eigenvalues[0], 1 / (1 + 2 * signal), rtol=1e-9)
        np.testing.assert_allclose(report.sensitivity[1:], np.sqrt(signal), rtol=1e-9)
        assert [report.combination(i) for i in range(3)] == ["+0.71 a +0.71 b", "+1.00 spare", "+0.71 a -0.71 b"]
        assert report.unused == ("spare",)
        verdicts = [report.verdict(i) for i in range(3)]
        assert verdicts == ["no prediction depends on it", "in part", "in part"]


def test_a_fit_and_a_question_at_its_mode_agree():
    data = recording(pendulum.dynamics(), pendulum.truth, steps=60, noise=0.01)
    posterior = pp.fit(jax.random.key(0), pendulum.dynamics(), data, Laplace(starts=2))
    after = pp.identifiability(posterior)
    with jax.enable_x64(True):
        sites = posterior.space.sites(posterior.model, posterior.mode, posterior.data)
    asked = pp.identifiability(pendulum.dynamics(), data, at=sites)
    np.testing.assert_allclose(asked.eigenvalues, after.eigenvalues, rtol=1e-6)
    np.testing.assert_allclose(asked.sds, after.sds, rtol=1e-6)
    assert after.marginalised == ("process_noise",)
    # noise and physics do not correlate in one-step data, so the posterior's own covariance says nearly the same: the
    # average over the noise's posterior, of 60 rows, in place of the one at its mean. The priors' sds are 1.
    covariance = np.asarray(posterior.factor).T @ np.asarray(posterior.factor)
    np.testing.assert_allclose(1 - after.contraction, np.diag(covariance)[:3], rtol=0.02)


@pytest.mark.science
def test_noise_is_integrated_out_of_recordings():
    """There the filter's spread ties noise to physics; all priors are Gaussian in virtual space."""
    truth = recording(pendulum.dynamics(), pendulum.truth, steps=80, noise=0.01)
    prior = dist.LogNormal(-4.0, 1.0)
    dynamics = pendulum.dynamics(sensors=("angle",), process_noise=prior, measurement_noise=prior)
    data = pp.Trajectories(truth.states[:, :1], truth.actions, dt=0.05)
    posterior = pp.fit(jax.random.key(0), dynamics, data, Laplace(starts=2))
    report = pp.identifiability(posterior)
    assert report.names == ("mass", "length", "damping")
    assert report.marginalised == ("process_noise", "measurement_noise")
    covariance = (np.asarray(posterior.factor).T @ np.asarray(posterior.factor))[:3, :3]
    np.testing.assert_allclose(report.eigenvalues, np.linalg.eigvalsh(covariance), rtol=1e-6)
    design = pp.identifiability(dynamics, data.inputs)  # without readings it follows simulated ones
    assert design.names == report.names and np.all((design.eigenvalues > 0) & (design.eigenvalues < 1 + 1e-9))


def test_the_prior_is_exact_where_it_is_gaussian():
    def program():
        numpyro.sample("free", dist.Normal(0.3, 2.0))
        pp.physical("bounded", 1.0, 3.0, loc=0.5, scale=0.2)
        pair = dist.MultivariateNormal(np.array([1.0, -1.0]), np.array([[2.0, 0.7], [0.7, 1.0]]))
        numpyro.sample("pair", pair)
        numpyro.sample("positive", dist.HalfNormal(3.0))
        top = numpyro.sample("top", dist.Normal(0.0, 1.0))
        numpyro.sample("below", dist.Normal(0.0, jnp.exp(top)))
        return pp.Step(lambda t, x, u: x)

    model = pp.Dynamics(program, space, action, dt=0.1, process_noise=1.0)
    data = tank_data(8)
    with jax.enable_x64(True):
        median, covariance = moments.prior(UnconstrainedSpace.of(model, data), model, data)
    exact = scipy.linalg.block_diag(4.0, 0.04, [[2.0, 0.7], [0.7, 1.0]])
    np.testing.assert_allclose(median[:4], [0.3, 0.5, 1.0, -1.0], atol=1e-9)
    np.testing.assert_allclose(covariance[:4, :4], exact, atol=1e-7)
    np.testing.assert_allclose(covariance[:4, 4:], 0.0)
    # log |N(0, 9)|: variance pi^2 / 8 and median log(3 * 0.6745); 4,000 draws, its fourth central moment 16.4
    assert median[4] == pytest.approx(np.log(3 * 0.67449), abs=5 * 1.2 / np.sqrt(4000))
    assert covariance[4, 4] == pytest.approx(np.pi**2 / 8, abs=5 * np.sqrt((16.4 - 1.52) / 4000))
    # `top` is Gaussian, but the conditional below it is no Gaussian's: both are left to the draws
    assert covariance[5, 5] == pytest.approx(1.0, abs=5 * np.sqrt(2 / 4000)) and covariance[5, 5] != 1.0


def test_equal_eigenvalues_are_told_in_single_parameters_where_that_can_be():
    before = np.diag([1.0, 4.0, 9.0, 0.25, 1.0])
    mixed = np.array([0.6, 0.0, 0.0, 0.8, 0.0])  # the one direction learnt, in prior sds
    root = np.sqrt(before)
    after = root @ (np.eye(5) - 0.99 * np.outer(mixed, mixed)) @ root
    eigenvalues, rows = compare(before, after)
    np.testing.assert_allclose(eigenvalues, [0.01, 1, 1, 1, 1], atol=1e-12)
    np.testing.assert_allclose(rows[0], [0.6, 0, 0, 0.8, 0], atol=1e-9)
    np.testing.assert_allclose(np.sort(rows[1:4], axis=0)[::-1][:1], [[0, 1, 1, 0, 1]], atol=1e-9)
    np.testing.assert_allclose(rows[4], [0.8, 0, 0, -0.6, 0], atol=1e-9)


def test_weights_are_integrated_out():
    def program():
        rate = pp.physical("rate", 0.0, 1.0, unit="1/s")
        residual = pp.residual("residual", space, action, width=16)
        return pp.step_residual(pp.Step(lambda t, x, u: x + rate * u), residual)

    dynamics = pp.Dynamics(program, space, action, dt=0.1, process_noise=0.05)
    report = pp.identifiability(dynamics, tank_data(200))
    assert report.names == ("rate",) and report.marginalised == ("residual",)
    alone = pp.identifiability(tank(lambda: pp.physical("rate", 0.0, 1.0)), tank_data(200))
    assert report.eigenvalues[0] > 2 * alone.eigenvalues[0]  # a residual that can do the same leaves less to know


@pytest.mark.parametrize(("scale", "shared"), [(3.0, True), (0.01, False)])
def test_a_residual_that_can_do_the_same_is_named(scale, shared, x64):
    """The rate's sd if the weights were known, from the dense covariance, and the reason in the check."""

    def program():
        rate = numpyro.sample("rate", dist.Normal(0.0, 1.0))
        residual = pp.residual("residual", space, action, width=16, scale=scale)
        return pp.step_residual(pp.Step(lambda t, x, u: x + rate * u), residual)

    posterior = pp.fit(
        jax.random.key(0), pp.Dynamics(program, space, action, dt=0.1, process_noise=0.05), tank_data(), Laplace()
    )
    report, (_, covariance) = pp.identifiability(posterior), posterior.unconstrained().moments()
    covariance = np.asarray(covariance)
    known = 1 / np.linalg.inv(covariance)[0, 0]
    np.testing.assert_allclose(report.held, known / covariance[0, 0], rtol=1e-5)
    told = [r for r in posterior.check().reasons if "explain each other's share" in r.finding]
    assert bool(told) == shared and (report.verdict(0) == "shared with the weights") == shared


def test_the_report_reads():
    lines = str(pp.identifiability(tank(product), tank_data())).splitlines()
    assert lines[0].endswith("| 50 transitions | before a fit, at the prior's median")
    assert lines[1] == "1 of 2 combinations determined, 1 not"
    assert lines[3].split("  ")[0] == "variance left" and lines[5].split() == ["1", "+0.71", "a", "-0.71", "b"]
    assert lines[8].split()[:4] == ["a", "1.00", "0.35", "m"]  # half of the prior's variance is left: 0.5 / sqrt(2)


def test_mistakes_are_named():
    dynamics, data = tank(product), tank_data()
    posterior = Laplace(starts=1).prior(jax.random.key(0), dynamics)
    with pytest.raises(TypeError, match="Dynamics without data"):
        pp.identifiability(dynamics)
    with pytest.raises(TypeError, match="takes no data and no point"):
        pp.identifiability(posterior, data)
    with pytest.raises(KeyError, match="no site 'c'"):
        pp.identifiability(dynamics, data, at={"c": 1.0})
    with pytest.raises(ValueError, match="a = -1.0 is outside"):
        pp.identifiability(dynamics, data, at={"a": -1.0})
    with pytest.raises(ValueError, match="states must have 1 columns"):
        pp.identifiability(dynamics, linear_data())


def two_link(repeats: int) -> int:
    """The claim about the two-link arm, but for its coverage, which is returned: repeats whose ellipsoid holds."""
    found = example("two_link_identification").measures(repeats)
    for first, second in found:
        for part, count in ((first, 1), (second, 3)):
            assert np.all(part["eigenvalues"][:count] < 0.1)
            np.testing.assert_allclose(part["eigenvalues"][count:], 1.0, rtol=0, atol=1e-6)
        assert first["link 1"] >= 0.95  # of the prior's sd: nothing was learnt about it
        assert np.all(second["combinations"] <= 0.2)
    return sum(second["covered"] for _, second in found)


@pytest.mark.science
def test_two_data_sets_identify_one_and_three_combinations_of_the_arm():
    assert two_link(10) >= 8  # of a right 95 % ellipsoid: in 98.8 of 100 such tests


@pytest.mark.science
def test_a_hundred_arms_are_covered():
    assert 90 <= two_link(100) <= 99  # of a right 95 % ellipsoid: in 98.3 of 100 such tests
