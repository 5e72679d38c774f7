"""`physppl identify`: from recordings of a machine to its parameters with units, verdicts, and held-out predictions."""

import json as json_text
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import numpy as np
from tyro.conf import arg

import physppl as pp
from physppl import plots
from physppl.cli import machine, recorded, report
from physppl.cli.console import listed, make_writable, one_line_errors, option, timed
from physppl.cli.program_file import dynamics_file
from physppl.data.readers import TIME
from physppl.dynamics.sensors import lagged
from physppl.evaluation.recording_forecasts import predict_ahead, standardised_residuals
from physppl.inference import HMC, Laplace
from physppl.plots.recordings import prediction, residuals
from physppl.posterior.backend import Backend

SAVED = "posterior.physppl"
DELAYS = range(5)  # steps that --delay auto compares
FILES = {
    "identified.json": "all numbers below, for scripts",
    "posterior.nc": "the posterior for ArviZ: xarray.open_datatree(path)",
    "parameters.png": "posterior over prior",
    "prediction.png": "held-out readings, predicted open loop",
    "residuals.png": "readings minus their one-step predictions, in sds",
}


def identify(
    data: Annotated[tuple[Path, ...], option("recordings: CSV, npz or netCDF, one each", metavar="FILE ...")] = (),
    model: Annotated[str | None, option(f"one of {', '.join(machine.MODELS)}", metavar="NAME")] = None,
    program: Annotated[Path | None, option("or a Python file that defines `dynamics`", metavar="FILE")] = None,
    out: Annotated[Path, arg(help="of the results", metavar="FOLDER")] = Path("out"),
    held_out: Annotated[tuple[Path, ...], option("recordings to predict", "the last fifth of each", "FILE ...")] = (),
    columns: Annotated[tuple[str, ...], option("e.g. arm=state:0 time=stamp", metavar="NAME=COLUMN ...")] = (),
    units: Annotated[tuple[str, ...], option("in the file, e.g. arm=deg time=ms", metavar="NAME=UNIT ...")] = (),
    sensors: Annotated[tuple[str, ...], option("coordinates that were measured", "all with a column", "NAME ...")] = (),
    dt: Annotated[float | None, option("s between samples, for files without a time column")] = None,
    since: Annotated[float | None, option("s on each recording's clock: earlier samples are left out")] = None,
    until: Annotated[float | None, option("s on each recording's clock: samples from there on are left out")] = None,
    unwrap: Annotated[bool, arg(help="count the turns of angles kept between -pi and pi")] = False,
    delay: Annotated[str | None, option("until an input acts, or auto: 0 to 4 by evidence", metavar="SAMPLES")] = None,
    before: Annotated[Literal["zero", "first"], arg(help="input before the first sample, for late inputs")] = "zero",
    start_at_rest: Annotated[bool, arg(help="what is not measured is zero at the first sample")] = False,
    exact_inputs: Annotated[bool, arg(help="take recorded inputs for exact; see above")] = False,
    segment: Annotated[int, arg(help="samples from one process noise to the next; see above")] = 1,
    variation: Annotated[float | None, option("sd by which parameters differ between recordings; see above")] = None,
    horizon: Annotated[float, arg(help="s, of the longer held-out prediction; the other is a fifth of it")] = 0.5,
    save: Annotated[bool, arg(help="keep the posterior in posterior.physppl, for physppl.load(path, model)")] = False,
    method: Annotated[Literal["laplace", "hmc"], arg(help="laplace: seconds; hmc: samples, takes longer")] = "laplace",
    seed: Annotated[int, arg(help="of every random choice")] = 0,
    json: Annotated[bool, arg(help="print the JSON instead of tables; progress goes to standard error")] = False,
) -> None:
    """Identify a machine from recordings: parameters with units and verdicts, and predictions of held-out data.

    A file has a column for the time (`t` or `time`), one per sensor and one per input, found by the model's names or
    --columns; "state:0" is the first column of an array of an npz or netCDF file. Empty cells are missing readings.

    Unless the program specifies noise, it gets that of real machines: process noise of HalfNormal(0.1) scales on
    velocities and HalfNormal(1e-5) on positions, which are integrals of velocities; an input error in proportion to
    the input (HalfNormal(0.1)) and to its last change (HalfNormal(0.5)), unless --exact-inputs. With --segment 25
    noise enters every 25 samples: parameters are fitted to predict that far ahead, and their sds are smaller.
    Inputs that are late act before the first sample: by --before they are zero then, or those of the first sample.
    --since and --until leave only a part of each recording, held-out ones included; the inputs before it are known.
    --variation is the sd by which parameters differ between recordings, in unconstrained space, where a prior's sd is
    about 1 (0.04, say): one recording cannot determine it, and without it the posterior holds for that recording alone.
    """
    options = dict(locals())
    start = time.perf_counter()
    emit = partial(print, file=sys.stderr if json else sys.stdout, flush=True)
    with one_line_errors("identify", program), redirect_stdout(sys.stderr) if json else nullcontext():
        key = jax.random.key(seed)
        dynamics = _chosen_dynamics(model, program, data)
        make_writable(out, "identify")
        files = recorded.read(
            dynamics, data, held_out, sensors, columns=_pairs(columns, "columns"), units=_pairs(units, "units"),
            dt=dt, unwrap=unwrap, since=since, until=until, at_rest=start_at_rest, segment=segment,
            before=0.0 if before == "zero" else before,
        )  # fmt: skip
        dynamics = machine.for_real_recordings(files.dynamics, exact_inputs)
        name = model or Path(str(program)).stem
        if variation is not None:
            dynamics = dynamics.rebound(variation=variation)
        emit(_opening(name, dynamics, files, held_out))
        recorded.check(dynamics, files, horizon)
        dynamics, evidence = _delayed(key, dynamics, files.train, delay, emit)
        backend = HMC() if method == "hmc" else Laplace()
        with timed("fitted", emit) as seconds:
            posterior = _fit(key, dynamics, pp.Trajectories.stack(files.train), backend)
        with timed("checked", emit):
            verdict, table, identified = posterior.check(), posterior.summary(), pp.identifiability(posterior)
        with timed("predicted", emit):
            horizons = (horizon / 5, horizon)
            ahead = [
                [predict_ahead(jax.random.fold_in(key, i), posterior, r, h, since=files.since[i]) for h in horizons]
                for i, r in enumerate(files.test)
            ]
        scores = report.scores(ahead, dynamics.sensing.space)
        result = report.result(
            posterior, table, verdict, identified, scores, name, evidence, files.facts(), seconds, options
        )
        with timed("drawn and saved", emit):
            plots.parameters(posterior).savefig(out / "parameters.png")
            names = [path.stem for path in files.test_paths]
            prediction([pair[-1] for pair in ahead], files.test, dynamics, names).savefig(out / "prediction.png")
            errors = [standardised_residuals(key, posterior, r) for r in files.train]
            residuals(errors, files.train, dynamics).savefig(out / "residuals.png")
            posterior.to_arviz().to_netcdf(out / "posterior.nc")
            if save:
                posterior.save(out / SAVED)
            result["seconds"]["total"] = time.perf_counter() - start
            text = json_text.dumps(report.plain(result), indent=2, allow_nan=False)
            (out / "identified.json").write_text(text + "\n")
    if json:
        print(text)
        return
    emit(f"\n{table.text()}\n\n{verdict}\n{report.determined(identified)}\n\n{report.table(scores)}")
    emit("".join(f"- {remark}\n" for remark in report.remarks(scores, evidence)))
    emit(f"Done in {time.perf_counter() - start:.0f} s. In {out}:")
    for name, what in (FILES | ({SAVED: "the posterior for physppl.load(path, model)"} if save else {})).items():
        emit(f"  {name:20s}{what}")


