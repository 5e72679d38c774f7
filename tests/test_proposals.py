"""Action priors and blind policies: variances, correlations and spectra against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
import scipy.stats
from planning_problem import action, reach

from physppl.planning import Autoregressive, Coloured, Multisine, Proposal, RandomPolicy, Spline, White
from physppl.planning.proposals import draw

proposals = [White(), Coloured(1.0), Coloured(2.0), Autoregressive(0.9), Autoregressive(0.0), Spline(2), Spline(6)]


def covariance(proposal, horizon):
    matrix = proposal.matrix(horizon)
    return matrix @ matrix.T


@pytest.mark.parametrize("proposal", proposals, ids=str)
@pytest.mark.parametrize("horizon", [6, 7, 30])
def test_every_step_has_unit_variance(proposal, horizon):
    assert np.allclose(np.diag(covariance(proposal, horizon)), 1.0, atol=1e-12)


def test_white_noise_is_independent():
    assert np.array_equal(covariance(White(), 5), np.eye(5))
    assert np.allclose(covariance(Coloured(0.0), 5), np.eye(5), atol=1e-12)
    assert np.array_equal(covariance(Autoregressive(0.0), 5), np.eye(5))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("horizon", [1, 2, 15, 30])
def test_coloured_noise_has_unit_variance_and_the_right_spectrum(horizon, exponent):
    found = covariance(Coloured(exponent), horizon)
    assert np.allclose(np.diag(found), 1.0, atol=1e-12)
    fourier = np.fft.fft(np.eye(horizon))
    power = np.einsum("fi,ij,fj->f", fourier, found, fourier.conj()).real  # expected |FFT|^2 of the noise
    frequencies = np.arange(1, (horizon + 1) // 2)  # without the constant and the highest
    if len(frequencies) > 1:
        slope = np.diff(np.log(power[frequencies])) / np.diff(np.log(frequencies))
        assert np.allclose(slope, -exponent, atol=1e-9)


@pytest.mark.parametrize("correlation", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("horizon", [1, 2, 40])
def test_autoregressive_noise_correlates_by_the_power_of_the_lag(horizon, correlation):
    lag = np.abs(np.subtract.outer(np.arange(horizon), np.arange(horizon)))
    assert np.allclose(covariance(Autoregressive(correlation), horizon), correlation**lag, atol=1e-12)


@pytest.mark.parametrize("knots, horizon", [(2, 2), (2, 9), (3, 10), (6, 30), (6, 6), (20, 33)])
def test_splines_are_the_natural_interpolants_of_independent_knots(knots, horizon):
    """Against SciPy's spline; two knots are a straight line, as many knots as steps are white."""
    places, steps = np.arange(knots), np.linspace(0, knots - 1, horizon)
    flat = (2, np.zeros(knots))  # no second derivative at an end
    cardinal = scipy.interpolate.CubicSpline(places, np.eye(knots), bc_type=(flat, flat))(steps)
    expected = cardinal @ cardinal.T
    sd = np.sqrt(np.diag(expected))
    assert np.allclose(covariance(Spline(knots), horizon), expected / np.outer(sd, sd), atol=1e-12)
    if knots == 2:
        line = np.stack([1 - steps, steps], axis=1) / np.hypot(1 - steps, steps)[:, None]
        assert np.allclose(covariance(Spline(2), horizon), line @ line.T, atol=1e-12)
    if knots == horizon:
        assert np.allclose(covariance(Spline(knots), horizon), np.eye(horizon), atol=1e-12)


@pytest.mark.parametrize("proposal", proposals, ids=str)
def test_draws_have_the_covariance_of_the_matrix_and_are_independent_between_actions(proposal):
    """Standard error of an entry of a Gaussian's sample second moment: sqrt((1 + c^2) / N). 15^2 entries are judged
    together at a false-alarm rate of 1e-6 (Bonferroni)."""
    horizon, actions, count = 8, 2, 20_000
    noise = np.asarray(draw(jax.random.key(4), proposal, (horizon, actions, count), jnp.float32), float)
    assert noise.shape == (horizon, actions, count)
    flat = np.moveaxis(noise, 1, 0).reshape(-1, count)  # action by action
    expected = np.kron(np.eye(actions), covariance(proposal, horizon))
    z = (flat @ flat.T / count - expected) / np.sqrt((1 + expected**2) / count)
    assert np.abs(z).max() < scipy.stats.norm.isf(1e-6 / z.size / 2)


