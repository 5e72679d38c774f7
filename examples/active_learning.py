"""Active learning: what to do with a machine to know it soon, without a reward.

    python examples/active_learning.py [furuta] [quanser_cartpole] [--write]

Posterior sampling active learning on the simulated machines of the SIM2GP experiments at 0.01 s, 256 steps an episode,
paired seeds. Five ways to act: plans for the joint information gain, for the sum of what each step would tell alone,
random voltages over the full range, random voltages and a multisine small enough to keep the machine in its domain for
most of the time. Everyone learns with the same Laplace backend from the same number of transitions.

Entropy is that of the posterior of the program's parameters. The test set is never used in learning: episodes of an
agent that knows the machine and swings it up. Error is the root mean square over predictions of 0.25 s, open loop, by
the posterior mean, from every tenth state of such episodes without noise, each coordinate in units of its scale;
density is of one step of such episodes with the machine's noise, in nats. "outside" is the share of steps beyond the
limits of the task, which the information agents keep to.

Two kinds of noise. Process noise is what the one-step likelihood assumes. Sensor noise of 0.01 on every coordinate is
the published protocol: a posterior from transitions between noisy states takes it for process noise, and what an
angle's error does to the next velocity grows with speed, so fast motion tells less than planned for.
"""

import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import page

import physppl as pp
from physppl.inference import Laplace
from physppl.internal.figures import new_figure, styled
from physppl.models import furuta, quanser_cartpole
from physppl.planning import ICEM, Multisine, Planner, RandomPolicy

SEEDS, EPISODES, DT = 10, 4, 0.01
HORIZON = 25  # steps of 0.25 s
MACHINES = {"furuta": furuta, "quanser_cartpole": quanser_cartpole}
PROCESS = {"furuta": (1e-3, 1e-3, 0.02, 0.02), "quanser_cartpole": (5e-4, 1e-3, 0.01, 0.02)}  # sd of one step
# The best of a dozen amplitudes and bands that keep the machine inside its limits for seven steps in eight.
SINES = {"furuta": Multisine(low=0.04, high=0.2, tones=5), "quanser_cartpole": Multisine(low=0.01, high=0.1, tones=5)}
CLAMPED = {"furuta": RandomPolicy(0.0, amplitude=0.25), "quanser_cartpole": RandomPolicy(0.3, amplitude=0.5)}
ARMS = ("joint gain", "sum of steps' gains", "random, full range", "random, clamped", "multisine")


def agent(name: str, arm: str) -> tuple[pp.Objective, Planner]:
    """Objective and planner of an arm."""
    if arm == "joint gain":
        return pp.InformationGain(), ICEM(horizon=40)
    if arm == "sum of steps' gains":
        return pp.InformationGain(joint=False), ICEM(horizon=40)
    blind = {"random, full range": RandomPolicy(0.8), "random, clamped": CLAMPED[name], "multisine": SINES[name]}
    return pp.TaskReward(), blind[arm]


class Learned(NamedTuple):
    """Results of one arm, (seeds, episodes) each; entropy (seeds, episodes + 1)."""

    entropy: np.ndarray
    error: np.ndarray
    density: np.ndarray
    outside: np.ndarray


def system(name: str, sensors: bool) -> pp.SimulatedSystem:
    module = MACHINES[name]
    return module.system(DT, measurement_sd=0.01) if sensors else module.system(DT, PROCESS[name])


class TestSet(NamedTuple):
    """Swing-ups of agents that know the machine: (states, actions) of each, with its noise and without any."""

    noisy: list[tuple[np.ndarray, np.ndarray]]
    clean: list[tuple[np.ndarray, np.ndarray]]


def test_set(name: str, machine: pp.SimulatedSystem, episodes: int = 3) -> TestSet:
    """Test episodes of a machine, with its noise and without."""

    def swung_up(machine):
        who = (MACHINES[name].swing_up(DT), ICEM(horizon=40), machine.transition)
        runs = [pp.episode(jax.random.key(10_000 + i), machine, *who) for i in range(episodes)]
        return [(np.asarray(run.states), np.asarray(run.actions)) for run in runs]

    return TestSet(swung_up(machine), swung_up(MACHINES[name].system(DT)))


@jax.jit
def _rolled(transition, states, actions):
    return jax.vmap(lambda x, u: pp.rollout(transition, x, u)[-1])(states, actions)


def judged(posterior: pp.Posterior, tests: TestSet) -> tuple[float, float]:
    """(multi-step error, one-step log density in nats) on the test set."""
    space, errors, densities = posterior.model.state, [], []
    mean = posterior.mean()
    for states, actions in tests.clean:
        begin = np.arange(0, len(actions) - HORIZON, 10)
        inputs = np.stack([actions[b : b + HORIZON] for b in begin])
        ends = np.asarray(_rolled(mean, jnp.asarray(states[begin]), jnp.asarray(inputs)))
        errors.append(space.difference(ends, states[begin + HORIZON]) / space.scale)
    for states, actions in tests.noisy:
        predicted = posterior.predict(states[:-1], actions)
        outcome = np.asarray(predicted.mean) + space.difference(states[1:], np.asarray(predicted.mean))
        densities.append(np.mean(predicted.log_prob(jnp.asarray(outcome))))
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2))), float(np.mean(densities))


