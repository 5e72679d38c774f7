"""Does a fleet teach its members? Eight pendulums, unequal data: partial pooling, separate fits, full pooling.

    python examples/fleet.py --write

Mass, length and friction of each pendulum come from a population whose centre and spread are unknown. Ten fleets are
drawn from the prior of the model itself: centres, spreads, machines; each machine is recorded once, from hanging and
under coloured torques, for 5 to 200 transitions. Held out are 20 recordings of half a second of each machine, from
random states. One model, four posteriors, all Laplace's: *partial pooling* fits the fleet, the three spreads explored
by their marginal density (`NestedLaplace`); *joint mode* is plain `Laplace`, spreads included; *separate
fits* apply the model to a fleet of one, so that each machine's prior is the population's marginal one; *full pooling*
applies it to a fleet of one whose machine has everybody's data.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from agreement import ess
from arviz_stats.base import array_stats
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from page import ROOT, introduction, write

import physppl as pp
from physppl.inference import Laplace, NestedLaplace, from_numpyro

ROWS = (5, 8, 12, 20, 35, 60, 110, 200)  # transitions of each machine
DT, STEPS, TESTS, DRAWS = 0.05, 10, 20, 128  # s; of a held-out recording; of them for each machine; of a posterior
SEEDS = 10
NOISE = (0.02, 0.15)  # rad, rad/s: sd over one step, known
BOUNDS = {"mass": (0.2, 2.0, "kg"), "length": (0.3, 1.5, "m"), "damping": (0.0, 0.5, "N m s/rad")}
METHODS = ("partial pooling", "partial pooling, joint mode", "separate fits", "full pooling")
REASONS = """At the joint mode the spreads are too wide: offsets that shrink cost less, and the volume that they lose
is not counted. Machines with few data are then pooled too little, and nothing about the spread itself can be read off
it. `NestedLaplace` counts that volume, and that the spreads are not known, and moves each Gaussian's mean from its mode
to where it is nearest to the density: without that what few data tell of a mass, which is skewed, was .33 sd off."""
RATIOS = ("ratio", "drawn")
SPREADS = tuple(f"{name}_spread" for name in BOUNDS)
NESTED = NestedLaplace(SPREADS)
METRICS = ("RMSE, one step", "RMSE, 0.5 s", "NLL, one step", "NLL, 0.5 s")

state = pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s", scale=8.0))
action = pp.ActionSpace(torque=pp.Bounded(-2.0, 2.0, "N m"))


def field(mass, length, damping):
    """d state/dt of a pendulum."""

    def field(t, state, action):
        angle, velocity = state
        torque = action[0] - damping * velocity - mass * 9.81 * length * jnp.sin(angle)
        return jnp.stack([velocity, torque / (mass * length**2)])

    return field


def centred(data):
    """The population, and the machines in it."""
    population = {
        name: (
            numpyro.sample(f"{name}_centre", dist.Normal(0.0, 1.0)),
            numpyro.sample(f"{name}_spread", dist.HalfNormal(0.5)),
        )
        for name in BOUNDS
    }

    def program():
        values = {
            name: pp.physical(name, low, high, loc=population[name][0], scale=population[name][1], unit=unit)
            for name, (low, high, unit) in BOUNDS.items()
        }
        return field(**values)

    with numpyro.plate("machine", data.batch_shape[0]):
        return pp.Dynamics(program, state, action, dt=DT, process_noise=NOISE)(data)


config: dict = {name: TransformReparam() for name in BOUNDS} | {f"{name}_base": LocScaleReparam(0.0) for name in BOUNDS}
fleet = handlers.reparam(centred, config=config)  # non-centred
single = pp.Dynamics(
    lambda: field(**{name: pp.physical(name, *bounds[:2]) for name, bounds in BOUNDS.items()}),
    state, action, dt=DT, process_noise=NOISE,
)  # fmt: skip


def truth(rng) -> dict[str, np.ndarray]:
    """{parameter: values of the machines}, from the prior."""
    values = {}
    for name, (low, high, _) in BOUNDS.items():
        z = rng.normal() + 0.5 * abs(rng.normal()) * rng.normal(size=len(ROWS))
        values[name] = low + (high - low) / (1 + np.exp(-z))
    return values


def torques(rng, steps: int) -> np.ndarray:
    """(steps, 1): coloured, strong most of the time."""
    value, out = rng.normal(), []
    for fresh in rng.normal(size=steps):
        value = 0.9 * value + np.sqrt(1 - 0.9**2) * fresh
        out.append(2.0 * np.tanh(3 * value))
    return np.array(out)[:, None]


@jax.jit
def simulate(transition, start, actions, noise):
    """States (T + 1, D) of a noisy motion."""

    def body(x, inputs):
        x = transition(x, inputs[0]) + inputs[1] * transition.noise
        return x, x

    return jnp.concatenate([start[None], jax.lax.scan(body, start, (actions, noise))[1]])


def recordings(rng, values) -> tuple[list[pp.Transitions], np.ndarray, np.ndarray]:
    """Training data of each machine; held-out states (machines, tests, T + 1, D), actions (machines, tests, T, A)."""
    training, states, actions = [], [], []
    for m, rows in enumerate(ROWS):
        machine = single.transition({name: v[m] for name, v in values.items()})
        longest = torques(rng, max(ROWS))
        course = simulate(machine, jnp.zeros(2), longest, rng.normal(size=(max(ROWS), 2)))
        training.append(pp.Transitions.from_trajectory(np.asarray(course)[: rows + 1], longest[:rows]))
        starts = rng.normal(size=(TESTS, 2)) * [1.5, 4.0]
        actions.append(np.stack([torques(rng, STEPS) for _ in range(TESTS)]))
        noise = rng.normal(size=(TESTS, STEPS, 2))
        states.append(jax.vmap(simulate, (None, 0, 0, 0))(machine, starts, actions[-1], noise))
    return training, np.asarray(states), np.stack(actions)


def scores(posterior: pp.Posterior, states, actions) -> np.ndarray:
    """(metrics, tests) of one machine's posterior: squared errors in units of the scales, and nats."""
    one = posterior.predict(states[:, :-1], actions)
    after = states[:, 1:]
    squared = np.mean(((np.asarray(one.mean) - after) / state.scale) ** 2, axis=(1, 2))
    nll = -np.mean(np.asarray(one.log_prob(after)), axis=1)
    members = posterior.draws(jax.random.key(0), DRAWS)
    noise = np.random.default_rng(0).normal(size=(DRAWS, STEPS, 2))  # the same for all posteriors
    courses = jax.vmap(jax.vmap(simulate, (0, None, None, 0)), (None, 0, 0, None))
    ends = np.asarray(courses(members, states[:, 0], actions, noise))[:, :, -1]
    mean = ends.mean(1)
    far = np.mean(((mean - states[:, -1]) / state.scale) ** 2, axis=1)
    covariance = np.einsum("tsi,tsj->tij", ends - mean[:, None], ends - mean[:, None]) / (DRAWS - 1)
    error = (states[:, -1] - mean)[..., None]
    white = np.linalg.solve(covariance, error)
    far_nll = 0.5 * (np.sum(error * white, axis=(1, 2)) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    return np.stack([squared, far, nll, far_nll])


def fitted(data: pp.Transitions, backend: pp.Backend) -> pp.Posterior:
    return pp.fit(jax.random.key(0), fleet, data, backend)


def posteriors(training) -> dict[str, list]:
    """{method: the posterior of each machine}."""
    data = pp.Transitions.stack(training)
    fleets = [fitted(data, backend) for backend in (NESTED, Laplace())]
    each = [[posterior.machine(m) for m in range(len(ROWS))] for posterior in fleets]
    alone = [fitted(pp.Transitions.stack([d.pad(max(ROWS))]), NESTED).machine(0) for d in training]
    pooled = fitted(pp.Transitions.stack([pp.Transitions.concatenate(training)]), NESTED).machine(0)
    return dict(zip(METHODS, (*each, alone, [pooled] * len(ROWS)), strict=True))


def study(seed: int) -> np.ndarray:
    """(methods, metrics, machines): of one fleet."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        training, states, actions = recordings(rng, truth(rng))
        fits = posteriors(training)
        each = [[scores(p, states[m], actions[m]) for m, p in enumerate(fits[method])] for method in METHODS]
    mean = np.moveaxis(np.mean(each, axis=-1), -1, 1)
    mean[:, :2] = np.sqrt(mean[:, :2])
    return mean


def pooled_over_machines(found: np.ndarray) -> np.ndarray:
    """(..., metrics): root mean square of the RMSEs, mean of the NLLs."""
    return np.concatenate([np.sqrt(np.mean(found[..., :2, :] ** 2, -1)), np.mean(found[..., 2:, :], -1)], -1)


def reference(key, data: pp.Transitions, draws: int) -> pp.Posterior:
    """Plain NumPyro on the same model, four chains."""
    kernel = NUTS(fleet, target_accept_prob=0.95)
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=draws, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(key, data)
    return from_numpyro(mcmc, data=data)


def kind(name: str) -> str:
    """Kind of quantity that a site belongs to."""
    return "machines" if name in BOUNDS else "centres" if name.endswith("centre") else "spreads"


def compared(seed: int, draws: int = 2000) -> dict[str, list[dict]]:
    """{method: first-order moments of every machine and of the population beside those of the reference}."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        training, *_ = recordings(rng, truth(rng))
        data = pp.Transitions.stack(training)
        exact = reference(jax.random.key(seed), data, draws)
        machines = [exact.machine(m).samples(jax.random.key(0), group_by_chain=True) for m in range(len(ROWS))]
        stats = exact.sample_stats()
        found = {}
        for method, backend in zip(METHODS, (NESTED, Laplace()), strict=False):
            laplace = fitted(data, backend)
            drawn, rows = laplace.samples(jax.random.key(1), 20_000), []
            for m, samples in enumerate(machines):
                first = laplace.machine(m).moments()
                for name, values in samples.items():
                    if m and name not in BOUNDS:
                        continue  # the population's are the same for all
                    values, (mean, sd) = np.asarray(values), map(float, first[name])
                    left = np.asarray(drawn[name][..., m] if name in BOUNDS else drawn[name])
                    rows.append(
                        {
                            "name": f"{name} {m}" if name in BOUNDS else name,
                            "kind": kind(name),
                            "mean": values.mean(),
                            "sd": values.std(),
                            "shift": (mean - values.mean()) / values.std(),
                            "ratio": sd / values.std(),
                            "drawn": left.std() / values.std(),
                            "r_hat": float(array_stats.rhat(values, chain_axis=0, draw_axis=1)),
                            "ess": ess(values),
                            "divergences": int(np.sum(stats.get("diverging", 0))),
                        }
                    )
            found[method] = rows
    return found


def table(found: np.ndarray) -> list[str]:
    """Table of (seeds, methods, metrics, machines): medians over the fleets, and wins of partial pooling."""
    scores = pooled_over_machines(found)
    lines = ["| " + " | ".join(("belief", *METRICS)) + " |", (len(METRICS) + 1) * "|---" + "|"]
    for i, method in enumerate(METHODS):
        lines.append(f"| {method} | " + " | ".join(f"{v:.4f}" for v in np.median(scores[:, i], axis=0)) + " |")
    lines += ["", "Fleets, of " + str(len(found)) + ", on which one is better than another:", ""]
    lines += ["| | " + " | ".join(METRICS) + " |", (len(METRICS) + 1) * "|---" + "|"]
    for one, other in ((0, 2), (0, 3), (1, 2), (1, 3), (0, 1)):
        wins = np.sum(scores[:, one] < scores[:, other], axis=0)
        lines.append(f"| {METHODS[one]} against {METHODS[other]} | " + " | ".join(map(str, wins)) + " |")
    far = scores[..., 1]
    both = np.sum((far[:, 0] < far[:, 2]) & (far[:, 0] < far[:, 3]))
    return [*lines, "", f"At 0.5 s partial pooling has a smaller RMSE than both others on {both} of {len(found)}."]


def seeds_table(found: np.ndarray) -> list[str]:
    """RMSE at half a second of every fleet."""
    scores = pooled_over_machines(found)[..., 1]
    lines = ["| fleet | " + " | ".join(METHODS) + " |", (len(METHODS) + 1) * "|---" + "|"]
    return lines + [f"| {i} | " + " | ".join(f"{v:.4f}" for v in row) + " |" for i, row in enumerate(scores)]


def agreement_table(rows: list[dict]) -> list[str]:
    """Worst figures of each kind of quantity, and the reference's diagnostics."""
    lines = [
        "| quantities | largest shift of the mean, sd | sd ratio, first order | sd ratio, draws |",
        4 * "|---" + "|",
    ]
    for what in ("machines", "centres", "spreads"):
        chosen = [row for row in rows if row["kind"] == what]
        shift = max((row["shift"] for row in chosen), key=abs)
        span = {key: f"{min(r[key] for r in chosen):.2f} to {max(r[key] for r in chosen):.2f}" for key in RATIOS}
        lines.append(f"| {what} ({len(chosen)}) | {shift:+.2f} | {span['ratio']} | {span['drawn']} |")
    return lines


def figure(found: np.ndarray, path) -> None:
    """RMSE of each machine at half a second, by how much data it has."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for i, method in enumerate(METHODS):
        values = found[:, i, 1]
        axes.plot(ROWS, np.median(values, axis=0), "o-", label=method)
        axes.fill_between(ROWS, *np.quantile(values, [0.25, 0.75], axis=0), alpha=0.12)
    axes.set(xscale="log", xlabel="transitions of the machine", ylabel="RMSE after 0.5 s, in scales")
    axes.legend(frameon=False)
    picture.savefig(path, dpi=150)


def report(found: np.ndarray, rows: dict[str, list[dict]]) -> str:
    """Everything, as the text of a page."""
    lines = ["## Held-out error", "", *table(found), "", "RMSE at 0.5 s:", "", *seeds_table(found), ""]
    lines += ["![RMSE of each machine by its data](fleet.png)", "", "## Against NUTS", ""]
    one = next(iter(rows.values()))
    lines += [
        f"Plain NumPyro on fleet 0, four chains: R-hat at most {max(r['r_hat'] for r in one):.4f}, "
        f"{min(r['ess'] for r in one):.0f} to {max(r['ess'] for r in one):.0f} effective draws, "
        f"{one[0]['divergences']} divergences.",
        "",
    ]
    for method, of in rows.items():
        lines += [f"**{method}**", "", *agreement_table(of), ""]
    for method, of in rows.items():
        known = [row for row in of if row["kind"] != "spreads"]
        far = [row["name"] for row in known if abs(row["shift"]) > 0.3]
        wrong = [row["name"] for row in known if not 0.8 <= row["ratio"] <= 1.25]
        lines.append(
            f"Of {len(known)} quantities of machines and centres, {method} has {len(far)} means further than .3 sd "
            f"({', '.join(far) or 'none'}) and {len(wrong)} sds outside .8 to 1.25 ({', '.join(wrong) or 'none'})."
        )
    lines += ["", REASONS]
    return "\n".join(lines)


def main() -> None:
    fleets = []
    for seed in range(SEEDS):
        fleets.append(study(seed))
        print(
            f"fleet {seed}:",
            dict(zip(METHODS, pooled_over_machines(fleets[-1])[:, 1].round(4), strict=True)),
            flush=True,
        )
    found = np.array(fleets)
    text = report(found, compared(0))
    print(text)
    if "--write" in sys.argv:
        figure(found, ROOT / "docs" / "results" / "fleet.png")
        write("fleet", "A fleet of eight pendulums", introduction(__doc__), "fleet.py", text)


if __name__ == "__main__":
    main()
