"""`physppl identify`: from recordings of a machine to its parameters with units, verdicts, and held-out predictions."""

import json as json_text
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np
from tyro.conf import arg

import physppl as pp
from physppl import plots
from physppl.cli import machine, report
from physppl.cli.console import listed, make_writable, timed
from physppl.data import readers, tables
from physppl.data.trajectories import concrete_spacing
from physppl.dynamics.sensors import lagged
from physppl.evaluation.recording_forecasts import predict_ahead, standardised_residuals
from physppl.inference import HMC, Laplace
from physppl.plots.recordings import prediction, residuals
from physppl.posterior.backend import Backend

SAVED = "posterior.physppl"
REST = 1e-3  # scales: sd of what is zero at the first sample, by --start-at-rest
DELAYS = range(5)  # steps that --delay auto compares
HELD_OUT = 5  # one part in so many of each recording, its last, is held out
FILES = {
    "identified.json": "all numbers below, for scripts",
    "posterior.nc": "the posterior for ArviZ: xarray.open_datatree(path)",
    "parameters.png": "posterior over prior",
    "prediction.png": "held-out readings, predicted open loop",
    "residuals.png": "readings minus their one-step predictions, in sds",
}


def identify(
    data: Annotated[tuple[Path, ...], arg(help="recordings: CSV, npz or netCDF files, one recording each")] = (),
    model: Annotated[str | None, arg(help=f"one of {', '.join(machine.MODELS)}")] = None,
    program: Annotated[Path | None, arg(help="or a Python file that defines `dynamics`, a physppl.Dynamics")] = None,
    out: Annotated[Path, arg(help="folder of the results")] = Path("out"),
    held_out: Annotated[tuple[Path, ...], arg(help="recordings to predict (default: the last fifth of each)")] = (),
    columns: Annotated[tuple[str, ...], arg(help="name=column where they differ, e.g. arm=state:0 time=stamp")] = (),
    units: Annotated[tuple[str, ...], arg(help="name=unit of columns that are not in the model's, e.g. arm=deg")] = (),
    sensors: Annotated[tuple[str, ...], arg(help="coordinates that were measured (default: all with a column)")] = (),
    dt: Annotated[float | None, arg(help="s between samples, for files without a time column")] = None,
    unwrap: Annotated[bool, arg(help="count the turns of angles kept between -pi and pi")] = False,
    delay: Annotated[str | None, arg(help="samples until an input acts, or `auto`: 0 to 4 by evidence")] = None,
    before: Annotated[Literal["zero", "first"], arg(help="input before the first sample, for late inputs")] = "zero",
    start_at_rest: Annotated[bool, arg(help="what is not measured is zero at the first sample")] = False,
    exact_inputs: Annotated[bool, arg(help="take recorded inputs for exact; see above")] = False,
    segment: Annotated[int, arg(help="samples from one process noise to the next; see above")] = 1,
    variation: Annotated[float | None, arg(help="sd by which parameters differ between recordings; see above")] = None,
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
    --variation is the sd by which parameters differ between recordings, in unconstrained space, where a prior's sd is
    about 1 (0.04, say): one recording cannot determine it, and without it the posterior holds for that recording alone.
    """
    options = dict(locals())
    start = time.perf_counter()
    emit = partial(print, file=sys.stderr if json else sys.stdout, flush=True)
    with _one_line_errors(program), redirect_stdout(sys.stderr) if json else nullcontext():
        key = jax.random.key(seed)
        dynamics = _chosen_dynamics(model, program, data)
        make_writable(out, "identify")
        recorded = _read(
            dynamics, data, held_out, _pairs(columns, "columns"), _pairs(units, "units"), sensors, dt, unwrap,
            {"segment": segment, "before": 0.0 if before == "zero" else before}, start_at_rest,
        )  # fmt: skip
        dynamics = machine.for_real_recordings(recorded.dynamics, exact_inputs)
        name = model or Path(str(program)).stem
        if variation is not None:
            dynamics = dynamics.rebound(variation=variation)
        emit(_opening(name, dynamics, recorded, held_out))
        _check(dynamics, recorded, horizon)
        dynamics, evidence = _delayed(key, dynamics, recorded.train, delay, emit)
        backend = HMC() if method == "hmc" else Laplace()
        with timed("fitted", emit) as seconds:
            posterior = _fit(key, dynamics, pp.Trajectories.stack(recorded.train), backend)
        with timed("checked", emit):
            verdict, table, identified = posterior.check(), posterior.summary(), pp.identifiability(posterior)
        with timed("predicted", emit):
            horizons = (horizon / 5, horizon)
            ahead = [
                [predict_ahead(jax.random.fold_in(key, i), posterior, r, h, since=recorded.since[i]) for h in horizons]
                for i, r in enumerate(recorded.test)
            ]
        scores = report.scores(ahead, dynamics.sensing.space)
        result = report.result(
            posterior, table, verdict, identified, scores, name, evidence, recorded.facts(), seconds, options
        )
        with timed("drawn and saved", emit):
            plots.parameters(posterior).savefig(out / "parameters.png")
            names = [path.stem for path in recorded.test_paths]
            prediction([pair[-1] for pair in ahead], recorded.test, dynamics, names).savefig(out / "prediction.png")
            errors = [standardised_residuals(key, posterior, r) for r in recorded.train]
            residuals(errors, recorded.train, dynamics).savefig(out / "residuals.png")
            posterior.to_arviz().to_netcdf(out / "posterior.nc")
            if save:
                posterior.save(out / SAVED)
            result["seconds"]["total"] = time.perf_counter() - start
            text = json_text.dumps(report.plain(result), indent=2, allow_nan=False)
            (out / "identified.json").write_text(text + "\n")
    if json:
        print(text)
        return
    emit(f"\n{table}\n\n{verdict}\n{report.determined(identified)}\n\n{report.table(scores)}")
    emit("".join(f"- {remark}\n" for remark in report.remarks(scores, evidence)))
    emit(f"Done in {time.perf_counter() - start:.0f} s. In {out}:")
    for name, what in (FILES | ({SAVED: "the posterior for physppl.load(path, model)"} if save else {})).items():
        emit(f"  {name:20s}{what}")


class IdentificationData(NamedTuple):
    """Recordings read from the files, split into fitted and held-out ones."""

    dynamics: pp.Dynamics  # bound to the recorded sensors and their step
    paths: Sequence[Path]
    train: Sequence[pp.Trajectories]
    test_paths: Sequence[Path]
    test: Sequence[pp.Trajectories]  # whole recordings: the filter needs the readings before the held-out part
    since: Sequence[float]  # s, time from which each is predicted

    def facts(self) -> dict[str, list]:
        return {
            "fitted": [{"path": str(p), "samples": len(r)} for p, r in zip(self.paths, self.train, strict=True)],
            "predicted": [
                {"path": str(p), "since": s if np.isfinite(s) else float(r.times[0])}
                for p, r, s in zip(self.test_paths, self.test, self.since, strict=True)
            ],
        }


def _chosen_dynamics(model: str | None, program: Path | None, data: Sequence[Path]) -> pp.Dynamics:
    if (model is None) == (program is None):
        names = ", ".join(machine.MODELS)
        raise ValueError(f"give either --model, one of {names}, or --program, a Python file that defines `dynamics`.")
    dynamics = machine.program(program) if program is not None else machine.model(str(model))
    if not data:
        raise ValueError(
            f"no recording: --data is empty; {model or program} takes CSV, npz or netCDF files with a time column, its "
            f"inputs, and what was measured of: {listed(dynamics.sensing.space)}, {listed(dynamics.action)}. --columns "
            "maps other names."
        )
    return dynamics


def _read(base, paths, held_out, columns, units, sensors, dt, unwrap, options, at_rest: bool) -> IdentificationData:
    read_tables = {path: tables.read(path) for path in (*paths, *held_out)}
    first, sensing = read_tables[paths[0]], base.sensing
    if sensors:
        base = base.rebound(sensors=tuple(sensors), observe=None)
    elif sensing.observe is None and len(sensing.index) == len(base.state):  # the program does not specify sensors
        measured = tuple(n for n in base.state.names if readers.has_column(first, columns.get(n, n)))
        if measured:  # else the reader's error names the missing columns
            base = base.rebound(sensors=measured)
    read = {
        path: pp.Trajectories(
            **readers.recording(table, base, columns=columns, units=units, dt=dt, unwrap=unwrap), **options
        )
        for path, table in read_tables.items()
    }
    if at_rest:
        read = {path: _at_rest(base, recording) for path, recording in read.items()}
    step = float(np.median([concrete_spacing(read[path]) for path in paths]))
    if step > 0:
        base = machine.stepping(base, step)
    whole = [read[path] for path in paths]
    if held_out:
        test = [read[path] for path in held_out]
        return IdentificationData(base, paths, whole, held_out, test, [-np.inf] * len(test))
    cuts = [len(r) - len(r) // HELD_OUT for r in whole]
    since = [float(r.times[min(cut, len(r) - 1)]) for r, cut in zip(whole, cuts, strict=True)]
    return IdentificationData(base, paths, [r[:cut] for r, cut in zip(whole, cuts, strict=True)], paths, whole, since)


def _at_rest(dynamics: pp.Dynamics, recording: pp.Trajectories) -> pp.Trajectories:
    """The recording with a first state of which all that is not measured is zero."""
    if dynamics.sensing.observe is not None:
        raise ValueError("--start-at-rest takes sensors that are coordinates of the state; this program has observe=.")
    measured, scale = list(dynamics.sensing.index), dynamics.state.scale
    mean, sd = np.zeros(len(scale)), REST * scale
    mean[measured] = np.asarray(recording.observations)[np.argmax(recording.seen, axis=0), range(len(measured))]
    sd[measured] = scale[measured]
    return eqx.tree_at(lambda r: r.start, recording, (mean, sd), is_leaf=lambda x: x is None)


def _opening(name: str, dynamics: pp.Dynamics, recorded: IdentificationData, held_out) -> str:
    sensors, inputs = listed(dynamics.sensing.space), listed(dynamics.action)
    lines = [f"{name}: sensors {sensors}; inputs {inputs}; every {dynamics.dt:.4g} s."]
    for path, data in zip(recorded.paths, recorded.train, strict=True):
        missing = int(np.sum(~data.valid))
        note = f", {missing} without a reading" if missing else ""
        note += "" if data.regular else ", irregular"
        lines.append(f"   {path.name}: {len(data)} samples{note}")
    test = ", ".join(p.name for p in held_out) if held_out else "the last fifth of each"
    return "\n".join([*lines, f"   held out and predicted: {test}"])


def _check(dynamics: pp.Dynamics, recorded: IdentificationData, horizon: float) -> None:
    """Check the data before a long fit."""
    for path, data in zip((*recorded.paths, *recorded.test_paths), (*recorded.train, *recorded.test), strict=True):
        try:
            dynamics.check(data)
        except ValueError as error:
            hint = " (--unwrap does it; of degrees, --units name=deg.)" if "half a turn" in str(error) else ""
            raise ValueError(f"{path}: {error}{hint}") from None
        if not np.any(data.valid):
            raise ValueError(f"{path}: not one sample has a reading of every sensor.")
    if horizon < 5 * dynamics.dt:
        raise ValueError(
            f"--horizon must be at least 5 steps of {dynamics.dt:.4g} s; got {horizon:g}. If the file's clock counts "
            "milliseconds: --units time=ms."
        )
    for path, data, since in zip(recorded.test_paths, recorded.test, recorded.since, strict=True):
        duration = float(data.times[-1]) - max(since, float(data.times[0]))
        if duration < horizon:
            raise ValueError(
                f"{path}: {duration:.3g} s are held out, too little for --horizon {horizon:g}. Give a shorter one, or "
                "other recordings to --held-out."
            )


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


def _pairs(texts: Sequence[str], option: str) -> Mapping[str, str]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise ValueError(f"--{option} takes name=value, e.g. {option} arm=state:0; got {name}{equals}{value}.")
    return {name: value for name, _, value in pairs}


@contextmanager
def _one_line_errors(program: Path | None) -> Iterator[None]:
    """End the command with one line on errors that a user can correct; for the user's program it names the line."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())

        def of_program(filename: str | None) -> bool:  # Python names a file by its whole path
            return bool(program and filename) and Path(str(filename)).resolve() == Path(str(program)).resolve()

        frames = [f for f in traceback.extract_tb(error.__traceback__) if of_program(f.filename)]
        if isinstance(error, SyntaxError) and of_program(error.filename):
            raise SystemExit(f"physppl identify: {program}, line {error.lineno}: {error.msg}.") from None
        if frames:
            where = f"{program}, line {frames[-1].lineno}"
            raise SystemExit(f"physppl identify: {where}: {type(error).__name__}: {text}") from None
        if isinstance(error, OSError | KeyError | ValueError | TypeError | pp.FitError):
            raise SystemExit(f"physppl identify: {text}") from None
        raise
