"""Beliefs side by side: scores against integrals and closed forms, leave-one-out against refits, and every refusal."""

import dense
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
from helpers import (
    leaves,
    linear_action,
    linear_data,
    linear_dynamics,
    linear_features,
    linear_mean,
    linear_noise,
    linear_program,
    linear_sd,
    linear_state,
)
from numpyro.infer import MCMC, NUTS

import physppl as pp
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.evaluation import scoring_rules
from physppl.evaluation.cross_validation import leave_one_out
from physppl.evaluation.predictive_scores import forecastable, unbroken_windows
from physppl.evaluation.recording_forecasts import predict_ahead
from physppl.inference import DrawsPosterior, Laplace, from_numpyro

LEVELS = np.array(scoring_rules.LEVELS)


class ImportanceSampling(pp.Backend):
    """Prior draws, resampled by their likelihood: the backend of docs/extending.md."""

    proposals: int = eqx.field(default=4000, static=True)
    draws: int = eqx.field(default=1000, static=True)

    def fit(self, key, model, data):
        space = UnconstrainedSpace.of(model, data)
        draw_key, pick_key = jax.random.split(key)
        points = jax.vmap(lambda k: space.draw_prior(k, model, data))(jax.random.split(draw_key, self.proposals))
        weights = jax.vmap(lambda z: space.log_densities(space.trace(model, z, data), z)[1])(points)
        return DrawsPosterior(
            model, data, space, points[jax.random.categorical(pick_key, weights, shape=(1, self.draws))]
        )


