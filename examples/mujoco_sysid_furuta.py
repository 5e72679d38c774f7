"""MuJoCo's system identification on a real Furuta pendulum; `mujoco_sysid.py` runs this and writes its page."""

import time
from typing import NamedTuple

import jax
import mujoco
import numpy as np
from mujoco import rollout, sysid
from real_machines import MACHINES, alone, disagreement
from real_machines import accuracy as our_accuracy

import physppl as pp
from physppl.evaluation import benchmarks
from physppl.inference import Laplace
from physppl.models import furuta

machine = MACHINES["furuta"]
# Mass is not determined and held; a constant torque and a spring stand for the encoder's cable.
DELAY, WINDOW, STRIDE = 2, 50, 25  # samples of 4 ms
GAIN, BRAKE = furuta.MOTOR_CONSTANT / furuta.RESISTANCE, furuta.MOTOR_CONSTANT**2 / furuta.RESISTANCE
MACHINE = f"""
<mujoco>
  <option timestep="0.004" integrator="RK4" gravity="0 0 -{furuta.GRAVITY}"><flag contact="disable"/></option>
  <worldbody>
    <body name="arm">
      <joint name="arm" type="hinge" axis="0 0 1" armature="2e-4"/>
      <inertial pos="0 0 0" mass="{furuta.ARM_MASS}" diaginertia="1e-9 1e-9 1e-9"/>
      <body name="pendulum" pos="{furuta.ARM_LENGTH} 0 0">
        <joint name="pendulum" type="hinge" axis="1 0 0"/>
        <inertial pos="0 0 -0.06" mass="{furuta.PENDULUM_MASS}" diaginertia="3e-5 3e-5 1e-9"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="motor" joint="arm" gear="{GAIN}"/></actuator>
  <sensor><jointpos name="arm" joint="arm"/><jointpos name="pendulum" joint="pendulum"/></sensor>
</mujoco>
"""


def _joint(name: str, field: str, plus: float = 0.0):
    def modifier(spec, parameter):
        joint = spec.joint(name)
        if np.ndim(getattr(joint, field)):
            getattr(joint, field)[0] = parameter.value[0] + plus
        else:
            setattr(joint, field, parameter.value[0] + plus)

    return modifier


def _offset(spec, parameter):
    spec.joint("arm").springref = parameter.value[0] / spec.joint("arm").stiffness[0]


PARAMETERS = (  # start, bounds, and where it goes; the offset after the stiffness that it is divided by
    ("centre", 0.0645, 0.03, 0.12, lambda s, p: s.body("pendulum").ipos.__setitem__(2, -p.value[0])),
    ("inertia", 4e-5, 5e-6, 2e-4, lambda s, p: s.body("pendulum").inertia.__setitem__(slice(2), p.value[0])),
    ("armature", 2e-4, 5e-5, 1e-3, _joint("arm", "armature")),
    ("arm_damping", 1e-4, 0.0, 3e-3, _joint("arm", "damping", BRAKE)),
    ("arm_friction", 3e-4, 0.0, 5e-3, _joint("arm", "frictionloss")),
    ("pendulum_damping", 2e-5, 0.0, 4e-4, _joint("pendulum", "damping")),
    ("pendulum_friction", 3e-5, 0.0, 1e-3, _joint("pendulum", "frictionloss")),
    ("cable_stiffness", 1e-3, 1e-5, 8e-3, _joint("arm", "stiffness")),
    ("cable_offset", 0.0, -2e-3, 2e-3, _offset),
)
# What did best of those tried: raw residuals, a robust loss, scaled steps, and MuJoCo's batched finite differences.
TUNED = {"optimizer": "scipy_parallel_fd", "loss": "soft_l1", "f_scale": 0.02, "x_scale": "jac"}


class Identified(NamedTuple):
    """A fitted MuJoCo model, {quantity: (estimate, sd)}, and seconds."""

    model: mujoco.MjModel
    quantities: dict[str, tuple[float, float]]
    seconds: float


