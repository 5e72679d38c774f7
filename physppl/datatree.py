"""A Posterior as an xarray DataTree with the groups, coordinates and units that ArviZ users expect."""

import jax
import numpy as np
from numpyro import handlers
from numpyro.infer import log_likelihood

from physppl.dynamics import NOISE, Dynamics
from physppl.errors import Status
from physppl.program import unit_table
from physppl.transitions import Transitions


def datatree(key, posterior, draws: int):
    """Groups posterior, prior, log_likelihood, observed_data and, where something was sampled, sample_stats."""
    from arviz_base import from_dict

    draw_key, prior_key = jax.random.split(key)
    with jax.enable_x64(True):
        samples = posterior.samples(draw_key, draws, group_by_chain=True)
        flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in samples.items()}
        chains = next(iter(samples.values())).shape[:2]
        likelihood = jax.jit(lambda s: log_likelihood(posterior.model, s, posterior.data, parallel=True))(
            flat
        )
        prior = _prior(prior_key, posterior, draws)
    keep = _valid(posterior.data)
    groups = {
        "posterior": samples,
        "prior": {k: v[None] for k, v in prior.items()},
        "log_likelihood": {k: _kept(np.asarray(v), keep).reshape(*chains, -1) for k, v in likelihood.items()},
    }
    observed = _observed(posterior.data)
    if observed:
        groups["observed_data"] = observed
    if stats := posterior.sample_stats():
        groups["sample_stats"] = stats
    coords, dims = _coordinates(posterior, flat)
    groups = {g: {_plain(k): np.asarray(v) for k, v in values.items()} for g, values in groups.items()}
    tree = from_dict(groups, coords=coords, dims=dims)
    units = site_units(posterior)
    for group in ("posterior", "prior"):
        for name in tree[group].data_vars:
            tree[group][name].attrs["units"] = units.get(name, "")
    tree.attrs |= {
        "backend": type(posterior).__name__.removesuffix("Posterior"),
        "model": str(posterior.model),
    }
    tree.attrs |= {"status": Status(int(posterior.status)).name} | posterior.facts()
    return tree


def site_units(posterior) -> dict[str, str]:
    """{site: unit} as the program declares them; of the process noise the units of the coordinates."""
    model, args = (
        (posterior.model.sites, ())
        if hasattr(posterior.model, "sites")
        else (posterior.model, (posterior.data,))
    )
    with unit_table() as table:
        jax.eval_shape(lambda k: _run(model, k, args), jax.random.key(0))
    return {_plain(k): v for k, v in table.items()}


def _run(model, key, args):
    handlers.seed(model, key)(*args)
    return 0


def _plain(name: str) -> str:
    """A name without the slash, which a DataTree keeps for itself."""
    return name.replace("/", ".")


def _prior(key, posterior, draws: int):
    model, args = (
        (posterior.model.sites, ())
        if hasattr(posterior.model, "sites")
        else (posterior.model, (posterior.data,))
    )
    names = posterior.space.names

    def one(key):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(*args)
        return {name: trace[name]["value"] for name in names}

    return jax.jit(jax.vmap(one))(jax.random.split(key, draws))


def _valid(data):
    return np.asarray(data.valid) if isinstance(data, Transitions) else None


def _kept(values, keep):
    """(draws, rows): log likelihoods without padding."""
    if keep is None:
        return values.reshape(len(values), -1)
    if values.ndim > 2:  # a fleet: the transitions' plate stands left of the machines'
        values = np.moveaxis(values, 1, -1)
    return values[:, keep] if values.shape[1:] == keep.shape else values.reshape(len(values), -1)


def _observed(data):
    if not isinstance(data, Transitions) or data.next_states is None:
        return {}
    keep = _valid(data)
    return {"next_state": np.asarray(data.next_states)[keep]}


def _coordinates(posterior, samples):
    model = posterior.model
    if not isinstance(model, Dynamics):
        return {}, {}
    coords = {"state": list(model.state.names)}
    dims = {"next_state": ["transition"]}
    if NOISE in samples:
        dims[NOISE] = ["state"]
    return coords, dims