class Functions(pp.Posterior):
    """A belief with an __init__ of its own, that has functions and no samples."""

    truth: dict

    def __init__(self, model, data, truth):
        self.model, self.data, self.truth = model, data, jax.tree.map(jnp.asarray, truth)
        self.status, self.method = jnp.asarray(0), "Functions"

    def _draw(self, key):
        return self.model.bind(self.truth)

    def _basis(self, states, actions, times):
        raise NotImplementedError

    def _samples(self, key, draws):
        raise NotImplementedError

    def _noise(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def train():
    return linear_data(0, 40)


@pytest.fixture(scope="module")
def test_data():
    return linear_data(1, 300)


@pytest.fixture(scope="module")
def laplace(train):
    return pp.fit(jax.random.key(0), linear_dynamics(), train, Laplace(starts=1))


def conjugate(data):
    """Mean (4,) and covariance (4, 4) of the linear program's parameters, by normal equations."""
    design = np.stack([linear_features(np, x, u) for x, u in zip(data.states, data.actions, strict=True)])
    weighted = design / linear_noise[:, None] ** 2
    precision = np.diag(linear_sd**-2.0) + np.einsum("nik,nil->kl", weighted, design)
    pull = linear_mean / linear_sd**2 + np.einsum("nik,ni->k", weighted, data.next_states - data.states)
    return np.linalg.solve(precision, pull), np.linalg.inv(precision)


def predicted(data, mean, covariance):
    """Means (N, D) and covariances (N, D, D) of the next states, process noise included."""
    design = np.stack([linear_features(np, x, u) for x, u in zip(data.states, data.actions, strict=True)])
    return data.states + design @ mean, design @ covariance @ design.swapaxes(1, 2) + np.diag(linear_noise**2)


def mixture(seed, draws, df=None):
    rng = np.random.default_rng(seed)
    means, sds = rng.normal(size=(draws, 5, 2)), rng.uniform(0.2, 1.5, (draws, 1, 2))
    df = None if df is None else jnp.full((draws, 5, 2), df)
    return rng.normal(size=(5, 2)) * 2, scoring_rules.NormalMixture(jnp.asarray(means), jnp.asarray(sds), df)


def test_crps_is_the_integral_over_the_distribution_function(x64):
    """The mixture's own CRPS follows by adding the pairs of a draw with itself."""
    outcomes, found = mixture(0, 7)
    fair = np.asarray(jax.jit(scoring_rules.crps, static_argnums=2)(jnp.asarray(outcomes), found, 6))
    sds = np.broadcast_to(found.sds, found.means.shape)
    for i, j in np.ndindex(outcomes.shape):
        parts = scipy.stats.norm(np.asarray(found.means)[:, i, j], sds[:, i, j])
        y, grid = outcomes[i, j], np.linspace(-12.0, 12.0, 240_001)
        cdf = parts.cdf(grid[:, None]).mean(1)
        integral = scipy.integrate.simpson((cdf - (grid >= y)) ** 2, x=grid)
        error = np.mean(_absolute(y - parts.mean(), parts.std()))
        pairs = 2 * (error - fair[i, j])  # E|X - X'| of different draws
        own = np.mean(2 * parts.std() / np.sqrt(np.pi))
        assert integral == pytest.approx(error - (6 * pairs + own) / 14, abs=1e-4)
    one = scoring_rules.NormalMixture(found.means[:1], found.sds[:1])
    error, sd = outcomes - np.asarray(found.means[0]), np.broadcast_to(found.sds, found.means.shape)[0]
    closed, _ = gaussian_scores(error, sd)
    np.testing.assert_allclose(scoring_rules.crps(jnp.asarray(outcomes), one).mean(0), closed, rtol=1e-9)


def _absolute(mean, sd):
    z = mean / sd
    return 2 * sd * scipy.stats.norm.pdf(z) + mean * (2 * scipy.stats.norm.cdf(z) - 1)


@pytest.mark.parametrize("df", [None, 4.0])
def test_log_density_and_intervals_are_those_of_scipy(x64, df):
    outcomes, found = mixture(1, 6, df)
    counted = np.array([[True, True]] * 4 + [[True, False]])
    outcomes = jnp.asarray(outcomes)
    score = lambda f, *more: jax.jit(f)(outcomes, found, *more)  # noqa: E731
    logs = score(scoring_rules.log_density, jnp.asarray(counted))
    means, sds = np.asarray(found.means), np.asarray(found.sds)
    parts = scipy.stats.norm(means, sds) if df is None else scipy.stats.t(df, means, sds)
    density = np.where(counted, parts.pdf(outcomes), 1.0).prod(-1).mean(0)
    np.testing.assert_allclose(logs, np.log(density), rtol=1e-10)
    rank = parts.cdf(outcomes).mean(0)
    np.testing.assert_allclose(score(scoring_rules.cdf), rank, rtol=1e-8)
    expected = np.abs(rank - 0.5) <= LEVELS[:, None, None] / 2
    np.testing.assert_array_equal(score(scoring_rules.inside), expected)
    assert np.isnan(score(scoring_rules.crps)).all() == (df is not None)


def test_figures_are_the_closed_forms_of_a_conjugate_model(laplace, train, test_data):
    """Of one step: 1,000 draws give the mean to 0.03 posterior sds; a Gaussian's CRPS is closed."""
    found = pp.compare({"Laplace": laplace}, test_data, draws=1000, horizons=(1,)).dataset.sel(posterior="Laplace")
    mean, covariance = predicted(test_data, *conjugate(train))
    error, sd = test_data.next_states - mean, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    one = found.isel(horizon=0)
    np.testing.assert_allclose(one.rmse * one.scale, np.sqrt((error**2).mean(0)), rtol=2e-3)
    density = [
        scipy.stats.multivariate_normal(np.zeros(2), c).logpdf(e) for c, e in zip(covariance, error, strict=True)
    ]
    assert float(found.log_density) == pytest.approx(np.mean(density), abs=5e-3)
    assert float(found.log_density_se) == pytest.approx(np.std(density, ddof=1) / np.sqrt(300), rel=0.02)
    crps, inside = gaussian_scores(error, sd)
    np.testing.assert_allclose(one.crps * one.scale, crps, rtol=5e-3)
    np.testing.assert_allclose(one.coverage, inside, atol=0.01)
    np.testing.assert_array_less(np.abs(one.coverage - LEVELS[:, None]), 4 * np.sqrt(0.25 / 300))
    assert int(one.outcomes) == 300 and float(one.time) == 0.1 and list(one.unit.values) == ["m", "m/s"]


def test_windows_are_rows_that_follow_each_other():
    dynamics = linear_dynamics()
    states = np.arange(24.0).reshape(12, 2)
    one, other = (pp.Transitions.from_trajectory(s, np.zeros((5, 1))) for s in (states[:6], states[6:]))
    data = pp.Transitions.concatenate([one, other])
    assert unbroken_windows(data, dynamics, 1).tolist() == list(range(10))
    assert unbroken_windows(data, dynamics, 3).tolist() == [0, 1, 2, 5, 6, 7]
    assert unbroken_windows(data, dynamics, 6).tolist() == []
    assert unbroken_windows(data.pad(16), dynamics, 5).tolist() == [0, 5]
    hole = pp.Transitions(data.states, data.actions, data.next_states, valid=np.arange(10) != 2)
    assert unbroken_windows(hole, dynamics, 2).tolist() == [0, 3, 5, 6, 7, 8]


TURN = np.array([[1.0, 0.2], [0.0, 0.9]])
SPREAD = np.array([0.05, 0.3])


def turning():
    """A shaft: nothing depends on where it stands, so that its angle may be told on any branch."""

    def program():
        gain = numpyro.sample("gain", dist.Normal(0.0, 1.0))
        return pp.Step(lambda t, x, u: jnp.asarray(TURN, x.dtype) @ x + jnp.stack([0.0, gain]) * u)

    space = pp.StateSpace(angle=pp.Angle(scale=2.0), speed=pp.Real("rad/s", scale=3.0))
    return pp.Dynamics(program, space, pp.ActionSpace(u=pp.Bounded(-1.0, 1.0)), dt=0.2, process_noise=SPREAD)


def certain(dynamics, data, *point, draws=4):
    """A belief without doubt."""
    with jax.enable_x64(True):
        space = UnconstrainedSpace.of(dynamics, data)
        return DrawsPosterior(dynamics, data, space, jnp.tile(jnp.asarray(point, float), (1, draws, 1)))


def gaussian_scores(error, sd):
    """CRPS (d,) and coverage (L, d) of errors (N, d) under Gaussians of sd (N, d)."""
    z = error / sd
    crps = sd * (z * (2 * scipy.stats.norm.cdf(z) - 1) + 2 * scipy.stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    return crps.mean(0), np.mean(np.abs(z) <= scipy.stats.norm.ppf(0.5 + LEVELS / 2)[:, None, None], axis=1)


def test_figures_over_the_horizon_are_those_of_a_linear_machine_and_angles_wrap():
    """Mean and covariance after h steps in closed form; the data tell the angle between -pi and pi."""
    dynamics, rng = turning(), np.random.default_rng(0)
    states, actions = [np.array([3.0, 2.0])], rng.uniform(-1, 1, (400, 1))
    for u in actions:
        states.append(TURN @ states[-1] + [0.0, 0.5 * u[0]] + SPREAD * rng.normal(size=2))
    states = np.stack(states)
    told = np.stack([(states[:, 0] + np.pi) % (2 * np.pi) - np.pi, states[:, 1]], axis=-1)
    assert np.abs(np.diff(told[:, 0])).max() > 3
    data = pp.Transitions.from_trajectory(told, actions)
    belief = certain(dynamics, pp.Transitions(np.zeros((2, 2)), np.zeros((2, 1)), np.ones((2, 2))), 0.5)
    found = pp.compare({"known": belief}, data, horizons=(1, 4), draws=500).dataset.sel(posterior="known")
    for h in (1, 4):
        starts = np.arange(len(data) - h + 1)
        starts = starts if h == 1 else starts[np.unique(np.linspace(0, len(starts) - 1, 200).round().astype(int))]
        mean, covariance = states[starts], np.zeros((2, 2))
        for i in range(h):
            mean = mean @ TURN.T + np.array([0.0, 0.5]) * actions[starts + i]
            covariance = TURN @ covariance @ TURN.T + np.diag(SPREAD**2)
        error = states[starts + h] - mean
        crps, inside = gaussian_scores(error, np.sqrt(np.diag(covariance)))
        one = found.sel(horizon=h)
        tolerance = 1e-6 if h == 1 else 0.03
        np.testing.assert_allclose(one.rmse * one.scale, np.sqrt((error**2).mean(0)), rtol=tolerance)
        np.testing.assert_allclose(one.crps * one.scale, crps, rtol=max(tolerance, 1e-6))
        np.testing.assert_allclose(one.coverage, inside, atol=1e-12 if h == 1 else 0.02)


def test_recordings_are_scored_reading_by_reading():
    """Given the parameters each reading's density is the dense Gaussian's."""
    dynamics, values = dense.bind(), (dense.values["stiffness"], dense.values["gain"])
    recordings = [dense.recording(30, seed) for seed in (0, 1)]
    data = pp.Trajectories.stack(recordings)
    belief = certain(dynamics, dense.recording(8), *values)
    one = pp.compare({"known": belief}, data, horizons=(1,)).dataset.sel(posterior="known")
    total = sum(dense.dense(r, *values).log_density(np.asarray(r.observations)) for r in recordings)
    count = int(np.sum(data.valid))
    assert int(one.outcomes[0]) == count and float(one.log_density) == pytest.approx(total / count, rel=1e-6)
    assert list(one.coordinate.values) == ["first", "second", "third"]
    errors, sds = [], []
    for recording in recordings:
        expected, spread = dense.dense(recording, *values).one_by_one(np.asarray(recording.observations))
        keep = np.asarray(recording.valid)
        errors.append(np.asarray(recording.observations)[keep] - expected.reshape(-1, 3))
        sds.append(spread.reshape(-1, 3))
    crps, inside = gaussian_scores(np.concatenate(errors), np.concatenate(sds))
    np.testing.assert_allclose(one.crps[0] * one.scale, crps, rtol=1e-6)
    np.testing.assert_allclose(one.coverage[0], inside, atol=1e-12)
    with pytest.raises(
        ValueError, match=r"no site measurement_noise.*has no parameters of the sensors.*Test it on Trans"
    ):
        belief = certain(dense.bind(measurement=None), linear_data(0, 2), *values)
        pp.compare({"of transitions": belief}, data)


@pytest.mark.science
def test_farther_ahead_recordings_are_scored_by_their_forecasts():
    dynamics, values = dense.bind(), (dense.values["stiffness"], dense.values["gain"])
    belief = certain(dynamics, dense.recording(8), *values)
    recordings = [dense.recording(30, seed) for seed in (0, 1)]
    found = pp.compare({"known": belief}, pp.Trajectories.stack(recordings), horizons=(1, 5))
    one = found.dataset.sel(posterior="known", horizon=5)
    ahead = [predict_ahead(jax.random.key(0), belief, r, 0.5, most=100) for r in recordings]
    error, sd = (np.concatenate(x) for x in zip(*((a.readings - a.mean, a.sd) for a in ahead), strict=True))
    crps, inside = gaussian_scores(error, sd)
    assert int(one.outcomes) == len(error)
    np.testing.assert_allclose(one.rmse * one.scale, np.sqrt((error**2).mean(0)), rtol=1e-6)
    np.testing.assert_allclose(one.crps * one.scale, crps, rtol=1e-6)
    np.testing.assert_allclose(one.coverage, inside, atol=1e-12)


def gappy(seed, missing):
    """A recording in which these samples lack their first reading."""
    one = dense.recording(30, seed)
    readings = np.array(one.observations)
    readings[missing, 0] = np.nan
    return pp.Trajectories(readings, one.actions, one.times, start=one.start, valid=one.valid)


def test_recordings_that_cannot_be_forecast_are_scored_one_step_ahead():
    """Sensors that read by turns are never read at once."""
    belief = certain(dense.bind(), dense.recording(8), dense.values["stiffness"], dense.values["gain"])
    data = pp.Trajectories.stack([dense.recording(30, 0), gappy(1, slice(None))])
    count = lambda samples, steps: len(forecastable(data[:samples], steps, dense.bind()))  # noqa: E731
    assert [count(12, 5), count(12, 12), count(1, 5)] == [1, 0, 0]
    data = pp.Trajectories.stack([gappy(seed, slice(None)) for seed in (0, 1)])
    found = pp.compare({"known": belief}, data, horizons=(1, 5))
    assert found.dataset.outcomes.values.tolist() == [2 * 27, 0] and np.isfinite(found.dataset.log_density).all()
    assert "note: there is no window of 5 steps in 2 of 2 recordings: it ends where all sensors" in str(found)


def test_figures_that_no_fit_has_are_left_out_and_told():
    """One recording that cannot be left out, Student-t sensors, and a sensor without a reading."""
    belief = certain(
        dense.bind(measurement_df=5.0), dense.recording(8), dense.values["stiffness"], dense.values["gain"]
    )
    found = pp.compare({"known": belief}, gappy(0, slice(None)), horizons=(1,), draws=4)
    head = str(found).splitlines()[2]
    assert "RMSE" in head and "in 95 %" in head and not any(x in head for x in ("CRPS", "ELPD", "k >", "fit, s"))
    assert "–" not in str(found) and "lacks predictions" not in str(found)
    assert found.dataset.coordinate.values.tolist() == ["second", "third"]
    assert np.isfinite(found.dataset.rmse).all()
    assert str(found).splitlines()[-1] == (
        "note: not computed: scores of first, of which the test data have no reading; CRPS, which has no closed form "
        "for Student-t noise; ELPD-LOO, se and k, as the fits are of one recording each; seconds of the fits, which "
        "only an object that pp.fit has returned itself remembers."
    )


@pytest.mark.science
def test_a_recording_that_cannot_be_forecast_is_left_out_and_told():
    belief = certain(dense.bind(), dense.recording(8), dense.values["stiffness"], dense.values["gain"])
    data = pp.Trajectories.stack([dense.recording(30, 0), gappy(1, slice(None))])
    found = pp.compare({"known": belief}, data, horizons=(1, 5), draws=4)
    alone = pp.compare({"known": belief}, dense.recording(30, 0), horizons=(1, 5), draws=4)
    ours, theirs = (x.dataset.sel(posterior="known", horizon=5) for x in (found, alone))
    assert int(ours.outcomes) == int(theirs.outcomes) > 0
    np.testing.assert_allclose(ours.rmse, theirs.rmse, rtol=1e-9)
    assert "note: there is no window of 5 steps in 1 of 2 recordings: it ends where all" in str(found)
    assert alone.notes == ()


def test_leave_one_out_is_that_of_exact_refits(laplace, train):
    """Each transition under the conjugate posterior of all others: 4,000 draws give the sum to 0.1 nats."""
    exact = []
    for i in range(len(train)):
        others = train[np.flatnonzero(np.arange(len(train)) != i)]
        mean, covariance = predicted(train[[i]], *conjugate(others))
        exact.append(scipy.stats.multivariate_normal(mean[0], covariance[0]).logpdf(train.next_states[i]))
    found = leave_one_out(jax.random.key(3), laplace, 4000)
    np.testing.assert_allclose(found.each, exact, atol=0.1)
    assert found.elpd == pytest.approx(sum(exact), abs=0.1)
    assert found.se == pytest.approx(np.sqrt(40) * np.std(exact, ddof=1), rel=0.05) and found.heavy == 0
    assert found.pareto_k.shape == (40,) and found.pareto_k.max() < 0.6


def spring():
    """Two recordings' worth of one parameter: refits are quick."""
    dynamics = dense.bind(lambda: (lambda s: pp.Step(lambda t, x, u: dense.matrix(s) @ x + dense.B @ u))(
        pp.physical("stiffness", dist.Normal(1.5, 0.5))
    ))  # fmt: skip
    return dynamics, pp.Trajectories.stack([dense.recording(30, seed) for seed in range(4)])


@pytest.mark.science
def test_leaving_a_recording_out_by_weights_is_leaving_it_out_by_refits():
    dynamics, data = spring()
    exact = pp.leave_one_recording_out(jax.random.key(0), dynamics, data, Laplace(), 4000)
    found = leave_one_out(jax.random.key(1), pp.fit(jax.random.key(0), dynamics, data, Laplace()), 4000)
    assert found.each.shape == exact.each.shape == (4,)
    np.testing.assert_allclose(found.each, exact.each, atol=0.3)
    with jax.enable_x64(True):  # and by quadrature: one parameter, the prior times the others' densities
        grid = np.linspace(-1.0, 4.0, 1001)
        density = lambda row: [dense.dense(row, s, 1.0).log_density(np.asarray(row.observations)) for s in grid]  # noqa: E731
        each = np.array([density(dense.recording(30, seed)) for seed in range(4)])
    prior = scipy.stats.norm(1.5, 0.5).logpdf(grid)
    for r in range(4):
        others = prior + each.sum(0) - each[r]
        expected = scipy.special.logsumexp(others + each[r]) - scipy.special.logsumexp(others)
        assert exact.each[r] == pytest.approx(expected, abs=0.1)


def test_leaving_recordings_out_needs_several():
    dynamics, data = spring()
    with pytest.raises(ValueError, match=r"at least two recordings with readings.*Trajectories\.stack"):
        pp.leave_one_recording_out(jax.random.key(0), dynamics, dense.recording(30), Laplace())


@pytest.fixture(scope="module")
def run():
    """A short NumPyro run of a model that holds a Dynamics' site and one more; its HMC compiles faster than NUTS."""

    def model(data):
        gain, offset = (numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("gain", "offset"))
        mean = data.states @ TURN.T + jnp.array([0.0, 1.0]) * gain * data.actions + offset
        numpyro.sample("after", dist.Normal(mean, SPREAD).to_event(1), obs=data.next_states)

    mcmc = MCMC(numpyro.infer.HMC(model), num_warmup=50, num_samples=200, progress_bar=False)
    mcmc.run(jax.random.key(1), linear_data(0, 10), extra_fields=("num_steps", "energy", "potential_energy"))
    return mcmc


def test_a_numpyro_run_is_a_belief_about_the_dynamics_whose_sites_it_holds(run):
    data = linear_data(0, 10)
    belief = from_numpyro(run, turning(), data)
    samples = belief.samples(jax.random.key(0), group_by_chain=True)
    assert set(samples) == {"gain"} and belief.method == "NumPyro HMC" and belief.timing is None
    np.testing.assert_allclose(samples["gain"], run.get_samples(group_by_chain=True)["gain"], rtol=1e-6)
    assert set(belief.sample_stats()) == {"diverging", "n_steps", "energy", "lp"}
    np.testing.assert_allclose(
        belief.mean()(np.ones(2), np.ones(1)), TURN @ np.ones(2) + [0.0, samples["gain"].mean()], rtol=0.1
    )
    whole = from_numpyro(run)  # about the model that was run, and its data
    assert set(whole.samples(jax.random.key(0))) == {"gain", "offset"} and len(whole.data) == 10


class Run:
    """A run of NumPyro as `from_numpyro` sees it, with these draws."""

    last_state, sampler = 0, None

    def __init__(self, gain):
        self.gain = gain

    def get_samples(self, group_by_chain):
        return {"gain": self.gain}

    def get_extra_fields(self, group_by_chain):
        return {}


def test_a_numpyro_run_whose_chains_disagree_gives_a_warning():
    gain = np.random.default_rng(0).normal(size=(2, 100)) + [[0.0], [9.0]]
    with pytest.warns(pp.PhyspplWarning, match=r"NumPyro NoneType: not mixed: the chains disagree .R-hat above 1.1"):
        belief = from_numpyro(Run(gain), turning(), linear_data(0, 10))
    assert int(belief.status) == pp.Status.NOT_MIXED


@pytest.mark.science
def test_plain_numpyro_stands_beside_laplace(laplace, train, test_data):
    """Of a conjugate model both are exact: the figures agree, and the sds to the error of the draws."""
    with jax.enable_x64(True):
        mcmc = MCMC(NUTS(linear_dynamics()), num_warmup=500, num_samples=4000, progress_bar=False)
        mcmc.run(jax.random.key(1), train)
    found = pp.compare({"Laplace": laplace, "NUTS": from_numpyro(mcmc)}, test_data, reference="NUTS", horizons=(1,))
    one, other = (found.dataset.sel(posterior=name) for name in ("Laplace", "NUTS"))
    np.testing.assert_array_less(np.abs(one["shift"]), 0.1)
    np.testing.assert_allclose(one.sd_ratio, 1.0, atol=0.08)
    assert float(one.elpd_loo) == pytest.approx(float(other.elpd_loo), abs=0.3)
    assert float(one.log_density) == pytest.approx(float(other.log_density), abs=0.01)
    np.testing.assert_allclose(one.crps, other.crps, rtol=0.01)


def test_a_backend_of_ones_own_stands_beside_laplace(laplace, train, test_data):
    own = pp.fit(jax.random.key(0), linear_dynamics(), train, ImportanceSampling())
    functions = Functions(linear_dynamics(), train, {"drift": 0.45, "gain": 1.4, "weights": np.array([-0.3, 0.05])})
    beliefs = {"Laplace": laplace, "own": own}
    found = pp.compare(beliefs, test_data, reference="Laplace")
    data = found.dataset
    assert dict(data.sizes) == {"posterior": 2, "horizon": 3, "coordinate": 2, "level": 4, "site": 4}
    assert list(data.site.values) == ["drift", "gain", "weights[0]", "weights[1]"]
    assert data.site_unit.values.tolist() == ["m", "", "", ""] and data.elpd_loo.attrs["units"] == "nats"
    np.testing.assert_array_equal(data["shift"].sel(posterior="Laplace"), 0.0)
    np.testing.assert_array_equal(data.sd_ratio.sel(posterior="Laplace"), 1.0)
    assert np.isfinite(data["shift"]).all() and np.isfinite(data.elpd_loo).all()
    assert data.rmse.sel(horizon=[5, 20]).isnull().all() and not data.rmse.sel(horizon=1).isnull().any()
    table = str(found)
    assert "no window of 5, 20 steps" in table and "steps ahead" not in table and "nan" not in table
    figure = found.plot()
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["open-loop error", "calibration, one step", "parameters"]
    # A belief that has functions alone: what it lacks is left out, and beside another a dash.
    alone = pp.compare({"functions": functions}, test_data, horizons=(1,))
    assert alone.dataset.elpd_loo.isnull().all() and np.isfinite(alone.dataset.log_density).all()
    assert str(alone).splitlines()[2].split()[-3:] == ["in", "95", "%"] and "–" not in str(alone)
    assert "note: not computed: ELPD-LOO, se and k, as the fits are of data or" in str(alone)
    assert "; seconds of the fits, which only an object that pp.fit has returned" in str(alone)
    beside = pp.compare({"Laplace": laplace, "functions": functions}, test_data, horizons=(1,))
    assert str(beside).splitlines()[4].split()[-5:] == ["–"] * 5 and "not computed" not in str(beside)


def test_a_fit_remembers_its_seconds_and_a_batch_of_fits_none(laplace, train):
    assert laplace.timing.seconds >= laplace.timing.compiling > 0
    assert f"fitted in {laplace.timing.seconds:.2f} s" in repr(laplace)
    again = pp.fit(jax.random.key(0), linear_dynamics(), train, Laplace(starts=1))
    assert again.timing.compiling == 0 and again.timing.seconds < laplace.timing.seconds
    assert all(np.array_equal(a, b) for a, b in zip(leaves(again), leaves(laplace), strict=True))
    assert jax.tree.map(lambda x: x, laplace).timing is None and "fitted" not in repr(
        jax.tree.map(lambda x: x, laplace)
    )


def compare(posterior, data, **options):
    return pp.compare({posterior.method: posterior}, data, **options)


def bound(program, dt=0.1, noise=linear_noise):
    return pp.Dynamics(program, linear_state, linear_action, dt=dt, process_noise=noise)


def drifting():
    drift, slope = pp.physical("drift", dist.Normal(0.0, 1.0)), numpyro.sample("slope", dist.Normal(0.0, 1.0))
    return pp.Step(lambda t, x, u: x + drift + slope * u)


def test_refusals(laplace, run, train, test_data, as_user):
    unseen = pp.Transitions(*(np.zeros((3, n)) for n in (2, 1, 2)), valid=np.zeros(3, bool))
    slower = certain(bound(linear_program, dt=0.3), train, 0.0, 0.0, 0.0, 0.0)
    other = certain(bound(drifting), train, 0.0, 0.0)
    out = pp.leave_one_recording_out
    refused = [
        (TypeError, "takes Traj.*got Transitions", lambda: out(jax.random.key(0), laplace.model, train, Laplace())),
        (ValueError, "no posterior was given", lambda: pp.compare({}, test_data)),
        (TypeError, r"takes \{name: posterior\}; got list", lambda: pp.compare([laplace], test_data)),
        (TypeError, r"'run' is a NumPyro MCMC.*from_numpyro\(mcmc\)", lambda: pp.compare({"run": run}, test_data)),
        (TypeError, "'x' must be a Posterior", lambda: pp.compare({"x": 3}, test_data)),
        (KeyError, "no posterior 'Laplac'. Did you mean", lambda: compare(laplace, test_data, reference="Laplac")),
        (ValueError, r"of steps from 1; got \(0.5,\)", lambda: compare(laplace, test_data, horizons=[0.5])),
        (ValueError, "needs draws of at least 2; got 1", lambda: compare(laplace, test_data, draws=1)),
        (TypeError, "Transitions or Trajectories; got dict", lambda: compare(laplace, {"states": 1})),
        (ValueError, "must have outcomes, not inputs alone", lambda: compare(laplace, test_data.inputs)),
        (ValueError, "one machine at a time", lambda: compare(laplace, pp.Transitions.stack([test_data] * 2))),
        (ValueError, "has no valid outcome", lambda: compare(laplace, unseen)),
        (ValueError, "different machines: dt 0.1 and 0.3", lambda: pp.compare({"a": laplace, "b": slower}, test_data)),
        (
            KeyError,
            r"against the reference 'a', 'b' lacks gain, weights\[0\], weights\[1\] and has slope besides",
            lambda: pp.compare({"a": laplace, "b": other}, reference="a"),
        ),
        (TypeError, "takes a numpyro.infer.MCMC that has run; got int", lambda: from_numpyro(3)),
        (ValueError, "no draws yet", lambda: from_numpyro(MCMC(NUTS(drifting), num_warmup=1, num_samples=1))),
        (KeyError, "the run has no draws of 'drift', 'slope'", lambda: from_numpyro(run, bound(drifting), train)),
    ]
    for error, words, call in refused:
        with pytest.raises(error, match=words):
            call()
    with pytest.warns(pp.PhyspplWarning, match="40 of the test data were among those that Laplace was fitted to"):
        assert "in-sample" in str(compare(laplace, pp.Transitions.concatenate([train, test_data]), horizons=(1,)))
