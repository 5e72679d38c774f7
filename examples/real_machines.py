"""Real machines: identified from recordings of their encoders, scored open loop on others.

    PHYSPPL_DATA=folder-of-recordings python examples/real_machines.py furuta [two_link simple_pendulum] [--write]

Encoders read angles; velocities are never measured. The trajectory likelihood filters the states out. A window's first
state is smoothed from readings about it, the recorded input is held over each sample, and the prediction is compared
with the reading at the window's end. The reference is a hand-written robust least-squares trajectory fit of the same
physics on the same recordings.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import jax
import numpy as np
import numpyro.distributions as dist
import page
from scipy import stats

import physppl as pp
from physppl.evaluation import benchmarks
from physppl.evaluation.forecasts import forecast_readings
from physppl.inference import Laplace
from physppl.models import furuta, simple_pendulum, two_link


def noises(joints: int) -> dict:
    """A short step changes angles by their velocities and by nothing else: only velocities are noisy."""
    return {"process_noise": dist.HalfNormal(np.repeat([1e-5, 0.1], joints))}


inexact = {"input_gain_error": dist.HalfNormal(0.1), "input_timing_error": dist.HalfNormal(0.5)}


@dataclass
class Machine:
    """A machine and its recordings.

    Attributes:
        smoothing: samples, of the protocol's first states.
        reference: RMSE in rad of least squares, by test and horizon in s.
        quantities: what others say of it, how far an estimate may lie from that, and the unit.
        alone: the dynamics of one recording. It cannot tell how far the next one's parameters lie: so much is given.
        segment: samples from one noise to the next.
        why: what is particular about it, for its page.
        ridge: two quantities that the data do not tell apart, and the combination that they do.
    """

    load: Callable
    dynamics: pp.Dynamics
    smoothing: int
    reference: dict[tuple[str, float], tuple[float, ...]]
    quantities: dict[str, tuple[float, float, str]]
    why: str
    alone: pp.Dynamics | None = None
    segment: int = 1
    ridge: tuple[str, ...] = ()


ARM = {"sensors": ("shoulder", "elbow"), "input_delay": 1, **noises(2)}
QUBE = {"sensors": ("arm", "pendulum"), "input_delay": 2, **noises(2), **inexact}
MACHINES = {
    "furuta": Machine(
        benchmarks.furuta,
        furuta.dynamics(**QUBE),
        11,
        {
            ("chirp", 0.1): (0.0102, 0.0079),
            ("chirp", 0.5): (0.0721, 0.0127),
            ("swing-up", 0.1): (0.0118, 0.0112),
            ("swing-up", 0.2): (0.0347, 0.0445),
        },
        {"pendulum_mgl": (0.01518, 0.08, "N m"), "pendulum_inertia": (1.331e-4, 0.05, "kg m2")},
        """Three things that a constant noise would hide are sites of their own: the input arrives late and at
uncertain times, the motor gives more or less than it is told, and (for one recording alone) parameters differ from one
recording to the next.""",
        alone=furuta.dynamics(**QUBE, variation=0.04),
    ),
    "two_link": Machine(
        benchmarks.two_link,
        two_link.dynamics(**ARM),
        9,
        {
            ("sine 143601", 0.1): (0.0090, 0.0116),
            ("sine 143601", 0.5): (0.0690, 0.0958),
            ("sine 143747", 0.1): (0.0073, 0.0138),
            ("swing-up", 0.1): (0.0082, 0.0164),
        },
        {"m2_r2": (0.160, 0.05, "kg m"), "m1_r1_plus_m2_l1": (0.215, 0.093, "kg m")},
        """Dry friction has a breakaway part, larger near standstill. Noise enters every 25 samples, 0.1 s: what the
