"""Machines whose truth is known: simulators that this library did not write, recorded for 5 s with noise of 1e-3.

    python examples/known_truth.py [--write]

Gymnasium steps its Pendulum-v1 by its own rule, 0.05 s at a time; full torques of random sign drive it (braking above
5 rad/s, to stay clear of the simulator's cut at 8 rad/s), and the angle is read off the noisy cosine and sine that it
returns. MuJoCo steps a cart-pole at 1 ms; a random multisine pushes the cart, and noisy encoders read position and
angle at 100 Hz. No velocity is used. Every repeat has its own start, excitation and noise. The simulators have no
process noise, and the fits are told so.
"""

import functools
import sys
import time
from importlib.metadata import version
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import numpyro.distributions as dist
import page
from scipy import stats

import physppl as pp
from physppl.inference import Laplace
from physppl.models import gym_pendulum
from physppl.models.priors import derived

NOISE = 1e-3  # sd of every reading, in its unit
SECONDS = 5.0
REPEATS = 100
# A motion without noise has many local fits. A start costs one density, so hundreds are tried.
BACKEND = Laplace(starts=256)
KNOWN_NOISES = {"process_noise": 1e-6, "measurement_noise": dist.HalfNormal(0.1)}


def damped_pendulum():
    """Pendulum-v1 that may be damped, or driven.

    Nothing is special at a damping of zero then: the posterior is Gaussian there, and its part above zero is the
    posterior under the constraint that friction brakes. Half of the prior lies beyond 0.05 N m s/rad on either side.
    """
    return gym_pendulum.step(
        pp.physical("mass", 0.2, 2.0, unit="kg"),
        pp.physical("length", 0.3, 1.8, unit="m"),
        damping=pp.physical("damping", -0.1, 0.5, loc=-1.6, unit="N m s/rad"),
    )


pendulum = gym_pendulum.dynamics(damped_pendulum, sensors=("angle",), **KNOWN_NOISES)
PENDULUM_TRUTH = {**gym_pendulum.truth, "damping": 0.0}


