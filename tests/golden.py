"""Six stored runs, about twenty numbers each: what a change of the library must not move without being told.

    python tests/golden.py --write     # after a change that moves them on purpose; say why in the changelog

Each is algebra in double precision from inputs written out here, so that it is the same to 1e-5 on any machine:
searches end far below that, and no chain is run, whose rounding would grow.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dense import DT, bind, values
from helpers import linear_dynamics, linear_noise, linear_truth
from numpyro.infer.util import log_density

import physppl as pp
from physppl.dynamics.kalman import smooth
from physppl.dynamics.recordings import filtered
from physppl.inference import Laplace
from physppl.models import cartpole, double_pendulum, pendulum
from physppl.planning import ICEM, MPPI

FOLDER = Path(__file__).with_name("golden")
KEY = 7
Numbers = dict[str, Any]  # arrays, or lists of what they hold


def waves(rows: int, columns: int, amplitude=1.0) -> np.ndarray:
    """(rows, columns): sines of different speeds."""
    return amplitude * np.sin(np.outer(np.arange(1, rows + 1), 0.37 * np.sqrt(np.arange(1, columns + 1))))


def swinging() -> pp.Transitions:
    """60 transitions of the pendulum with errors of a hundredth of the scales."""
    actions = waves(60, 1, 2.4)
    states = np.asarray(pp.rollout(pendulum.dynamics().transition(pendulum.truth), np.array([0.3, 0.0]), actions))
    return pp.Transitions(states[:-1], actions, states[1:] + 0.01 * pendulum.state.scale * waves(60, 2)[::-1])


def told(posterior) -> Numbers:
    """A belief: its mode and sds in virtual space, its evidence, and what it predicts."""
    mean, factor = posterior.basis(waves(2, 2), waves(2, 1))
    sd = jnp.linalg.norm(posterior.factor, axis=0)
    numbers = {"mode": posterior.mode, "sd": sd, "log evidence": posterior.log_evidence, "entropy": posterior.entropy()}
    return numbers | {"mean": mean, "sd of the mean": jnp.linalg.norm(factor, axis=-1)}


def laplace_of_a_linear_program() -> Numbers:
    """Bayesian linear regression, and the information that four more measurements would bring."""
    dynamics, states, actions = linear_dynamics(), waves(40, 2, 2.0), waves(40, 1)[::-1]
    after = jax.vmap(dynamics.transition(linear_truth, 0.0))(states, actions) + linear_noise * waves(40, 2)[::-1]
    posterior = pp.fit(jax.random.key(KEY), dynamics, pp.Transitions(states, actions, after), Laplace())
    return told(posterior) | {"information": posterior.information_gain(waves(4, 2), waves(4, 1))}


def laplace_of_the_pendulum() -> Numbers:
    """Physical parameters and noise from 60 transitions; and one draw of the transition function."""
    posterior = pp.fit(jax.random.key(KEY), pendulum.dynamics(), swinging(), Laplace())
    return told(posterior) | {"draw": posterior.draw(jax.random.key(KEY))(jnp.array([0.5, -1.0]), jnp.array([0.3]))}


def recording_of_a_linear_machine() -> Numbers:
    """A recording with a gap: its log density and gradient, and the smoothed states."""
    dynamics, start = bind(), ((0.3, -0.2), (0.4, 0.8))
    valid = (np.arange(25) < 8) | (np.arange(25) > 10)
    data = pp.Trajectories(waves(25, 3), waves(25, 1, 2.0), valid=valid, start=start, dt=DT)

    @jax.jit
    def told(sites):
        density = lambda sites: log_density(dynamics, (data,), {}, sites)[0]  # noqa: E731
        return jax.value_and_grad(density)(sites), jax.vmap(smooth)(filtered(dynamics, sites, data))

    (value, slope), (mean, covariance) = told(jax.tree.map(jnp.asarray, values))
    numbers = {"log density": value, "slope": jnp.stack([slope[k] for k in sorted(slope)])}
    return numbers | {"states": mean[0, ::6], "sds": jnp.sqrt(jnp.diagonal(covariance[0, ::6], axis1=-2, axis2=-1))}


def rollouts_of_three_machines() -> Numbers:
    """States under given actions: pendulum, cart-pole, and a chaotic machine before it is."""
    ends = {}
    for name, model, steps in (("pendulum", pendulum, 60), ("cartpole", cartpole, 60), ("double", double_pendulum, 20)):
        dynamics = model.dynamics()
        transition = dynamics.transition(model.truth, 0.0)
        actions = waves(steps, len(dynamics.action), 0.4 * dynamics.action.high)
        ends[name] = pp.rollout(transition, 0.3 * np.ones(len(dynamics.state)), actions)[steps // 2 :: steps // 2]
    return ends


def plan_of_mppi() -> Numbers:
    """Two control steps of a weighted average of candidates."""
    return planned(MPPI(horizon=8, population=64))


def plan_of_icem() -> Numbers:
    """Two control steps of the cross-entropy method with memory."""
    return planned(ICEM(horizon=8, population=64, iterations=2, elites=8, keep=2))


def planned(planner) -> Numbers:
    transition, memory, numbers = pendulum.dynamics().transition(pendulum.truth, 0.0), planner.init(pendulum.action), {}
    step = jax.jit(lambda k, x, m: planner.plan(k, transition.particles(), pendulum.swing_up, x, m))
    state = jnp.array([0.4, -0.2])
    for k in range(2):
        actions, memory, info = step(jax.random.fold_in(jax.random.key(KEY), k), state, memory)
        state = transition(state, actions[0])
        numbers[f"step {k}"] = jnp.concatenate([actions[:, 0], jnp.atleast_1d(info["value"]), state])
    return numbers


RUNS = {
    run.__name__: run
    for run in (
        laplace_of_a_linear_program,
        laplace_of_the_pendulum,
        recording_of_a_linear_machine,
        rollouts_of_three_machines,
        plan_of_mppi,
        plan_of_icem,
    )
}


def numbers(name: str) -> Numbers:
    with jax.enable_x64(True):
        return {k: [float(x) for x in np.ravel(v)] for k, v in RUNS[name]().items()}


def stored(name: str) -> Numbers:
    return json.loads((FOLDER / f"{name}.json").read_text())


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    FOLDER.mkdir(exist_ok=True)
    for name in RUNS:
        (FOLDER / f"{name}.json").write_text(json.dumps(numbers(name), indent=1) + "\n")


if __name__ == "__main__":
    main()
