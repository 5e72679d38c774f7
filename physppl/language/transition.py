"""Transition functions: pytrees that jit, vmap, scan and grad accept."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.internal.errors import is_concrete
from physppl.internal.precision import ExactPickle

LISTED = 6  # sites in one line


class AbstractTransition(ExactPickle, eqx.Module):
    """Deterministic function (state, action) -> next state; `sample` adds the process noise.

    Subclasses implement `stepper`, which computes everything that does not depend on the state once per rollout.

    Attributes:
        sites: {site: constrained value} of the program.
        noise: process-noise sd (D,), in the coordinates' units.
        dynamics: the Dynamics (static); equal ones share compiled programs.
    """

    sites: dict[str, Array]
    noise: Array
    dynamics: Any = eqx.field(static=True)

    @abstractmethod
    def stepper(self) -> Callable[[Array, Array, Array], Array]:
        """Function (t, state, action) -> next state."""

    def __call__(
        self, state: Float[Array | np.ndarray, " D"], action: Float[Array | np.ndarray, " A"], t=0.0
    ) -> Float[Array, " D"]:
        """Next state (D,), without noise."""
        self.dynamics.check_point(state, action, "transition")
        state = jnp.asarray(state, self.noise.dtype)
        return self.stepper()(jnp.asarray(t, state.dtype), state, jnp.asarray(action, state.dtype))

    def sample(
        self, key: PRNGKeyArray, state: Float[Array | np.ndarray, " D"], action: Float[Array | np.ndarray, " A"], t=0.0
    ) -> Float[Array, " D"]:
        """Next state (D,), with process noise."""
        mean = self(state, action, t)
        return mean + self.noise.astype(mean.dtype) * jax.random.normal(key, mean.shape, mean.dtype)

    def __repr__(self) -> str:
        """Values of scalar sites and shapes of the others, the first few where they are many."""
        items = [f"{name}={_shown(value)}" for name, value in self.sites.items()]
        more = [f"and {len(items) - LISTED} more in `.sites`"] if len(items) > LISTED else []
        return f"{type(self).__name__}({', '.join([*items[:LISTED], *more, f'noise={_shown(self.noise)}'])})"

    def particles(self):
        """The transition with a leading particle axis of one, as planners take it."""
        return jax.tree.map(lambda leaf: leaf[None], self)


class Transition(AbstractTransition):
    """The program at one set of site values."""

    def stepper(self) -> Callable[[Array, Array, Array], Array]:
        return self.dynamics.stepper(self.sites)


class LinearisedTransition(AbstractTransition):
    """Draw of a linearised Laplace posterior: f(s, a; mode) + J(s, a) (z - mode). Its `sites` are the mode's.

    Attributes:
        tangents: {site: its directional derivative at the mode along z - mode}; J is the Jacobian of f in z.
    """

    tangents: dict[str, Array]

    def stepper(self) -> Callable[[Array, Array, Array], Array]:
        def step(t, x, u):
            value, tangent = jax.jvp(lambda s: self.dynamics.stepper(s)(t, x, u), (self.sites,), (self.tangents,))
            return value + tangent

        return step


class AverageTransition(AbstractTransition):
    """Mean of several functions at every step: the predictive mean of a posterior represented by draws.

    Attributes:
        members: transitions with a leading axis; `sites` are the first one's.
    """

    members: AbstractTransition

    def stepper(self) -> Callable[[Array, Array, Array], Array]:
        return lambda t, x, u: jnp.mean(jax.vmap(lambda member: member.stepper()(t, x, u))(self.members), axis=0)


class SwitchingTransition(AbstractTransition):
    """Random choice among several functions at every step: not one draw of a posterior, but a new draw each step.

    The choice depends on the step's time alone: evaluating a step again uses the same function.

    Attributes:
        members: transitions with a leading axis; `sites` are the first one's.
        key: of the choices.
    """

    members: AbstractTransition
    key: PRNGKeyArray

    @staticmethod
    def of(members: AbstractTransition, key: PRNGKeyArray) -> "SwitchingTransition":
        """Build from members; `noise` is the root mean square of theirs."""
        noise = jnp.sqrt(jnp.mean(members.noise**2, axis=0))
        first = {name: value[0] for name, value in members.sites.items()}
        return SwitchingTransition(first, noise, members.dynamics, members, key)

    def stepper(self) -> Callable[[Array, Array, Array], Array]:
        def step(t, x, u):
            index = jnp.round(t / self.dynamics.dt).astype(int)
            member = jax.random.randint(jax.random.fold_in(self.key, index), (), 0, len(self.members.noise))
            return jax.tree.map(lambda leaf: leaf[member], self.members).stepper()(t, x, u)

        return step


class LaterTransition(AbstractTransition):
    """Transition with a shifted time origin: planners begin at time 0 at every step of an episode.

    Attributes:
        inner: the function.
        begin: s, the inner function's time at time 0.
    """

    inner: AbstractTransition
    begin: Array

    def stepper(self) -> Callable[[Array, Array, Array], Array]:
        step = self.inner.stepper()
        return lambda t, x, u: step(t + self.begin, x, u)


def _shown(value: Any) -> str:
    """A number, or the shape of an array."""
    if eqx.is_array(value) and value.ndim == 0 and is_concrete(value):
        return f"{float(value):.4g}"
    return f"array {tuple(jnp.shape(value))}" if hasattr(value, "shape") else type(value).__name__
