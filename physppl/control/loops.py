"""Learning loops: fit, draw, plan, act, and fit again; `psrl` and `psal` differ in their objective."""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from physppl.control.agent import Actor, Agent
from physppl.control.checkpoints import Checkpoints, KeptEpisode
from physppl.control.episodes import Episode, check_match, check_reset, play, solved_episodes
from physppl.control.replay import ReplayBuffer
from physppl.control.systems import HostSystem, System
from physppl.data.transitions import Transitions
from physppl.dynamics import Dynamics
from physppl.internal.errors import check_counts, check_key
from physppl.internal.progress import bar, compile_clock
from physppl.internal.tables import SCREEN
from physppl.language.transition import AbstractTransition
from physppl.planning.acquisition import Acquisition, Thompson, UserRule
from physppl.planning.objectives import Constrained, InformationGain, Objective, TaskReward
from physppl.planning.planner import Planner
from physppl.planning.tasks import Task
from physppl.posterior.backend import Backend, fit
from physppl.posterior.posterior import Posterior

Rule = Callable[[PRNGKeyArray, Posterior], AbstractTransition]


class Run(eqx.Module):
    """Result of a loop.

    Attributes:
        episodes: stacked, (E, ...).
        posterior: after the last episode.
        data: the transitions of all episodes, and those known before.
        solved: (E,) by the task's `solved` criterion; None where it has none.
        entropy: (E + 1,) nats, of the posterior of the program's parameters before each episode and after the last.
        seconds: per episode {"plan", "fit", "compile"}: acting, the fit after it (for the first episode also the one
            before), and the part of both elapsed compiling.
        task, planner, objective, acquisition: the loop's arguments.
    """

    episodes: Episode
    posterior: Posterior
    data: Transitions
    solved: np.ndarray | None
    entropy: Float[np.ndarray, " E1"]
    seconds: tuple[dict[str, float], ...] = eqx.field(static=True)
    task: Task
    planner: Planner
    objective: Objective
    acquisition: Acquisition

    @property
    def information(self) -> Float[np.ndarray, " E"]:
        """Nats by which each episode reduced the entropy of the posterior of the program's parameters."""
        return -np.diff(self.entropy)

    def agent(
        self,
        key: PRNGKeyArray,
        acquisition: Acquisition | None = None,
        from_observation: Callable[[Any], Any] | None = None,
    ) -> Actor:
        """Agent that acts on the last posterior: `act(observation)` gives an action, `reset()` begins an episode.

        Args:
            acquisition: the loop's own by default; `PosteriorMean()` for acting without exploring.
            from_observation: observation -> state (D,), where an observation is not the state itself.
        """
        draw_key, act_key = jax.random.split(key)
        acquisition = self.acquisition if acquisition is None else _rule(acquisition)
        agent = _agent(draw_key, self.posterior, self.task, self.planner, self.objective, acquisition)
        return agent.actor(act_key, from_observation)

    def __str__(self) -> str:
        records = [
            KeptEpisode(jax.tree.map(lambda x, i=i: x[i], self.episodes), self.entropy[i], seconds)
            for i, seconds in enumerate(self.seconds)
        ]
        rows = [str(_row(self.task, records, i, self.entropy[i + 1])) for i in range(len(records))]
        if len(rows) > SCREEN:
            skipped = f"... {len(rows) - SCREEN + 1} earlier ones are in `.episodes.returns`, `.entropy` and `.seconds`"
            rows = [skipped, *rows[1 - SCREEN :]]
        return "\n".join([HEAD, *rows])

    __repr__ = __str__


class Row(NamedTuple):
    """Row of a loop's printed table, for one episode; machines in parallel are averaged."""

    number: int
    value: float
    best: float
    solved: bool | None
    information: float
    seconds: dict[str, float]

    def __str__(self) -> str:
        solved = "-" if self.solved is None else "yes" if self.solved else "no"
        s = self.seconds
        return (
            f"{self.number:7d}{self.value:10.2f}{self.best:10.2f}{solved:>8s}{self.information:8.2f}"
            f"{s['plan']:9.2f}{s['fit']:9.2f}{s['compile']:21.2f}"
        )


NO_TIME = {"plan": 0.0, "fit": 0.0, "compile": 0.0}
HEAD = "episode    return      best  solved    nats   plan s    fit s  of both compiling s"


def _row(task: Task, records: Sequence[KeptEpisode], i: int, after: float) -> Row:
    """Row of episode i, given the posterior's entropy after it."""
    returns = [float(np.mean(record.episode.returns)) for record in records[: i + 1]]
    solved = solved_episodes(task, records[i].episode)
    all_solved = None if solved is None else bool(np.all(solved))
    return Row(i + 1, returns[-1], max(returns), all_solved, records[i].entropy - after, records[i].seconds)