class Loud(Proposal):
    def matrix(self, horizon):
        return 2 * np.eye(horizon)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Coloured(-1.0), "finite exponent >= 0; got -1.0"),
        (lambda: Coloured(float("nan")), "exponent must be a number; got nan"),
        (lambda: Autoregressive(1.0), r"correlation must lie in \[0, 1\); got 1.0. For a time constant"),
        (lambda: Autoregressive(-0.1), r"correlation must lie in \[0, 1\); got -0.1"),
        (lambda: Spline(1), "at least 2 knots; got 1"),
        (lambda: Spline(7).matrix(6), "knots <= horizon; got 7 knots for 6 steps. Take fewer"),
        (
            lambda: draw(jax.random.key(0), Loud(), (4, 1, 3), float),
            r"Loud.matrix\(4\) must have 4 rows of unit length",
        ),
        (lambda: RandomPolicy(correlation=1.0), r"correlation must lie in \[0, 1\); got 1.0"),
        (lambda: RandomPolicy(amplitude=0.0), r"amplitude must lie in \(0, 1\]; got 0.0"),
        (lambda: Multisine(low=0.0), "0 < low <= high < 0.5 cycles per step"),
        (lambda: Multisine(low=0.2, high=0.1), "0 < low <= high < 0.5 cycles per step"),
        (lambda: Multisine(high=0.5), "0 < low <= high < 0.5 cycles per step"),
        (lambda: Multisine(low=0.02, tones=6), "1 <= tones <= 5, the harmonics of low=0.02 up to high=0.1; got 6"),
        (lambda: Multisine(tones=0), "1 <= tones <= 20"),
        (lambda: Multisine(amplitude=1.1), r"amplitude must lie in \(0, 1\]; got 1.1"),
    ],
)
def test_choices_that_make_no_noise_are_refused_with_the_remedy(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def act(policy, steps, seed=0):
    """(steps, A) of one episode."""

    def body(plan_state, key):
        actions, plan_state, _ = policy.plan(key, None, reach, None, plan_state)
        return plan_state, actions[0]

    keys = jax.random.split(jax.random.key(seed), steps)
    return np.asarray(jax.lax.scan(body, policy.init(action), keys)[1], float)


@pytest.mark.parametrize("amplitude", [1.0, 0.3])
def test_random_actions_are_uniform_and_correlated(amplitude):
    steps, middle = 20_000, (action.low + action.high) / 2
    actions = act(RandomPolicy(correlation=0.6, amplitude=amplitude), steps)
    share = 0.5 + (actions - middle) / (action.high - action.low) / amplitude
    assert np.all(share > -1e-6) and np.all(share < 1 + 1e-6)
    # Effective size of a mean under correlation 0.6 is steps x (1 - 0.6) / (1 + 0.6); four standard errors.
    error = 4 / np.sqrt(steps * 0.25)
    assert np.all(np.abs(share.mean(0) - 0.5) < error * np.sqrt(1 / 12))
    assert np.all(np.abs(share.var(0) - 1 / 12) < error * np.sqrt(1 / 180))
    # Of uniform ranks of a Gaussian pair with correlation r: (6 / pi) asin(r / 2).
    expected = 6 / np.pi * np.arcsin(0.6 / 2)
    found = [np.corrcoef(s[1:], s[:-1])[0, 1] for s in share.T]
    assert np.all(np.abs(np.array(found) - expected) < error)


@pytest.mark.parametrize(
    "policy, period, harmonics",
    [
        (Multisine(), 200, [1, 4, 6, 9, 12, 15, 17, 20]),
        (Multisine(low=0.03, high=0.2, tones=3, amplitude=0.4), 33, [1, 4, 6]),  # 1 / 0.03 is not whole
        (Multisine(low=0.1, high=0.1, tones=1), 10, [1]),
    ],
)
def test_a_multisine_has_its_tones_alone_and_the_stated_peak(policy, period, harmonics):
    """Over a period; in float32 a phase drifts by at most 6e-8 cycles a step."""
    actions = act(policy, 3 * period)
    share = (actions - (action.low + action.high) / 2) / ((action.high - action.low) / 2)
    assert policy.period == period and np.allclose(policy.frequencies, np.array(harmonics) / period)
    for start in (0, period, period + 3):
        spectrum = np.abs(np.fft.rfft(share[start : start + period], axis=0)) / period
        assert np.allclose(spectrum[0], 0.0, atol=1e-4)  # no mean
        assert np.allclose(spectrum[harmonics], spectrum[harmonics[0]], atol=1e-4)
        assert spectrum[harmonics[0]].min() > 0.05 * policy.amplitude
        others = np.setdiff1d(np.arange(len(spectrum)), harmonics)
        assert np.allclose(spectrum[others], 0.0, atol=1e-4)
        assert np.allclose(np.abs(share[start : start + period]).max(0), policy.amplitude, atol=1e-4)
    single = np.float32
    assert np.all(actions >= single(action.low)) and np.all(actions <= single(action.high))


def test_phases_are_drawn_once_an_episode_and_for_each_action():
    policy, first, second = Multisine(), act(Multisine(), 5), act(Multisine(), 5, seed=1)
    assert not np.allclose(first, second, atol=0.01)
    share = (first - action.low) / (action.high - action.low)
    assert not np.allclose(share[:, 0], share[:, 1], atol=0.01)
    _, plan_state, _ = policy.plan(jax.random.key(0), None, reach, None, policy.init(action))
    again = [policy.plan(jax.random.key(k), None, reach, None, plan_state)[0] for k in (1, 2)]
    assert np.array_equal(*again)  # later keys do not matter


def test_a_multisine_starts_without_a_preferred_side():
    """Phases are uniform, so first actions average to the middle: z over 400 episodes, false alarms 1e-6."""
    policy = Multisine()
    plan = jax.jit(jax.vmap(lambda key: policy.plan(key, None, reach, None, policy.init(action))[0][0]))
    firsts = np.asarray(plan(jax.random.split(jax.random.key(7), 400)), float)
    z = (firsts - (action.low + action.high) / 2).mean(0) / (firsts.std(0, ddof=1) / np.sqrt(400))
    assert np.all(np.abs(z) < scipy.stats.norm.isf(1e-6 / 4))
    assert np.all(firsts.std(0) > 0.1 * (action.high - action.low) / 2)
