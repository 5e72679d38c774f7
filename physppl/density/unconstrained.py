"""NumPyro's unconstrained space of a model's sites, as one flat vector ("virtual space" in the SIM2GP paper).

Backends evaluate models here: the log prior and log likelihood at a point, and the Gaussian observations of which
curvature is the Fisher information.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import biject_to

from physppl.dynamics.instruments import RecordedNormal


class Gaussian(NamedTuple):
    """One observed Gaussian (with `df` Student-t) site: arrays that broadcast to the observation's shape."""

    mean: Array
    log_scale: Array
    value: Array
    root_weight: Array  # square root of each entry's weight, its mask times the plates' scale
    df: Array | None = None  # degrees of freedom of a Student-t
    bounds: tuple[Array, Array] | None = None  # between which each value lies, where it is known no better


class UnconstrainedSpace(eqx.Module):
    """The sites of a NumPyro model as a vector z of size P.

    Attributes:
        names: latent sites in order of appearance.
        shapes: of their unconstrained values.
        params: {`param` site: value} of sites without a prior, held at these values.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    params: dict[str, Array] = eqx.field(default_factory=dict)

    @staticmethod
    def of(model: Callable, *args, params: dict[str, Array] | None = None) -> "UnconstrainedSpace":
        """The space of a model's sites, found in one abstract run.

        Raises:
            ValueError: where nothing is latent, or a `param` site has neither a prior nor a value in `params`.
            NotImplementedError: for a discrete latent site.
        """
        names, shapes = [], []
        params = params or {}

        def run(key, args):
            trace = handlers.trace(handlers.seed(model, key)).get_trace(*args)
            for name, site in trace.items():
                if site["type"] == "param" and name not in params:
                    raise ValueError(
                        f"site {name!r} is a `param`: it has no prior. Make it a sample site, or fit with "
                        "NeuralLinear, which takes its value from the evidence."
                    )
                if site["type"] != "sample" or site["is_observed"]:
                    continue
                if site["fn"].support.is_discrete:
                    raise NotImplementedError(f"site {name!r} is discrete; marginalise it or make it continuous.")
                names.append(name)
                shapes.append(tuple(biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"]))))
            return jnp.zeros(())

        jax.eval_shape(run, jax.random.key(0), args)
        if not names:
            raise ValueError("the model has no latent site: there is nothing to infer.")
        return UnconstrainedSpace(tuple(names), tuple(shapes), params)

    def holding(self, params: dict[str, Array]) -> "UnconstrainedSpace":
        """The same space with these values of the `param` sites."""
        return UnconstrainedSpace(self.names, self.shapes, params)

    @property
    def size(self) -> int:
        return sum(math.prod(s) for s in self.shapes)

    def split(self, z: Float[Array, " P"]) -> dict[str, Array]:
        """{site: unconstrained value}."""
        parts, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            stop = start + math.prod(shape)
            parts[name] = z[start:stop].reshape(shape)
            start = stop
        return parts

    def where(self, chosen: Callable[[str], bool]) -> Bool[np.ndarray, " P"]:
        """Mask of the entries of the sites that are chosen by name."""
        return np.repeat([chosen(name) for name in self.names], [math.prod(shape) for shape in self.shapes])

    def trace(self, model: Callable, z: Float[Array, " P"], *args) -> dict[str, Any]:
        """The model's trace at z."""
        parts = self.split(z)

        def value(site):
            if site["type"] == "sample" and site["name"] in parts:
                return biject_to(site["fn"].support)(parts[site["name"]])
            return self.params.get(site["name"]) if site["type"] == "param" else None

        return handlers.trace(handlers.substitute(model, substitute_fn=value)).get_trace(*args)

    def sites(self, model: Callable, z: Float[Array, " P"], *args) -> dict[str, Array]:
        """{latent or `param` site: constrained value}."""
        trace = self.trace(*latent_part(model, z, *args))
        return {name: trace[name]["value"] for name in self.names} | self.params

    def values(self, model: Callable, z: Float[Array, " P"], *args) -> dict[str, Array]:
        """{latent or deterministic site: value}, as NumPyro reports samples."""
        trace = self.trace(*latent_part(model, z, *args))
        return {k: s["value"] for k, s in trace.items() if k in self.names or s["type"] == "deterministic"}

    def log_prior(self, model: Callable, z: Float[Array, " P"], *args) -> Float[Array, ""]:
        """Log density of z under the prior and under the observed sites that are not Gaussian."""
        trace = self.trace(*latent_part(model, z, *args))
        normal = gaussians(trace)
        prior, other = self.log_densities({k: site for k, site in trace.items() if k not in normal}, z)
        return prior + other

    def log_prior_alone(self, model: Callable, z: Float[Array, " P"], *args) -> Float[Array, ""]:
        """Log density of z under the prior."""
        return self.log_densities(self.trace(*latent_part(model, z, *args)), z)[0]

    def log_joint(self, model: Callable, z: Float[Array, " P"], *args) -> Float[Array, ""]:
        """Log density of z and the outcomes."""
        return sum(self.log_densities(self.trace(model, z, *args), z), jnp.zeros(()))

    def log_densities(self, trace: dict[str, Any], z: Float[Array, " P"]) -> tuple[Array, Array]:
        """(log prior density of z, log likelihood) of a trace at z."""
        prior = likelihood = jnp.zeros((), z.dtype)
        parts = self.split(z)
        for name, site in trace.items():
            if site["type"] != "sample":
                continue
            density = site["fn"].log_prob(jnp.asarray(site["value"]))
            density = jnp.sum(density if site["scale"] is None else site["scale"] * density)
            if site["is_observed"]:
                likelihood = likelihood + density
            else:
                bijection = biject_to(site["fn"].support)
                prior = prior + density + jnp.sum(bijection.log_abs_det_jacobian(parts[name], site["value"]))
        return prior, likelihood

    def log_jacobian(self, model: Callable, z: Float[Array, " P"], *args) -> Float[Array, ""]:
        """Log determinant of the sites' constrained values with respect to z."""
        trace, parts = self.trace(*latent_part(model, z, *args)), self.split(z)
        each = [biject_to(trace[n]["fn"].support).log_abs_det_jacobian(parts[n], trace[n]["value"]) for n in self.names]
        return sum((jnp.sum(x) for x in each), jnp.zeros((), z.dtype))

    def point(self, model: Callable, values: dict[str, Array], *args) -> Float[Array, " P"]:
        """The vector at given values of the latent sites."""
        model, *args = latent_part(model, *args)
        return self.unconstrain(handlers.trace(handlers.substitute(model, values | self.params)).get_trace(*args))

    def unconstrain(self, trace: dict[str, Any]) -> Float[Array, " P"]:
        """The vector of a trace's latent values."""
        parts = [biject_to(trace[n]["fn"].support).inv(trace[n]["value"]).reshape(-1) for n in self.names]
        return jnp.concatenate(parts)

    def draw_prior(self, key: PRNGKeyArray, model: Callable, *args) -> Float[Array, " P"]:
        """One prior draw of z."""
        return self.unconstrain(latent_trace(key, model, *args, values=self.params))

    def prior_draws(self, key: PRNGKeyArray, count: int, model: Callable, *args) -> Float[Array, "count P"]:
        """Several prior draws of z."""
        return jax.vmap(lambda k: self.draw_prior(k, model, *args))(jax.random.split(key, count))


