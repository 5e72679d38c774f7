"""A Posterior as an xarray DataTree with the groups, coordinates and units that ArviZ users expect."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer import log_likelihood

from physppl.data.data import Data
from physppl.density.unconstrained import latent_trace
from physppl.dynamics import Dynamics
from physppl.dynamics.sensors import GAIN, MEASUREMENT, OFFSETS, TIMING
from physppl.internal.errors import Status
from physppl.language.noise import PROCESS as NOISE
from physppl.language.program import UnitTable
from physppl.posterior.verdict import Check


def datatree(key, posterior, draws: int, verdict: Check, predictive: bool):
    """Groups posterior, prior, log_likelihood, observed_data; of a sampler sample_stats; posterior_predictive."""
    from arviz_base import from_dict

    draw_key, prior_key, replicate_key = jax.random.split(key, 3)
    with jax.enable_x64(True):
        samples = posterior.samples(draw_key, draws, group_by_chain=True)
        prior = _prior(prior_key, posterior, list(samples), draws)
        observed = _observed(posterior)
        likelihood = _pointwise(posterior, samples, observed)
    groups = {
        "posterior": samples,
        "prior": {k: v[None] for k, v in prior.items()},
        "log_likelihood": likelihood,
        "observed_data": {k: _rows(site["value"], site, 0) for k, site in observed.items()},
    }
    if predictive:
        with jax.enable_x64(True):
            groups["posterior_predictive"] = _replicated(replicate_key, posterior, samples, observed)
    if stats := posterior.sample_stats():
        groups["sample_stats"] = stats
    coords, dims = _coordinates(posterior, samples)
    groups = {g: {_plain(k): np.asarray(v) for k, v in values.items()} for g, values in groups.items()}
    tree = from_dict(groups, coords=coords, dims=dims)
    if isinstance(posterior.data, Data) and (coordinates := posterior.data.coordinates()):
        row_coords = {name: (posterior.data.row, values) for name, values in coordinates.items()}
        for group in {"log_likelihood", "observed_data", "posterior_predictive"} & set(groups):
            tree[group] = tree[group].to_dataset().assign_coords(row_coords)
    units = site_units(posterior)
    for group in ("posterior", "prior"):
        for name in map(str, tree[group].data_vars):
            tree[group][name].attrs["units"] = units.get(name, "")
    status = Status(int(posterior.status)).name
    tree.attrs |= {"backend": posterior.method, "model": str(posterior.model), "status": status} | posterior.facts()
    if posterior.timing is not None:
        tree.attrs |= {"fit_seconds": posterior.timing.seconds, "compile_seconds": posterior.timing.compiling}
    tree.attrs |= {"check": verdict.verdict, "check_reasons": "\n".join(map(str, verdict.reasons))}
    tree.attrs |= {f"check_{name}": value for name, value in verdict.figures.items()}
    return tree


def pointwise(posterior, samples) -> dict[str, np.ndarray]:
    """{observed site: log likelihoods (chains, draws, rows that count)} at samples that are grouped by chain."""
    with jax.enable_x64(True):
        return _pointwise(posterior, samples, _observed(posterior))


def _pointwise(posterior, samples, observed) -> dict[str, np.ndarray]:
    chains = next(iter(samples.values())).shape[:2]
    flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in samples.items()}
    model = handlers.substitute(posterior.model, data=posterior.params)
    values = jax.jit(lambda s: log_likelihood(model, s, posterior.data, parallel=True))(flat)
    return {k: _rows(v, observed[k], 1).reshape(*chains, -1) for k, v in values.items()}


def _replicated(key, posterior, samples, observed) -> dict[str, np.ndarray]:
    """{observed site: outcomes (chains, draws, rows that count, ...) drawn at each sample}.

    They are drawn from the terms of the likelihood: of recordings each reading given those before it.
    """
    chains = next(iter(samples.values())).shape[:2]
    flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in samples.items()}

    def draw(key_and_sites):
        key, sites = key_and_sites
        model = handlers.substitute(handlers.seed(posterior.model, key), data=sites | posterior.params)
        trace = handlers.trace(model).get_trace(posterior.data)
        return {name: trace[name]["fn"].sample(jax.random.fold_in(key, i)) for i, name in enumerate(observed)}

    keys = jax.random.split(key, chains[0] * chains[1])
    values = jax.jit(lambda keys, sites: jax.lax.map(draw, (keys, sites), batch_size=32))(keys, flat)
    rows = {k: _rows(v, observed[k], 1) for k, v in values.items()}
    return {k: v.reshape(*chains, *v.shape[1:]) for k, v in rows.items()}


def site_units(posterior) -> dict[str, str]:
    """{site: unit} as the program declares them; of the process noise the units of the coordinates."""
    table: dict[str, str] = {}
    with jax.enable_x64(True), UnitTable(table):  # the data are in double precision
        jax.eval_shape(lambda k: (latent_trace(k, posterior.model, posterior.data), 0)[1], jax.random.key(0))
    return {_plain(k): v for k, v in table.items()}


def _plain(name: str) -> str:
    """A site name without slashes, which a DataTree reserves for groups."""
    return name.replace("/", ".")


def _prior(key, posterior, names, draws: int):
    def draw(key):
        trace = latent_trace(key, posterior.model, posterior.data, values=posterior.params)
        return {name: trace[name]["value"] for name in names}

    return jax.jit(jax.vmap(draw))(jax.random.split(key, draws))


def _observed(posterior) -> dict[str, dict]:
    """{observed site: its value, a mask of the rows that count (batch shape), the axis of the transitions}."""
    axes = {}

    def run(key):
        trace = handlers.trace(handlers.seed(posterior.model, key)).get_trace(posterior.data)
        sites = {}
        for name, site in trace.items():
            if site["type"] != "sample" or not site["is_observed"]:
                continue
            fn, valid = site["fn"], True
            shape = fn.batch_shape
            dims = [f.dim for f in site["cond_indep_stack"] if f.name.split("/")[-1] == "transition"]
            axes[name] = len(shape) + dims[0] if dims else max(len(shape) - 1, 0)
            while isinstance(fn, dist.MaskedDistribution):
                fn, valid = fn.base_dist, valid & jnp.asarray(fn._mask)
            sites[name] = {"value": site["value"], "valid": jnp.broadcast_to(valid, shape)}
        return sites

    observed = jax.device_get(jax.jit(run)(jax.random.key(0)))
    return {name: site | {"axis": axes[name]} for name, site in observed.items()}


def _rows(values, site: dict, lead: int):
    """Values of the rows that count, machine after machine: (lead axes, rows, event axes)."""
    valid, axis = site["valid"], site["axis"]
    if valid.ndim > 1:
        values, valid = np.moveaxis(values, lead + axis, lead + valid.ndim - 1), np.moveaxis(valid, axis, -1)
    return np.asarray(values)[(slice(None),) * lead + (valid,)]


def _coordinates(posterior, samples):
    model = posterior.model
    if not isinstance(model, Dynamics):
        return {}, {}
    spaces = {"state": model.state, "sensor": model.sensing.space, "action": model.action}
    likelihood = model.likelihood(posterior.data)
    spaces |= {likelihood.axis: likelihood.space(model)}
    coords = {axis: list(space.names) for axis, space in spaces.items()}
    dims = {likelihood.site: [posterior.data.row, likelihood.axis]}
    named = {NOISE: "state", MEASUREMENT: "sensor", GAIN: "action", TIMING: "action", OFFSETS: "recording"}
    return coords, dims | {site: [axis] for site, axis in named.items() if site in samples}
