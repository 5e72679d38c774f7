"""Function-space inference: its algebra against closed forms, and a network against its function prior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    linear_data,
    linear_dynamics,
    linear_features,
    linear_mean,
    linear_noise,
    linear_sd,
    own_features,
    recording,
)
from test_exactness import Regression

import physppl as pp
from physppl.data.input_measures import Box, JitteredData, Mixture, Visited
from physppl.inference import FunctionSpaceVI, JointKL, Laplace, Printed, Projected, Slack
from physppl.inference import function_space as algebra
from physppl.inference.function_space import PriorPoints, Weights
from physppl.models import pendulum

NOISE = np.array([0.002, 0.02])
RHO = Box(bounds={"velocity": (-8.0, 8.0)})


def problem(seed: int = 0, count: int = 30, rows: int = 20):
    """The linear Step's prior at points, and data, all in the coordinates' own units."""
    rng = np.random.default_rng(seed)

    def design(n):
        inputs = zip(rng.normal(size=(n, 2)), rng.uniform(-1, 1, (n, 1)), strict=True)
        return np.array([linear_features(np, x, u) for x, u in inputs])

    features, data = design(count), design(rows)
    points = PriorPoints(jnp.asarray(features), jnp.asarray(features @ linear_mean), jnp.asarray(features * linear_sd))
    theta = linear_mean + linear_sd * rng.normal(size=4)
    return points, jnp.asarray(data), jnp.asarray(data @ theta + linear_noise * rng.normal(size=data.shape[:2]))


def regression(rows, values):
    """Mean and covariance of Bayesian linear regression."""
    flat = np.asarray(rows / linear_noise[:, None]).reshape(-1, 4)
    covariance = np.linalg.inv(np.diag(linear_sd**-2.0) + flat.T @ flat)
    return covariance @ (linear_mean / linear_sd**2 + flat.T @ np.asarray(values / linear_noise).ravel()), covariance


def updated(weights: Weights, rows, values):
    statistics = algebra.sufficient_statistics(weights, rows, values, jnp.ones(len(rows)))
    mean, precision = algebra.conditioned(statistics, jnp.asarray(linear_noise))
    return weights.mean + weights.factor @ mean, weights.factor @ np.linalg.inv(precision) @ weights.factor.T


@pytest.mark.parametrize("objective, tolerance", [(Projected(), 1e-8), (JointKL(nugget=1e-3), 1e-4)])
def test_on_a_linear_model_it_is_bayesian_linear_regression(objective, tolerance, x64):
    points, rows, values = problem()
    mean, covariance = updated(objective.weights(points), rows, values)
    exact_mean, exact = regression(rows, values)
    sd = np.sqrt(np.diag(exact))
    assert np.abs((mean - exact_mean) / sd).max() < tolerance
    assert np.abs((covariance - exact) / np.outer(sd, sd)).max() < tolerance


def test_a_prior_of_deficient_rank_is_updated_without_its_inverse(x64):
    points, rows, values = problem()
    known = np.array([0.0, 1.0, 1.0, 1.0])  # the drift is known
    weights = Projected().weights(points._replace(factor=points.factor * known))
    mean, covariance = updated(weights, rows, values)
    assert abs(mean[0] - linear_mean[0]) < 1e-8 and np.abs(covariance[0]).max() < 1e-12
    free = np.asarray(rows)[..., 1:] * linear_sd[1:] / linear_noise[:, None]
    rest = np.asarray((values - rows @ linear_mean) / linear_noise)
    gram = np.eye(3) + np.einsum("nda,ndb->ab", free, free)
    expected = linear_mean[1:] + linear_sd[1:] * np.linalg.solve(gram, np.einsum("nda,nd->a", free, rest))
    assert np.allclose(mean[1:], expected, rtol=1e-8)


def test_the_evidence_is_that_of_the_joint_gaussian(x64):
    points, rows, values = problem(rows=7)
    weights = Projected().weights(points)
    found = algebra.log_evidence(
        algebra.sufficient_statistics(weights, rows, values, jnp.ones(7)), jnp.asarray(linear_noise)
    )
    flat = np.asarray(rows).reshape(14, 4) * linear_sd
    covariance = flat @ flat.T + np.diag(np.tile(linear_noise**2, 7))
    rest = np.asarray(values - rows @ linear_mean).ravel()
    exact = -0.5 * (rest @ np.linalg.solve(covariance, rest) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    assert abs(found - exact) < 1e-7


def test_what_features_miss_becomes_variance_of_the_weights(x64):
    """Over the points and for each output, no variance of the prior's functions is lost."""
    rng = np.random.default_rng(0)
    features = np.zeros((200, 2, 10))
    features[:, 0, :5] = features[:, 1, 5:] = rng.normal(size=(200, 5))  # outputs share features, not weights
    points = PriorPoints(*map(jnp.asarray, (features, rng.normal(size=(200, 2)) * 0.1, rng.normal(size=(200, 2, 3)))))
    weights, alone = Projected().weights(points), algebra.regress_prior(points, 1e-8)
    variance = lambda factor: np.mean(np.sum((points.features @ factor) ** 2, axis=-1), axis=0)  # noqa: E731
    gained = variance(weights.factor) - variance(alone.factor)
    assert np.allclose(gained, algebra.residual_variance(points, alone), rtol=1e-8)
    wanted = np.mean(np.sum(points.factor**2, axis=-1) + (points.mean - points.features @ weights.mean) ** 2, axis=0)
    assert np.allclose(variance(weights.factor), wanted, rtol=1e-6)


