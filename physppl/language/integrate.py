"""Integration of a vector field over one step, and rollouts.

An input is held constant over [t, t + dt). Explicit Runge-Kutta methods are unrolled from diffrax's own tableau: as
fast as a hand-written loop and differentiable in both modes. Every other diffrax solver goes through its `step`; where
an implicit equation is not solved, the next state is NaN.
"""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from diffrax import AbstractERK, ButcherTableau
from jax import Array

from physppl.language.adaptive import Adaptive, guarded
from physppl.language.program_errors import takes


@dataclass(frozen=True)
class Step:
    """A program's result where it is a discrete step, no field: `Step(step)`, step(t, state, action) -> next state."""

    step: Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class StepResidual:
    """Physics integrated over one step, plus `residual(state, action)` on the result."""

    physics: Callable | Step
    residual: Callable[[Array, Array], Array]


class RK4(AbstractERK):
    """The classical fourth-order Runge-Kutta method (Kutta 1901), fixed steps: four field calls a step."""

    tableau: ClassVar[ButcherTableau] = ButcherTableau(  # pyright: ignore[reportIncompatibleVariableOverride]
        c=np.array([0.5, 0.5, 1.0]),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.zeros(4),
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
    )
    interpolation_cls: ClassVar[Callable] = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms) -> int:
        del terms
        return 4


Stepper = Callable[[Array, Array, Array], Array]


def stepper(field, dt, solver: diffrax.AbstractSolver | Adaptive, substeps: int = 1, name: str = "program") -> Stepper:
    """Map (t, state, action) -> state after dt, with the action held constant.

    Args:
        field: field(t, state, action) -> d state/dt, a `Step`, or a `StepResidual`.
        dt: seconds.
        name: of the program, for error messages.

    Raises:
        ValueError: for an implicit solver without tolerances; at the first call, where the shape of the field's
            result is not the state's.
    """
    if isinstance(field, StepResidual):
        physics, residual = stepper(field.physics, dt, solver, substeps, name), field.residual
        return lambda t, x, u: physics(t, x, u) + _checked(residual(x, u), x, name, "residual")
    if isinstance(field, Step):
        return lambda t, x, u: _checked(field.step(t, x, u), x, name, "step")
    if not callable(field):
        raise ValueError(
            f"{name} must return a vector field f(t, state, action), a Step or step_residual(...); "
            f"got {type(field).__name__}."
        )

    if not takes(field, 3):
        raise ValueError(f"The field of {name} must take (t, state, action); got {inspect.signature(field)}.")

    def slope(t, x, u):
        return _checked(field(t, x, u), x, name, "field")

    if isinstance(solver, Adaptive):
        return lambda t, x, u: solver.advance(slope, t, x, u, dt)
    if not isinstance(getattr(getattr(solver, "root_finder", None), "rtol", 0.0), float | int | Array):
        raise ValueError(  # diffrax would take them from its adaptive step size; steps are fixed here
            f"{type(solver).__name__} needs tolerances of its own: pass "
            f"{type(solver).__name__}(root_finder=optimistix.Newton(rtol=1e-8, atol=1e-10)), or "
            f"Adaptive({type(solver).__name__}())."
        )
    h = dt / substeps
    advance = _tableau_step if isinstance(solver, AbstractERK) else _diffrax_step
    if substeps == 1:
        return lambda t, x, u: advance(solver, slope, t, x, u, h)

    def substepped(t, x, u):
        def body(carry, _):
            t, x = carry
            return (t + h, advance(solver, slope, t, x, u, h)), None

        return jax.lax.scan(body, (jnp.asarray(t, x.dtype), x), None, length=substeps, unroll=min(substeps, 4))[0][1]

    return substepped


def _tableau_step(solver, slope, t, x, u, h):
    tableau = solver.tableau
    count = tableau.num_stages  # a trailing stage that only the error estimate needs is not computed
    while count > 1 and tableau.b_sol[count - 1] == 0:
        count -= 1
    stages = [slope(t, x, u)]
    for row, c in zip(tableau.a_lower[: count - 1], tableau.c[: count - 1], strict=True):
        stages.append(slope(t + float(c) * h, _combine(x, h, row, stages), u))
    return _combine(x, h, tableau.b_sol[:count], stages)


def _combine(x, h, weights, stages):
    """State x + h sum(weight * stage), where stages of equal weight are added before they are scaled."""
    groups: dict[float, Array] = {}
    for weight, stage in zip(weights, stages, strict=True):
        if weight != 0:
            groups[float(weight)] = groups[float(weight)] + stage if float(weight) in groups else stage
    for weight, total in groups.items():
        x = x + (weight * h) * total
    return x


def _diffrax_step(solver, slope, t, x, u, h):
    if getattr(solver, "scan_kind", "none") is None:  # the only kind that differentiates in both modes
        solver = dataclasses.replace(solver, scan_kind="bounded")
    term = diffrax.ODETerm(slope)

    def solve(t, x):
        state = solver.init(term, t, t + h, x, u)
        after, *_, result = solver.step(term, t, t + h, x, u, state, made_jump=False)
        return after, result

    return guarded(solve, t, x)


