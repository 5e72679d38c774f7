"""Long checks of the belief as a whole: intervals of rollouts cover, and density and simulation are one model."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from arviz_stats.base import array_stats
from helpers import coloured_actions, recording

import physppl as pp
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.evaluation.forecasts import forecast
from physppl.inference import HMC, Laplace
from physppl.models import cartpole, pendulum

pytestmark = pytest.mark.science
LEVELS, STEPS, WINDOWS = (0.5, 0.8, 0.95), (1, 5, 20), 2000
backends = pytest.mark.parametrize("backend", [Laplace(), HMC(draws=500, chains=2)], ids=["Laplace", "HMC"])


@backends
@pytest.mark.parametrize("model", [pendulum, cartpole], ids=["pendulum", "cartpole"])
def test_intervals_of_rollouts_cover(model, backend, x64):
    """2,000 held-out windows of 20 steps: 50, 80 and 95 % intervals at 1, 5 and 20 steps within three points.

    The error that one belief shares over all windows is small after 400 transitions; the binomial error of 2,000
    windows is 1.1 points at most, and of that of 400 draws' quantiles a tenth.
    """
    dynamics, noise = model.dynamics(), 0.02
    start = np.zeros(len(dynamics.state))
    data = recording(dynamics, model.truth, steps=400, noise=noise)
    belief = pp.fit(jax.random.key(0), dynamics, data, backend)
    rng = np.random.default_rng(1)
    states = start + rng.normal(size=(WINDOWS, len(start))) * 0.3 * np.asarray(dynamics.state.scale)
    inputs = np.stack([coloured_actions(1000 + i, STEPS[-1], dynamics.action) for i in range(WINDOWS)])
    truth = dynamics.transition(model.truth, noise * dynamics.state.scale)

    @jax.jit
    @jax.vmap
    def simulate(key, state, actions):
        def body(x, step):
            x = truth.sample(step[0], x, step[1])
            return x, x

        return jax.lax.scan(body, state, (jax.random.split(key, len(actions)), actions))[1]

    happened = np.asarray(simulate(jax.random.split(jax.random.key(2), WINDOWS), states, inputs))
    drawn = forecast(jax.random.key(3), belief, states, inputs, draws=400)[:, :, 1:]
    for step in STEPS:
        below = np.mean(drawn[:, :, step - 1] < happened[:, step - 1], axis=0)  # the rank of what happened
        for level in LEVELS:
            covered = np.mean(np.abs(below - 0.5) <= level / 2)
            assert abs(covered - level) < 0.03, (step, level, covered)


def _successive(model, design, wrong: float, chains: int = 64, sweeps: int = 3000):
    """J. Geweke, JASA 99, 2004: parameters given data by a sampler's step, data given parameters, in turn.

    If the density is that of the simulation, the parameters keep the prior. `wrong` multiplies the likelihood.
    """
    space = UnconstrainedSpace.of(model, design.with_outcomes(design.states))
    kernel = blackjax.hmc.build_kernel()
    inverse = jnp.ones(space.size)

    def simulate(key, z):
        sites = space.sites(model, z, design)
        transition = model.bind(sites)
        keys = jax.random.split(key, len(design))
        return jax.vmap(transition.sample)(keys, design.states, design.actions)

    def chain(key):
        start, key = jax.random.split(key)

        def body(z, key):
            data_key, step_key = jax.random.split(key)
            data = design.with_outcomes(simulate(data_key, z))

            def density(z):
                prior, likelihood = space.log_densities(space.trace(model, z, data), z)
                return prior + wrong * likelihood

            state, _ = kernel(step_key, blackjax.hmc.init(z, density), density, 0.08, inverse, 8)
            return state.position, state.position

        z = space.draw_prior(start, model, design)
        return jax.lax.scan(body, z, jax.random.split(key, sweeps))[1]

    points = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), chains)))
    prior = np.asarray(
        jax.vmap(lambda k: space.draw_prior(k, model, design))(jax.random.split(jax.random.key(1), 100_000))
    )
    scores = []
    for moment in (lambda x: x, np.square):
        for own, exact in zip(np.moveaxis(moment(points), -1, 0), moment(prior).T, strict=True):
            size = array_stats.ess(own, chain_axis=0, draw_axis=1, method="mean")
            error = np.hypot(own.std() / np.sqrt(size), exact.std() / np.sqrt(len(exact)))
            scores.append((own.mean() - exact.mean()) / error)
    return np.abs(scores)


def test_the_density_is_that_of_the_simulation(x64):
    """Geweke's test; a likelihood that counts 1.5 times must show, or the test would be blind."""
    # A half-normal noise would linger near zero, where no step of a fixed length is accepted.
    model = pendulum.dynamics(process_noise=dist.LogNormal(jnp.log(0.1), 0.3))
    rng = np.random.default_rng(0)
    design = pp.Transitions(rng.normal(size=(3, 2)) * [1.5, 4.0], rng.uniform(-1, 1, (3, 1)))
    assert _successive(model, design, 1.0).max() < 4
    assert _successive(model, design, 1.5).max() > 6
