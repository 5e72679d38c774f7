"""Every backend on one machine that the physics do not quite describe: errors against the number of data.

    python examples/every_belief.py --write

The pendulum of SIM-FSVGD's benchmark: the program knows mass, length and gravity (0.5 to 1.5 kg, 0.5 to 1.5 m, 5 to
15 m/s^2), the machine also has viscous friction and air drag (0.4 to 0.6 each), dt 0.05 s, states over the full circle
and within 5 rad/s, torques within 2.5 N m, noise 0.02 on both coordinates of each outcome. Five data sets, each of a
machine of its own, and five initialisations of every backend that starts at random. Tested on 1,000 transitions of the
same machine: root-mean-square error in units of the scales, mean negative log density of a coordinate of the noisy
outcome (nats), and the mean distance between nominal and found coverage of central intervals, 5 % to 95 %. Medians
over data sets and initialisations, with quartiles in the figure.

The prior of the function-space posteriors and of the SVGD particles is the same: the physics' functions and a slack
Gaussian process. The particles know the noise; all others learn it.

Results are kept in out/every_belief, so that a run goes on where another was interrupted.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fsvgd import FSVGD
from page import ROOT, introduction, kept, write

import physppl as pp
from physppl.data.input_measures import Box
from physppl.inference import (
    HMC,
    SVI,
    Adam,
    Anchored,
    Bootstrap,
    Ensemble,
    FunctionSpaceVI,
    JointKL,
    Laplace,
    NestedLaplace,
    NeuralLinear,
    Printed,
    Projected,
    RandomStarts,
    Slack,
    StructuredLaplace,
)

DT, NOISE, TEST = 0.05, 0.02, 1000
SIZES = [10, 20, 40, 80, 160, 320, 640, 1280]
PADDED = (64, 256, 640, 1280)  # rows: four sizes to compile for
DATASETS, SEEDS = 5, 5
LEVELS = np.arange(0.05, 0.96, 0.05)
FOLDER = ROOT / "out" / "every_belief"

state = pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s", scale=2.5))
action = pp.ActionSpace(torque=pp.Bounded(-2.5, 2.5, "N m"))
RHO = Box(bounds={"velocity": (-5.0, 5.0)})
SLACK = Slack(lengthscale=1.0, scale=(0.005, 0.08))  # unknown accelerations of some 4 rad/s^2


def field(mass, length, gravity, friction=0.0, drag=0.0):
    def field(t, x, u):
        angle, velocity = x
        lost = friction * velocity / (mass * length) + drag / mass * velocity * jnp.abs(velocity)
        return jnp.stack([velocity, gravity / length * jnp.sin(angle) + u[0] / (mass * length**2) - lost])

    return field


def physics():
    mass = pp.physical("mass", 0.5, 1.5, unit="kg")
    length = pp.physical("length", 0.5, 1.5, unit="m")
    gravity = pp.physical("gravity", 5.0, 15.0, unit="m/s^2")
    return field(mass, length, gravity)


def machine():
    return field(*(pp.physical(n, 0.0, 20.0) for n in ("mass", "length", "gravity", "friction", "drag")))


def physics_with_fixed_residual():
    return pp.step_residual(physics(), pp.residual("net", state, action, width=64, depth=1, scale=0.1))


def physics_with_fixed_residual_in_the_field():
    field, net = physics(), pp.residual("net", state, action, width=64, depth=1, scale=2.0)
    return lambda t, x, u: field(t, x, u) + jnp.array([0.0, 1.0]) * net(x, u)


def physics_with_residual():
    return pp.step_residual(physics(), pp.residual("net", state, action, width=32, depth=2, learned=True))


def network():
    net = pp.residual("net", state, action, width=32, depth=2, scale=0.5, learned=True)
    return pp.Step(lambda t, x, u: x + net(x, u))


def whole_network():
    net = pp.residual("net", state, action, width=32, depth=2, scale=0.5, weights="all")
    return pp.Step(lambda t, x, u: x + net(x, u))


def network_by_evidence():
    net = pp.residual("net", state, action, width=32, depth=2, scale=0.5, weights="all", learned=True)
    return pp.Step(lambda t, x, u: x + net(x, u))


def physics_with_whole_residual():
    return pp.step_residual(physics(), pp.residual("net", state, action, width=32, depth=2, scale=0.1, weights="all"))


def bound(program, **options) -> pp.Dynamics:
    return pp.Dynamics(program, state, action, dt=DT, **options)


PHYSICS = bound(physics)
adam = Adam(steps=3000, rate=0.02, rows=64)
few: dict[str, Any] = dict(width=64, points=512, steps=300, measure=RHO)
# {name: (model, backend, True if it starts at random)}
METHODS: dict[str, tuple[pp.Dynamics, Callable[[], pp.Backend], bool]] = {
    "physics, Laplace": (PHYSICS, lambda: Laplace(), False),
    "physics, NUTS": (PHYSICS, lambda: HMC(draws=500, warmup=300, chains=2), False),
    "physics, nested Laplace over the noise": (PHYSICS, lambda: NestedLaplace(("process_noise",), rounds=3), False),
    "physics, SVI": (PHYSICS, lambda: SVI(steps=1500), False),
    "physics + fixed residual, Laplace": (bound(physics_with_fixed_residual), lambda: Laplace(), False),
    "physics + fixed residual in the field, Laplace": (
        bound(physics_with_fixed_residual_in_the_field),
        lambda: Laplace(),
        False,
    ),
    "physics + residual, neural linear": (bound(physics_with_residual), lambda: NeuralLinear(), True),
    "network, neural linear": (bound(network), lambda: NeuralLinear(), True),
    "network, anchored ensemble": (bound(whole_network), lambda: Ensemble(5, Anchored(), adam), True),
    "network, ensemble of starts": (bound(whole_network), lambda: Ensemble(5, RandomStarts(), adam), True),
    "network, bootstrap ensemble": (bound(whole_network), lambda: Ensemble(5, Bootstrap(), adam), True),
    "network, Gaussian over all weights": (bound(network_by_evidence), lambda: StructuredLaplace(rounds=4), True),
    "physics + residual, anchored ensemble": (
        bound(physics_with_whole_residual),
        lambda: Ensemble(5, Anchored(), adam),
        True,
    ),
    "function space, projected": (PHYSICS, lambda: FunctionSpaceVI(objective=Projected(), slack=SLACK, **few), True),
    "function space, joint KL": (PHYSICS, lambda: FunctionSpaceVI(objective=JointKL(), slack=SLACK, **few), True),
    "function space, as printed": (PHYSICS, lambda: FunctionSpaceVI(objective=Printed(), slack=SLACK, **few), True),
    "functional SVGD particles": (
        bound(whole_network, process_noise=[NOISE, NOISE]),
        lambda: FSVGD(PHYSICS, measure=RHO, slack=SLACK),
        True,
    ),
}

READING = """## What it says

