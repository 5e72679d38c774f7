"""The loop: believe, draw, plan, act, and believe again. `psrl` and `psal` are two readings of it."""

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
from physppl.control.episodes import Episode, check_match, judged, play
from physppl.control.replay import Memory
from physppl.control.systems import HostSystem, System
from physppl.data.transitions import Transitions
from physppl.dynamics import Dynamics
from physppl.internal.errors import check_key
from physppl.internal.progress import bar, compile_clock
from physppl.language.transition import AbstractTransition
from physppl.planning.acquisition import Acquisition, Thompson, UserRule
from physppl.planning.objectives import Constrained, InformationGain, Objective, TaskReward
from physppl.planning.planner import Planner
from physppl.planning.tasks import Task
from physppl.posterior.backend import Backend, fit
from physppl.posterior.posterior import Posterior

Rule = Callable[[PRNGKeyArray, Posterior], AbstractTransition]


class Run(eqx.Module):
    """The result of a loop.

    Attributes:
        episodes: stacked, (E, ...).
        posterior: the belief after the last episode.
        data: the transitions of all episodes, and those known before.
        solved: (E,) by the task's own judgement; None where it has none.
        entropy: (E + 1,) nats, of the belief about the program's parameters before each episode and after the last.
        seconds: per episode {"plan", "fit", "compile"}: acting, the fit after it (of the first episode also the one
            before), and what of both was compiling.
        task, planner, objective, acquisition: as the loop was told.
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
        """Nats by which each episode narrowed the belief about the program's parameters."""
        return -np.diff(self.entropy)

    def agent(
        self,
        key: PRNGKeyArray,
        acquisition: Acquisition | None = None,
        from_observation: Callable[[Any], Any] | None = None,
    ) -> Actor:
        """What was learned, as an object to act with: `act(observation)` gives an action, `reset()` begins an episode.

        Args:
            acquisition: the loop's own by default; `PosteriorMean()` for acting without exploring.
            from_observation: observation -> state (D,), where what is observed is not the state itself.
        """
        take_key, act_key = jax.random.split(key)
        take = self.acquisition if acquisition is None else _rule(acquisition)
        agent = _agent(take_key, self.posterior, self.task, self.planner, self.objective, take)
        return agent.actor(act_key, from_observation)

    def __str__(self) -> str:
        one = lambda i: jax.tree.map(lambda x: x[i], self.episodes)  # noqa: E731
        records = [KeptEpisode(one(i), self.entropy[i], s) for i, s in enumerate(self.seconds)]
        return "\n".join([HEAD, *(str(_row(self.task, records, i, self.entropy[i + 1])) for i in range(len(records)))])


class Row(NamedTuple):
    """What a loop tells of one episode; print it. Machines side by side are averaged."""

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
    """Of episode i, the belief after it having this entropy."""
    returns = [float(np.mean(record.episode.returns)) for record in records[: i + 1]]
    solved = judged(task, records[i].episode)
    upright = None if solved is None else bool(np.all(solved))
    return Row(i + 1, returns[-1], max(returns), upright, records[i].entropy - after, records[i].seconds)


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

    Each episode takes a transition function of the belief given all data so far, and acts on that function's plans.
    The first episode acts from the prior, or from `data`. Arrays are allocated for all episodes at once: nothing is
    compiled after the first episode of a planner.

    Args:
        system: acted on; see `SimulatedSystem` and `physppl.control.gym.GymSystem`.
        task: reward, limits and length of an episode.
        dynamics: the program believed in; its truth may be another.
        objective: what is planned for.
        acquisition: which function of the belief is acted on; an `Acquisition`, or a rule (key, posterior) ->
            transition.
        explore: what acts in the first episode instead, e.g. `RandomPolicy()`.
        data: transitions known before the first episode.
        checkpoints: a folder where every episode is kept as soon as it is over. A loop begun again with the same
            arguments goes on after the last one there and ends in the same result.
        report: called after every episode with what there is to tell about it, e.g. `print`.
        progress: a bar after two seconds; by default on a terminal.

    Raises:
        FloatingPointError: where the system's state diverges, naming step and coordinate.
        ValueError: where `checkpoints` holds another loop's episodes, naming what differs.
    """
    check_key(key)
    if episodes < 1:
        raise ValueError(f"psrl: episodes must be at least 1; got {episodes}.")
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
    place = contextlib.nullcontext() if checkpoints is None else Checkpoints(checkpoints, settings)
    with place as kept:
        memory = Memory(dynamics, task.steps, episodes * system.batch, data)
        records: list[KeptEpisode] = [] if kept is None else kept.load()[:episodes]
        for record in records:
            memory.add(record.episode)
        for i in range(len(records) - 1):
            if report is not None:
                report(_row(task, records, i, records[i + 1].entropy))
        posterior, entropy, seconds = None, np.nan, dict(NO_TIME)
        for i in bar(range(len(records), episodes + 1), "psrl", progress):
            fit_key, take_key, act_key = jax.random.split(jax.random.fold_in(key, i), 3)
            with compile_clock() as clock:
                start = time.perf_counter()
                posterior = fit(fit_key, dynamics, memory.data(), backend)
                entropy = float(posterior.entropy())
            spent = records[-1].seconds if records else seconds  # what the prior costs counts with the first episode
            spent["fit"] += time.perf_counter() - start
            spent["compile"] += clock.seconds
            if records and report is not None:
                report(_row(task, records, len(records) - 1, entropy))
            if i == episodes:
                break
            with compile_clock() as clock:
                start = time.perf_counter()
                who = explore if explore is not None and i == 0 else planner
                agent = _agent(take_key, posterior, task, who, objective, acquisition)
                record = jax.block_until_ready(play(act_key, system.at(i), task, agent))
            seconds["plan"] += time.perf_counter() - start
            seconds["compile"] += clock.seconds
            records.append(KeptEpisode(record, entropy, seconds))
            seconds = dict(NO_TIME)
            memory.add(record)
            if kept is not None:
                kept.save(i, records[-1])
        assert posterior is not None  # the belief after the last episode is always fitted
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(r.episode for r in records))
        entropies = np.array([*(r.entropy for r in records), entropy])
        return Run(
            stacked, posterior, memory.data(), judged(task, stacked), entropies,
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
    """Posterior sampling active learning: the same loop, planned for what there is to learn instead of for a reward.

    The task gives the length of an episode, the limits that exploration keeps to, and the rewards that are recorded.
    Arguments and errors as of `psrl`.
    """
    return psrl(key, system, task, dynamics, backend, planner, episodes, objective=objective, **options)


def _rule(acquisition: Acquisition | Rule) -> Acquisition:
    return acquisition if isinstance(acquisition, Acquisition) else UserRule(rule=acquisition)


def _agent(key, posterior: Posterior, task: Task, planner, objective: Objective, acquisition: Acquisition) -> Agent:
    transitions, value = acquisition.stages(key, posterior, task.steps), objective.bind(task, posterior)
    if not eqx.is_array(value) and jax.tree.structure(value) == jax.tree.structure(0):  # a bare function
        raise TypeError(
            f"{type(objective).__name__}.bind must return a pytree that is callable, such as an eqx.Module with "
            "__call__(states, actions) or a method of the objective: a new function at every episode compiles anew."
        )
    return Agent(planner, transitions, Constrained(value, task), acquisition.every)
