"""Data of the trajectory likelihood: sensor readings over time, with padding and several recordings."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from physppl.data import arguments, readers, tables
from physppl.data.data import Data, drawn_rows
from physppl.data.lengths import fine_bucket
from physppl.internal.errors import as_array, is_concrete


class Trajectories(Data):
    """Sensor readings y_k at times t_k under inputs a_k held over [t_k, t_k+1), of one machine.

    A leading axis holds several recordings of that machine (`Trajectories.stack`). States are never observed directly:
    the likelihood filters them out.

    Attributes:
        observations: (..., N, d) in the sensors' order and units, NaN for a missing reading; None: inputs alone, for
            predictive use.
        actions: (..., N, A) as recorded; an input delay belongs to the Dynamics. The last row is not used.
        valid: (..., N) bool; False marks samples without a reading (dropped, or padding). Time continues over a gap.
        times: (..., N) s, increasing.
        start: (mean, sd), (..., D) each, of the prior of the first state; None leaves it to the Dynamics.
        before: (..., A) inputs before the first sample, which act on the machine where inputs are late: numbers, or
            "first" for those of the first sample. Zero by default.
        segment: samples over which the motion is deterministic: process noise enters once per segment, with the
            variance of all its steps. 1 is a state-space model, a length beyond N single shooting.

    Raises:
        TypeError: for strings and other non-numbers, naming the argument.
        ValueError: for shapes that do not fit, or times that do not increase.
    """

    row, part = "reading", "recording"
    outcome_field = "observations"
    sequential = True

    observations: Any
    actions: Any
    valid: Any
    times: Any
    start: Any
    before: Any
    segment: int = eqx.field(static=True)
    regular: bool = eqx.field(static=True)

    def __init__(
        self, observations, actions, times=None, *, valid=None, dt=None, start=None, before=0.0, segment: int = 1
    ):
        actions = as_array(actions, "actions")
        if actions.ndim not in (2, 3) or actions.shape[-2] == 0:
            raise ValueError(
                f"actions must be (N, A), or (recordings, N, A), with N >= 1 samples; got {actions.shape}. A single "
                "input is a column: u[:, None]."
            )
        rows = actions.shape[:-1]
        if observations is not None:
            observations = as_array(observations, "observations")
            if observations.ndim < 2 or observations.shape[:-1] != rows:
                hint = arguments.time_last(observations, actions)
                raise ValueError(
                    f"observations (N, d) and actions (N, A) must have as many rows; got {observations.shape} against "
                    f"{actions.shape}.{hint} The action of the last row is not used; repeat one if it is missing."
                )
        times, regular = arguments.times(times, dt, rows)
        if not isinstance(segment, Integral) or segment < 1:
            raise ValueError(
                f"segment must be a whole number of samples of at least 1; got {segment}. One beyond the length of the "
                "recording is single shooting."
            )
        valid, start = arguments.valid(valid, rows), arguments.start(start)
        if observations is not None and is_concrete(observations, valid):
            observations, valid = arguments.readings(observations, valid)
        self.observations, self.actions, self.valid, self.times = observations, actions, valid, times
        self.start, self.segment, self.regular = start, int(segment), regular
        self.before = arguments.before(before, actions)

    def __len__(self) -> int:
        return self.actions.shape[-2]

    def __repr__(self) -> str:
        several = f"{self.batch_shape[0]} recordings of " if self.batch_shape else ""
        counted = f" ({int(np.sum(self.valid))} valid)" if is_concrete(self.valid) else ""
        seen = "inputs only" if self.observations is None else f"{self.observations.shape[-1]} sensors"
        segment = f", segments of {self.segment}" if self.segment > 1 else ""
        return f"Trajectories({several}{len(self)} samples{counted}, {seen}, {self.actions.shape[-1]} inputs{segment})"

    @property
    def seen(self) -> Any:
        """Mask (..., N, d) of the readings that count."""
        return jnp.isfinite(self.observations) & jnp.asarray(self.valid)[..., None]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """() for one recording, (recordings,) for several."""
        return tuple(self.actions.shape[:-2])

    @property
    def inputs(self) -> "Trajectories":
        return self.with_outcomes(None)

    def with_outcomes(self, outcomes) -> "Trajectories":
        if outcomes is not None:
            outcomes = as_array(outcomes, "observations").reshape(*self.actions.shape[:-1], -1)
        return eqx.tree_at(lambda t: t.observations, self, outcomes, is_leaf=lambda x: x is None)

    def bucketed(self, step: float) -> "Trajectories":
        return self.rows().pad(fine_bucket(len(self)), step)

    def join(self, other: Any) -> "Trajectories":
        return Trajectories.stack([self.rows(), other.rows()])

    def parts(self) -> list[bytes]:
        """Readings and inputs of each recording with a reading, at single precision."""
        if self.observations is None:
            return []
        rows = self.rows()
        readings, inputs = (np.asarray(x, np.float32) for x in (rows.observations, rows.actions))
        recordings = zip(readings, inputs, np.asarray(rows.valid), strict=True)
        return [y[valid].tobytes() + u[valid].tobytes() for y, u, valid in recordings if valid.any()]

    def describe(self) -> str:
        recordings = len(self.rows().valid)
        return f"{self.count} samples in {recordings} recording{'' if recordings == 1 else 's'}"

    def groups(self) -> Int[np.ndarray, " n"]:
        """Recording of each reading that counts."""
        return np.nonzero(np.asarray(self.rows().valid))[0]

    def coordinates(self) -> dict[str, np.ndarray]:
        rows = self.rows()
        return {"recording": self.groups(), "time": np.asarray(rows.times)[np.asarray(rows.valid)]}

    def resampled(self, key: PRNGKeyArray) -> "Trajectories":
        """A bootstrap sample: as many recordings, drawn with replacement from those with readings.

        Raises:
            ValueError: for a single recording.
        """
        rows = self.rows()
        if len(rows.times) < 2:
            raise ValueError("Bootstrap resamples recordings, and there is one: use Anchored() or RandomStarts().")
        counts = jnp.any(rows.valid, axis=1)
        indices = drawn_rows(key, counts, len(counts))
        drawn = jax.tree.map(lambda x: jnp.asarray(x)[indices], rows)
        return eqx.tree_at(lambda d: d.valid, drawn, drawn.valid & counts[:, None])

    def pad(self, length: int, step: float = 1.0) -> "Trajectories":
        """A copy padded to `length` samples; padding repeats the last input, continues the times and is not valid.

        Times continue at their median spacing, after a single sample at `step`, s.
        """
        extra = length - len(self)
        if extra < 0:
            raise ValueError(f"pad: {len(self)} samples do not fit into {length}.")
        if extra == 0:
            return self
        times = np.asarray(self.times, float)
        step = np.median(np.diff(times, axis=-1)) if len(self) > 1 else step

        def hold(x):
            return np.concatenate([x, np.repeat(x[..., -1:, :], extra, axis=-2)], axis=-2)

        times = np.concatenate([times, times[..., -1:] + step * np.arange(1, extra + 1)], axis=-1)
        valid = np.concatenate([self.valid, np.zeros((*self.batch_shape, extra), bool)], axis=-1)
        return self._over(hold, times, valid, self.start)

    @staticmethod
    def read(
        source, dynamics, *, recording: str | None = None, segment: int = 1, before=0.0, **reading
    ) -> "Trajectories":
        """The recording in a file, a DataFrame, an xarray Dataset or a dict of arrays.

        A column per sensor, per input and for the time, found by name; "state:0" is the first of an array (N, D).
        Empty cells are missing readings; a last reading without an input is left out. Units are those of the source
        (`attrs["units"]`), where `units` does not give them.

        Args:
            source: path of a CSV, npz or netCDF file, or an object.
            dynamics: the Dynamics whose sensors and inputs are recorded.
            recording: a column whose values separate recordings; they are stacked, in the order of their first rows,
                which need not stand together.
            segment, before: as of `Trajectories`.
            reading: columns, units, dt and unwrap, as in `physppl.data.readers.recording`.

        Raises:
            FileNotFoundError, KeyError, TypeError, ValueError: as in `physppl.data.readers.recording`.
        """
        table = tables.read(source)
        pieces, apart = ([table], False) if recording is None else tables.labelled(table, recording)
        if apart and reading.get("dt") is not None:
            raise ValueError(
                f"{table.where}: labels of {recording!r} come back, and dt= does not say in which order their rows "
                "follow each other. Read the clock, or sort the rows by recording."
            )
        arrays = [readers.recording(piece, dynamics, **reading) for piece in pieces]
        parts = [Trajectories(**one, segment=segment, before=before) for one in arrays]
        return parts[0] if recording is None else Trajectories.stack(parts)

    @staticmethod
    def from_csv(path, dynamics, **options) -> "Trajectories":
        """The recording in a CSV file, as `read`."""
        return Trajectories.read(tables.read_csv(path), dynamics, **options)

    @staticmethod
    def from_npz(path, dynamics, **options) -> "Trajectories":
        """The recording in an npz file, as `read`."""
        return Trajectories.read(tables.read_npz(path), dynamics, **options)

    @staticmethod
    def from_xarray(dataset, dynamics, **options) -> "Trajectories":
        """The recording in an xarray Dataset, or in a netCDF file by its path, as `read`."""
        return Trajectories.read(tables.read_xarray(dataset), dynamics, **options)

    @staticmethod
    def stack(parts: Sequence["Trajectories"]) -> "Trajectories":
        """Several recordings of one machine, padded to the longest.

        Raises:
            TypeError: for anything but Trajectories.
            ValueError: for none, or parts that differ in segment length, in having readings, or in having a start.
        """
        if not parts:
            raise ValueError("stack: no Trajectories were given.")
        for part in parts:
            if not isinstance(part, Trajectories):
                raise TypeError(f"Trajectories.stack takes Trajectories; got {type(part).__name__}.")
        first, longest = parts[0], max(len(p) for p in parts)
        for field in ("segment", "observations", "start"):
            values = [getattr(p, field) for p in parts]
            if len(set(values if field == "segment" else [v is None for v in values])) > 1:
                raise ValueError(f"stack: the recordings differ in {field}; give it to all or none, and the same.")
        parts = [p.rows() for p in parts]
        step = max(map(concrete_spacing, parts)) or 1.0
        parts = [p.pad(longest, step) for p in parts]
        fields = [(p.observations, p.actions, p.times, p.valid, p.start, p.before) for p in parts]
        *arrays, valid, start, before = jax.tree.map(lambda *xs: np.concatenate(xs), *fields)
        return Trajectories(*arrays, valid=valid, start=start, before=before, segment=first.segment)

    def rows(self) -> "Trajectories":
        """The data with a leading axis of recordings, as the likelihood takes them."""
        return self if self.batch_shape else jax.tree.map(lambda x: x[None], self)

    def recordings(self) -> list["Trajectories"]:
        """The recordings one by one, without the padding of a stack: each up to its last reading."""
        rows, parts = self.rows(), []
        for i, valid in enumerate(np.asarray(rows.valid)):
            end = len(self) if self.observations is None else max(np.flatnonzero(valid), default=0) + 1
            one = jax.tree.map(lambda x: x[i], rows)[:end]  # noqa: B023
            parts.append(one._over(lambda x: x, one.times, one.valid, one.start))  # regular by itself, perhaps
        return parts

    def between(self, since: float | int = -np.inf, until: float | int = np.inf) -> "Trajectories":
        """Samples of one recording from `since` to before `until`, s on its own clock.

        Raises:
            TypeError: for several recordings.
            ValueError: where no sample lies between.
        """
        if self.batch_shape:
            raise TypeError("between cuts one recording; take it out of the stack first: data.recordings()[0].")
        times = np.asarray(self.times, float)
        first, last = np.searchsorted(times, [since, until])
        if first >= last:
            samples = f"samples from {times[0]:g} to {times[-1]:g} s"
            raise ValueError(f"between({since:g}, {until:g}): the recording has {samples}.")
        return self[int(first) : int(last)]

    def __getitem__(self, samples: slice) -> "Trajectories":
        """A contiguous piece of every recording.

        `start` is dropped unless the piece begins at the first sample; `before` is the input just before the piece.
        """
        if not isinstance(samples, slice) or samples.step not in (None, 1):
            raise TypeError("Trajectories can be cut by a slice of samples without a step, e.g. data[100:400].")
        first = samples.indices(len(self))[0]
        start, before = (self.start, self.before) if first == 0 else (None, self.actions[..., first - 1, :])
        return self._over(
            lambda x: x[..., samples, :], self.times[..., samples], self.valid[..., samples], start, before
        )

    def _over(self, columns: Callable, times, valid, start, before=None) -> "Trajectories":
        """The data over other samples, with `columns` of readings and inputs."""
        readings = None if self.observations is None else columns(self.observations)
        before = self.before if before is None else before
        return Trajectories(
            readings, columns(self.actions), times, valid=valid, start=start, before=before, segment=self.segment
        )


def concrete_spacing(data: Trajectories) -> float:
    """Median time between samples, s; of a single sample 0."""
    steps = np.diff(np.asarray(data.times, float), axis=-1)
    return float(np.median(steps)) if steps.size else 0.0
