"""Summary table of a fit: every parameter with its unit, its contraction by the data, and a verdict in words."""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from physppl.data.data import Data
from physppl.density.unconstrained import latent_trace
from physppl.dynamics import Dynamics
from physppl.dynamics.sensors import GAIN, MEASUREMENT, TIMING
from physppl.internal.errors import Status, unknown
from physppl.internal.tables import aligned, as_html, first, number
from physppl.internal.units import pretty
from physppl.language.noise import PROCESS as NOISE
from physppl.posterior.arviz import site_units
from physppl.posterior.edges import TAIL, Bounds, at_edge, bounds_of
from physppl.posterior.verdict import listed

DRAWS = 4000  # sds are known to 1.1 %, their ratios to 1.6 %
# Posterior contraction (M. Betancourt, "Towards a principled Bayesian workflow", 2020) is 1 - (sd / prior sd)^2.
LEARNED = 0.3  # of the prior's sd: more than nine tenths of its variance are gone
INFORMED = 0.9  # from here on the ratio is 1 within six times the error of its estimate: still the prior
DECADE = 10.0  # times as large an upper bound
EMPTY = 0.1  # of a prior's mass below the middle of its bounds' logarithms; with log=True it is a half
EXPANDED = 8  # entries of a vector site that get rows of their own; longer ones (weights) share one row

EDGE = "at the edge of its prior: the truth may lie outside"
CONSTANT = "constant"
WIDER = "wider than its prior: not told"
VERDICTS = ("learned", "informed", "barely informed: mostly the prior", EDGE)


@dataclass(frozen=True, repr=False)
class Summary:
    """A table, printed up to a screen's length; `text()` and notebooks have all of it.

    Attributes:
        header: backend, model, status and data of the fit.
        rows: one dict per parameter: name, site, unit, mean, sd, low, high (5 and 95 %), contraction (sd / prior sd),
            verdict, and with a truth: truth, inside (True if it lies between low and high).
        notes: what priors say that matter beside the data.
    """

    header: str
    rows: list[dict]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> dict:
        """The row of a parameter.

        Raises:
            KeyError: for an unknown name, with close matches.
        """
        for row in self.rows:
            if row["name"] == name:
                return row
        raise unknown("row", name, [row["name"] for row in self.rows], "Summary")

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        has_truth = any("truth" in row for row in self.rows)
        head = ["parameter", "mean", "sd", "5 %", "95 %", "unit", "sd / prior sd"]
        head += ["truth", "in 90 %"] if has_truth else []
        body = []
        for row in self.rows:
            numbers = [number(row[k], row["sd"]) for k in ("mean", "sd", "low", "high")]
            cells = [
                row["name"],
                *numbers,
                pretty(row["unit"]),
                "< 0.001" if row["contraction"] < 1e-3 else f"{row['contraction']:.3f}",
            ]
            if has_truth:
                cells += [f"{row['truth']:.4g}", "yes" if row["inside"] else "no"] if "truth" in row else ["", ""]
            body.append([*cells, row["verdict"]])
        return [*head, "verdict"], body

    def text(self) -> str:
        """The whole table, however long."""
        return self._text(lambda lines, _: lines)

    def __str__(self) -> str:
        return self._text(first)

    __repr__ = __str__

    def _text(self, cut: Callable[[list[str], str], list[str]]) -> str:
        head, body = self._cells()
        titles, *rows = aligned([head, *body], {0, head.index("unit"), len(head) - 1})
        notes = cut(list(self.notes), "`.notes`")
        return "\n".join(
            [self.header, "", titles, *cut(rows, "`print(summary.text())`"), *([""] if notes else []), *notes]
        )

    def _repr_html_(self) -> str:
        head, body = self._cells()
        table = as_html([head, *body], {0, head.index("unit"), len(head) - 1})
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<p>{html.escape(self.header)}</p>{table}{notes}"


def summarise(key: PRNGKeyArray, posterior, *, truth: dict | None = None) -> Summary:
    """The table of a posterior.

    Args:
        truth: {site: value} in the sites' units, where it is known; adds two columns.

    Raises:
        KeyError: for a truth of a site that the model has not, with close matches.
    """
    all_entries = entries(key, posterior)
    sites = {entry.site: None for entry in all_entries}
    for site in truth or {}:
        if site not in sites:
            raise unknown("site", site, sites, "summary(truth=...)")
    rows = []
    for site in sites:
        of_site = [entry for entry in all_entries if entry.site == site]
        if len(of_site) > EXPANDED:
            rows.append(_shared(site, of_site))
            continue
        truths = [None] * len(of_site)
        if truth is not None and site in truth:
            truths = np.broadcast_to(np.asarray(truth[site], float).ravel(), len(of_site)).tolist()
        rows += [_row(entry, value) for entry, value in zip(of_site, truths, strict=True)]
    matters = {row["name"] for row in rows if row["verdict"] != VERDICTS[0]}
    about: dict[Any, list[Entry]] = {}  # those of the same prior share a note
    for entry in all_entries:
        if entry.name in matters and _of_decades(entry):
            about.setdefault(entry.bounds, []).append(entry)
    notes = [f"{listed([e.name for e in same])}: {_of_decades(same[0])}" for same in about.values()]
    return Summary(_header(posterior), rows, tuple(notes))


class Entry(NamedTuple):
    """One scalar of one site, with posterior and prior draws (S,), and the bounds of its support if it has two."""

    name: str
    site: str
    unit: str
    draws: np.ndarray
    prior: np.ndarray
    bounds: Bounds | None


