"""Beliefs side by side: what each predicts of data it has not seen, what it costs, how far it is from a reference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from physppl.data.trajectories import Trajectories
from physppl.data.transitions import Transitions
from physppl.dynamics import Dynamics
from physppl.evaluation import compare_plots
from physppl.evaluation.compare_checks import check_arguments, notes
from physppl.evaluation.cross_validation import HEAVY, leave_one_out
from physppl.evaluation.predictive_scores import Scores, evaluate
from physppl.evaluation.scoring_rules import LEVELS
from physppl.internal.errors import check_key
from physppl.internal.units import pretty
from physppl.posterior.arviz import site_units
from physppl.posterior.summary import DRAWS, EXPANDED, aligned, amount, labels

DASH = "–"  # of a figure that there is none of


@dataclass(frozen=True, eq=False)
class Comparison:
    """Figures of several beliefs; print it, or `plot` it.

    Attributes:
        dataset: an xarray Dataset with dims posterior, horizon (steps), level, coordinate, site; NaN is a figure that
            there is none of. `rmse` and `crps` are in units of the coordinates' scales; multiply by `scale` for those
            of the coordinate.
        header: what was compared.
        notes: what to know before believing it.
    """

    dataset: Any
    header: str
    notes: tuple[str, ...] = field(default=())

    def plot(self):
        """Error over the horizon, calibration, and the distance to the reference: a matplotlib Figure."""
        return compare_plots.comparison(self)

    def __str__(self) -> str:
        blocks = [[self.header], self._beliefs()]
        if "rmse" in self.dataset and (self.dataset.outcomes[1:] > 0).any():
            blocks.append(self._horizons())
        if "shift" in self.dataset:
            blocks.append(self._distances())
        if self.notes:
            blocks.append([f"note: {note}" for note in self.notes])
        return "\n\n".join("\n".join(block) for block in blocks)

    def _beliefs(self) -> list[str]:
        """One line a belief."""
        data = self.dataset
        head, columns = ["posterior"], []
        if "rmse" in data:
            one = data.isel(horizon=0)
            rmse = np.sqrt((one.rmse**2).mean("coordinate", skipna=False))
            columns += [("RMSE", rmse, ".4g"), ("log density", data.log_density, ".4g")]
            columns += [("CRPS", one.crps.mean("coordinate", skipna=False), ".4g")]
            inside = 100 * one.coverage.mean("coordinate", skipna=False)
            columns += [(f"in {100 * p:g} %", inside.sel(level=p), ".1f") for p in LEVELS]
        columns += [("ELPD-LOO", data.elpd_loo, ".1f"), ("se", data.elpd_loo_se, ".1f")]
        columns += [(f"k > {HEAVY}", data.pareto_k_heavy, ".0f")]
        columns += [("fit, s", data.seconds, ".2f"), ("compiling, s", data.compile_seconds, ".2f")]
        head += [name for name, _, _ in columns]
        body = [
            [str(name), *(_cell(values.sel(posterior=name), digits) for _, values, digits in columns)]
            for name in data.posterior.values
        ]
        return aligned([head, *body], {0})

    def _horizons(self) -> list[str]:
        """RMSE and coverage after so many steps."""
        data = self.dataset.isel(horizon=self.dataset.outcomes.values > 0)
        times = zip(data.horizon.values, data.time.values, strict=True)
        head = ["steps ahead", *(f"{steps} ({time:.3g} s)" for steps, time in times)]
        body = []
        for name in data.posterior.values:
            one = data.sel(posterior=name)
            rmse = np.sqrt((one.rmse**2).mean("coordinate", skipna=False))
            inside = 100 * one.coverage.sel(level=0.9).mean("coordinate", skipna=False)
            body.append([f"{name}: RMSE", *(_cell(v, ".4g") for v in rmse)])
            body.append([f"{name}: in 90 %", *(_cell(v, ".1f") for v in inside)])
        return aligned([head, *body], {0})

    def _distances(self) -> list[str]:
        """Shift of the mean in the reference's sds, and ratio of sds, per scalar."""
        data = self.dataset
        others = [m for m in data.posterior.values if m != data.attrs["reference"]]
        head = [f"{data.attrs['reference']}", "mean", "sd", "unit", *(f"{m}: shift, sd ratio" for m in others)]
        body = []
        for site in data.site.values:
            one = data.sel(site=site)
            pairs = [(one["shift"].sel(posterior=m), one.sd_ratio.sel(posterior=m)) for m in others]
            cells = [f"{_cell(shift, '+.2f')}, {_cell(ratio, '.2f')}" for shift, ratio in pairs]
            body.append([
                str(site), _cell(one.reference_mean, ".4g"), _cell(one.reference_sd, ".2g"),
                pretty(str(one.site_unit.values)), *cells,
            ])  # fmt: skip
        return aligned([head, *body], {0, 3})


