"""The real thing, or a simulation of it: what an agent acts on."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray

from physppl.control.actuators import Actuator
from physppl.language.transition import AbstractTransition


class System(eqx.Module):
    """A machine that is reset and stepped, and that traces: it is compiled together with the episode.

    Its state is any pytree; `physical` says what of it a task rewards.
    """

    batch: ClassVar[int] = 1  # episodes at once; of one machine

    @abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[Any, Float[Array, " D"]]:
        """(an initial state, its observation)."""

    @abstractmethod
    def step(
        self, key: PRNGKeyArray, state: Any, action: Float[Array, " A"]
    ) -> tuple[Any, Float[Array, " D"], Bool[Array, ""]]:
        """(next state, its observation, whether the episode ends here)."""

    def physical(self, state: Any) -> Float[Array, " D"]:
        """The true state in the task's coordinates."""
        return state

    def at(self, episode: int) -> "System":
        """The machine as it is in an episode, counted from 0; itself, unless it changes."""
        del episode
        return self

    @property
    def dynamics(self) -> Any:
        """The Dynamics whose step and coordinates the machine has, or None: agents are checked against it."""
        return None


class HostSystem(ABC):
    """A machine that Python steps: hardware, or a simulator that does not trace. `batch` of them run side by side.

    Checkpoints tell host systems apart by their public attributes: what a machine is belongs there, what is live
    (handles, connections) in attributes that begin with an underscore.

    Attributes:
        batch: episodes at once, B.
        dynamics: the Dynamics whose step and coordinates it has, or None: agents are checked against it.
    """

    content_is_public = True  # what is live has no content that lasts

    batch: int = 1
    dynamics: Any = None

    @abstractmethod
    def reset(self, seed: int) -> Float[np.ndarray, "B D"]:
        """Begins an episode; the observed states."""

    @abstractmethod
    def step(self, actions: Float[np.ndarray, "B A"]) -> "HostStep":
        """Acts once. Machines whose episode is over are stepped on, and what they return is not looked at."""

    def at(self, episode: int) -> "HostSystem":
        """The machine as it is in an episode, counted from 0."""
        del episode
        return self


class HostStep(NamedTuple):
    """What a host system returns of one step.

    Attributes:
        states: (B, D) observed.
        rewards: (B,) of its own, or None: the task's of the observed state.
        terminated: (B,) the episode ended by what happened: there is no future to count.
        truncated: (B,) it was cut off, by a limit of time: the future went on without being seen.
    """

    states: Float[np.ndarray, "B D"]
    rewards: Float[np.ndarray, " B"] | None
    terminated: Bool[np.ndarray, " B"]
    truncated: Bool[np.ndarray, " B"]


class SimulatedState(NamedTuple):
    """State of a simulated system."""

    physical: Float[Array, " D"]
    drive: Any  # the actuator's memory
    steps: Array  # since the reset


class SimulatedSystem(System):
    """A transition with noise, as a machine. Planning with its own `transition` is the oracle.

    Attributes:
        transition: the truth; its `noise` is the process noise.
        initial_state: (D,).
        initial_sd: (D,) or scalar, of the reset state.
        measurement_sd: (D,) or scalar, of every observed state.
        actuator: what lies between a command and what acts; None is nothing.
        later: the truth after a change (`changed`).
        change_step: control step of the episode from which `later` holds.
        change_episode: episode of the change; earlier ones know the first truth alone, later ones the second.
    """

    transition: AbstractTransition
    initial_state: Float[Array, " D"]
    initial_sd: Array
    measurement_sd: Array
    actuator: Actuator | None
    later: AbstractTransition | None
    change_step: Array
    change_episode: Array

    def __init__(
        self,
        transition: AbstractTransition,
        initial_state,
        initial_sd: Any = 0.0,
        measurement_sd: Any = 0.0,
        actuator: Actuator | None = None,
    ):
        size = len(transition.dynamics.state)
        self.transition, self.actuator = transition, actuator
        self.initial_state = jnp.asarray(initial_state, float)
        if self.initial_state.shape != (size,):
            raise ValueError(f"SimulatedSystem: initial_state must be ({size},); got {self.initial_state.shape}.")
        self.initial_sd = jnp.broadcast_to(jnp.asarray(initial_sd, float), (size,))
        self.measurement_sd = jnp.broadcast_to(jnp.asarray(measurement_sd, float), (size,))
        self.later, self.change_step, self.change_episode = None, jnp.zeros((), int), jnp.zeros((), int)

    def with_actuator(self, **actuator: Any) -> "SimulatedSystem":
        """The same machine behind an imperfect drive: dead_band, delay, lag as of `Actuator`."""
        return eqx.tree_at(lambda s: s.actuator, self, Actuator(**actuator), is_leaf=lambda x: x is None)

    def changed(self, *, step: int = 0, episode: int = 0, **sites: Any) -> "SimulatedSystem":
        """The same machine whose parameters change while it runs: a payload is put on, a bearing seizes.

        Args:
            step: control step of the episode at which they change.
            episode: in which that happens, counted from 0; later ones begin with the new values.
            sites: new values, in the sites' units.

        Raises:
            KeyError: for a site that the truth does not have, with close matches.
            ValueError: for a second change.
        """
        if self.later is not None:
            raise ValueError("changed: a simulated system changes once. Name all sites in one call.")
        old = self.transition
        later = old.dynamics.transition({**old.sites, **sites}, old.noise)
        new = eqx.tree_at(lambda s: s.later, self, later, is_leaf=lambda x: x is None)
        when = (jnp.asarray(step), jnp.asarray(episode))
        return eqx.tree_at(lambda s: (s.change_step, s.change_episode), new, when)

    def at(self, episode: int) -> "SimulatedSystem":
        if self.later is None:
            return self
        never = jnp.iinfo(self.change_step.dtype).max
        step = jnp.where(episode > self.change_episode, 0, self.change_step)
        step = jnp.where(episode < self.change_episode, never, step)
        return eqx.tree_at(lambda s: s.change_step, self, step)

    @property
    def dynamics(self) -> Any:
        return self.transition.dynamics

    def physical(self, state: SimulatedState) -> Float[Array, " D"]:
        return state.physical

    def reset(self, key: PRNGKeyArray):
        """A state around the initial one, and its observation."""
        state_key, sensor_key = jax.random.split(key)
        noise = jax.random.normal(state_key, self.initial_state.shape, self.initial_state.dtype)
        start = self.initial_state + self.initial_sd * noise
        space = self.transition.dynamics.action
        drive = None if self.actuator is None else self.actuator.init(len(space))
        return SimulatedState(start, drive, jnp.zeros((), int)), self._observed(sensor_key, start)

    def step(self, key: PRNGKeyArray, state: SimulatedState, action: Float[Array, " A"]):
        process_key, sensor_key = jax.random.split(key)
        truth, drive = self.transition, state.drive
        if self.later is not None:
            now = state.steps >= self.change_step
            truth = jax.tree.map(lambda new, old: jnp.where(now, new, old), self.later, truth)
        if self.actuator is not None:
            action, drive = self.actuator.drive(action, drive, truth.dynamics.dt)
        time = truth.dynamics.dt * state.steps
        moved = truth.sample(process_key, state.physical, action, time)
        return SimulatedState(moved, drive, state.steps + 1), self._observed(sensor_key, moved), jnp.zeros((), bool)

    def _observed(self, key, state):
        return state + self.measurement_sd * jax.random.normal(key, state.shape, state.dtype)
