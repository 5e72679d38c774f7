"""What every backend owes: one suite, run over the list in helpers.py."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    backends,
    leaves,
    linear_data,
    linear_dynamics,
    linear_mean,
    linear_noise,
    linear_sd,
    recording,
)

import physppl as pp
from physppl.inference import HMC, Laplace
from physppl.inference.draws import BASIS_DRAWS, DrawsPosterior
from physppl.models import pendulum

SCIENCE = pytest.mark.science
parametrise = pytest.mark.parametrize("backend", backends)
STATES = np.array([[0.3, -0.5], [1.0, 0.2], [-2.0, 0.7]])
ACTIONS = np.array([[0.5], [-0.9], [0.1]])


@functools.cache
def linear_fit(backend) -> pp.Posterior:
    return pp.fit(jax.random.key(0), linear_dynamics(), linear_data(rows=40), backend)


@functools.cache
def pendulum_fit(backend) -> pp.Posterior:
    dynamics = pendulum.dynamics()
    return pp.fit(jax.random.key(0), dynamics, recording(dynamics, pendulum.truth, steps=60), backend)


def effective(posterior, draws: int) -> int:
    """Independent draws that an average over `draws` functions is worth, at least."""
    return min(draws, BASIS_DRAWS) if isinstance(posterior, DrawsPosterior) else draws


def coefficients(sites):
    """Draws (n, 4) of what multiplies the linear Step's features: its parameters, or a belief about functions' own."""
    if "network.weights" in sites:
        return np.asarray(sites["network.weights"])
    return np.column_stack([sites["drift"], sites["gain"], sites["weights"]])


@parametrise
@pytest.mark.parametrize("fitted", [linear_fit, pendulum_fit])
def test_a_draw_survives_jit_vmap_scan_and_grad(backend, fitted, x64):
    posterior, step = fitted(backend), jax.jit(lambda f, s, a: f(s, a))
    draw = posterior.draw(jax.random.key(1))
    by_hand = [np.asarray(step(draw, s, a)) for s, a in zip(STATES, ACTIONS, strict=True)]
    assert np.allclose(draw(STATES[0], ACTIONS[0]), by_hand[0], atol=1e-12)  # eagerly
    assert np.allclose(jax.jit(jax.vmap(draw))(STATES, ACTIONS), by_hand, atol=1e-12)

    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(lambda f, s, a: f(s, a)))(jax.vmap(posterior.draw)(keys), STATES, ACTIONS)
    alone = [step(posterior.draw(k), s, a) for k, s, a in zip(keys, STATES, ACTIONS, strict=True)]
    assert np.allclose(together, alone, atol=1e-12)

    trajectory = [STATES[0]]
    for a in ACTIONS:
        trajectory.append(np.asarray(step(draw, trajectory[-1], a)))
    assert np.allclose(jax.jit(pp.rollout)(draw, STATES[0], ACTIONS), trajectory, atol=1e-12)

    @jax.jit
    def height(f, s):
        return jnp.sum(pp.rollout(f, s, ACTIONS)[-1] ** 2)

    slopes, gradient = jax.jit(jax.grad(height, argnums=(0, 1)))(draw, jnp.asarray(STATES[0]))
    h = 1e-6 * np.eye(2)
    differences = [(height(draw, STATES[0] + e) - height(draw, STATES[0] - e)) / 2e-6 for e in h]
    assert np.allclose(gradient, differences, rtol=1e-6, atol=1e-6)
    assert all(np.all(np.isfinite(x)) for x in leaves(slopes)) and any(np.any(x != 0) for x in leaves(slopes))


@parametrise
def test_draws_repeat_with_their_key_and_differ_between_keys(backend):
    posterior = linear_fit(backend)
    first, again, other = (posterior.draw(jax.random.key(k)) for k in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(leaves(first), leaves(again), strict=True))
    assert not np.array_equal(first(STATES[0], ACTIONS[0]), other(STATES[0], ACTIONS[0]))
    refit = pp.fit(jax.random.key(0), posterior.model, linear_data(rows=40), backend)
    assert all(np.array_equal(a, b) for a, b in zip(leaves(refit), leaves(posterior), strict=True))


@parametrise
def test_sampling_adds_noise_of_the_right_sd(backend):
    draw, count = linear_fit(backend).draw(jax.random.key(1)), 4000
    keys = jax.random.split(jax.random.key(2), count)
    samples = np.asarray(jax.vmap(lambda k: draw.sample(k, STATES[0], ACTIONS[0]))(keys), float)
    errors = (samples - np.asarray(draw(STATES[0], ACTIONS[0]))) / linear_noise
    assert np.all(np.abs(errors.mean(0)) < 4 / np.sqrt(count))
    assert np.all(np.abs(errors.var(0) - 1) < 4 * np.sqrt(2 / count))
    assert abs(np.corrcoef(errors.T)[0, 1]) < 4 / np.sqrt(count)


@parametrise
def test_basis_covariance_and_prediction_say_the_same(backend, x64):
    posterior = linear_fit(backend)
    mean, factor = posterior.basis(STATES, ACTIONS)
    assert mean.shape == (3, 2) and factor.shape[:2] == (3, 2)
    flat = np.asarray(factor).reshape(6, -1)
    assert np.allclose(posterior.covariance(STATES, ACTIONS), flat @ flat.T, atol=1e-14)
    one_mean, one_factor = posterior.basis(STATES[0], ACTIONS[0])
    assert np.allclose(one_mean, mean[0]) and np.allclose(one_factor, factor[0])
    grid_mean, grid_factor = posterior.basis(np.tile(STATES, (4, 1, 1)), np.tile(ACTIONS, (4, 1, 1)))
    assert grid_mean.shape == (4, 3, 2) and grid_factor.shape == (4, *factor.shape)
    assert np.allclose(grid_factor[2], factor)

    predicted = posterior.predict(STATES, ACTIONS)
    assert predicted.batch_shape == (3,) and predicted.event_shape == (2,)
    assert np.allclose(predicted.mean, mean)
    expected = np.einsum("mdr,mer->mde", factor, factor) + np.diag(np.asarray(posterior.noise()) ** 2)
    assert np.allclose(predicted.covariance_matrix, expected, atol=1e-12)
    assert np.allclose(predicted.scale_tril @ np.swapaxes(predicted.scale_tril, 1, 2), expected, atol=1e-12)
    assert np.all(np.isfinite(predicted.log_prob(np.asarray(mean) + 1.0)))
    one = posterior.predict(STATES[0], ACTIONS[0])
    assert one.batch_shape == () and np.allclose(one.covariance_matrix, expected[0], atol=1e-12)
    assert np.allclose(posterior.noise(), linear_noise)


@parametrise
def test_draws_have_the_mean_and_covariance_of_the_basis(backend, x64):
    posterior, count = linear_fit(backend), 4000
    draws = jax.vmap(posterior.draw)(jax.random.split(jax.random.key(5), count))
    values = np.asarray(jax.vmap(lambda f: jax.vmap(f)(STATES, ACTIONS))(draws)).reshape(count, -1)
    mean, covariance = np.asarray(posterior.basis(STATES, ACTIONS)[0]).ravel(), posterior.covariance(STATES, ACTIONS)
    n, sd = effective(posterior, count), np.sqrt(np.diag(covariance))
    assert np.all(np.abs(values.mean(0) - mean) < 4 * sd / np.sqrt(n))
    # The variance of a Gaussian sample covariance: (C_ii C_jj + C_ij^2) / n. 21 entries: five standard errors.
    error = np.sqrt((np.outer(sd**2, sd**2) + np.asarray(covariance) ** 2) / n)
    assert np.all(np.abs(np.cov(values.T) - covariance) < 5 * error)


def test_a_linearised_draw_lies_in_the_span_of_the_basis(x64):
    posterior = pendulum_fit(Laplace(linearised=True))
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(30, 2)) * [2, 3], rng.uniform(-2, 2, (30, 1))
    mean, factor = (np.asarray(x) for x in posterior.basis(states, actions))
    coefficients = []
    for key in jax.random.split(jax.random.key(0), 5):
        change = (np.asarray(jax.vmap(posterior.draw(key))(states, actions)) - mean).ravel()
        found, *_ = np.linalg.lstsq(factor.reshape(60, -1), change, rcond=None)
        assert np.abs(factor.reshape(60, -1) @ found - change).max() < 1e-10 * np.abs(change).max()
        coefficients.append(found)
    assert np.abs(coefficients).max() < 5 and np.abs(coefficients).max() > 0.5  # standard normal numbers


@parametrise
def test_information_gain_counts_jointly(backend, x64):
    posterior = linear_fit(backend)
    new = linear_data(seed=7, rows=12)
    gains = [float(posterior.information_gain(new.states[:n], new.actions[:n])) for n in (1, 4, 12)]
    assert gains[0] > 0 and np.all(np.diff(gains) > 0)
    alone = sum(float(posterior.information_gain(new.states[i : i + 1], new.actions[i : i + 1])) for i in range(12))
    assert gains[-1] < alone
    twice = float(posterior.information_gain(np.tile(new.states[:1], (2, 1)), np.tile(new.actions[:1], (2, 1))))
    assert gains[0] < twice < 2 * gains[0]  # the second time tells less
    rows = linear_data(rows=40)  # of which four count: the compiled program of all
    few = pp.Transitions(rows.states, rows.actions, rows.next_states, valid=np.arange(40) < 4)
    early = pp.fit(jax.random.key(0), posterior.model, few, backend)
    assert early.information_gain(new.states, new.actions) > gains[-1]


@parametrise
def test_the_mean_function_is_the_basis_mean_at_every_input(backend, x64):
    """Exactly where there is a closed form; else as an average of 16 draws."""
    for fitted in (linear_fit, pendulum_fit):
        posterior = fitted(backend)
        mean, factor = posterior.basis(STATES, ACTIONS)
        found = np.array([posterior.mean()(s, a) for s, a in zip(STATES, ACTIONS, strict=True)])
        sd = np.sqrt(np.sum(np.asarray(factor) ** 2, axis=-1))
        drawn = isinstance(posterior, DrawsPosterior)
        assert np.all(np.abs(found - mean) < (4.5 / np.sqrt(16) * sd if drawn else 0) + 1e-12)


@parametrise
def test_entropy_is_that_of_bayesian_regression(backend, x64):
    """Of a Gaussian with the covariance of the weights, in virtual space, where these are standard normal a priori."""
    posterior = linear_fit(backend)
    sd = np.asarray(linear_sd)
    exact = Laplace().prior(jax.random.key(0), linear_dynamics())
    gain = float(exact.information_gain(linear_data(rows=40).states, linear_data(rows=40).actions))
    fallen = float(exact.entropy() - posterior.entropy())
    if posterior.model != linear_dynamics():  # a belief about functions has a virtual space of its own
        fallen = float(backend.prior(jax.random.key(0), linear_dynamics()).entropy() - posterior.entropy())
    size = len(sd) if sd.ndim else 1
    tolerance = 4 * np.sqrt(size / (2 * 100)) if isinstance(posterior, DrawsPosterior) else 1e-9  # 100 effective draws
    assert abs(fallen - gain) < tolerance, (fallen, gain)


@parametrise
def test_samples_have_names_shapes_and_supports(backend):
    posterior = pendulum_fit(backend)
    samples = posterior.samples(jax.random.key(0), 200)
    grouped = posterior.samples(jax.random.key(0), 200, group_by_chain=True)
    count = len(samples["process_noise"])
    if posterior.model != pendulum.dynamics():  # a belief about functions, whose sites are a network's
        assert set(samples) == {"network", "network.weights", "process_noise"}
        assert samples["network"].shape == samples["network.weights"].shape == (count, 4) and count == 200
        assert samples["process_noise"].shape == (count, 2) and np.all(samples["process_noise"] > 0)
        return
    assert set(samples) == {"mass", "length", "damping", "process_noise"}
    for name, values in samples.items():
        event = (2,) if name == "process_noise" else ()
        assert values.shape == (count, *event)
        assert grouped[name].shape[0] * grouped[name].shape[1] == count and grouped[name].shape[2:] == event
        assert np.array_equal(grouped[name].reshape(values.shape), values)
        assert np.all(values > 0)
    assert np.all(samples["damping"] < 0.12) and np.all(samples["length"] < 1.8)
    if not isinstance(posterior, DrawsPosterior):
        assert count == 200
        assert not np.array_equal(posterior.samples(jax.random.key(1), 200)["mass"], samples["mass"])


@parametrise
def test_samples_of_a_linear_model_are_those_of_bayesian_regression(backend, x64):
    """|z| < 4 by Monte Carlo standard error against the closed form; 8 numbers."""
    from test_exactness import Regression

    exact = Regression(linear_data(rows=40))
    sites = linear_fit(backend).samples(jax.random.key(3), 4000)
    theta = coefficients(sites)
    sd = np.sqrt(np.diag(exact.covariance))
    n = effective(linear_fit(backend), 4000)  # NUTS on a Gaussian of four dimensions: at least half its 500 draws
    assert np.all(np.abs(theta.mean(0) - exact.mean) < 4 * sd / np.sqrt(n))
    assert np.all(np.abs(theta.std(0) / sd - 1) < 4 / np.sqrt(2 * n))


# The shape of the importance weights is 0.4 here, but 500 draws of HMC estimate it anywhere from 0.3 to 0.7.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
def test_replicated_outcomes_are_the_predictions(x64):
    """Of transitions the predictive distribution's; each row, so many draws, with the coordinates of the outcomes."""
    posterior = linear_fit(backends[0].values[0])
    tree = posterior.to_arviz(draws=4000, predictive=True)
    replicated, observed = tree["posterior_predictive"]["next_state"], tree["observed_data"]["next_state"]
    assert replicated.dims == ("chain", "draw", *observed.dims)
    rows = np.asarray(posterior.data.valid)
    predicted = posterior.predict(posterior.data.states, posterior.data.actions)
    mean, sd = np.asarray(predicted.mean)[rows], np.sqrt(np.asarray(predicted.variance))[rows]
    assert np.max(np.abs(replicated.mean(("chain", "draw")) - mean) / sd) < 5 / np.sqrt(4000)
    np.testing.assert_allclose(replicated.std(("chain", "draw")), sd, rtol=0.08)
    assert "posterior_predictive" not in posterior.to_arviz(draws=20).children


