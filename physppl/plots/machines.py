"""Animations of machines in real time: the machine on the left, its coordinates and actions over time on the right.

Every function writes a GIF and takes:

    path: of the file.
    states: (T + 1, D); actions: (T, A).
    model: the Dynamics, for names, units, limits and dt.
    every: steps per frame; by default as many as 0.04 s has.
    title: above the machine.
"""

from pathlib import Path

import numpy as np

from physppl.internal.figures import BLUE, GREEN, INK, ORANGE, styled
from physppl.plots.gif import FAINT, Chart, Update, film

PALE, STEEL = "#F2F2F2", "#B9BEC4"


@styled
def animate_pendulum(path, states, actions, model, *, upright=np.pi, every: int | None = 2, title: str = "") -> Path:
    """Animate a pendulum: the rod, and the torque as an arc.

    Args:
        upright: rad, the angle at which it stands upright.
    """
    from matplotlib.markers import MarkerStyle
    from matplotlib.patches import Circle
    from matplotlib.transforms import Affine2D

    limit = float(np.max(np.abs([model.action.low, model.action.high])))

    def scene(axis, states, actions) -> Update:
        angles = states[:, 0] - upright
        axis.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
        axis.add_patch(Circle((0, 0), 1.0, fill=False, color=FAINT, lw=0.9))
        axis.plot([0], [1], marker="x", color=ORANGE, ms=6, mew=1.4)
        (rod,) = axis.plot([], [], color=INK, lw=3.2, solid_capstyle="round", zorder=3)
        (bob,) = axis.plot([], [], "o", color=BLUE, ms=15, zorder=4)
        (arc,) = axis.plot([], [], color=GREEN, lw=2.4, zorder=2, solid_capstyle="butt")
        (tip,) = axis.plot([], [], color=GREEN, marker="^", ms=7, ls="none", zorder=2)
        axis.plot([0], [0], "o", color=INK, ms=5, zorder=5)

        def update(k: int) -> None:
            torque = actions[min(k, len(actions) - 1), 0]
            x, y = -np.sin(angles[k]), np.cos(angles[k])  # counter-clockwise is positive
            rod.set_data([0, x], [0, y])
            bob.set_data([x], [y])
            swept = np.linspace(0, 0.8 * np.pi * torque / limit, 40)
            x, y = 0.34 * np.cos(swept), 0.34 * np.sin(swept)
            arc.set_data(x, y)
            tip.set_data(x[-1:], y[-1:])
            turn = np.degrees(swept[-1]) + (0 if torque >= 0 else 180)
            tip.set_marker(MarkerStyle("^", transform=Affine2D().rotate_deg(turn)))

        return update

    return film(path, states, actions, model, scene, [Chart(0, upright)], every, title)


@styled
def animate_cartpole(
    path, states, actions, model, *, pole=0.34, track=None, upright=np.pi, every: int | None = None, title: str = ""
) -> Path:
    """Animate a pole on a cart: position and angle are the first two coordinates.

    Args:
        pole: m, length of the pole.
        track: m, half the length of the rail; None: as far as the cart went.
        upright: rad, the angle at which the pole stands upright.
    """
    from matplotlib.patches import FancyBboxPatch, Rectangle

    wide, tall = 0.3 * pole, 0.2 * pole
    limit = float(np.max(np.abs([model.action.low, model.action.high])))

    def scene(axis, states, actions) -> Update:
        far = max(np.abs(states[:, 0]).max(), track or 0.0, pole)
        axis.set(xlim=(-far - 0.9 * wide, far + 0.9 * wide), ylim=(-1.25 * pole, 1.25 * pole))
        end = far if track is None else track
        axis.plot([-end, end], [-tall / 2] * 2, color=STEEL, lw=2.0, zorder=1, solid_capstyle="butt")
        for x in () if track is None else (-track, track):
            axis.plot([x, x], [-tall, 0.3 * tall], color=ORANGE, lw=2.0, zorder=1)
        axis.axhline(pole, color=ORANGE, lw=0.9, ls=(0, (4, 3)), alpha=0.7, zorder=0)
        shape = FancyBboxPatch((0, 0), wide, tall, "round,pad=0,rounding_size=0.02", fc=INK, ec="none", zorder=2)
        cart = axis.add_patch(shape)
        push = axis.add_patch(Rectangle((0, 0), 0, 0.22 * tall, fc=GREEN, ec="none", zorder=3))
        (rod,) = axis.plot([], [], color=BLUE, lw=4.0, solid_capstyle="round", zorder=4)
        (hinge,) = axis.plot([], [], "o", color="white", ms=3.5, zorder=5)

        def update(k: int) -> None:
            x, angle = states[k, 0], states[k, 1] - upright
            cart.set_x(x - wide / 2)
            cart.set_y(-tall / 2)
            push.set_xy((x, -1.3 * tall))
            push.set_width(pole * actions[min(k, len(actions) - 1), 0] / limit)
            rod.set_data([x, x - pole * np.sin(angle)], [0, pole * np.cos(angle)])
            hinge.set_data([x], [0])

        return update

    return film(path, states, actions, model, scene, [Chart(1, upright), Chart(0, None, INK)], every, title)


