"""Laplace and HMC against plain NumPyro NUTS on the same Dynamics, in constrained space, as users see it.

The reference has more than 5,000 effective draws, so its means are known to 0.014 sd and its sds to 1 %. With 200
transitions Laplace's own error is larger and has a known size: the mode of a log noise lies (k + 1) / sqrt(400) sds
below its mean, k the number of parameters that the coordinate determines, at most 0.2 here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats
from helpers import example

import physppl as pp
from physppl.inference import Laplace
from physppl.models import cartpole, pendulum

agreement = example("agreement")
CASES = [
    pytest.param(model, seed, id=f"{name}-{seed}")
    for name, model in (("pendulum", pendulum), ("cartpole", cartpole))
    for seed in range(3)
]


@pytest.mark.science
@pytest.mark.parametrize("model, recording", CASES)
def test_laplace_and_hmc_agree_with_plain_numpyro(model, recording):
    rows = agreement.compare(model, recording)
    table = "\n".join([agreement.HEADER, *map(str, rows)])
    assert len(rows) == len(model.truth) + len(model.state)
    for row in rows:
        assert row.size > 5000, f"the reference is too short\n{table}"
        assert abs(row.shift) < 0.2, f"Laplace mean of {row.name}\n{table}"
        assert 0.93 < row.ratio < 1.07, f"Laplace sd of {row.name}\n{table}"
        assert abs(row.z) < 4, f"HMC mean of {row.name}\n{table}"


@pytest.mark.science
def test_laplace_on_the_cartpole_agrees_with_importance_sampling(x64):
    """The exact posterior without a chain: draws of a wider Student t, weighted by the joint density.

    The shape k of the Pareto-smoothed weights tells whether they can be trusted (k < 0.7), and their effective number
    gives the tolerance: four standard errors on top of the bounds above.
    """
    dynamics, data = cartpole.dynamics(), agreement.recording(cartpole, 0)
    posterior = pp.fit(jax.random.key(0), dynamics, data, Laplace())
    size, dof, count = len(posterior.mode), 6, 20_000
    normal, chi2 = jax.random.split(jax.random.key(1))
    radius = jnp.sqrt(dof / jax.random.chisquare(chi2, dof, (count, 1)))
    noise = radius * jax.random.normal(normal, (count, size))
    log_proposal = -0.5 * (dof + size) * jnp.log1p(jnp.sum(noise**2, axis=1) / dof)

    @jax.jit
    def evaluate(points):
        def one(z):
            trace = posterior.space.trace(dynamics, z, posterior.data)
            return sum(posterior.space.log_densities(trace, z)), posterior.space.sites(dynamics, z, posterior.data)

        return jax.lax.map(one, points, batch_size=200)

    joint, sites = evaluate(posterior.mode + noise @ posterior.factor)
    log_weights, shape = array_stats.psislw(np.asarray(log_proposal - joint))  # of minus the log ratios
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    error = np.sqrt(np.sum(weights**2))  # 1 / sqrt(effective draws)
    assert shape < 0.7 and error < 0.025
    drawn = posterior.samples(jax.random.key(2), agreement.LAPLACE_DRAWS, group_by_chain=True)
    drawn = agreement.scalars(drawn)
    for name, values in agreement.scalars({k: v[None] for k, v in sites.items()}).items():
        mean = np.sum(weights * values[0])
        sd = np.sqrt(np.sum(weights * (values[0] - mean) ** 2))
        assert abs(drawn[name].mean() - mean) < (0.2 + 4 * error) * sd, name
        assert 0.93 - 4 * error < drawn[name].std() / sd < 1.07 + 4 * error, name