def learn(name: str, arm: str, machine: pp.SimulatedSystem, tests, seeds: int, episodes: int = EPISODES) -> Learned:
    """One arm on all seeds."""
    module, (objective, planner) = MACHINES[name], agent(name, arm)
    task, dynamics = module.swing_up(DT), module.dynamics(dt=DT)
    entropy, error, density, outside = [], [], [], []
    for seed in range(seeds):
        key = jax.random.key(seed)
        run = pp.psal(key, machine, task, dynamics, Laplace(), planner, episodes, objective=objective)
        data, rows = run.data, np.arange(len(run.data))
        scores = []
        for i in range(1, episodes + 1):  # the posterior after each episode, by the loop's own fit
            known = pp.Transitions(
                data.states, data.actions, data.next_states, valid=rows < i * task.steps, times=data.times
            )
            scores.append(judged(pp.fit(key, dynamics, known, Laplace()), tests))
        limits, states = task.limits, np.asarray(run.episodes.states)[:, 1:]
        entropy.append(run.entropy)
        error.append([s[0] for s in scores]), density.append([s[1] for s in scores])
        outside.append(np.mean(np.abs(states[..., limits.index[0]]) > limits.high[0], axis=1))
    return Learned(*map(np.array, (entropy, error, density, outside)))


def quartiles(values) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def table(results: dict[str, Learned]) -> str:
    """Markdown: medians and quartiles over seeds after the last episode, and paired comparisons."""
    ours = results["joint gain"]
    head = "| actions | entropy, nats | lower with joint gain | error at 0.25 s | density, nats | outside |"
    lines = [head, "|---|---|---|---|---|---|"]
    for name, r in results.items():
        wins = int(np.sum(ours.entropy[:, -1] < r.entropy[:, -1]))
        against = "-" if name == "joint gain" else f"{wins} of {len(r.entropy)}"
        cells = [quartiles(r.entropy[:, -1]), against, quartiles(r.error[:, -1]), quartiles(r.density[:, -1])]
        lines.append(f"| {name} | {' | '.join(cells)} | {np.mean(r.outside):.3f} |")
    lines += ["", "Medians after each episode (256 transitions each): entropy, then error.", ""]
    episodes = ours.error.shape[1]
    columns = [*(f"H{i}" for i in range(episodes + 1)), *(f"e{i}" for i in range(1, episodes + 1))]
    lines += [f"| actions | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, r in results.items():
        cells = [f"{v:.2f}" for v in np.median(r.entropy, axis=0)] + [f"{v:.3g}" for v in np.median(r.error, axis=0)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


@styled
def figure(results: dict[str, Learned]):
    """Entropy and held-out error against transitions: median and quartiles."""
    picture = new_figure(7.6, 3.1)
    axes = picture.subplots(1, 2)
    colours = ["#0072B2", "#E69F00", "#777777", "#009E73", "#CC79A7"]
    for (name, r), colour in zip(results.items(), colours, strict=True):
        for axis, values, first in ((axes[0], r.entropy, 0), (axes[1], r.error, 1)):
            steps = 256 * np.arange(first, values.shape[1] + first)
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
            axis.plot(steps, middle, "o-", color=colour, ms=3.5, label=name)
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    axes[0].set(xlabel="transitions", ylabel="entropy of the belief [nats]")
    axes[1].set(xlabel="transitions", ylabel="held-out error at 0.25 s", yscale="log")
    axes[0].legend(frameon=False, fontsize=7.5)
    return picture


def main() -> None:
    names = [a for a in sys.argv[1:] if not a.startswith("--")] or list(MACHINES)
    for name in names:
        sections = []
        for sensors in (False, True):
            start, machine = time.perf_counter(), system(name, sensors)
            tests = test_set(name, machine)
            results = {}
            for arm in ARMS:
                results[arm] = learn(name, arm, machine, tests, SEEDS)
                print(name, sensors, arm, quartiles(results[arm].entropy[:, -1]), flush=True)
            kind = "sensors" if sensors else "process"
            noise = "0.01 on every sensor" if sensors else f"{PROCESS[name]} of process, per step"
            picture = f"active_{name}_{kind}.png"
            if "--write" in sys.argv:
                figure(results).savefig(page.ROOT / "docs" / "results" / picture)
            seconds = time.perf_counter() - start
            text = f"## Noise: {noise}\n\n{table(results)}\n\n![Entropy and error]({picture})\n\n{seconds:.0f} s."
            print(text, flush=True)
            sections.append(text)
        if "--write" in sys.argv:
            title = f"Active learning: {name.replace('_', ' ')}"
            text = "\n\n".join(sections)
            page.write(f"active_{name}", title, page.introduction(__doc__), f"active_learning.py {name}", text)


if __name__ == "__main__":
    main()
