"""Simulators of others, whose truth is known: identified from 5 s with sensor noise of 1e-3."""

import jax
import numpy as np
import pytest
from helpers import example

import physppl as pp
from physppl.internal.errors import Status

gymnasium = pytest.importorskip("gymnasium", reason="the [gym] extra is not installed")
mujoco = pytest.importorskip("mujoco", reason="the [mujoco] extra is not installed")
known_truth = example("known_truth")
INERTIAL = {
    "pendulum": ("mass", "length"),
    "cartpole": ("total_mass", "pole_moment", "pole_inertia"),
}
machines = {
    "pendulum": (known_truth.pendulum, known_truth.record_pendulum, known_truth.PENDULUM_TRUTH),
    "cartpole": (known_truth.cartpole, known_truth.record_cartpole, known_truth.CARTPOLE_TRUTH),
}
each = pytest.mark.parametrize("name", machines)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.science) for name in ("pendulum", "cartpole")])
def test_five_seconds_determine_the_inertial_parameters_within_a_percent(name):
    dynamics, record, truth = machines[name]
    data = record(3)
    assert np.isclose(data.times[-1], 5.0)
    posterior = pp.fit(jax.random.key(0), dynamics, data, known_truth.BACKEND)
    assert Status(int(posterior.status)) is Status.OK
    samples = posterior.samples(jax.random.key(1), 4000)
    for quantity in INERTIAL[name]:
        assert abs(samples[quantity].mean() / truth[quantity] - 1) < 0.01, quantity
    if name == "pendulum":
        assert known_truth.damping_bound(samples) < 1e-3


def test_noise_is_what_was_added_to_the_readings():
    """The same seed without noise differs by independent errors with the sd that is claimed."""
    for name, (_, record, _) in machines.items():
        noisy = np.asarray(record(5).observations)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(known_truth, "NOISE", 0.0)
            errors = (noisy - np.asarray(record(5).observations)) / 1e-3
        # Mean square of n standard normals: 1, give or take 4 of its sds.
        assert abs(np.mean(errors**2) - 1) < 4 * np.sqrt(2 / errors.size), name


def test_cartpole_equations_are_mujocos():
    """Without noise, one 1 ms step of MuJoCo's Runge-Kutta and of ours agree to rounding, from anywhere."""
    model = mujoco.MjModel.from_xml_string(known_truth.CARTPOLE % "RK4")
    data = mujoco.MjData(model)
    truth = known_truth.CARTPOLE_TRUTH
    sites = {k: truth[k] for k in ("pole_moment", "cart_damping", "pole_damping")}
    sites["pole_length"] = truth["pole_inertia"] / truth["pole_moment"]
    sites["driven_mass"] = truth["total_mass"] - truth["pole_moment"] / sites["pole_length"]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        machine = known_truth.cartpole
        fine = pp.Dynamics(machine.program, machine.state, machine.action, dt=0.001)
        transition = jax.jit(fine.transition(sites).__call__)
        for _ in range(20):
            state, force = rng.normal(size=4) * [1.0, 2.0, 1.0, 5.0], rng.normal(size=1) * 5
            data.qpos[:], data.qvel[:], data.ctrl[:] = state[:2], state[2:], force
            mujoco.mj_step(model, data)
            ours = np.asarray(transition(state, force))
            assert np.allclose(ours, [*data.qpos, *data.qvel], rtol=1e-10, atol=1e-12)


@pytest.mark.science
@each
def test_intervals_hold_the_truth_as_often_as_they_claim(name):
    """60 repeats. A right sd gives a mean squared error in sds of 1 with sd sqrt(2 / 60) = 0.18 for each quantity."""
    dynamics, record, truth = machines[name]
    repeats = 60
    study = known_truth.study(dynamics, record, truth, repeats)
    inertial = [study.names.index(quantity) for quantity in INERTIAL[name]]
    assert study.error[:, inertial].max() < 0.01
    # A chance below 1e-4 of failing each; the linearised filter's own error takes a part of the upper one.
    assert np.all(np.abs(study.squared.mean(0) - 1) < 4 * np.sqrt(2 / repeats)), study.squared.mean(0)
    assert np.all(study.inside.mean(0) > 0.95 - 4 * np.sqrt(0.05 * 0.95 / repeats)), study.inside.mean(0)
    if name == "pendulum":
        assert study.bound.max() < 1e-3
