"""What a function-space belief takes for its prior: physics before or after data, draws, and a slack process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import linear_data, linear_dynamics, linear_features, linear_noise
from test_function_space import NOISE, regression

import physppl as pp
from physppl.data.input_measures import Box
from physppl.inference import Ensemble, FunctionSpaceVI, Slack
from physppl.models import pendulum


def linear_belief(function_prior, data) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the linear Step's coefficients, as a function prior and the data have them."""
    own = lambda x, u: linear_features(jnp, x, u)  # noqa: E731
    backend = FunctionSpaceVI(function_prior, features=own, points=64, measure=Box())
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), data, backend)
    states, actions = data.states[:8], data.actions[:8]
    design = np.concatenate([linear_features(np, x, u) for x, u in zip(states, actions, strict=True)])
    mean, factor = (np.asarray(x) for x in posterior.basis(states, actions))
    solve = np.linalg.pinv(design)
    coefficients = solve @ factor.reshape(len(design), -1)
    return solve @ (mean - states).ravel(), coefficients @ coefficients.T


def test_a_conditioned_function_prior_counts_the_data_twice(x64):
    data = linear_data(rows=12)
    design = np.array([linear_features(np, x, u) for x, u in zip(data.states, data.actions, strict=True)])
    change = data.next_states - data.states
    for prior, times in (("prior", 1), ("conditioned", 2)):
        mean, covariance = linear_belief(prior, data)
        exact_mean, exact = regression(np.tile(design, (times, 1, 1)), np.tile(change, (times, 1)))
        sd = np.sqrt(np.diag(exact))
        assert np.abs((mean - exact_mean) / sd).max() < 1e-5
        assert np.abs((covariance - exact) / np.outer(sd, sd)).max() < 1e-5


@pytest.mark.science
def test_a_function_prior_of_draws_is_taken_by_their_moments(x64):
    members = Ensemble(members=200).prior(jax.random.key(5), linear_dynamics())
    sites = members.samples(jax.random.key(0))
    theta = np.column_stack([sites["drift"], sites["gain"], sites["weights"]]).astype(float)
    data = linear_data(rows=12)
    design = np.array([linear_features(np, x, u) for x, u in zip(data.states, data.actions, strict=True)])
    flat = (design / linear_noise[:, None]).reshape(-1, 4)
    values = ((data.next_states - data.states) / linear_noise).ravel()
    before = np.linalg.inv(np.cov(theta.T))
    exact = np.linalg.inv(before + flat.T @ flat)
    mean, covariance = linear_belief(members, data)
    sd = np.sqrt(np.diag(exact))
    assert np.abs((mean - exact @ (before @ theta.mean(axis=0) + flat.T @ values)) / sd).max() < 1e-4
    assert np.abs((covariance - exact) / np.outer(sd, sd)).max() < 1e-4


def test_slack_is_a_squared_exponential_of_every_output_alone(x64):
    inputs = np.random.default_rng(0).normal(size=(7, 3))
    factor = Slack(lengthscale=0.8, scale=(0.1, 0.3)).factor(jnp.asarray(inputs), 2).reshape(14, -1)
    kernel = np.exp(-0.5 * np.sum((inputs[:, None] - inputs) ** 2, axis=-1) / 0.8**2)
    assert np.allclose(factor @ factor.T, np.kron(kernel, np.diag([0.01, 0.09])), atol=1e-9)


@pytest.mark.science
def test_with_slack_data_correct_the_physics_and_the_belief_is_not_sure_of_them(x64):
    """Dry friction that the program lacks: of 1.5 N m data tell much, of 0.3 N m less than their noise."""

    def found(coulomb, rows, slack):
        dynamics, machine = pendulum.dynamics(process_noise=NOISE), pendulum.system(coulomb=coulomb, noise=NOISE)
        rng, count = np.random.default_rng(0), rows + 300
        states, actions = rng.uniform([-3.1, -6.0], [3.1, 6.0], (count, 2)), rng.uniform(-2.5, 2.5, (count, 1))
        after = np.asarray(jax.vmap(machine.transition)(states, actions))
        data = pp.Transitions(states[:rows], actions[:rows], after[:rows] + NOISE * rng.normal(size=(rows, 2)))
        posterior = pp.fit(jax.random.key(3), dynamics, data, FunctionSpaceVI(width=64, points=256, slack=slack))
        mean, factor = (np.asarray(x)[:, 1] for x in posterior.basis(states[rows:], actions[rows:]))
        missed = mean - after[rows:, 1]
        return np.sqrt(np.mean(missed**2)), np.mean(np.abs(missed) < 1.645 * np.linalg.norm(factor, axis=-1))

    slack = Slack(lengthscale=1.0, scale=0.02)
    assert found(1.5, 150, slack)[0] < 0.8 * found(1.5, 150, None)[0]
    assert found(0.3, 60, slack)[1] > 0.8 > 0.5 > found(0.3, 60, None)[1]