@styled
def animate_two_link(
    path, states, actions, model, *, lengths=(0.2, 0.3), target=None, every: int | None = None, title: str = ""
) -> Path:
    """Animate an arm of two links; angle 0 hangs or, for an arm in the horizontal plane, points down the page.

    Args:
        lengths: m, of the links.
        target: rad, both angles of the desired position.
    """
    reach = 1.12 * sum(lengths)

    def joints(angles) -> np.ndarray:
        turned = np.cumsum(angles)
        steps = np.array(lengths)[:, None] * np.stack([np.sin(turned), -np.cos(turned)], 1)
        return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])

    def scene(axis, states, actions) -> Update:
        tips = np.array([joints(angles)[-1] for angles in states[:, :2]])
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach))
        if target is not None:
            axis.plot(*joints(target).T, color=ORANGE, lw=5.0, alpha=0.25, solid_capstyle="round", zorder=1)
            axis.plot(*joints(target)[-1], marker="x", color=ORANGE, ms=7, mew=1.6, zorder=2)
        (trail,) = axis.plot([], [], color=BLUE, lw=1.0, alpha=0.5, zorder=2)
        (links,) = axis.plot([], [], color=INK, lw=4.2, solid_capstyle="round", solid_joinstyle="round", zorder=3)
        (ends,) = axis.plot([], [], "o", color=BLUE, ms=7, zorder=4)

        def update(k: int) -> None:
            points = joints(states[k, :2])
            links.set_data(*points.T)
            ends.set_data(*points.T)
            trail.set_data(*tips[max(0, k - round(0.4 / model.dt)) : k + 1].T)

        return update

    charts = [Chart(i, None if target is None else target[i]) for i in (0, 1)]
    return film(path, states, actions, model, scene, charts, every, title)


