"""Laplace for thousands of weights: structures of the covariance as pure algebra, then the backend."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import (
    linear_action,
    linear_data,
    linear_dynamics,
    linear_features,
    linear_program,
    linear_state,
    recording,
)
from test_exactness import Regression

import physppl as pp
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import (
    DataSpace,
    Diagonal,
    Full,
    Laplace,
    LastLayer,
    LowRank,
    NeuralLinear,
    Pathwise,
    StructuredLaplace,
    laplace,
    structured,
)
from physppl.inference.gauss_newton import Problem
from physppl.inference.products import Whitened
from physppl.models import pendulum

ROWS, SIZE = 60, 300


@pytest.fixture(scope="module")
def jacobian() -> np.ndarray:
    """(n, P) with singular values from 300 down to 0.01: an ill-conditioned network's."""
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.normal(size=(ROWS, ROWS)))[0], np.linalg.qr(rng.normal(size=(SIZE, ROWS)))[0]
    return left * np.geomspace(300, 0.01, ROWS) @ right.T


def exact(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.eye(matrix.shape[1]) + matrix.T @ matrix)


def half_log_det(matrix: np.ndarray) -> float:
    return 0.5 * np.linalg.slogdet(np.eye(len(matrix)) + matrix @ matrix.T)[1]


def root_of(structure, matrix):
    return jax.jit(lambda m: structure.root(jax.random.key(0), Whitened.of(m), m.dtype))(jnp.asarray(matrix))


def covariance(root, size: int = SIZE) -> np.ndarray:
    factor = np.asarray(root.along(jnp.eye(size)))
    return factor @ factor.T


def test_full_diagonal_and_last_layer_are_what_numpy_makes_of_them(jacobian, x64):
    assert np.allclose(covariance(root_of(Full(), jacobian)), exact(jacobian), atol=1e-10)
    assert np.isclose(root_of(Full(), jacobian).half_log_det, half_log_det(jacobian))
    for matrix in (jacobian, jacobian.T[:, :40]):  # few rows, and many
        size = matrix.shape[1]
        precision = 1 + np.sum(matrix**2, axis=0)
        root = root_of(Diagonal(), matrix)
        assert np.allclose(covariance(root, size), np.diag(1 / precision))
        assert np.isclose(root.half_log_det, 0.5 * np.sum(np.log(precision)))
    last = covariance(root_of(LastLayer(20), jacobian))
    assert np.allclose(last[-20:, -20:], exact(jacobian[:, -20:])) and np.count_nonzero(last) == 400


@pytest.mark.science
def test_low_rank_keeps_the_prior_on_what_it_leaves_out(jacobian, x64):
    root, whole = root_of(LowRank(30), jacobian), exact(jacobian)
    found = covariance(root)
    assert np.trace(jacobian @ found @ jacobian.T) > 1.05 * np.trace(jacobian @ whole @ jacobian.T)
    values = np.linalg.eigvalsh(found)
    assert np.isclose(values[0], 1 / (1 + 300**2), rtol=1e-3) and np.allclose(values[30:], 1.0)
    few = jacobian[:, :20]  # all directions there are
    assert np.allclose(covariance(root_of(LowRank(30), few), 20), exact(few), atol=1e-10)


@pytest.mark.science
def test_a_calibrated_complement_has_the_right_mean_variance_at_the_data(jacobian, x64):
    found, whole = covariance(root_of(LowRank(30, calibrated=True), jacobian)), exact(jacobian)
    ratio = np.trace(jacobian @ found @ jacobian.T) / np.trace(jacobian @ whole @ jacobian.T)
    assert abs(ratio - 1) < 0.02  # of which half is the traces' own error
    nowhere = np.eye(SIZE) - np.linalg.pinv(jacobian) @ jacobian  # directions that no row has
    assert np.trace(nowhere @ found @ nowhere) < 0.9 * np.trace(nowhere @ whole @ nowhere)  # and is too sure there


@pytest.mark.parametrize(
    "structure", [DataSpace(200), pytest.param(Pathwise(200, rank=20, tolerance=1e-3), marks=pytest.mark.science)]
)
def test_draws_have_the_posterior_covariance(structure, jacobian, x64):
    root, whole = root_of(structure, jacobian), exact(jacobian)
    assert root.rows.shape == (200, SIZE)
    for rows in (jacobian[::7], np.random.default_rng(1).normal(size=(10, SIZE))):  # near the data, and anywhere
        ratio = np.sum(np.asarray(root.along(jnp.asarray(rows))) ** 2, axis=1) / np.einsum(
            "np,pq,nq->n", rows, whole, rows
        )
        assert np.all(np.abs(ratio - 1) < 4 * np.sqrt(2 / 200))
    assert np.isclose(root.half_log_det, half_log_det(jacobian), rtol=0.1)  # a stochastic trace's, of Pathwise