def test_the_joint_divergence_is_minimal_where_its_closed_form_says(x64):
    """Against plain gradient descent on KL[N(Phi m, Phi S Phi' + e I) || N(mu, K)] at the points as e goes to zero.

    The prior's functions reach beyond the span of the features here.
    """
    rng = np.random.default_rng(1)
    flat, mu, prior = rng.normal(size=(12, 3)), rng.normal(size=12), rng.normal(size=(12, 2))
    points = PriorPoints(*map(jnp.asarray, (flat[:, None], mu[:, None], prior[:, None])))
    objective = JointKL(nugget=0.3, ridge=1e-14)
    found = objective.weights(points)
    nugget = 0.3 * np.sqrt(np.sum(prior**2, axis=1))
    precision = np.linalg.inv(prior @ prior.T + np.diag(nugget**2))
    information = flat.T @ precision @ flat
    assert np.allclose(found.mean, np.linalg.solve(information, flat.T @ precision @ mu), rtol=1e-8)
    assert np.allclose(found.factor @ found.factor.T, np.linalg.inv(information), rtol=1e-8)

    def divergence(parts, e):
        mean, root = parts
        within, error = flat @ root @ root.T @ flat.T + e * jnp.eye(12), flat @ mean - mu
        return 0.5 * (jnp.trace(precision @ within) + error @ precision @ error - jnp.linalg.slogdet(within)[1])

    at = lambda e: divergence((found.mean, found.factor), e)  # noqa: E731
    slopes = [jax.grad(divergence)((found.mean, found.factor), e) for e in (1e-4, 1e-8)]
    assert np.abs(slopes[1][0]).max() < 1e-6 and np.abs(slopes[1][1]).max() < 1e-4  # stationary, and so in the limit
    assert np.abs(slopes[1][1]).max() < 1e-3 * np.abs(slopes[0][1]).max()
    other = (found.mean + 0.01, found.factor * 1.01)
    assert at(1e-8) < divergence(other, 1e-8)


@pytest.mark.parametrize("rows", [0, 3, 60])
def test_the_printed_objective_is_climbed_the_same_by_coordinates_and_by_gradient(rows, x64):
    points, data, values = problem(rows=max(rows, 1))
    objective, noise = Printed(), jnp.asarray(linear_noise)
    identity = Weights(jnp.zeros(4), jnp.eye(4))
    statistics = algebra.sufficient_statistics(identity, data, values, jnp.full(len(data), float(rows > 0)))
    best = objective.solve(points, statistics, noise)
    value = jax.jit(lambda w: objective.value(points, statistics, noise, w))
    optimiser = optax.adam(optax.cosine_decay_schedule(0.05, 3000))
    start = Weights(jnp.asarray(linear_mean), jnp.diag(jnp.asarray(linear_sd)))

    def climb(carry, _):
        weights, state = carry
        change, state = optimiser.update(
            jax.grad(lambda w: -objective.value(points, statistics, noise, w))(weights), state
        )
        return (optax.apply_updates(weights, change), state), None

    (plain, _), _ = jax.lax.scan(climb, (start, optimiser.init(start)), length=3000)
    ours, theirs = float(value(best)), float(value(plain))
    size = max(abs(theirs), 1.0)  # without data the optimum is zero
    assert abs(ours - theirs) < 1e-3 * size, (ours, theirs)
    if not rows:  # the prior itself is the optimum
        assert np.allclose(best.mean, linear_mean, atol=1e-6)
        assert np.allclose(best.factor @ best.factor.T, np.diag(linear_sd**2), rtol=0.01, atol=1e-3)


