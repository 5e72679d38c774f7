"""What an episode is planned for: the task's reward, information about the machine, sums of these.

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
from physppl.planning.tasks import Task
from physppl.posterior.base import Posterior

Value = Callable[[Array, Array], Array]


class Objective(eqx.Module):
    """A value of planned trajectories that may depend on the task and on the belief of the day."""

    @abstractmethod
    def bind(self, task: Task, posterior: Posterior) -> Value:
        """A pytree (states (H + 1, D), actions (H, A)) -> scalar, for planners; limits are not its business.

        What depends on the episode so far has `after(state, action)`, which gives the next step's value.
        """

    def __add__(self, other: "Objective") -> "Objective":
        return Weighted(_terms(self) + _terms(other))

    def __mul__(self, weight: float) -> "Objective":
        return Weighted(tuple((weight * w, term) for w, term in _terms(self)))

    __rmul__ = __mul__


class TaskReward(Objective):
    """The task's reward, its terminal term included."""

    def bind(self, task: Task, posterior: Posterior) -> Value:
        del posterior
        return task.earned


class InformationGain(Objective):
    """What observing the planned transitions would tell about the machine, in nats.

    The mutual information of the belief's functions and noisy outcomes at the planned states and actions, to first
    order around the belief's mean (D. Lindley, Annals of Mathematical Statistics 27, 1956).

    Attributes:
        joint: over the whole plan, and given what the episode has shown so far: what is told twice counts once. False
            sums what every step would tell alone (for dynamics: B. Sukhija et al., NeurIPS 2023).
    """

    joint: bool = eqx.field(default=True, static=True)

    def bind(self, task: Task, posterior: Posterior) -> Value:
        del task
        precision = jnp.result_type(float)
        posterior = jax.tree.map(lambda x: x.astype(precision) if eqx.is_inexact_array(x) else x, posterior)
        start = jnp.zeros((), int)
        if not self.joint:
            return _GainOfSteps(posterior, start)
        return _Gain(posterior, start, jnp.eye(_rank(posterior), dtype=precision))


class _GainOfSteps(eqx.Module):
    posterior: Posterior
    steps: Array  # since the episode began

    def __call__(self, states: Float[Array, "H1 D"], actions: Float[Array, "H A"]) -> Float[Array, ""]:
        factor = _whitened(self.posterior, states[:-1], actions, self.steps)
        return jnp.sum(jax.vmap(lambda f: gaussians.information_gain(f, jnp.ones(f.shape[0], f.dtype)))(factor))

    def after(self, state: Float[Array, " D"], action: Float[Array, " A"]) -> "_GainOfSteps":
        del state, action
        return _GainOfSteps(self.posterior, self.steps + 1)


class _Gain(eqx.Module):
    """The belief as standard normal coefficients of its factor's columns, with their precision by now."""

    posterior: Posterior
    steps: Array
    precision: Float[Array, "R R"]

    def __call__(self, states: Float[Array, "H1 D"], actions: Float[Array, "H A"]) -> Float[Array, ""]:
        after = self._with(states[:-1], actions).precision
        return gaussians.half_log_det(after) - gaussians.half_log_det(self.precision)

    def after(self, state: Float[Array, " D"], action: Float[Array, " A"]) -> "_Gain":
        return self._with(state[None], action[None], 1)

    def _with(self, states, actions, steps: int = 0) -> "_Gain":
        factor = _whitened(self.posterior, states, actions, self.steps)
        factor = factor.reshape(-1, factor.shape[-1])
        return _Gain(self.posterior, self.steps + steps, self.precision + factor.T @ factor)


def _whitened(posterior: Posterior, states, actions, begin) -> Float[Array, "H D R"]:
    """The factor of each next state in units of its noise, `begin` steps into an episode."""
    times = posterior.model.dt * (begin + jnp.arange(len(actions))).astype(states.dtype)
    _, factor = posterior._basis(states, actions, times)
    return factor / posterior._noise()[:, None]


def _rank(posterior: Posterior) -> int:
    """Columns of the belief's factor."""
    state, action = jnp.zeros((1, len(posterior.model.state))), jnp.zeros((1, len(posterior.model.action)))
    return jax.eval_shape(lambda: _whitened(posterior, state, action, 0)).shape[-1]


class Terminal(Objective):
    """A value of the last planned state.

    Attributes:
        value: state (D,) -> scalar.
    """

    value: Callable[[Array], Array] = eqx.field(static=True)

    def bind(self, task: Task, posterior: Posterior) -> Value:
        del task, posterior
        return self._of_last

    def _of_last(self, states, actions):
        del actions
        return self.value(states[-1])


class Weighted(Objective):
    """A weighted sum: what `+` and `*` of objectives give."""

    terms: tuple[tuple[float, Objective], ...]

    def bind(self, task: Task, posterior: Posterior) -> Value:
        return _Sum(tuple((weight, term.bind(task, posterior)) for weight, term in self.terms))


class _Sum(eqx.Module):
    terms: tuple[tuple[Any, Any], ...]  # weights are traced inside an episode

    def __call__(self, states, actions):
        return sum((weight * value(states, actions) for weight, value in self.terms), jnp.zeros((), states.dtype))

    def after(self, state, action) -> "_Sum":
        return _Sum(tuple((weight, _after(value, state, action)) for weight, value in self.terms))


class Constrained(eqx.Module):
    """What planners maximise: a bound objective less what leaving the task's limits costs."""

    value: Value
    task: Task

    def __call__(self, states: Float[Array, "H1 D"], actions: Float[Array, "H A"]) -> Float[Array, ""]:
        return self.task.penalised(self.value(states, actions), states)

    def after(self, state: Float[Array, " D"], action: Float[Array, " A"]) -> "Constrained":
        """The same once this has happened: what is known already has no value any more."""
        return Constrained(_after(self.value, state, action), self.task)


def _after(value: Value, state, action) -> Value:
    after = getattr(value, "after", None)
    return value if after is None else after(state, action)


def _terms(objective: Objective) -> tuple[tuple[float, Objective], ...]:
    return objective.terms if isinstance(objective, Weighted) else ((1.0, objective),)
