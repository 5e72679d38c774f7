"""Figures of loops: returns over episodes."""

from collections.abc import Mapping, Sequence

import numpy as np

from physppl.control.loops import Run
from physppl.internal.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, legend, new_figure, styled


@styled
def returns(runs: Run | Sequence[Run], *, oracle=None, random=None):
    """Plot the return per episode of one or several runs; filled marks are solved episodes.

    Args:
        oracle, random: returns of an agent with the true transition and of random actions: one number, or several,
            drawn as their mean and range.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    figure, axis = _episode_axis(max(len(run.episodes.returns) for run in runs), oracle, random)
    for run in runs:
        value = np.asarray(run.episodes.returns)
        value = value.reshape(len(value), -1).mean(axis=1)  # over machines in parallel
        episode = 1 + np.arange(len(value))
        axis.plot(episode, value, color=BLUE, alpha=1.0 if len(runs) == 1 else 0.45, zorder=3)
        solved = np.zeros(len(value), bool) if run.solved is None else run.solved.reshape(len(value), -1).all(axis=1)
        for mask, face, name in ((solved, BLUE, "solved"), (~solved, "white", "not solved")):
            if mask.any():
                caption = name if run.solved is not None else "episode"
                axis.plot(episode[mask], value[mask], "o", ms=6, color=BLUE, mfc=face, zorder=4, label=caption)
    return legend(figure, [axis])


@styled
def learning_curves(returns: Mapping[str, np.ndarray], *, oracle=None, random=None):
    """Plot median and quartiles over seeds of the return of every episode.

    Args:
        returns: {agent: (seeds, episodes)}.
        oracle, random: as in `returns`.
    """
    figure, axis = _episode_axis(max((np.shape(x)[1] for x in returns.values()), default=1), oracle, random)
    for (name, values), colour in zip(returns.items(), (BLUE, ORANGE, PURPLE, INK), strict=False):
        values = np.asarray(values, float)
        episode = 1 + np.arange(values.shape[1])
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
        axis.plot(episode, middle, "o-", color=colour, ms=4, label=name, zorder=4)
        axis.fill_between(episode, low, high, color=colour, alpha=0.2, lw=0, zorder=3)
    return legend(figure, [axis])


def _episode_axis(longest: int, oracle, random):
    """Figure and axis of returns over episodes, with mean and range of those of agents that do not learn."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(5.2, 3.1)
    axis = figure.subplots()
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="episode", ylabel="return", xlim=(0.7, longest + 0.3))
    for values, colour, name in ((oracle, GREEN, "oracle"), (random, GREY, "random actions")):
        if values is None:
            continue
        values = np.atleast_1d(np.asarray(values, float))
        axis.axhline(values.mean(), color=colour, lw=1.3, ls=(0, (5, 2)))
        axis.axhspan(values.min(), values.max(), color=colour, alpha=0.18, lw=0)
        axis.annotate(
            name, (1, values.mean()), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
            color=colour, va="center", annotation_clip=False,
        )  # fmt: skip
    return figure, axis