def latent_part(model: Callable, *args) -> tuple:
    """The cheapest (model, arguments) that visits every latent site: of a Dynamics, its sites without outcomes."""
    sites = getattr(model, "sites", None)
    return (model, *args) if sites is None else (partial(sites, args[-1] if args else None), *args[:-1])


def latent_trace(key: PRNGKeyArray, model: Callable, *args, values: dict[str, Array] | None = None) -> dict[str, Any]:
    """Trace of one run of the latent part of a model, with some sites at given values."""
    model, *args = latent_part(model, *args)
    run = handlers.substitute(handlers.seed(model, key), data=values or {})
    return handlers.trace(run).get_trace(*args)


def latent_shapes(model: Callable, *args) -> dict[str, tuple[int, ...]]:
    """{latent or `param` site: shape of its value}."""
    model, *args = latent_part(model, *args)
    shapes = {}

    def run(key, args):
        for name, site in latent_trace(key, model, *args).items():
            if site["type"] == "param" or (site["type"] == "sample" and not site["is_observed"]):
                shapes[name] = jnp.shape(site["value"])
        return jnp.zeros(())

    jax.eval_shape(run, jax.random.key(0), args)
    return shapes


def gaussians(trace: dict[str, Any]) -> dict[str, Gaussian]:
    """The observed sites of a trace that are Gaussian or Student-t."""
    observed = {k: _gaussian(site) for k, site in trace.items() if site["type"] == "sample" and site["is_observed"]}
    return {name: site for name, site in observed.items() if site is not None}


def _gaussian(site: dict[str, Any]) -> Gaussian | None:
    fn = site["fn"]
    scale = jnp.ones(()) if site["scale"] is None else jnp.asarray(site["scale"])
    root_weight = jnp.sqrt(jnp.reshape(scale, scale.shape + (1,) * fn.event_dim))
    while not isinstance(fn, dist.Normal | dist.StudentT):
        if isinstance(fn, dist.MaskedDistribution):
            root_weight = root_weight * jnp.reshape(fn._mask, jnp.shape(fn._mask) + (1,) * fn.event_dim)
        elif not isinstance(fn, dist.Independent | dist.ExpandedDistribution):
            return None
        fn = fn.base_dist
    df = jnp.asarray(fn.df) if isinstance(fn, dist.StudentT) else None
    bounds = fn.instrument.bounds(site["value"]) if isinstance(fn, RecordedNormal) else None
    return Gaussian(jnp.asarray(fn.loc), jnp.log(jnp.asarray(fn.scale)), site["value"], root_weight, df, bounds)
