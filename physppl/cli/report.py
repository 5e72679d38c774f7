"""Results of `physppl identify`, as JSON and as tables."""

import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from physppl.data.spaces import ActionSpace, StateSpace
from physppl.evaluation.recording_forecasts import Ahead
from physppl.internal.errors import Status
from physppl.internal.tables import aligned
from physppl.internal.units import label, pretty
from physppl.posterior.identifiability import DETERMINED, UNDETERMINED, Identifiability
from physppl.posterior.initial_states import initial_states

PACKAGES = ("physppl", "jax", "numpyro", "numpy")
ERRORS = {"rmse": "mean", "rmse_straight": "straight", "rmse_constant": "constant"}  # of which prediction
FEW = 0.7  # share of readings in 90 % intervals; a smaller one is unlikely to be chance, even with few held-out motions
TOLD = 3.0  # nats of evidence by which one delay must beat another
LISTED = 3  # combinations that are listed


def scores(ahead: list[list[Ahead]], sensors: StateSpace) -> list[dict]:
    """One dict per sensor and horizon, over all recordings; `ahead` holds one forecast per recording and horizon."""
    rows = []
    for at_horizon in zip(*ahead, strict=True):
        count = np.array([len(a.times) for a in at_horizon])
        for i, (name, unit) in enumerate(zip(sensors.names, sensors.units, strict=True)):
            rmse = {
                error: float(np.sqrt(np.average([a.rmse(of)[i] ** 2 for a in at_horizon], weights=count)))
                for error, of in ERRORS.items()
            }
            inside = float(np.concatenate([a.inside[:, i] for a in at_horizon]).mean())
            spread = float(np.std(np.concatenate([a.readings[:, i] for a in at_horizon])))
            rows.append(
                {
                    "sensor": name,
                    "unit": pretty(unit),
                    "horizon": at_horizon[0].horizon,
                    "begins": [a.begins for a in at_horizon],
                    "predictions": int(count.sum()),
                    **rmse,
                    "fit_percent": 100 * (1 - rmse["rmse"] / spread) if spread > 0 else math.nan,
                    "coverage_90": inside,
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    """Format the scores as an aligned table; `fit` is 1 - RMSE / sd of the readings, MATLAB's fit percent (NRMSE)."""
    head = ["held out: RMSE of", "ahead", "model", "constant rate", "constant", "fit", "in 90 % interval"]
    head += ["predictions", "from"]
    body = [
        [
            label(row["sensor"], row["unit"]),
            f"{row['horizon']:.3g} s",
            *(f"{row[error]:.3g}" for error in ERRORS),
            f"{row['fit_percent']:.1f}%",
            f"{row['coverage_90']:.0%}",
            str(row["predictions"]),
            f"{min(row['begins']):.3g} s",
        ]
        for row in rows
    ]
    return "\n".join(aligned([head, *body], {0}))


def remarks(rows: list[dict], evidence: dict[str, float] | None) -> list[str]:
    """Warnings drawn from held-out scores, and from the evidence of input delays, with remedies."""
    narrow = [f"{row['sensor']} at {row['horizon']:.3g} s" for row in rows if row["coverage_90"] < FEW]
    idle = [row["sensor"] for row in rows if row["rmse"] >= min(row["rmse_straight"], row["rmse_constant"])]
    texts = _of_delay(evidence) if evidence else []
    if narrow:
        texts.append(
            f"90 % intervals are too narrow for what was held out ({', '.join(narrow)}): fit recordings of more kinds, "
            "say --variation 0.04, or look for physics that the program lacks."
        )
    if idle:
        texts.append(
            f"predictions of {', '.join(dict.fromkeys(idle))} are no better than holding a rate or a reading: check "
            "--delay, signs and units of columns, and the program."
        )
    return texts


def _of_delay(evidence: dict[str, float]) -> list[str]:
    """Warning where other delays explain the data as well, or longer ones than were tried might explain them better."""
    best, last = max(evidence, key=lambda steps: evidence[steps]), list(evidence)[-1]
    rivals = [steps for steps in evidence if steps != best and evidence[steps] > evidence[best] - TOLD]
    if rivals:
        gap = evidence[best] - max(evidence[steps] for steps in rivals)
        return [
            f"the recordings cannot tell a delay of {best} samples from {' or '.join(rivals)} (log evidence "
            f"{gap:.1f} nats lower): errors of the inputs absorb a delay. Record faster inputs, say --exact-inputs if "
            "they are, or give the known --delay."
        ]
    if best == last:
        return [f"the longest delay that was tried, {last} samples, explains best: give a longer one with --delay."]
    return []


def determined(identified: Identifiability) -> str:
    """Number of combinations of parameters that the data determine, and those that they do not."""
    count, undetermined = (identified.eigenvalues < DETERMINED).sum(), identified.eigenvalues > UNDETERMINED
    text = f"identifiability: {count} of {len(identified.names)} combinations determined, {undetermined.sum()} not"
    listed = [identified.combination(int(i)) for i in np.flatnonzero(undetermined)[:LISTED]]
    return f"{text}: {'; '.join(listed)}" if listed else text


def result(posterior, summary, verdict, identified, rows, model, evidence, files, seconds, options) -> dict:
    """All results, as the dict written to JSON.

    Args:
        summary, verdict, identified: the posterior's `summary()`, `check()` and `identifiability`.
        rows: of `scores`.
        model: its name.
        evidence: {input delay: log evidence}, or None.
        files: the recordings that were used.
        seconds: of the fit.
        options: of the command.
    """
    dynamics, sensing = posterior.model, posterior.model.sensing
    columns = ("mean", "sd", "low", "high", "unit", "contraction", "verdict")
    names = {"low": "p5", "high": "p95", "contraction": "sd_over_prior_sd"}
    parameters = {row["name"]: {names.get(k, k): row[k] for k in columns} for row in summary.rows}
    for entry in parameters.values():
        entry["unit"] = pretty(entry["unit"])
    combinations = [
        {"variance_left": float(value), "combination": identified.combination(i)}
        for i, value in enumerate(identified.eigenvalues)
    ]
    return {
        "model": model,
        "method": posterior.method,
        "status": Status(int(posterior.status)).name,
        "dt": dynamics.dt,
        "sensors": _units(sensing.space),
        "inputs": _units(dynamics.action),
        "input_delay": sensing.delay if isinstance(sensing.delay, int) else "inferred",
        "log_evidence_by_delay": evidence,
        "parameters": parameters,
        "initial_states": initial_states(posterior).rows,
        "verdict": verdict.verdict,
        "reasons": [{"verdict": r.verdict, "finding": r.finding, "remedy": r.remedy} for r in verdict.reasons],
        "figures": dict(verdict.figures) | posterior.facts(),
        "identifiability": {"combinations": combinations, "unused": list(identified.unused)},
        "held_out": rows,
        "remarks": remarks(rows, evidence),
        "files": files,
        "seconds": {"fit": seconds["seconds"], "compiling": seconds["compiling"]},
        "options": options,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _units(space: StateSpace | ActionSpace) -> dict[str, str]:
    return {name: pretty(unit) for name, unit in zip(space.names, space.units, strict=True)}


def plain(value: Any) -> Any:
    """Convert to what JSON has: paths to text, numbers that are not finite to None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
