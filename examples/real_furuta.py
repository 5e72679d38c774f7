"""A real Furuta pendulum: identified from four recordings of its encoders, scored open loop on ten others.

    PHYSPPL_DATA=folder-of-recordings python examples/real_furuta.py [--write]

Encoders read two angles at 250 Hz; velocities are never measured. The trajectory likelihood filters the states out.
Three things that a constant noise would hide are sites of their own: the input arrives late and at uncertain times, the
motor gives more or less than it is told, and parameters differ from one recording to the next.
"""

import os
import subprocess
import sys
import time
from datetime import date
from itertools import combinations
from pathlib import Path

import jax
import numpy as np
import numpyro.distributions as dist
from scipy import stats

import physppl as pp
from physppl import recordings
from physppl.forecasting import forecast_readings
from physppl.inference import Laplace
from physppl.models import furuta

SMOOTHING = 11  # samples, of the protocol's first states
# A step of 4 ms changes angles by their velocities and by nothing else: only velocities are noisy.
noises = {
    "process_noise": dist.HalfNormal(np.array([1e-5, 1e-5, 0.1, 0.1])),
    "input_gain_error": dist.HalfNormal(0.1),
    "input_timing_error": dist.HalfNormal(0.5),
}
machine = furuta.dynamics(sensors=("arm", "pendulum"), input_delay=2, **noises)
# One recording alone cannot tell how far the next one's parameters lie: so much is taken as known, in virtual space.
one_recording = furuta.dynamics(sensors=("arm", "pendulum"), input_delay=2, variation=0.04, **noises)

# RMSE in rad of a hand-written robust least-squares trajectory fit of the same physics, by test and horizon in s.
LEAST_SQUARES = {
    ("chirp", 0.1): (0.0102, 0.0079),
    ("chirp", 0.5): (0.0721, 0.0127),
    ("swing-up", 0.1): (0.0118, 0.0112),
    ("swing-up", 0.2): (0.0347, 0.0445),
}
# What the maker's parameters say, and how far an estimate may lie from it.
QUANTITIES = {"pendulum_mgl": (0.01518, 0.08, "N m"), "pendulum_inertia": (1.331e-4, 0.05, "kg m2")}


def predictive(posterior, windows, example):
    """Forecast of the angles at the ends of windows whose first states are smoothed readings."""
    sd = np.mean(posterior.samples(jax.random.key(0), 200)["measurement_noise"], axis=0)
    start = recordings.smoothing_sd(example, sd, SMOOTHING)
    return forecast_readings(jax.random.key(1), posterior, windows.initial_state, windows.inputs, start)


def accuracy(posterior, tests) -> list[tuple]:
    """(test, horizon, RMSE (2,), ratio to least squares (2,))."""
    rows = []
    for (test, horizon), reference in LEAST_SQUARES.items():
        windows = recordings.windows(tests[test], horizon)
        rmse = recordings.rmse(windows, predictive(posterior, windows, tests[test][0]).mean)
        rows.append((test, horizon, rmse, rmse / reference))
    return rows


def honesty(posterior, train, tests, horizon: float = 0.1) -> list[tuple]:
    """(test, windows, 90 % coverage (2,), nats above a Gaussian with the sd of the training windows' errors)."""
    windows = recordings.windows(train, horizon)
    errors = windows.position[:, -1] - predictive(posterior, windows, train[0]).mean
    constant = errors.std(axis=0)
    rows = []
    for test, held_out in tests.items():
        windows = recordings.windows(held_out, horizon)
        forecast = predictive(posterior, windows, held_out[0])
        errors = windows.position[:, -1] - forecast.mean
        width = stats.norm.ppf(0.95) * forecast.sd
        inside = recordings.coverage(windows, forecast.mean - width, forecast.mean + width)
        ours = [stats.multivariate_normal.logpdf(e, cov=c) for e, c in zip(errors, forecast.covariance, strict=True)]
        gain = np.array(ours) - stats.norm.logpdf(errors, scale=constant).sum(axis=1)
        rows.append((test, len(errors), inside, gain))
    return rows