def _cell(value, digits: str) -> str:
    value = float(value)
    return format(value, digits) if math.isfinite(value) else DASH


def compare(
    posteriors: Mapping[str, Any],
    test_data: Transitions | Trajectories | None = None,
    *,
    reference: str | None = None,
    horizons: Sequence[int] = (1, 5, 20),
    draws: int = 256,
    key: PRNGKeyArray | None = None,
) -> Comparison:
    """Beliefs about one machine side by side.

    On `test_data`: root mean squared error, CRPS and coverage of central intervals, per coordinate and horizon, and
    the log density of one step, joint over coordinates. Predictive distributions are mixtures over draws of the
    belief, process noise included; only those of readings several steps ahead are Gaussians with two moments
    (`physppl.evaluation.recording_forecasts.predict_ahead`). From each fit itself: leave-one-out, time, and the
    distance to a reference. A figure that a belief cannot give is a dash.

    Args:
        posteriors: {name: Posterior}, of any backend; a NumPyro run by `physppl.inference.from_numpyro`. Those of
            models that are not a Dynamics have no predictions.
        test_data: that no fit saw. Transitions: rows that follow each other are forecast open loop. Trajectories: one
            step is each reading given all before it, under each draw; more are forecasts from the state of a filter at
            the belief's mean parameters, of the readings at which no sensor is missing.
        reference: name of the belief to which the others' sites are compared, e.g. a long run of HMC.
        horizons: steps ahead; 1 is always among them.
        draws: of each belief's functions, the same keys for all.
        key: of all draws; `jax.random.key(0)` by default.

    Raises:
        TypeError: for what is not a Posterior, or test data of another kind.
        ValueError: for no posterior; for posteriors of different spaces or steps; for test data without outcomes.
        KeyError: for an unknown reference, or sites that only one of the reference and another belief has.
    """
    key = jax.random.key(0) if key is None else key
    check_key(key)
    horizons = check_arguments(posteriors, test_data, reference, horizons, draws)
    data = {} if test_data is None else _predictions(key, posteriors, test_data, horizons, draws)
    data |= _own(key, posteriors)
    units: dict[str, str] = {}
    if reference is not None:
        distances, units = _distances(key, posteriors, reference)
        data |= distances
    first = next(iter(posteriors.values()))
    header = " | ".join([str(first.model), *(f"tested on {words}" for words in amount(test_data))])
    dataset = _dataset(data, posteriors, test_data, horizons)
    if reference is not None:
        dataset = dataset.assign_coords(site=list(units), site_unit=("site", list(units.values())))
        dataset.attrs["reference"] = reference
    return Comparison(dataset, header, notes(posteriors, test_data, dataset))


Columns = dict[str, tuple[tuple[str, ...], Any, str]]  # {name: (dims, values, units)}


def _predictions(key, posteriors, data, horizons, draws) -> Columns:
    model = next(p.model for p in posteriors.values() if isinstance(p.model, Dynamics))
    scale = model.likelihood(data).space(model).scale
    found = [[_evaluate(key, p, data, h, draws) for h in horizons] for p in posteriors.values()]
    missing = np.full(len(scale), np.nan)
    each = lambda value, empty: [[empty if s is None else value(s) for s in row] for row in found]  # noqa: E731
    counts = np.array(each(lambda s: s.size, 0)).max(axis=0)
    first = [row[0] for row in found]
    return {
        "rmse": (("posterior", "horizon", "coordinate"), each(lambda s: s.rmse / scale, missing), "scale"),
        "crps": (("posterior", "horizon", "coordinate"), each(lambda s: s.crps / scale, missing), "scale"),
        "coverage": (
            ("posterior", "horizon", "level", "coordinate"),
            each(lambda s: s.coverage, np.full((len(LEVELS), len(scale)), np.nan)),
            "1",
        ),
        "log_density": (("posterior",), [np.nan if s is None else s.log_density for s in first], "nats"),
        "log_density_se": (("posterior",), [np.nan if s is None else s.log_density_se for s in first], "nats"),
        "outcomes": (("horizon",), counts, "1"),
    }