The noise alone makes an error of 0.0152.

- **Physics alone** end at 0.086 with any number of data. They say so: the noise takes up what the program lacks, so
  calibration is good (.02 to .04) and the density poor. Laplace, NUTS, SVI and nested Laplace cannot be told apart.
- **A Gaussian over all weights of a network** (`StructuredLaplace`, prior sds by the evidence) is the best belief here
  at every size, in error and, but for 20, in density, though it knows nothing of physics. Within the box that the data
  fill there is nothing to extrapolate to. Its search says of two thirds of the fits that it stopped short of the mode.
- **With 10 and 20 transitions** physics with a fixed residual in the field (.035, .027) and an ensemble of networks
  from different starts (.035, .030) come next in error. Function-space beliefs lose here (.064, .046): their slack
  allows more than the machine does. How sure one may be is another matter: with 10 the density of that ensemble is the
  worst of all, and those within .07 of nominal coverage at both sizes are physics alone, function-space beliefs,
  particles and the bootstrap.
- **With 40 to 160** particles have the second density; `Projected` and `JointKL` come within .15 nats of them, with
  smaller calibration errors from 80 on. (Particles are told the noise, and cost several times as much.) The ensemble of
  starts has errors as small, and calibration errors of .08 to .23.
- **With 640 and more** all but physics alone are within a tenth of the noise. Function-space beliefs, particles and
  ensembles have densities within .07 nats of the best; fixed residuals, whose features are not learned, .2 and less.
- **Physics help networks**: anchored ensembles with physics have half the error of those without at 10 and 20, and are
  better up to 320. A residual in the field is better than one after the step up to 80, and the same beyond.
- **Neural linear models lose**: their hidden layers are 1,200 numbers that the evidence chose without a prior, and
  below 640 transitions the belief is far too sure (calibration errors to .46, densities to +188 nats).
  `posterior.check()` says so.
- **As printed**, Equation 4 is no better than physics alone at 10 and 20, and collapses later: calibration error .21
  at 80.
