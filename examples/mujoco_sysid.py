"""Against MuJoCo's system identification on its own ground, and on a real machine.

    PHYSPPL_DATA=folder-of-recordings python examples/mujoco_sysid.py [--write]

**The spring and mass of its own notebook**: mass, stiffness and damping from 3 s of two sines, with sensors of position
and velocity at 2 ms. The rival is used as documented (residuals of each sensor divided by its signal's size, the first
reading as the first state), and tuned by hand (sensors weighted by what they scatter about the first fit, twice; an
unknown first state as two more parameters). Ours is one program for all cases. The notebook's sensors have no noise
here; intervals need some.

**A real Furuta pendulum**: the recordings, the windows and the score of [this page](real_furuta.md).
"""

import contextlib
import io
import os
import sys
import time
from importlib.metadata import version
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import mujoco_sysid_furuta
import numpy as np
import numpyro.distributions as dist
import page
from absl import logging
from mujoco import sysid

import physppl as pp
from physppl.inference import Laplace

REPEATS = 100
DT, SECONDS = 0.002, 3.0
NAMES = ("mass", "stiffness", "damping")
UNITS = {"mass": "kg", "stiffness": "N/m", "damping": "N s/m"}
TRUTH = np.array([1.0, 100.0, 5.0])
BOUNDS = np.array([[0.3, 3.0], [30.0, 300.0], [0.0, 20.0]])  # of the notebook
START = np.array([2.0, 165.0, 10.0])  # the notebook's mass; the middle of the others' bounds
SPRING = f"""
<mujoco>
  <option timestep="{DT}"><flag contact="disable"/></option>
  <worldbody>
    <body name="box">
      <inertial pos="0 0 0" mass="{TRUTH[0]}" diaginertia="0.001 0.001 0.001"/>
      <joint name="slide" type="slide" axis="1 0 0" stiffness="{TRUTH[1]}" damping="{TRUTH[2]}"/>
    </body>
  </worldbody>
  <actuator><motor name="push" joint="slide"/></actuator>
  <sensor><jointpos name="position" joint="slide"/><jointvel name="velocity" joint="slide"/></sensor>
</mujoco>
"""


class Case(NamedTuple):
    """Conditions of the recordings.

    Attributes:
        noise: sd of the sensors, m and m/s.
        start: sd of the first state, m and m/s; zero is known.
        push: sd of the velocity's change by random forces over one step, m/s.
    """

    title: str
    noise: tuple[float, float]
    start: tuple[float, float] = (0.0, 0.0)
    push: float = 0.0


CASES = (
    Case("both sensors scatter by 5 % of their signal", (3.3e-3, 3.1e-2)),
    Case("a good encoder and a poor tachometer", (2e-4, 0.1)),
    Case("the same, from a start that nobody knows", (2e-4, 0.1), start=(0.03, 0.3)),
    Case("the same, and small random forces", (2e-4, 0.1), start=(0.03, 0.3), push=2e-3),
)


