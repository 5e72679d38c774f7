"""The transition object: one coherent function of a belief, a pytree that jit, vmap, scan and grad accept."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray


class AbstractTransition(eqx.Module):
    """state, action -> next state, deterministic; `sample` adds the process noise.

    Implementers give `stepper`: everything that does not depend on the state is computed there, once per rollout.

    Attributes:
        noise: process-noise sd (D,), in the coordinates' units.
        dynamics: the binding (static); equal bindings share compiled programs.
    """

    noise: eqx.AbstractVar[Array]
    dynamics: eqx.AbstractVar[object]

    def stepper(self):
        """The function (t, state, action) -> next state."""
        raise NotImplementedError

    def __call__(self, state: Float[Array, " D"], action: Float[Array, " A"], t=0.0) -> Float[Array, " D"]:
        """The next state (D,), without noise."""
        state = jnp.asarray(state, self.noise.dtype)
        return self.stepper()(t, state, jnp.asarray(action, state.dtype))

    def sample(
        self, key: PRNGKeyArray, state: Float[Array, " D"], action: Float[Array, " A"], t=0.0
    ) -> Float[Array, " D"]:
        """A noisy next state (D,)."""
        mean = self(state, action, t)
        return mean + self.noise.astype(mean.dtype) * jax.random.normal(key, mean.shape, mean.dtype)

    def particles(self):
        """Itself with a leading particle axis of one, as planners take it."""
        return jax.tree.map(lambda leaf: leaf[None], self)


class Transition(AbstractTransition):
    """The program at one set of site values.

    Attributes:
        sites: {site: constrained value} of the program.
    """

    sites: dict[str, Array]
    noise: Array
    dynamics: "object" = eqx.field(static=True)

    def stepper(self):
        return self.dynamics.stepper(self.sites)


class LinearisedTransition(AbstractTransition):
    """f(s, a; mode) + J(s, a) (z - mode): one draw of the linearised Laplace function.

    Attributes:
        sites: values at the mode.
        tangents: {site: its directional derivative along z - mode}.
    """

    sites: dict[str, Array]
    tangents: dict[str, Array]
    noise: Array
    dynamics: "object" = eqx.field(static=True)

    def stepper(self):
        def step(t, x, u):
            value, tangent = jax.jvp(lambda s: self.dynamics.stepper(s)(t, x, u), (self.sites,), (self.tangents,))
            return value + tangent

        return step
