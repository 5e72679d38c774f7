"""Figures of recordings: held-out predictions and residuals."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from physppl.data.trajectories import Trajectories
from physppl.dynamics import Dynamics
from physppl.evaluation.recording_forecasts import WIDTH, Ahead
from physppl.internal.figures import BLUE, GREEN, GREY, INK, ORANGE, legend, new_figure, styled
from physppl.internal.units import label

COLUMNS = 3  # recordings in one figure
LONGEST = 6.0  # s that one panel shows
THIN = 0.015  # of a panel's height, some three pixels: a thinner band is not seen behind its line
SDS = 4.0  # either side of zero that a panel of residuals shows


@styled
def prediction(ahead: Sequence[Ahead], recordings: Sequence[Trajectories], dynamics: Dynamics, names: Sequence[str]):
    """Plot readings and their open-loop predictions with 90 % intervals, a column per recording (three at most).

    Where the intervals of a sensor are too thin to be seen beside its motion, a panel below has its errors, readings
    minus predictions, with the intervals about zero.

    Args:
        ahead: predictions of each recording, from `physppl.evaluation.recording_forecasts.predict_ahead`.
        recordings: the recordings themselves.
        names: of the recordings.
    """
    sensors, action = dynamics.sensing.space, dynamics.action
    shown = [_opening(forecast) for forecast in ahead[:COLUMNS]]
    rows = [
        (i, is_error) for i in range(len(sensors)) for is_error in ([False, True] if _is_thin(shown, i) else [False])
    ]
    heights = [1.3 if is_error else 2.0 for _, is_error in rows] + [0.9] * len(action)
    figure = new_figure(max(6.4, 3.4 * len(shown)), 0.95 * sum(heights) + 0.9)
    panels = figure.subplots(len(heights), len(shown), sharex="col", sharey="row", height_ratios=heights, squeeze=False)
    for column, (forecast, recording, name) in enumerate(zip(shown, recordings, names, strict=False)):
        times = forecast.times
        for axis, (i, is_error) in zip(panels[:, column], rows, strict=False):
            mean, half = forecast.mean[:, i], WIDTH * forecast.sd[:, i]
            base = mean if is_error else np.zeros_like(mean)
            axis.fill_between(times, mean - half - base, mean + half - base, color=BLUE, alpha=0.28, lw=0, label="90 %")
            axis.plot(times, mean - base, color=BLUE, lw=1.1, label=f"predicted {forecast.horizon:.3g} s before")
            axis.plot(times, forecast.readings[:, i] - base, ".", ms=2.6, color=INK, mew=0, label="measured")
        clock = np.asarray(recording.times)
        acting = (clock >= times[0]) & (clock <= times[-1])
        for i, axis in enumerate(panels[len(rows) :, column]):
            axis.step(clock[acting], np.asarray(recording.actions)[acting, i], where="post", color=GREEN, lw=1.0)
        panels[0, column].set_title(_short(name), fontsize=8.5)
        panels[-1, column].set(xlabel="time [s]", xlim=(times[0], times[-1]))
    titles = [("error" if is_error else sensors.names[i], sensors.units[i]) for i, is_error in rows]
    titles += zip(action.names, action.units, strict=True)
    for axis, (name, unit) in zip(panels[:, 0], titles, strict=True):
        axis.set_ylabel(label(name.replace("_", " "), unit))
    figure.align_ylabels(panels[:, 0])
    return legend(figure, [panels[0, 0]])


def _opening(forecast: Ahead) -> Ahead:
    """The predictions that one panel shows."""
    rows = forecast.times <= forecast.times[0] + LONGEST
    arrays = ("times", "readings", "mean", "sd", "constant", "straight")
    return replace(forecast, **{name: getattr(forecast, name)[rows] for name in arrays})


def _is_thin(shown: Sequence[Ahead], i: int) -> bool:
    """True if most intervals of a sensor cannot be seen in the panel of its readings, of at least one recording."""
    readings = np.concatenate([forecast.readings[:, i] for forecast in shown])
    height = np.nanmax(readings) - np.nanmin(readings)
    return any(2 * WIDTH * np.median(forecast.sd[:, i]) < THIN * height for forecast in shown)


@styled
def residuals(errors: Sequence[np.ndarray], recordings: Sequence[Trajectories], dynamics: Dynamics):
    """Plot standardised one-step errors of successive recordings, and their histogram with the standard normal density.

    Under a correct model they are uncorrelated with sd 1; each panel's title gives both.

    Args:
        errors: (N, d) of each recording, from `physppl.evaluation.recording_forecasts.standardised_residuals`.
        recordings: the recordings themselves.
    """
    sensors = dynamics.sensing.space
    figure = new_figure(6.8, 1.7 * len(sensors) + 0.7)
    panels = figure.subplots(len(sensors), 2, sharey=True, sharex="col", width_ratios=[4, 1], squeeze=False)
    clocks = [np.asarray(recording.times, float) for recording in recordings]
    begins = np.cumsum([0.0, *(clock[-1] - clock[0] for clock in clocks)])
    times = [clock - clock[0] + begin for clock, begin in zip(clocks, begins, strict=False)]
    grid = np.linspace(-SDS, SDS, 200)
    for i, name in enumerate(sensors.names):
        course, histogram = panels[i]
        for t, error in zip(times, errors, strict=True):
            course.plot(t, np.clip(error[:, i], -SDS, SDS), ".", ms=1.8, mew=0, color=BLUE, alpha=0.6)
            course.axvline(t[0], color=GREY, lw=0.6)
        course.axhspan(-WIDTH, WIDTH, color=GREY, alpha=0.15, lw=0)
        values = np.concatenate([error[:, i] for error in errors])
        values = values[np.isfinite(values)]
        histogram.hist(
            np.clip(values, -SDS, SDS), np.linspace(-SDS, SDS, 41), density=True, orientation="horizontal",
            color=BLUE, alpha=0.55,
        )  # fmt: skip
        histogram.plot(np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), grid, color=ORANGE, lw=1.2)
        pairs = np.concatenate([np.stack([e[:-1, i], e[1:, i]], axis=1) for e in errors])
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        correlation = np.corrcoef(pairs.T)[0, 1] if len(pairs) > 2 else np.nan
        title = f"sd {values.std():.2f}, next to next correlation {correlation:+.2f}"
        course.set_title(title.replace("-", "−"), fontsize=8.5)
        course.set(ylabel=f"{name.replace('_', ' ')} [sd]", ylim=(-SDS, SDS))
        histogram.set_xticks([])
    panels[-1, 0].set(xlabel="time [s]", xlim=(0, begins[-1]))
    panels[-1, 1].set_xlabel("density")
    return figure


def _short(name: str, width: int = 34) -> str:
    """File name, its middle replaced by an ellipsis where it is long."""
    return name if len(name) <= width else f"{name[: width // 2 - 1]}…{name[-width // 2 + 2 :]}"