def test_the_printed_objective_collapses_where_the_conjugate_answer_does_not(x64):
    """At S = 0 its slope is (beta Q - H) / 2 noise^2 with the Gram matrices of measure and data."""
    sds = {}
    for rows in (1, 60):
        points, data, values = problem(rows=rows)
        statistics = algebra.sufficient_statistics(Weights(jnp.zeros(4), jnp.eye(4)), data, values, jnp.ones(rows))
        printed = Printed(iterations=2000).solve(points, statistics, jnp.asarray(linear_noise))
        sds[rows] = np.sqrt(np.diag(printed.factor @ printed.factor.T)), np.sqrt(np.diag(regression(data, values)[1]))
    assert np.all(sds[60][0] < 0.02 * sds[60][1])
    assert np.any(sds[1][0] > 0.3 * sds[1][1])


@functools.cache
def function_prior() -> pp.Posterior:
    return Laplace().prior(jax.random.key(0), pendulum.dynamics(process_noise=NOISE))


@functools.cache
def at_rest() -> pp.Transitions:
    """Sixty transitions of a pendulum that hangs still: they tell nothing of its physics."""
    rng, dynamics = np.random.default_rng(0), pendulum.dynamics(process_noise=NOISE)
    states, actions = 5e-5 * rng.normal(size=(60, 2)), 5e-5 * rng.normal(size=(60, 1))
    with jax.enable_x64(True):
        step = dynamics.transition(pendulum.truth)
        after = np.asarray(jax.vmap(step)(jnp.asarray(states), jnp.asarray(actions)))
    return pp.Transitions(states, actions, after + NOISE * rng.normal(size=states.shape))


def moments(posterior, states, actions):
    """Mean, sd and the outputs' correlation at each point."""
    mean, factor = (np.asarray(x) for x in posterior.basis(states, actions))
    sd = np.sqrt(np.sum(factor**2, axis=-1))
    return mean, sd, np.sum(factor[:, 0] * factor[:, 1], axis=-1) / np.prod(sd, axis=-1)


@pytest.mark.science
@pytest.mark.parametrize("objective", [Projected(), JointKL()], ids=["Projected", "JointKL"])
def test_far_from_data_the_network_says_what_the_physics_prior_says(objective, x64):
    """Inside rho and three length scales from data; tanh units of frequency 1 turn over within half a unit of input."""
    dynamics, data = pendulum.dynamics(process_noise=NOISE), at_rest()
    backend = FunctionSpaceVI(measure=Mixture(RHO, JitteredData(), weights=(3.0, 1.0)), objective=objective)
    posterior = pp.fit(jax.random.key(3), dynamics, data, backend)
    with jax.enable_x64(True):
        states, actions = (np.asarray(x) for x in RHO.sample(jax.random.key(9), 2000, dynamics, data))
    inputs = np.column_stack([np.sin(states[:, 0]), np.cos(states[:, 0]), states[:, 1] / 4, actions[:, 0] / 2.5])
    far = np.linalg.norm(inputs - [0.0, 1.0, 0.0, 0.0], axis=1) > 1.5
    assert far.sum() > 1000
    mean, sd, correlation = (x[far] for x in moments(posterior, states, actions))
    prior_mean, prior_sd, prior_correlation = (x[far] for x in moments(function_prior(), states, actions))
    error, ratio = np.abs(mean - prior_mean) / prior_sd, np.abs(sd / prior_sd - 1)
    apart = np.abs(correlation - prior_correlation)
    within = (error.max(axis=1) < 0.1) & (ratio.max(axis=1) < 0.1) & (apart < 0.05)
    assert np.all(within), (np.mean(within), error.max(), ratio.max(), apart.max())


WIDTH = 64


@functools.cache
def network_fit() -> pp.Posterior:
    """Of a network to data of a pendulum whose noise is not known: wide enough for jaxlib to share factorisations out
    among threads, of which two at once never ended on two cores.
    """
    dynamics = pendulum.dynamics()
    backend = FunctionSpaceVI(width=WIDTH, points=256, steps=50, slack=Slack(scale=0.01))
    return pp.fit(jax.random.key(0), dynamics, recording(dynamics, pendulum.truth, steps=60), backend)


@pytest.mark.science
def test_a_noise_with_a_prior_is_chosen_by_the_evidence(x64):
    posterior = network_fit()
    spread = 0.02 * pendulum.state.scale  # of the recording
    assert np.all(posterior.noise() < 1.5 * spread) and np.all(posterior.noise() > 0.67 * spread)
    sd = np.std(np.log(posterior.samples(jax.random.key(0), 2000)["process_noise"]), axis=0)
    assert np.all(sd > 0.8 / np.sqrt(120)) and np.all(sd < 2 / np.sqrt(120))