model lacks acts in fast motion, and parameters fitted one sample ahead are not those that predict 0.1 s ahead: with
noise at every sample the geometric mean of the ratios below is 1.05. The sds of the parameters are then too small, as
all errors within a segment count as the sensors'.""",
        segment=25,
        ridge=("m1_r1", "m2", "m1_r1_plus_m2_l1"),
    ),
    "simple_pendulum": Machine(
        benchmarks.simple_pendulum,
        simple_pendulum.dynamics(dt=0.01, sensors=("angle",), **noises(1)),
        9,
        {
            ("direct collocation", 0.2): (0.0163,),
            ("direct collocation", 0.5): (0.0685,),
            ("sac 0-4 s", 0.2): (0.0145,),
            ("sac 0-4 s", 0.5): (0.0278,),
        },
        {"equivalent_length": (0.482, 0.06, "m")},
        """The torque channel's scale is about 20 % off the geometry: a page to learn from, not a benchmark. Noise
enters every 50 samples, 0.5 s.""",
        segment=50,
    ),
}


def predictive(machine: Machine, posterior, windows, example):
    """Forecast of the angles at the ends of windows whose first states are smoothed readings."""
    sd = np.mean(posterior.samples(jax.random.key(0), 200)["measurement_noise"], axis=0)
    start = benchmarks.smoothing_sd(example, sd, machine.smoothing)
    return forecast_readings(jax.random.key(1), posterior, windows.initial_state, windows.inputs, start)


def accuracy(machine: Machine, posterior, tests) -> list[tuple]:
    """(test, horizon, RMSE (d,), ratio to least squares (d,))."""
    rows = []
    for (test, horizon), reference in machine.reference.items():
        windows = benchmarks.windows(tests[test], horizon)
        rmse = benchmarks.rmse(windows, predictive(machine, posterior, windows, tests[test][0]).mean)
        rows.append((test, horizon, rmse, rmse / reference))
    return rows


def honesty(machine: Machine, posterior, train, tests, horizon: float = 0.1) -> list[tuple]:
    """(test, windows, 90 % coverage (d,), nats above a Gaussian with the sd of the training windows' errors)."""
    windows = benchmarks.windows(train, horizon)
    errors = windows.position[:, -1] - predictive(machine, posterior, windows, train[0]).mean
    constant = errors.std(axis=0)
    rows = []
    for test, held_out in tests.items():
        windows = benchmarks.windows(held_out, horizon)
        forecast = predictive(machine, posterior, windows, held_out[0])
        errors = windows.position[:, -1] - forecast.mean
        width = stats.norm.ppf(0.95) * forecast.sd
        inside = benchmarks.coverage(windows, forecast.mean - width, forecast.mean + width)
        ours = [stats.multivariate_normal.logpdf(e, cov=c) for e, c in zip(errors, forecast.covariance, strict=True)]
        gain = np.array(ours) - stats.norm.logpdf(errors, scale=constant).sum(axis=1)
        rows.append((test, len(errors), inside, gain))
    return rows


def alone(machine: Machine, recording) -> dict[str, tuple[float, float]]:
    """{quantity: (mean, sd)} of a fit to one recording."""
    posterior = pp.fit(jax.random.key(0), machine.alone, benchmarks.trajectories([recording]), Laplace())
    samples = posterior.samples(jax.random.key(1), 4000)
    return {name: (float(samples[name].mean()), float(samples[name].std())) for name in machine.quantities}


def disagreement(fits) -> dict[str, float]:
    """Root mean square over pairs of recordings of their difference in units of its sd, by quantity."""
    out = {}
    for name in fits[0]:
        pairs = combinations([fit[name] for fit in fits], 2)
        out[name] = float(np.sqrt(np.mean([(a[0] - b[0]) ** 2 / (a[1] ** 2 + b[1] ** 2) for a, b in pairs])))
    return out


def cells(values, pattern: str) -> str:
    return ", ".join(format(v, pattern) for v in values)


