"""Frequency response of a machine linearised at an equilibrium, under draws of a posterior."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Complex, Float, PRNGKeyArray

from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.dynamics.sensors import DELAY, OFFSETS, VARIATION
from physppl.internal.errors import as_array, unknown
from physppl.language.transition import AbstractTransition
from physppl.posterior.posterior import Posterior

DECADES, POINTS = 3, 300  # over which the default frequencies spread, and how many there are
HIGHEST = 0.9  # of the Nyquist frequency: there, a second-order machine sampled with held inputs has a zero
STILL = 1e-3  # scales per step: an equilibrium moves less


@dataclass(frozen=True, eq=False)
class FrequencyResponse:
    """Response H of an output to a sinusoidal input, as complex numbers, at F frequencies under K draws.

    Attributes:
        frequencies: (F,) Hz.
        response: (K, F), output per input: its modulus is the amplitude's ratio, its argument the phase's lead.
        delay: (K,) s, by which the input comes late; it is part of `response`.
        input, output: their names.
        unit: of the response, the output's over the input's.
    """

    frequencies: Float[np.ndarray, " F"]
    response: Complex[np.ndarray, "K F"]
    delay: Float[np.ndarray, " K"]
    input: str
    output: str
    unit: str

    @property
    def magnitude(self) -> Float[np.ndarray, "K F"]:
        """Ratio of the amplitudes, in `unit`."""
        return np.abs(self.response)

    @property
    def phase(self) -> Float[np.ndarray, "K F"]:
        """Lead of the output, degrees: continuous over the frequencies, and the same turn for all draws at the first.

        A delay turns without end, between two frequencies by more than half a turn perhaps: its phase is added to that
        of the machine without it.
        """
        late = 2 * np.pi * self.delay[:, None] * self.frequencies
        machine = np.unwrap(np.angle(self.response * np.exp(1j * late)), axis=1)
        first = machine[:, 0]
        centre = np.angle(np.mean(np.exp(1j * first)))
        turns = np.round((first - centre) / (2 * np.pi))
        return np.degrees(machine - 2 * np.pi * turns[:, None] - late)


def frequency_response(
    posterior: Any,
    state,
    action,
    *,
    input: str,
    output: str,
    frequencies=None,
    draws: int = 200,
    t: float = 0.0,
    tolerance: float = STILL,
    key: PRNGKeyArray | None = None,
) -> FrequencyResponse:
    """Frequency response of the linearised step at an operating point, for each of several posterior draws.

    With A, B and C the Jacobians of the step in the state and the input and of the reading in the state, H = C (exp(i w
    dt) - A)^-1 B: exactly that of the linearised machine in discrete time, with an input that is held over each step.
    An input delay of the Dynamics is part of it.

    Args:
        posterior: a Posterior; or one Transition, e.g. the truth of a simulation.
        state, action: the operating point (D,), (A,), an equilibrium under every draw.
        input: name of an input.
        output: name of a sensor, or of a coordinate of the state.
        frequencies: (F,) Hz, above zero and up to the Nyquist frequency 1 / (2 dt); by default 300 over three decades
            up to nine tenths of it.
        draws: number of posterior draws.
        t: time, s, for programs that depend on it.
        tolerance: largest move of the operating point in one step, in the coordinates' scales.
        key: random key of the draws; `jax.random.key(0)` by default.

    Raises:
        TypeError: for anything else than a Posterior of a Dynamics, or a Transition.
        KeyError: for an unknown input or output, with close matches.
        ValueError: for a point that moves, with how far; for frequencies out of range; for a delay with a prior, of
            which the posterior knows nothing.
    """
    key = jax.random.key(0) if key is None else key
    model = getattr(posterior, "dynamics", getattr(posterior, "model", None))
    if not isinstance(posterior, Posterior | AbstractTransition) or not isinstance(model, Dynamics):
        got = type(posterior).__name__ + ("" if model is None else f" of {model}")
        raise TypeError(f"frequency_response takes a Posterior of a Dynamics, or a Transition; got {got}.")
    if input not in model.action.names:
        raise unknown("input", input, model.action.names, "frequency_response")
    outputs = dict.fromkeys((*model.sensing.space.names, *model.state.names))
    if output not in outputs:
        raise unknown("output", output, outputs, "frequency_response")
    state, action = as_array(state, "state"), as_array(action, "action")
    model.check_point(state, action, "frequency_response")
    frequencies = _checked(frequencies, model.dt)
    with jax.enable_x64(True):
        point = [jnp.asarray(x, float) for x in (state, action, t)]
        transitions, steps_late = _drawn(key, posterior, model, draws)
        moved, jacobians, rows = map(np.asarray, _linearised(transitions, *point))
    _check_equilibrium(model, moved, tolerance)
    size, sensors, at = len(model.state), model.sensing.space, model.action.index(input)
    if output in sensors.names:
        row, unit = rows[:, sensors.index(output)], sensors.units[sensors.index(output)]
    else:
        row, unit = np.eye(size)[[model.state.index(output)] * len(rows)], model.state.units[model.state.index(output)]
    z = np.exp(2j * np.pi * frequencies * model.dt)
    resolvent = z[:, None, None] * np.eye(size) - jacobians[:, None, :, :size]  # (K, F, D, D)
    push = np.broadcast_to(jacobians[:, None, :, size + at, None], (*resolvent.shape[:3], 1))
    response = np.einsum("kd,kfd->kf", row, np.linalg.solve(resolvent, push)[..., 0])
    whole, part = np.divmod(steps_late, 1.0)  # a fraction blends two inputs (`physppl.dynamics.sensors.lagged`)
    late = z ** -whole[:, None] * (1 - part[:, None] + part[:, None] / z)
    unit = _ratio(unit, model.action.units[at])
    return FrequencyResponse(frequencies, response * late, steps_late * model.dt, input, output, unit)


def _checked(frequencies, dt: float) -> np.ndarray:
    nyquist = 0.5 / dt
    if frequencies is None:
        return HIGHEST * nyquist * np.logspace(-DECADES, 0, POINTS)
    frequencies = np.atleast_1d(np.asarray(frequencies, float))
    wrong = ~((frequencies > 0) & (frequencies <= nyquist * (1 + 1e-12)))
    if frequencies.ndim > 1 or not len(frequencies) or wrong.any():
        got = f"{frequencies[wrong][0]:g} Hz" if wrong.any() else f"shape {frequencies.shape}"
        raise ValueError(
            f"frequency_response: frequencies (F,) lie above 0 and up to the Nyquist frequency 1 / (2 dt) = {nyquist:g}"
            f" Hz of steps of {dt:g} s; got {got}. Beyond it an input that is held over a step has no frequency of its "
            "own: bind the program with a smaller dt."
        )
    return frequencies


def _drawn(key, posterior: Any, model: Dynamics, draws: int) -> tuple[AbstractTransition, np.ndarray]:
    """Transitions on a leading axis, in double precision, and the delays (K,) of their inputs in steps."""
    single = not isinstance(posterior, Posterior)
    if isinstance(model.sensing.delay, int):
        transitions = posterior.particles() if single else posterior.draws(key, draws)
        return transitions, np.full(1 if single else draws, float(model.sensing.delay))
    samples = {} if single else posterior.samples(key, draws)
    if DELAY not in samples:
        raise ValueError(
            f"frequency_response: {model.owner} has a prior for its input_delay, and this {type(posterior).__name__} no"
            " value of it: only recordings show one. Fit Trajectories, or give the Dynamics a number: input_delay=2."
        )
    names = UnconstrainedSpace.of(model, posterior.data, params=posterior.params).names
    sites = {name: samples[name] for name in names if name not in (VARIATION, OFFSETS)}
    return jax.vmap(lambda values: model.bind(values | posterior.params))(sites), np.asarray(samples[DELAY], float)


@eqx.filter_jit
def _linearised(transitions: AbstractTransition, state: Array, action: Array, t: Array):
    """Moves in one step (K, D), Jacobians of the step (K, D, D + A), and of the readings (K, d, D)."""
    dynamics, size = transitions.dynamics, len(state)

    def one(transition):
        step = transition.stepper()

        def advance(p):
            return step(t, p[:size], p[size:])

        point = jnp.concatenate([state, action])
        return dynamics.state.difference(advance(point), state), jax.jacfwd(advance)(point)

    moved, jacobians = jax.vmap(one)(transitions)
    rows = jax.jacfwd(dynamics.sensing.read)(state)
    return moved, jacobians, jnp.broadcast_to(rows, (len(moved), *rows.shape))


def _check_equilibrium(model: Dynamics, moved: np.ndarray, tolerance: float) -> None:
    share = np.abs(moved) / model.state.scale
    if not np.isfinite(share).all():
        raise ValueError(
            "frequency_response: the step from this point is not finite under "
            f"{int((~np.isfinite(share)).any(axis=1).sum())} of {len(share)} draws: it diverges, or its solver fails."
        )
    k, i = np.unravel_index(share.argmax(), share.shape)
    if share[k, i] > tolerance:
        unit = model.state.units[i]
        raise ValueError(
            f"frequency_response: the point is no equilibrium: {model.state.names[i]} moves by {moved[k, i]:.3g} {unit}"
            f" in one step, {share[k, i]:.2g} of its scale, under the draw that moves it most; tolerance={tolerance:g}."
            " Give the state and the action at which the machine stays, or a larger tolerance where the move is small "
            "beside the motion of interest."
        )


def _ratio(over: str, under: str) -> str:
    """Unit of a quotient."""
    if not under:
        return over
    return f"({over})/({under})" if over else f"1/({under})"
