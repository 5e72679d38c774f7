"""Episodes of an agent on a machine, compiled as a whole or stepped from Python."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from physppl.control.agent import Agent, controlled_batch
from physppl.control.host_checks import CheckedHost
from physppl.control.systems import HostSystem, System
from physppl.dynamics import Dynamics
from physppl.internal.errors import PhyspplWarning, check_key
from physppl.internal.progress import compile_clock
from physppl.language.transition import AbstractTransition
from physppl.planning.objectives import Constrained
from physppl.planning.planner import Planner
from physppl.planning.tasks import Task


class Episode(eqx.Module):
    """Record of one episode; stacked episodes have leading axes.

    Attributes:
        states: (T + 1, D) observed.
        actions: (T, A) commanded.
        rewards: (T,) of the true states, or the host system's own.
        valid: (T,) False after the end, where rows repeat the last state.
        terminated: True if a terminal state ended it, not the time limit.
        failed: (T,) share of the planner's candidates that diverged.
    """

    states: Float[Array | np.ndarray, "*E T1 D"]
    actions: Float[Array | np.ndarray, "*E T A"]
    rewards: Float[Array | np.ndarray, "*E T"]
    valid: Bool[Array | np.ndarray, "*E T"]
    terminated: Bool[Array | np.ndarray, "*E"]
    failed: Float[Array | np.ndarray, "*E T"]

    @property
    def returns(self) -> Float[Array, "*E"]:
        """Sum of the rewards."""
        return jnp.sum(jnp.where(self.valid, self.rewards, 0.0), axis=-1)


def episode(
    key: PRNGKeyArray,
    system: System | HostSystem,
    task: Task,
    planner: Planner,
    transition: AbstractTransition,
) -> Episode:
    """Run one episode, replanning at every step for the task's reward with one transition function.

    Planning with the system's own transition gives the oracle; with `RandomPolicy` it gives the random baseline.

    Raises:
        FloatingPointError: where the system's state diverges, naming step and coordinate.
        TypeError, ValueError: where a host system returns something else than states, naming its class and method.
    """
    check_key(key)
    transitions = jax.tree.map(lambda leaf: leaf[None], transition.particles())
    return play(key, system, task, Agent(planner, transitions, Constrained(task.earned, task), None))


def play(key: PRNGKeyArray, system: System | HostSystem, task: Task, agent: Agent, *, checked: bool = False) -> Episode:
    """Run one episode of an agent; on a host system of B machines B episodes, stacked unless B is 1.

    Args:
        checked: a host system's `reset` was checked before, and is not called before the planner is compiled.

    Raises:
        FloatingPointError: where the system's state diverges or a reading is not finite, naming step and coordinate.
        TypeError: for what is no system, or returns no states.
        ValueError: where the step or the coordinates of machine and agent differ, or shapes of what a machine returns.
    """
    check_match(system, agent.transitions.dynamics)
    hosted = isinstance(system, HostSystem)
    record = _hosted(key, system, task, agent, checked) if hosted else _compiled(key, system, task, agent)
    return _checked(record, agent.transitions.dynamics)


@eqx.filter_jit
def _compiled(key, system: System, task: Task, agent: Agent) -> Episode:
    reset_key, key = jax.random.split(key)
    state, first = system.reset(reset_key)

    def control(carry, key):
        state, observation, agent_state, alive = carry
        plan_key, system_key = jax.random.split(key)
        action, agent_state, info = agent.control(plan_key, agent_state, observation)
        next_state, next_observation, terminated = system.step(system_key, state, action)
        next_state, next_observation = jax.tree.map(
            lambda new, old: jnp.where(alive, new, old), (next_state, next_observation), (state, observation)
        )
        reward = task.stage(system.physical(next_state), action)
        record = (next_observation, action, reward, alive, info["failed"])
        return (next_state, next_observation, agent_state, alive & ~terminated), record

    start = (state, first, agent.init(), jnp.ones((), bool))
    (*_, alive), (states, actions, rewards, valid, failed) = jax.lax.scan(
        control, start, jax.random.split(key, task.steps)
    )
    return Episode(jnp.concatenate([first[None], states]), actions, rewards, valid, ~alive, failed)


def check_reset(key, system: System | HostSystem, dynamics: Dynamics) -> None:
    """Reset a host system as the episode of this key will, for a check of what it returns.

    Raises:
        TypeError, ValueError, FloatingPointError: naming class and method.
    """
    if isinstance(system, HostSystem):
        CheckedHost(system, dynamics.state.names).reset(_seed(jax.random.split(key)[0]))


def _seed(key) -> int:
    return int(jax.random.randint(key, (), 0, 2**31 - 1))


def _hosted(key, system: HostSystem, task: Task, agent: Agent, checked: bool) -> Episode:
    host = CheckedHost(system, agent.transitions.dynamics.state.names)
    batch, width = host.batch, len(agent.transitions.dynamics.state)
    seed_key, key = jax.random.split(key)
    agent_state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *jnp.shape(leaf))), agent.init())

    def control(step: int, agent_state, states):
        keys = jax.random.split(jax.random.fold_in(key, step), batch)
        return controlled_batch(agent, keys, agent_state, jnp.asarray(states, float))

    seed = _seed(seed_key)
    first = None if checked else host.reset(seed)
    with compile_clock() as clock:
        jax.block_until_ready(control(0, agent_state, np.zeros((batch, width))))
    if first is None or clock.programs:  # no machine waits at its start, or falls from it, while the planner compiles
        first = host.reset(seed)
    states = [first]
    alive, terminated = np.ones(batch, bool), np.zeros(batch, bool)
    rows: list[tuple] = []  # actions, rewards, valid, failed of each step
    for step in range(task.steps):
        action, agent_state, info = control(step, agent_state, states[-1])
        action = np.asarray(action)
        after = host.step(action, states[-1], alive, step + 1)
        states.append(after.states)
        rewards = after.rewards
        if rewards is None:
            rewards = np.asarray(_stage_rewards(task, after.states, action), float)
        rows.append((action, rewards, alive, np.asarray(info["failed"])))
        terminated |= alive & after.terminated
        alive = alive & ~(after.terminated | after.truncated)
        if not alive.any():
            break
    missing = task.steps - len(rows)  # records have the same length, whenever the episode ended
    states += [states[-1]] * missing
    rows += [(rows[-1][0], np.zeros(batch), np.zeros(batch, bool), np.zeros(batch))] * missing
    states, actions, rewards, valid, failed = (np.stack(x, axis=1) for x in (states, *zip(*rows, strict=True)))
    record = Episode(states, actions, rewards, valid, terminated, failed)
    return record if batch > 1 else jax.tree.map(lambda x: x[0], record)


@eqx.filter_jit
def _stage_rewards(task: Task, states, actions):
    return jax.vmap(task.stage)(jnp.asarray(states, float), jnp.asarray(actions, float))


def _checked(record: Episode, dynamics: Dynamics) -> Episode:
    bad = ~np.isfinite(np.asarray(record.states))
    if bad.any():
        *_, step, i = np.argwhere(bad)[0]
        raise FloatingPointError(
            f"the system's {dynamics.state.names[i]!r} is not finite from step {step} on: its simulation diverged. "
            "Give the simulated system more substeps or a smaller dt, or check its parameters."
        )
    unplanned = np.asarray(record.valid) & (np.asarray(record.failed) == 1.0)
    if unplanned.any():
        warnings.warn(
            f"at {int(unplanned.sum())} of {int(np.sum(record.valid))} control steps no plan had a finite value: "
            "the previous plan was continued. Look for an objective that is not finite, a posterior whose functions "
            "diverge (raise `substeps`, tighten the prior), or a horizon too long for an unstable machine.",
            PhyspplWarning,
            stacklevel=3,
        )
    return record


def solved_episodes(task: Task, episodes: Episode) -> np.ndarray | None:
    """Mask of the stacked episodes that solve the task, by its `solved` criterion; None where it has none.

    An episode that ended early does not: what the remaining steps would have brought is unknown.
    """
    if task.solved is None:
        return None
    states, valid = np.asarray(episodes.states), np.asarray(episodes.valid)
    flattened = zip(states.reshape(-1, *states.shape[-2:]), valid.reshape(-1, valid.shape[-1]), strict=True)
    solved = [bool(task.solved(jnp.asarray(s[: 1 + int(v.sum())]))) for s, v in flattened]
    return np.asarray(np.reshape(solved, states.shape[:-2]) & ~np.asarray(episodes.terminated))


def check_match(system, dynamics: Dynamics) -> None:
    """Refuse what is no system, dynamics with late inputs, and a step or coordinates that are not the machine's.

    Raises:
        TypeError: for another object than a System or HostSystem.
        ValueError: where they differ, naming both.
    """
    if not isinstance(system, System | HostSystem):
        got = f"the class {system.__name__}" if isinstance(system, type) else type(system).__name__
        raise TypeError(
            f"system must be a System or a HostSystem; got {got}. A truth is simulated by SimulatedSystem(dynamics."
            "transition(truth), initial_state); what Python steps derives from HostSystem; a Gymnasium environment "
            "becomes one by physppl.control.gym.GymSystem(env, dynamics)."
        )
    if dynamics.sensing.delay != 0:  # a prior is none, either
        raise ValueError(
            f"{dynamics.owner} has an input_delay, and an agent does not know the actions that are on their way yet. "
            "Plan with a longer dt, or with dynamics.rebound(input_delay=0)."
        )
    machine = system.dynamics
    if machine is None:
        return
    for what, expected, got in (
        ("dt, s,", machine.dt, dynamics.dt),
        ("state coordinates", machine.state.names, dynamics.state.names),
        ("actions", machine.action.names, dynamics.action.names),
    ):
        if expected != got:
            raise ValueError(
                f"the machine's {what} and those of the agent's dynamics differ: {expected} and {got}. "
                "Build both with the same values, e.g. furuta.system(dt=0.01) and furuta.dynamics(dt=0.01)."
            )
