"""What Laplace and HMC predict, against a long run of plain NumPyro: at 1 and 20 steps on a recording not fitted.

For a network's weights this is the only comparison there is: what is compared are functions. Energy score: T. Gneiting,
A. Raftery, JASA 102, 2007; two-sample classification: D. Lopez-Paz, M. Oquab, ICLR 2017, here by nearest neighbours.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
from helpers import example
from helpers import recording as simulated

import physppl as pp
from physppl.inference import HMC, Laplace
from physppl.models import cartpole, pendulum

pytestmark = pytest.mark.science
agreement = example("agreement")
DRAWS, STARTS, LONG = 1000, 20, 2500  # functions, windows, and draws of each of four chains

place = pp.StateSpace(place=pp.Real("m"), speed=pp.Real("m/s", scale=2.0))
push = pp.ActionSpace(force=pp.Bounded(-3.0, 3.0, "N"))


def hardening():
    """The truth: a mass of 1 kg on a spring that stiffens."""
    return lambda t, x, u: jnp.stack([x[1], u[0] - 0.3 * x[1] - 2.0 * x[0] - 0.8 * x[0] ** 3])


def spring():
    """The belief: a linear spring, and a network for what it lacks."""
    stiffness, damping = pp.physical("stiffness", 0.5, 5.0, unit="N/m"), pp.physical("damping", 0.0, 1.0, unit="N s/m")
    residual = pp.residual("residual", place, push, width=12, depth=1, scale=0.3)
    return lambda t, x, u: jnp.stack([x[1], u[0] - damping * x[1] - stiffness * x[0]]) + residual(x, u)


def of_model(model):
    return model.dynamics(), *(agreement.recording(model, seed) for seed in (0, 5))


def of_spring():
    truth = pp.Dynamics(hardening, place, push, dt=0.1)
    parts = [simulated(truth, {}, seed, steps=200, noise=0.01) for seed in (0, 5)]
    return pp.Dynamics(spring, place, push, dt=0.1), *parts


CASES = {"pendulum": lambda: of_model(pendulum), "cartpole": lambda: of_model(cartpole), "spring": of_spring}


def predicted(key, transitions, data, steps: int) -> np.ndarray:
    """Ends (DRAWS, STARTS, D) of each transition function, its noise drawn at every step."""
    begin = np.linspace(0, len(data) - steps, STARTS).astype(int)
    actions = np.stack([np.asarray(data.actions)[b : b + steps] for b in begin])

    @jax.jit
    def ends(transitions, keys, states):
        def one(transition, key, x, actions):
            body = lambda x, at: (transition.sample(at[0], x, at[1]), None)  # noqa: E731
            return jax.lax.scan(body, x, (jax.random.split(key, steps), actions))[0]

        each = jax.vmap(one, in_axes=(None, 0, 0, 0))
        return jax.vmap(lambda f, k: each(f, jax.random.split(k, STARTS), states, actions))(transitions, keys)

    keys = jax.random.split(key, DRAWS)
    return np.asarray(ends(transitions, keys, jnp.asarray(np.asarray(data.states)[begin])))


def outcomes(data, steps: int) -> np.ndarray:
    begin = np.linspace(0, len(data) - steps, STARTS).astype(int)
    return np.asarray(data.next_states)[begin + steps - 1]


def energy_score(draws, outcomes, axes) -> float:
    """Mean over starts of E|X - y| - E|X - X'| / 2, the norm over `axes`; of single coordinates it is the CRPS."""
    length = lambda x: np.sqrt(np.sum(x[..., axes] ** 2, axis=-1))  # noqa: E731
    pairs = np.mean([length(draws - np.roll(draws, s, axis=0)).mean(0) for s in range(1, 60)], axis=0)
    return float(np.mean(length(draws - outcomes).mean(0) - 0.5 * pairs))


def told_apart(one, other) -> float:
    """Share of draws that their 25 nearest neighbours classify rightly; a half where nothing tells them apart."""
    both = np.concatenate([one, other])
    both = (both - other.mean(0)) / other.std(0)
    label = np.repeat([0, 1], [len(one), len(other)])
    _, near = scipy.spatial.cKDTree(both).query(both, 26)
    return float(np.mean((label[near[:, 1:]].mean(1) > 0.5) == label))


@pytest.mark.parametrize("name", CASES)
def test_predictions_agree_with_a_long_run_of_numpyro(name, x64):
    dynamics, data, unseen = CASES[name]()
    samples = agreement.nuts(jax.random.key(0), dynamics, data, LONG)
    flat = {k: v.reshape(-1, *v.shape[2:])[:: 4 * LONG // DRAWS] for k, v in samples.items()}
    backends = {"Laplace": Laplace(), "HMC": HMC(draws=1000)}
    fits = {k: pp.fit(jax.random.key(1), dynamics, data, backend) for k, backend in backends.items()}
    beliefs = {"reference": jax.vmap(dynamics.transition)(flat)}
    beliefs |= {k: jax.vmap(p.draw)(jax.random.split(jax.random.key(2), DRAWS)) for k, p in fits.items()}
    for steps in (1, 20):
        drawn = {k: predicted(jax.random.key(i), f, unseen, steps) for i, (k, f) in enumerate(beliefs.items())}
        y, scale = outcomes(unseen, steps), dynamics.state.scale
        for k in fits:
            for axes in [[i] for i in range(y.shape[1])] + [list(range(y.shape[1]))]:
                ours, theirs = (energy_score(drawn[b] / scale, y / scale, axes) for b in (k, "reference"))
                print(f"{name} {k} {steps} steps, coordinates {axes}: score {ours:.5f} against {theirs:.5f}")
                assert abs(ours / theirs - 1) < 0.05, (k, steps, axes, ours, theirs)
            apart = np.mean([told_apart(drawn[k][:, i], drawn["reference"][:, i]) for i in range(STARTS)])
            print(f"{name} {k} {steps} steps: told apart {apart:.3f}")
            assert apart < 0.6, (k, steps, apart)
