"""Tests of fit on innovations that are drawn: the null passes, each planted misfit is told by its own kind."""

import jax
import numpy as np
import pytest
from helpers import linear_data, linear_dynamics
from scipy import stats

import physppl as pp
from physppl.density.moments import log_joint_and_outcomes
from physppl.inference import Laplace
from physppl.posterior import fit_tests
from physppl.posterior.innovations import Innovations, normal_scores, of_functions, of_sites

ROWS = 240


def drawn(seed: int, rows: int = ROWS, recordings: int = 1, **changes) -> Innovations:
    """Innovations of a right model: two coordinates, a slow motion, one input."""
    rng = np.random.default_rng(seed)
    shape = (recordings, rows, 2)
    expected = rng.normal(size=shape)
    for k in range(1, rows):
        expected[:, k] = 0.9 * expected[:, k - 1] + 0.44 * expected[:, k]
    inputs = np.repeat(rng.normal(size=(recordings, rows // 4 + 1, 1)), 4, axis=1)[:, :rows]
    times = np.broadcast_to(0.1 * np.arange(rows), shape[:2])
    fields = dict(
        errors=rng.normal(size=shape), expected=expected, seen=np.ones(shape, bool), times=times, inputs=inputs, lag=0,
        names=("x", "v"), input_names=("u",), row="reading",
        parts=tuple(f"recording {r}" for r in range(recordings)), parameters=4, noise_is_known=True,
    )  # fmt: skip
    return Innovations(**fields | changes)


def findings(innovations: Innovations) -> str:
    return "\n".join(reason.finding for reason in fit_tests.judge(innovations)[0])


def with_errors(innovations: Innovations, change) -> Innovations:
    errors = innovations.errors.copy()
    change(errors)
    return innovations._replace(errors=errors)


@pytest.mark.parametrize(("rows", "recordings"), [(20, 1), (ROWS, 1), (60, 5)])
def test_right_models_are_not_accused(rows, recordings):
    """At most .7 % of them, by Bonferroni: more than 9 of 400 have a probability of 1e-3."""
    accused = [seed for seed in range(400) if findings(drawn(seed, rows, recordings))]
    assert len(accused) <= 9


def scaled(factor):
    return lambda e: np.multiply(e, factor, out=e)


def autoregressive(e):
    for k in range(1, e.shape[1]):
        e[:, k, 1] = 0.4 * e[:, k - 1, 1] + np.sqrt(1 - 0.4**2) * e[:, k, 1]


def offset(e):
    e[..., 1] += 0.5


def outlier(e):
    e[0, 57, 0] = 6.0


def stretch(e):
    e[0, 100:116] *= 2.6


def heavy(e):
    rng = np.random.default_rng(5)
    e[..., 0] = np.clip(rng.standard_t(2.5, size=e.shape[:2]) / 1.6, -3.9, 3.9)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (scaled(1.3), "are 1.4"),
        (scaled(0.7), "are only 0."),
        (autoregressive, "errors of v are correlated, +0.3"),
        (offset, "errors of v have the mean +0."),
        (outlier, "of up to 6.0 sds: x at 5.7 s"),
        (stretch, "times their usual size from"),
        (heavy, "errors of x have heavy tails"),
    ],
)
def test_each_misfit_is_told_by_its_kind(change, told):
    assert told in findings(with_errors(drawn(1), change))


@pytest.mark.parametrize(("power", "named"), [(2, "the square of x"), (3, "the cube of x")])
def test_missing_forces_show_their_shape(power, named):
    innovations = drawn(2)
    level = innovations.expected[..., 0]
    level = (level - level.mean()) / level.std()

    def change(errors):
        errors[..., 1] += 0.4 * level**power

    assert f"errors of v depend on {named}" in findings(with_errors(innovations, change))


def test_a_first_state_off_its_prior_is_no_outlier():
    innovations = drawn(1, lag=1)
    for row, told in ((1, "give it (`start=`), or larger scales"), (9, "mark them (`valid=`")):
        errors = innovations.errors.copy()
        errors[0, row, 0] = 6.0
        reasons, _ = fit_tests.judge(innovations._replace(errors=errors))
        assert told in " ".join(map(str, reasons)), reasons


def test_delayed_inputs_show_at_their_lag():
    innovations = drawn(3)
    inputs = innovations.inputs
    assert inputs is not None

    def change(errors):
        errors[:, 3:, 0] += 0.5 * inputs[:, :-3, 0]

    assert "errors of x correlate with u" in findings(with_errors(innovations, change))
    wrong = with_errors(innovations, change)
    correlations, pairs = fit_tests.cross_correlation(wrong, inputs[..., 0], range(8))
    assert np.argmax(np.abs(correlations[:, 0])) == 3 and pairs[3, 0] == ROWS - 3
    by_hand = np.corrcoef(wrong.errors[0, 3:, 0], inputs[0, :-3, 0])[0, 1]  # about means, which are small
    assert correlations[3, 0] == pytest.approx(by_hand, abs=0.02)


def test_inputs_chosen_after_a_reading_are_no_misfit():
    """Feedback: an input that is computed from a reading correlates with its error, and with no later one."""
    innovations = drawn(4)
    fed_back = innovations._replace(inputs=-innovations.errors[..., :1].copy())
    assert findings(fed_back._replace(lag=1)) == ""
    assert "correlate with u of the same step" in findings(fed_back)


def test_a_flexible_fit_may_be_negatively_correlated():
    """Errors about a moving average of themselves, as of a model with a parameter for every third row."""
    innovations = drawn(5)
    errors = innovations.errors
    smooth = (errors + np.roll(errors, 1, axis=1) + np.roll(errors, -1, axis=1)) / 3
    left = innovations._replace(errors=errors - smooth, noise_is_known=False)
    assert "correlated" in findings(left)
    assert "correlated" not in findings(left._replace(parameters=ROWS * 2 // 3))


def test_autocorrelation_counts_pairs_that_were_seen():
    innovations = drawn(6, rows=50, recordings=2)
    seen = innovations.seen.copy()
    seen[1, 20:30, 0] = False
    errors = np.where(seen, innovations.errors, 0.0)
    ours, pairs = fit_tests.autocorrelation(innovations._replace(errors=errors, seen=seen), lags=3)
    counted = errors[..., 0][seen[..., 0]]
    variance = np.var(counted)
    values = [
        (errors[r, k, 0] - counted.mean()) * (errors[r, k + 2, 0] - counted.mean())
        for r in range(2)
        for k in range(48)
        if seen[r, [k, k + 2], 0].all()
    ]
    assert pairs[1, 0] == len(values)
    assert ours[1, 0] == pytest.approx(np.mean(values) / variance)


def test_innovations_of_transitions_are_the_errors_in_noise_sds(x64):
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), linear_data(rows=40), Laplace())
    form = posterior.unconstrained()
    *_, sites = log_joint_and_outcomes(form.space, posterior.model, posterior.data, form.mode[None])
    innovations = of_sites(posterior, form.space, sites)
    rows = np.asarray(posterior.data.valid)
    predicted = posterior.predict(posterior.data.states, posterior.data.actions).mean
    errors = (np.asarray(posterior.data.next_states) - predicted) / np.asarray(posterior.noise())
    np.testing.assert_allclose(innovations.errors[0][rows], errors[rows], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(of_functions(posterior).errors, innovations.errors, rtol=1e-9, atol=1e-9)
    assert not innovations.seen[0][~rows].any() and innovations.lag == 0


def test_student_errors_become_normal_by_their_rank():
    ranks = np.array([1e-9, 0.01, 0.3, 0.5, 0.8, 0.999])
    errors = stats.t.ppf(ranks, 4.0)
    np.testing.assert_allclose(normal_scores(errors, np.asarray(4.0)), stats.norm.ppf(ranks), atol=1e-8)
    assert np.isfinite(normal_scores(np.array([1e150]), np.asarray(3.0))).all()