def record(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (N, 1) and readings (N, 2) in m and m/s, of MuJoCo's own stepping."""
    rng = np.random.default_rng(seed)
    model = mujoco.MjModel.from_xml_string(SPRING)
    data = mujoco.MjData(model)
    times = DT * np.arange(round(SECONDS / DT))
    inputs = 5.0 * np.sin(2 * np.pi * 1.5 * times) + 3.0 * np.sin(2 * np.pi * 3.7 * times)
    data.qpos[:], data.qvel[:] = rng.normal(size=2) * case.start
    states = []
    for force in inputs:
        states.append((data.qpos[0], data.qvel[0]))
        data.ctrl[:] = force
        mujoco.mj_step(model, data)
        data.qvel += case.push * rng.normal()
    return inputs[:, None], np.array(states) + rng.normal(size=(len(times), 2)) * case.noise


def spring():
    """The box on its spring, by MuJoCo's own rule: the damping implicit, the new velocity moves the box."""
    mass, stiffness, damping = (
        pp.physical(name, *bounds, unit=UNITS[name]) for name, bounds in zip(NAMES, BOUNDS, strict=True)
    )

    def step(t, state, action):
        position, velocity = state
        force = action[0] - stiffness * position - damping * velocity
        velocity = velocity + DT * force / (mass + DT * damping)
        return jnp.stack([position + DT * velocity, velocity])

    return pp.Step(step)


spaces = (
    pp.StateSpace(position=pp.Real("m", scale=0.1), velocity=pp.Real("m/s")),
    pp.ActionSpace(push=pp.Bounded(-10.0, 10.0, "N")),
)
# Forces that nobody recorded change velocities, not positions.
box = pp.Dynamics(spring, *spaces, dt=DT, process_noise=dist.HalfNormal(np.array([1e-5, 1e-2])))
still_box = pp.Dynamics(spring, *spaces, dt=DT, process_noise=1e-9)  # knows that there are none, as least squares does


class Fit(NamedTuple):
    """Estimates (3,), their 95 % intervals (3, 2), and seconds."""

    estimate: np.ndarray
    interval: np.ndarray
    seconds: float


def ours(case: Case, inputs, readings, dynamics=box) -> Fit:
    sd = np.array(case.start)
    # Known, or else somewhere within the scales about nothing: what the first reading says, the likelihood counts.
    start = (np.zeros(2), np.where(sd > 0, [0.1, 1.0], 1e-9))
    begun = time.perf_counter()
    posterior = pp.fit(jax.random.key(0), dynamics, pp.Trajectories(readings, inputs, dt=DT, start=start), Laplace())
    draws = posterior.samples(jax.random.key(1), 4000)
    draws = np.stack([np.asarray(draws[name], float) for name in NAMES])
    return Fit(draws.mean(1), np.quantile(draws, [0.025, 0.975], axis=1).T, time.perf_counter() - begun)


def sequence(spec, inputs, readings, first) -> sysid.ModelSequences:
    """One recording as the rival takes it: its sensors are those of the state before each step."""
    model = spec.compile()
    times = DT * np.arange(len(inputs))
    measured = sysid.TimeSeries.from_names(times[1:], readings[:-1], model)
    state = sysid.create_initial_state(model, first[:1], first[1:])
    return sysid.ModelSequences("spring", spec, "recording", state, sysid.TimeSeries(times, inputs), measured)


def spring_parameters(first=None) -> sysid.ParameterDict:
    """Mass, stiffness and damping; and the first state, where it is a parameter."""
    modifiers = (
        lambda s, p: setattr(s.body("box"), "mass", p.value[0]),
        lambda s, p: s.joint("slide").stiffness.__setitem__(0, p.value[0]),  # of a polynomial since MuJoCo 4
        lambda s, p: s.joint("slide").damping.__setitem__(0, p.value[0]),
    )
    parameters = sysid.ParameterDict()
    for name, value, (low, high), modifier in zip(NAMES, START, BOUNDS, modifiers, strict=True):
        parameters.add(sysid.Parameter(name, value, low, high, modifier=modifier))
    if first is not None:
        for name, value, reach in zip(("first_position", "first_velocity"), first, (0.5, 5.0), strict=True):
            parameters.add(sysid.Parameter(name, value, -reach, reach, modifier=lambda s, p: None))
    return parameters


def from_first_parameters(**arguments):
    """A rollout whose first state is among the parameters."""
    states = np.array(arguments["initial_states"])
    for state, values in zip(states, arguments.pop("param_dicts"), strict=True):
        state[1:] = [values[name].value[0] for name in ("first_position", "first_velocity")]
    return sysid.sysid_rollout(**{**arguments, "initial_states": states})


def rival(case: Case, inputs, readings, tuned: bool) -> Fit:
    begun = time.perf_counter()
    unknown = any(case.start)
    first = readings[0] if unknown else np.zeros(2)
    recording = sequence(mujoco.MjSpec.from_string(SPRING), inputs, readings, first)
    options = {"custom_rollout": from_first_parameters} if tuned and unknown else {}
    parameters = spring_parameters(first if options else None)
    weights = None
    for _ in range(3 if tuned else 1):
        residual = sysid.build_residual_fn(models_sequences=[recording], sensor_weights=weights, **options)
        parameters, result = sysid.optimize(parameters, residual, verbose=False)
        left = residual(result.x, parameters, return_pred_all=True)[0]
        if tuned:
            scatter = np.concatenate(left).reshape(-1, 2).std(0)
            old = np.ones(2) if weights is None else np.array(list(weights.values()))
            weights = dict(zip(("position", "velocity"), old / scatter, strict=True))
    half = sysid.calculate_intervals(left, result.jac)[1]
    estimate, half = np.ravel(result.x)[:3], half[:3]
    return Fit(estimate, np.stack([estimate - half, estimate + half], 1), time.perf_counter() - begun)


class Score(NamedTuple):
    """Scores over all repeats: rms error (3,) and mean width of the 95 % intervals (3,) as shares of the truth, share
    (3,) of the intervals that hold it, and seconds of the first and of the median fit."""

    error: np.ndarray
    width: np.ndarray
    inside: np.ndarray
    first: float
    seconds: float


METHODS = {
    "physppl": ours,
    "physppl, told that no forces act": lambda *problem: ours(*problem, dynamics=still_box),
    "MuJoCo sysid as documented": lambda *problem: rival(*problem, tuned=False),
    "MuJoCo sysid tuned by hand": lambda *problem: rival(*problem, tuned=True),
}


def compare(case: Case, repeats: int = REPEATS) -> dict[str, Score]:
    """All methods on the same recordings."""
    fits: dict[str, list[Fit]] = {name: [] for name in METHODS}
    for seed in range(repeats):
        inputs, readings = record(case, seed)
        for name, method in METHODS.items():
            fits[name].append(method(case, inputs, readings))
    return {name: score(each) for name, each in fits.items()}


def score(fits: list[Fit]) -> Score:
    estimates, seconds = np.array([f.estimate for f in fits]), [f.seconds for f in fits]
    low, high = np.moveaxis(np.array([f.interval for f in fits]), -1, 0)
    error = np.sqrt(np.mean((estimates / TRUTH - 1) ** 2, axis=0))
    inside = np.mean((low <= TRUTH) & (TRUTH <= high), axis=0)
    return Score(error, np.mean((high - low) / TRUTH, axis=0), inside, seconds[0], float(np.median(seconds[1:])))


def spring_report(repeats: int) -> list[str]:
    lines = [
        "## The spring and mass",
        "",
        f"{repeats} repeats; right 95 % intervals hold the truth in 95 % of them, give or take "
        f"{2 * np.sqrt(0.95 * 0.05 / repeats):.0%}. Columns give mass, stiffness, damping.",
    ]
    for case in CASES:
        scores = compare(case, repeats)
        lines += ["", f"**{case.title[0].upper()}{case.title[1:]}**", ""]
        lines += ["| method | rms error, % | mean width, % | 95 % interval holds the truth | fit, s | first fit, s |"]
        lines += ["|---|---|---|---|---|---|"]
        for name, s in scores.items():
            error, width = (", ".join(f"{100 * v:.2g}" for v in values) for values in (s.error, s.width))
            inside = ", ".join(f"{v:.0%}" for v in s.inside)
            lines.append(f"| {name} | {error} | {width} | {inside} | {s.seconds:.2f} | {s.first:.1f} |")
    lines += [
        "",
        "Where all errors are white, of one relative size, and the start is known, both are right. With sensors of "
        "unequal quality the rival as documented wastes the better one, and from an unknown start its intervals fail; "
        "weights and a start fitted by hand repair both. Once forces act that nobody recorded, its intervals fail in "
        "any case.",
    ]
    return lines


def main() -> None:
    data = os.environ.get("PHYSPPL_DATA")
    if not data:
        raise SystemExit("PHYSPPL_DATA must name the folder that holds furuta_qube.")
    logging.set_verbosity("ERROR")
    versions = f"MuJoCo {version('mujoco')}, physppl {version('physppl')}, JAX {version('jax')}."
    with contextlib.redirect_stdout(io.StringIO()):  # the rival's optimisers print
        lines = [versions, "", *spring_report(REPEATS), "", *mujoco_sysid_furuta.report(data)]
    text = "\n".join(lines)
    print(text)
    if "--write" in sys.argv:
        title = "Against MuJoCo's system identification"
        page.write("mujoco_sysid", title, page.introduction(__doc__), "mujoco_sysid.py", text)


if __name__ == "__main__":
    main()
