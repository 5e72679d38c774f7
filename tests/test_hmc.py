"""HMC: two engines, one belief; what a chain tells of itself; chains on several devices; what is refused."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_stats.base import array_stats
from helpers import (
    linear_data,
    linear_dynamics,
    linear_features,
    linear_mean,
    linear_noise,
    linear_sd,
    recording,
)

import physppl as pp
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import HMC
from physppl.inference.draws import chain_status
from physppl.inference.hmc import _starts as starts
from physppl.inference.nuts import MAX_TREE_DEPTH, numpyro_nuts
from physppl.models import pendulum

STATS = {
    "lp", "diverging", "acceptance_rate", "n_steps", "tree_depth", "reached_max_tree_depth", "energy", "step_size",
}  # fmt: skip
settings = {"draws": 500, "warmup": 150, "chains": 2}


def exact():
    """Mean and covariance of (drift, gain, weights) given `linear_data`, by ridge regression."""
    data = linear_data()
    phi = np.concatenate([linear_features(np, x, u) for x, u in zip(data.states, data.actions, strict=True)])
    target = (data.next_states - data.states).reshape(-1)
    weight = np.tile(linear_noise**-2, len(data))
    precision = (phi.T * weight) @ phi + np.diag(linear_sd**-2.0)
    covariance = np.linalg.inv(precision)
    return covariance @ ((phi.T * weight) @ target + linear_mean / linear_sd**2), covariance


@pytest.fixture(scope="module", params=[None, numpyro_nuts], ids=["BlackJAX", "NumPyro"])
def sampled(request):
    backend = HMC(**settings) if request.param is None else HMC(**settings, engine=request.param)
    return pp.fit(jax.random.key(0), linear_dynamics(), linear_data(), backend)


def test_both_engines_sample_the_closed_form(sampled):
    """Means, sds and correlations to four Monte Carlo standard errors, in coordinates that are independent by theory.

    The sum of two such coordinates has the sd 2^(1/2) if they are not correlated.
    """
    mean, covariance = exact()
    draws = sampled.samples(jax.random.key(0), group_by_chain=True)
    columns = np.stack([draws["drift"], draws["gain"], *np.moveaxis(np.asarray(draws["weights"]), -1, 0)], axis=-1)
    white = (np.asarray(columns, float) - mean) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    pairs = [(white[..., i] + white[..., j]) / 2**0.5 for i in range(len(mean)) for j in range(i)]
    for own in (*np.moveaxis(white, -1, 0), *pairs):
        size = {k: array_stats.ess(own, chain_axis=0, draw_axis=1, method=k) for k in ("mean", "sd")}
        assert abs(own.mean()) < 4 / np.sqrt(size["mean"])
        assert abs(own.std() - 1) < 4 / np.sqrt(2 * size["sd"])


def test_chains_tell_of_themselves_under_arvizs_names(sampled):
    stats = sampled.to_arviz()["sample_stats"]
    assert set(stats.data_vars) == STATS
    assert dict(stats.sizes) == {"chain": 2, "draw": 500}
    steps, depth = (np.asarray(stats[name]) for name in ("n_steps", "tree_depth"))
    assert np.all((steps >= 1) & (steps < 2.0**depth))
    assert np.array_equal(np.asarray(stats["reached_max_tree_depth"]), depth >= MAX_TREE_DEPTH)
    assert np.all(np.asarray(stats["energy"]) >= -np.asarray(stats["lp"]) - 1e-6)  # kinetic energy is positive
    assert np.ptp(np.asarray(stats["step_size"]), axis=1).max() == 0  # no adaptation after warm-up


def test_chains_that_do_not_mix_or_do_not_move_are_told():
    """A constant's R-hat is no number, or of its rounding."""
    mixed = np.random.default_rng(0).normal(size=(2, 100, 2))
    stuck, apart = mixed.copy(), mixed + [[[0.0, 0.0]], [[0.0, 3.0]]]
    stuck[:, :, 1] = 0.3
    status = lambda points, **stats: int(chain_status(jnp.asarray(points), stats))  # noqa: E731
    assert [status(points) for points in (mixed, stuck, apart)] == [0, pp.Status.NOT_MIXED, pp.Status.NOT_MIXED]
    assert status(mixed, diverging=jnp.arange(200).reshape(2, 100) < 3) == pp.Status.DIVERGENCES


@pytest.mark.science
def test_laplaces_metric_needs_little_warm_up(x64):
    """On a Gaussian posterior trajectories of three to seven leapfrog steps turn, whatever the parameters' scales."""
    posterior = pp.fit(jax.random.key(1), linear_dynamics(), linear_data(), HMC(**(settings | {"warmup": 50})))
    assert np.mean(posterior.stats["n_steps"]) < 8
    assert not np.any(posterior.stats["diverging"])
    assert np.min(array_stats.ess(np.asarray(posterior.points), chain_axis=0, draw_axis=1)) > 500


