"""Comparison of posteriors: predictions on unseen data, cost, and distance to a reference."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from physppl.data.data import Data
from physppl.dynamics import Dynamics
from physppl.evaluation import compare_plots
from physppl.evaluation.compare_checks import check_arguments, measured, notes
from physppl.evaluation.cross_validation import HEAVY, leave_one_out
from physppl.evaluation.predictive_scores import Scores, evaluate
from physppl.evaluation.scoring_rules import LEVELS
from physppl.internal.errors import check_key
from physppl.internal.tables import aligned
from physppl.internal.units import pretty
from physppl.posterior.arviz import site_units
from physppl.posterior.summary import DRAWS, EXPANDED, amount, labels

DASH = "–"  # printed for a missing figure
FIT_FIGURES = {  # with their units
    "elpd_loo": "nats", "elpd_loo_se": "nats", "pareto_k_heavy": "1", "pareto_k_largest": "1",
    "seconds": "s", "compile_seconds": "s",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Comparison:
    """Figures of several posteriors; print it, or `plot` it.

    Attributes:
        dataset: an xarray Dataset with dims posterior, horizon (steps), level, coordinate, site; NaN is a missing
            figure. `rmse` and `crps` are in units of the coordinates' scales; multiply by `scale` for the coordinates'
            own units.
        header: model and test data.
        notes: caveats.
    """

    dataset: Any
    header: str
    notes: tuple[str, ...] = field(default=())

    def plot(self):
        """Matplotlib Figure of error over the horizon, calibration, and distance to the reference."""
        return compare_plots.comparison(self)

    def __str__(self) -> str:
        blocks = [[self.header], self._posteriors()]
        if "rmse" in self.dataset and (self.dataset.outcomes[1:] > 0).any():
            blocks.append(self._horizons())
        if "shift" in self.dataset:
            blocks.append(self._distances())
        if self.notes:
            blocks.append([f"note: {note}" for note in self.notes])
        return "\n\n".join("\n".join(block) for block in blocks)

    def _posteriors(self) -> list[str]:
        """One line per posterior."""
        data = self.dataset
        columns = []
        if "rmse" in data:
            first = data.isel(horizon=0)
            rmse = np.sqrt((first.rmse**2).mean("coordinate", skipna=False))
            columns += [("RMSE", rmse, ".4g"), ("log density", data.log_density, ".4g")]
            columns += [("CRPS", first.crps.mean("coordinate", skipna=False), ".4g")]
            inside = 100 * first.coverage.mean("coordinate", skipna=False)
            columns += [(f"in {100 * p:g} %", inside.sel(level=p), ".1f") for p in LEVELS]
        columns += [("ELPD-LOO", data.elpd_loo, ".1f"), ("se", data.elpd_loo_se, ".1f")]
        columns += [(f"k > {HEAVY}", data.pareto_k_heavy, ".0f")]
        columns += [("fit, s", data.seconds, ".2f"), ("compiling, s", data.compile_seconds, ".2f")]
        columns = [column for column in columns if np.isfinite(column[1]).any()]  # `notes` says why the others are not
        head = ["posterior", *(name for name, _, _ in columns)]
        body = [
            [str(name), *(_cell(values.sel(posterior=name), digits) for _, values, digits in columns)]
            for name in data.posterior.values
        ]
        return aligned([head, *body], {0})

    def _horizons(self) -> list[str]:
        """RMSE and coverage at each horizon."""
        data = self.dataset.isel(horizon=self.dataset.outcomes.values > 0)
        times = zip(data.horizon.values, data.time.values, strict=True)
        head = ["steps ahead", *(f"{steps} ({time:.3g} s)" for steps, time in times)]
        body = []
        for name in data.posterior.values:
            row = data.sel(posterior=name)
            rmse = np.sqrt((row.rmse**2).mean("coordinate", skipna=False))
            inside = 100 * row.coverage.sel(level=0.9).mean("coordinate", skipna=False)
            body.append([f"{name}: RMSE", *(_cell(v, ".4g") for v in rmse)])
            body.append([f"{name}: in 90 %", *(_cell(v, ".1f") for v in inside)])
        return aligned([head, *body], {0})

    def _distances(self) -> list[str]:
        """Shift of the mean in the reference's sds, and ratio of sds, of each scalar."""
        data = self.dataset
        others = [m for m in data.posterior.values if m != data.attrs["reference"]]
        head = [f"{data.attrs['reference']}", "mean", "sd", "unit", *(f"{m}: shift, sd ratio" for m in others)]
        body = []
        for site in data.site.values:
            row = data.sel(site=site)
            pairs = [(row["shift"].sel(posterior=m), row.sd_ratio.sel(posterior=m)) for m in others]
            cells = [f"{_cell(shift, '+.2f')}, {_cell(ratio, '.2f')}" for shift, ratio in pairs]
            body.append([
                str(site), _cell(row.reference_mean, ".4g"), _cell(row.reference_sd, ".2g"),
                pretty(str(row.site_unit.values)), *cells,
            ])  # fmt: skip
        return aligned([head, *body], {0, 3})


