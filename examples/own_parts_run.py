"""Strides and a shortlist of machines through all that a posterior offers: `python examples/own_parts_run.py`."""

import tempfile
from pathlib import Path

import jax
import numpy as np
from own_parts import Shortlist, Strides

import physppl as pp
from physppl.inference import Laplace
from physppl.models import pendulum


def strides(count: int, steps: int, seed: int) -> Strides:
    """Strides of the true pendulum from scattered states, under random torques, with process noise."""
    rng = np.random.default_rng(seed)
    starts, actions = rng.normal(size=(count, 2)) * [1.0, 3.0], rng.uniform(-2.5, 2.5, (count, steps, 1))
    truth = pendulum.dynamics().transition(pendulum.truth)
    ends = np.asarray(jax.vmap(lambda x, u: pp.rollout(truth, x, u)[-1])(starts, actions), float)
    return Strides(starts, actions, ends + np.sqrt(steps) * 0.01 * rng.normal(size=ends.shape) * pendulum.state.scale)


def main() -> dict[str, pp.Posterior]:
    """Fit, check, compare, save and load; returns the posteriors."""
    dynamics = pendulum.dynamics(process_noise=0.01 * pendulum.state.scale)
    train, test = strides(30, 4, seed=0), strides(20, 4, seed=1)
    posteriors = {
        "Laplace": pp.fit(jax.random.key(0), dynamics, train, Laplace(starts=4)),
        "Shortlist": pp.fit(jax.random.key(1), dynamics, train, Shortlist()),
    }
    for posterior in posteriors.values():
        print(posterior.summary(), posterior.check(), sep="\n\n", end="\n\n")
        print(posterior.to_arviz(draws=100))
        with tempfile.TemporaryDirectory() as folder:
            posterior.save(Path(folder) / "posterior")
            loaded = pp.load(Path(folder) / "posterior", dynamics)
        print(loaded.predict(np.array([0.1, 0.0]), np.array([0.5])).mean)
    print(pp.compare(posteriors, test, reference="Laplace"))
    return posteriors


if __name__ == "__main__":
    main()
