"""Figures of posteriors: parameters, predictions, phase portraits. Matplotlib is imported when one is drawn.

Every function returns a `matplotlib.figure.Figure` without a window; save it with `figure.savefig(path)`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from physppl.evaluation import benchmarks
from physppl.internal.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    legend,
    multiples_of_pi,
    new_figure,
    styled,
    words,
)
from physppl.internal.units import label
from physppl.language.integrate import rollout
from physppl.language.transition import AbstractTransition
from physppl.posterior import summary
from physppl.posterior.posterior import Posterior


@styled
def parameters(posterior: Posterior, truth: dict | None = None, *, key: PRNGKeyArray | None = None):
    """Plot posterior and prior densities, one panel per scalar, each density scaled to its own peak.

    Sites with positive support and no upper bound have a logarithmic axis. Vectors longer than
    `physppl.posterior.summary.EXPANDED` (weights) are left out.

    Args:
        truth: {site: value} in the sites' units, where it is known.
        key: of the draws; `jax.random.key(0)` by default.
    """
    key = jax.random.key(0) if key is None else key
    table = summary.summarise(key, posterior, truth=truth)
    rows_by_name = {row["name"]: row for row in table.rows}
    panels = [entry for entry in summary.entries(key, posterior) if entry.name in rows_by_name]
    if not panels:
        raise ValueError("plots.parameters: the model has no scalar site to show.")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(2.6 * columns + 0.2, 1.9 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, entry in zip(axes, panels, strict=False):
        _densities(axis, entry, rows_by_name[entry.name])
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return legend(figure, axes)


def _densities(axis, entry: summary.Entry, row: dict) -> None:
    logarithmic = entry.prior.min() > 0 if entry.bounds is None else entry.bounds.log
    forward, inverse = (np.log, np.exp) if logarithmic else (np.asarray, np.asarray)
    if entry.bounds is None:
        limits, (low, high) = None, np.quantile(np.concatenate([entry.prior, entry.draws]), [0.002, 0.998])
        low, high = (min(low, 0.7 * entry.draws.min()), 1.5 * high) if logarithmic else (low, high)
    else:
        low, high, _ = entry.bounds
        limits = (forward(low), forward(high))
    for draws, colour, opacity, order, what in (
        (entry.prior, GREY, 0.3, 1, "prior"),
        (entry.draws, BLUE, 0.55, 2, "posterior"),
    ):
        points, density = _density(forward(draws), forward(low), forward(high), limits)
        axis.fill_between(inverse(points), density, color=colour, alpha=opacity, lw=0, zorder=order, label=what)
        axis.plot(inverse(points), density, color=colour, lw=1.1, zorder=order)
    if "truth" in row:
        axis.axvline(row["truth"], color=ORANGE, lw=1.4, ls=(0, (4, 2)), zorder=3, label="truth")
    if logarithmic:
        axis.set_xscale("log")
    axis.set(xlim=(low, high), yticks=[], xlabel=label(words(entry.name), entry.unit), ylim=(0, 1.12))
    axis.spines.left.set_visible(False)
    axis.set_title(_plus_minus(row["mean"], row["sd"]), fontsize=8.5, loc="right", pad=3, color=BLUE)


def _plus_minus(mean: float, sd: float) -> str:
    text = f"{summary.number(mean, sd)} ± {summary.number(sd, sd)}"
    if "e" not in text:
        return text
    power = np.floor(np.log10(abs(mean))) if mean else 0.0
    mean, sd = mean / 10**power, sd / 10**power
    return f"({summary.number(mean, sd)} ± {summary.number(sd, sd)}) $10^{{{power:.0f}}}$"


def _density(draws, low, high, limits):
    """Gaussian kernel density estimate scaled to its peak, reflected at the limits, on a grid refined at the draws."""
    from scipy.stats import gaussian_kde

    kernel_density = gaussian_kde(draws, lambda kernel: 1.3 * kernel.scotts_factor())
    points = np.unique(np.concatenate([np.linspace(low, high, 200), np.linspace(draws.min(), draws.max(), 200)]))
    density = kernel_density(points)
    for limit in limits or ():
        density = density + kernel_density(2 * limit - points)
    return points, density / density.max()


@styled
def fan(
    key: PRNGKeyArray,
    posterior: Posterior,
    states,
    actions,
    *,
    draws: int = 400,
    restart: int | None = None,
    start: float = 0.0,
    title: str = "",
):
    """Plot open-loop predictions with process noise and a measured trajectory: median, 50, 80 and 95 % bands.

    Args:
        states: measured (T + 1, D); or (T, D), where the last action is unused.
        actions: (T, A).
        draws: rollouts, each under another draw.
        restart: steps after which the prediction restarts at the measurement; by default never.
        start: time of the first state, s.
    """
    from matplotlib.ticker import MaxNLocator

    model = posterior.model
    states, actions = np.asarray(states, float), np.asarray(actions, float)
    steps = min(len(states) - 1, len(actions))
    length = min(restart or steps, steps)
    begins = np.arange(0, steps - length + 1, length)
    inputs = np.stack([actions[b : b + length] for b in begins])
    paths = benchmarks.forecast(key, posterior, states[begins], inputs, draws)
    bands = np.quantile(paths, [0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975], axis=0)  # (7, B, length + 1, D)
    times = start + model.dt * np.arange(steps + 1)
    count = len(model.state) + len(model.action)
    figure = new_figure(6.8, 1.75 * len(model.state) + 0.75 * len(model.action) + 0.75)
    axes = figure.subplots(count, 1, sharex=True, height_ratios=[2] * len(model.state) + [0.9] * len(model.action))
    for i, (axis, name, unit) in enumerate(zip(axes, model.state.names, model.state.units, strict=False)):
        for b, first in enumerate(begins):
            t = times[first : first + length + 1]
            for outer, shade in enumerate((0.20, 0.32, 0.48)):
                low, high = bands[outer, b, :, i], bands[6 - outer, b, :, i]
                axis.fill_between(t, low, high, color=BLUE, alpha=shade, lw=0, label=f"{(95, 80, 50)[outer]} %")
            axis.plot(t, bands[3, b, :, i], color=BLUE, lw=1.1, label="median")
        axis.plot(times, states[: steps + 1, i], color=INK, lw=1.2, ls=(0, (1, 1.2)), label="measured")
        axis.set_ylabel(label(name, unit))
        axis.yaxis.set_major_locator(MaxNLocator(5))
        low, high = (f(states[: steps + 1, i]) for f in (np.min, np.max))  # a wide band must not flatten the data
        margin = 0.6 * (high - low) + 1e-9
        axis.set_ylim(max(low - margin, axis.get_ylim()[0]), min(high + margin, axis.get_ylim()[1]))
        if restart:
            axis.plot(times[begins], states[begins, i], "o", ms=3.2, color=INK, label="restart", clip_on=False)
    for i, (name, unit) in enumerate(zip(model.action.names, model.action.units, strict=True)):
        axis = axes[len(model.state) + i]
        axis.step(times[:steps], actions[:steps, i], where="post", color=GREEN, lw=1.1)
        axis.set_ylabel(label(name, unit))
    axes[-1].set_xlabel("time [s]")
    axes[-1].set_xlim(times[0], times[-1])
    figure.align_ylabels(axes)
    axes[0].set_title(title)
    return legend(figure, axes[:1])


@styled
def phase_portrait(
    key: PRNGKeyArray,
    posterior: Posterior,
    truth: AbstractTransition | None = None,
    *,
    visited=None,
    starts=None,
    steps: int = 40,
    draws: int = 40,
):
    """Plot free motion in the plane of the first two coordinates: draws of the posterior, and the truth.

    Args:
        truth: a transition to compare with, e.g. of the simulated system.
        visited: states (..., D) of the data, shown as dots.
        starts: (S, D) initial states; by default at rest in the first coordinate, with several velocities both ways.
        steps: number of steps of dt.
        draws: number of draws of the posterior.
    """
    model = posterior.model
    if starts is None:
        starts = np.zeros((8, len(model.state)))
        starts[:, 1] = model.state.scale[1] * np.array([-1.9, -1.4, -0.9, -0.4, 0.4, 0.9, 1.4, 1.9])
    starts = np.asarray(starts, float)
    idle = np.broadcast_to((model.action.low + model.action.high) / 2, (len(starts), steps, len(model.action)))
    paths = benchmarks.forecast(key, posterior, starts, idle, draws, noise=False)
    figure = new_figure(5.8, 4.2)
    axis = figure.subplots()
    if visited is not None:
        points = np.asarray(visited).reshape(-1, len(model.state))
        _curve(axis, points, model, ls="none", marker=".", ms=2.8, color=GREY, alpha=0.5, mew=0)
        axis.plot([], [], ".", color=GREY, label="visited")
    for path in paths.reshape(-1, *paths.shape[2:]):
        _curve(axis, path, model, color=BLUE, lw=0.7, alpha=0.3)
    axis.plot([], [], color=BLUE, label="draws of the posterior")
    if truth is not None:
        for path in jax.jit(jax.vmap(lambda x, u: rollout(truth, x, u)))(jnp.asarray(starts), jnp.asarray(idle)):
            _curve(axis, np.asarray(path), model, color=ORANGE, lw=1.2, ls=(0, (4, 2)), label="truth")
    axis.plot(starts[:, 0], starts[:, 1], "o", ms=4, color=INK, zorder=5, label="start")
    names = [label(n, u) for n, u in zip(model.state.names, model.state.units, strict=True)]
    axis.set(xlabel=names[0], ylabel=names[1])
    if model.state.is_angle[0]:
        axis.set_xlim(-np.pi, np.pi)
        multiples_of_pi(axis.xaxis)
    return legend(figure, [axis])


def _curve(axis, path, model, **style) -> None:
    """Draw a path in the plane; angles wrap, and the line breaks where they do."""
    x, y = path[:, 0], path[:, 1]
    if model.state.is_angle[0]:
        x = (x + np.pi) % (2 * np.pi) - np.pi
        if style.get("ls") != "none":
            cuts = 1 + np.flatnonzero(np.abs(np.diff(x)) > np.pi)
            x, y = np.insert(x, cuts, np.nan), np.insert(y, cuts, np.nan)
    axis.plot(x, y, **style)
