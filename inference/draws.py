"""Posteriors represented by draws, and the import of NumPyro's MCMC runs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.density.curvature import scatter
from physppl.density.forms import DrawsForm, FoundModes
from physppl.density.unconstrained import UnconstrainedSpace, latent_shapes
from physppl.dynamics import Dynamics
from physppl.internal.errors import R_HAT_LIMIT, Status, closest
from physppl.internal.precision import doubles
from physppl.language.transition import Transition
from physppl.posterior.backend import prepared, raise_or_warn
from physppl.posterior.base import root_mean_square, with_fields
from physppl.posterior.posterior import Posterior

# {NumPyro's name of a per-draw diagnostic: ArviZ's}
STATS = {"diverging": "diverging", "num_steps": "n_steps", "accept_prob": "acceptance_rate", "energy": "energy"}
BASIS_DRAWS = 256  # draws from which `basis` computes mean and factor


class DrawsPosterior(Posterior):
    """Equally weighted draws in unconstrained space, the result of samplers and particle methods.

    Attributes:
        points: (chains, draws, P).
        stats: per-draw diagnostics of the sampler, (chains, draws) each.
        found: modes that the searches of its starts found, or None.
    """

    space: UnconstrainedSpace
    points: Float[Array, "C S P"]
    stats: dict[str, Array]
    found: FoundModes | None = eqx.field(default=None, kw_only=True)

    def __init__(
        self,
        model,
        data,
        space: UnconstrainedSpace,
        points,
        stats=None,
        status: Array | int = Status.OK,
        method="Draws",
        found: FoundModes | None = None,
    ):
        self.model, self.data, self.space, self.points, self.stats = model, data, space, points, stats or {}
        self.method, self.found = method, found
        finite = jnp.all(jnp.isfinite(points))
        self.status = jnp.where(finite, jnp.asarray(status), Status.NONFINITE)

    def sample_stats(self) -> dict[str, Array]:
        return self.stats

    def unconstrained(self) -> DrawsForm:
        return DrawsForm(self.space, self.points, self.found)

    def about(self, model, data, form: Any) -> "DrawsPosterior":
        return with_fields(self, model=model, data=data, space=form.space, points=form.points)

    def _transition(self, z) -> Transition:
        return self.model.bind(self.space.sites(self.model, z, self.data))

    def _thinned(self):
        """Subset of at most BASIS_DRAWS draws, evenly spaced over all chains."""
        flat = self.points.reshape(-1, self.points.shape[-1])
        return flat[jnp.linspace(0, len(flat) - 1, min(BASIS_DRAWS, len(flat))).round().astype(int)]

    def _draw(self, key: PRNGKeyArray) -> Transition:
        pick_key, recording_key = jax.random.split(key)
        flat = self.points.reshape(-1, self.points.shape[-1])
        return self._in_new_recording(recording_key, flat[jax.random.randint(pick_key, (), 0, len(flat))])

    def _in_new_recording(self, key: PRNGKeyArray, z) -> Transition:
        """Transition in a new recording, whose parameters vary by the model's `variation`, if it has one."""
        sd = scatter(self.space, self.model, self.data, z)
        return self._transition(z + sd * jax.random.normal(key, z.shape, z.dtype))

    def _basis(self, states, actions, times):
        points = self._thinned()
        transitions = jax.vmap(self._in_new_recording)(jax.random.split(jax.random.key(0), len(points)), points)
        values = jax.vmap(lambda f: jax.vmap(f)(states, actions, times), out_axes=-1)(transitions)
        mean = jnp.mean(values, axis=-1, keepdims=True)
        return mean[..., 0], (values - mean) / jnp.sqrt(values.shape[-1] - 1.0)

    def _samples(self, key: PRNGKeyArray, draws: int):
        """The draws themselves; `key` and `draws` do not change them."""
        del key, draws
        return jax.vmap(jax.vmap(lambda z: self.space.values(self.model, z, self.data)))(self.points)

    def _noise(self) -> Array:
        return root_mean_square(self._noises())

    def _noises(self) -> Float[Array, "K D"]:
        if self.model.knows_noise:
            return self._transition(self.points[0, 0]).noise[None]
        return jax.vmap(lambda z: self._transition(z).noise)(self._thinned())


def chain_status(points: Float[Array, "C S P"], stats: dict[str, Array]) -> Array:
    """Status of MCMC chains: divergences in more than 1 % of transitions, or chains that have not mixed."""
    divergent = jnp.mean(stats.get("diverging", jnp.zeros(()))) > 0.01
    status = jnp.where(divergent, Status.DIVERGENCES, Status.OK)
    moved = jnp.all(jnp.ptp(points, axis=1) > 0)  # else R-hat is not a number, or rounding
    return jnp.where(moved & (jnp.max(split_r_hat(points)) <= R_HAT_LIMIT), status, Status.NOT_MIXED)


