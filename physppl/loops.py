"""The loop: believe, draw, plan, act, and believe again."""

import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray

from physppl.backend import Backend, fit
from physppl.dynamics import Dynamics
from physppl.errors import check_key
from physppl.planning.planner import Planner
from physppl.posterior import Posterior
from physppl.progress import bar, compile_clock
from physppl.systems import System
from physppl.tasks import Task
from physppl.transition import AbstractTransition
from physppl.transitions import Transitions


class Episode(eqx.Module):
    """What happened in one episode; stacked episodes have a leading axis.

    Attributes:
        states: (T + 1, D) observed.
        actions: (T, A) applied.
        rewards: (T,) of the true states.
        valid: (T,) False after termination, where the rows are frozen.
        failed: (T,) share of the planner's candidates that diverged.
    """

    states: Float[Array, "*E T1 D"]
    actions: Float[Array, "*E T A"]
    rewards: Float[Array, "*E T"]
    valid: Bool[Array, "*E T"]
    failed: Float[Array, "*E T"]

    @property
    def returns(self) -> Float[Array, "*E"]:
        """Sum of the rewards."""
        return jnp.sum(jnp.where(self.valid, self.rewards, 0.0), axis=-1)


class Run(eqx.Module):
    """The result of a loop.

    Attributes:
        episodes: stacked, (E, ...).
        posterior: the belief after the last episode.
        data: the transitions of all episodes.
        solved: (E,) by the task's own judgement; None where it has none.
        seconds: per episode {"fit", "act", "compile"}.
    """

    episodes: Episode
    posterior: Posterior
    data: Transitions
    solved: np.ndarray | None
    seconds: tuple[dict[str, float], ...] = eqx.field(static=True)

    def __str__(self) -> str:
        lines = ["episode     return  solved   fit s   act s  of it compiling s"]
        for i, (value, s) in enumerate(zip(np.asarray(self.episodes.returns), self.seconds, strict=True)):
            solved = "-" if self.solved is None else "yes" if self.solved[i] else "no"
            lines.append(f"{i + 1:7d} {value:10.2f} {solved:>7s} {s['fit']:7.2f} {s['act']:7.2f} {s['compile']:18.2f}")
        return "\n".join(lines)


@eqx.filter_jit
def _episode(key, system: System, task: Task, planner: Planner, transitions) -> Episode:
    reset_key, key = jax.random.split(key)
    state = system.reset(reset_key)
    plan_state = planner.init(transitions.dynamics.action)

    def control(carry, key):
        state, observation, plan_state, alive = carry
        plan_key, system_key = jax.random.split(key)
        actions, plan_state, info = planner.plan(plan_key, transitions, task, observation, plan_state)
        next_state, next_observation, terminated = system.step(system_key, state, actions[0])
        next_state = jnp.where(alive, next_state, state)
        next_observation = jnp.where(alive, next_observation, observation)
        reward = task.stage(next_state, actions[0])
        record = (next_observation, actions[0], reward, alive, info["failed"])
        return (next_state, next_observation, plan_state, alive & ~terminated), record

    start = (state, state, plan_state, jnp.ones((), bool))
    _, (states, actions, rewards, valid, failed) = jax.lax.scan(control, start, jax.random.split(key, task.steps))
    return Episode(jnp.concatenate([state[None], states]), actions, rewards, valid, failed)


def episode(key: PRNGKeyArray, system: System, task: Task, planner: Planner, transition: AbstractTransition) -> Episode:
    """One episode of replanning at every step with one transition function.

    Planning with the system's own transition gives the oracle; with `RandomPolicy` it gives the random baseline.

    Raises:
        FloatingPointError: where the system's state diverges, naming step and coordinate.
    """
    check_key(key)
    return _checked(_episode(key, system, task, planner, transition.particles()), transition.dynamics)


def thompson(key: PRNGKeyArray, posterior: Posterior) -> AbstractTransition:
    """Thompson sampling: one coherent draw of the belief for the whole episode (Strens 2000)."""
    return posterior.draw(key)


