"""Figures of recordings: held-out predictions and residuals."""

from collections.abc import Sequence

import numpy as np

from physppl.data.trajectories import Trajectories
from physppl.dynamics import Dynamics
from physppl.evaluation.recording_forecasts import WIDTH, Ahead
from physppl.internal.figures import BLUE, GREEN, GREY, INK, ORANGE, legend, new_figure, styled
from physppl.internal.units import label

COLUMNS = 3  # recordings in one figure
LONGEST = 6.0  # s that one panel shows
SDS = 4.0  # either side of zero that a panel of residuals shows


@styled
def prediction(ahead: Sequence[Ahead], recordings: Sequence[Trajectories], dynamics: Dynamics, names: Sequence[str]):
    """Plot readings and their open-loop predictions with 90 % intervals, a column per recording (three at most).

    Args:
        ahead: predictions of each recording, from `physppl.evaluation.recording_forecasts.predict_ahead`.
        recordings: the recordings themselves.
        names: of the recordings.
    """
    sensors, action = dynamics.sensing.space, dynamics.action
    shown = min(len(ahead), COLUMNS)
    heights = [2.0] * len(sensors) + [0.9] * len(action)
    figure = new_figure(max(6.4, 3.4 * shown), 0.95 * sum(heights) + 0.9)
    panels = figure.subplots(len(heights), shown, sharex="col", sharey="row", height_ratios=heights, squeeze=False)
    for column, (forecast, recording, name) in enumerate(zip(ahead[:shown], recordings, names, strict=False)):
        rows = forecast.times <= forecast.times[0] + LONGEST
        times = forecast.times[rows]
        for i in range(len(sensors)):
            axis, mean, sd = panels[i, column], forecast.mean[rows, i], forecast.sd[rows, i]
            low, high = mean - WIDTH * sd, mean + WIDTH * sd
            axis.fill_between(times, low, high, color=BLUE, alpha=0.28, lw=0, label="90 %")
            axis.plot(times, mean, color=BLUE, lw=1.1, label=f"predicted {forecast.horizon:.3g} s before")
            axis.plot(times, forecast.readings[rows, i], ".", ms=2.6, color=INK, mew=0, label="measured")
        clock = np.asarray(recording.times)
        rows = (clock >= times[0]) & (clock <= times[-1])
        for i in range(len(action)):
            axis = panels[len(sensors) + i, column]
            axis.step(clock[rows], np.asarray(recording.actions)[rows, i], where="post", color=GREEN, lw=1.0)
        panels[0, column].set_title(_short(name), fontsize=8.5)
        panels[-1, column].set(xlabel="time [s]", xlim=(times[0], times[-1]))
    coordinates, units = (*sensors.names, *action.names), (*sensors.units, *action.units)
    for axis, name, unit in zip(panels[:, 0], coordinates, units, strict=True):
        axis.set_ylabel(label(name.replace("_", " "), unit))
    figure.align_ylabels(panels[:, 0])
    return legend(figure, [panels[0, 0]])


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
