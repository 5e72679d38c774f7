"""Posterior sampling learns to swing up a pendulum: returns per episode beside an oracle and a random policy.

    python examples/psrl_pendulum.py

Two machines: one that the program describes, one with dry friction of 0.1 N m that the prior does not know.
The table in docs/results/psrl.md is this script's output.
"""

import time

import jax
import numpy as np
import page

import physppl as pp
from physppl.inference import Laplace
from physppl.models import pendulum
from physppl.planning import ICEM, RandomPolicy

SEEDS, EPISODES = range(10), 4


def learn(system: pp.SimulatedSystem, seed: int, episodes: int = EPISODES) -> pp.Run:
    """One run of posterior sampling; its first episode acts on a draw of the prior."""
    return pp.psrl(
        jax.random.key(seed), system, pendulum.swing_up, pendulum.dynamics(), Laplace(), ICEM(), episodes=episodes
    )


def baseline(system: pp.SimulatedSystem, seed: int, planner) -> pp.Episode:
    """One episode planned with the system's own transition: the oracle with ICEM, the random policy with itself."""
    return pp.episode(jax.random.key(1000 + seed), system, pendulum.swing_up, planner, system.transition)


def table(system: pp.SimulatedSystem) -> str:
    """Markdown: median and range of the return over the seeds, and how many end upright."""
    runs = [learn(system, seed) for seed in SEEDS]
    returns = np.array([run.episodes.returns for run in runs])
    solved = np.array([run.solved for run in runs])
    lines = ["| policy | median return | range | upright |", "|---|---|---|---|"]
    for name, planner in (("random", RandomPolicy()), ("oracle", ICEM())):
        episodes = [baseline(system, seed, planner) for seed in SEEDS]
        ends = [bool(pendulum.swing_up.solved(e.states)) for e in episodes]
        lines.append(page.row(name, [e.returns for e in episodes], ends))
    for i in range(EPISODES):
        name = "psrl, episode 1 (a draw of the prior)" if i == 0 else f"psrl, episode {i + 1}"
        lines.append(page.row(name, returns[:, i], solved[:, i]))
    first = [int(np.argmax(s)) + 1 if s.any() else None for s in solved]
    lines += ["", f"First upright episode of seeds 0 to {len(SEEDS) - 1}: {', '.join(map(str, first))}."]
    return "\n".join(lines)


def main() -> None:
    for coulomb in (0.0, 0.1):
        start = time.perf_counter()
        print(f"### Dry friction {coulomb:g} N m" + (", which the program does not know" if coulomb else ""))
        print(f"\n{table(pendulum.system(coulomb))}")
        print(f"{time.perf_counter() - start:.0f} s, compiling included.\n")


if __name__ == "__main__":
    main()