@pytest.mark.science
def test_what_a_root_draws_and_spreads_is_its_covariance(jacobian, x64):
    probe = np.random.default_rng(1).normal(size=SIZE)
    for structure in (LastLayer(20), Diagonal()):  # a root of rows, and one of sds and directions
        root = root_of(structure, jacobian)
        variance = float(jnp.sum(root.along(jnp.asarray(probe)) ** 2))
        drawn = np.asarray(root.draw(jax.random.key(1), 2000)) @ probe
        assert abs(np.mean(drawn**2) / variance - 1) < 4 * np.sqrt(2 / 2000)
        spread = np.asarray(root.spread(jax.random.key(1), 2000)) @ probe
        assert abs(np.sum(spread**2) / variance - 1) < 4 * np.sqrt(2 / 2000)


def test_entropy_is_that_of_bayesian_regression(x64):
    data = linear_data(rows=4)
    exact = Regression(data)
    at = eqx.filter_jit(structured.at)
    posterior = at(jax.random.key(0), linear_dynamics(), data, jnp.asarray(exact.mean), DataSpace())
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * exact.covariance)[1]
    assert float(posterior.entropy()) == pytest.approx(entropy, abs=1e-8)


def test_noises_count_what_parameters_explain(x64):
    """Under a prior that is all but flat: the variance is the sum of squares over rows less effective parameters."""
    wide = dist.LogNormal(0.0, 1e4)
    dynamics, data = pp.Dynamics(linear_program, linear_state, linear_action, dt=0.1, process_noise=wide), linear_data()
    problem = Problem(UnconstrainedSpace.of(dynamics, data), dynamics, jax.tree.map(jnp.asarray, data))
    z, squares, gamma = jnp.zeros(6), jnp.array([20.0, 90.0]), jnp.array([4.0, 10.0])
    log_noise = problem.log_noise(z)
    entries = jax.jit(lambda z: structured._noise_entries(problem, z, log_noise, squares, gamma))(z)
    ratio = problem.log_noise(z.at[problem.noises].set(entries)) - log_noise
    np.testing.assert_allclose(np.exp(2 * ratio), squares / (40 - gamma), rtol=1e-4)


@pytest.mark.science
def test_on_a_linear_program_it_is_laplace(x64):
    data = linear_data(rows=40)
    ours = pp.fit(jax.random.key(0), linear_dynamics(), data, StructuredLaplace(rounds=1))
    theirs = laplace.at(linear_dynamics(), ours.data, ours.mode)
    assert np.allclose(ours.factor.T @ ours.factor, theirs.factor.T @ theirs.factor, atol=1e-12)
    assert np.isclose(ours.log_evidence, theirs.log_evidence, atol=1e-8)
    _, gradient = jax.value_and_grad(lambda z: sum(densities(ours, z)))(ours.mode)
    assert np.abs(gradient).max() < 1e-6
    assert np.isclose(ours.entropy(), theirs.entropy())


def densities(posterior, z):
    return posterior.space.log_densities(posterior.space.trace(posterior.model, z, posterior.data), z)


def mixed() -> pp.Dynamics:
    """Physics and all weights of a small network, known noise."""

    def program():
        net = pp.residual("net", pendulum.state, pendulum.action, width=6, depth=2, weights="all", scale=0.3)
        return pp.step_residual(pendulum.program(), net)

    return pp.Dynamics(program, pendulum.state, pendulum.action, dt=0.05, process_noise=[0.02, 0.08])


@pytest.mark.science
def test_physics_and_weights_are_believed_jointly(x64):
    model = mixed()
    data = recording(pendulum.dynamics(), pendulum.truth, steps=60)
    space = UnconstrainedSpace.of(model, data)
    z = space.draw_prior(jax.random.key(0), model, data)
    theirs = jax.jit(lambda z: laplace.at(model, data, z))(z)
    ours = jax.jit(lambda z: structured.at(jax.random.key(0), model, data, z, Full()))(z)
    assert np.allclose(ours.factor.T @ ours.factor, theirs.factor.T @ theirs.factor, atol=1e-10)
    assert np.isclose(ours.log_evidence, theirs.log_evidence, rtol=1e-10)
    states, actions = np.array([[0.3, -0.5], [2.0, 3.0]]), np.array([[0.5], [-1.0]])
    mean, factor = ours.basis(states, actions)
    assert np.allclose(mean, theirs.basis(states, actions)[0])
    assert np.allclose(ours.covariance(states, actions), theirs.covariance(states, actions), atol=1e-10)


def test_learned_prior_sds_of_all_weights_are_a_param(x64):
    def program():
        return pp.residual("net", pendulum.state, pendulum.action, width=5, depth=1, weights="all", learned=True)

    trace = numpyro.handlers.trace(numpyro.handlers.seed(program, jax.random.key(0))).get_trace()
    assert np.allclose(trace["net.scale"]["value"], [1.0, 1.0, 0.1])
    assert np.allclose(trace["net"]["fn"].base_dist.scale, np.repeat([1.0, 1.0, 0.1], [20, 5, 10]))


