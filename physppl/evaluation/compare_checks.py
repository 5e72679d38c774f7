"""Checks of the arguments of `compare`, and caveats of its result."""

import warnings
from collections.abc import Mapping
from numbers import Integral

import jax
import numpy as np

from physppl.data.data import Data, repeats
from physppl.dynamics import Dynamics
from physppl.dynamics.likelihood import Dependence
from physppl.evaluation.predictive_scores import forecastable
from physppl.internal.errors import PhyspplWarning, unknown
from physppl.posterior.posterior import Posterior


def check_arguments(posteriors, test_data, reference, horizons, draws) -> tuple[int, ...]:
    """Refuse arguments that cannot be compared; return the horizons, including 1, sorted."""
    if not isinstance(posteriors, Mapping):
        raise TypeError(f"compare takes {{name: posterior}}; got {type(posteriors).__name__}.")
    if not posteriors:
        raise ValueError("compare: no posterior was given; pass {name: posterior}.")
    for name, posterior in posteriors.items():
        if hasattr(posterior, "get_samples"):
            raise TypeError(
                f"compare: {name!r} is a NumPyro {type(posterior).__name__}. Convert it first: "
                "physppl.inference.from_numpyro(mcmc)."
            )
        if not isinstance(posterior, Posterior):
            raise TypeError(
                f"compare: {name!r} must be a Posterior, as pp.fit returns it; got {type(posterior).__name__}."
            )
    if reference is not None and reference not in posteriors:
        raise unknown("posterior", str(reference), map(str, posteriors), "compare(reference=...)")
    horizons = tuple(horizons)
    if any(not isinstance(h, Integral) or isinstance(h, bool) or h < 1 for h in horizons):
        raise ValueError(f"compare: horizons are whole numbers of steps from 1; got {horizons}.")
    if draws < 2:
        raise ValueError(f"compare: the spread of a posterior needs draws of at least 2; got {draws}.")
    models = {name: p.model for name, p in posteriors.items() if isinstance(p.model, Dynamics)}
    _same_machine(models)
    if test_data is not None:
        _check_test_data(models, test_data)
    return tuple(sorted({1, *map(int, horizons)}))


def measured(data: Data) -> np.ndarray:
    """Mask (d,) of the coordinates of which the data have an outcome."""
    outcomes = np.asarray(data.outcomes, float)
    counted = np.isfinite(outcomes) & np.asarray(data.valid)[..., None]
    return np.any(counted.reshape(-1, outcomes.shape[-1]), axis=0)


def _same_machine(models: dict[str, Dynamics]) -> None:
    """Refuse posteriors that predict different quantities; their programs may differ."""
    quantities = [(m.state, m.action, m.sensing.space, m.dt) for m in models.values()]
    for name, described in zip(models, quantities, strict=True):
        for what, expected, got in zip(("state", "action", "sensors", "dt"), quantities[0], described, strict=True):
            if expected != got:
                raise ValueError(
                    f"compare: {next(iter(models))!r} and {name!r} are about different machines: {what} {expected} and "
                    f"{got}. Compare posteriors of one machine."
                )


def _check_test_data(models: dict[str, Dynamics], data) -> None:
    if not isinstance(data, Data):
        raise TypeError(f"compare: test_data must be Transitions or Trajectories; got {type(data).__name__}.")
    if not models:
        raise ValueError(
            "compare: none of the posteriors is about a Dynamics, so none predicts test_data. Leave test_data out, or "
            "pass the Dynamics inside the model: physppl.inference.from_numpyro(mcmc, dynamics, data)."
        )
    if data.outcomes is None:
        raise ValueError(f"compare: test_data must have outcomes, not inputs alone; got {data}.")
    if data.machines:
        raise ValueError(f"compare: test_data of a fleet {data.machines}; compare one machine at a time.")
    if not np.any(data.valid):
        raise ValueError(f"compare: test_data has no valid outcome; got {data}.")
    next(iter(models.values())).check(data)


def notes(posteriors, test_data, dataset) -> tuple[str, ...]:
    """Caveats of a comparison; warns also where a fit used some of the test data."""
    lines = []
    seen = {name: repeats(p.data, test_data) for name, p in posteriors.items()}
    if names := [name for name, count in seen.items() if count]:
        lines.append(
            f"{max(seen.values())} of the test data were among those that {', '.join(names)} was fitted to: these "
            "figures are in-sample. Hold some data out."
        )
        warnings.warn(f"compare: {lines[-1]}", PhyspplWarning, stacklevel=3)
    if len({_content(p.data) for p in posteriors.values()}) > 1:
        lines.append("the fits are of different data: their ELPD-LOO do not compare.")
    if test_data is not None:
        lines += _missing_windows(posteriors, test_data, dataset)
        lost = (~np.isfinite(dataset.rmse)).any("coordinate") & (dataset.outcomes > 0)
        for name in dataset.posterior.values[lost.any("horizon").values]:
            predicts = isinstance(posteriors[name].model, Dynamics)
            why = "some are not finite" if predicts else "its model is not a Dynamics"
            lines.append(f"{name} lacks predictions: {why}.")
    if reasons := _blank(posteriors, test_data, dataset):
        lines.append(f"not computed: {'; '.join(reasons)}.")
    return tuple(lines)


def _blank(posteriors, test_data, dataset) -> list[str]:
    """Figures that no posterior has, each with the reason."""
    reasons = []
    if test_data is not None and not (read := measured(test_data)).all():
        model = next(p.model for p in posteriors.values() if isinstance(p.model, Dynamics))
        names = np.array(model.likelihood(test_data).space(model).names)[~read]
        reasons.append(f"scores of {', '.join(names)}, of which the test data have no {test_data.row}")
    if test_data is not None and dataset.crps.isnull().all() and dataset.rmse.notnull().any():
        reasons.append("CRPS, which has no closed form for Student-t noise")
    if dataset.elpd_loo.isnull().all():
        fitted = [p.data for p in posteriors.values()]
        single = all(isinstance(d, Data) and (g := d.groups()) is not None and len(np.unique(g)) < 2 for d in fitted)
        why = f"one {fitted[0].part} each" if single else "data or posteriors without log likelihoods of several parts"
        reasons.append(f"ELPD-LOO, se and k, as the fits are of {why}")
    if dataset.seconds.isnull().all():
        reasons.append("seconds of the fits, which only an object that pp.fit has returned itself remembers")
    return reasons


def _missing_windows(posteriors, test_data, dataset) -> list[str]:
    """Note of the horizons over which some of the test data, or all, cannot be forecast."""
    model = next(p.model for p in posteriors.values() if isinstance(p.model, Dynamics))
    if (dependence := model.likelihood(test_data).dependence) is not Dependence.RECORDINGS:
        empty = ", ".join(str(h) for h in dataset.horizon.values[dataset.outcomes.values == 0])
        why = f"each {test_data.row} of {type(test_data).__name__} is forecast by itself."
        if dependence is Dependence.ROWS:
            why = "rows follow each other where each row's next state is the next row's state."
        return [f"the test data hold no window of {empty} steps: {why}"] if empty else []
    count = test_data.rows().batch_shape[0]
    short = {h: count - len(forecastable(test_data, int(h), model)) for h in dataset.horizon.values if h > 1}
    where = ", ".join(f"of {h} steps in {n} of {count} recordings" for h, n in short.items() if n)
    return [f"there is no window {where}: it ends where all sensors were read."] if where else []


def _content(data) -> tuple[bytes, ...]:
    if isinstance(data, Data):
        return tuple(data.parts())
    return tuple(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(data))
