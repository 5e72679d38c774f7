"""A real pendulum: fitted on two recordings by two backends, scored open loop on two others.

    PHYSPPL_DATA=folder-of-recordings python examples/real_pendulum.py [folder for the figures]

Smoothed states at 100 Hz become transitions; each backend fits the program to those of the training recordings; the
predictive mean, averaged over rollouts of posterior draws, is scored against the measured angle at the end of every
window of the held-out recordings.
"""

import os
import sys
from pathlib import Path

import jax
import numpy as np

import physppl as pp
from physppl import plots
from physppl.evaluation import benchmarks
from physppl.inference import HMC, Laplace
from physppl.models import pendulum

# The motor's rated torque, which no recorded sample exceeds.
dynamics = pp.Dynamics(
    pendulum.program_with_coulomb, pendulum.state, pp.ActionSpace(torque=pp.Bounded(-6.0, 6.0, "N m")), dt=0.01
)
backends = {"Laplace": Laplace(), "HMC": HMC(draws=400, warmup=300, chains=2)}

# RMSE in rad of a hand-written robust least-squares trajectory fit of the same physics, by test and horizon in s.
LEAST_SQUARES = {
    "direct collocation": {0.2: 0.0163, 0.5: 0.0685},
    "sac 0-4 s": {0.2: 0.0145, 0.5: 0.0278},
}


def fits(train) -> dict[str, pp.Posterior]:
    """{backend: posterior} given the training recordings."""
    data = benchmarks.transitions(train)
    return {name: pp.fit(jax.random.key(0), dynamics, data, backend) for name, backend in backends.items()}


def scores(posteriors, tests, draws: int = 200) -> list[dict]:
    """One row per test and horizon: RMSE of the predictive mean in rad, its ratio to least squares, 90 % coverage.

    The predictive mean is the average over rollouts of posterior draws, the interval their 5 to 95 % quantiles, both
    with process noise at every step.
    """
    rows = []
    for test, references in LEAST_SQUARES.items():
        longest = benchmarks.windows(tests[test], benchmarks.LONGEST)
        paths = {
            name: benchmarks.forecast(jax.random.key(1), p, longest.initial_state, longest.inputs, draws)
            for name, p in posteriors.items()
        }
        for horizon, reference in references.items():
            windows = benchmarks.windows(tests[test], horizon)
            straight = benchmarks.rmse(windows, benchmarks.constant_velocity(windows)).item()
            row = {"test": test, "horizon": horizon, "constant velocity": straight, "least squares": reference}
            for name, path in paths.items():
                angles = path[:, :, round(horizon / dynamics.dt), :1]  # all horizons start at the same places
                rmse = benchmarks.rmse(windows, angles.mean(0)).item()
                inside = benchmarks.coverage(windows, *np.quantile(angles, [0.05, 0.95], axis=0)).item()
                row |= {name: rmse, f"{name} ratio": rmse / reference, f"{name} coverage": inside}
            rows.append(row)
    return rows


def table(rows) -> str:
    """The rows as aligned text."""
    names = list(backends)
    head = f"{'test':20s}{'horizon s':>10s}{'const. vel.':>13s}{'least sq.':>11s}"
    lines = [head + "".join(f"{n:>10s}{'ratio':>7s}{'90 %':>7s}" for n in names)]
    for row in rows:
        line = f"{row['test']:20s}{row['horizon']:10.1f}{row['constant velocity']:13.4f}{row['least squares']:11.4f}"
        line += "".join(f"{row[n]:10.4f}{row[f'{n} ratio']:7.2f}{row[f'{n} coverage']:7.2f}" for n in names)
        lines.append(line)
    return "\n".join(lines)


def main(folder: Path) -> None:
    data = os.environ.get("PHYSPPL_DATA")
    if not data:
        raise SystemExit("PHYSPPL_DATA must name the folder that holds dfki_simple_pendulum.")
    train, tests = benchmarks.simple_pendulum(data)
    posteriors = fits(train)
    for posterior in posteriors.values():
        print(posterior.summary(), end="\n\n")
    print("RMSE of the angle, rad; ratio: to least squares; 90 %: coverage of the predictive interval")
    print(table(scores(posteriors, tests)))
    folder.mkdir(parents=True, exist_ok=True)
    for test, [recording] in tests.items():
        piece = recording.between(0.1, 3.11)
        title = f"{test}, held out: open-loop predictions (Laplace)"
        figure = plots.fan(
            jax.random.key(2), posteriors["Laplace"], piece.state, piece.inputs[:-1], restart=50, start=0.1, title=title
        )
        path = folder / f"real_pendulum_{test.split()[0]}.png"
        figure.savefig(path)
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out"))
