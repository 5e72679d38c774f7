"""Actuators: dead band, delay and lag between a command and the machine."""

import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from physppl.internal.choices import Choices
from physppl.internal.errors import is_concrete


class Drive(NamedTuple):
    """State of an actuator."""

    waiting: Float[Array, "N A"]  # delayed commands, the oldest first
    output: Float[Array, " A"]


class Actuator(Choices):
    """Actuator model: a command passes a delay, then a dead band, then a lag.

    Attributes:
        dead_band: in the action's unit, a number or one per action: smaller commands do nothing, larger ones are
            reduced by it.
        delay: control steps until a command acts.
        lag: s, time constant of a first-order lag; over a step its mean output acts.
    """

    dead_band: Array = eqx.field(default=0.0, converter=lambda x: jnp.asarray(x, float))
    delay: int = eqx.field(default=0, static=True)
    lag: float = eqx.field(default=0.0, static=True)

    def __check_init__(self):
        if self.delay < 0 or self.delay != int(self.delay):
            raise ValueError(f"Actuator: delay must be a whole number of control steps from 0 on; got {self.delay}.")
        if is_concrete(self.dead_band) and not np.all(np.asarray(self.dead_band) >= 0):
            raise ValueError(f"Actuator: dead_band must not be negative; got {self.dead_band}.")
        if not self.lag >= 0:
            raise ValueError(f"Actuator: lag must be seconds, not negative; got {self.lag}.")

    def init(self, actions: int) -> Drive:
        """State at rest, without delayed commands."""
        return Drive(jnp.zeros((self.delay, actions)), jnp.zeros(actions))

    def drive(self, command: Float[Array, " A"], memory: Drive, dt: float) -> tuple[Float[Array, " A"], Drive]:
        """Action on the machine over this step, and the actuator's state after it."""
        waiting = jnp.concatenate([memory.waiting, command[None]])
        delayed, waiting = waiting[0], waiting[1:]
        target = jnp.sign(delayed) * jnp.maximum(jnp.abs(delayed) - self.dead_band.astype(delayed.dtype), 0.0)
        if self.lag == 0:
            return target, Drive(waiting, target)
        # y(t) = target + (y(0) - target) exp(-t / lag), and its mean over [0, dt]
        decay = math.exp(-dt / self.lag)
        mean = target + (memory.output - target) * (1 - decay) * (self.lag / dt)
        return mean, Drive(waiting, target + (memory.output - target) * decay)
