"""Acting: oracles on the machines of the SIM2GP experiments, and posterior sampling that knows none of them.

    python examples/acting.py [oracles] [learning] [drawn] [reality] [--write]

Oracles plan with the true machine, by iCEM with elites kept, at every step. Learners begin with the prior of the
default program and act in each episode on one draw of the Laplace posterior given all transitions so far, or on its
mean. Everybody observes the state with noise of 0.01 on every coordinate, as published, and begins within 0.01 of
hanging. Seed i gives both learners the same beginnings and disturbances, and likewise oracle and random agent. Returns
are of the true states; an episode's own, not the best so far. Upright means within 0.2 rad for the last half second.
"""

import sys
import time

import jax
import numpy as np
import page

import physppl as pp
from physppl.inference import Laplace
from physppl.models import furuta, quanser_cartpole, two_link
from physppl.planning import ICEM, RandomPolicy
from physppl.plots.loops import learning_curves

SEEDS, EPISODES, SENSORS = range(10), 5, 0.01
SPREAD = np.log(1.8)
FAST = ICEM(horizon=40)
PLANNERS = {"furuta": FAST, "quanser_cartpole": ICEM(horizon=60)}
MACHINES = {"furuta": furuta, "quanser_cartpole": quanser_cartpole}
KNOBS = {
    "none": {},
    "Coulomb friction": {"arm_coulomb": 2e-3, "pendulum_coulomb": 2e-4},
    "Stribeck friction": {"arm_coulomb": 2e-3, "arm_breakaway": 2e-3},
    "quadratic drag": {"arm_quadratic": 1e-5, "pendulum_quadratic": 5e-6},
    "arm inertia about its end": {"driven_inertia": furuta.PIVOT_INERTIA},
    "as published": {"as_published": True},
}
ACTUATORS = {
    "dead band 0.5 V": {"dead_band": 0.5},
    "delay 1 step": {"delay": 1},
    "motor lag 10 ms": {"lag": 0.01},
}


def acted(machine: pp.SimulatedSystem, task: pp.Task, planner, seed: int) -> pp.Episode:
    """One episode planned with the machine's own transition."""
    return pp.episode(jax.random.key(1000 + seed), machine, task, planner, machine.transition)


def learned(machine, name: str, seed: int, acquisition: pp.Acquisition, program=None) -> pp.Run:
    """One run from the prior."""
    module = MACHINES[name]
    dynamics = module.dynamics(dt=0.01) if program is None else module.dynamics(program, dt=0.01)
    return pp.psrl(
        jax.random.key(seed), machine, module.swing_up(0.01), dynamics, Laplace(), PLANNERS[name], EPISODES,
        acquisition=acquisition,
    )  # fmt: skip