def identify(train, tuned: bool) -> Identified:
    """The rival on windows of 0.2 s, each from its smoothed first state; the delay is known."""
    begun = time.perf_counter()
    spec = mujoco.MjSpec.from_string(MACHINE)
    model = spec.compile()
    times = model.opt.timestep * np.arange(WINDOW + 2)
    pieces = []
    for r in train:
        for i in range(r.margin, len(r.position) - WINDOW - r.margin, STRIDE):
            # A reading at the end of a window is the sensor of one more step, whose input does not matter.
            inputs = sysid.TimeSeries(times, r.inputs[i - DELAY : i - DELAY + WINDOW + 2])
            readings = sysid.TimeSeries.from_names(times[1:], r.position[i : i + WINDOW + 1], model)
            first = sysid.create_initial_state(model, *np.split(r.state[i], 2))
            pieces.append(sysid.SystemTrajectory(model, inputs, readings, first, None))
    transform = sysid.SignalTransform(normalize=not tuned)

    def build(parameters):
        return sysid.apply_param_modifiers(parameters, spec)

    def residual(x, parameters, **_):
        """All windows in one batch, which `build_residual_fn` would take one by one."""
        left, *rest = sysid.model_residual(x, parameters, build, pieces, modify_residual=transform.apply)
        return [left if x.ndim == 1 else left.T.reshape(x.shape[1], -1).T], *rest

    parameters = sysid.ParameterDict()
    for name, value, low, high, modifier in PARAMETERS:
        parameters.add(sysid.Parameter(name, value, low, high, modifier=modifier))
    parameters, result = sysid.optimize(parameters, residual, verbose=False, **(TUNED if tuned else {}))
    x = np.ravel(result.x)
    covariance, _ = sysid.calculate_intervals(residual(x, parameters)[0], result.jac)
    mass, centre = furuta.PENDULUM_MASS, x[0]
    slopes = {"pendulum_mgl": [mass * furuta.GRAVITY, 0.0], "pendulum_inertia": [2 * mass * centre, 1.0]}
    values = {"pendulum_mgl": mass * furuta.GRAVITY * centre, "pendulum_inertia": x[1] + mass * centre**2}
    sds = {name: float(np.sqrt(slope @ covariance[:2, :2] @ slope)) for name, slope in slopes.items()}
    quantities = {name: (float(values[name]), sds[name]) for name in values}
    return Identified(build(parameters), quantities, time.perf_counter() - begun)


def accuracy(model: mujoco.MjModel, tests) -> np.ndarray:
    """RMSE over that of least squares, (8,)."""
    ratios = []
    for (test, horizon), reference in machine.reference.items():
        windows = benchmarks.windows(tests[test], horizon)
        starts = [sysid.create_initial_state(model, *np.split(state, 2)) for state in windows.initial_state]
        states, _ = rollout.rollout(model, [mujoco.MjData(model)], np.stack(starts), windows.inputs)
        ratios.append(benchmarks.rmse(windows, states[:, -1, 1:3]) / reference)
    return np.concatenate(ratios)


def report(folder) -> list[str]:
    train, tests = benchmarks.furuta(folder)
    begun = time.perf_counter()
    posterior = pp.fit(jax.random.key(0), machine.dynamics, benchmarks.trajectories(train), Laplace())
    seconds = time.perf_counter() - begun
    rows = {"physppl": (np.concatenate([row[-1] for row in our_accuracy(machine, posterior, tests)]), seconds)}
    for name, tuned in (("MuJoCo sysid, its defaults", False), ("MuJoCo sysid, tuned", True)):
        fit = identify(train, tuned)
        rows[name] = accuracy(fit.model, tests), fit.seconds
    columns = " | ".join(f"{test} {horizon} s" for test, horizon in machine.reference)
    lines = [
        "## The Furuta pendulum",
        "",
        "Open-loop RMSE of arm and pendulum over that of a hand-written least-squares fit; seconds with compilation.",
        "",
        f"| method | {columns} | geometric mean | largest | fit, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (ratios, seconds) in rows.items():
        cells = " | ".join(f"{a:.2f}, {b:.2f}" for a, b in ratios.reshape(-1, 2))
        mean = np.exp(np.log(ratios).mean())
        lines.append(f"| {name} | {cells} | {mean:.3f} | {ratios.max():.2f} | {seconds:.0f} |")
    ours = disagreement([alone(machine, r) for r in train])
    theirs = disagreement([identify([r], tuned=True).quantities for r in train])
    lines += [
        "",
        "Each training recording alone: differences of pairs of estimates in units of their claimed sd. Right sds give "
        "about 1, too small ones more. Ours is told that parameters differ by 0.04 in virtual space from one recording "
        "to the next, as no recording alone can say; least squares has no place for that.",
        "",
        "| method | m g l | inertia |",
        "|---|---|---|",
    ]
    for name, values in (("physppl", ours), ("MuJoCo sysid, tuned", theirs)):
        lines.append(f"| {name} | {' | '.join(f'{v:.2f}' for v in values.values())} |")
    return lines
