"""A network as a program, in the spaces of another model: Gaussian last-layer weights over features."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Float, PRNGKeyArray
from numpyro import handlers

from physppl.dynamics import Dynamics
from physppl.language.integrate import Step
from physppl.language.residual import residual

NAME = "network"  # of the site


@dataclass(frozen=True)
class Network:
    """A program in a model's spaces: x' = x + Phi(x, u) w, with a Gaussian prior over w.

    Sites: "network", standard normal, of which the weights w = mean + factor e are an affine function, stated as
    "network.weights". The mean, the factor and the hidden layers are `param` sites, whose values a posterior stores,
    so that a new function prior compiles nothing and is the prior of this program.

    Attributes:
        model: the Dynamics whose spaces, step and process noise it takes.
        width, depth: of tanh layers, as of `residual`.
        features: in place of the hidden layers, (state, action) -> (F,) for every output, or (D, P).
    """

    model: Dynamics
    width: int = 128
    depth: int = 1
    features: Callable | None = None

    def __call__(self):
        hidden = None if self.features else jnp.asarray(numpyro.param(f"{NAME}.features", self.draw))
        mean = jnp.asarray(numpyro.param(f"{NAME}.mean", jnp.zeros(self.size)))
        factor = jnp.asarray(numpyro.param(f"{NAME}.factor", jnp.eye(self.size)))
        white = jnp.asarray(numpyro.sample(NAME, dist.Normal(0.0, 1.0).expand([self.size]).to_event(1)))
        change = self.change(jnp.asarray(numpyro.deterministic(f"{NAME}.weights", mean + factor @ white)), hidden)
        return Step(lambda t, x, u: x + change(x, u))

    @property
    def size(self) -> int:
        """Number of weights P."""
        outputs = len(self.model.state)
        shape = (self.width,) if self.features is None else self._shape()
        return shape[0] * outputs if len(shape) == 1 else shape[1]

    def draw(self, key: PRNGKeyArray) -> Array:
        """Randomly initialised hidden layers."""
        with handlers.block():
            return handlers.trace(handlers.seed(self._residual, key)).get_trace()[f"{NAME}.features"]["value"]

    def change(self, weights: Float[Array, " P"], hidden: Array | None) -> Callable[[Array, Array], Array]:
        """The function (state, action) -> x' - x, linear in the weights."""
        if self.features is None:
            values = {NAME: weights, f"{NAME}.features": hidden, f"{NAME}.scale": jnp.ones(())}
            with handlers.block(), handlers.substitute(data=values):
                return self._residual()
        features = self.features

        def function(x, u):
            design = features(x, u).astype(weights.dtype)
            return design @ (weights if design.ndim == 2 else weights.reshape(len(design), -1))

        return function

    def design(self, hidden, states: Float[Array, "N D"], actions: Float[Array, "N A"]) -> Float[Array, "N D P"]:
        """Design matrix at each row, in units of the coordinates' scales."""
        zero = jnp.zeros(self.size)
        row = jax.vmap(jax.jacrev(lambda w, x, u: self.change(w, hidden)(x, u)), in_axes=(None, 0, 0))
        return row(zero, states, actions) / self.model.state.scale[:, None]

    def units(self, hidden, states, actions) -> Float[Array, "N F"]:
        """Hidden units at each row, which all outputs share: the gradient of the first output in its weights."""
        zero = jnp.zeros(self.size)
        row = jax.vmap(jax.grad(lambda w, x, u: self.change(w, hidden)(x, u)[0]), in_axes=(None, 0, 0))
        return row(zero, states, actions)[:, :: len(self.model.state)]

    def _residual(self):
        state, action = self.model.state, self.model.action
        return residual(NAME, state, action, width=self.width, depth=self.depth, learned=True)

    def _shape(self) -> tuple[int, ...]:
        """Shape of the user's features."""
        outputs = len(self.model.state)
        assert self.features is not None
        shapes = jax.eval_shape(self.features, jnp.zeros(outputs), jnp.zeros(len(self.model.action)))
        shape = getattr(shapes, "shape", ())
        if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != outputs):
            raise ValueError(
                f"FunctionSpaceVI: features(state, action) must be (F,), or (D, P) with D = {outputs} "
                f"({', '.join(self.model.state.names)}); got shape {shape}."
            )
        return shape


def original(model) -> Dynamics:
    """The model that a network replaces; any other model itself."""
    return model.program.model if isinstance(model, Dynamics) and isinstance(model.program, Network) else model


def to_dynamics(program: Network) -> Dynamics:
    """The network as Dynamics, with its model's spaces, step and process noise."""
    model = program.model
    return Dynamics(program, model.state, model.action, dt=model.dt, process_noise=model.noise.prior)