def _cell(value, digits: str) -> str:
    value = float(value)
    return format(value, digits) if math.isfinite(value) else DASH


def compare(
    posteriors: Mapping[str, Any],
    test_data: Data | None = None,
    *,
    reference: str | None = None,
    horizons: Sequence[int] = (1, 5, 20),
    draws: int = 256,
    key: PRNGKeyArray | None = None,
) -> Comparison:
    """Compare posteriors of one machine.

    On `test_data`: root mean squared error, CRPS and coverage of central intervals, per coordinate and horizon, and
    the log density of one step, joint over coordinates. Predictive distributions are mixtures over posterior
    draws, process noise included; only those of readings several steps ahead are Gaussians with two moments
    (`physppl.evaluation.recording_forecasts.predict_ahead`). From each fit itself: leave-one-out, time, and the
    distance to a reference. A figure that a posterior cannot give is a dash; one that none can give is left out of the
    table, which says why. So is a sensor of which `test_data` have no reading.

    Args:
        posteriors: {name: Posterior}, of any backend; a NumPyro run by `physppl.inference.from_numpyro`. Those of
            models that are not a Dynamics have no predictions.
        test_data: data that no fit used. Transitions: consecutive rows are forecast open loop. Trajectories: one step
            is each reading given all before it, under each draw; more are forecasts from the state of a filter at the
            posterior's mean parameters, of the readings at which no sensor is missing.
        reference: name of the posterior to which the others' sites are compared, e.g. a long run of HMC.
        horizons: steps ahead; 1 is always among them.
        draws: number of functions drawn from each posterior, with the same keys for all.
        key: random key of all draws; `jax.random.key(0)` by default.

    Raises:
        TypeError: for values that are not a Posterior, or test data of another kind.
        ValueError: for no posterior; for posteriors of different spaces or steps; for test data without outcomes.
        KeyError: for an unknown reference, or sites that only the reference or only another posterior has.
    """
    import xarray

    key = jax.random.key(0) if key is None else key
    check_key(key)
    horizons = check_arguments(posteriors, test_data, reference, horizons, draws)
    columns, coordinates = {}, {}
    if test_data is not None:
        columns, coordinates = _predictions(key, posteriors, test_data, horizons, draws)
    columns |= _fit_figures(key, posteriors)
    if reference is not None:
        distances, units = _distances(key, posteriors, reference)
        columns |= distances
        coordinates |= {"site": list(units), "site_unit": ("site", list(units.values()))}
    dataset = xarray.Dataset(coords={"posterior": list(posteriors)})
    for name, (dims, values, unit) in columns.items():
        dataset[name] = xarray.Variable(dims, np.asarray(values, float), {"units": unit})
    dataset = dataset.assign_coords(coordinates)
    if reference is not None:
        dataset.attrs["reference"] = reference
    first = next(iter(posteriors.values()))
    header = " | ".join([str(first.model), *(f"tested on {words}" for words in amount(test_data))])
    return Comparison(dataset, header, notes(posteriors, test_data, dataset))


Columns = dict[str, tuple[tuple[str, ...], Any, str]]  # {name: (dims, values, units)}


