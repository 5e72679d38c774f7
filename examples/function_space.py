"""Does a function-space posterior equal its function prior far from data? The pendulum, over seeds and choices.

    python examples/function_space.py --write

The function prior is that of the pendulum's physics (mass, length, damping), the data are 60 transitions of a pendulum
that hangs still and tell nothing, so that away from them posterior and prior should agree. Compared at 5,000 points
drawn from the measure, angles over the full circle, velocities up to 8 rad/s, torques within their limits, of which
those count that are three times half a unit of input, the length over which a tanh unit of these networks turns over,
from any of the data. A point is within the bounds if both outputs' means differ by less than 0.1 prior sd, their sds by
less than 10 %, and the correlation between them by less than 0.05. `Printed` has no such aim and stands beside them to
show it.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from page import introduction, write

import physppl as pp
from physppl.data.input_measures import Box, JitteredData, Mixture
from physppl.inference import FunctionSpaceVI, JointKL, Laplace, Printed, Projected
from physppl.models import pendulum

NOISE = np.array([0.002, 0.02])
RHO = Box(bounds={"velocity": (-8.0, 8.0)})
SEEDS, POINTS, FAR = 5, 5000, 1.5
CHOICES = {
    "Projected": dict(objective=Projected()),
    "JointKL": dict(objective=JointKL()),
    "Projected, width 64, 512 points, 300 steps": dict(objective=Projected(), width=64, points=512, steps=300),
    "JointKL, width 64, 512 points, 300 steps": dict(objective=JointKL(), width=64, points=512, steps=300),
    "Projected, random features": dict(objective=Projected(), steps=0),
    "Printed": dict(objective=Printed()),
}


def at_rest(dynamics: pp.Dynamics) -> pp.Transitions:
    """Sixty transitions of a pendulum that hangs still."""
    rng = np.random.default_rng(0)
    states, actions = 5e-5 * rng.normal(size=(60, 2)), 5e-5 * rng.normal(size=(60, 1))
    after = np.asarray(jax.vmap(dynamics.transition(pendulum.truth))(jnp.asarray(states), jnp.asarray(actions)))
    return pp.Transitions(states, actions, after + NOISE * rng.normal(size=states.shape))


def moments(posterior: pp.Posterior, states, actions):
    """Mean, sd and the outputs' correlation at each point."""
    mean, factor = (np.asarray(x) for x in posterior.basis(states, actions))
    sd = np.sqrt(np.sum(factor**2, axis=-1))
    return mean, sd, np.sum(factor[:, 0] * factor[:, 1], axis=-1) / np.prod(sd, axis=-1)


def apart(posterior: pp.Posterior, prior: pp.Posterior) -> dict[str, np.ndarray]:
    """Differences of posterior and prior at far points: means in prior sds, sds as a share, correlations."""
    states, actions = RHO.sample(jax.random.key(9), POINTS, prior.model, posterior.data)
    states, actions = np.asarray(states), np.asarray(actions)
    features = jax.vmap(lambda x, u: jnp.concatenate([prior.model.state.features(x), prior.model.action.normalise(u)]))
    away = np.asarray(features(states, actions) - features(jnp.zeros((1, 2)), jnp.zeros((1, 1))))
    far = np.linalg.norm(away, axis=1) > FAR
    ours, theirs = (moments(p, states[far], actions[far]) for p in (posterior, prior))
    return {
        "mean": np.abs(ours[0] - theirs[0]) / theirs[1],
        "sd": np.abs(ours[1] / theirs[1] - 1),
        "correlation": np.abs(ours[2] - theirs[2])[:, None],
    }


def main(seeds: int, names: list[str]) -> str:
    dynamics = pendulum.dynamics(process_noise=NOISE)
    data, prior = at_rest(dynamics), Laplace().prior(jax.random.key(0), dynamics)
    bounds = {"mean": 0.1, "sd": 0.1, "correlation": 0.05}
    lines = [
        f"| | points within, worst of {seeds} seeds | mean (prior sds), worst | sd, worst | correlation, worst "
        "| a fit (s) |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        found, seconds = [], []
        for seed in range(seeds):
            began = time.perf_counter()
            backend = FunctionSpaceVI(measure=Mixture(RHO, JitteredData(), weights=(3.0, 1.0)), **CHOICES[name])
            found.append(apart(pp.fit(jax.random.key(seed), dynamics, data, backend), prior))
            seconds.append(time.perf_counter() - began)
        within = [np.mean(np.all([f[k].max(axis=1) < bounds[k] for k in bounds], axis=0)) for f in found]
        worst = [max(float(f[k].max()) for f in found) for k in bounds]
        print(name, within, worst, flush=True)
        cells = [f"{min(within):.4f}", *(f"{w:.3f}" for w in worst), f"{np.median(seconds):.1f}"]
        lines.append(" | ".join([f"| {name}", *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="the page docs/results/function_space.md")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", nargs="*", default=list(CHOICES), choices=list(CHOICES))
    given = parser.parse_args()
    with jax.enable_x64(True):
        text = main(given.seeds, given.only)
    print(text)
    if given.write:
        title = "Function-space beliefs far from data"
        write("function_space", title, introduction(__doc__), "function_space.py", text)
