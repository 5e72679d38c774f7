"""A flat two-link arm from two data sets: which of seven parameters each identifies, in a hundred repeats.

    python examples/two_link_identification.py [folder for figure and table] [repeats]

Shoulder locked, the arm moves through one combination of its parameters; both joints free, through three. The model
of J. Watson et al., "Tractable Bayesian Dynamics Priors from Differentiable Physics for Learning and Control", is
taken through both data sets in sequence, and its figure 1 is drawn anew.
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import chi2

import physppl as pp
from physppl.inference import Laplace
from physppl.inference.gaussian import LaplacePosterior
from physppl.internal import figures
from physppl.internal.units import label
from physppl.models import two_link

DT, STEPS = 0.02, 128  # s; 2.56 s a data set
DAMPING = 0.01  # N m s/rad, of both joints, known
NOISE = (3e-4, 3e-4, 0.01, 0.01)  # rad, rad, rad/s, rad/s: sd of the state over one step, known
TORQUE = np.array([0.6, 0.15])  # N m
PROBABILITY = 0.95
backend = Laplace(linearised=True)  # whose draws are the paper's Gaussian process

bounds = {  # of a Gaussian prior in unconstrained space: two draws in three lie between 0.27 and 0.73 of the way
    "m1": (0.1, 2.0, "kg"),
    "m2": (0.1, 2.0, "kg"),
    "r1": (0.03, 0.3, "m"),
    "r2": (0.03, 0.3, "m"),
    "I1": (5e-4, 2e-2, "kg m^2"),
    "I2": (5e-4, 2e-2, "kg m^2"),
    "l1": (0.1, 0.6, "m"),
}
truth = {"m1": 0.5, "m2": 0.5, "r1": 0.15, "r2": 0.15, "I1": 3.75e-3, "I2": 3.75e-3, "l1": 0.3}  # two uniform rods
LINK_1 = ("m1", "r1", "I1", "l1")

action = pp.ActionSpace(
    shoulder_torque=pp.Bounded(-1.0, 1.0, "N m"), elbow_torque=pp.Bounded(-1.0, 1.0, "N m"), lock=pp.Bounded(0.0, 1.0)
)


def program():
    """Masses, centres of mass, inertias about them, and the first link's length; the shoulder locks at a switch."""
    p = {name: pp.physical(name, low, high, unit=unit) for name, (low, high, unit) in bounds.items()}
    arm = partial(
        two_link.field,
        *(p["m1"], p["r1"], jnp.sqrt(p["I1"] / p["m1"]), p["m2"], p["r2"], jnp.sqrt(p["I2"] / p["m2"])),
        damping_1=DAMPING,
        damping_2=DAMPING,
        gravity=0.0,
        length=p["l1"],
    )
    free, locked = arm(), arm(locked=True)
    return lambda t, x, u: jnp.where(u[2] > 0.5, locked(t, x, u), free(t, x, u))


dynamics = pp.Dynamics(program, two_link.state, action, dt=DT, process_noise=NOISE)


def combinations(p) -> jax.Array:
    """(3,) kg m^2: all through which the arm moves; locked, it moves through the second alone."""
    return jnp.stack(
        [
            p["I1"] + p["m1"] * p["r1"] ** 2 + p["m2"] * p["l1"] ** 2,
            p["I2"] + p["m2"] * p["r2"] ** 2,
            p["m2"] * p["l1"] * p["r2"],
        ]
    )


@jax.jit
def simulate(key, locked):
    """One data set from rest at random angles: states (T + 1, 4) and actions (T, 3); torques are sums of sines."""
    start_key, phase_key, noise_key = jax.random.split(key, 3)
    frequency = jnp.array([0.4, 0.7, 1.1, 1.7])  # Hz
    phase = jax.random.uniform(phase_key, (2, 4), maxval=2 * jnp.pi)
    times = DT * jnp.arange(STEPS)
    torque = TORQUE * jnp.mean(jnp.sin(2 * jnp.pi * frequency * times[:, None, None] + phase), axis=-1) * 1.5
    torque = torque * jnp.array([1.0 - locked, 1.0])  # what holds the shoulder is not recorded
    actions = jnp.concatenate([torque, jnp.full((STEPS, 1), locked)], axis=1)
    transition = dynamics.transition(truth, jnp.array(NOISE) * jnp.array([1 - locked, 1, 1 - locked, 1]))
    angles = jax.random.uniform(start_key, (2,), minval=-1.0, maxval=1.0)
    start = jnp.concatenate([angles, jnp.zeros(2)])

    def body(x, inputs):
        x = transition.sample(inputs[1], x, inputs[0])
        return x, x

    _, states = jax.lax.scan(body, start, (actions, jax.random.split(noise_key, STEPS)))
    return jnp.concatenate([start[None], states]), actions


def data_set(key, locked: bool) -> pp.Transitions:
    with jax.enable_x64(True):
        return pp.Transitions.from_trajectory(*map(np.asarray, simulate(key, float(locked))))


