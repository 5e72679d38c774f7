"""Neural residuals: corrections to the physics, as one more site of the program."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from physppl.data.spaces import ActionSpace, StateSpace
from physppl.language.integrate import StepResidual


def residual(
    name: str,
    state: StateSpace,
    action: ActionSpace,
    *,
    width: int = 64,
    depth: int = 2,
    weights: str = "last",
    scale: float = 0.1,
    frequency: float = 1.0,
    seed: int = 0,
    learned: bool = False,
) -> Callable[[Array, Array], Array]:
    """Neural residual: one site, standard Normal in its weights (Normal where their prior sds are learned).

    The network is tanh layers on `state.features` (sine and cosine of angles) and actions in [-1, 1]; its output is
    in units of the state's scales. Add it to the field, `physics(t, x, u) + residual(x, u)` (per second then), or to
    the integrated step with `step_residual`.

    Args:
        width, depth: of the hidden layers.
        weights: "last" samples the output layer over fixed random features; "all" every weight and bias.
        scale: prior sd of the output over typical inputs, in units of the coordinate's scale.
        frequency: sd of the first layer's pre-activations; larger means rougher functions.
        seed: of the fixed random features; not part of inference.
        learned: make what has no prior a `param` site, whose value maximises the evidence. With "last" weights
            these are the hidden layers and the prior sd of the output, "NAME.features" and "NAME.scale", for
            `NeuralLinear`, which starts them at random and at `scale`. With "all" weights it is "NAME.scale", the prior
            sds of each matrix and bias in turn and of the output, for `StructuredLaplace`.

    Returns:
        residual(state (D,), action (A,)) -> (D,).

    Raises:
        ValueError: for a width, depth or choice of weights that does not exist.
    """
    if weights not in ("last", "all"):
        raise ValueError(f"residual({name!r}): weights must be 'last' or 'all'; got {weights!r}.")
    if width < 1 or depth < 1:
        raise ValueError(f"residual({name!r}): width and depth must be at least 1; got {width} and {depth}.")
    network = _network(state, action, width, depth, frequency, seed)
    shapes = network.shapes if weights == "all" else network.shapes[-1:]
    sizes = [math.prod(shape) for shape in shapes]
    prior, sd = dist.Normal(0.0, 1.0).expand([sum(sizes)]), scale
    if learned and weights == "all":
        start = jnp.ones(len(sizes)).at[-1].set(scale)
        sds = jnp.asarray(numpyro.param(f"{name}.scale", start, constraint=dist.constraints.positive))
        prior, sd = dist.Normal(0.0, sds[np.repeat(np.arange(len(sizes)), sizes)]), 1.0
    flat = jnp.asarray(numpyro.sample(name, prior.to_event(1)))
    parts = _split(flat, shapes)
    if learned and weights == "last":
        parts[:0] = _split(numpyro.param(f"{name}.features", network.draw), network.shapes[:-1])
        sd = numpyro.param(f"{name}.scale", jnp.asarray(scale), constraint=dist.constraints.positive)
    sampled = [layer_sd * part for layer_sd, part in zip(network.sds, parts[:-1], strict=False)]
    hidden = sampled or [jnp.asarray(layer, flat.dtype) for layer in network.fixed]  # at the precision of this trace
    last = parts[-1] / network.norm
    amplitude = jnp.asarray(sd) * state.scale

    def function(x: Array, u: Array) -> Array:
        return jnp.asarray(amplitude) * (
            _hidden_units(jnp.concatenate([state.features(x), action.normalise(u)]), hidden) @ last
        )

    return function


def step_residual(physics, residual: Callable[[Array, Array], Array]) -> StepResidual:
    """Physics integrated over one step, plus a residual of (state, action): linear in the last layer's weights.

    The residual model of the SIM2GP paper (its Eq. 3). A residual in the field passes the integrator's stages and
    is no longer linear; this one is, and it costs one network call a step.
    """
    return StepResidual(physics, residual)


class _Layers(NamedTuple):
    shapes: list[tuple[int, ...]]  # matrix, bias, ..., output matrix; no output bias: the prior mean is the physics
    sds: list[float]  # of the hidden matrices and biases
    fixed: list[np.ndarray]  # one random draw of these
    norm: float  # sd of the outputs under unit weights, over typical inputs

    def draw(self, key) -> Array:
        """Random hidden layers, flat, in units of their sds."""
        return jax.random.normal(key, (sum(math.prod(shape) for shape in self.shapes[:-1]),))


def _split(flat, shapes) -> list[Array]:
    """Split a flat vector (..., n) into arrays of these shapes."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = jnp.split(jnp.asarray(flat), np.cumsum(sizes)[:-1], axis=-1)
    return [part.reshape((*part.shape[:-1], *shape)) for part, shape in zip(parts, shapes, strict=True)]


@functools.cache  # programs run at every trace
def _network(state: StateSpace, action: ActionSpace, width: int, depth: int, frequency: float, seed: int) -> _Layers:
    inputs = state.feature_size + len(action)
    sizes = [inputs, *[width] * depth]
    shapes = [shape for pair in zip(sizes[:-1], sizes[1:], strict=True) for shape in (pair, pair[1:])]
    sds = [frequency / np.sqrt(inputs), frequency] + [1.5 / np.sqrt(width), 0.1] * (depth - 1)
    generator = np.random.default_rng(seed)
    fixed = [sd * generator.standard_normal(shape) for sd, shape in zip(sds, shapes, strict=True)]
    typical = []  # angles on the whole circle, other coordinates of unit scale, actions in their whole range
    for is_angle in state.is_angle:
        angle = generator.uniform(-np.pi, np.pi, 1000)
        typical += [np.sin(angle), np.cos(angle)] if is_angle else [generator.standard_normal(1000)]
    units = _hidden_units(np.column_stack([*typical, generator.uniform(-1, 1, (1000, len(action)))]), fixed)
    norm = np.sqrt(np.mean(np.sum(np.asarray(units) ** 2, axis=1)))
    return _Layers([*shapes, (width, len(state))], sds, fixed, float(norm))


def _hidden_units(inputs, layers):
    xp = np if isinstance(inputs, np.ndarray) else jnp
    for matrix, bias in zip(layers[::2], layers[1::2], strict=True):
        inputs = xp.tanh(inputs @ matrix + bias)
    return inputs