def oracles() -> str:
    """Markdown: every task, planned with the truth."""
    cases = [
        ("Furuta, 10 ms, of 256", furuta.system(0.01, measurement_sd=SENSORS), furuta.swing_up(0.01), FAST),
        (
            "the same as published", furuta.system(0.01, measurement_sd=SENSORS, as_published=True),
            furuta.swing_up(0.01), FAST,
        ),
        (
            "Furuta, 20 ms, of 150", furuta.system(0.02, measurement_sd=SENSORS), furuta.swing_up(0.02),
            ICEM(horizon=30, population=250),
        ),
        (
            "Furuta, 50 ms, of 60", furuta.system(0.05, measurement_sd=SENSORS), furuta.swing_up(0.05),
            ICEM(horizon=20, population=600, iterations=5),
        ),
        (
            "cart-pole, 10 ms, of 256", quanser_cartpole.system(0.01, measurement_sd=SENSORS),
            quanser_cartpole.swing_up(0.01), PLANNERS["quanser_cartpole"],
        ),
        (
            "the same as published", quanser_cartpole.system(0.01, measurement_sd=SENSORS, as_published=True),
            quanser_cartpole.swing_up(0.01), PLANNERS["quanser_cartpole"],
        ),
        (
            "cart-pole, 50 ms, of 60", quanser_cartpole.system(0.05, measurement_sd=SENSORS),
            quanser_cartpole.swing_up(0.05), ICEM(horizon=25, population=256, iterations=4),
        ),
        (
            "two-link arm, flat, 20 ms, of 100", two_link.system(0.02, measurement_sd=SENSORS, gravity=0.0),
            two_link.reach(0.02), ICEM(horizon=20),
        ),
    ]  # fmt: skip
    lines = ["| machine | median return | range | solved | horizon | evaluations a step |", "|---|---|---|---|---|---|"]
    for name, machine, task, planner in cases:
        episodes = [acted(machine, task, planner, seed) for seed in SEEDS]
        solved = [bool(task.solved(e.states)) for e in episodes]
        lines.append(
            f"{page.row(name, [e.returns for e in episodes], solved)} {planner.horizon} | {planner.evaluations} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines)


def learning(name: str) -> str:
    """Markdown: one machine, learned; draws its figure."""
    module, task = MACHINES[name], MACHINES[name].swing_up(0.01)
    machine = module.system(0.01, measurement_sd=SENSORS)
    start = time.perf_counter()
    known = [acted(machine, task, PLANNERS[name], seed) for seed in SEEDS]
    blind = [acted(machine, task, RandomPolicy(), seed) for seed in SEEDS]

    def judge(episodes):
        return [bool(task.solved(e.states)) for e in episodes]

    oracle = float(np.median([e.returns for e in known]))
    lines = ["| agent | median return | range | upright |", "|---|---|---|---|"]
    lines.append(page.row("oracle", [e.returns for e in known], judge(known)))
    lines.append(page.row("random", [e.returns for e in blind], judge(blind)))
    curves, verdicts = {}, []
    for label, acquisition in (("Thompson sampling", pp.Thompson()), ("posterior mean", pp.PosteriorMean())):
        runs = [learned(machine, name, seed, acquisition) for seed in SEEDS]
        returns = curves[label] = np.array([run.episodes.returns for run in runs])
        solved = np.array([run.solved for run in runs])
        for i in range(EPISODES):
            lines.append(page.row(f"{label}, episode {i + 1}", returns[:, i], solved[:, i]))
        first = [int(np.argmax(r >= 0.9 * oracle)) + 1 if np.any(r >= 0.9 * oracle) else None for r in returns]
        reached = sum(f is not None for f in first)
        verdicts.append(
            f"{label}: 0.9 of the oracle's median ({0.9 * oracle:.1f}) in some episode up to the fifth on {reached} of "
            f"{len(runs)} seeds; first in episode {', '.join(map(str, first))}."
        )
    figure = learning_curves(curves, oracle=[e.returns for e in known], random=[e.returns for e in blind])
    figure.savefig(page.ROOT / "docs" / "results" / f"acting_{name}.png")
    seconds = time.perf_counter() - start
    text = "\n".join([*lines, "", "\n\n".join(verdicts), "", f"![Returns](acting_{name}.png)", "", f"{seconds:.0f} s."])
    print(text, flush=True)
    return text


def drawn(name: str) -> str:
    """Markdown: machines unlike the published one, whose parameters lie near the middle of the program's prior."""
    module, task, start = MACHINES[name], MACHINES[name].swing_up(0.01), time.perf_counter()
    shares, reached = {"Thompson sampling": [], "posterior mean": []}, []
    for seed in SEEDS:
        factors = np.exp(np.random.default_rng(seed).uniform(-SPREAD, SPREAD, len(module.nominal)))
        changes = {k: f * v for (k, v), f in zip(module.nominal.items(), factors, strict=True) if v}
        machine = module.system(0.01, measurement_sd=SENSORS, **changes)
        reached.append(float(acted(machine, task, PLANNERS[name], seed).returns))
        for label, acquisition in (("Thompson sampling", pp.Thompson()), ("posterior mean", pp.PosteriorMean())):
            returns = np.asarray(learned(machine, name, seed, acquisition).episodes.returns)
            shares[label].append(returns / reached[-1])
    head = " | ".join(f"episode {i + 1}" for i in range(EPISODES))
    lines = [f"| agent, return over the oracle's | {head} | 0.9 by episode 5 |", "|---" * (EPISODES + 2) + "|"]
    for label, values in shares.items():
        values = np.array(values)
        cells = " | ".join(f"{m:.2f} ({low:.2f})" for m, low in zip(np.median(values, 0), values.min(0), strict=True))
        lines.append(f"| {label} | {cells} | {int(np.sum(values.max(1) >= 0.9))} of {len(values)} |")
    about = f"Medians over seeds, and the worst seed. Oracles reach {min(reached):.0f} to {max(reached):.0f}."
    text = "\n".join([*lines, "", f"{about} {time.perf_counter() - start:.0f} s."])
    print(text, flush=True)
    return text


def reality() -> str:
    """Markdown: the Furuta pendulum with what its program does not know; no dry friction, no drag, an ideal motor."""
    program = furuta.program_with(arm_coulomb=0.0, pendulum_coulomb=0.0)
    task = furuta.swing_up(0.01)
    machines = {name: furuta.system(0.01, measurement_sd=SENSORS, **changes) for name, changes in KNOBS.items()}
    machines |= {name: machines["none"].with_actuator(**how) for name, how in ACTUATORS.items()}
    heavier = {k: 1.2 * furuta.nominal[k] for k in ("pendulum_mgl",)}
    machines["20 % heavier from 1.28 s of episode 4 on"] = machines["none"].changed(step=128, episode=3, **heavier)
    head = "| what the program does not know | planned with the machine's equations | " + " | ".join(
        f"episode {i + 1}" for i in range(EPISODES)
    )
    lines = [head + " | upright in some episode |", "|---" * (EPISODES + 3) + "|"]
    for name, machine in machines.items():
        seeds = list(SEEDS)[:5]
        known = np.median([float(acted(machine, task, FAST, seed).returns) for seed in seeds])
        runs = [learned(machine, "furuta", seed, pp.Thompson(), program) for seed in seeds]
        medians = np.median([run.episodes.returns for run in runs], axis=0)
        solved = sum(bool(run.solved.any()) for run in runs)
        cells = " | ".join(f"{value:.1f}" for value in (known, *medians))
        lines.append(f"| {name} | {cells} | {solved} of {len(seeds)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    asked = [a for a in sys.argv[1:] if not a.startswith("--")] or ["oracles", "learning", "drawn", "reality"]
    sections = []
    if "oracles" in asked:
        sections.append(f"## Oracles\n\n{oracles()}")
    if "learning" in asked:
        sections += [f"## Learning: {name.replace('_', ' ')}, 10 ms\n\n{learning(name)}" for name in MACHINES]
    if "drawn" in asked:
        about = "The published machines lie near the middle of the default programs' priors, so that acting on the "
        about += "prior's mean already swings them up. Here every parameter of the machine is multiplied, seed by "
        about += "seed, by a factor between 1/1.8 and 1.8."
        tables = [f"### {name.replace('_', ' ')}\n\n{drawn(name)}" for name in MACHINES]
        sections.append("\n\n".join(["## Learning other machines", about, *tables]))
    if "reality" in asked:
        about = "Medians over five seeds; the program has no dry friction and no drag, and believes in an ideal motor. "
        about += "The second column plans with the machine's equations, but knows of no actuator and of no change."
        sections.append(f"## Reality\n\n{about}\n\n{reality()}")
    if "--write" in sys.argv:
        command = " ".join(["acting.py", *(a for a in sys.argv[1:] if not a.startswith("--"))])
        page.write("acting", "Acting", page.introduction(__doc__), command, "\n\n".join(sections))


if __name__ == "__main__":
    main()
