"""Identifiability of combinations of parameters: posterior against prior covariance in unconstrained space."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from numpyro import handlers

from physppl.density.forms import DrawsForm, Form
from physppl.density.moments import information, prior
from physppl.density.unconstrained import UnconstrainedSpace, latent_trace
from physppl.dynamics import Dynamics
from physppl.dynamics.sensors import DELAY, of_program
from physppl.internal.errors import unknown
from physppl.internal.tables import aligned, number
from physppl.internal.units import pretty
from physppl.posterior.arviz import site_units
from physppl.posterior.base import AbstractPosterior
from physppl.posterior.combinations import compare
from physppl.posterior.summary import EXPANDED, INFORMED, amount, labels

DETERMINED = 0.1  # of the prior's variance: less remains of a combination that the data determine
UNDETERMINED = INFORMED**2  # more remains of one that they do not
SHARED = (
    0.25  # of a parameter's variance: less remains of one whose share network weights could explain, at known weights
)
UNUSED = 1e-5  # noise sds: a parameter that moves all predictions by less than this, together, moves none
SMALLEST = 0.1  # entry of a unit vector that is printed
SHOWN = 12  # combinations that a report lists, and parameters
TERMS = 4  # of a combination in words


@dataclass(frozen=True, repr=False)
class Identifiability:
    """A report on P parameters; print it. Entries of vector sites are parameters of their own.

    Attributes:
        header: model, data, and point of the report.
        names: (P,), of the parameters.
        units: (P,), of the parameters.
        values: (P,) at the point of the report, in the parameters' units.
        sds: (P,) after the data, in the parameters' units, to first order.
        eigenvalues: (P,) variance after the data over variance before, of each combination, ascending:
            0 is determined, 1 is untouched.
        directions: (P, P), one combination a row, of unit length, in units of the parameters' prior sds in
            unconstrained space. The combinations are uncorrelated before the data and after them.
        contraction: (P,) 1 - variance after / variance before, of each parameter in unconstrained space.
        sensitivity: (P,) how far all predictions move together, in noise sds, when one parameter alone moves by one
            prior sd.
        held: (P,) variance of each parameter if the weights that are integrated out were known, over its variance.
        marginalised: sites that are integrated out instead of reported: noise, and weights (long vectors).
    """

    header: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    values: np.ndarray
    sds: np.ndarray
    eigenvalues: np.ndarray
    directions: np.ndarray
    contraction: np.ndarray
    sensitivity: np.ndarray
    held: np.ndarray
    marginalised: tuple[str, ...]

    @property
    def unused(self) -> tuple[str, ...]:
        """Parameters on which no prediction depends."""
        return tuple(name for name, s in zip(self.names, self.sensitivity, strict=True) if s < UNUSED)

    def members(self, index: int) -> list[int]:
        """The parameters of a combination, largest entries first; small entries are left out."""
        row = np.abs(self.directions[index]).round(6)  # equal entries stay in the program's order
        return [int(i) for i in np.argsort(-row, kind="stable") if row[i] >= SMALLEST]

    def combination(self, index: int) -> str:
        """The largest members of a combination in words, e.g. '+0.71 mass -0.70 length'."""
        terms = [f"{self.directions[index, i]:+.2f} {self.names[i]}" for i in self.members(index)]
        return " ".join(terms[:TERMS]) + (f" and {len(terms) - TERMS} more" if len(terms) > TERMS else "")

    def __str__(self) -> str:
        size = len(self.names)
        determined, untouched = (self.eigenvalues < DETERMINED).sum(), (self.eigenvalues > UNDETERMINED).sum()
        text = f"{determined} of {size} combinations determined, {untouched} not"
        if self.marginalised:
            text += f"; integrated out: {', '.join(self.marginalised)}"
        listed = [*range(size)] if size <= SHOWN else [*range(SHOWN // 2), *range(size - SHOWN // 2, size)]
        if len(listed) < size:
            text += f"; the {SHOWN // 2} most and least determined:"
        combinations = [["variance left", "combination, in prior sds of unconstrained space"]]
        combinations += [[f"{self.eigenvalues[i]:.3g}", self.combination(i)] for i in listed]
        parameters = [["parameter", "value", "sd", "unit", "contraction", "sensitivity", "verdict"]]
        for i, name in list(enumerate(self.names))[:SHOWN]:
            figures = [number(self.values[i].item(), self.sds[i].item()), f"{self.sds[i]:.2g}", pretty(self.units[i])]
            measures = [f"{self.contraction[i]:.3f}", f"{self.sensitivity[i]:.3g}", self.verdict(i)]
            parameters.append([name, *figures, *measures])
        tables = [*aligned(combinations, {1}), "", *aligned(parameters, {0, 3, 6})]
        if size > SHOWN:
            tables.append(f"... and {size - SHOWN} more; `.names`, `.contraction` and `.directions` have all of them")
        return "\n".join([self.header, text, "", *tables])

    __repr__ = __str__

    def verdict(self, index: int) -> str:
        """Verdict on one parameter, in words."""
        left = 1 - self.contraction[index]
        if self.names[index] in self.unused:
            return "no prediction depends on it"
        if self.held[index] < SHARED:
            return "shared with the weights"
        if left > UNDETERMINED:  # alone it would keep 1 / (1 + sensitivity^2) of its variance
            confounded = 1 / (1 + self.sensitivity[index] ** 2) < DETERMINED
            return "confounded with others" if confounded else "the data say little"
        return "determined" if left < DETERMINED else "in part"


def identifiability(
    model: Dynamics | AbstractPosterior, data=None, *, at: dict[str, Any] | None = None
) -> Identifiability:
    """Report which combinations of parameters data determine, before a fit or after one.

    Generalised eigenvalues of the covariance after the data against the one before, in unconstrained space. Before a
    fit the data enter by their Fisher information at one point, so that a design without outcomes suffices; after a
    Laplace fit likewise at its mode. In both cases a direction without information in the data has eigenvalue 1 to
    rounding, whatever the prior. A posterior held as draws enters by their covariance, known to within
    sqrt(2 / effective draws).

    Args:
        model: a Dynamics, with data; or a Posterior, alone.
        data: Transitions or Trajectories, recorded or planned: outcomes are not needed. (Without readings a filter
            follows simulated ones.)
        at: {site: value} of the point, in the sites' units; for sites that are not named, and by default for all, the
            median of the prior in unconstrained space.

    Raises:
        TypeError: for anything else.
        ValueError: for data that do not fit the model; for a value outside its site's bounds.
        KeyError: for a value of a site that the model has not, with close matches.
    """
    if isinstance(model, AbstractPosterior):
        if data is not None or at is not None:
            raise TypeError("identifiability(posterior) takes no data and no point: it has its own.")
        if (form := model.unconstrained()) is None:
            raise TypeError(
                f"identifiability needs a Gaussian or draws in unconstrained space, which {model.method} does not keep."
            )
        with jax.enable_x64(True):
            return _after(model, form)
    if not isinstance(model, Dynamics) or data is None:
        got = f"{type(model).__name__}{' without data' if data is None else ''}"
        raise TypeError(f"identifiability takes a Dynamics and data, or a Posterior alone; got {got}.")
    with jax.enable_x64(True):
        planned = data.outcomes is None
        data = _design(model, data)
        space = UnconstrainedSpace.of(model, data)
        median, before = prior(space, model, data)
        z = jnp.asarray(median) if at is None else _point(space, model, data, median, at)
        data = _simulated(model, data, space.sites(model, z, data)) if planned else data
        fisher = information(space, model, data, z)
        place = "before a fit, at the prior's median" if at is None else "before a fit, at given values"
        return _report(space, model, data, z, fisher, before, place)


def _after(posterior, form: Form) -> Identifiability:
    space, model, data = form.space, posterior.model, posterior.data
    z, covariance = form.moments()
    fisher, before = information(space, model, data, z), prior(space, model, data)[1]
    of_draws = np.asarray(covariance) if isinstance(form, DrawsForm) else None
    return _report(space, model, data, z, fisher, before, f"after {posterior.method}", of_draws)


def _updated(before: np.ndarray, fisher) -> np.ndarray:
    """Covariance of a Gaussian after data with this Fisher information; exactly `before` where that is zero."""
    lower = np.linalg.cholesky(before)
    gain, vectors = np.linalg.eigh(lower.T @ np.asarray(fisher) @ lower)
    # With before = L L' and L' F L = V diag(g) V', the covariance after is L V diag(1 / (1 + g)) V' L'. An exact
    # Hessian, of a likelihood that is not Gaussian, may have g < 0 away from the mode: it counts as no information.
    factor = lower @ vectors / np.sqrt(1 + np.maximum(gain, 0.0))
    return factor @ factor.T


def _design(model: Dynamics, data):
    """Data as in a fit: checked, padded, in double precision; outcomes are simulated where there are none."""
    model.check(data)
    data = data.bucketed(model.dt)
    data = jax.tree.map(lambda x: jnp.asarray(x, float if np.asarray(x).dtype.kind == "f" else None), data)
    return data if data.outcomes is not None else _simulated(model, data, {})


def _simulated(model: Dynamics, data, sites):
    """The same inputs with outcomes drawn from the model, which a filter needs."""
    run = handlers.substitute(handlers.seed(model, jax.random.key(0)), data=sites)
    return data.with_outcomes(handlers.trace(run).get_trace(data.inputs)[model.likelihood(data).site]["value"])


def _point(space: UnconstrainedSpace, model, data, median, at: dict[str, Any]):
    """The point of unconstrained space at given site values, at the median elsewhere."""
    values = dict(space.sites(model, jnp.asarray(median), data))
    for name, value in at.items():
        if name not in values:
            raise unknown("site", name, values, "identifiability(at=...)")
        values[name] = jnp.broadcast_to(jnp.asarray(value, float), values[name].shape)
    trace = latent_trace(jax.random.key(0), model, data, values=values)
    for name in at:
        if not np.all(trace[name]["fn"].support(values[name])):
            raise ValueError(f"identifiability(at=...): {name} = {at[name]} is outside its prior's bounds.")
    return space.unconstrain(trace)


def parameters(space: UnconstrainedSpace, model, data) -> list[tuple[str, str, str]]:
    """(site, name, unit) of every entry of unconstrained space."""
    units = site_units(SimpleNamespace(model=model, data=data))
    return [
        (site, *label)
        for site, shape in zip(space.names, space.shapes, strict=True)
        for label in labels(model, site, units.get(site.replace("/", "."), ""), shape)
    ]


def _report(space, model, data, z, fisher, before, place: str, of_draws=None) -> Identifiability:
    nuisances, named = _nuisances(space, model), parameters(space, model, data)
    keep = np.array([i for i, (site, *_) in enumerate(named) if site not in nuisances])
    information, sds = np.diagonal(fisher)[keep], np.sqrt(np.diagonal(before)[keep])
    weights = np.array([i for i, (site, *_) in enumerate(named) if site in nuisances and of_program(site)], int)
    updated = _updated(before, fisher)
    held, after = _held(updated, keep, weights), updated if of_draws is None else of_draws
    before, after = before[np.ix_(keep, keep)], after[np.ix_(keep, keep)]
    eigenvalues, directions = compare(before, after)
    values, slopes = map(np.asarray, constrained(space, model, data, z))
    return Identifiability(
        header=" | ".join([str(model), *amount(data), place]),
        names=tuple(named[i][1] for i in keep),
        units=tuple(named[i][2] for i in keep),
        values=values[keep],
        sds=np.abs(slopes[keep]) * np.sqrt(np.diagonal(after)),
        eigenvalues=eigenvalues,
        directions=directions,
        contraction=1 - np.diagonal(after) / np.diagonal(before),
        sensitivity=sds * np.sqrt(np.maximum(information, 0.0)),
        held=held,
        marginalised=nuisances,
    )


def _held(after: np.ndarray, keep: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, " K"]:
    """Variances of the kept entries at known weights over those at unknown ones."""
    if not len(weights):
        return np.ones(len(keep))
    among = after[np.ix_(keep, weights)]
    explained = np.einsum("kw,wk->k", among, np.linalg.solve(after[np.ix_(weights, weights)], among.T))
    return 1 - explained / np.diagonal(after)[keep]


def _nuisances(space: UnconstrainedSpace, model) -> tuple[str, ...]:
    """Sites that a report leaves out: of a Dynamics those outside its program, and weights, if any other is left."""
    sizes = {name: int(np.prod(shape)) for name, shape in zip(space.names, space.shapes, strict=True)}
    program = set(sizes)
    if isinstance(model, Dynamics):
        program = {DELAY, *handlers.trace(handlers.seed(model.program, jax.random.key(0))).get_trace()}
    reported = [name for name, size in sizes.items() if name in program and size <= EXPANDED]
    reported = reported or [name for name in sizes if name in program] or list(sizes)
    return tuple(name for name in sizes if name not in reported)


@eqx.filter_jit
def constrained(space: UnconstrainedSpace, model, data, z) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
    """Value of each entry in its unit, and its slope; unconstrained ones for sites without a map entry by entry."""

    def values(z):
        parts, sites = space.split(z), space.sites(model, z, data)
        pairs = [(sites[name], parts[name]) for name in space.names]
        return jnp.concatenate([jnp.ravel(s if jnp.shape(s) == jnp.shape(p) else p) for s, p in pairs])

    return values(z), jnp.diagonal(jax.jacfwd(values)(z))