@parametrise
def test_to_arviz_is_complete_and_survives_a_file(backend, tmp_path):
    import arviz_stats
    import xarray

    posterior = pendulum_fit(backend)
    own = posterior.model == pendulum.dynamics()  # not a belief about functions, whose sites are a network's
    tree = posterior.to_arviz(draws=2000)
    groups = {"posterior", "prior", "log_likelihood", "observed_data"}
    assert groups <= set(tree.children)
    assert ("sample_stats" in tree.children) == bool(posterior.sample_stats())
    rows = int(np.sum(posterior.data.valid))
    assert rows == 60 < len(posterior.data)
    assert tree["log_likelihood"]["next_state"].shape[2:] == (rows,)
    assert tree["observed_data"]["next_state"].shape == (rows, 2)
    assert np.allclose(tree["observed_data"]["next_state"], np.asarray(posterior.data.next_states)[:rows], atol=1e-12)
    noise = tree["posterior"]["process_noise"]
    assert noise.dims == ("chain", "draw", "state") and list(noise.coords["state"].values) == ["angle", "velocity"]
    units = {"mass": "kg", "length": "m", "damping": "N m s/rad"} if own else {"process_noise": "rad, rad/s"}
    assert {n: tree["posterior"][n].attrs["units"] for n in units} == units
    assert set(tree["prior"].data_vars) == set(tree["posterior"].data_vars)

    # The pointwise log likelihood is that of the draws' own transitions, by hand for one draw.
    sites = {name: np.asarray(tree["posterior"][name])[0, 7] for name in posterior.space.names} | posterior.params
    with jax.enable_x64(True):
        transition = posterior.model.transition(sites)
        data = posterior.data
        mean = np.asarray(jax.vmap(transition)(data.states[:rows], data.actions[:rows]))
        sd = np.asarray(transition.noise) + 1e-6 * pendulum.state.scale
    error = (np.asarray(data.next_states)[:rows] - mean) / sd
    by_hand = np.sum(-0.5 * error**2 - np.log(sd) - 0.5 * np.log(2 * np.pi), axis=1)
    assert np.allclose(tree["log_likelihood"]["next_state"][0, 7], by_hand, rtol=1e-4, atol=1e-4)

    table = arviz_stats.summary(tree, var_names=["mass", "process_noise"] if own else ["process_noise"])
    assert list(table.index) == ["mass"] * own + ["process_noise[angle]", "process_noise[velocity]"]
    assert np.isfinite(arviz_stats.loo(tree).elpd)

    tree.to_netcdf(tmp_path / "fit.nc")
    with xarray.open_datatree(tmp_path / "fit.nc") as read:
        for group in tree.children:
            for name in tree[group].data_vars:
                assert np.array_equal(read[group][name], tree[group][name])
        assert {n: read["posterior"][n].attrs["units"] for n in units} == units
        assert read.attrs["status"] == "OK"