"""


@functools.cache
def recording(dataset: int) -> tuple[pp.Transitions, pp.Transitions]:
    """Training data, of which the first N are used, and test data of one machine."""
    rng = np.random.default_rng(dataset)
    true = {name: rng.uniform(*limits) for name, limits in zip(
        ("mass", "length", "gravity", "friction", "drag"),
        ((0.5, 1.5), (0.5, 1.5), (5.0, 15.0), (0.4, 0.6), (0.4, 0.6)), strict=True
    )}  # fmt: skip
    count = max(SIZES) + TEST
    states = rng.uniform([-np.pi, -5.0], [np.pi, 5.0], (count, 2))
    actions = rng.uniform(-2.5, 2.5, (count, 1))
    with jax.enable_x64(True):
        exact = bound(machine, process_noise=[NOISE, NOISE]).rebound(substeps=4).transition(true)
        after = np.asarray(jax.vmap(exact)(jnp.asarray(states), jnp.asarray(actions)))
    data = pp.Transitions(states, actions, after + NOISE * rng.normal(size=after.shape))
    return data[: max(SIZES)], data[max(SIZES) :]


def scores(posterior: pp.Posterior, test: pp.Transitions) -> dict[str, float]:
    """Scores of one posterior."""
    predicted = posterior.predict(test.states, test.actions)
    mean, sd = np.asarray(predicted.mean), np.sqrt(np.asarray(predicted.variance))
    error = np.asarray(test.next_states) - mean
    inside = [np.mean(np.abs(error) < sd * jax.scipy.stats.norm.ppf(0.5 + level / 2)) for level in LEVELS]
    return {
        "rmse": float(np.sqrt(np.mean((error / state.scale) ** 2))),
        "nll": float(np.mean(0.5 * (error / sd) ** 2 + np.log(sd) + 0.5 * np.log(2 * np.pi))),
        "calibration": float(np.mean(np.abs(np.array(inside) - LEVELS))),
    }


def cell(name: str, size: int, dataset: int, seed: int) -> dict[str, float]:
    """One fit and its scores, kept on disk."""

    def fitted() -> dict:
        model, make, _ = METHODS[name]
        train, test = recording(dataset)
        rows = min(padded for padded in PADDED if padded >= size)
        posterior = pp.fit(jax.random.key(seed), model, train[:size].pad(rows), make())
        return scores(posterior, test) | {"status": int(posterior.status)}

    return kept(FOLDER / f"{name.replace(' ', '_')}-{size}-{dataset}-{seed}.json", fitted)


def table(results: dict[str, dict[int, list[dict]]], sizes: list[int], score: str) -> str:
    """Medians, the best of each column in bold."""
    medians = {name: [np.median([c[score] for c in own[size]]) for size in sizes] for name, own in results.items()}
    best = np.min(list(medians.values()), axis=0)
    lines = [f"| | {' | '.join(map(str, sizes))} |", "|---|" + "---|" * len(sizes)]
    for name, values in medians.items():
        cells = [f"**{v:.3g}**" if v == b else f"{v:.3g}" for v, b in zip(values, best, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(results, sizes: list[int], path: Path) -> None:
    import matplotlib.pyplot as plt

    titles = {"rmse": "RMSE (scales)", "nll": "negative log density (nats)", "calibration": "calibration error"}
    panels, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    colours = plt.get_cmap("tab20")
    for score, ax in zip(titles, axes, strict=True):
        for i, (name, own) in enumerate(results.items()):
            low, mid, high = np.quantile([[c[score] for c in own[size]] for size in sizes], [0.25, 0.5, 0.75], axis=1)
            ax.plot(sizes, mid, "o-", color=colours(i), label=name, ms=3)
            ax.fill_between(sizes, low, high, color=colours(i), alpha=0.12, lw=0)
        ax.set(xscale="log", xlabel="transitions", title=titles[score], xticks=sizes, xticklabels=sizes)
        ax.set(yscale="log") if score != "nll" else ax.set(ylim=(-3.0, 1.5))
        if score == "rmse":
            ax.set_yticks([0.015, 0.02, 0.03, 0.05, 0.1], ["0.015", "0.02", "0.03", "0.05", "0.1"])
        ax.minorticks_off()
        ax.grid(alpha=0.2)
    panels.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    panels.savefig(path, dpi=110)
    plt.close(panels)


def main(names: list[str], sizes: list[int], datasets: int, seeds: int) -> tuple[str, dict]:
    results: dict[str, dict[int, list[dict]]] = {}
    for name in names:
        for size in sizes:
            own = range(seeds) if METHODS[name][2] else range(1)
            cells = [cell(name, size, dataset, seed) for dataset in range(datasets) for seed in own]
            results.setdefault(name, {})[size] = cells
            middle = {k: round(float(np.median([c[k] for c in cells])), 4) for k in cells[0]}
            print(name, size, middle, flush=True)
        jax.clear_caches()
    parts = [
        f"## {title}\n\n{table(results, sizes, score)}\n"
        for score, title in (
            ("rmse", "Root-mean-square error"),
            ("nll", "Negative log density"),
            ("calibration", "Calibration error"),
        )
    ]
    seconds = [
        f"{name} {min(c['seconds'] for c in cells[sizes[-1]]):.1f}" for name, cells in results.items()
    ]  # least: the others may have run beside other work
    count = f"Seconds of a fit to {sizes[-1]} transitions, compiled, the fastest of its cells on at most two cores"
    return "\n".join([*parts, f"{count}: {', '.join(seconds)}."]), results


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="the page docs/results/every_belief.md and its figure")
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--datasets", type=int, default=DATASETS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    text, results = main(given.only, given.sizes, given.datasets, given.seeds)
    print(text)
    if given.write:
        figure(results, given.sizes, ROOT / "docs" / "results" / "every_belief.png")
        picture = "![Errors against the number of transitions](every_belief.png)\n\n"
        text = f"{picture}{text}\n\n{READING}"
        write("every_belief", "Every belief on one machine", introduction(__doc__), "every_belief.py", text)
