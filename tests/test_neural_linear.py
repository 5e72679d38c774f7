"""Features, prior scales and noises from the evidence; weights and physics jointly Gaussian beside them."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
from helpers import leaves, linear_action, linear_data, linear_features, linear_state, recording

import physppl as pp
from physppl.inference import HMC, Laplace, NeuralLinear
from physppl.models import pendulum

ROWS = 40
small = functools.partial(pp.residual, "net", width=8, depth=1, learned=True)


def scaled():
    scale = jnp.asarray(numpyro.param("scale", 1.0, constraint=dist.constraints.positive))
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    return pp.Step(lambda t, x, u: x + scale * linear_features(jnp, x, u) @ weights)


def with_residual():
    return pp.step_residual(pendulum.program(), small(pendulum.state, pendulum.action))


def alone():
    net = small(pendulum.state, pendulum.action, scale=0.5)
    return pp.Step(lambda t, x, u: x + net(x, u))


@functools.cache
def fitted(program, key: int = 0, steps: int = 60):
    dynamics = pp.Dynamics(program, pendulum.state, pendulum.action, dt=0.05)
    data = recording(pendulum.dynamics(), pendulum.truth, steps=ROWS)
    with warnings.catch_warnings():  # of so few steps
        warnings.simplefilter("ignore", pp.PhyspplWarning)
        return pp.fit(jax.random.key(key), dynamics, data, NeuralLinear(steps=steps))


def test_a_climb_that_had_not_ended_is_told():
    posterior = fitted(alone, steps=30)
    assert pp.Status(int(posterior.status)) is pp.Status.CLIMBING
    check = posterior.check()
    assert check.verdict == "doubtful" and "the evidence still rose" in str(check)


def test_scale_and_noise_maximise_the_evidence_of_bayesian_regression(x64):
    """Against the marginal density in numpy, climbed by scipy; the noise's prior counts in virtual space."""
    data, unit = linear_data(rows=ROWS), np.array([2.0, 1.0])
    dynamics = pp.Dynamics(scaled, linear_state, linear_action, dt=0.1)
    posterior = pp.fit(jax.random.key(0), dynamics, data, NeuralLinear(steps=400, rate=0.05))
    design = np.concatenate([linear_features(np, x, u) for x, u in zip(data.states, data.actions, strict=True)])
    change = (data.next_states - data.states).ravel()

    def evidence(hyper):
        scale, sds = np.exp(hyper[0]), np.exp(hyper[1:])
        noise = np.tile(sds + 1e-6 * unit, ROWS)
        covariance = scale**2 * design @ design.T + np.diag(noise**2)
        prior = np.sum(scipy.stats.halfnorm.logpdf(sds / unit, scale=0.1) - np.log(unit) + hyper[1:])
        return scipy.stats.multivariate_normal.logpdf(change, np.zeros(len(change)), covariance) + prior

    start = np.log([1.0, 0.1, 0.1])
    found = scipy.optimize.minimize(lambda h: -evidence(h), start, method="Nelder-Mead", options={"xatol": 1e-6})
    ours = np.log([float(posterior.params["scale"]), *np.asarray(posterior.mean().noise)])
    assert np.allclose(ours, found.x, atol=2e-3)
    assert evidence(ours) > -found.fun - 1e-5

    noise, scale = np.tile(np.asarray(posterior.mean().noise), ROWS), np.exp(ours[0])
    white = scale * design / noise[:, None]
    covariance = np.linalg.inv(np.eye(4) + white.T @ white)
    own = posterior.space.where("weights".__eq__)
    assert np.allclose(posterior.mode[own], covariance @ white.T @ (change / noise), atol=1e-8)
    spread = np.asarray(posterior.factor)[:, own]
    assert np.allclose(spread.T @ spread, covariance, atol=1e-8)


@pytest.mark.science
def test_the_climb_raises_the_evidence_and_other_keys_give_other_features(x64):
    posterior = fitted(alone)
    still = pp.fit(jax.random.key(0), posterior.model, posterior.data, NeuralLinear(steps=0))
    assert posterior.log_evidence > still.log_evidence + 3
    other = fitted(alone, key=1)
    assert not np.allclose(other.params["net.features"], posterior.params["net.features"], atol=0.1)
    assert posterior.params["net.features"].shape == (4 * 8 + 8,)  # sine, cosine, velocity, torque


@pytest.mark.science
def test_physics_and_weights_are_believed_jointly(x64):
    """What data cannot tell apart shows as covariance; a fit of the physics alone is surer of them."""
    posterior = fitted(with_residual)
    own = posterior.space.where("net".__eq__)
    physics = posterior.space.where(lambda name: name in ("mass", "length", "damping"))
    covariance = np.asarray(posterior.factor.T @ posterior.factor)
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((covariance / np.outer(sd, sd))[np.ix_(physics, own)]).max() > 0.2
    plain = pp.fit(jax.random.key(0), pendulum.dynamics(), posterior.data, Laplace())
    alone = np.linalg.norm(np.asarray(plain.factor), axis=0)[plain.space.where("length".__eq__)]
    assert sd[posterior.space.where("length".__eq__)] > alone


@pytest.mark.science
def test_the_belief_is_a_posterior_like_any_other(x64, tmp_path):
    posterior = fitted(with_residual)
    tree = posterior.to_arviz()
    assert "net.features" not in tree["posterior"].data_vars and "net" in tree["posterior"].data_vars
    assert np.isfinite(tree["log_likelihood"]["next_state"].values).all()
    posterior.save(tmp_path / "belief")
    again = pp.load(tmp_path / "belief", posterior.model)
    assert all(np.array_equal(a, b) for a, b in zip(leaves(again), leaves(posterior), strict=True))
    state, action = np.array([0.5, 1.0]), np.array([0.3])
    draws = jax.vmap(posterior.draw)(jax.random.split(jax.random.key(0), 2000))
    values = np.asarray(jax.vmap(lambda f: f(state, action))(draws))
    mean, factor = posterior.basis(state, action)
    sd = np.linalg.norm(np.asarray(factor), axis=-1)
    assert np.all(np.abs(values.mean(0) - mean) < 5 * sd / np.sqrt(2000) + 0.05 * sd)


def test_what_cannot_be_is_refused(as_user):
    posterior = fitted(alone)
    with pytest.raises(ValueError, match="'net.features' is a `param`: it has no prior.*NeuralLinear"):
        pp.fit(jax.random.key(0), posterior.model, posterior.data, HMC())
    with pytest.raises(ValueError, match="rate > 0; got 500 and -1"):
        NeuralLinear(rate=-1.0)
    recordings = pp.Trajectories(np.zeros((1, 5, 2)), np.zeros((1, 5, 1)), dt=0.05)
    with pytest.raises(TypeError, match="NeuralLinear takes Transitions"):
        pp.fit(jax.random.key(0), posterior.model, recordings, NeuralLinear())