@parametrise
def test_the_prior_is_a_posterior(backend, x64):
    dynamics = linear_dynamics()
    prior = backend.prior(jax.random.key(4), dynamics)
    sites = prior.samples(jax.random.key(1), 4000)
    theta = coefficients(sites)
    n = effective(prior, 4000)
    assert np.all(np.abs(theta.mean(0) - linear_mean) < 4 * linear_sd / np.sqrt(n))
    assert np.all(np.abs(theta.std(0) / linear_sd - 1) < 4 / np.sqrt(2 * n))
    new = linear_data(seed=7, rows=12)
    gain = prior.information_gain(new.states, new.actions)
    assert gain > linear_fit(backend).information_gain(new.states, new.actions)
    assert np.all(np.isfinite(prior.draw(jax.random.key(0))(STATES[0], ACTIONS[0])))


@parametrise
def test_an_update_is_the_fit_of_all_data(backend):
    data = linear_data(rows=40)
    first = pp.fit(jax.random.key(0), linear_dynamics(), data[:25], backend)
    updated = backend.update(jax.random.key(0), first, data[25:])
    # An update searches from one point, and finds one mode.
    one, whole = ({k: v for k, v in vars(p).items() if k != "found"} for p in (updated, linear_fit(backend)))
    for ours, union in zip(*(leaves(eqx.filter(fields, eqx.is_array)) for fields in (one, whole)), strict=True):
        assert np.allclose(ours, union, rtol=1e-8, atol=1e-8)