def entries(key: PRNGKeyArray, posterior) -> list[Entry]:
    """All scalars of a posterior, sites in the order of the program."""
    posterior_key, prior_key = jax.random.split(key)
    samples = posterior.samples(posterior_key, DRAWS)
    units, scalars = site_units(posterior), []
    for site, (prior, bounds) in _prior(prior_key, posterior, set(samples)).items():
        draws = np.asarray(samples[site], float)
        names = labels(posterior.model, site, units.get(site.replace("/", "."), ""), draws.shape[1:])
        columns = zip(draws.reshape(len(draws), -1).T, prior.reshape(len(prior), -1).T, strict=True)
        scalars += [
            Entry(name, site, unit, now, before, bounds)
            for (name, unit), (now, before) in zip(names, columns, strict=True)
        ]
    return scalars


def _of_decades(entry: Entry) -> str | None:
    """Note on a prior between bounds more than a decade apart that leaves the lower decades almost empty."""
    bounds = entry.bounds
    if bounds is None or bounds.log or not bounds.low > 0 or bounds.high < DECADE * bounds.low:
        return None
    middle = math.sqrt(bounds.low * bounds.high)
    if (share := np.mean(entry.prior < middle)) > EMPTY:
        return None
    return (
        f"the prior between {bounds.low:g} and {bounds.high:g} puts {share:.1%} below {middle:.2g}, the "
        f"middle of their logarithms. If only the order of magnitude is known: physical(..., log=True)."
    )


def _prior(key: PRNGKeyArray, posterior, names) -> dict[str, tuple]:
    """{site: (draws, bounds of its support or None where that is not two-sided)}."""

    def latent(key):
        trace = latent_trace(key, posterior.model, posterior.data)
        return {name: site for name, site in trace.items() if name in names}  # in the program's order

    keys = jax.random.split(key, DRAWS)
    with jax.enable_x64(True):  # the data are in double precision
        bounds = {k: bounds_of(site["fn"].support) if "fn" in site else None for k, site in latent(key).items()}
        values = jax.jit(jax.vmap(lambda k: {name: site["value"] for name, site in latent(k).items()}))(keys)
    return {name: (np.asarray(values[name], float), bounds[name]) for name in bounds}


def labels(model, site: str, unit: str, shape: tuple[int, ...]) -> list[tuple[str, str]]:
    """(name, unit) of each entry of a site, in flat order; of noise by coordinate or sensor."""
    if site in (NOISE, MEASUREMENT) and isinstance(model, Dynamics):
        space = model.state if site == NOISE else model.sensing.space
        return [(f"{site}[{name}]", unit) for name, unit in zip(space.names, space.units, strict=True)]
    if site in (GAIN, TIMING) and isinstance(model, Dynamics):
        return [(f"{site}[{name}]", unit) for name in model.action.names]
    if not shape:
        return [(site, unit)]
    units = unit.split(", ")  # one for all entries, or one per entry of the last axis
    units = units if len(units) == shape[-1] else [unit] * shape[-1]
    return [(f"{site}[{', '.join(map(str, index))}]", units[index[-1]]) for index in np.ndindex(*shape)]


def _row(entry: Entry, truth: float | None) -> dict:
    spread = entry.prior.std()
    contraction = entry.draws.std() / spread if spread > 0 else math.nan  # a constant
    row = _moments(entry, contraction, at_edge(entry.draws, entry.prior, entry.bounds))
    if truth is not None:
        row |= {"truth": truth, "inside": bool(row["low"] <= truth <= row["high"])}
    return row


def _shared(site: str, parts: list[Entry]) -> dict:
    """One row for many weights: their root mean square, and the ratio of mean variances."""
    weights, prior = np.stack([p.draws for p in parts]), np.stack([p.prior for p in parts])
    size, before = np.sqrt((weights**2).mean(0)), np.sqrt((prior**2).mean(0))
    edge = bool(np.median(size) > np.quantile(before, 1 - TAIL))  # weights smaller than expected are no edge
    entry = Entry(f"{site} (rms of {len(parts)})", site, parts[0].unit, size, before, None)
    return _moments(entry, np.sqrt(weights.var(1).mean() / prior.var(1).mean()), edge)


def _moments(entry: Entry, contraction: float, edge: bool) -> dict:
    low, high = np.quantile(entry.draws, [0.05, 0.95])
    return {
        "name": entry.name,
        "site": entry.site,
        "unit": entry.unit,
        "mean": float(entry.draws.mean()),
        "sd": float(entry.draws.std()),
        "low": float(low),
        "high": float(high),
        "contraction": float(contraction),
        "verdict": _verdict(contraction, edge),
    }


def _verdict(contraction: float, edge: bool) -> str:
    learned, informed, prior, at_edge = VERDICTS
    if math.isnan(contraction):
        return CONSTANT
    if edge:
        return at_edge
    if contraction > 1 / INFORMED:
        return WIDER
    return learned if contraction < LEARNED else informed if contraction < INFORMED else prior


def _header(posterior) -> str:
    status = Status(int(posterior.status))
    parts = [posterior.method, str(posterior.model)]
    parts.append("converged" if status is Status.OK else f"{status.name.lower().replace('_', ' ')}: {status.remedy}")
    parts += amount(posterior.data)
    if "log_evidence" in (facts := posterior.facts()):
        parts.append(f"log evidence {facts['log_evidence']:.2f} nats")
    return " | ".join(parts)


def amount(data) -> list[str]:
    """The amount of data, in words; empty for objects that are no Data."""
    return [data.describe()] if isinstance(data, Data) else []
