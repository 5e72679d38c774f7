"""Multisine: an excitation signal of system identification, independent of any model."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray

from physppl.data.spaces import ActionSpace
from physppl.planning.planner import BoundObjective, Planner, bounds


class MultisineState(NamedTuple):
    phase: Float[Array, "A M"]  # of each tone at the last step, in cycles
    gain: Float[Array, " A"]  # in units of half the action range
    drawn: Bool[Array, ""]
    low: Float[Array, " A"]
    high: Float[Array, " A"]


class Multisine(Planner):
    """Sum of sines of equal amplitude and random phases, drawn for each episode and each action, around the middle of
    the range; it uses no model.

    The tones are harmonics of `low`, whose period is rounded to whole steps: over a period the sum has zero mean, and
    its peak is `amplitude` exactly. It is scaled by its peak, never clipped, so it has no other frequencies.

    Attributes:
        low: lowest frequency, cycles per step (Hz times dt).
        high: upper limit of the tones, cycles per step; below 0.5.
        tones: how many, evenly spaced over the harmonics from low to high.
        amplitude: peak, as a share of half the action range, in (0, 1].
    """

    low: float = eqx.field(default=0.005, static=True)
    high: float = eqx.field(default=0.1, static=True)
    tones: int = eqx.field(default=8, static=True)
    amplitude: float = eqx.field(default=1.0, static=True)

    def __check_init__(self):
        if not 0 < self.low <= self.high < 0.5:
            raise ValueError(
                f"Multisine needs 0 < low <= high < 0.5 cycles per step (Hz times dt); got {self.low}, {self.high}."
            )
        if not 1 <= self.tones <= self._harmonics:
            raise ValueError(
                f"Multisine needs 1 <= tones <= {self._harmonics}, the harmonics of low={self.low} up to "
                f"high={self.high}; got {self.tones}."
            )
        if not 0 < self.amplitude <= 1:
            raise ValueError(f"Multisine: amplitude must lie in (0, 1]; got {self.amplitude}.")

    @property
    def period(self) -> int:
        """Period of the actions, steps."""
        return round(1 / self.low)

    @property
    def frequencies(self) -> np.ndarray:
        """Frequencies (M,) of the tones, cycles per step."""
        return np.round(np.linspace(1, self._harmonics, self.tones)) / self.period

    @property
    def _harmonics(self) -> int:
        return int(self.high * self.period + 1e-9)  # 0.1 x 30 must count as 3 in spite of rounding

    @property
    def evaluations(self) -> int:
        return 0

    def init(self, action: ActionSpace) -> MultisineState:
        low, high = bounds(action)
        phase = jnp.zeros((len(action), self.tones), low.dtype)
        return MultisineState(phase, jnp.zeros_like(low), jnp.zeros((), bool), low, high)

    def plan(self, key: PRNGKeyArray, transitions, objective: BoundObjective, state, plan_state: MultisineState):
        del transitions, objective, state
        frequencies = jnp.asarray(self.frequencies, plan_state.phase.dtype)

        def start():
            phase = jax.random.uniform(key, plan_state.phase.shape, plan_state.phase.dtype)
            cycles = np.arange(self.period)[:, None] * self.frequencies % 1.0
            waves = jnp.sin(2 * jnp.pi * (phase + jnp.asarray(cycles, phase.dtype)[:, None])).sum(-1)  # (period, A)
            return phase, self.amplitude / jnp.max(jnp.abs(waves), axis=0)

        def advance():
            return (plan_state.phase + frequencies) % 1.0, plan_state.gain

        phase, gain = jax.lax.cond(plan_state.drawn, advance, start)
        middle, half = (plan_state.low + plan_state.high) / 2, (plan_state.high - plan_state.low) / 2
        action = middle + half * gain * jnp.sin(2 * jnp.pi * phase).sum(-1)
        action = jnp.clip(action, plan_state.low, plan_state.high)  # clip rounding errors
        plan_state = plan_state._replace(phase=phase, gain=gain, drawn=jnp.ones((), bool))
        return action[None], plan_state, {"value": jnp.asarray(jnp.nan), "failed": jnp.zeros(())}
