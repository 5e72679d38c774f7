"""Moving pictures: they play in real time, and what the Furuta pendulum's shows obeys its mechanics."""

import itertools

import jax
import numpy as np
import pytest
from PIL import Image

import physppl as pp
from physppl.models import cartpole, furuta, quanser_cartpole, two_link
from physppl.plots import machines

MACHINES = {
    "furuta": (furuta.dynamics(dt=0.01), machines.animate_furuta, {"arm_range": 0.75}, 40),
    "cartpole": (cartpole.dynamics(), machines.animate_cartpole, {"pole": 1.0, "upright": 0.0}, 50),
    "quanser_cartpole": (quanser_cartpole.dynamics(dt=0.02), machines.animate_cartpole, {"track": 0.407}, 40),
    "two_link": (two_link.dynamics(dt=0.02), machines.animate_two_link, {"target": (1.0, 1.0)}, 40),
}


@pytest.mark.parametrize("name", MACHINES)
def test_animations_play_in_real_time(name, tmp_path):
    model, animate, options, milliseconds = MACHINES[name]
    steps, rng = 8 * max(1, round(0.04 / model.dt)), np.random.default_rng(0)
    states = np.cumsum(rng.normal(size=(steps + 1, len(model.state))) * 0.1, axis=0)
    actions = rng.uniform(model.action.low, model.action.high, (steps, len(model.action)))
    path = animate(tmp_path / "swing.gif", states, actions, model, title="episode 1", **options)
    with Image.open(path) as picture:
        durations, frames = [], []
        for k in range(picture.n_frames):
            picture.seek(k)
            durations.append(picture.info["duration"])
            frames.append(np.asarray(picture.convert("L"), float))
    assert durations == [milliseconds] * 7 + [milliseconds + 1000]  # the last one stands a second longer
    half = frames[0].shape[1] // 2
    assert all(np.abs(a - b)[:, :half].max() > 50 for a, b in itertools.pairwise(frames))  # the machine moves
    assert all(np.abs(a - b)[:, half:].max() > 50 for a, b in itertools.pairwise(frames))  # and so do its charts


def test_the_furuta_pendulum_hangs_and_stands_where_it_is_drawn():
    elbow, tip = machines.furuta_points([0.0, 0.0, np.pi / 2], [0.0, np.pi, np.pi / 2], 0.1, 0.3)
    np.testing.assert_allclose(elbow, [[0.1, 0, 0], [0.1, 0, 0], [0, 0.1, 0]], atol=1e-12)
    np.testing.assert_allclose(tip - elbow, [[0, 0, -0.3], [0, 0, 0.3], [-0.3, 0, 0]], atol=1e-12)


def test_the_drawn_furuta_pendulum_keeps_the_energy_of_the_simulated_one():
    """A uniform rod where the picture has it, moving as the picture moves: its energy is that of a free machine."""
    free = {"motor_constant": 0.0, "arm_damping": 0.0, "pendulum_damping": 0.0}
    dt = 1e-3
    with jax.enable_x64(True):
        system = furuta.system(dt, **free)
        start = np.array([0.2, 2.0, 3.0, -5.0])
        states = np.asarray(pp.rollout(system.transition, start, np.zeros((600, 1))))
    elbow, tip = machines.furuta_points(states[:, 0], states[:, 1], furuta.ARM_LENGTH, furuta.PENDULUM_LENGTH)
    nodes, weights = np.polynomial.legendre.leggauss(2)  # exact for a quadratic along the rod
    energy = furuta.ARM_MASS / 12 * furuta.ARM_LENGTH**2 * states[1:-1, 2] ** 2 / 2  # the arm turns about its middle
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = elbow + node * (tip - elbow)
        speed = (point[2:] - point[:-2]) / (2 * dt)
        mass = weight * furuta.PENDULUM_MASS
        energy = energy + mass * ((speed**2).sum(1) / 2 + furuta.GRAVITY * point[1:-1, 2])
    swing = 2 * furuta.nominal["pendulum_mgl"]
    # Central differences err by dt^2/6 of the third derivative: at 30 rad/s by less than 2e-4 of the kinetic energy.
    assert np.ptp(states[:, 1]) > 3 and np.ptp(energy) < 1e-3 * swing
