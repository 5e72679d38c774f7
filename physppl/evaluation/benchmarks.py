"""Recordings of real machines: readers, smoothing, windows, and scores of open-loop predictions.

The protocol: a window starts every `stride` samples; its initial state is the smoothed position and its derivative;
the recorded input is held over each sample, `delay` samples late; a model is rolled out open loop and scored by the
RMSE of predicted minus measured position at the end of the window. Windows of every horizon share their starts.

The data themselves are not part of the package: the readers take the folder that holds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.signal import savgol_coeffs, savgol_filter

from physppl.data.trajectories import Trajectories
from physppl.data.transitions import Transitions
from physppl.evaluation.forecasts import forecast as forecast

LONGEST = 0.5  # s; windows start only where this much follows, so that all horizons share their starts
POLYNOMIAL = 3  # order of the Savitzky-Golay filter
START_POSITION, START_VELOCITY = 0.003, 0.3  # rad, rad/s: sds of the smoothed first state


@dataclass(frozen=True, eq=False)
class Recording:
    """One run of a machine, sampled every `dt` seconds.

    Attributes:
        name: name of the run.
        dt: s.
        position: (N, d) measured, rad.
        state: (N, 2 d) smoothed positions, rad, then velocities, rad/s.
        inputs: (N, m) recorded, in the machine's unit.
        delay: samples between a recorded input and its effect.
        stride: samples between the starts of windows.
        margin: samples left out at both ends, where smoothing extrapolates.
    """

    name: str
    dt: float
    position: Float[np.ndarray, "N d"]
    state: Float[np.ndarray, "N 2*d"]
    inputs: Float[np.ndarray, "N m"]
    delay: int = 0
    stride: int = 1
    margin: int = 20

    @classmethod
    def smoothed(cls, name: str, dt: float, position, inputs, *, window: int, **protocol) -> "Recording":
        """A recording whose states are Savitzky-Golay smoothed (1964), cubic over `window` samples.

        Args:
            position: (N, d) rad.
            inputs: (N, m); a longer one of the two is cut.
            window: samples, odd.
            protocol: delay, stride and margin.

        Raises:
            ValueError: for a recording shorter than the window, or with values that are not finite.
        """
        length = min(len(position), len(inputs))
        position, inputs = np.asarray(position, float)[:length], np.asarray(inputs, float)[:length]
        if length < window:
            raise ValueError(f"recording {name!r}: {length} samples are fewer than the smoothing window of {window}.")
        for argument, values in (("position", position), ("inputs", inputs)):
            if not np.all(np.isfinite(values)):
                row = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise ValueError(f"recording {name!r}: {argument} is not finite, first at sample {row}.")
        smooth = savgol_filter(position, window, POLYNOMIAL, axis=0)
        velocity = savgol_filter(position, window, POLYNOMIAL, deriv=1, delta=dt, axis=0)
        state = np.concatenate([np.asarray(smooth), np.asarray(velocity)], axis=1)
        return cls(name, dt, position, state, inputs, **protocol)

    @property
    def times(self) -> Float[np.ndarray, " N"]:
        """Seconds since the first sample."""
        return self.dt * np.arange(len(self.position))

    def between(self, start: float, stop: float) -> "Recording":
        """Samples with start <= time < stop, s."""
        samples = slice(round(start / self.dt), round(stop / self.dt))
        return replace(self, position=self.position[samples], state=self.state[samples], inputs=self.inputs[samples])


@dataclass(frozen=True, eq=False)
class Windows:
    """Equally long pieces of recordings, T samples each.

    Attributes:
        initial_state: (B, S = 2 d) smoothed.
        inputs: (B, T, m) held over each sample, delay applied.
        position: (B, T + 1, d) measured, rad.
        final_state: (B, S) smoothed.
        dt: s.
    """

    initial_state: Float[np.ndarray, "B S"]
    inputs: Float[np.ndarray, "B T m"]
    position: Float[np.ndarray, "B T+1 d"]
    final_state: Float[np.ndarray, "B S"]
    dt: float

    def __len__(self) -> int:
        return len(self.position)

    @property
    def horizon(self) -> float:
        """Seconds from start to end."""
        return self.dt * self.inputs.shape[1]


def windows(recordings: Sequence[Recording], horizon: float) -> Windows:
    """All windows of `horizon` seconds in recordings of one machine.

    Raises:
        ValueError: for a horizon that is not between one sample and LONGEST, recordings of different `dt`, or
            recordings too short for any window.
    """
    dt = _common_dt(recordings)
    length, room = round(horizon / dt), round(LONGEST / dt)
    if not 1 <= length <= room:
        raise ValueError(f"windows: horizon must lie between {dt:g} s and {LONGEST:g} s; got {horizon:g}.")
    pairs = [
        (r, i)
        for r in recordings
        for i in range(max(r.margin, r.delay), len(r.position) - room - r.margin, r.stride)
    ]  # fmt: skip
    if not pairs:
        raise ValueError(f"windows: no recording is longer than {LONGEST:g} s and its two margins.")
    return Windows(
        np.array([r.state[i] for r, i in pairs]),
        np.array([r.inputs[i - r.delay : i - r.delay + length] for r, i in pairs]),
        np.array([r.position[i : i + length + 1] for r, i in pairs]),
        np.array([r.state[i + length] for r, i in pairs]),
        dt,
    )


def rmse(windows: Windows, predicted) -> Float[np.ndarray, " d"]:
    """Root mean squared error (d,), rad, of predicted positions (B, d) at the end of the windows."""
    return np.sqrt(np.mean((_ends(windows, predicted) - windows.position[:, -1]) ** 2, axis=0))


def coverage(windows: Windows, lower, upper) -> Float[np.ndarray, " d"]:
    """Share (d,) of measured positions at the end of the windows that lie in [lower, upper], (B, d) each."""
    end = windows.position[:, -1]
    return np.mean((_ends(windows, lower) <= end) & (end <= _ends(windows, upper)), axis=0)


def constant_velocity(windows: Windows) -> Float[np.ndarray, "B d"]:
    """Baseline prediction: positions (B, d) at the end, at the initial velocity."""
    position, velocity = np.split(windows.initial_state, 2, axis=1)
    return position + windows.inputs.shape[1] * windows.dt * velocity


def transitions(recordings: Sequence[Recording]) -> Transitions:
    """Transitions between consecutive smoothed states, margins left out; none crosses two recordings."""
    _common_dt(recordings)
    parts = []
    for r in recordings:
        first, stop = max(r.margin, r.delay), len(r.state) - r.margin
        if stop - first < 2:
            raise ValueError(f"recording {r.name!r}: nothing is left of its {len(r.state)} samples between margins.")
        states, inputs = r.state[first:stop], r.inputs[first - r.delay : stop - r.delay]
        parts.append(Transitions.from_trajectory(states, inputs, r.times[first:stop]))
    return Transitions.concatenate(parts)


def trajectories(recordings: Sequence[Recording], segment: int = 1) -> Trajectories:
    """Measured positions as Trajectories, margins left out; the smoothed first states are their `start`.

    Inputs are as recorded: give their delay to the Dynamics.
    """
    _common_dt(recordings)
    parts = []
    for r in recordings:
        first, stop = max(r.margin, r.delay), len(r.state) - r.margin
        start = (r.state[first], np.repeat([START_POSITION, START_VELOCITY], r.position.shape[1]))
        y, u, before = r.position[first:stop], r.inputs[first:stop], r.inputs[max(first - 1, 0)]
        parts.append(Trajectories(y, u, dt=r.dt, start=start, before=before, segment=segment))
    return Trajectories.stack(parts)


def smoothing_sd(recording: Recording, measurement_sd, window: int) -> Float[np.ndarray, " S"]:
    """Sd of the smoothed states (S,) due to sensors with `measurement_sd`: the norms of the filter's weights."""
    weights = [savgol_coeffs(window, POLYNOMIAL, deriv=order, delta=recording.dt) for order in (0, 1)]
    sd = np.broadcast_to(measurement_sd, recording.position.shape[1:])
    return np.concatenate([sd * np.linalg.norm(w) for w in weights])


