"""Systems that an agent acts on: simulated machines and hardware."""

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
    """A machine with traceable reset and step, compiled together with the episode.

    Its state is any pytree; `physical` maps it to the coordinates that a task rewards.
    """

    batch: ClassVar[int] = 1  # episodes at once

    @abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[Any, Float[Array, " D"]]:
        """Initial state and its observation."""

    @abstractmethod
    def step(
        self, key: PRNGKeyArray, state: Any, action: Float[Array, " A"]
    ) -> tuple[Any, Float[Array, " D"], Bool[Array, ""]]:
        """Next state, its observation, and True if the episode ends here."""

    def physical(self, state: Any) -> Float[Array, " D"]:
        """True state in the task's coordinates."""
        return state

    def at(self, episode: int) -> "System":
        """The machine during an episode, counted from 0; the same object unless the machine changes."""
        del episode
        return self

    @property
    def dynamics(self) -> Any:
        """Dynamics whose step and coordinates the machine has, for a check of agents; None skips the check."""
        return None


class HostSystem(ABC):
    """A machine stepped from Python: hardware, or a simulator that JAX cannot trace; `batch` of them run in parallel.

    `reset` is called once before anything compiles, and its result checked; and again when the first episode begins,
    so that no machine waits for a compiler. The result of `step` is checked at every step, from the first one on.

    Checkpoints identify a host system by its public attributes: settings belong there, live objects (handles,
    connections) in attributes that begin with an underscore.

    Attributes:
        batch: episodes at once, B.
        dynamics: Dynamics whose step and coordinates it has, for a check of agents; None skips the check.
    """

    content_is_public = True  # what is live has no content that lasts

    batch: int = 1
    dynamics: Any = None

    @abstractmethod
    def reset(self, seed: int) -> Float[np.ndarray, "B D"]:
        """Begin an episode and return the observed states."""

    @abstractmethod
    def step(self, actions: Float[np.ndarray, "B A"]) -> "HostStep | Float[np.ndarray, 'B D']":
        """Act once, and return the observed states alone or in a HostStep.

        Machines whose episode is over are stepped too; their results are ignored.
        """

    def at(self, episode: int) -> "HostSystem":
        """The machine during an episode, counted from 0."""
        del episode
        return self


class HostStep(NamedTuple):
    """Result of one step of a host system: `HostStep(states)`, and what else it knows.

    Attributes:
        states: (B, D) observed.
        rewards: (B,), or a number where B is 1: the system's own; None: the task's, of the observed states.
        terminated: (B,), or one for all: True where a terminal state was reached: there is no future reward.
        truncated: (B,), or one for all: True where a time limit cut the episode off: its future is unobserved.
    """

    states: Any
    rewards: Any = None
    terminated: Any = False
    truncated: Any = False


class SimulatedState(NamedTuple):
    """State of a simulated system."""

    physical: Float[Array, " D"]
    drive: Any  # the actuator's state
    steps: Array  # since the reset


class SimulatedSystem(System):
    """Simulation of a transition with noise. Planning with its own `transition` is the oracle.

    Attributes:
        transition: the true one; its `noise` is the process noise.
        initial_state: (D,).
        initial_sd: (D,) or scalar, of the reset state.
        measurement_sd: (D,) or scalar, of every observed state.
        actuator: between a command and the machine; None: commands act directly.
        later: the true transition after a change (`changed`).
        change_step: control step of the episode from which `later` holds.
        change_episode: episode of the change; earlier ones have the first transition alone, later ones the second.
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
        """The same machine with an imperfect actuator: dead_band, delay, lag as in `Actuator`."""
        return eqx.tree_at(lambda s: s.actuator, self, Actuator(**actuator), is_leaf=lambda x: x is None)

    def changed(self, *, step: int = 0, episode: int = 0, **sites: Any) -> "SimulatedSystem":
        """The same machine with parameters that change while it runs: a payload is added, a bearing seizes.

        Args:
            step: control step of the episode at which they change.
            episode: in which they change, counted from 0; later ones begin with the new values.
            sites: new values, in the sites' units.

        Raises:
            KeyError: for a site that the true program does not have, with close matches.
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
        """Random state around the initial one, and its observation."""
        state_key, sensor_key = jax.random.split(key)
        noise = jax.random.normal(state_key, self.initial_state.shape, self.initial_state.dtype)
        start = self.initial_state + self.initial_sd * noise
        drive = None if self.actuator is None else self.actuator.init(len(self.transition.dynamics.action))
        return SimulatedState(start, drive, jnp.zeros((), int)), self._observed(sensor_key, start)

    def step(self, key: PRNGKeyArray, state: SimulatedState, action: Float[Array, " A"]):
        process_key, sensor_key = jax.random.split(key)
        truth, drive = self.transition, state.drive
        if self.later is not None:
            now = state.steps >= self.change_step
            truth = jax.tree.map(lambda new, old: jnp.where(now, new, old), self.later, truth)
        if self.actuator is not None:
            action, drive = self.actuator.drive(action, drive, truth.dynamics.dt)
        next_state = truth.sample(process_key, state.physical, action, truth.dynamics.dt * state.steps)
        observation = self._observed(sensor_key, next_state)
        return SimulatedState(next_state, drive, state.steps + 1), observation, jnp.zeros((), bool)

    def _observed(self, key, state):
        return state + self.measurement_sd * jax.random.normal(key, state.shape, state.dtype)
