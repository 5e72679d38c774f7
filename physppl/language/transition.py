"""The transition object: one coherent function of a belief, a pytree that jit, vmap, scan and grad accept."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.internal.precision import ExactPickle


class AbstractTransition(ExactPickle, eqx.Module):
    """state, action -> next state, deterministic; `sample` adds the process noise.

    Implementers give `stepper`: everything that does not depend on the state is computed there, once per rollout.

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
        """The function (t, state, action) -> next state."""

    def __call__(
        self, state: Float[Array | np.ndarray, " D"], action: Float[Array | np.ndarray, " A"], t=0.0
    ) -> Float[Array, " D"]:
        """The next state (D,), without noise."""
        self.dynamics.check_point(state, action, "transition")
        state = jnp.asarray(state, self.noise.dtype)
        return self.stepper()(jnp.asarray(t, state.dtype), state, jnp.asarray(action, state.dtype))

    def sample(
        self, key: PRNGKeyArray, state: Float[Array | np.ndarray, " D"], action: Float[Array | np.ndarray, " A"], t=0.0
    ) -> Float[Array, " D"]:
        """A noisy next state (D,)."""
        mean = self(state, action, t)
        return mean + self.noise.astype(mean.dtype) * jax.random.normal(key, mean.shape, mean.dtype)

    def particles(self):
        """Itself with a leading particle axis of one, as planners take it."""
        return jax.tree.map(lambda leaf: leaf[None], self)


class Transition(AbstractTransition):
    """The program at one set of site values."""

    def stepper(self) -> Callable[[Array, Array, Array], Array]:
        return self.dynamics.stepper(self.sites)


class LinearisedTransition(AbstractTransition):
    """f(s, a; mode) + J(s, a) (z - mode): one draw of the linearised Laplace function. Its `sites` are the mode's.

    Attributes:
        tangents: {site: its directional derivative along z - mode}.
    """

    tangents: dict[str, Array]

    def stepper(self) -> Callable[[Array, Array, Array], Array]:
        def step(t, x, u):
            value, tangent = jax.jvp(lambda s: self.dynamics.stepper(s)(t, x, u), (self.sites,), (self.tangents,))
            return value + tangent

        return step


class AverageTransition(AbstractTransition):
    """The mean of several functions at every step: the predictive mean of a belief held as draws.

    Attributes:
        members: transitions with a leading axis; `sites` are the first one's.
    """

    members: AbstractTransition

    def stepper(self) -> Callable[[Array, Array, Array], Array]:
        return lambda t, x, u: jnp.mean(jax.vmap(lambda member: member.stepper()(t, x, u))(self.members), axis=0)


class SwitchingTransition(AbstractTransition):
    """Another of several functions at every step, at random: no function of the belief, but uncertain anew each time.

    The choice belongs to the step's time: whoever asks about one step again meets the same function there.

    Attributes:
        members: transitions with a leading axis; `sites` are the first one's.
        key: of the choices.
    """

    members: AbstractTransition
    key: PRNGKeyArray

    @staticmethod
    def of(members: AbstractTransition, key: PRNGKeyArray) -> "SwitchingTransition":
        """Switching between these; `noise` is their root mean square."""
        noise = jnp.sqrt(jnp.mean(members.noise**2, axis=0))
        first = {name: value[0] for name, value in members.sites.items()}
        return SwitchingTransition(first, noise, members.dynamics, members, key)

    def stepper(self) -> Callable[[Array, Array, Array], Array]:
        def step(t, x, u):
            number = jnp.round(t / self.dynamics.dt).astype(int)
            chosen = jax.random.randint(jax.random.fold_in(self.key, number), (), 0, len(self.members.noise))
            return jax.tree.map(lambda leaf: leaf[chosen], self.members).stepper()(t, x, u)

        return step


class LaterTransition(AbstractTransition):
    """The same function with another zero of time: planners begin at 0, wherever an episode is.

    Attributes:
        inner: the function.
        begin: s, its time at 0.
    """

    inner: AbstractTransition
    begin: Array

    def stepper(self) -> Callable[[Array, Array, Array], Array]:
        step = self.inner.stepper()
        return lambda t, x, u: step(t + self.begin, x, u)