def simple_pendulum(folder) -> tuple[list[Recording], dict[str, list[Recording]]]:
    """The torque-limited simple pendulum of DFKI (BSD-3-Clause): training recordings and named tests.

    Angle 0 hangs, rad; measured torque, N m; resampled to 100 Hz, the torque to its mean over each sample.

    Args:
        folder: of all recordings; it holds `dfki_simple_pendulum`.

    Raises:
        FileNotFoundError: naming the folder or file that is missing.
    """

    def load(name: str, until: float | None = None) -> Recording:
        path = _existing(folder, "dfki_simple_pendulum", f"{name}.npz")
        dt = 0.01
        with np.load(path) as file:
            times, position, torque = file["t"], file["pos"], file["torque"]
        grid = np.arange(0, until or times[-1], dt)
        # Impulse since the start, by the trapezoidal rule; its differences are means over the samples.
        impulse = np.concatenate([[0.0], np.cumsum((torque[1:] + torque[:-1]) / 2 * np.diff(times))])
        mean_torque = np.diff(np.interp(np.append(grid, grid[-1] + dt), times, impulse)) / dt
        angle = np.interp(grid, times, position)
        return Recording.smoothed(name, dt, angle[:, None], mean_torque[:, None], window=9, stride=2, margin=10)

    train = [load("ddp"), load("energy_shaping", 4.0)]
    return train, {"direct collocation": [load("direct_collocation")], "sac 0-4 s": [load("sac", 4.0)]}


