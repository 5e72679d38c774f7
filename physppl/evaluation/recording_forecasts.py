"""Forecasts of recordings that a fit has not seen, each begun from what the sensors had read until then, and scored."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from physppl.data.trajectories import Trajectories, lagged
from physppl.dynamics.recordings import filtered
from physppl.dynamics.sensors import DELAY
from physppl.evaluation.forecasts import forecast_readings, mean_sites
from physppl.posterior.posterior import Posterior

WIDTH = 1.6448536269514722  # sds either side of the mean that hold 90 % of a Gaussian


@dataclass(frozen=True, eq=False)
class Ahead:
    """Open-loop predictions of B readings, each made `horizon` seconds before.

    Attributes:
        horizon: s.
        times: (B,) s, of the readings.
        readings: (B, d) in the sensors' units.
        mean: (B, d) predicted.
        sd: (B, d) of the prediction; the belief's, the noise's and the start's together.
        constant: (B, d) the reading expected at the start.
        straight: (B, d) that reading and its rate of change, held.
    """

    horizon: float
    times: Float[np.ndarray, " B"]
    readings: Float[np.ndarray, "B d"]
    mean: Float[np.ndarray, "B d"]
    sd: Float[np.ndarray, "B d"]
    constant: Float[np.ndarray, "B d"]
    straight: Float[np.ndarray, "B d"]

    @property
    def inside(self) -> Bool[np.ndarray, "B d"]:
        """Whether each reading lies in its 90 % interval."""
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
    """Predict the readings of one recording, each from those until `horizon` seconds before it and the inputs.

    Where a prediction begins, the state is what a filter at the belief's mean parameters makes of the readings so far.

    Args:
        recording: with readings; those before `since` serve the filter, and are not predicted.
        horizon: s, rounded to whole steps.
        since: s, of the recording's clock; a fit that saw the readings before it has not seen the others.
        most: predictions, evenly spread.
        draws: of the belief.

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
    starts, ends, readings = reading_windows(recording, steps, model.dt, since)
    if not len(starts):
        left = times[-1] - max(float(since), times[0])
        raise ValueError(
            f"nothing to predict: {left:.3g} s of readings do not hold one prediction of {horizon:.3g} s, at whose end "
            "all sensors were read. Choose a shorter horizon."
        )
    pick = np.unique(np.linspace(0, len(starts) - 1, min(most, len(starts))).round().astype(int))
    starts, ends, readings = starts[pick], ends[pick], readings[pick]
    mean_key, key = jax.random.split(key)
    with jax.enable_x64(True):
        sites, data, course = _filter(mean_key, posterior, recording)
        late = np.asarray(lagged(data.actions, sites.get(DELAY, model.sensing.delay)))
        inputs = _held(times, late, times[starts, None] + model.dt * np.arange(steps + 1))
        states = np.asarray(course.mean)[starts]
        constant, rate = map(np.asarray, _straight(model, sites, states, inputs[:, 0], times[starts]))
    spread = np.asarray(course.covariance)[starts]
    forecast = forecast_readings(
        key, posterior, states, inputs, draws=draws, start_covariance=spread, times=times[starts]
    )
    straight = constant + horizon * rate
    return Ahead(horizon, ends, readings, np.asarray(forecast.mean), forecast.sd, constant, straight)


def reading_windows(recording: Trajectories, steps: int, dt: float, since: float = -np.inf):
    """First samples (B,) of all windows of so many steps, when they end (B,), and what was read then (B, d).

    A reading counts where all sensors were read.
    """
    times, valid = np.asarray(recording.times, float), np.asarray(recording.seen).all(-1)
    horizon = steps * dt
    starts = np.flatnonzero((times >= since) & (times <= times[-1] - (1 - 1e-6) * horizon))
    ends = times[starts] + horizon
    readings, seen = _at(times, np.asarray(recording.observations), valid, ends, dt)
    return starts[seen], ends[seen], readings[seen]


def _at(times, readings, valid, when, dt: float):
    """Readings (B, d) at any times, between neighbours, and which have two within a step and a half (B,)."""
    after = np.clip(np.searchsorted(times, when - 1e-6 * dt), 1, len(times) - 1)
    before = np.where(np.abs(times[after] - when) < 1e-6 * dt, after, after - 1)
    gap = np.where(after > before, times[after] - times[before], 1.0)
    share = np.where(after > before, (when - times[before]) / gap, 0.0)[:, None]
    seen = valid[before] & valid[after] & (times[after] - times[before] < 1.5 * dt)
    return (1 - share) * readings[before] + share * readings[after], seen


def standardised_residuals(
    key: PRNGKeyArray, posterior: Posterior, recording: Trajectories
) -> Float[np.ndarray, "N d"]:
    """Each reading minus its expectation given all before it, in sds of that expectation; NaN where none was taken.

    Of a model that is right they are independent with mean 0 and sd 1; normal, unless the sensors are Student-t.

    Args:
        recording: one, whether the fit saw it or not.
    """
    with jax.enable_x64(True):
        _, data, course = _filter(key, posterior, recording)
        errors = np.asarray((data.observations - course.expected) / course.spread)
    return np.where(np.asarray(recording.seen), errors, np.nan)


def _filter(key, posterior, recording: Trajectories):
    """The belief's mean site values, the data in double precision, and the filter's course (N, ...) over them.

    Noise enters at every sample, whatever the fit's segments: within one the filter would take its state for exact.
    """
    model, r = posterior.model.without_variation(), recording
    recording = Trajectories(r.observations, r.actions, r.times, valid=r.valid, start=r.start)
    sites = mean_sites(key, posterior)
    data = jax.tree.map(lambda x: jnp.asarray(x, float if np.asarray(x).dtype.kind == "f" else None), recording)
    return sites, data, jax.tree.map(lambda x: x[0], _filtered(model, sites, data))


_filtered = eqx.filter_jit(filtered)


def _held(times, inputs, edges):
    """Means (B, T, A) between edges (B, T + 1) of inputs that are held from sample to sample."""
    impulse = np.concatenate([np.zeros((1, inputs.shape[1])), np.cumsum(inputs[:-1] * np.diff(times)[:, None], axis=0)])
    until = np.stack([np.interp(edges, times, column) for column in impulse.T], axis=-1)
    return np.diff(until, axis=1) / np.diff(edges, axis=1)[..., None]


@eqx.filter_jit
def _straight(model, sites, states, inputs, times):
    """Expected readings (B, d) and their rates of change over one step."""
    step, read = model.bind(sites).stepper(), model.sensing.read

    def one(x, u, t):
        now = read(x)
        return now, (read(step(t, x, u)) - now) / model.dt

    return jax.vmap(one)(states, inputs, times)
