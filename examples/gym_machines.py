"""Gymnasium's pendulum and MuJoCo's inverted pendulum, learned in a handful of episodes.

    python examples/gym_machines.py [--write]

Posterior sampling acts from the prior in the first episode; mass and length of Pendulum-v1 are unknown, masses, length,
tilt and frictions of InvertedPendulum-v5 too, and the process noise of both. The angle of Pendulum-v1 is read off the
cosine and sine that it shows. Its agent is judged by 10 further episodes, begun anew, in which the posterior mean acts,
which explores nothing. Returns are the environments' own. Beside it: random torques, and the oracle, the same planner
with the true parameters; both from the same starts as the agent.
"""

import sys
import time
from importlib.metadata import version
from typing import NamedTuple

import jax
import numpy as np
import page

import physppl as pp
from physppl.control.gym import GymSystem
from physppl.inference import Laplace
from physppl.models import gym_pendulum, inverted_pendulum
from physppl.planning import ICEM, RandomPolicy

SEEDS = 10
TRAINING, FRESH = 3, 10  # episodes of Pendulum-v1
EPISODES = 5  # of InvertedPendulum-v5
BACKEND = Laplace(starts=2)  # one episode tells these parameters well: more starts end in the same place
SWING = ICEM(horizon=25, population=100, iterations=3, elites=10, keep=3)
# A pole that stands wants small corrections: a twentieth of the 300 N at hand is drawn as often as not.
BALANCE = ICEM(horizon=20, population=100, iterations=3, elites=10, keep=3, spread=0.1)


class Learned(NamedTuple):
    """Results of one seed.

    Attributes:
        training: (E,) return of each training episode.
        agent, oracle, random: (N,) returns of episodes from the same starts.
        reach: largest first coordinate, either way, of the training.
        sites: of the last posterior's mean.
        seconds: of the training, fits and compilation included.
    """

    training: np.ndarray
    agent: np.ndarray
    oracle: np.ndarray
    random: np.ndarray
    reach: float
    sites: dict[str, float]
    seconds: float


def swing_up(seed: int) -> Learned:
    """Pendulum-v1: three episodes to learn from, then ten fresh ones."""
    dynamics = gym_pendulum.dynamics()
    read = gym_pendulum.from_observation
    one = GymSystem("Pendulum-v1", dynamics, from_observation=read)
    fresh = GymSystem("Pendulum-v1", dynamics, from_observation=read, batch=FRESH)
    truth = dynamics.transition(gym_pendulum.truth, noise=0.0)
    return _learn(seed, one, fresh, gym_pendulum.swing_up, dynamics, SWING, truth, TRAINING)


def balance(seed: int) -> Learned:
    """InvertedPendulum-v5: five episodes of at most 1,000 steps, a reward of 1 for each step that it stands."""
    dynamics = inverted_pendulum.dynamics()
    one = GymSystem("InvertedPendulum-v5", dynamics)
    truth = dynamics.transition(inverted_pendulum.nominal, noise=0.0)
    return _learn(seed, one, one, inverted_pendulum.balance, dynamics, BALANCE, truth, EPISODES)


def _learn(seed, system, fresh, task, dynamics, planner, truth, episodes) -> Learned:
    train_key, test_key = jax.random.split(jax.random.key(seed))
    start = time.perf_counter()
    run = pp.psrl(train_key, system, task, dynamics, BACKEND, planner, episodes)
    seconds = time.perf_counter() - start
    mean = run.posterior.mean()

    def returns(planner, transition):
        return np.atleast_1d(pp.episode(test_key, fresh, task, planner, transition).returns)

    sites = {name: float(value) for name, value in mean.sites.items()}
    tested = (returns(planner, mean), returns(planner, truth), returns(RandomPolicy(), truth))
    reach = float(np.max(np.abs(run.episodes.states[..., 0])))
    return Learned(np.asarray(run.episodes.returns), *tested, reach, sites, seconds)


def table(results: list[Learned], tested: str) -> list[str]:
    """One row per seed."""
    episodes = len(results[0].training)
    names = [f"episode {i + 1}" for i in range(episodes)] + [tested, "oracle", "random", "training, s"]
    lines = ["| seed | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for seed, r in enumerate(results):
        returns = [*r.training, r.agent.mean(), r.oracle.mean(), r.random.mean()]
        lines.append(f"| {seed} | " + " | ".join(f"{x:.0f}" for x in returns) + f" | {r.seconds:.1f} |")
    return [*lines, ""]


def worst_error(results: list[Learned], truth: dict[str, float]) -> np.ndarray:
    """(S,) largest error of a seed's parameters, as a share of the truth."""
    return np.array([max(abs(r.sites[k] / v - 1) for k, v in truth.items()) for r in results])


def report(seeds: int = SEEDS) -> str:
    """Everything, as the text of a page."""
    swung, balanced = ([study(seed) for seed in range(seeds)] for study in (swing_up, balance))
    error = max(worst_error(swung, gym_pendulum.truth).max(), np.finfo(np.float32).eps)  # no figure is finer
    means = np.array([r.agent.mean() for r in swung])
    lucky = np.array([r.oracle for r in swung])
    firsts = [int(np.argmax(r.training >= 1000)) + 1 if (r.training >= 1000).any() else 0 for r in balanced]
    exact = worst_error(balanced, inverted_pendulum.nominal) < 1e-3
    struck = np.array([r.reach >= inverted_pendulum.RAIL for r in balanced])
    lines = [
        f"Gymnasium {version('gymnasium')}, MuJoCo {version('mujoco')}.",
        "",
        "## Pendulum-v1",
        "",
        f"Return of {TRAINING} training episodes of 200 steps, and the mean of {FRESH} fresh ones; at least -200 on "
        f"{np.sum(means >= -200)} of {seeds} seeds.",
        "",
        *table(swung, f"{FRESH} fresh"),
        f"Agent {means.mean():.1f}, oracle {lucky.mean():.1f}; parameters are within "
        f"{error:.0e} of the truth, in single precision. Returns differ by where an episode starts: "
        f"those of the oracle have an sd of {lucky.std():.0f}, their means of {FRESH} one of "
        f"{lucky.std() / np.sqrt(FRESH):.0f}.",
        "",
        "## InvertedPendulum-v5",
        "",
        f"Steps balanced; all 1,000 by episode {EPISODES} on {np.sum(np.array(firsts) > 0)} of {seeds} seeds, in the "
        f"first episode, from the prior, on {np.sum(np.array(firsts) == 1)}.",
        "",
        *table(balanced, "the mean, 1 fresh"),
        f"The cart struck the end of the rail in the training of {np.sum(struck)} seeds. Without that, all parameters "
        f"are within 0.1 % of MuJoCo's on {np.sum(exact & ~struck)} of {np.sum(~struck)} seeds; with it on "
        f"{np.sum(exact & struck)} of {np.sum(struck)}: the stop is not in the program, and the noise that is "
        "learned to explain it hides the frictions.",
    ]
    return "\n".join(lines)


def main() -> None:
    text = report()
    print(text)
    if "--write" in sys.argv:
        about = page.introduction(__doc__)
        page.write("gym_machines", "Gymnasium's machines", about, "gym_machines.py", text)


if __name__ == "__main__":
    main()
