"""Objectives of planning: the task's reward, information about the machine, weighted sums of these.

psrl plans for TaskReward(), psal for InformationGain(); TaskReward() + 0.1 * InformationGain() does both.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from physppl.internal import gaussians
from physppl.planning.planner import BoundObjective
from physppl.planning.tasks import Task
from physppl.posterior.posterior import Posterior


class Objective(eqx.Module):
    """Value of planned trajectories, given the task and the current posterior."""

    @abstractmethod
    def bind(self, task: Task, posterior: Posterior) -> BoundObjective:
        """Callable pytree (states (H + 1, D), actions (H, A)) -> scalar, for planners, without the task's limits.

        A value that depends on the episode so far has `after(state, action)`, which returns the next step's value.
        """

    def __add__(self, other: "Objective") -> "Objective":
        return Weighted(_terms(self) + _terms(other))

    def __mul__(self, weight: float) -> "Objective":
        return Weighted(tuple((weight * w, term) for w, term in _terms(self)))

    __rmul__ = __mul__


class TaskReward(Objective):
    """The task's reward, its terminal term included."""

    def bind(self, task: Task, posterior: Posterior) -> BoundObjective:
        del posterior
        return task.earned


class InformationGain(Objective):
    """Information, in nats, that observing the planned transitions would give about the machine.

    The mutual information between the posterior's function values at the planned states and actions and their noisy
    outcomes, to first order around the posterior's mean (D. Lindley, Annals of Mathematical Statistics 27, 1956).

    Attributes:
        joint: over the whole plan, given the episode so far, so that redundant information counts once. False sums
            the information of every step alone (for dynamics: B. Sukhija et al., NeurIPS 2023).
    """

    joint: bool = eqx.field(default=True, static=True)

    def bind(self, task: Task, posterior: Posterior) -> BoundObjective:
        del task
        precision = jnp.result_type(float)
        posterior = jax.tree.map(lambda x: x.astype(precision) if eqx.is_inexact_array(x) else x, posterior)
        start = jnp.zeros((), int)
        if not self.joint:
            return _StepwiseGain(posterior, start)
        return _JointGain(posterior, start, jnp.eye(_rank(posterior), dtype=precision))


class _StepwiseGain(eqx.Module):
    posterior: Posterior
    steps: Array  # since the episode began

    def __call__(self, states: Float[Array, "H1 D"], actions: Float[Array, "H A"]) -> Float[Array, ""]:
        factor = _whitened(self.posterior, states[:-1], actions, self.steps)
        return jnp.sum(jax.vmap(lambda f: gaussians.information_gain(f, jnp.ones(f.shape[0], f.dtype)))(factor))

    def after(self, state: Float[Array, " D"], action: Float[Array, " A"]) -> "_StepwiseGain":
        del state, action
        return _StepwiseGain(self.posterior, self.steps + 1)


class _JointGain(eqx.Module):
    """Joint information gain given the episode so far.

    The posterior is that of standard normal coefficients of its factor's columns; `precision` is theirs given the
    transitions observed since the episode began, and a plan with factor F adds F' F.
    """

    posterior: Posterior
    steps: Array
    precision: Float[Array, "R R"]

    def __call__(self, states: Float[Array, "H1 D"], actions: Float[Array, "H A"]) -> Float[Array, ""]:
        planned = self._with(states[:-1], actions).precision
        return gaussians.half_log_det(planned) - gaussians.half_log_det(self.precision)

    def after(self, state: Float[Array, " D"], action: Float[Array, " A"]) -> "_JointGain":
        return self._with(state[None], action[None], 1)

    def _with(self, states, actions, steps: int = 0) -> "_JointGain":
        factor = _whitened(self.posterior, states, actions, self.steps)
        factor = factor.reshape(-1, factor.shape[-1])
        return _JointGain(self.posterior, self.steps + steps, self.precision + factor.T @ factor)


def _whitened(posterior: Posterior, states, actions, begin) -> Float[Array, "H D R"]:
    """Posterior factor of each next state in units of its noise sd, `begin` steps into an episode."""
    times = posterior.model.dt * (begin + jnp.arange(len(actions))).astype(states.dtype)
    _, factor = posterior._basis(states, actions, times)
    return factor / posterior._noise()[:, None]


def _rank(posterior: Posterior) -> int:
    """Number of columns of the posterior's factor."""
    state, action = jnp.zeros((1, len(posterior.model.state))), jnp.zeros((1, len(posterior.model.action)))
    return jax.eval_shape(lambda: _whitened(posterior, state, action, 0)).shape[-1]


class Terminal(Objective):
    """Value of the last planned state.

    Attributes:
        value: state (D,) -> scalar.
    """

    value: Callable[[Array], Array] = eqx.field(static=True)

    def bind(self, task: Task, posterior: Posterior) -> BoundObjective:
        del task, posterior
        return self._last_value

    def _last_value(self, states, actions):
        del actions
        return self.value(states[-1])


class Weighted(Objective):
    """Weighted sum of objectives, the result of `+` and `*`."""

    terms: tuple[tuple[float, Objective], ...]

    def bind(self, task: Task, posterior: Posterior) -> BoundObjective:
        return _Sum(tuple((weight, term.bind(task, posterior)) for weight, term in self.terms))


class _Sum(eqx.Module):
    terms: tuple[tuple[Any, Any], ...]  # weights are traced inside an episode

    def __call__(self, states, actions):
        return sum((weight * value(states, actions) for weight, value in self.terms), jnp.zeros((), states.dtype))

    def after(self, state, action) -> "_Sum":
        return _Sum(tuple((weight, _after(value, state, action)) for weight, value in self.terms))


class Constrained(eqx.Module):
    """Function that planners maximise: a bound objective less the penalty for leaving the task's limits."""

    value: BoundObjective
    task: Task

    def __call__(self, states: Float[Array, "H1 D"], actions: Float[Array, "H A"]) -> Float[Array, ""]:
        return self.task.penalised(self.value(states, actions), states)

    def after(self, state: Float[Array, " D"], action: Float[Array, " A"]) -> "Constrained":
        """The function for the next step, after this state and action: known information has no value any more."""
        return Constrained(_after(self.value, state, action), self.task)


def _after(value: BoundObjective, state, action) -> BoundObjective:
    after = getattr(value, "after", None)
    return value if after is None else after(state, action)


def _terms(objective: Objective) -> tuple[tuple[float, Objective], ...]:
    return objective.terms if isinstance(objective, Weighted) else ((1.0, objective),)
