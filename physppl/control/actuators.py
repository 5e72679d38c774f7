"""What lies between a command and what acts on a machine: dead band, delay, lag."""

import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from physppl.internal.errors import is_concrete


class Drive(NamedTuple):
    """An actuator's memory."""

    waiting: Float[Array, "N A"]  # commands on their way, the oldest first
    output: Float[Array, " A"]


class Actuator(eqx.Module):
    """A command passes a delay, then a dead band, then a lag.

    Attributes:
        dead_band: in the action's unit, a number or one per action: commands this small do nothing, larger ones lose
            as much.
        delay: control steps before a command acts.
        lag: s, time constant of a first-order lag; what acts over a step is its mean over that step.
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
        """At rest, with nothing on its way."""
        return Drive(jnp.zeros((self.delay, actions)), jnp.zeros(actions))

    def drive(self, command: Float[Array, " A"], memory: Drive, dt: float) -> tuple[Float[Array, " A"], Drive]:
        """(what acts on the machine over this step, the memory after it)."""
        waiting = jnp.concatenate([memory.waiting, command[None]])
        late, waiting = waiting[0], waiting[1:]
        wanted = jnp.sign(late) * jnp.maximum(jnp.abs(late) - self.dead_band.astype(late.dtype), 0.0)
        if self.lag == 0:
            return wanted, Drive(waiting, wanted)
        decay = math.exp(-dt / self.lag)
        mean = wanted + (memory.output - wanted) * (1 - decay) * (self.lag / dt)
        return mean, Drive(waiting, wanted + (memory.output - wanted) * decay)