@parametrise
def test_a_belief_survives_a_file_bit_by_bit(backend, tmp_path):
    posterior = linear_fit(backend)
    posterior.save(tmp_path / "belief")
    model = linear_dynamics()  # made anew; of a belief about functions the network in its place
    again = pp.load(tmp_path / "belief", model if posterior.model == model else backend.network(model))
    assert jax.tree.structure(again) == jax.tree.structure(posterior) and again.timing == posterior.timing
    for ours, saved in zip(jax.tree.leaves(again), jax.tree.leaves(posterior), strict=True):
        assert type(ours) is type(saved) and ours.dtype == saved.dtype and np.array_equal(ours, saved)
    for use in (
        lambda p: p.draw(jax.random.key(1)).sites,
        lambda p: p.basis(STATES, ACTIONS),
        lambda p: p.samples(jax.random.key(1), 20),
        lambda p: p.sample_stats(),
    ):
        pairs = zip(jax.tree.leaves(use(again)), jax.tree.leaves(use(posterior)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


@parametrise
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_results_have_the_callers_precision_and_the_belief_double(backend, double):
    posterior, expected = linear_fit(backend), np.float64 if double else np.float32
    assert {x.dtype for x in leaves(posterior)} == {np.dtype(np.float64)}
    with jax.enable_x64(double):
        draw = posterior.draw(jax.random.key(1))
        predicted = posterior.predict(STATES, ACTIONS)
        results = [
            draw,
            draw(STATES[0], ACTIONS[0]),
            draw.sample(jax.random.key(0), STATES[0], ACTIONS[0]),
            pp.rollout(draw, jnp.asarray(STATES[0], expected), ACTIONS),
            posterior.basis(STATES, ACTIONS),
            posterior.covariance(STATES, ACTIONS),
            (predicted.mean, predicted.covariance_matrix, predicted.scale_tril),
            posterior.information_gain(STATES, ACTIONS),
            posterior.noise(),
            posterior.samples(jax.random.key(0), 10),
        ]
    for result in results:
        assert {x.dtype for x in leaves(result)} == {np.dtype(expected)}
    with jax.enable_x64(True):
        exact = posterior.basis(STATES, ACTIONS)
    assert np.allclose(results[4][0], exact[0], rtol=1e-6) and np.allclose(
        results[4][1], exact[1], rtol=1e-4, atol=1e-6
    )


# A batch of samplers compiles for long, and each sampler is a batch of chains.
@pytest.mark.parametrize(
    "backend", [pytest.param(*p.values, id=p.id, marks=SCIENCE if p.id == "HMC" else p.marks) for p in backends]
)
def test_fits_run_side_by_side_under_vmap(backend, x64):
    """The core is pure: two recordings in one program equal one after the other."""
    if isinstance(backend, HMC):  # along a chain rounding grows
        backend = dataclasses.replace(backend, draws=20, warmup=20)
    parts = [linear_data(seed=s, rows=16) for s in (0, 1)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *parts)
    dynamics, keys = linear_dynamics(), jax.random.split(jax.random.key(0), 2)
    fit = lambda k, d: leaves_of(backend.fit(k, dynamics, d))  # noqa: E731
    together, one = jax.jit(jax.vmap(fit))(keys, stacked), jax.jit(fit)
    for i, part in enumerate(parts):
        for ours, expected in zip(together, one(keys[i], part), strict=True):
            assert np.allclose(ours[i], expected, rtol=1e-6, atol=1e-6)


def leaves_of(posterior):
    return jax.tree.leaves(eqx.filter(posterior, eqx.is_inexact_array))