def _evaluate(key, posterior, data, steps: int, draws: int) -> Scores | None:
    if not isinstance(posterior.model, Dynamics):
        return None
    try:
        return evaluate(key, posterior, data, steps, draws)
    except NotImplementedError:  # a belief without functions
        return None


def _own(key, posteriors) -> Columns:
    """What each fit says of itself."""
    left, times = [], []
    for posterior in posteriors.values():
        try:
            found = leave_one_out(key, posterior)
        except NotImplementedError:  # a belief without samples
            found = None
        left.append(found)
        times.append(posterior.timing or (np.nan, np.nan))
    seconds, compiling = np.array(times).T
    figure = lambda of: [np.nan if x is None else of(x) for x in left]  # noqa: E731
    return {
        "elpd_loo": (("posterior",), figure(lambda x: x.elpd), "nats"),
        "elpd_loo_se": (("posterior",), figure(lambda x: x.se), "nats"),
        "pareto_k_heavy": (("posterior",), figure(lambda x: x.heavy), "1"),
        "pareto_k_largest": (("posterior",), figure(lambda x: x.pareto_k.max()), "1"),
        "seconds": (("posterior",), seconds, "s"),
        "compile_seconds": (("posterior",), compiling, "s"),
    }


def _distances(key, posteriors, reference: str) -> tuple[Columns, dict[str, str]]:
    """Means and sds of every scalar site against those of the reference, and {name: unit}."""
    found = {method: _scalars(key, p, method) for method, p in posteriors.items()}
    scalars, units = {method: draws for method, (draws, _) in found.items()}, found[reference][1]
    names = scalars[reference]
    for method, found in scalars.items():
        lacking, extra = [n for n in names if n not in found], [n for n in found if n not in names]
        if lacking or extra:
            which = [f"lacks {', '.join(lacking)}"] * bool(lacking) + [f"has {', '.join(extra)} besides"] * bool(extra)
            raise KeyError(
                f"compare: against the reference {reference!r}, {method!r} {' and '.join(which)}. Distances need the "
                "same sites; leave `reference` out to compare predictions alone."
            )
    moments = np.array([[(found[n].mean(), found[n].std()) for n in names] for found in scalars.values()])
    mean, sd = np.moveaxis(moments, -1, 0)
    at = list(scalars).index(reference)
    own = sd[at]
    varies = np.where(own > 0, own, np.nan)  # a constant has no distance
    columns: Columns = {
        "shift": (("posterior", "site"), (mean - mean[at]) / varies, "reference sd"),
        "sd_ratio": (("posterior", "site"), sd / varies, "1"),
        "reference_mean": (("site",), mean[at], "site_unit"),
        "reference_sd": (("site",), own, "site_unit"),
    }
    return columns, units


def _scalars(key, posterior, method: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """{name: draws} and {name: unit} of every scalar; long vectors (weights) are left out."""
    units, draws, named = site_units(posterior), {}, {}
    for site, values in posterior.samples(key, DRAWS).items():
        values = np.asarray(values, float)
        if not np.isfinite(values).all():
            raise ValueError(f"compare: draws of {site!r} of {method!r} are not finite; see its status: {posterior}.")
        if math.prod(values.shape[1:]) <= EXPANDED:
            names = labels(posterior.model, site, units.get(site.replace("/", "."), ""), values.shape[1:])
            draws |= dict(zip((name for name, _ in names), values.reshape(len(values), -1).T, strict=True))
            named |= dict(names)
    return draws, named


def _dataset(columns: Columns, posteriors, test_data, horizons):
    import xarray

    dataset = xarray.Dataset(coords={"posterior": list(posteriors)})
    for name, (dims, values, units) in columns.items():
        dataset[name] = xarray.Variable(dims, np.asarray(values, float), {"units": units})
    if test_data is not None:
        model = next(p.model for p in posteriors.values() if isinstance(p.model, Dynamics))
        space = model.likelihood(test_data).space(model)
        dataset = dataset.assign_coords(
            horizon=("horizon", list(horizons), {"units": "steps"}),
            time=("horizon", model.dt * np.array(horizons), {"units": "s"}),
            level=list(LEVELS),
            coordinate=list(space.names),
            scale=("coordinate", space.scale, {"units": "unit"}),
            unit=("coordinate", list(space.units)),
        )
    return dataset