def psrl(
    key: PRNGKeyArray,
    system: System | HostSystem,
    task: Task,
    dynamics: Dynamics,
    backend: Backend,
    planner: Planner,
    episodes: int = 10,
    *,
    objective: Objective = TaskReward(),
    acquisition: Acquisition | Rule = Thompson(),
    explore: Planner | None = None,
    data: Transitions | None = None,
    checkpoints: str | Path | None = None,
    report: Callable[[Row], Any] | None = None,
    progress: bool | None = None,
) -> Run:
    """Posterior sampling reinforcement learning (Strens 2000; Osband, Russo, Van Roy 2013).

    Each episode takes a transition function of the posterior given all data so far, and acts on that function's plans.
    The first episode acts on the prior, or on the posterior given `data`. Arrays are allocated for all episodes at
    once: nothing is compiled after the first episode of a planner.

    Args:
        system: the machine to act on; see `SimulatedSystem` and `physppl.control.gym.GymSystem`.
        task: reward, limits and length of an episode.
        dynamics: the agent's program; the system's equations may differ.
        objective: maximised by the planner.
        acquisition: choice of the function to act on; an `Acquisition`, or a rule (key, posterior) ->
            transition.
        explore: planner of the first episode instead of `planner`, e.g. `RandomPolicy()`.
        data: transitions known before the first episode.
        checkpoints: a folder to which every episode is written as soon as it is over. A loop started again with the
            same arguments resumes after the last one there and ends in the same result.
        report: called after every episode with its `Row`, e.g. `print`.
        progress: a bar after two seconds; by default on a terminal.

    Raises:
        FloatingPointError: where the system's state diverges, naming step and coordinate.
        TypeError: where a host system returns something else than states, naming its class and method.
        ValueError: where `checkpoints` holds another loop's episodes, naming what differs.
    """
    check_key(key)
    _check_parts(task, backend, planner)
    check_counts("psrl", episodes=episodes)
    if data is not None:
        dynamics.check(data)
        if not isinstance(data, Transitions) or data.next_states is None or data.batch_shape:
            raise ValueError(
                "psrl: data must be transitions of one machine with next_states; got recordings, inputs or a fleet."
            )
    check_match(system, dynamics)
    acquisition = _rule(acquisition)
    settings = {
        "key": key, "system": system, "task": task, "dynamics": dynamics, "backend": backend, "planner": planner,
        "objective": objective, "acquisition": acquisition, "explore": explore, "data": data,
    }  # fmt: skip
    context = contextlib.nullcontext() if checkpoints is None else Checkpoints(checkpoints, settings)
    with context as store:
        replay = ReplayBuffer(dynamics, task.steps, episodes * system.batch, data)
        records: list[KeptEpisode] = [] if store is None else store.load()[:episodes]
        for record in records:
            replay.add(record.episode)
        for i in range(len(records) - 1):
            if report is not None:
                report(_row(task, records, i, records[i + 1].entropy))
        posterior, entropy, seconds, played = None, np.nan, dict(NO_TIME), len(records)
        for i in bar(range(played, episodes + 1), "psrl", progress):
            fit_key, draw_key, act_key = jax.random.split(jax.random.fold_in(key, i), 3)
            if i == played < episodes:
                check_reset(act_key, system.at(i), dynamics)  # before a fit that takes long
            with compile_clock() as clock:
                start = time.perf_counter()
                posterior = fit(fit_key, dynamics, replay.data(), backend)
                entropy = float(posterior.entropy())
            elapsed = records[-1].seconds if records else seconds  # the fit of the prior counts with the first episode
            elapsed["fit"] += time.perf_counter() - start
            elapsed["compile"] += clock.seconds
            if records and report is not None:
                report(_row(task, records, len(records) - 1, entropy))
            if i == episodes:
                break
            with compile_clock() as clock:
                start = time.perf_counter()
                acting = explore if explore is not None and i == 0 else planner
                agent = _agent(draw_key, posterior, task, acting, objective, acquisition)
                record = jax.block_until_ready(play(act_key, system.at(i), task, agent, checked=True))
            seconds["plan"] += time.perf_counter() - start
            seconds["compile"] += clock.seconds
            records.append(KeptEpisode(record, entropy, seconds))
            seconds = dict(NO_TIME)
            replay.add(record)
            if store is not None:
                store.save(i, records[-1])
        assert posterior is not None  # the posterior after the last episode is always fitted
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(r.episode for r in records))
        entropies = np.array([*(r.entropy for r in records), entropy])
        return Run(
            stacked, posterior, replay.data(), solved_episodes(task, stacked), entropies,
            tuple(r.seconds for r in records), task, planner, objective, acquisition,
        )  # fmt: skip


def psal(
    key: PRNGKeyArray,
    system: System | HostSystem,
    task: Task,
    dynamics: Dynamics,
    backend: Backend,
    planner: Planner,
    episodes: int = 10,
    *,
    objective: Objective = InformationGain(),
    **options: Any,
) -> Run:
    """Posterior sampling active learning: the loop of `psrl`, planned for information instead of reward.

    The task gives the length of an episode, the limits that exploration keeps to, and the rewards that are recorded.
    Arguments and errors are those of `psrl`.
    """
    return psrl(key, system, task, dynamics, backend, planner, episodes, objective=objective, **options)


def _check_parts(task, backend, planner) -> None:
    """Refuse what is no task, backend or planner, or one's class, with an example."""
    for argument, value, kind, example in (
        ("task", task, Task, "Task(reward, steps=200)"),
        ("backend", backend, Backend, "Laplace()"),
        ("planner", planner, Planner, "ICEM()"),
    ):
        if not isinstance(value, kind):
            got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise TypeError(f"psrl: `{argument}` must be an object such as {example}; got {got}.")


def _rule(acquisition: Acquisition | Rule) -> Acquisition:
    return acquisition if isinstance(acquisition, Acquisition) else UserRule(rule=acquisition)


def _agent(key, posterior: Posterior, task: Task, planner, objective: Objective, acquisition: Acquisition) -> Agent:
    transitions, value = acquisition.stages(key, posterior, task.steps), objective.bind(task, posterior)
    if not eqx.is_array(value) and jax.tree.structure(value) == jax.tree.structure(0):  # a bare function
        raise TypeError(
            f"{type(objective).__name__}.bind must return a pytree that is callable, such as an eqx.Module with "
            "__call__(states, actions) or a method of the objective: a new function at every episode is compiled again."
        )
    return Agent(planner, transitions, Constrained(value, task), acquisition.every)
