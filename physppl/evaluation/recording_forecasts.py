"""Forecasts of unseen recordings, each from the state that a filter estimates from the readings before."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from physppl.data.spaces import StateSpace
from physppl.data.trajectories import Trajectories
from physppl.dynamics import Dynamics
from physppl.dynamics.recordings import filtered
from physppl.dynamics.sensors import DELAY, lagged
from physppl.evaluation.forecasts import forecast_readings, mean_sites
from physppl.internal.precision import doubles
from physppl.posterior.innovations import interval_scores
from physppl.posterior.posterior import Posterior

SETTLED = 2.0  # times the median sd of a state, down to which the filter's own has come when predictions begin
WIDTH = 1.6448536269514722  # half the width of a Gaussian's central 90 % interval, in sds


@dataclass(frozen=True, eq=False)
class Ahead:
    """Open-loop predictions of B readings, each `horizon` seconds ahead.

    Attributes:
        horizon: s.
        begins: s, start of the first prediction.
        times: (B,) s, of the readings.
        readings: (B, d) in the sensors' units.
        mean: (B, d) predicted.
        sd: (B, d) of the prediction: posterior, noise and start together.
        constant: (B, d) baseline: the reading expected at the start.
        straight: (B, d) baseline: that reading extrapolated at its rate of change.
    """

    horizon: float
    begins: float
    times: Float[np.ndarray, " B"]
    readings: Float[np.ndarray, "B d"]
    mean: Float[np.ndarray, "B d"]
    sd: Float[np.ndarray, "B d"]
    constant: Float[np.ndarray, "B d"]
    straight: Float[np.ndarray, "B d"]

    @property
    def inside(self) -> Bool[np.ndarray, "B d"]:
        """True where a reading lies in its 90 % interval."""
        return np.abs(self.readings - self.mean) <= WIDTH * self.sd

    def rmse(self, of: str = "mean") -> Float[np.ndarray, " d"]:
        """Root mean squared error (d,) of "mean", "constant" or "straight", in the sensors' units."""
        return np.sqrt(np.mean((self.readings - getattr(self, of)) ** 2, axis=0))


def predict_ahead(
    key: PRNGKeyArray,
    posterior: Posterior,
    recording: Trajectories,
    horizon: float,
    *,
    since: float = -np.inf,
    most: int = 200,
    draws: int = 64,
) -> Ahead:
    """Predict the readings of one recording, each from the inputs and the readings until `horizon` seconds before.

    Each prediction starts at the state that a filter at the posterior's mean parameters estimates from these readings.
    The first one starts when the filter has settled: when it knows every state to twice its median sd. (Where no window
    is left then, all are taken.)

    Args:
        recording: one with readings; those before `since` are filtered, but not predicted.
        horizon: s, rounded to whole steps.
        since: s, on the recording's clock; the end of the part that the fit used.
        most: number of predictions, evenly spread.
        draws: posterior draws.

    Raises:
        ValueError: for several recordings at once; for one without a reading of all sensors a horizon after its start.
    """
    model = posterior.model.without_variation()
    if recording.batch_shape:
        raise ValueError("predict_ahead takes one recording; call it for each of several.")
    model.check(recording)
    steps = max(1, round(horizon / model.dt))
    horizon = steps * model.dt
    times = np.asarray(recording.times, float)
    starts, ends, readings = reading_windows(recording, steps, model, since)
    if not len(starts):
        left = times[-1] - max(float(since), times[0])
        raise ValueError(
            f"nothing to predict: {left:.3g} s of readings do not contain a window of {horizon:.3g} s at whose end "
            "all sensors were read. Choose a shorter horizon."
        )
    mean_key, key = jax.random.split(key)
    with jax.enable_x64(True):
        sites, data, course = _filter(mean_key, posterior, recording)
        settled = starts >= _settled(np.asarray(course.covariance))
        if settled.any():
            starts, ends, readings = starts[settled], ends[settled], readings[settled]
        pick = np.unique(np.linspace(0, len(starts) - 1, min(most, len(starts))).round().astype(int))
        starts, ends, readings = starts[pick], ends[pick], readings[pick]
        delayed = np.asarray(lagged(data.actions, sites.get(DELAY, model.sensing.delay), data.before))
        inputs = _held(times, delayed, times[starts, None] + model.dt * np.arange(steps + 1))
        states = np.asarray(course.mean)[starts]
        constant, rate = map(np.asarray, _straight(model, sites, states, inputs[:, 0], times[starts]))
    covariance = np.asarray(course.covariance)[starts]
    forecast = forecast_readings(
        key, posterior, states, inputs, draws=draws, start_covariance=covariance, times=times[starts]
    )
    # Predictions of angles are those on the readings' turn.
    mean, constant, straight = (
        readings - model.sensing.space.difference(readings, x)
        for x in (np.asarray(forecast.mean), constant, constant + horizon * rate)
    )
    return Ahead(horizon, float(times[starts[0]]), ends, readings, mean, forecast.sd, constant, straight)