def _checked(result, x, name: str, what: str) -> Array:
    """The result as an array of the state's shape and precision."""
    if result is None or isinstance(result, dict):
        got = "a dict" if result is not None else "nothing: a `return` is missing"
        raise ValueError(
            f"The {what} of {name} returned {got}. Return jnp.stack([...]) with one entry per state coordinate, in the "
            "order of the StateSpace."
        )
    if isinstance(result, tuple | list):
        result = jnp.stack([jnp.asarray(r) for r in result])
    if jnp.shape(result) != x.shape:
        raise ValueError(
            f"The {what} of {name} must return an array of the state's shape {x.shape}; got shape {jnp.shape(result)}. "
            "Return jnp.stack([...]) with one entry per state coordinate, in the order of the StateSpace."
        )
    return jnp.asarray(result, x.dtype)


def rollout(
    step, state, actions=None, *, t=0.0, dt=None, times=None, solver=None, substeps: int | None = None, before=0.0
):
    """Open-loop rollout of a Transition, or of a bare field, for models with their own likelihood.

    Args:
        step: a Transition; or field(t, state, action) or Step, with `dt` or `times`.
        state: initial state (D,).
        actions: (T, A), each held for one step; None for an autonomous field with `times`.
        t: time of the initial state, s (ignored with `times`).
        dt: step, s; for a bare field.
        times: (T + 1,) increasing times, s, for a bare field with irregular steps; the first is the initial state's.
        solver: a diffrax solver, RK4 by default; for a bare field.
        substeps: solver steps per interval, one by default; for a bare field.
        before: action, or (A,), before the first; a Transition whose Dynamics has an `input_delay` begins with it.

    Returns:
        states (T + 1, D), the initial state first.

    Raises:
        ValueError: where the length of the rollout or the step is not determined.
    """
    state = _as_float(state)
    is_transition = hasattr(step, "stepper")
    if is_transition:
        if any(option is not None for option in (dt, times, solver, substeps)):
            raise ValueError("rollout: a Transition brings its own dt, solver and substeps; drop these arguments.")
        if actions is None:
            raise ValueError("rollout: a Transition needs actions (T, A).")
        dt = step.dynamics.dt
        step.dynamics.check_point(state, jnp.asarray(actions)[0], "rollout")
        actions = step.dynamics.sensing.arriving(jnp.asarray(actions), before)
    elif not (callable(step) or isinstance(step, Step)):
        raise TypeError(
            f"rollout takes a Transition (posterior.draw(key)), a field or a Step; got {type(step).__name__}."
        )
    elif (dt is None) == (times is None):
        raise ValueError("rollout: a bare field needs exactly one of dt and times.")
    solver, substeps = RK4() if solver is None else solver, 1 if substeps is None else substeps
    if actions is None:
        if times is None:
            raise ValueError("rollout: actions (T, A) or times (T + 1,) must say how long the rollout is.")
        actions = jnp.zeros((len(times) - 1, 0), state.dtype)
    actions = jnp.asarray(actions, state.dtype)
    if dt is not None:
        lengths = jnp.full(actions.shape[0], dt, state.dtype)
        starts = t + dt * jnp.arange(actions.shape[0]).astype(state.dtype)
    else:
        times = jnp.asarray(times, state.dtype)
        if times.shape != (actions.shape[0] + 1,):
            raise ValueError(
                f"rollout: times must have one more entry than actions; got {times.shape} and {actions.shape}."
            )
        starts, lengths = times[:-1], jnp.diff(times)
    if is_transition:
        return _transition_rollout(step, state, actions, starts)

    def advance(x, t, u, length):
        return stepper(step, length if dt is None else dt, solver, substeps)(t, x, u)

    return course(advance, state, starts, actions, lengths)


def course(advance: Callable[..., Array], state: Array, *inputs) -> Array:
    """States (T + 1, D), the initial one first, of advance(state, *inputs of a step) -> next state."""

    def body(x, at):
        x = advance(x, *at)
        return x, x

    _, states = jax.lax.scan(body, state, inputs)
    return jnp.concatenate([state[None], states])


@jax.jit  # without jit the scan would compile again at every call from Python
def _transition_rollout(transition, state, actions, starts):
    advance = transition.stepper()
    return course(lambda x, t, u: advance(t, x, u), state, starts, actions)


def rollouts(transition, state, actions, *, t=0.0, before=0.0):
    """Open-loop rollouts of one Transition for many action sequences, candidates last: the fastest layout for planners.

    Args:
        transition: a Transition.
        state: initial state (D,), shared.
        actions: (T, A, N).
        before: action before the first, (A, 1) or a number, as of `rollout`.

    Returns:
        states (T + 1, D, N).
    """
    state = _as_float(state)
    actions = jnp.asarray(actions, state.dtype)
    if actions.ndim != 3:
        raise ValueError(f"rollouts: actions must be (T, A, N), candidates last; got {actions.shape}.")
    transition.dynamics.check_point(state, actions[0, :, 0], "rollouts")
    actions = transition.dynamics.sensing.arriving(actions, before)
    advance = jax.vmap(transition.stepper(), in_axes=(None, -1, -1), out_axes=-1)
    start = jnp.broadcast_to(state[:, None], (*state.shape, actions.shape[-1]))
    times = t + transition.dynamics.dt * jnp.arange(actions.shape[0]).astype(state.dtype)
    return course(lambda x, t, u: advance(t, x, u), start, times, actions)


def _as_float(state) -> Array:
    state = jnp.asarray(state)
    return state if jnp.issubdtype(state.dtype, jnp.floating) else state.astype(jnp.result_type(float))