def _chosen_dynamics(model: str | None, program: Path | None, data: Sequence[Path]) -> pp.Dynamics:
    if (model is None) == (program is None):
        names = ", ".join(machine.MODELS)
        raise ValueError(f"give either --model, one of {names}, or --program, a Python file that defines `dynamics`.")
    dynamics = dynamics_file(program) if program is not None else machine.model(str(model))
    if not data:
        raise ValueError(
            f"no recording: --data is empty; {model or program} takes CSV, npz or netCDF files with a time column, its "
            f"inputs, and what was measured of: {listed(dynamics.sensing.space)}, {listed(dynamics.action)}. --columns "
            "maps other names."
        )
    return dynamics


def _opening(name: str, dynamics: pp.Dynamics, files: recorded.IdentificationData, held_out) -> str:
    sensors, inputs = listed(dynamics.sensing.space), listed(dynamics.action)
    lines = [f"{name}: sensors {sensors}; inputs {inputs}; every {dynamics.dt:.4g} s."]
    for path, data in zip(files.paths, files.train, strict=True):
        missing = int(np.sum(~data.valid))
        note = f" from {data.times[0]:.4g} to {data.times[-1]:.4g} s"
        note += f", {missing} without a reading" if missing else ""
        note += "" if data.regular else ", irregular"
        lines.append(f"   {path.name}: {len(data)} samples{note}")
    test = ", ".join(p.name for p in held_out) if held_out else "the last fifth of each"
    return "\n".join([*lines, f"   held out and predicted: {test}"])


def _delayed(key, dynamics, train, delay: str | None, emit) -> tuple[pp.Dynamics, dict[str, float] | None]:
    """Dynamics with its input delay, and the log evidence of each candidate for --delay auto."""
    if delay is None:
        return dynamics, None
    if delay != "auto":
        if not delay.isdigit():
            raise ValueError(f"--delay must be a whole number of samples or auto; got {delay}.")
        return dynamics.rebound(input_delay=int(delay)), None
    undelayed, evidence = dynamics.rebound(input_delay=0), {}
    for steps in DELAYS:  # delayed inputs are shifted rows: one compiled program serves all delays
        parts = [
            eqx.tree_at(lambda data: data.actions, r, np.asarray(lagged(r.actions, steps, r.before))) for r in train
        ]
        with timed(f"input {steps} samples late", emit):
            posterior = _fit(key, undelayed, pp.Trajectories.stack(parts), Laplace())
        evidence[str(steps)] = float(posterior.log_evidence)
        emit(f"      log evidence {evidence[str(steps)]:.1f} nats")
    best = max(evidence, key=lambda steps: evidence[steps])
    emit(f"   the likeliest: the input acts {best} samples late")
    return dynamics.rebound(input_delay=int(best)), evidence


def _fit(key, dynamics: pp.Dynamics, data: pp.Trajectories, backend: Backend) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pp.PhyspplWarning)  # the table and the check report it
        return pp.fit(key, dynamics, data, backend)


def _pairs(texts: Sequence[str], option: str) -> dict[str, Any]:
    """{name: value} of name=value texts; `--columns time=` is None: no column is the clock."""
    pairs = [text.partition("=") for text in texts]
    for name, equals, value in pairs:
        if not (name and equals and (value or (option, name) == ("columns", TIME))):
            raise ValueError(f"--{option} takes name=value, e.g. {option} arm=state:0; got {name}{equals}{value}.")
    return {name: value or None for name, _, value in pairs}