def record_pendulum(seed: int) -> pp.Trajectories:
    """100 steps of Gymnasium's own pendulum from its own random start, at full torque.

    Its sign is random, held for 0.3 s, but brakes above 5 rad/s: Gymnasium cuts the speed at 8 rad/s, and where it does
    the motion tells nothing and the filter's differences miss the kink.
    """
    environment = gymnasium.make("Pendulum-v1")
    rng = np.random.default_rng(seed)
    steps = round(SECONDS / gym_pendulum.DT)
    drawn = np.repeat(rng.choice([-2.0, 2.0], steps // 6 + 1), 6)
    observed, _ = environment.reset(seed=seed)
    readings, torques = [observed], []
    for torque in drawn[: steps + 1]:
        torques.append(torque if abs(observed[2]) < 5.0 else -2.0 * np.sign(observed[2]))
        observed, *_ = environment.step(np.array(torques[-1:], np.float32))
        readings.append(observed)
    cosine, sine = np.array(readings[:-1], float)[:, :2].T + NOISE * rng.normal(size=(2, steps + 1))
    angle = np.unwrap(np.arctan2(sine, cosine))
    return pp.Trajectories(angle[:, None], np.array(torques)[:, None], dt=gym_pendulum.DT)


def damping_bound(samples) -> float:
    """Damping / (m l^2), 1/s, below which 95 % of the posterior lie, friction being no less than zero."""
    rate = samples["damping"] / (samples["mass"] * samples["length"] ** 2)
    mean, sd = np.mean(rate), np.std(rate)
    return float(stats.truncnorm.ppf(0.95, -mean / sd, np.inf, mean, sd))


GRAVITY, CART_MASS, POLE_MASS, POLE_CENTRE, POLE_INERTIA = 9.81, 0.8, 0.25, 0.3, 0.009  # SI; inertia about the centre
CART_DAMPING, POLE_DAMPING = 0.4, 0.003  # N s/m, N m s/rad
CARTPOLE = f"""
<mujoco>
  <option timestep="0.001" integrator="%s" gravity="0 0 -{GRAVITY}"><flag contact="disable"/></option>
  <worldbody>
    <body name="cart">
      <joint name="slide" type="slide" axis="1 0 0" damping="{CART_DAMPING}"/>
      <inertial pos="0 0 0" mass="{CART_MASS}" diaginertia="0.01 0.01 0.01"/>
      <body name="pole">
        <joint name="hinge" type="hinge" axis="0 -1 0" damping="{POLE_DAMPING}"/>
        <inertial pos="0 0 -{POLE_CENTRE}" mass="{POLE_MASS}" diaginertia="{POLE_INERTIA} {POLE_INERTIA} 0.0001"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="push" joint="slide"/></actuator>
</mujoco>
"""
_moment = POLE_MASS * POLE_CENTRE
_inertia = POLE_INERTIA + POLE_MASS * POLE_CENTRE**2
CARTPOLE_TRUTH = {
    "total_mass": CART_MASS + POLE_MASS,
    "pole_moment": _moment,
    "pole_inertia": _inertia,
    "cart_damping": CART_DAMPING,
    "pole_damping": POLE_DAMPING,
}


def push_cart():
    """Identifiable parameters of a pole on a cart that a force pushes; angle 0 hangs.

    Mass of the whole, first moment m l and inertia about the hinge are determined, the pole's own mass is not. The
    sites give a positive definite mass matrix wherever they lie: the mass that the force moves at once (the pole
    hanging free), the moment, and the length of the ideal pendulum with the same period.
    """
    driven = pp.physical("driven_mass", 0.0, 4.0, loc=-1.0, unit="kg")
    moment = pp.physical("pole_moment", 0.0, 0.5, loc=-1.0, unit="kg m")
    length = pp.physical("pole_length", 0.0, 2.0, loc=-1.0, unit="m")
    cart_damping = pp.physical("cart_damping", 0.0, 5.0, loc=-3.0, scale=2.0, unit="N s/m")
    pole_damping = pp.physical("pole_damping", 0.0, 0.1, loc=-3.0, scale=2.0, unit="N m s/rad")
    total = derived("total_mass", driven + moment / length, "kg")
    inertia = derived("pole_inertia", moment * length, "kg m^2")

    def field(t, state, action):
        _, angle, speed, rate = state
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        push = action[0] - cart_damping * speed + moment * sin * rate**2
        swing = -moment * GRAVITY * sin - pole_damping * rate
        coupling = moment * cos
        determinant = total * inertia - coupling**2
        return jnp.stack(
            [
                speed,
                rate,
                (inertia * push - coupling * swing) / determinant,
                (total * swing - coupling * push) / determinant,
            ]
        )

    return field


def push_cart_dynamics(**noises) -> pp.Dynamics:
    """`push_cart` with encoders read at 100 Hz."""
    speeds = {"speed": pp.Real("m/s"), "rate": pp.Real("rad/s", scale=10.0)}
    state = pp.StateSpace(position=pp.Real("m"), angle=pp.Angle(), **speeds)
    action = pp.ActionSpace(force=pp.Bounded(-20.0, 20.0, "N"))
    return pp.Dynamics(push_cart, state, action, dt=0.01, sensors=("position", "angle"), **noises)


cartpole = push_cart_dynamics(**KNOWN_NOISES)
# For a simulator whose stepping is not exact: only velocities may leave the path.
doubtful_cartpole = push_cart_dynamics(process_noise=dist.HalfNormal(np.array([1e-5, 1e-5, 0.01, 0.01])))


def record_cartpole(seed: int, integrator: str = "RK4") -> pp.Trajectories:
    """MuJoCo's own stepping at 1 ms, pushed by five sines of random phase, held over 10 ms as they are recorded."""
    model = mujoco.MjModel.from_xml_string(CARTPOLE % integrator)
    data = mujoco.MjData(model)
    rng = np.random.default_rng(seed)
    data.qpos[:] = 0.0, rng.uniform(-1.0, 1.0)
    times = np.arange(0.0, SECONDS + cartpole.dt / 2, cartpole.dt)
    frequencies, phases = np.array([0.4, 0.7, 1.1, 1.6, 2.3]), rng.uniform(0, 2 * np.pi, 5)
    forces = 2.0 * np.sin(2 * np.pi * frequencies * times[:, None] + phases).sum(1)[:, None]
    readings = []
    for force in forces:
        readings.append(data.qpos.copy())
        data.ctrl[:] = force
        mujoco.mj_step(model, data, nstep=round(cartpole.dt / model.opt.timestep))
    return pp.Trajectories(np.array(readings) + NOISE * rng.normal(size=(len(times), 2)), forces, dt=cartpole.dt)


class Study(NamedTuple):
    """Fits to R repeats, of each of P quantities: mean and sd of the posterior, and its 95 % interval (R, P)."""

    names: tuple[str, ...]
    truth: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seconds: np.ndarray  # (R,) of each fit; the first compiles
    bound: np.ndarray  # (R,) damping / (m l^2), 1/s, below which 95 % of the posterior lie; NaN without a pendulum

    @property
    def error(self) -> np.ndarray:
        """Error of the means (R, P), as a share of the truth where that is not zero."""
        return np.abs(self.mean - self.truth) / np.where(self.truth == 0, 1.0, self.truth)

    @property
    def inside(self) -> np.ndarray:
        """True (R, P) where the interval holds the truth."""
        return (self.low <= self.truth) & (self.truth <= self.high)

    @property
    def squared(self) -> np.ndarray:
        """Squared error in sds (R, P): 1 on average where sds are right."""
        return ((self.mean - self.truth) / self.sd) ** 2


def study(dynamics, record, truth, repeats: int = REPEATS) -> Study:
    """Fit `repeats` recordings, each of its own seed."""
    rows, seconds, bounds = [], [], []
    for seed in range(repeats):
        data = record(seed)
        start = time.perf_counter()
        posterior = pp.fit(jax.random.key(seed), dynamics, data, BACKEND)
        seconds.append(time.perf_counter() - start)
        s = {k: np.asarray(v, float) for k, v in posterior.samples(jax.random.key(1), 4000).items()}
        rows.append([(s[k].mean(), s[k].std(), *np.quantile(s[k], [0.025, 0.975])) for k in truth])
        bounds.append(damping_bound(s) if "damping" in s else np.nan)
    columns = np.moveaxis(np.array(rows), -1, 0)
    return Study(tuple(truth), np.array(list(truth.values())), *columns, np.array(seconds), np.array(bounds))


def table(result: Study) -> list[str]:
    """One row per quantity."""
    lines = [
        "| quantity | truth | error, median | error, worst | sd of the belief, median | 95 % interval holds the truth "
        "| rms error in sds |",
        "|---|---|---|---|---|---|---|",
    ]
    for i, name in enumerate(result.names):
        form = ".3%" if result.truth[i] else ".1e"
        error, sd = result.error[:, i], np.median(result.sd[:, i]) / (result.truth[i] or 1.0)
        inside, rms = result.inside[:, i].mean(), np.sqrt(result.squared[:, i].mean())
        lines.append(
            f"| {name} | {result.truth[i]:.5g} | {np.median(error):{form}} | {error.max():{form}} | {sd:{form}} "
            f"| {inside:.0%} | {rms:.2f} |"
        )
    first, rest = result.seconds[0], np.median(result.seconds[1:])
    return [*lines, "", f"A fit took {rest:.2f} s; the first, with compilation, {first:.0f} s.", ""]


def report(repeats: int = REPEATS) -> str:
    """Everything, as the text of a page."""
    expected = np.sqrt(0.95 * 0.05 / repeats)
    lines = [
        f"{repeats} repeats of {SECONDS:.0f} s each; Gymnasium {version('gymnasium')}, MuJoCo {version('mujoco')}. "
        f"Right 95 % intervals hold the truth in 95 % of the repeats, give or take {2 * expected:.0%}.",
        "",
        "## Gymnasium's pendulum",
        "",
    ]
    result = study(pendulum, record_pendulum, PENDULUM_TRUTH, repeats)
    lines += table(result)
    lines += [
        f"The pendulum has no damping. 95 % of the belief lie below {np.median(result.bound):.1e} m l^2 per second in "
        f"the median repeat, below {result.bound.max():.1e} in the worst.",
        "",
        "## MuJoCo's cart-pole",
        "",
        "Stepped by MuJoCo's Runge-Kutta rule. What the motion determines: the mass of cart and pole, the pole's first "
        "moment and its inertia about the hinge.",
        "",
    ]
    lines += table(study(cartpole, record_cartpole, CARTPOLE_TRUTH, repeats))
    lines += [
        "Stepped by MuJoCo's default rule, semi-implicit Euler: at 1 ms its own error is larger than what this much "
        "data can tell apart, and a fit of the exact equations without process noise is too sure of itself.",
        "",
    ]
    euler = functools.partial(record_cartpole, integrator="Euler")
    lines += table(study(cartpole, euler, CARTPOLE_TRUTH, repeats))
    lines += ["The same recordings with process noise on the velocities, learned:", ""]
    lines += table(study(doubtful_cartpole, euler, CARTPOLE_TRUTH, repeats))
    lines += [
        "The intervals of the inertial parameters are then nearly as wide as they should be, those of the damping are "
        "not: what Euler's rule adds looks like friction in every recording, and no noise says that.",
    ]
    return "\n".join(lines)


def main() -> None:
    text = report()
    print(text)
    if "--write" in sys.argv:
        page.write("known_truth", "Machines whose truth is known", page.introduction(__doc__), "known_truth.py", text)


if __name__ == "__main__":
    main()