def report(name: str, folder) -> str:
    """Everything, as the text of a page."""
    machine = MACHINES[name]
    train, tests = machine.load(folder)
    start = time.perf_counter()
    data = benchmarks.trajectories(train, machine.segment)
    posterior = pp.fit(jax.random.key(0), machine.dynamics, data, Laplace())
    seconds = time.perf_counter() - start
    lines = [f"Fitted on {len(train)} recordings in {seconds:.0f} s, compilation included.", ""]
    lines += ["```text", str(posterior.summary()), "```"]
    samples = posterior.samples(jax.random.key(1), 4000)
    if machine.quantities:
        lines += ["", "| quantity | estimate | others say | off by | allowed |", "|---|---|---|---|---|"]
    for quantity, (nominal, allowed, unit) in machine.quantities.items():
        mean = float(samples[quantity].mean())
        lines.append(f"| {quantity} | {mean:.4g} {unit} | {nominal:.4g} | {mean / nominal - 1:+.1%} | {allowed:.1%} |")
    if machine.ridge:
        one, other, both = (np.ravel(samples[quantity]) for quantity in machine.ridge)
        first, second, total = machine.ridge
        lines += ["", f"The ridge: correlation of {first} with {second} {np.corrcoef(one, other)[0, 1]:+.4f}; "]
        lines[-1] += f"sd of {total} {both.std() / one.std():.3f} of that of {first}."
    rows = accuracy(machine, posterior, tests)
    lines += ["", "| test | horizon | RMSE (rad) | ratio to least squares |", "|---|---|---|---|"]
    for test, horizon, rmse, ratio in rows:
        lines.append(f"| {test} | {horizon} s | {cells(rmse, '.4f')} | {cells(ratio, '.2f')} |")
    ratios = np.concatenate([row[-1] for row in rows])
    lines.append(f"\nGeometric mean of the ratios {np.exp(np.log(ratios).mean()):.3f}, largest {ratios.max():.2f}.")
    rows = honesty(machine, posterior, train, tests)
    lines += [
        "",
        "| test, 0.1 s | windows | 90 % holds | nats above constant noise, jointly |",
        "|---|---|---|---|",
    ]
    for test, count, inside, gain in rows:
        lines.append(f"| {test} | {count} | {cells(inside, '.2f')} | {gain.mean():+.2f} |")
    pooled = np.average([inside.mean() for _, _, inside, _ in rows], weights=[count for _, count, *_ in rows])
    lines.append(f"\nPooled {pooled:.3f}; {np.concatenate([gain for *_, gain in rows]).mean():+.2f} nats.")
    if machine.alone is not None:
        every = [*train, *(r for group in tests.values() for r in group[:2])]
        fits = [alone(machine, r) for r in every]
        lines += ["", f"| recording alone | {' | '.join(machine.quantities)} |", "|---" * (1 + len(fits[0])) + "|"]
        for recording, fit in zip(every, fits, strict=True):
            lines.append(f"| {recording.name} | {' | '.join(f'{m:.4g} ± {sd:.2g}' for m, sd in fit.values())} |")
        for what, group in ((f"the {len(train)} training recordings", fits[: len(train)]), ("all", fits)):
            values = ", ".join(f"{name} {value:.2f}" for name, value in disagreement(group).items())
            lines.append(f"\nDifference of pairs in units of its sd, {what}: {values}.")
    return "\n".join(lines)


def main() -> None:
    data, names = os.environ.get("PHYSPPL_DATA"), [a for a in sys.argv[1:] if a != "--write"]
    if not data:
        raise SystemExit("PHYSPPL_DATA must name the folder that holds the recordings.")
    if not names or not set(names) <= set(MACHINES):
        raise SystemExit(f"Say which machines: {', '.join(MACHINES)}; got {', '.join(names) or 'none'}.")
    for name in names:
        text = report(name, data)
        print(text, flush=True)
        if "--write" in sys.argv:
            about = f"{page.introduction(__doc__)}\n\n{MACHINES[name].why}"
            title = f"A real machine: {name.replace('_', ' ')}"
            page.write(f"real_{name}", title, about, f"real_machines.py {name}", text)


if __name__ == "__main__":
    main()
