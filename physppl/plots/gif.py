"""Animations as GIF: a machine on the left, its coordinates and actions over time on the right."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from physppl.internal.figures import BLUE, GREEN, ORANGE, multiples_of_pi, new_figure
from physppl.internal.progress import bar
from physppl.internal.units import label, pretty

FRAME, HOLD = 0.04, 1.0  # s, duration of a frame, and added duration of the last one
FAINT = "#DDDDDD"
Update = Callable[[int], None]  # moves what is drawn to step k


class Chart(NamedTuple):
    """Plot of a coordinate over time.

    Attributes:
        coordinate: its index in the state.
        goal: its desired value, if any.
        colour: that of the corresponding part of the machine.
    """

    coordinate: int
    goal: float | None = None
    colour: str = BLUE


def film(path, states, actions, model, scene, charts: Sequence[Chart], every: int | None, title: str) -> Path:
    """Write a GIF in real time; its last frame lasts a second longer.

    Args:
        path: of the file.
        states: (T + 1, D); actions: (T, A).
        model: the Dynamics, for names, units, limits and dt.
        scene: (axis, states, actions) draws the machine and returns the function that moves it.
        charts: coordinates to plot over time; all actions are plotted.
        every: steps per frame; by default as many as 0.04 s has.
        title: above the machine.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    states, actions = np.asarray(states, float), np.asarray(actions, float)
    every = max(1, round(FRAME / model.dt)) if every is None else every
    heights = [1.4] * len(charts) + [1.0] * actions.shape[1]
    figure = new_figure(6.8, 0.7 + 0.72 * sum(heights) if len(heights) > 2 else 2.9)
    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), 2, width_ratios=[1, 1.2], height_ratios=heights)
    stage = figure.add_subplot(grid[:, 0], aspect="equal")
    stage.axis("off")
    move = scene(stage, states, actions)
    clock = stage.text(0.5, -0.02, "0 s", ha="center", va="top", fontsize=9, transform=stage.transAxes)
    stage.set_title(title, loc="center")
    axes = [figure.add_subplot(grid[i, 1]) for i in range(len(heights))]
    chart = _charts(axes, states, actions, model, charts)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout must not change from frame to frame
    name, unit = model.action.names[0].replace("_", " "), pretty(model.action.units[0])
    frames: list[Any] = []
    for k in bar(range(0, len(actions), every), "animation"):
        move(k)
        chart(k)
        command = f"    {name} {actions[k, 0]:+.1f} {unit}" if actions.shape[1] == 1 else ""
        clock.set_text(f"{k * model.dt:.1f} s{command}".replace("-", "\N{MINUS SIGN}"))
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(128))
    durations = [round(1000 * model.dt * every)] * len(frames)  # ms
    durations[-1] += round(1000 * HOLD)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return Path(path)


def _charts(axes: Sequence[Any], states, actions, model, charts: Sequence[Chart]) -> Update:
    """Draw coordinates and actions over time, the future pale and the past coloured."""
    times, lines = model.dt * np.arange(len(states)), []
    for axis, (i, goal, colour) in zip(axes, charts, strict=False):
        values, wraps = states[:, i], bool(model.state.is_angle[i])
        axis.plot(times, values, color=FAINT, lw=1.0)
        lines.append((axis.plot([], [], color=colour)[0], values))
        if goal is not None:
            turns = 2 * np.pi * np.round((values[-1] - goal) / (2 * np.pi)) if wraps else 0.0
            axis.axhline(goal + turns, color=ORANGE, lw=1.0, ls=(0, (4, 2)))
        axis.set_ylabel(label(model.state.names[i].replace("_", " "), model.state.units[i]))
        if wraps and np.ptp(axis.get_ylim()) > 0.75 * np.pi:
            multiples_of_pi(axis.yaxis)
    for i, axis in enumerate(axes[len(charts) :]):
        low, high = float(model.action.low[i]), float(model.action.high[i])
        axis.step(times[:-1], actions[:, i], where="post", color=FAINT, lw=1.0)
        lines.append((axis.plot([], [], color=GREEN, drawstyle="steps-post")[0], actions[:, i]))
        name = model.action.names[i].replace("_", " ")
        name = name if len(axes) < 4 else name.replace(" ", "\n")  # with many charts each is low
        margin = 0.05 * (high - low)
        axis.set(ylabel=label(name, model.action.units[i]), ylim=(low - margin, high + margin))
    for axis in axes:
        axis.set_xlim(0, times[-1])
        axis.tick_params(labelbottom=axis is axes[-1])
    axes[-1].set_xlabel("time [s]")
    axes[0].figure.align_ylabels(axes)

    def update(k: int) -> None:
        for line, values in lines:
            line.set_data(times[: min(k + 1, len(values))], values[: k + 1])

    return update