def _settled(covariance: Float[np.ndarray, "N D D"]) -> int:
    """First sample at which no state is much less certain than in the rest of the recording, as it is at its start."""
    sds = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    return int(np.argmax(np.all(sds <= SETTLED * np.median(sds, axis=0), axis=-1)))


def reading_windows(recording: Trajectories, steps: int, model: Dynamics, since: float = -np.inf):
    """First samples (B,), end times (B,) and final readings (B, d) of all windows of `steps`.

    Windows count only where all sensors were read at the end.
    """
    times, valid = np.asarray(recording.times, float), np.asarray(recording.seen).all(-1)
    dt, space = model.dt, model.sensing.space
    horizon = steps * dt
    starts = np.flatnonzero((times >= since) & (times <= times[-1] - (1 - 1e-6) * horizon))
    ends = times[starts] + horizon
    readings, seen = _at(times, np.asarray(recording.observations), valid, ends, dt, space)
    return starts[seen], ends[seen], readings[seen]


def _at(times, readings, valid, when, dt: float, space: StateSpace):
    """Interpolated readings (B, d) at given times, and True (B,) where the neighbours are within 1.5 steps."""
    after = np.clip(np.searchsorted(times, when - 1e-6 * dt), 1, len(times) - 1)
    before = np.where(np.abs(times[after] - when) < 1e-6 * dt, after, after - 1)
    gap = np.where(after > before, times[after] - times[before], 1.0)
    share = np.where(after > before, (when - times[before]) / gap, 0.0)[:, None]
    seen = valid[before] & valid[after] & (times[after] - times[before] < 1.5 * dt)
    return readings[before] + share * space.difference(readings[after], readings[before]), seen


def standardised_residuals(
    key: PRNGKeyArray, posterior: Posterior, recording: Trajectories
) -> Float[np.ndarray, "N d"]:
    """Innovations: each reading minus its prediction from all before it, in predictive sds; NaN where none was taken.

    Under a correct model they are independent with mean 0 and sd 1; normal, unless the sensors are Student-t.

    Args:
        recording: a single one, used by the fit or not.
    """
    with jax.enable_x64(True):
        _, data, course = _filter(key, posterior, recording)
        errors = np.asarray((data.observations - course.expected) / course.spread)
        if (instrument := posterior.model.sensing.instrument) is not None:
            bounds = instrument.bounds(jnp.asarray(data.observations))
            errors = interval_scores(*map(np.asarray, (course.expected, course.spread, *bounds)))
    return np.where(np.asarray(recording.seen), errors, np.nan)


def _filter(key, posterior, recording: Trajectories):
    """Posterior mean of the sites, the data in double precision, and the filter's estimates (N, ...).

    Noise enters at every sample: within a segment of the fit the state would count as exact.
    """
    model, sites = posterior.model.without_variation(), mean_sites(key, posterior)
    data = doubles(stepwise(recording))
    return sites, data, jax.tree.map(lambda x: x[0], _filtered(model, sites, data))


def stepwise(data: Trajectories) -> Trajectories:
    """Recordings into which process noise enters at every sample, whatever the fit's segments."""
    return Trajectories(
        data.observations, data.actions, data.times, valid=data.valid, start=data.start, before=data.before
    )


_filtered = eqx.filter_jit(filtered)


def _held(times, inputs, edges):
    """Means (B, T, A) between edges (B, T + 1) of inputs that are constant from sample to sample."""
    impulse = np.concatenate([np.zeros((1, inputs.shape[1])), np.cumsum(inputs[:-1] * np.diff(times)[:, None], axis=0)])
    until = np.stack([np.interp(edges, times, column) for column in impulse.T], axis=-1)
    return np.diff(until, axis=1) / np.diff(edges, axis=1)[..., None]


@eqx.filter_jit
def _straight(model, sites, states, inputs, times):
    """Expected readings (B, d) and their rates of change over one step."""
    step, read = model.bind(sites).stepper(), model.sensing.read

    def expected(x, u, t):
        reading = read(x)
        return reading, (read(step(t, x, u)) - reading) / model.dt

    return jax.vmap(expected)(states, inputs, times)
