"""The real thing, or a simulation of it: what an agent acts on."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray

from physppl.transition import AbstractTransition


class System(eqx.Module):
    """A machine that is reset and stepped. A system that traces is compiled together with the episode."""

    @abstractmethod
    def reset(self, key: PRNGKeyArray) -> Float[Array, " D"]:
        """An initial state."""

    @abstractmethod
    def step(
        self, key: PRNGKeyArray, state: Float[Array, " D"], action: Float[Array, " A"]
    ) -> tuple[Float[Array, " D"], Float[Array, " D"], Bool[Array, ""]]:
        """(next state, its observation, whether the episode ends here)."""


class SimulatedSystem(System):
    """A transition with noise, as a machine.

    Attributes:
        transition: the truth; its `noise` is the process noise.
        initial_state: (D,).
        initial_sd: (D,) or scalar, of the reset state.
        measurement_sd: (D,) or scalar, of the observed state.
    """

    transition: AbstractTransition
    initial_state: Float[Array, " D"]
    initial_sd: Array
    measurement_sd: Array

    def __init__(self, transition: AbstractTransition, initial_state, initial_sd: Any = 0.0, measurement_sd: Any = 0.0):
        size = len(transition.dynamics.state)
        self.transition = transition
        self.initial_state = jnp.asarray(initial_state, float)
        if self.initial_state.shape != (size,):
            raise ValueError(f"SimulatedSystem: initial_state must be ({size},); got {self.initial_state.shape}.")
        self.initial_sd = jnp.broadcast_to(jnp.asarray(initial_sd, float), (size,))
        self.measurement_sd = jnp.broadcast_to(jnp.asarray(measurement_sd, float), (size,))

    def reset(self, key: PRNGKeyArray) -> Float[Array, " D"]:
        noise = jax.random.normal(key, self.initial_state.shape, self.initial_state.dtype)
        return self.initial_state + self.initial_sd * noise

    def step(self, key, state, action):
        process_key, sensor_key = jax.random.split(key)
        state = self.transition.sample(process_key, state, action)
        observation = state + self.measurement_sd * jax.random.normal(sensor_key, state.shape, state.dtype)
        return state, observation, jnp.zeros((), bool)
