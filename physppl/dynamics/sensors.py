"""Sensors and inputs of recordings: measurement noise, delayed and inexact inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from physppl.data.spaces import StateSpace
from physppl.dynamics.instruments import LIMITS, RESOLUTION, Instrument
from physppl.language.noise import PROCESS, Scale

MEASUREMENT, DELAY, GAIN, TIMING = "measurement_noise", "input_delay", "input_gain_error", "input_timing_error"
VARIATION, OFFSETS = "variation", "variation_offsets"
SITES = (MEASUREMENT, DELAY, GAIN, TIMING, VARIATION, OFFSETS)  # all sites of a recording but the program's


def of_program(name: str) -> bool:
    """True if a site of a Dynamics is its program's, False for a noise or an error of a recording."""
    return name not in (PROCESS, *SITES)


@dataclass(frozen=True)
class Sensing:
    """Sensors and inputs of recordings; made by Dynamics from its own arguments.

    Attributes:
        space: the sensors; its scales are the units of the measurement noise's prior.
        observe: state (D,) -> readings (d,); None for the coordinates `index` of the state.
        index: coordinates read, where `observe` is None.
        measurement: sd of a reading; the scale of a Student-t where `df` is given.
        df: degrees of freedom of heavy-tailed readings; None is Gaussian.
        instrument: resolution and limits of the sensors; None where they neither round nor saturate.
        delay: samples between a recorded input and its effect; a NumPyro distribution is its prior, fractions included.
        gain: sd of the input's error as a fraction of the input: an actuator that gives more or less than commanded.
        timing: sd of the input's error as a fraction of its change since the last sample: clocks that jitter.
        variation: sd, in unconstrained space, of a machine's parameters from one recording to the next; where it has a
            prior, each parameter has its own.
    """

    space: StateSpace
    observe: Callable[[Array], Array] | None
    index: tuple[int, ...]
    measurement: Scale
    df: float | None
    instrument: Instrument | None
    delay: Any
    gain: Scale | None
    timing: Scale | None
    variation: Scale | None

    @classmethod
    def of(cls, dynamics, options: Mapping[str, Any]) -> "Sensing":
        """Make the Sensing of a Dynamics from its keyword arguments.

        Raises:
            ValueError: for sensors that are neither coordinates nor explained by `observe`, a delay or df out of range.
            KeyError: for a sensor that is no coordinate.
        """
        where, state, action = f"Dynamics({dynamics.name})", dynamics.state, dynamics.action
        sensors, observe, index = options["sensors"], options["observe"], ()
        measurement_noise, measurement_df = options["measurement_noise"], options["measurement_df"]
        input_delay = options["input_delay"]
        if isinstance(sensors, StateSpace) != (observe is not None):
            raise ValueError(
                f"{where}: sensors are names of state coordinates, e.g. sensors=('angle',), or a StateSpace together "
                "with observe=, the function from state to readings."
            )
        if observe is None:
            names: Sequence[str] = state.names if sensors is None else sensors
            if isinstance(names, str) or not names:
                raise ValueError(f"{where}: sensors must be a tuple of coordinates; got {sensors!r}.")
            index = tuple(state.index(name) for name in names)
            if len(set(names)) < len(index):
                raise ValueError(f"{where}: sensors name a coordinate twice: {', '.join(names)}.")
            sensors = StateSpace(**{name: state.coordinates[name] for name in names})
        number = int | float | np.number
        if measurement_df is not None and not (isinstance(measurement_df, number) and measurement_df > 2):
            raise ValueError(f"{where}: measurement_df must exceed 2 (None is Gaussian); got {measurement_df}.")
        instrument = Instrument.of(options[RESOLUTION], options[LIMITS], sensors, where)
        if instrument is not None and measurement_df is not None:
            raise ValueError(
                f"{where}: measurement_df is for readings without {RESOLUTION} or {LIMITS}. Mark outliers of a sensor "
                "that rounds or saturates as missing (NaN)."
            )
        if not isinstance(input_delay, dist.Distribution):
            counts = isinstance(input_delay, number) and not isinstance(input_delay, bool)
            if not counts or not (input_delay >= 0 and float(input_delay).is_integer()):
                raise ValueError(
                    f"{where}: input_delay must be a whole number of samples or a NumPyro prior over samples, e.g. "
                    f"dist.Uniform(0, 4); got {input_delay!r}."
                )
            input_delay = int(input_delay)
        if measurement_noise is None:
            measurement_noise = dist.HalfNormal(0.1)
        ones = (1.0,) * len(action)

        def optional(name, unit):
            return None if options[name] is None else Scale.of(name, options[name], unit, "", where)

        return cls(
            sensors, observe, index,
            Scale.of(MEASUREMENT, measurement_noise, sensors.scale, ", ".join(sensors.units), where),
            None if measurement_df is None else float(measurement_df), instrument, input_delay,
            optional(GAIN, ones), optional(TIMING, ones), optional(VARIATION, (1.0,)),
        )  # fmt: skip

    @property
    def noises(self) -> tuple[Scale, ...]:
        return tuple(s for s in (self.measurement, self.gain, self.timing, self.variation) if s is not None)

    def variance(self, sites) -> Array:
        """Variances (d,) of the readings' errors: noise and rounding."""
        tails = 1.0 if self.df is None else self.df / (self.df - 2)
        rounding = 0.0 if self.instrument is None else self.instrument.rounding
        return tails * self.measurement.value(sites) ** 2 + rounding

    def arriving(self, actions: Array, before: Any = 0.0) -> Array:
        """Actions (T, ...) as they act, the delay later than they were sent, with `before` in front.

        Raises:
            ValueError: for a delay with a prior, whose value no draw of the program holds.
        """
        if not isinstance(self.delay, int):
            raise ValueError(
                "input_delay has a prior, and a draw of the program does not hold its value. Bind a whole number of "
                "steps, dynamics.rebound(input_delay=2); or shift the actions, and bind input_delay=0."
            )
        if self.delay == 0:
            return actions
        actions = jnp.asarray(actions)
        first = jnp.broadcast_to(jnp.asarray(before, actions.dtype), (self.delay, *actions.shape[1:]))
        return jnp.concatenate([first, actions])[: len(actions)]

    def read(self, state: Array) -> Array:
        """Readings (d,) of a state (D,), without noise."""
        if self.observe is None:
            return state[jnp.array(self.index)]
        reading = jnp.asarray(self.observe(state), state.dtype)
        if reading.shape != (len(self.space),):
            raise ValueError(
                f"observe must return one reading per sensor ({', '.join(self.space.names)}), shape "
                f"({len(self.space)},); got {reading.shape}."
            )
        return reading


def lagged(actions, delay, before):
    """Inputs (N, A) as they arrive, `delay` samples late; those before the first sample are `before`, (A,).

    A fraction blends two held inputs as their mean over the step.
    """

    def at(index):
        return jnp.where((index < 0)[:, None], before, actions[jnp.clip(index, 0, len(actions) - 1)])

    index = jnp.arange(len(actions))
    if isinstance(delay, int):
        return at(index - delay) if delay else actions
    whole = jnp.floor(delay).astype(int)
    part = delay - whole
    return (1 - part) * at(index - whole) + part * at(index - whole - 1)