@pytest.mark.science
def test_the_belief_is_about_a_network_that_is_equal_wherever_it_is_made(tmp_path):
    posterior, backend = network_fit(), FunctionSpaceVI(width=WIDTH)
    network = backend.network(pendulum.dynamics())
    assert posterior.model == network and hash(posterior.model) == hash(network)
    assert backend.network(network) == network
    posterior.save(tmp_path / "belief")
    again = pp.load(tmp_path / "belief", network)
    states, actions = np.array([[0.3, -0.5], [2.0, 1.0]]), np.array([[0.5], [-1.0]])
    assert np.array_equal(again.basis(states, actions)[1], posterior.basis(states, actions)[1])
    draw = posterior.draw(jax.random.key(1))
    assert np.all(np.isfinite(pp.rollout(draw, states[0], actions)))


def test_points_of_a_measure_lie_where_it_says(x64):
    dynamics, data = pendulum.dynamics(), recording(pendulum.dynamics(), pendulum.truth, steps=20)
    key = jax.random.key(0)
    states, actions = RHO.sample(key, 500, dynamics, data)
    assert np.all(np.abs(states) < [np.pi, 8.0]) and np.all(np.abs(states).max(axis=0) > [3.0, 7.5])
    assert np.all(np.abs(actions) < 2.5)
    near, _ = JitteredData(sd=0.0).sample(key, 50, dynamics, data.pad(32))
    assert all(np.any(np.all(np.isclose(x, data.states), axis=1)) for x in near)
    nowhere, _ = JitteredData().sample(key, 50, dynamics, _none(data))
    assert np.all(np.isfinite(nowhere)) and np.ptp(nowhere[:, 0]) > 3
    visited = Visited(np.array([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), np.array([[0.1], [0.2]]))
    states, actions = Mixture(Box(), visited, weights=(3.0, 1.0)).sample(key, 40, dynamics, data)
    assert states.shape == (40, 2) and actions.shape == (40, 1)
    assert set(np.asarray(states[30:, 0])) == {1.0, 3.0}


def test_a_mixture_shares_points_by_weight():
    one, other = (Visited(np.full((1, 2), value), np.zeros((1, 1))) for value in (0.0, 1.0))
    states, _ = Mixture(one, other, weights=(3.0, 1.0)).sample(jax.random.key(0), 40, linear_dynamics(), linear_data())
    assert np.array_equal(states[:, 0], [0.0] * 30 + [1.0] * 10)


def test_the_evidence_is_in_the_units_of_the_data(x64):
    """On features that span the program it is that of Bayesian regression, where a coordinate's scale is not one."""
    data = linear_data(rows=8)
    backend = FunctionSpaceVI(features=own_features, points=32)
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), data, backend)
    assert float(posterior.log_evidence) == pytest.approx(Regression(data).log_evidence(), abs=1e-4)


def _none(data: pp.Transitions) -> pp.Transitions:
    return pp.Transitions(data.states, data.actions, data.next_states, valid=np.zeros(len(data), bool))


def test_errors_name_what_came_and_what_to_do():
    dynamics, data = linear_dynamics(), linear_data(rows=4)
    fit = lambda backend: pp.fit(jax.random.key(0), dynamics, data, backend)  # noqa: E731
    with pytest.raises(ValueError, match="the function prior has state .* the model .* Fit the prior with"):
        fit(FunctionSpaceVI(function_prior=function_prior()))
    with pytest.raises(ValueError, match="20 points of 2 coordinates cannot determine 256 weights: raise `points`"):
        fit(FunctionSpaceVI(points=20))
    with pytest.raises(ValueError, match=r"must be \(F,\), or \(D, P\) with D = 2 \(level, flow\); got shape \(3, 4\)"):
        fit(FunctionSpaceVI(features=lambda x, u: jnp.ones((3, 4))))
    with pytest.raises(KeyError, match="no coordinate 'velocity'.*Known: level, flow, valve"):
        fit(FunctionSpaceVI(measure=RHO))
    with pytest.raises(ValueError, match="Slack: scale has 3 entries; the state has 2"):
        fit(FunctionSpaceVI(slack=Slack(scale=(0.1, 0.1, 0.1)), width=4, points=8))
    with pytest.raises(TypeError, match="function_prior"):
        FunctionSpaceVI(function_prior="posterior")
    with pytest.raises(TypeError, match="objective"):  # of the types' own check, where that is on
        FunctionSpaceVI(objective="projected")
    with pytest.raises(ValueError, match="extent must be positive"):
        Box(extent=-1.0)