class Repeat(NamedTuple):
    """Two data sets in sequence, and the posteriors after one and both."""

    locked: pp.Transitions
    free: pp.Transitions
    first: LaplacePosterior
    second: LaplacePosterior


def repeat(seed: int) -> Repeat:
    """One repeat: motions, noise and search from keys of its own."""
    locked_key, free_key, key = jax.random.split(jax.random.key(seed), 3)
    locked, free = data_set(locked_key, True), data_set(free_key, False)
    first = pp.fit(key, dynamics, locked, backend)
    return Repeat(locked, free, first, backend.update(key, first, free))


@jax.jit
def _of_combinations(posterior: LaplacePosterior):
    """Mode (3,) and Jacobian (3, P) in unconstrained space of the combinations."""

    def values(z):
        return combinations(posterior.space.sites(dynamics, z, posterior.data))

    return values(posterior.mode), jax.jacfwd(values)(posterior.mode)


def measure(posterior: LaplacePosterior) -> dict:
    """Eigenvalues (7,), sd over prior sd of link 1's parameters and of the combinations, and whether these cover."""
    with jax.enable_x64(True):
        report = pp.identifiability(posterior)
        mode, jacobian = map(np.asarray, _of_combinations(posterior))
        factor = jacobian @ np.asarray(posterior.factor).T  # the prior is standard normal in unconstrained space
        prior = np.linalg.norm(jacobian, axis=1)
        white = np.linalg.lstsq(factor, mode - np.asarray(combinations(truth)), rcond=None)[0]
    left = dict(zip(report.names, np.sqrt(1 - report.contraction), strict=True))
    return {
        "eigenvalues": report.eigenvalues,
        "link 1": min(left[name] for name in LINK_1),
        "combinations": np.linalg.norm(factor, axis=1) / prior,
        "covered": bool(white @ white <= chi2.ppf(PROBABILITY, 3)),
    }


def measures(repeats: int) -> list[tuple[dict, dict]]:
    """After the first data set and after both, for each repeat."""
    runs = map(repeat, range(repeats))
    return [(measure(run.first), measure(run.second)) for run in runs]


def table(found) -> str:
    """The claim's figures over all repeats, one line each."""
    first, second = zip(*found, strict=True)
    lines = ["| data | eigenvalues below 0.1 | largest of these | the others differ from 1 by |", "|---|---|---|---|"]
    for name, parts in (("shoulder locked", first), ("then both joints free", second)):
        values = np.array([m["eigenvalues"] for m in parts])
        below = values < 0.1
        counts = ", ".join(f"{n} in {k}" for n, k in zip(*np.unique(below.sum(1), return_counts=True), strict=True))
        rest = np.abs(values[~below] - 1).max()
        lines.append(f"| {name} | {counts} repeats | {values[below].max():.1e} | {rest:.0e} at most |")
    link = min(m["link 1"] for m in first)
    largest = ", ".join(f"{x:.3f}" for x in np.max([m["combinations"] for m in second], axis=0))
    covered = f"{sum(m['covered'] for m in second)} of {len(found)}"
    lines += [
        "",
        f"- sd of link 1's parameters, shoulder locked: {link:.6f} of the prior's or more",
        f"- sd of the three combinations after both data sets: {largest} of the prior's or less",
        f"- {PROBABILITY:.0%} ellipsoids of the three combinations hold the truth in {covered} repeats",
    ]
    return "\n".join(lines)


@figures.styled
def figure(run: Repeat):
    """The paper's figure 1: both motions, their predictions, and the posteriors in unconstrained space."""
    drawn = figures.new_figure(11.0, 5.6)
    drawn.get_layout_engine().set(wspace=0.06)
    axes = drawn.subplot_mosaic([["arm 1", "arm 2", "pair 1", "pair 2"], ["elbow 1", "shoulder 2", "elbow 2", "sites"]])
    prior, first, second = (
        ("prior", backend.prior(jax.random.key(0), dynamics), figures.GREY),
        ("after the first data", run.first, figures.BLUE),
        ("after both", run.second, figures.ORANGE),
    )
    with jax.enable_x64(True):
        _arm(axes["arm 1"], run.locked, "(a) first data: shoulder locked")
        _arm(axes["arm 2"], run.free, "second data: both joints free")
        _prediction(axes["elbow 1"], run.locked, (prior, first), 1, "(b) first data, predicted")
        _prediction(axes["shoulder 2"], run.free, (first, second), 0, "(c) second data, predicted")
        _prediction(axes["elbow 2"], run.free, (first, second), 1, "")
        _ellipses(axes["pair 1"], ("r2", "m2"), (prior, first, second), "(d) virtual space, two sds")
        _ellipses(axes["pair 2"], ("r2", "l1"), (prior, first, second), "")
        _whiskers(axes["sites"], (prior, first, second))
    handles = {k: h for a in axes.values() for h, k in zip(*a.get_legend_handles_labels(), strict=True)}
    order = [name for name, *_ in (prior, first, second)] + ["measured", "truth"]
    drawn.legend([handles[k] for k in order], order, loc="outside lower center", ncols=len(order))
    return drawn