def psrl(
    key: PRNGKeyArray,
    system: System,
    task: Task,
    dynamics: Dynamics,
    backend: Backend,
    planner: Planner,
    episodes: int = 10,
    *,
    acquisition: Callable[[PRNGKeyArray, Posterior], AbstractTransition] = thompson,
    data: Transitions | None = None,
    progress: bool | None = None,
) -> Run:
    """Posterior sampling reinforcement learning (Strens 2000; Osband, Russo, Van Roy 2013).

    Each episode fits the belief to all data so far, takes one transition function of it and acts on that function's
    plans. The first episode acts from the prior, or from `data`. Arrays are allocated for all episodes at once:
    nothing is compiled after the first.

    Args:
        system: acted on; see `SimulatedSystem`.
        task: reward and length of an episode.
        dynamics: the program believed in; its truth may be another.
        acquisition: (key, posterior) -> transition; `thompson` by default.
        data: transitions known before the first episode.
        progress: a bar after two seconds; by default on a terminal.

    Raises:
        FloatingPointError: where the system's state diverges, naming step and coordinate.
    """
    check_key(key)
    if episodes < 1:
        raise ValueError(f"psrl: episodes must be at least 1; got {episodes}.")
    if data is not None:
        dynamics.check(data)
        if data.next_states is None or data.batch_shape:
            raise ValueError("psrl: data must be transitions of one machine with next_states; got inputs or a fleet.")
    memory = _Memory(dynamics, task.steps, episodes, data)
    records, seconds = [], []
    for i in bar(range(episodes), "psrl", progress):
        fit_key, draw_key, act_key = jax.random.split(jax.random.fold_in(key, i), 3)
        with compile_clock() as clock:
            start = time.perf_counter()
            posterior = fit(fit_key, dynamics, memory.data(), backend)
            transition = acquisition(draw_key, posterior)
            fitted = time.perf_counter()
            records.append(jax.block_until_ready(episode(act_key, system, task, planner, transition)))
            memory.add(records[-1])
        acted = time.perf_counter()
        seconds.append({"fit": fitted - start, "act": acted - fitted, "compile": clock.seconds})
    posterior = fit(jax.random.fold_in(key, episodes), dynamics, memory.data(), backend)
    solved = None if task.solved is None else np.array([bool(task.solved(r.states)) for r in records])
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *records)
    return Run(stacked, posterior, memory.data(), solved, tuple(seconds))


class _Memory:
    """Room for the transitions of all episodes, allocated once; rows count when they are filled."""

    def __init__(self, dynamics: Dynamics, steps: int, episodes: int, data: Transitions | None):
        known = 0 if data is None else len(data)
        rows, state, action = known + steps * episodes, len(dynamics.state), len(dynamics.action)
        rest = np.broadcast_to((dynamics.action.low + dynamics.action.high) / 2, (rows, action))
        self.states, self.next_states = np.zeros((rows, state)), np.zeros((rows, state))
        self.actions, self.valid, self.filled = rest.copy(), np.zeros(rows, bool), 0
        self.times = np.concatenate([np.zeros(known), np.tile(dynamics.dt * np.arange(steps), episodes)])
        if data is not None:
            self._append(data.states, data.actions, data.next_states, data.valid)
            self.times[:known] = data.times

    def add(self, record: Episode) -> None:
        self._append(record.states[:-1], record.actions, record.states[1:], record.valid)

    def _append(self, states, actions, next_states, valid) -> None:
        rows = slice(self.filled, self.filled + len(states))
        self.states[rows], self.actions[rows] = states, actions
        self.next_states[rows], self.valid[rows] = next_states, valid
        self.filled = rows.stop

    def data(self) -> Transitions:
        return Transitions(self.states, self.actions, self.next_states, valid=self.valid, times=self.times)


def _checked(record: Episode, dynamics: Dynamics) -> Episode:
    bad = ~np.isfinite(np.asarray(record.states))
    if bad.any():
        step, i = np.argwhere(bad)[0]
        raise FloatingPointError(
            f"the system's {dynamics.state.names[i]!r} is not finite from step {step} on: its simulation diverged. "
            "Give the simulated system more substeps or a smaller dt, or check its parameters."
        )
    return record