@styled
def animate_furuta(
    path,
    states,
    actions,
    model,
    *,
    arm=0.085,
    pendulum=0.129,
    arm_range=None,
    every: int | None = None,
    title: str = "",
) -> Path:
    """Animate a rotary pendulum in perspective: arm and pendulum are the first two coordinates, angle pi is upright.

    Args:
        arm, pendulum: m, their lengths.
        arm_range: rad, largest arm angle either way, drawn as a sector.
    """

    def scene(axis, states, actions) -> Update:
        from matplotlib.patches import Polygon

        elbow, tip = furuta_points(states[:, 0], states[:, 1], arm, pendulum)
        axis.set(xlim=(-0.16, 0.16), ylim=(-0.2, 0.16))
        half, top, floor = 0.045, -0.018, -0.14
        corners = half * np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]])
        around = np.linspace(0, 2 * np.pi, 90)

        def solid(points, colour, order):
            edge = {"ec": "white", "lw": 0.7, "joinstyle": "round"}
            axis.add_patch(Polygon(view(points), closed=True, fc=colour, zorder=order, **edge))

        def disc(radius, z):
            return np.stack([radius * np.cos(around), radius * np.sin(around), np.full(90, z)], 1)

        def wall(i, j):
            return np.array([[*corners[i], top], [*corners[j], top], [*corners[j], floor], [*corners[i], floor]])

        solid(disc(0.155, floor), PALE, 0)
        solid(wall(0, 1), "#4A5058", 2)
        solid(wall(1, 2), "#33383E", 2)
        solid(np.column_stack([corners, np.full(4, top)]), "#646B74", 2)
        solid(disc(0.017, 0.0), STEEL, 3)
        if arm_range is not None:
            sweep = np.linspace(-arm_range, arm_range, 40)
            sector = view(np.vstack([np.zeros(3), arm * np.stack([np.cos(sweep), np.sin(sweep), 0 * sweep], 1)]))
            axis.add_patch(Polygon(sector, closed=True, fc=ORANGE, alpha=0.13, zorder=3))
            axis.plot(*sector[1:].T, color=ORANGE, lw=1.0, alpha=0.7, zorder=3)
        (shade,) = axis.plot([], [], color="#D2D2D2", lw=4.0, solid_capstyle="round", zorder=1)
        (trail,) = axis.plot([], [], color=BLUE, lw=1.1, alpha=0.45, zorder=4)
        (link,) = axis.plot([], [], color=INK, lw=5.0, solid_capstyle="round", zorder=5)
        (rod,) = axis.plot([], [], color=BLUE, lw=5.0, solid_capstyle="round", zorder=6)
        (bob,) = axis.plot([], [], "o", color=BLUE, ms=8, zorder=7)
        (pivot,) = axis.plot([], [], "o", color=INK, ms=6.5, mec="white", mew=0.8, zorder=8)
        axis.plot(*view(np.zeros(3)).T, "o", color=INK, ms=7, zorder=6)

        def update(k: int) -> None:
            ends = view(np.stack([np.zeros(3), elbow[k], tip[k]]))
            link.set_data(*ends[:2].T)
            rod.set_data(*ends[1:].T)
            bob.set_data(*ends[2:].T)
            pivot.set_data(*ends[1:2].T)
            shade.set_data(*view(np.stack([elbow[k], tip[k]]) * [1, 1, 0] + [0, 0, floor]).T)
            trail.set_data(*view(tip[max(0, k - round(0.25 / model.dt)) : k + 1]).T)
            behind = elbow[k, 0] < -0.2 * arm  # the box hides the pendulum there
            rod.set_zorder(1 if behind else 6)
            bob.set_zorder(1 if behind else 7)

        return update

    return film(path, states, actions, model, scene, [Chart(1, np.pi), Chart(0, None, INK)], every, title)


def furuta_points(theta, alpha, arm: float, pendulum: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends (T, 3) of arm and pendulum, m, z up; the arm points along x at 0, the pendulum hangs at 0."""
    theta, alpha = np.asarray(theta), np.asarray(alpha)
    along = np.stack([np.cos(theta), np.sin(theta), 0 * theta], -1)
    across = np.stack([-np.sin(theta), np.cos(theta), 0 * theta], -1)
    up = np.array([0.0, 0.0, 1.0])
    elbow = arm * along
    return elbow, elbow + pendulum * (np.sin(alpha)[..., None] * across - np.cos(alpha)[..., None] * up)


def view(points, azimuth=0.42, elevation=0.36, distance=0.6, centre=(0.02, 0.0, -0.005)) -> np.ndarray:
    """Perspective projection of points (N, 3) onto the image plane (N, 2), m at the centre's distance."""
    ca, sa, ce, se = np.cos(azimuth), np.sin(azimuth), np.cos(elevation), np.sin(elevation)
    towards = np.array([ce * ca, ce * sa, se])  # from the centre to the camera
    right, up = np.array([-sa, ca, 0.0]), np.array([-se * ca, -se * sa, ce])
    points = np.atleast_2d(points) - np.asarray(centre)
    magnification = distance / (distance - points @ towards)
    return np.stack([points @ right, points @ up], 1) * magnification[:, None]