def _arm(axis, data, title: str) -> None:
    """The arm from above, every 0.1 s, darker as time goes."""
    states = np.asarray(data.states)[:: round(0.1 / DT)]
    for k, (q1, q2, *_) in enumerate(states):
        elbow = truth["l1"] * np.array([np.cos(q1), np.sin(q1)])
        tip = elbow + 2 * truth["r2"] * np.array([np.cos(q1 + q2), np.sin(q1 + q2)])
        shade = 0.15 + 0.85 * k / len(states)
        axis.plot(*np.stack([np.zeros(2), elbow, tip]).T, color=figures.INK, alpha=shade, lw=1.2, marker="o", ms=2)
    axis.set(xlim=(-0.65, 0.65), ylim=(-0.65, 0.65), aspect="equal", xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5])
    axis.set(xlabel="x [m]", ylabel="y [m]", title=title)


@jax.jit
def _paths(posterior, states, actions):
    """300 open-loop rollouts (300, T, 4), each of one draw of the linearised function, with its noise."""

    def path(key):
        draw_key, noise_key = jax.random.split(key)
        transition = posterior.draw(draw_key)

        def body(x, inputs):
            x = transition.sample(inputs[1], x, inputs[0])
            return x, x

        keys = jax.random.split(noise_key, len(actions))
        return jax.lax.scan(body, states[0], (actions, keys))[1]

    return jax.vmap(path)(jax.random.split(jax.random.key(1), 300))


def _prediction(axis, data, posteriors, i: int, title: str) -> None:
    """Median and 95 % of open-loop predictions of one angle, and what was measured."""
    times, measured = DT * np.arange(1, STEPS + 1), data.next_states[:, i]
    for name, posterior, colour in posteriors:
        paths = _paths(posterior, jnp.asarray(data.states), jnp.asarray(data.actions))
        low, middle, high = np.quantile(np.asarray(paths)[..., i], [0.025, 0.5, 0.975], axis=0)
        axis.fill_between(times, low, high, color=colour, alpha=0.3, lw=0, label=name)
        axis.plot(times, middle, color=colour, lw=1.1)
    axis.plot(times, measured, color=figures.INK, lw=1.2, ls=(0, (1, 1.2)), label="measured")
    reach = 0.6 * np.ptp(measured)  # a wide band must not flatten what was measured
    axis.set(xlim=(0, times[-1]), ylim=(measured.min() - reach, measured.max() + reach), title=title)
    axis.set(xlabel="time [s]", ylabel=label(two_link.state.names[i], "rad"))


def _true_point(names) -> np.ndarray:
    """The truth in unconstrained space."""
    scaled = np.array([(truth[n] - bounds[n][0]) / (bounds[n][1] - bounds[n][0]) for n in names])
    return np.log(scaled) - np.log1p(-scaled)


def _symbol(name: str) -> str:
    return f"${{{name[0]}}}_{name[1]}$".replace("{l}", r"\ell")


def _ellipses(axis, pair, posteriors, title: str) -> None:
    angle = np.linspace(0, 2 * np.pi, 200)
    for _, posterior, colour in posteriors:
        index = [posterior.space.names.index(name) for name in pair]
        mean, covariance = map(np.asarray, posterior.unconstrained().moments())
        lower = np.linalg.cholesky(covariance[np.ix_(index, index)])
        x, y = mean[index][:, None] + 2 * lower @ np.stack([np.cos(angle), np.sin(angle)])
        axis.fill(x, y, color=colour, alpha=0.25, lw=0)
        axis.plot(x, y, color=colour, lw=1.1)
    axis.plot(*_true_point(pair), "D", color=figures.INK, ms=4, label="truth")
    axis.set(xlabel=_symbol(pair[0]), ylabel=_symbol(pair[1]), title=title, aspect="equal")


def _whiskers(axis, posteriors) -> None:
    names = posteriors[0][1].space.names
    for shift, (_, posterior, colour) in zip((-0.3, -0.1, 0.1), posteriors, strict=True):
        mean, covariance = map(np.asarray, posterior.unconstrained().moments())
        sd = np.sqrt(np.diagonal(covariance))
        axis.errorbar(np.arange(len(names)) + shift, mean, 2 * sd, color=colour, fmt=".", ms=5, lw=1.6)
    axis.plot(np.arange(len(names)) + 0.3, _true_point(names), "D", color=figures.INK, ms=4)
    axis.set_xticks(np.arange(len(names)), [_symbol(name) for name in names])
    axis.set(ylabel="virtual value")


def main(folder: Path, repeats: int) -> None:
    start = time.perf_counter()
    run = repeat(0)
    for posterior in (run.first, run.second):
        print(pp.identifiability(posterior), end="\n\n")
    print(table(measures(repeats)))
    print(f"\n{repeats} repeats, {time.perf_counter() - start:.0f} s, compiling included.")
    folder.mkdir(parents=True, exist_ok=True)
    figure(run).savefig(folder / "two_link_identification.png")
    print(folder / "two_link_identification.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out"), int(sys.argv[2]) if len(sys.argv) > 2 else 100)
