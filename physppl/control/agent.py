"""Agents: transition functions, an objective and a planner that choose actions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.control.host_checks import check_observation
from physppl.internal.errors import check_key
from physppl.language.transition import AbstractTransition, LaterTransition
from physppl.planning.objectives import Constrained
from physppl.planning.planner import Planner


class AgentState(NamedTuple):
    """State of an agent between control steps."""

    plan: Any
    objective: Constrained
    steps: Array


class Agent(eqx.Module):
    """Planner, transition functions and objective; pure, so that whole episodes compile.

    Attributes:
        planner: plans at every control step.
        transitions: (S, K, ...): S stages of an episode, K particles; see `Acquisition.stages`.
        objective: maximised by the planner.
        every: control steps of a stage; None: one stage.
    """

    planner: Planner
    transitions: AbstractTransition
    objective: Constrained
    every: int | None = eqx.field(static=True)

    def init(self) -> AgentState:
        """State at the beginning of an episode."""
        plan = self.planner.init(self.transitions.dynamics.action)
        return AgentState(plan, self.objective, jnp.zeros((), int))

    def control(
        self, key: PRNGKeyArray, state: AgentState, observation: Float[Array, " D"]
    ) -> tuple[Float[Array, " A"], AgentState, dict[str, Array]]:
        """Action to apply, the agent's next state, and the planner's info on its plan."""
        stage = jnp.zeros((), int) if self.every is None else state.steps // self.every
        current = jax.tree.map(lambda leaf: leaf[stage], self.transitions)
        begin = jnp.broadcast_to(current.dynamics.dt * state.steps, current.noise.shape[:1])
        transitions = LaterTransition(current.sites, current.noise, current.dynamics, current, begin)
        actions, plan, info = self.planner.plan(key, transitions, state.objective, observation, state.plan)
        objective = state.objective.after(observation, actions[0])
        return actions[0], AgentState(plan, objective, state.steps + 1), info

    def actor(self, key: PRNGKeyArray, from_observation: Callable[[Any], Any] | None = None) -> "Actor":
        """Stateful wrapper of this agent: `act(observation)` gives actions."""
        return Actor(self, key, from_observation)


class Actor:
    """Stateful agent for user-written loops: `act(observation)` gives actions, `reset()` begins an episode.

    The first call compiles the planner.

    Args:
        from_observation: observation -> state (D,), where an observation is not the state itself.
    """

    def __init__(self, agent: Agent, key: PRNGKeyArray, from_observation: Callable[[Any], Any] | None = None):
        check_key(key)
        self._agent, self._key, self._from_observation = agent, key, from_observation
        self._episodes = -1
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._episodes += 1
        self._state = self._agent.init()

    def act(self, observation: Any) -> Float[np.ndarray, " A"]:
        """Action (A,) to apply now, in the action space's units, for an observed state (D,).

        Raises:
            TypeError, ValueError: where the observation is not one state.
            FloatingPointError: where it is not finite.
        """
        space = self._agent.transitions.dynamics.state
        if self._from_observation is not None:
            observation = self._from_observation(observation)
        observation = check_observation(observation, space.names)
        key = jax.random.fold_in(jax.random.fold_in(self._key, self._episodes), self._state.steps)
        action, self._state, _ = _control(self._agent, key, self._state, jnp.asarray(observation, float))
        return np.asarray(action)


_control = eqx.filter_jit(Agent.control)


@eqx.filter_jit
def controlled_batch(agent: Agent, keys, states: AgentState, observations):
    """Compiled `Agent.control` of several machines in parallel."""
    return jax.vmap(functools.partial(Agent.control, agent))(keys, states, observations)
