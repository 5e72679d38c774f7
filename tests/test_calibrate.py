"""Calibration sees what it should and nothing else: exact beliefs pass, planted defects do not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import (
    example,
    linear_action,
    linear_data,
    linear_dynamics,
    linear_mean,
    linear_noise,
    linear_program,
    linear_sd,
    linear_state,
)
from scipy import stats

import physppl as pp
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.evaluation import rank_tests
from physppl.evaluation.calibration import Calibration, calibrate
from physppl.inference import HMC, DrawsPosterior, Laplace
from physppl.internal.errors import Status
from physppl.models import pendulum
from physppl.posterior.backend import Backend


@pytest.fixture(scope="module")
def exact() -> Calibration:
    """Laplace is exact on a linear program with known noise."""
    return calibrate(jax.random.key(0), linear_dynamics(), linear_data(rows=6), Laplace(starts=1), datasets=300)


def test_an_exact_belief_is_not_rejected(exact):
    assert exact.failed == 0 and exact.ranks.shape == (300, 4)
    assert exact.names == ("drift", "gain", "weights[0]", "weights[1]")
    assert exact.passed, exact
    for row in exact.table:
        assert row["ks"] > exact.each and row["coverage"] > exact.each


def test_its_truths_come_from_the_prior(exact):
    z = (exact.truths - linear_mean) / linear_sd
    for column in z.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3


@pytest.mark.parametrize("defect", [{"scale": 0.7}, {"scale": 1.5}, {"bias": 0.4}, {"bias": -0.4}])
def test_planted_defects_are_rejected(exact, defect):
    """`power` says that 300 data sets see each of them nearly always."""
    assert rank_tests.power(300, quantities=4, level=1e-3, runs=200, **defect) > 0.98
    assert exact.planted(**defect).rejected


def test_functions_are_ranked_at_fixed_inputs():
    dynamics, at = linear_dynamics(), linear_data(seed=5, rows=3)
    found = calibrate(
        jax.random.key(1), dynamics, linear_data(rows=6), Laplace(starts=1, linearised=True), datasets=200, at=at
    )
    assert found.names[:3] == ("level at 0", "flow at 0", "level at 1")
    assert found.passed, found
    assert found.planted(scale=0.6).rejected


def test_the_last_batch_is_cut_and_more_data_sets_begin_with_the_same(exact):
    fewer = calibrate(jax.random.key(0), linear_dynamics(), linear_data(rows=6), Laplace(starts=1), datasets=60)
    assert fewer.draws.shape == (60, 99, 4)
    assert np.array_equal(fewer.draws, exact.draws[:60])


class Numbered(Backend):
    """A belief of 397 given draws: their numbers, in every parameter."""

    def fit(self, key, model, data):
        space = UnconstrainedSpace.of(model, data)
        points = jnp.broadcast_to(jnp.arange(397.0)[None, :, None], (1, 397, space.size))
        return DrawsPosterior(model, data, space, points)


def test_ranked_draws_are_spaced_evenly():
    found = calibrate(jax.random.key(0), linear_dynamics(), linear_data(rows=1), Numbered(), datasets=1, draws=5)
    assert np.array_equal(found.draws[0, :, 0], [0, 99, 198, 297, 396])


@pytest.mark.science
def test_recordings_are_simulated_and_ranked():
    """One length of a pendulum, read by noisy sensors: 200 sets see a planted defect."""
    dynamics = pendulum.dynamics(
        pendulum.program_with(mass=1.0, damping=0.05), process_noise=1e-3, measurement_noise=(0.02, 0.1)
    )
    actions = np.sin(np.arange(12.0))[:, None]
    design = pp.Trajectories(None, actions, dt=0.05, start=([1.0, 0.0], [1e-2, 1e-2]))
    found = calibrate(jax.random.key(3), dynamics, design, Laplace())
    assert found.names == ("length",) and found.passed, found
    for defect in ({"scale": 0.6}, {"bias": 0.5}):
        assert rank_tests.power(200, level=1e-3, **defect) > 0.97
        assert found.planted(**defect).rejected, defect


def test_a_failed_fit_is_counted_and_nothing_passes_with_one(exact):
    """It is no rejection: a defect must still show in the others."""
    status = exact.status.copy()
    status[7] = Status.NONFINITE
    failed = dataclasses.replace(exact, status=status)
    assert failed.failed == 1 and len(failed.ranks) == 299 and not failed.passed and not failed.rejected
    assert ": not rejected at" in str(failed) and "not passed: 1 fit failed" in str(failed)
    assert failed.planted(scale=0.7).rejected and not exact.planted(scale=1.01).rejected


def test_what_no_parameter_moves_is_not_rejected(exact):
    """Its draws all tie with its truth, to rounding: ranks by lot, in the table as in a figure of defects."""
    fixed = lambda x: np.concatenate([x, np.full_like(x[..., :1], 0.1)], axis=-1)  # noqa: E731
    found = dataclasses.replace(
        exact, names=(*exact.names, "fixed"), truths=fixed(exact.truths), draws=fixed(exact.draws)
    )
    assert np.array_equal(found.ranks[:, :4], exact.ranks) and found.passed, found
    assert 0 <= found.ranks[:, 4].min() < 5 and 94 < found.ranks[:, 4].max() <= 99
    assert [row["rejected"] for row in found.planted(scale=0.5).table] == 4 * [True] + [False]
    assert "note" not in str(found)


def test_draws_that_depend_on_each_other_are_told(exact):
    """Of an autoregressive chain with correlation 0.8 a ninth of the draws count."""
    rng, chains = np.random.default_rng(0), exact.draws.copy()
    chains[:, 0] = rng.normal(size=chains[:, 0].shape)
    for i in range(1, chains.shape[1]):
        chains[:, i] = 0.8 * chains[:, i - 1] + 0.6 * rng.normal(size=chains[:, i].shape)
    found = dataclasses.replace(exact, draws=np.where(np.arange(4) == 1, chains, exact.draws))
    shares = [row["effective"] for row in found.table]
    assert 0.1 < shares[1] < 0.2 and min(shares[:1] + shares[2:]) > 0.9
    assert "note: draws of gain depend on each other and count for 1" in str(found)


def test_pooled_calibrations_see_more(exact):
    pooled = Calibration.pool([exact, exact])
    assert len(pooled.ranks) == 600 and pooled.each == exact.each
    with pytest.raises(ValueError, match="different quantities"):
        Calibration.pool(
            [exact, Calibration("x", ("a",), exact.truths[:, :1], exact.draws[..., :1], exact.status, 0.1)]
        )


def test_power_agrees_with_a_table_of_others():
    """ECOSYSTEM's trial at 200 data sets, level 0.01: sd x 0.8 .81, x 0.7 .99, bias .3 .86, each by its best test.

    Here two tests share the level, so power is a little lower for the better one.
    """
    for defect, low, high in (({"scale": 0.8}, 0.6, 0.85), ({"scale": 0.7}, 0.95, 1.0), ({"bias": 0.3}, 0.75, 0.92)):
        assert low < rank_tests.power(200, level=0.01, **defect) <= high, defect
    assert rank_tests.power(200, level=0.01) < 0.01 + 4 * np.sqrt(0.01 / 2000)  # nothing wrong: the level


def test_bands_are_the_tests():
    low, high = rank_tests.coverage_band(200, 0.9, 1e-3)
    for count in range(150, 201):
        values = np.where(np.arange(200) < count, 0.5, 0.999)
        assert (rank_tests.coverage(values) >= 1e-3) == (low - 1e-12 <= count / 200 <= high + 1e-12), count
    uniform = np.random.default_rng(0).uniform(size=(50, 200))
    stray = np.array([stats.kstest(row, "uniform").pvalue < 0.05 for row in uniform])
    covered = np.array([rank_tests.coverage(row) < 0.05 for row in uniform])
    assert np.array_equal(rank_tests.rejected(uniform, 0.05), stray | covered)


def test_the_table_the_figure_and_arviz(exact):
    text = str(exact)
    assert "not rejected at the family-wise level 0.001 | 300 data sets, 99 draws each" in text
    assert all(name in text for name in exact.names)
    figure = exact.plot()
    assert len(figure.axes) == 2 and len(figure.axes[0].lines) == 5
    tree = exact.to_arviz()
    assert set(tree["prior_sbc"].data_vars) == set(exact.names)
    assert dict(tree["prior_sbc"].sizes) == {"chain": 1, "draw": 300}


def test_wrong_arguments_are_named(as_user):
    dynamics, data, key = linear_dynamics(), linear_data(rows=4), jax.random.key(0)
    with pytest.raises(TypeError, match="a Dynamics and a backend object"):
        calibrate(key, lambda data: None, data, Laplace())
    with pytest.raises(TypeError, match="a Dynamics and a backend object"):
        calibrate(key, dynamics, data, Laplace)
    with pytest.raises(TypeError, match="random key"):
        calibrate(0, dynamics, data, Laplace())
    recorded, fleet = pp.Trajectories(None, np.zeros((5, 1)), dt=0.1), pp.Transitions.stack([data, data])
    with pytest.raises(TypeError, match=r"design must be Transitions\(states, actions\) or.*; got ndarray"):
        calibrate(key, dynamics, np.zeros((4, 2)), Laplace())
    for design, said in ((fleet, r"design is of a fleet \(2,\)"), (recorded, r"recordings need start=\(mean, sd\)")):
        with pytest.raises(ValueError, match=said):
            calibrate(key, dynamics, design, Laplace())
    for options, said in (
        ({"at": np.zeros(2)}, "at must be Transitions.*; got ndarray"),
        ({"at": recorded}, "at must be Transitions.*; got Trajectories"),
        ({"at": fleet}, "at is of a fleet"),
        ({"level": 1.0}, "level is a probability, 0 < level < 1; got 1.0"),
        ({"datasets": 0}, "datasets must be a whole number of at least 1; got 0"),
        ({"batch": 2.5}, "batch must be a whole number of at least 1; got 2.5"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            calibrate(key, dynamics, data, Laplace(), **options)
    for options, said in (
        ({"scale": 0.0}, "scale > 0"),
        ({"level": 0.0}, "0 < level < 1"),
        ({"bias": np.nan}, "finite bias"),
        ({"quantities": 0}, "power: quantities must be"),
        ({"runs": -1}, "power: runs must be"),
    ):
        with pytest.raises(ValueError, match=said):
            rank_tests.power(100, **options)


def test_a_program_that_observes_something_is_refused():
    """Truths take no account of it, every fit does: an exact backend would be rejected."""

    def program():
        step = linear_program()
        numpyro.sample("pull", dist.Normal(0.0, 1.0), obs=np.array(3.0))
        return step

    dynamics = pp.Dynamics(program, linear_state, linear_action, dt=0.1, process_noise=linear_noise)
    with pytest.raises(ValueError, match="the program observes 'pull'.*Leave it out of the program"):
        calibrate(jax.random.key(0), dynamics, linear_data(rows=4), Laplace())


def test_a_backend_with_fewer_draws_than_ranks_need_is_refused():
    class Few(pp.Backend):
        def fit(self, key, model, data):
            space = UnconstrainedSpace.of(model, data)
            return DrawsPosterior(model, data, space, jnp.zeros((2, 4, space.size)))

    with pytest.raises(ValueError, match=r"Few gives 8 draws of each posterior, and ranks need 99.*draws=8"):
        calibrate(jax.random.key(0), linear_dynamics(), linear_data(rows=4), Few(), datasets=1)


@pytest.mark.science
@pytest.mark.parametrize("model", ["pendulum", "cartpole"])
def test_nuts_is_calibrated_and_the_gate_is_not_blind(model):
    """200 data sets for each of three keys; planted defects on the 600 together."""
    calibration = example("calibration")
    parts = [calibration.run(model, HMC(draws=500, warmup=200, chains=1), key) for key in range(3)]
    for part in parts:
        assert part.passed, part
    pooled = Calibration.pool(parts)
    assert pooled.passed, pooled
    assert pooled.planted(scale=0.7).rejected and pooled.planted(bias=0.3).rejected


@pytest.mark.science
def test_a_wrong_likelihood_is_caught():
    """A belief that takes the noise for half of what it is."""

    class Overconfident(Laplace):
        def fit(self, key, model: pp.Dynamics, data):  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().fit(key, model.rebound(process_noise=linear_noise / 2), data)

    found = calibrate(jax.random.key(0), linear_dynamics(), linear_data(rows=6), Overconfident(starts=1), datasets=300)
    assert found.rejected and found.failed == 0
