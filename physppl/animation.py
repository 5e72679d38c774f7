"""Moving pictures of machines."""

from pathlib import Path

import numpy as np

from physppl.plots import BLUE, GREEN, INK, ORANGE, multiples_of_pi, new_figure, styled
from physppl.progress import bar
from physppl.units import label, pretty


@styled
def animate_pendulum(path, states, actions, model, *, every: int = 2, title: str = "") -> Path:
    """A GIF in real time of a pendulum (angle 0 hangs): the rod, the torque as an arc, both over time.

    Args:
        path: of the file.
        states: (T + 1, 2) angle and velocity; actions: (T, 1).
        model: the Dynamics, for names, units, limits and dt.
        every: steps per frame.
    """
    from matplotlib.animation import PillowWriter
    from matplotlib.markers import MarkerStyle
    from matplotlib.patches import Circle
    from matplotlib.transforms import Affine2D

    states, actions = np.asarray(states, float), np.asarray(actions, float)[:, 0]
    times, limit = model.dt * np.arange(len(states)), float(np.max(np.abs([model.action.low, model.action.high])))
    figure = new_figure(6.4, 2.9)
    figure.set_dpi(100)
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 1.35], height_ratios=[1.4, 1])
    scene = figure.add_subplot(grid[:, 0], aspect="equal", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
    scene.axis("off")
    scene.add_patch(Circle((0, 0), 1.0, fill=False, color="#DDDDDD", lw=0.9))
    scene.plot([0], [1], marker="x", color=ORANGE, ms=6, mew=1.4)
    (rod,) = scene.plot([], [], color=INK, lw=3.2, solid_capstyle="round", zorder=3)
    (bob,) = scene.plot([], [], "o", color=BLUE, ms=15, zorder=4)
    (arc,) = scene.plot([], [], color=GREEN, lw=2.4, zorder=2, solid_capstyle="butt")
    (tip,) = scene.plot([], [], color=GREEN, marker="^", ms=7, ls="none", zorder=2)
    scene.plot([0], [0], "o", color=INK, ms=5, zorder=5)
    clock = scene.text(0, -1.38, "", ha="center", va="bottom", fontsize=9)
    if title:
        scene.set_title(title, loc="center")
    above, below = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    angle_name, torque_name = model.state.names[0], model.action.names[0]
    above.plot(times, states[:, 0], color="#DDDDDD", lw=1.0)
    below.step(times[:-1], actions, where="post", color="#DDDDDD", lw=1.0)
    (angle_line,) = above.plot([], [], color=BLUE)
    (torque_line,) = below.plot([], [], color=GREEN, drawstyle="steps-post")
    turns = np.pi * (2 * np.round((states[-1, 0] - np.pi) / (2 * np.pi)) + 1)
    above.axhline(turns, color=ORANGE, lw=1.0, ls=(0, (4, 2)))
    above.set(ylabel=label(angle_name, model.state.units[0]), xlim=(0, times[-1]), xticklabels=[])
    multiples_of_pi(above.yaxis)
    unit = pretty(model.action.units[0])
    below.set(
        ylabel=f"{torque_name} [{unit}]", xlabel="time [s]", xlim=(0, times[-1]), ylim=(-1.1 * limit, 1.1 * limit)
    )
    figure.align_ylabels([above, below])
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # nothing moves from frame to frame
    writer = PillowWriter(fps=1 / (model.dt * every))
    with writer.saving(figure, str(path), dpi=100):
        for k in bar(range(0, len(actions), every), "animation"):
            x, y = np.sin(states[k, 0]), -np.cos(states[k, 0])
            rod.set_data([0, x], [0, y])
            bob.set_data([x], [y])
            swept = np.linspace(0, 0.8 * np.pi * actions[k] / limit, 40)  # counter-clockwise is positive
            x, y = 0.34 * np.cos(swept), 0.34 * np.sin(swept)
            arc.set_data(x, y)
            tip.set_data(x[-1:], y[-1:])
            turn = np.degrees(swept[-1]) + (0 if actions[k] >= 0 else 180)
            tip.set_marker(MarkerStyle("^", transform=Affine2D().rotate_deg(turn)))
            clock.set_text(f"{times[k]:.1f} s    {torque_name} {actions[k]:+.1f} {unit}")
            angle_line.set_data(times[: k + 1], states[: k + 1, 0])
            torque_line.set_data(times[: k + 1], actions[: k + 1])
            writer.grab_frame()
    return Path(path)