def bound(program) -> pp.Dynamics:
    return pp.Dynamics(program, linear_state, linear_action, dt=0.1, process_noise=0.1)


def coupled():
    sd = numpyro.sample("sd", dist.LogNormal(0.0, 1.0))
    weights = numpyro.sample("weights", dist.Normal(0.0, sd).expand([4]).to_event(1))
    return pp.Step(lambda t, x, u: x + linear_features(jnp, x, u) @ weights)


def test_what_it_cannot_do_is_said(as_user):
    key, data = jax.random.key(0), linear_data(rows=4)
    with pytest.raises(ValueError, match=r"prior couples parameters \(sd, weights\).*non-centred"):
        pp.fit(key, bound(coupled), data, StructuredLaplace())

    with pytest.raises(TypeError, match="Transitions of one machine"):
        pp.fit(key, lambda data: numpyro.sample("x", dist.Normal()), data, StructuredLaplace())
    with pytest.raises(TypeError, match="an object such as DataSpace"):
        StructuredLaplace(Full)
    for wrong in (lambda: LowRank(0), lambda: Pathwise(tolerance=2.0), lambda: DataSpace(0), lambda: LastLayer(0)):
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(ValueError, match="rounds >= 0"):
        StructuredLaplace(rounds=-1)


@pytest.mark.science
def test_params_that_are_no_prior_sds_and_too_many_last_weights_are_refused(as_user):
    key, data = jax.random.key(0), linear_data(rows=4)

    def featured():
        net = pp.residual("net", linear_state, linear_action, width=4, learned=True)
        return pp.Step(lambda t, x, u: x + net(x, u))

    with pytest.raises(ValueError, match="'net.features' changes what the program predicts"):
        pp.fit(key, bound(featured), data, StructuredLaplace())
    with pytest.raises(ValueError, match="has 4 parameters beside its noise; got size=5"):
        pp.fit(key, linear_dynamics(), data, StructuredLaplace(LastLayer(5)))


@pytest.mark.science
def test_noises_are_where_the_climb_of_the_evidence_ends():
    model = pendulum.dynamics()
    data = recording(model, pendulum.truth, steps=60)
    ours = pp.fit(jax.random.key(0), model, data, StructuredLaplace())
    theirs = pp.fit(jax.random.key(0), model, data, NeuralLinear())
    assert np.allclose(ours.mode, theirs.mode, atol=1e-6)
    assert np.isclose(ours.log_evidence, theirs.log_evidence, atol=1e-6)
    joint = pp.fit(jax.random.key(0), model, data, Laplace())
    assert np.all(np.asarray(ours.noise()) > np.asarray(joint.noise()))  # whose bias the joint mode has


@pytest.mark.science
def test_prior_sds_are_where_the_climb_of_the_evidence_ends():
    """Two groups of weights, linear: the fixed point against Adam on the evidence itself."""
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(4, 30)))

    def program():
        scale = numpyro.param("scale", jnp.array([1.0, 1.0]), constraint=dist.constraints.positive)
        sds = jnp.asarray(scale)[np.repeat([0, 1], [20, 10])]
        weights = numpyro.sample("weights", dist.Normal(0.0, sds).to_event(1))
        turned = lambda x, u: jnp.sin(jnp.concatenate([x, u, jnp.ones(1)]) @ matrix)  # noqa: E731
        return pp.Step(
            lambda t, x, u: x + jnp.stack([turned(x, u)[:20] @ weights[:20], turned(x, u)[20:] @ weights[20:]])
        )

    model = pp.Dynamics(program, linear_state, linear_action, dt=0.1)
    weights = np.concatenate([0.3 * rng.normal(size=20), 2.0 * rng.normal(size=10)])
    states, actions = rng.normal(size=(200, 2)), rng.uniform(-1, 1, (200, 1))
    units = np.sin(np.column_stack([states, actions, np.ones(200)]) @ np.asarray(matrix))
    change = np.column_stack([units[:, :20] @ weights[:20], units[:, 20:] @ weights[20:]])
    data = pp.Transitions(states, actions, states + change + np.array([0.1, 0.2]) * rng.normal(size=(200, 2)))
    ours = pp.fit(jax.random.key(0), model, data, StructuredLaplace(rounds=30))
    theirs = pp.fit(jax.random.key(0), model, data, NeuralLinear(steps=2000))
    assert np.allclose(ours.params["scale"], theirs.params["scale"], rtol=2e-3)
    assert np.allclose(ours.noise(), theirs.noise(), rtol=1e-4)
    assert np.isclose(ours.log_evidence, theirs.log_evidence, atol=1e-3)
