"""Learning part of the demo: a machine learned by acting, compared with the oracle and random actions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import physppl as pp
from physppl import plots
from physppl.cli.acting import LearningProblem, animate_last
from physppl.cli.console import say, timed
from physppl.control.episodes import solved_episodes
from physppl.control.loops import HEAD
from physppl.inference import Laplace
from physppl.planning import Planner, RandomPolicy
from physppl.plots import loops
from physppl.posterior.summary import summarise

BASELINES = 3  # episodes of the oracle and of random actions
FILES = {
    "swing_up.nc": "posterior after the last episode",
    "swing_up_parameters.png": "its parameters, posterior over prior, with the true values",
    "returns.png": "return per episode",
    "swing_up.gif": "the last episode",
}


class Learning(NamedTuple):
    """Machine of the demo.

    Attributes:
        opening: its description, in lines.
        figure: (key, run, system, an episode of the oracle) -> an additional figure.
        figure_name: file name of that figure.
    """

    machine: LearningProblem
    opening: Sequence[str]
    planner: Planner
    figure: Callable[..., Any]
    figure_name: str


def learn(key, number: int, learning: Learning, episodes: int, out: Path) -> pp.Run:
    """Swing up by posterior sampling, print the table, save the figures and the animation."""
    (_, task, dynamics, system, truth, _), planner = learning.machine, learning.planner
    assert isinstance(system, pp.SimulatedSystem)  # as every machine of physppl.models
    say(f"{number}. " + "\n   ".join(learning.opening))
    run_key, oracle_key, random_key, plot_key, draw_key = jax.random.split(key, 5)
    say(f"\n{HEAD}")
    with timed("learned, and acted: oracle and random"):
        run = pp.psrl(run_key, system, task, dynamics, Laplace(), planner, episodes, report=say, progress=False)
        oracle, random = (
            [pp.episode(k, system, task, acting, system.transition) for k in jax.random.split(acting_key, BASELINES)]
            for acting_key, acting in ((oracle_key, planner), (random_key, RandomPolicy()))
        )
        say(f"{_mean('oracle', task, oracle)}\n{_mean('random', task, random)}\n")
    say(f"\n{summarise(draw_key, run.posterior, truth=truth).text()}\n")
    say("   Where a program lacks a friction, the parameters it has make up for it: compare truth and 'in 90 %'.")
    with timed(f"drawn: swing_up_parameters.png, returns.png, {learning.figure_name}, swing_up.gif"):
        plots.parameters(run.posterior, truth).savefig(out / "swing_up_parameters.png")
        figure = loops.returns(run, oracle=[e.returns for e in oracle], random=[e.returns for e in random])
        figure.savefig(out / "returns.png")
        learning.figure(plot_key, run, system, oracle[0]).savefig(out / learning.figure_name)
        animate_last(learning.machine, out / "swing_up.gif", run)
    return run


def _mean(name: str, task: pp.Task, episodes: list[pp.Episode]) -> str:
    """Row below the loop's table: mean and best return, and the number of solved episodes."""
    values = [float(e.returns) for e in episodes]
    solved = solved_episodes(task, jax.tree.map(lambda *xs: jnp.stack(xs), *episodes))
    count = "-" if solved is None else f"{int(solved.sum())}/{len(solved)}"
    return f"{name:>7s}{np.mean(values):10.2f}{max(values):10.2f}{count:>8s}{'-':>8s}{'-':>9s}{'-':>9s}{'-':>21s}"