def furuta(folder) -> tuple[list[Recording], dict[str, list[Recording]]]:
    """The Quanser Qube of TU Darmstadt and Honda RI (BSD-3-Clause): training recordings and named tests.

    Arm and pendulum angle, rad, 0 hangs; motor volts, two samples late; 250 Hz. Velocities are derivatives of the
    smoothed angles: the recorded ones lag by 16 ms.

    Args:
        folder: of all recordings; it holds `furuta_qube`.

    Raises:
        FileNotFoundError: naming the folder, or the group of which a file is missing.
    """

    def group(pattern: str) -> list[Recording]:
        paths = sorted(_existing(folder, "furuta_qube").glob(pattern))
        if len(paths) != 5:  # another number would change the split into training and test
            raise FileNotFoundError(f"recordings: furuta_qube holds {len(paths)} files {pattern!r} instead of 5.")
        return [load(path) for path in paths]

    def load(path: Path) -> Recording:
        with np.load(path) as file:
            angles, volts = file["state"][:-1, :2], file["u"][:, None]  # the last state is an artefact
        return Recording.smoothed(path.stem, 0.004, angles, volts, window=11, delay=2, stride=10)

    chirp, swing = group("qq_chrip_10to0Hz_p*.npz"), group("qq-su_250Hz_7s__*.npz")
    tests = {"chirp": group("qq_chrip_10to0Hz_m*.npz"), "swing-up": group("qq-su_250Hz_5s__*.npz")}
    return chirp[:2] + swing[:2], tests


def two_link(folder) -> tuple[list[Recording], dict[str, list[Recording]]]:
    """The two-link arm of DFKI, design C.1 (BSD-3-Clause): training recordings and named tests.

    Shoulder and relative elbow angle, rad, 0 hangs; commanded torques, N m, one sample late; resampled to 250 Hz.

    Args:
        folder: of all recordings; it holds `dfki_double_pendulum`.

    Raises:
        FileNotFoundError: naming the folder or file that is missing.
    """

    def load(run: str) -> Recording:
        with np.load(_existing(folder, "dfki_double_pendulum", f"C1_sysid_20230629-{run}.npz")) as file:
            times, angles, torques = file["t"], file["pos"].astype(float), file["tau_con"].astype(float)
        grid = np.arange(times[0], times[-1], 0.004)
        angles, torques = (np.stack([np.interp(grid, times, c) for c in x.T], 1) for x in (angles, torques))
        return Recording.smoothed(run, 0.004, angles, torques, window=9, delay=1, stride=5)

    tests = {"sine 143601": "143601", "sine 143747": "143747", "swing-up": "154548"}
    train = [load(run) for run in ("143339", "143524", "143704", "154220")]
    return train, {test: [load(run)] for test, run in tests.items()}


def _existing(folder, *parts: str) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"recordings: there is no folder {path}. Pass the folder that holds {parts[0]!r}.")
    path = path.joinpath(*parts)
    if not path.exists():
        files = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
        found = f"{path.parent} holds {', '.join(files)}" if files else f"there is no folder {path.parent}"
        raise FileNotFoundError(f"recordings: {path.name!r} is missing; {found}.")
    return path


def _common_dt(recordings: Sequence[Recording]) -> float:
    steps = {r.dt for r in recordings}
    if len(steps) != 1:
        raise ValueError(f"recordings: one or more recordings of one sampling time are needed; got {sorted(steps)} s.")
    return steps.pop()


def _ends(windows: Windows, values) -> np.ndarray:
    """Values at the ends of the windows; refuses shapes that would broadcast against the wrong ones."""
    values, shape = np.asarray(values), windows.position[:, -1].shape
    if values.shape != shape:
        raise ValueError(f"predictions at the ends of the windows must have shape {shape}; got {values.shape}.")
    return values
