"""Sites of a program: physical parameters and the residuals that physics leaves."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints, transforms

from physppl.errors import is_concrete
from physppl.integrate import StepResidual
from physppl.spaces import ActionSpace, StateSpace
from physppl.units import UNITLESS, parse


def physical(name: str, low, high=None, *, loc=0.0, scale=1.0, unit: str = UNITLESS) -> Array:
    """A physical parameter: a NumPyro sample site with a unit.

    `physical("mass", 0.1, 2.0, unit="kg")` is low + (high - low) sigmoid(z), z ~ Normal(loc, scale): a Gaussian
    belief in virtual space between hard bounds (J. Watson et al., "Tractable Bayesian Dynamics Priors from
    Differentiable Physics", with the range mended to high - low). `loc` and `scale` may be sites themselves, for
    hierarchies. `physical("damping", dist.HalfNormal(0.1), unit="N m s/rad")` takes any NumPyro prior.

    Args:
        low: lower bound, in `unit`; or a NumPyro distribution, and then no `high`.
        high: upper bound, in `unit`.
        loc, scale: mean and sd of z, unitless.

    Raises:
        ValueError: for low >= high or bounds that are not finite; for a unit pint does not know.
    """
    parse(unit, f"physical({name!r})")
    if isinstance(low, dist.Distribution):
        if high is not None:
            raise ValueError(
                f"physical({name!r}): give a distribution or two bounds; got a distribution and high={high}."
            )
        prior = low
    else:
        prior = bounded(low, high, loc, scale, name)
    return numpyro.sample(name, prior, infer={"physppl": {"unit": unit}})


def bounded(low, high, loc=0.0, scale=1.0, name: str = "site") -> dist.Distribution:
    """The distribution of low + (high - low) sigmoid(Normal(loc, scale))."""
    if high is None:
        raise ValueError(f"physical({name!r}): needs low and high, or a NumPyro distribution; got low={low!r} alone.")
    if is_concrete(low, high) and not (np.all(np.isfinite(low)) and np.all(np.isfinite(high)) and np.all(low < high)):
        raise ValueError(f"physical({name!r}): needs finite low < high; got low={low}, high={high}.")
    to_bounds = transforms.AffineTransform(low, high - low, domain=constraints.unit_interval)
    return dist.TransformedDistribution(dist.Normal(loc, scale), [transforms.SigmoidTransform(), to_bounds])


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
) -> Callable[[Array, Array], Array]:
    """A neural residual: one more site, standard Normal in its weights.

    The network is tanh layers on `state.features` (sine and cosine of angles) and actions in [-1, 1]; its output is
    in units of the state's scales. Add it to the field, `physics(t, x, u) + residual(x, u)` (per second then), or to
    the integrated step with `step_residual`.

    Args:
        width, depth: of the hidden layers.
        weights: "last" samples the output layer over fixed random features; "all" every weight and bias.
        scale: prior sd of the output, in units of the coordinate's scale.
        frequency: sd of the first layer's pre-activations; larger means rougher functions.
        seed: of the fixed features; not random inference state.

    Returns:
        residual(state (D,), action (A,)) -> (D,).
    """
    if weights not in ("last", "all"):
        raise ValueError(f"residual({name!r}): weights must be 'last' or 'all'; got {weights!r}.")
    if width < 1 or depth < 1:
        raise ValueError(f"residual({name!r}): width and depth must be at least 1; got {width} and {depth}.")
    sizes = [state.feature_size + len(action), *[width] * depth, len(state)]
    shapes = [shape for fan_in, out in zip(sizes[:-1], sizes[1:], strict=True) for shape in ((fan_in, out), (out,))]
    shapes = shapes[:-1]  # no output bias: the prior mean of the residual is the physics
    sds = [frequency / np.sqrt(sizes[0]), frequency] + [
        1.5 / np.sqrt(s[0]) if len(s) == 2 else 0.1 for s in shapes[2:-1]
    ]
    generator = np.random.default_rng(seed)
    hidden = [sd * generator.standard_normal(s) for sd, s in zip(sds, shapes[:-1], strict=True)]
    amplitude = scale * state.scale

    sampled = shapes if weights == "all" else shapes[-1:]
    count = sum(int(np.prod(s)) for s in sampled)
    flat = numpyro.sample(name, dist.Normal(0.0, 1.0).expand([count]).to_event(1))
    parts = jnp.split(flat, np.cumsum([int(np.prod(s)) for s in sampled])[:-1], axis=-1)
    parts = [p.reshape((*p.shape[:-1], *s)) for p, s in zip(parts, sampled, strict=True)]
    layers = [sd * p for sd, p in zip(sds, parts[:-1], strict=True)] if weights == "all" else hidden
    last = parts[-1] / np.sqrt(width)

    def function(x: Array, u: Array) -> Array:
        h = jnp.concatenate([state.features(x), action.normalise(u)])
        for matrix, bias in zip(layers[::2], layers[1::2], strict=True):
            h = jnp.tanh(h @ matrix + bias)
        return amplitude * (h @ last)

    return function


def step_residual(physics, residual: Callable[[Array, Array], Array]) -> StepResidual:
    """Physics integrated over one step, plus a residual of (state, action): linear in a last layer.

    The residual model of the SIM2GP paper (its Eq. 3). In the field a residual passes the integrator's stages and is
    no longer linear; here it is, and it costs one network call a step.
    """
    return StepResidual(physics, residual)
