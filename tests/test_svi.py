"""NumPyro's guides as beliefs, against closed forms; and NumPyro's own SVI of a Dynamics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from helpers import (
    linear_action,
    linear_data,
    linear_dynamics,
    linear_features,
    linear_mean,
    linear_noise,
    linear_sd,
    linear_state,
)
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal, AutoDelta, AutoNormal

import physppl as pp
from physppl.inference import SVI, Laplace
from physppl.models import pendulum


def design(data):
    """The linear Step's rows (2 N, 4) and what they change, in units of the noise."""
    rows = np.concatenate([linear_features(np, x, u) for x, u in zip(data.states, data.actions, strict=True)])
    noise = np.tile(linear_noise, len(data))
    return rows / noise[:, None], (data.next_states - data.states).ravel() / noise


@functools.cache
def fitted(guide) -> pp.Posterior:
    return pp.fit(jax.random.key(0), linear_dynamics(), linear_data(rows=40), SVI(guide=guide, steps=3000))


@pytest.mark.science
def test_the_full_gaussian_guide_is_bayesian_linear_regression(x64):
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), linear_data(rows=40), SVI(steps=3000, search=0))
    rows, change = design(posterior.data[:40])
    precision = np.diag(linear_sd**-2.0) + rows.T @ rows
    covariance = np.linalg.inv(precision)
    mean, sd = covariance @ (linear_mean / linear_sd**2 + rows.T @ change), np.sqrt(np.diag(covariance))
    points = np.asarray(posterior.points[0])
    # 1,000 draws of the guide, and an ELBO whose own noise leaves the guide a tenth of a sd from its best.
    assert np.all(np.abs(points.mean(axis=0) - mean) < (4 / np.sqrt(1000) + 0.1) * sd)
    assert np.all(np.abs(points.std(axis=0) / sd - 1) < 4 / np.sqrt(2000) + 0.1)
    exact = Laplace().fit(jax.random.key(0), posterior.model, posterior.data).log_evidence
    facts = posterior.facts()
    assert -0.2 < facts["elbo"] - exact < 5 * facts["elbo_error"]


@pytest.mark.science
def test_the_mean_field_is_too_sure_of_what_data_tie_together(x64):
    """Its variances are the inverse diagonal of the precision (C. Bishop, PRML, section 10.1.2)."""
    posterior = fitted(AutoNormal)
    rows, _ = design(posterior.data[:40])
    precision = np.diag(linear_sd**-2.0) + rows.T @ rows
    sd = np.asarray(posterior.points[0]).std(axis=0)
    assert np.all(np.abs(sd * np.sqrt(np.diag(precision)) - 1) < 4 / np.sqrt(2000) + 0.1)


@pytest.mark.science
@pytest.mark.parametrize("guide", [AutoDelta, functools.partial(AutoBNAFNormal, num_flows=1)], ids=["delta", "flow"])
def test_points_and_flows_are_beliefs_too(guide, tmp_path):
    posterior = fitted(guide)
    state, action = np.array([0.3, -0.5]), np.array([0.4])
    value = posterior.draw(jax.random.key(1))(state, action)
    assert np.all(np.isfinite(value))
    assert np.isfinite(posterior.to_arviz()["log_likelihood"]["next_state"].values).all()
    posterior.save(tmp_path / "belief")
    again = pp.load(tmp_path / "belief", posterior.model)
    assert np.array_equal(again.points, posterior.points) and again.facts() == posterior.facts()


@pytest.mark.science
def test_what_has_no_prior_climbs_the_elbo_too(x64):
    """For a full Gaussian guide of a linear program the best bound is the evidence, and its maximum the type-II one."""

    def program():
        scale = jnp.asarray(numpyro.param("scale", 1.0, constraint=dist.constraints.positive))
        weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        return pp.Step(lambda t, x, u: x + scale * linear_features(jnp, x, u) @ weights)

    dynamics = pp.Dynamics(program, linear_state, linear_action, dt=0.1, process_noise=linear_noise)
    posterior = pp.fit(jax.random.key(0), dynamics, linear_data(rows=40), SVI(steps=4000))
    rows, change = design(posterior.data[:40])

    def evidence(scale):
        covariance = scale**2 * rows @ rows.T + np.eye(len(rows))
        return -0.5 * (change @ np.linalg.solve(covariance, change) + np.linalg.slogdet(covariance)[1])

    grid = np.geomspace(0.2, 3.0, 400)
    best = grid[np.argmax([evidence(scale) for scale in grid])]
    found = float(posterior.params["scale"])
    assert evidence(best) - evidence(found) < 0.05, (best, found)


@pytest.mark.science
def test_a_guide_may_be_a_function_of_the_model_alone():
    posterior = pp.fit(
        jax.random.key(0), linear_dynamics(), linear_data(rows=40), SVI(guide=lambda model: AutoNormal(model))
    )
    ours, theirs = (np.asarray(p.points[0]) for p in (posterior, fitted(AutoNormal)))
    error = 0.1 * theirs.std(axis=0) + 4 * theirs.std(axis=0) * np.sqrt(2 / 1000)  # of two climbs, and of their draws
    assert np.all(np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < error)


def test_a_climb_that_has_not_ended_is_told():
    with pytest.warns(pp.PhyspplWarning, match="SVI: not converged"):
        pp.fit(jax.random.key(0), linear_dynamics(), linear_data(rows=40), SVI(guide=AutoDelta, steps=60, search=0))


def test_numpyros_own_svi_takes_a_dynamics(x64):
    """Its guide's parameters stand in a `substitute` around the model and are no misspelt sites."""
    dynamics, data = linear_dynamics(), linear_data(rows=10)
    guide = AutoNormal(dynamics)
    svi = numpyro.infer.SVI(dynamics, guide, optax.adam(0.05), Trace_ELBO())
    state, loss = jax.jit(svi.update)(jax.jit(svi.init)(jax.random.key(0), data), data)
    assert np.isfinite(loss) and "drift_auto_loc" in svi.get_params(state)


def test_what_cannot_be_is_refused():
    with pytest.raises(TypeError, match="guide must make a guide of a model, e.g. the class AutoNormal"):
        SVI(guide=AutoNormal(pendulum.dynamics()))
    with pytest.raises(ValueError, match="rate > 0; got 4000, 4, 1000, 100 and -1"):
        SVI(rate=-1.0)
