"""A user's NumPyro model with `dynamics(data)` as one of its statements, against the same model without physppl.

Three pendulums of one make: their masses share a population, a scale of unknown bias weighed each, a catalogue gives
the make's typical mass. The second model is written with NumPyro and jax.numpy alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_stats.base import array_stats
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from numpyro.infer.util import log_density

import physppl as pp
from physppl.inference import HMC

DT, LOW, HIGH, FLOOR = 0.05, 0.2, 2.0, 1e-6
SCALE = np.array([1.0, 8.0])
ROWS = (25, 40, 30)
WEIGHED, CATALOGUE = np.array([0.63, 1.02, 1.41]), 0.1  # kg; of the logit

state = pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s", scale=8.0))
action = pp.ActionSpace(torque=pp.Bounded(-2.0, 2.0, "N m"))


def slope(x, u, mass, damping):
    return jnp.stack([x[1], (u[0] - damping * x[1] - mass * 9.81 * jnp.sin(x[0])) / mass])


def with_dynamics(data):
    """The user's model; `dynamics(data)` declares the machines' own sites and observes what they did."""
    centre = numpyro.sample("centre", dist.Normal(0.0, 1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(0.5))
    bias = numpyro.sample("bias", dist.Normal(0.0, 0.05))
    numpyro.sample("catalogue", dist.Normal(centre, 0.5), obs=CATALOGUE)

    def program():
        mass = pp.physical("mass", LOW, HIGH, loc=centre, scale=spread, unit="kg")
        damping = pp.physical("damping", dist.HalfNormal(0.1), unit="N m s/rad")
        numpyro.sample("weighing", dist.Normal(mass + bias, 0.02), obs=WEIGHED)
        return lambda t, x, u: slope(x, u, mass, damping)

    with numpyro.plate("machine", len(ROWS)):
        return pp.Dynamics(program, state, action, dt=DT)(data)


non_centred = {"mass": TransformReparam(), "mass_base": LocScaleReparam(0.0)}
ours = handlers.reparam(with_dynamics, config=non_centred)


def rk4(x, u, mass, damping):
    k1 = slope(x, u, mass, damping)
    k2 = slope(x + DT / 2 * k1, u, mass, damping)
    k3 = slope(x + DT / 2 * k2, u, mass, damping)
    k4 = slope(x + DT * k3, u, mass, damping)
    return x + DT / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def by_hand(states, actions, outcomes, valid):
    """The same model of arrays (3, N, ...), padded to the longest machine."""
    centre = numpyro.sample("centre", dist.Normal(0.0, 1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(0.5))
    bias = numpyro.sample("bias", dist.Normal(0.0, 0.05))
    numpyro.sample("catalogue", dist.Normal(centre, 0.5), obs=CATALOGUE)
    with numpyro.plate("machine", len(ROWS)):
        offset = numpyro.sample("mass_base_decentered", dist.Normal(0.0, 1.0))
        damping = numpyro.sample("damping", dist.HalfNormal(0.1))
        noise = numpyro.sample("process_noise", dist.HalfNormal(0.1 * SCALE).to_event(1))
        mass = numpyro.deterministic("mass", LOW + (HIGH - LOW) * jax.nn.sigmoid(centre + spread * offset))
        numpyro.sample("weighing", dist.Normal(mass + bias, 0.02), obs=WEIGHED)
    steps = jax.vmap(jax.vmap(rk4, in_axes=(0, 0, None, None)))(states, actions, mass, damping)
    likelihood = dist.Normal(steps, noise[:, None] + FLOOR * SCALE).to_event(1)
    with numpyro.plate("machines", len(ROWS), dim=-2), numpyro.plate("transitions", max(ROWS), dim=-1):
        numpyro.sample("outcome", likelihood.mask(valid), obs=outcomes)


def recorded(mass, rows, seed):
    """Transitions of one noisy machine."""
    rng = np.random.default_rng(seed)
    step = jax.jit(lambda x, u: rk4(x, u, mass, 0.05))
    states, actions = [rng.normal(size=2)], rng.uniform(-2, 2, (rows, 1))
    for u in actions:
        states.append(np.asarray(step(states[-1], u)) + [0.005, 0.05] * rng.normal(size=2))
    return pp.Transitions.from_trajectory(np.stack(states), actions)


@pytest.fixture(scope="module")
def data():
    with jax.enable_x64(True):
        parts = [recorded(mass, rows, i) for i, (mass, rows) in enumerate(zip((0.6, 1.0, 1.4), ROWS, strict=True))]
    return pp.Transitions.stack(parts)


def arrays(data):
    return data.states, data.actions, data.next_states, data.valid


def test_both_models_have_one_density(x64, data):
    """At 20 draws of the prior."""

    def joint(model, args):
        return jax.jit(jax.vmap(lambda v: log_density(model, args, {}, v)[0]))

    def draw(key):
        trace = handlers.trace(handlers.seed(by_hand, key)).get_trace(*arrays(data))
        return {k: s["value"] for k, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}

    values = jax.vmap(draw)(jax.random.split(jax.random.key(0), 20))
    np.testing.assert_allclose(joint(ours, (data,))(values), joint(by_hand, arrays(data))(values), rtol=1e-11)


def sampled(model, key, *args, draws=1500):
    kernel = NUTS(model, dense_mass=True, target_accept_prob=0.95)
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=draws, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(key), *args)
    return mcmc.get_samples(group_by_chain=True)


def moments(samples) -> dict[str, tuple[float, float]]:
    """{scalar: (mean, its Monte Carlo standard error)}."""
    found = {}
    for name in ("centre", "spread", "bias", "mass", "damping", "process_noise", "mass_base_decentered"):
        values = np.asarray(samples[name], float)
        for index in np.ndindex(values.shape[2:]):
            draws = values[(slice(None), slice(None), *index)]
            size = array_stats.ess(draws, chain_axis=0, draw_axis=1, method="mean")
            found[f"{name}{list(index) or ''}"] = draws.mean(), draws.std() / np.sqrt(size)
    return found


@pytest.mark.science
def test_both_models_have_one_posterior(x64, data):
    """Means of all 18 scalars, NumPyro's NUTS on both and our HMC on the user's model: |z| < 4 by Monte Carlo error."""
    expected = moments(sampled(by_hand, 1, *arrays(data)))
    fitted = pp.fit(jax.random.key(3), ours, data, HMC(draws=1500, warmup=1000, target_acceptance=0.95))
    runs = {"NUTS": sampled(ours, 2, data), "HMC": fitted.samples(jax.random.key(0), group_by_chain=True)}
    z = {}
    for run, samples in runs.items():
        found = moments(samples)
        assert found.keys() == expected.keys() and len(found) == 18
        z[run] = {n: (found[n][0] - m) / np.hypot(e, found[n][1]) for n, (m, e) in expected.items()}
    for name, (mean, error) in expected.items():
        print(f"{name:26s} {mean:9.5f} ± {error:.1e}  NUTS {z['NUTS'][name]:+.2f}  HMC {z['HMC'][name]:+.2f}")
    assert max(abs(v) for row in z.values() for v in row.values()) < 4
