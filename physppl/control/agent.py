"""The agent: what it takes the machine for, what it wants, and how it plans."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.internal.errors import check_key
from physppl.language.transition import AbstractTransition, LaterTransition
from physppl.planning.objectives import Constrained
from physppl.planning.planner import Planner


class AgentState(NamedTuple):
    """What an agent carries from one control step to the next."""

    plan: Any
    objective: Constrained
    steps: Array


class Agent(eqx.Module):
    """Plans on transition functions for an objective; pure, so that whole episodes compile.

    Attributes:
        planner: how.
        transitions: (S, K, ...): parts of an episode, particles; see `Acquisition.stages`.
        objective: what for.
        every: control steps of a part.
    """

    planner: Planner
    transitions: AbstractTransition
    objective: Constrained
    every: int | None = eqx.field(static=True)

    def init(self) -> AgentState:
        """At the beginning of an episode."""
        plan = self.planner.init(self.transitions.dynamics.action)
        return AgentState(plan, self.objective, jnp.zeros((), int))

    def control(
        self, key: PRNGKeyArray, state: AgentState, observation: Float[Array, " D"]
    ) -> tuple[Float[Array, " A"], AgentState, dict[str, Array]]:
        """(the action to apply, the agent's next state, what the planner says of its plan)."""
        part = jnp.zeros((), int) if self.every is None else state.steps // self.every
        inner = jax.tree.map(lambda leaf: leaf[part], self.transitions)
        begin = jnp.broadcast_to(inner.dynamics.dt * state.steps, inner.noise.shape[:1])
        transitions = LaterTransition(inner.sites, inner.noise, inner.dynamics, inner, begin)
        actions, plan, info = self.planner.plan(key, transitions, state.objective, observation, state.plan)
        objective = state.objective.after(observation, actions[0])
        return actions[0], AgentState(plan, objective, state.steps + 1), info

    def actor(self, key: PRNGKeyArray, from_observation: Callable[[Any], Any] | None = None) -> "Actor":
        """The same as an object with a memory: `act(observation)`."""
        return Actor(self, key, from_observation)


class Actor:
    """An agent for a loop of your own: `act(observation)` gives actions, `reset()` begins an episode.

    The first call compiles; it takes as long as an episode's.

    Args:
        from_observation: observation -> state (D,), where what is observed is not the state itself.
    """

    def __init__(self, agent: Agent, key: PRNGKeyArray, from_observation: Callable[[Any], Any] | None = None):
        check_key(key)
        self._agent, self._key, self._from_observation = agent, key, from_observation
        self._episodes = -1
        self.reset()

    def reset(self) -> None:
        """Begins an episode."""
        self._episodes += 1
        self._state = self._agent.init()

    def act(self, observation: Any) -> Float[np.ndarray, " A"]:
        """The action (A,) to apply now, in the action space's units, for an observed state (D,).

        Raises:
            ValueError: for anything but one state.
        """
        space = self._agent.transitions.dynamics.state
        if self._from_observation is not None:
            observation = self._from_observation(observation)
        observation = np.asarray(observation, float)
        if observation.shape != (len(space),):
            names = ", ".join(space.names)
            raise ValueError(
                f"act: one observation is ({len(space)},) ({names}); got shape {observation.shape}. What observes "
                "something else needs agent(key, from_observation=...)."
            )
        key = jax.random.fold_in(jax.random.fold_in(self._key, self._episodes), self._state.steps)
        action, self._state, _ = controlled(self._agent, key, self._state, jnp.asarray(observation, float))
        return np.asarray(action)


@eqx.filter_jit
def controlled(agent: Agent, key, state: AgentState, observation):
    """`Agent.control`, compiled."""
    return agent.control(key, state, observation)


@eqx.filter_jit
def controlled_batch(agent: Agent, keys, states: AgentState, observations):
    """`Agent.control` of machines side by side, compiled."""
    return jax.vmap(functools.partial(Agent.control, agent))(keys, states, observations)
