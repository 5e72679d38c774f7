"""Recordings of `physppl identify`: read from their files, cut, split into fitted and held-out ones, and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

import physppl as pp
from physppl.cli import machine
from physppl.data import readers, tables
from physppl.data.trajectories import concrete_spacing

REST = 1e-3  # scales: sd of what is zero at the first sample, by --start-at-rest
HELD_OUT = 5  # one part in so many of each recording, its last, is held out


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


def read(
    base: pp.Dynamics, paths: Sequence[Path], held_out: Sequence[Path], sensors: Sequence[str], *,
    since: float | None, until: float | None, at_rest: bool, segment: int, before: Any, **reading: Any,
) -> IdentificationData:  # fmt: skip
    """Read the recordings' files, bind the dynamics to their sensors and step, and split them.

    Args:
        base: dynamics as the model or the program gives them.
        held_out: files to predict; empty: the last fifth of each of `paths`.
        sensors: coordinates that were measured; empty: those with a column.
        since, until: s on each recording's clock, of the part that is read.
        at_rest: what is not measured is zero at the first sample.
        segment, before: of Trajectories.
        reading: of `readers.recording`: columns, units, dt, unwrap.

    Raises:
        ValueError: naming the file.
    """
    read_tables = {path: tables.read(path) for path in (*paths, *held_out)}
    first, sensing = read_tables[paths[0]], base.sensing
    if sensors:
        base = base.rebound(sensors=tuple(sensors), observe=None)
    elif sensing.observe is None and len(sensing.index) == len(base.state):  # the program does not specify sensors
        measured = tuple(n for n in base.state.names if readers.has_column(first, reading["columns"].get(n) or n))
        if measured:  # else the reader's error names the missing columns
            base = base.rebound(sensors=measured)
    recordings = {}
    for path, table in read_tables.items():
        whole = pp.Trajectories(**readers.recording(table, base, **reading), segment=segment, before=before)
        part = _between(path, whole, since, until)
        recordings[path] = _at_rest(base, part) if at_rest else part
    step = float(np.median([concrete_spacing(recordings[path]) for path in paths]))
    if step > 0:
        base = machine.stepping(base, step)
    whole = [recordings[path] for path in paths]
    if held_out:
        test = [recordings[path] for path in held_out]
        return IdentificationData(base, paths, whole, held_out, test, [-np.inf] * len(test))
    cuts = [len(r) - len(r) // HELD_OUT for r in whole]
    starts = [float(r.times[min(cut, len(r) - 1)]) for r, cut in zip(whole, cuts, strict=True)]
    return IdentificationData(base, paths, [r[:cut] for r, cut in zip(whole, cuts, strict=True)], paths, whole, starts)


def _between(path: Path, recording: pp.Trajectories, since: float | None, until: float | None) -> pp.Trajectories:
    """The part of a recording that --since and --until leave, as it is where neither is given."""
    if since is None and until is None:
        return recording
    try:
        return recording.between(-np.inf if since is None else since, np.inf if until is None else until)
    except ValueError:
        options = " ".join(f"--{k} {v:g}" for k, v in (("since", since), ("until", until)) if v is not None)
        first, last = float(recording.times[0]), float(recording.times[-1])
        raise ValueError(
            f"{path}: {options} leaves no sample: the recording's clock runs from {first:g} to {last:g} s."
        ) from None


def _at_rest(dynamics: pp.Dynamics, recording: pp.Trajectories) -> pp.Trajectories:
    """The recording with a first state of which all that is not measured is zero."""
    if dynamics.sensing.observe is not None:
        raise ValueError("--start-at-rest takes sensors that are coordinates of the state; this program has observe=.")
    measured, scale = list(dynamics.sensing.index), dynamics.state.scale
    mean, sd = np.zeros(len(scale)), REST * scale
    mean[measured] = np.asarray(recording.observations)[np.argmax(recording.seen, axis=0), range(len(measured))]
    sd[measured] = scale[measured]
    return eqx.tree_at(lambda r: r.start, recording, (mean, sd), is_leaf=lambda x: x is None)


def check(dynamics: pp.Dynamics, recorded: IdentificationData, horizon: float) -> None:
    """Check the data before a long fit."""
    for path, data in zip((*recorded.paths, *recorded.test_paths), (*recorded.train, *recorded.test), strict=True):
        try:
            dynamics.check(data)
        except ValueError as error:
            hint = " (Degrees: --units name=deg.)" if "half a turn" in str(error) else ""
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