def _predictions(key, posteriors, data, horizons, draws) -> tuple[Columns, dict[str, Any]]:
    """Scores of each posterior at each horizon, and the coordinates of their axes."""
    model = next(p.model for p in posteriors.values() if isinstance(p.model, Dynamics))
    space = model.likelihood(data).space(model)
    lost = np.full(len(space), np.nan)
    missing = Scores(0, lost, lost, np.full((len(LEVELS), len(space)), np.nan), np.nan, np.nan)
    scores = [_evaluate(key, p, data, h, draws) or missing for p in posteriors.values() for h in horizons]
    stacked = [np.reshape(x, (len(posteriors), len(horizons), *np.shape(x[0]))) for x in zip(*scores, strict=True)]
    size, rmse, crps, coverage, log_density, log_density_se = stacked
    read = measured(data)
    space = type(space)(**{name: space.coordinates[name] for name, has in zip(space.names, read, strict=True) if has})
    rmse, crps, coverage = rmse[..., read], crps[..., read], coverage[..., read]
    columns: Columns = {
        "rmse": (("posterior", "horizon", "coordinate"), rmse / space.scale, "scale"),
        "crps": (("posterior", "horizon", "coordinate"), crps / space.scale, "scale"),
        "coverage": (("posterior", "horizon", "level", "coordinate"), coverage, "1"),
        "log_density": (("posterior",), log_density[:, 0], "nats"),
        "log_density_se": (("posterior",), log_density_se[:, 0], "nats"),
        "outcomes": (("horizon",), size.max(axis=0), "1"),
    }
    return columns, {
        "horizon": ("horizon", list(horizons), {"units": "steps"}),
        "time": ("horizon", model.dt * np.array(horizons), {"units": "s"}),
        "level": list(LEVELS),
        "coordinate": list(space.names),
        "scale": ("coordinate", space.scale, {"units": "unit"}),
        "unit": ("coordinate", list(space.units)),
    }


def _evaluate(key, posterior, data, steps: int, draws: int) -> Scores | None:
    if isinstance(posterior.model, Dynamics):
        with suppress(NotImplementedError):  # a posterior without functions
            return evaluate(key, posterior, data, steps, draws)
    return None


def _fit_figures(key, posteriors) -> Columns:
    """Leave-one-out estimates and times of each fit."""
    rows = []
    for posterior in posteriors.values():
        figures = [np.nan] * 4
        with suppress(NotImplementedError):  # a posterior without samples
            if left_out := leave_one_out(key, posterior):
                figures = [left_out.elpd, left_out.se, left_out.heavy, left_out.pareto_k.max()]
        rows.append([*figures, *(posterior.timing or (np.nan, np.nan))])
    columns = zip(FIT_FIGURES.items(), np.array(rows, float).T, strict=True)
    return {name: (("posterior",), values, unit) for (name, unit), values in columns}


def _distances(key, posteriors, reference: str) -> tuple[Columns, dict[str, str]]:
    """Means and sds of every scalar site relative to those of the reference, and {name: unit}."""
    scalars, units = {}, {}
    for method, posterior in posteriors.items():
        scalars[method], units[method] = _scalars(key, posterior, method)
    names = scalars[reference]
    for method, draws in scalars.items():
        lacking, extra = [n for n in names if n not in draws], [n for n in draws if n not in names]
        if lacking or extra:
            which = [f"lacks {', '.join(lacking)}"] * bool(lacking) + [f"has {', '.join(extra)} besides"] * bool(extra)
            raise KeyError(
                f"compare: against the reference {reference!r}, {method!r} {' and '.join(which)}. Distances need the "
                "same sites; leave `reference` out to compare predictions alone."
            )
    moments = np.array([[(draws[n].mean(), draws[n].std()) for n in names] for draws in scalars.values()])
    mean, sd = np.moveaxis(moments, -1, 0)
    at = list(scalars).index(reference)
    positive_sd = np.where(sd[at] > 0, sd[at], np.nan)  # no distances of constants
    columns: Columns = {
        "shift": (("posterior", "site"), (mean - mean[at]) / positive_sd, "reference sd"),
        "sd_ratio": (("posterior", "site"), sd / positive_sd, "1"),
        "reference_mean": (("site",), mean[at], "site_unit"),
        "reference_sd": (("site",), sd[at], "site_unit"),
    }
    return columns, units[reference]


def _scalars(key, posterior, method: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Draws {name: array} and units {name: unit} of every scalar; long vectors (weights) are left out."""
    units, draws, scalar_units = site_units(posterior), {}, {}
    for site, values in posterior.samples(key, DRAWS).items():
        values = np.asarray(values, float)
        if not np.isfinite(values).all():
            raise ValueError(f"compare: draws of {site!r} of {method!r} are not finite; see its status: {posterior}.")
        if math.prod(values.shape[1:]) <= EXPANDED:
            names = labels(posterior.model, site, units.get(site.replace("/", "."), ""), values.shape[1:])
            draws |= dict(zip((name for name, _ in names), values.reshape(len(values), -1).T, strict=True))
            scalar_units |= dict(names)
    return draws, scalar_units