def disagreement(fits) -> dict[str, float]:
    """Root mean square over pairs of recordings of their difference in units of its sd, by quantity."""
    out = {}
    for name in QUANTITIES:
        pairs = combinations([fit[name] for fit in fits], 2)
        out[name] = float(np.sqrt(np.mean([(a[0] - b[0]) ** 2 / (a[1] ** 2 + b[1] ** 2) for a, b in pairs])))
    return out


def alone(recording) -> dict[str, tuple[float, float]]:
    """{quantity: (mean, sd)} of a fit to one recording."""
    posterior = pp.fit(jax.random.key(0), one_recording, recordings.trajectories([recording]), Laplace())
    samples = posterior.samples(jax.random.key(1), 4000)
    return {name: (float(samples[name].mean()), float(samples[name].std())) for name in QUANTITIES}


def report(folder) -> str:
    """Everything, as the text of a page."""
    train, tests = recordings.furuta(folder)
    start = time.perf_counter()
    posterior = pp.fit(jax.random.key(0), machine, recordings.trajectories(train), Laplace())
    seconds = time.perf_counter() - start
    lines = [f"Fitted on {len(train)} recordings in {seconds:.0f} s, compilation included.", "", "```text"]
    lines += [
        str(posterior.summary()),
        "```",
        "",
        "| quantity | estimate | maker's | off by | allowed |",
        "|---|---|---|---|---|",
    ]
    samples = posterior.samples(jax.random.key(1), 4000)
    for name, (nominal, allowed, unit) in QUANTITIES.items():
        mean = float(samples[name].mean())
        lines.append(f"| {name} | {mean:.4g} {unit} | {nominal:.4g} | {mean / nominal - 1:+.1%} | {allowed:.0%} |")
    rows = accuracy(posterior, tests)
    lines += ["", "| test | horizon | RMSE arm, pendulum (rad) | ratio to least squares |", "|---|---|---|---|"]
    for test, horizon, rmse, ratio in rows:
        lines.append(f"| {test} | {horizon} s | {rmse[0]:.4f}, {rmse[1]:.4f} | {ratio[0]:.2f}, {ratio[1]:.2f} |")
    ratios = np.concatenate([row[-1] for row in rows])
    lines.append(f"\nGeometric mean of the ratios {np.exp(np.log(ratios).mean()):.3f}, largest {ratios.max():.2f}.")
    rows = honesty(posterior, train, tests)
    lines += ["", "| test, 0.1 s | windows | 90 % interval holds | nats above constant noise |", "|---|---|---|---|"]
    for test, count, inside, gain in rows:
        lines.append(f"| {test} | {count} | {inside[0]:.2f}, {inside[1]:.2f} | {gain.mean():+.2f} |")
    counts = np.array([count for _, count, *_ in rows])
    pooled = np.average([inside.mean() for *_, inside, _ in rows], weights=counts)
    lines.append(f"\nPooled {pooled:.3f}; {np.concatenate([gain for *_, gain in rows]).mean():+.2f} nats.")
    held = [r for group in tests.values() for r in group[:2]]
    fits = [alone(r) for r in (*train, *held)]
    lines += ["", "| recording alone | m g l (N m) | inertia (kg m2) |", "|---|---|---|"]
    for recording, fit in zip((*train, *held), fits, strict=True):
        cells = (f"{mean:.4g} ± {sd:.2g}" for mean, sd in fit.values())
        lines.append(f"| {recording.name} | {' | '.join(cells)} |")
    for what, group in (("the four training recordings", fits[:4]), ("all eight", fits)):
        values = ", ".join(f"{name} {value:.2f}" for name, value in disagreement(group).items())
        lines.append(f"\nDifference of pairs in units of its sd, {what}: {values}.")
    return "\n".join(lines)


def main() -> None:
    data = os.environ.get("PHYSPPL_DATA")
    if not data:
        raise SystemExit("PHYSPPL_DATA must name the folder that holds furuta_qube.")
    text = report(data)
    print(text)
    if "--write" in sys.argv:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        head = "# A real Furuta pendulum\n\n" + (__doc__ or "").split("\n\n", 2)[2].strip()
        head += f"\n\n`python examples/real_furuta.py --write`, commit {commit}, {date.today()}.\n\n"
        (Path(__file__).parents[1] / "docs" / "results" / "real_furuta.md").write_text(head + text + "\n")


if __name__ == "__main__":
    main()