@pytest.mark.science
def test_engines_agree_on_the_pendulum(x64):
    dynamics = pendulum.dynamics()
    data = recording(dynamics, pendulum.truth, steps=200)
    runs = [
        pp.fit(jax.random.key(i), dynamics, data, HMC(draws=2500, **({"engine": engine} if engine else {})))
        for i, engine in enumerate((None, numpyro_nuts))
    ]
    ours, theirs = (np.asarray(run.points) for run in runs)
    for i in range(ours.shape[-1]):
        sizes = [array_stats.ess(p[..., i], chain_axis=0, draw_axis=1, method="mean") for p in (ours, theirs)]
        error = np.hypot(*(p[..., i].std() / np.sqrt(n) for p, n in zip((ours, theirs), sizes, strict=True)))
        assert abs(ours[..., i].mean() - theirs[..., i].mean()) < 4 * error


def test_a_param_without_a_prior_is_refused_by_name():
    def program():
        gain = jnp.asarray(numpyro.param("gain", jnp.array(1.0)))
        drift = pp.physical("drift", dist.Normal(0.0, 1.0))
        return pp.Step(lambda t, x, u: x + gain * u + drift)

    dynamics = pp.Dynamics(program, pp.StateSpace(x=pp.Real()), pp.ActionSpace(u=pp.Bounded(-1.0, 1.0)), dt=0.1)
    data = pp.Transitions(np.zeros((4, 1)), np.zeros((4, 1)), np.zeros((4, 1)))
    with pytest.raises(ValueError, match="'gain' is a `param`: it has no prior. Make it a sample site"):
        pp.fit(jax.random.key(0), dynamics, data, HMC(draws=4, warmup=1, chains=1))


ON_EIGHT_DEVICES = """
    import jax, jax.numpy as jnp, numpy as np
    from physppl.internal.parallel import spread
    assert jax.device_count() == 8
    jax.config.update("jax_enable_x64", True)

    def chain(key, scale):  # a random number of steps, as a sampler's trees
        def body(carry):
            key, x, n = carry
            key, own = jax.random.split(key)
            return key, x + scale * jax.random.normal(own), n + 1
        _, x, n = jax.lax.while_loop(lambda c: (c[1] < 3.0) & (c[2] < 200), body, (key, jnp.zeros(()), 0))
        return {"x": x, "n": n}

    for count in (1, 6, 8, 13):
        keys, scales = jax.random.split(jax.random.key(0), count), jnp.linspace(0.5, 1.5, count)
        run = jax.jit(lambda k, s: spread(chain, k, s))
        apart = run(keys, scales)
        alone = jax.jit(jax.vmap(chain))(keys, scales)
        assert apart["x"].shape == (count,)
        assert np.array_equal(apart["n"], alone["n"]) and np.allclose(apart["x"], alone["x"], rtol=1e-12), count
        text = run.lower(keys, scales).compile().as_text()
        assert "all-reduce" not in text, "the loops of different devices wait for one another"

    inner = lambda key, scale: jax.tree.map(jnp.sum, spread(chain, jax.random.split(key, 3), jnp.full(3, scale)))
    nested = jax.jit(lambda k, s: spread(inner, k, s))(keys, scales)
    assert nested["x"].shape == (13,)

    import physppl as pp
    from physppl.inference import HMC
    from helpers import linear_data, linear_dynamics
    backend = HMC(draws=400, warmup=100, chains=6)
    sharded = pp.fit(jax.random.key(0), linear_dynamics(), linear_data(), backend)
    assert sharded.points.shape[:2] == (6, 400)
    print("means", *np.mean(sharded.points, axis=(0, 1)))
    print("sds", *np.std(sharded.points, axis=(0, 1)))
"""


@pytest.mark.science
def test_chains_are_shared_out_among_devices():
    """Eight devices in a process of their own: six chains, padded; statistically the closed form."""
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ON_EIGHT_DEVICES)],
        env=os.environ | environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    means, sds = (np.array(line.split()[1:], float) for line in done.stdout.splitlines())
    mean, covariance = exact()
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(means - mean) < 4 * sd / np.sqrt(1000))  # at least so many effective draws of 2,400
    assert np.all(np.abs(sds / sd - 1) < 4 / np.sqrt(2 * 1000))


def two_modes(data):
    """Two modes of one height before data, of which the datum leaves one: the other has e^-18 of its mass."""
    each = dist.Normal(jnp.array([-3.0, 3.0]), 0.1)
    z = numpyro.sample("z", dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), each))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=data)


def test_chains_start_where_the_mass_is(x64):
    space = UnconstrainedSpace.of(two_modes, jnp.array(3.0))
    points, *_ = jax.jit(lambda key: starts(key, space, two_modes, jnp.array(3.0), 8, tries=1))(jax.random.key(0))
    np.testing.assert_allclose(points[:, 0], 3.0, atol=1e-3)
