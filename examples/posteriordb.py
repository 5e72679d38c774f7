"""Does the library reproduce trusted posteriors of ODE models? `rollout` and `HMC` against posteriordb.

    python examples/posteriordb.py [--write]

PHYSPPL_DATA must name the folder that holds posteriordb/: data and reference draws of two models (M. Magnusson et al.,
posteriordb; drawn by Stan's NUTS with its adaptive solvers). The models are ordinary NumPyro programs of one data
object with likelihoods of their own: no Dynamics, only `pp.rollout`. The script prints its tables, and writes them to
docs/results/posteriordb.md where asked.
"""

import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import page
from arviz_stats.base import array_stats
from numpyro.infer.util import log_density

import physppl as pp
from physppl.inference import HMC


def lotka_volterra(data, substeps: int = 8):
    """Pelts of hares and lynxes, year by year; data: y_init (2,), ts (N,) in years from the first count, y (N, 2)."""
    location, scale = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(location, scale, low=0.0))
    z_init = numpyro.sample("z_init", dist.LogNormal(jnp.log(10.0), 1.0).expand([2]))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]))

    def field(t, z, _):
        hares, lynxes = z
        return (theta[0] - theta[1] * lynxes) * hares, (-theta[2] + theta[3] * hares) * lynxes

    times = jnp.concatenate([jnp.zeros(1), data["ts"]])
    z = pp.rollout(field, z_init, times=times, substeps=substeps)
    numpyro.sample("y_init", dist.LogNormal(jnp.log(z[0]), sigma), obs=data["y_init"])
    numpyro.sample("y", dist.LogNormal(jnp.log(z[1:]), sigma), obs=data["y"])


def one_compartment(data, substeps: int = 10):
    """A drug absorbed from t0 on and eliminated after Michaelis and Menten; data: t0, times (N,), D, V, C_hat (N,).

    V_m, half-Cauchy, is written as (K_m + typical concentration) times a rate whose scale is the reciprocal: the same
    prior whatever is typical. The data determine the rate; K_m and V_m themselves only along a curve.

    The dose counts at t0 too, where the published model has none: an adaptive solver does not see one instant, but a
    Runge-Kutta step that begins there would be wrong by a whole stage.
    """
    k_a, K_m, sigma = (numpyro.sample(name, dist.HalfCauchy(1.0)) for name in ("k_a", "K_m", "sigma"))
    above = K_m + jnp.mean(data["C_hat"])
    V_m = numpyro.deterministic("V_m", above * numpyro.sample("rate", dist.HalfCauchy(1 / above)))

    def field(t, c, _):
        absorbed = data["D"] * k_a * jnp.exp(-k_a * t)
        return (absorbed - V_m * c / (K_m + c)) / data["V"]

    times = jnp.concatenate([data["t0"][None], data["times"]])
    c = pp.rollout(field, jnp.zeros(1), times=times, substeps=substeps)[1:, 0]  # C(t0) = 0 has no logarithm
    numpyro.sample("C_hat", dist.LogNormal(jnp.log(c), sigma), obs=data["C_hat"])