def split_r_hat(points: Float[Array, "C S P"]) -> Float[Array, " P"]:
    """Potential scale reduction of half chains (A. Gelman et al., Bayesian Data Analysis, 3rd ed., section 11.4).

    ArviZ's rank-normalised version, on the exported draws, is more sensitive.
    """
    chains, draws, size = points.shape
    halves = points[:, : draws // 2 * 2].reshape(2 * chains, draws // 2, size)
    within = jnp.mean(jnp.var(halves, axis=1, ddof=1), axis=0)
    between = jnp.var(jnp.mean(halves, axis=1), axis=0, ddof=1)
    return jnp.sqrt(1.0 - 2.0 / draws + between / within)


def from_numpyro(mcmc, model=None, data=None) -> DrawsPosterior:
    """Posterior from a finished run of NumPyro's `MCMC`, with the same warnings as a fit with `HMC`.

    Args:
        mcmc: after `mcmc.run(key, data)`. Its `extra_fields`, such as "num_steps" and "energy", become sample_stats.
        model: a Dynamics whose sites have the names and units of the run's; by default the model that was run. Sites
            that the run has besides are integrated out.
        data: Transitions or Trajectories; by default what the run was given, where that was one object.

    Raises:
        TypeError: for anything but an `MCMC`.
        ValueError: for one that has not run; for draws that do not fit the model's sites; where `data` are missing.
        KeyError: for sites of the model that the run has not, with close matches.
    """
    if not hasattr(mcmc, "get_samples") or not hasattr(mcmc, "sampler"):
        raise TypeError(f"from_numpyro takes a numpyro.infer.MCMC that has run; got {type(mcmc).__name__}.")
    if mcmc.last_state is None:
        raise ValueError("from_numpyro: this MCMC has no draws yet; call mcmc.run(key, data) first.")
    if model is None:
        model = getattr(mcmc.sampler, "model", None)
        if model is None:
            raise ValueError("from_numpyro: the sampler was built from a potential_fn; pass the model it samples.")
    if data is None:
        arguments = getattr(mcmc, "_args", ())
        if len(arguments) != 1:
            got = f"the run had {len(arguments)} arguments"
            raise ValueError(f"from_numpyro: {got}; pass the data= that the model takes.")
        data = arguments[0]
    if isinstance(model, Dynamics):
        data = prepared(model, data)
    samples = mcmc.get_samples(group_by_chain=True)
    with jax.enable_x64(True):
        samples, data = doubles((dict(samples), data))
        space = UnconstrainedSpace.of(model, data)
        points = _checked_points(space, model, data, samples)
        fields = mcmc.get_extra_fields(group_by_chain=True)
        stats = {arviz_name: jnp.asarray(fields[name]) for name, arviz_name in STATS.items() if name in fields}
        if "potential_energy" in fields:
            stats["lp"] = -jnp.asarray(fields["potential_energy"], float)
        name = f"NumPyro {type(mcmc.sampler).__name__}"
        posterior = DrawsPosterior(model, data, space, points, stats, chain_status(points, stats), name)
    raise_or_warn(posterior, name)
    return posterior


def unconstrained(space: UnconstrainedSpace, model, data, samples: dict[str, Array]) -> Float[Array, "C S P"]:
    """Points of unconstrained space for draws (C, S, ...) of the model's sites."""
    return jax.vmap(jax.vmap(lambda sites: space.point(model, sites, data)))(samples)


def _checked_points(space: UnconstrainedSpace, model, data, samples: dict[str, Array]) -> Float[Array, "C S P"]:
    """Points of unconstrained space for draws of another run; errors where these do not fit the model."""
    if missing := [name for name in space.names if name not in samples]:
        raise KeyError(
            f"from_numpyro: the run has no draws of {', '.join(map(repr, missing))}.{closest(missing[0], samples)}"
        )
    samples, shapes = {name: samples[name] for name in space.names}, latent_shapes(model, data)
    for name, values in samples.items():
        if values.shape[2:] != shapes[name]:
            raise ValueError(
                f"from_numpyro: {name!r} has shape {shapes[name]} in the model; a draw of the run has "
                f"{values.shape[2:]}."
            )
    points = jax.jit(lambda samples: unconstrained(space, model, data, samples))(samples)
    if not np.isfinite(points).all():
        nonfinite = ~np.isfinite(points).all(axis=(0, 1))
        names = [name for name in space.names if np.any(nonfinite & space.where(name.__eq__))]
        raise ValueError(
            f"from_numpyro: draws of {', '.join(names)} are not finite, or lie outside the support of the model's "
            "priors."
        )
    return points