@dataclass(frozen=True)
class Problem:
    """A model of posteriordb.

    Attributes:
        title: for the page.
        model: a NumPyro program of one data object.
        data, draws: names of its files.
        heavy: parameters whose posterior has no variance; their logarithms are compared too.
    """

    title: str
    model: Callable
    data: str
    draws: str
    heavy: tuple[str, ...] = ()

    @property
    def substeps(self) -> int:
        """The model's own number of solver steps between two measurements."""
        return self.model.__defaults__[0]

    def load(self, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(data, reference draws {parameter: (chains, draws)}) from the folder that holds posteriordb/."""
        folder = Path(folder) / "posteriordb"
        data = {name: np.asarray(value, float) for name, value in json.loads((folder / self.data).read_text()).items()}
        with np.load(folder / self.draws) as draws:
            return data, self.with_logs({name: draws[name].astype(float) for name in draws})

    def with_logs(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return values | {f"log {name}": np.log(values[name]) for name in self.heavy}

    def columns(self, samples: dict, names) -> dict[str, np.ndarray]:
        """Samples {site: (chains, draws, ...)} under the reference's names, which count from one: theta[1]."""
        values = {}
        for name in names:
            site, _, index = name.rstrip("]").partition("[")
            if not site.startswith("log "):
                value = np.asarray(samples[site])
                values[name] = value[..., int(index) - 1] if index else value
        return self.with_logs(values)


PROBLEMS = {
    "lotka_volterra": Problem(
        "Lotka-Volterra (hudson_lynx_hare)", lotka_volterra, "hudson_lynx_hare.json", "lotka_volterra_draws.npz"
    ),
    "one_compartment": Problem(
        "One compartment, Michaelis-Menten elimination (one_comp_mm_elim_abs)",
        one_compartment,
        "one_comp_mm_elim_abs.json",
        "one_compartment_draws.npz",
        heavy=("K_m", "V_m"),
    ),
}


@dataclass
class Row:
    """One parameter in its own unit.

    Attributes:
        mean, sd: of the reference draws.
        shift: our mean minus theirs, in their sds.
        shift_error: Monte Carlo standard error of `shift`, both sides counted.
        ratio: our sd over theirs.
        ratio_error: Monte Carlo standard error of `ratio`.
        r_hat: rank-normalised, split.
        bulk, tail: effective sample sizes.
        has_variance: whether the posterior's variance is finite; else `ratio` estimates nothing.
    """

    name: str
    mean: float
    sd: float
    shift: float
    shift_error: float
    ratio: float
    ratio_error: float
    r_hat: float
    bulk: float
    tail: float
    has_variance: bool

    @property
    def holds(self) -> bool:
        """True if the row is inside the asked bounds; a bound on a variance that does not exist is not asked."""
        spread = 0.93 <= self.ratio <= 1.07 or not self.has_variance
        return abs(self.shift) <= 0.1 and spread and self.r_hat < 1.01

    def __str__(self) -> str:
        ratio = f"{self.ratio:.3f} ± {self.ratio_error:.3f}" if self.has_variance else f"({self.ratio:.2f})"
        moments = f"{self.mean:.4g} | {self.sd:.4g} | {self.shift:+.3f} ± {self.shift_error:.3f} | {ratio}"
        return f"| {self.name} | {moments} | {self.r_hat:.4f} | {self.bulk:.0f} | {self.tail:.0f} |"


BACKEND = HMC(draws=2500)
HEADER = (
    "| parameter | reference mean | reference sd | shift, sd | sd ratio | R-hat | bulk ESS | tail ESS |\n"
    + 8 * "|---"
    + "|"
)


def statistic(name: str, values: np.ndarray, **options) -> float:
    """One of ArviZ's array statistics, of (chains, draws)."""
    return float(getattr(array_stats, name)(values, chain_axis=0, draw_axis=1, **options))


def compare(problem: Problem, samples: dict, reference: dict[str, np.ndarray]) -> list[Row]:
    """Samples {site: (chains, draws, ...)} against the reference draws, parameter by parameter."""
    rows = []
    for name, ours in problem.columns(samples, reference).items():
        theirs = reference[name]
        sd = theirs.std()
        error = {m: np.hypot(*(statistic("mcse", x, method=m) for x in (ours, theirs))) / sd for m in ("mean", "sd")}
        r_hat = statistic("rhat", ours)
        bulk, tail = statistic("ess", ours, method="bulk"), statistic("ess", ours, method="tail", prob=(0.05, 0.95))
        shift, ratio = (ours.mean() - theirs.mean()) / sd, ours.std() / sd
        spread = name not in problem.heavy
        rows.append(Row(name, theirs.mean(), sd, shift, error["mean"], ratio, error["sd"], r_hat, bulk, tail, spread))
    return rows


def other_steps(problem: Problem, posterior, data, reference) -> list[str]:
    """Sensitivity of the result to the solver's steps: our own draws weighted by the density under other steps.

    One line each: steps, the largest change of a mean in sds, and of an sd as a ratio; `heavy` ones by logarithm only.
    """
    with jax.enable_x64(True):
        samples = posterior.samples(jax.random.key(0), group_by_chain=True)
        flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in samples.items()}

        def density(substeps):
            model = partial(problem.model, substeps=substeps)

            def density_of(sites):
                return log_density(model, (data,), {}, sites)[0]

            return np.asarray(jax.jit(lambda sites: jax.lax.map(density_of, sites, batch_size=1000))(flat))

        steps = [problem.substeps // 2, 2 * problem.substeps, 4 * problem.substeps]
        here, *others = (density(n) for n in (problem.substeps, *steps))
    columns = {k: v.ravel() for k, v in problem.columns(samples, reference).items() if k not in problem.heavy}
    lines = []
    for n, there in zip(steps, others, strict=True):
        weights = np.exp(there - here)
        weights /= weights.sum()
        moved, spread = 0.0, 0.0
        for values in columns.values():
            mean = weights @ values
            moved = max(moved, abs(mean - values.mean()) / values.std())
            spread = max(spread, abs(np.sqrt(weights @ (values - mean) ** 2) / values.std() - 1))
        lines.append(f"| {n} | {moved:.5f} | {spread:.5f} |")
    return lines


def study(problem: Problem, folder: Path, backend: HMC, seed: int = 0) -> tuple[list[Row], str]:
    """Fit and compare: the rows, and the section of the page."""
    data, reference = problem.load(folder)
    start = time.perf_counter()
    posterior = pp.fit(jax.random.key(seed), problem.model, data, backend)
    seconds = time.perf_counter() - start
    stats = {name: np.asarray(value) for name, value in posterior.sample_stats().items()}
    rows = compare(problem, posterior.samples(jax.random.key(0), group_by_chain=True), reference)
    lines = [f"## {problem.title}", "", HEADER, *map(str, rows), ""]
    lines.append(
        f"{backend.chains} chains of {backend.draws} draws after {backend.warmup} of warm-up, "
        f"{stats['diverging'].sum()} divergences, {stats['n_steps'].mean():.1f} leapfrog steps a draw, "
        f"{seconds:.0f} s with compiling. {'All rows hold' if all(r.holds for r in rows) else 'NOT ALL ROWS HOLD'}."
    )
    for name in problem.heavy:
        sds = reference[name].std(axis=1)
        lines.append(f"The sds of {name} in the ten reference chains go from {sds.min():.2f} to {sds.max():.2f}.")
    lines += ["", f"| steps, not {problem.substeps} | largest shift of a mean, sd | largest change of an sd, ratio |"]
    lines += ["|---|---|---|", *other_steps(problem, posterior, data, reference)]
    return rows, "\n".join(lines)


PAGE = """# Trusted posteriors of two ODE models

    PHYSPPL_DATA=... python examples/posteriordb.py --write

{date}, commit {commit}, Python {python}, {cores} CPU cores, double precision.

The reference draws are posteriordb's: 10,000 of Stan's in ten chains, with adaptive solvers. Here the models are
ordinary NumPyro programs of one data object: their ODE part is `pp.rollout` with fixed Runge-Kutta steps, and the fit
is `pp.fit(key, model, data, HMC(...))` at its default settings, only with more draws.

Asked: means within 0.1 of the reference's sd, sd ratios from 0.93 to 1.07, R-hat (rank-normalised) below 1.01. What
follows ± is the Monte Carlo standard error, both sides counted.

**Two sds cannot be compared, for they do not exist.** Where K_m and V_m grow together, elimination becomes a
first-order law, the likelihood tends to a positive constant, and the two half-Cauchy priors leave a density that falls
with K_m^-3: the mean is finite, the variance is not. The reference's own chains disagree about it, as stated below the
table. The ratio of such sds stands in brackets and nothing is asked of it; the logarithms, whose moments exist, are
held to all bounds.

The second program samples V_m through the elimination rate at the mean concentration, with the prior that makes V_m
half-Cauchy again: the same posterior in coordinates that the data determine one by one.

The result does not depend on the solver's steps: the last table of each model weights our draws by the density under
other numbers of steps between two measurements, and states how far any mean moves, in sds, and any sd.

"""


def main() -> None:
    folder = os.environ.get("PHYSPPL_DATA")
    if not folder:
        raise SystemExit("PHYSPPL_DATA must name the folder that holds posteriordb.")
    sections = []
    for problem in PROBLEMS.values():
        _, section = study(problem, Path(folder), BACKEND)
        print(section, end="\n\n", flush=True)
        sections.append(section)
    if "--write" in sys.argv[1:]:
        path = page.ROOT / "docs" / "results" / "posteriordb.md"
        head = PAGE.format(
            date=datetime.date.today(),
            commit=page.commit(),
            python=".".join(map(str, sys.version_info[:2])),
            cores=os.cpu_count(),
        )
        path.write_text(head + "\n\n".join(sections) + "\n")
        print(path)


if __name__ == "__main__":
    main()
