"""Simulation-based calibration: over data sets whose truth is known, do beliefs say what they should?

S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman, arXiv 1804.06788: truths from the prior, data from the
truths; then the rank of a truth among draws of its own posterior is uniform, whatever the model.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray
from numpyro import handlers

from physppl.data.trajectories import Trajectories
from physppl.data.transitions import Transitions
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.evaluation import calibration_plots, rank_tests
from physppl.evaluation.calibration_checks import check_arguments
from physppl.evaluation.scoring_rules import LEVELS
from physppl.internal.errors import FitError, Status
from physppl.internal.parallel import parallel_vmap
from physppl.internal.precision import doubles
from physppl.internal.progress import bar
from physppl.posterior.backend import Backend

SAME = 1e-12  # of their size: what a draw and a truth that are equal may differ by
INDEPENDENT = 0.5  # share of the draws that should count


@dataclass(frozen=True, eq=False)
class Calibration:
    """Truths and what the beliefs about them said, with the verdict; print it.

    Attributes:
        method: name of the backend.
        names: of the Q quantities.
        truths: (N, Q), in the quantities' units.
        draws: (N, L, Q), of each belief.
        status: (N,), how each fit ended (`physppl.Status`).
        level: family-wise probability of rejecting a right backend: over all quantities, and two tests of each.
    """

    method: str
    names: tuple[str, ...]
    truths: Float[np.ndarray, "N Q"]
    draws: Float[np.ndarray, "N L Q"]
    status: Int[np.ndarray, " N"]
    level: float

    @property
    def failed(self) -> int:
        """Fits without a belief; they have no rank, and no backend passes with one."""
        return int(np.sum(~self._usable()))

    @property
    def ranks(self) -> Int[np.ndarray, "M Q"]:
        """Of each truth among its L draws, 0 to L, for the M fits that did not fail; among equals by lot."""
        usable = self._usable()
        draws, truths = self.draws[usable], self.truths[usable, None]
        tied = np.abs(draws - truths) <= SAME * np.maximum(np.abs(draws), np.abs(truths))
        below, ties = np.sum((draws < truths) & ~tied, axis=1), np.sum(tied, axis=1)
        return below + np.random.default_rng(1).integers(0, ties + 1)

    @property
    def values(self) -> Float[np.ndarray, "M Q"]:
        """The ranks spread over [0, 1]: uniform where the backend is calibrated."""
        return rank_tests.spread_ranks(np.random.default_rng(0), self.ranks, self.draws.shape[1])

    @property
    def each(self) -> float:
        """Level of each single test (Bonferroni)."""
        return self.level / (2 * len(self.names))

    @property
    def table(self) -> list[dict]:
        """One row a quantity: name, ks and coverage (p of the two tests), covered ({level: share}), rejected, and the
        share of the draws that count, `effective`."""
        rows = []
        for name, values, share in zip(self.names, self.values.T, self._effective(), strict=True):
            p = {"ks": rank_tests.ks(values), "coverage": rank_tests.coverage(values)}
            covered = {level: rank_tests.inside(values, level) / len(values) for level in LEVELS}
            rejected = min(p.values()) < self.each
            rows.append({"name": name, **p, "covered": covered, "rejected": rejected, "effective": float(share)})
        return rows

    @property
    def rejected(self) -> bool:
        """A test of some quantity rejects the fits that did not fail."""
        return any(row["rejected"] for row in self.table)

    @property
    def passed(self) -> bool:
        """No test rejects, and no fit failed."""
        return self.failed == 0 and not self.rejected

    def planted(self, *, scale: float = 1.0, bias: float = 0.0) -> "Calibration":
        """The same fits with a defect: every belief's sd times `scale`, its mean off by `bias` sds.

        With a defect that matters it must be `rejected`, or there were too few data sets to tell.
        """
        mean, sd = self.draws.mean(axis=1, keepdims=True), self.draws.std(axis=1, keepdims=True)
        moved = mean + scale * (self.draws - mean) + bias * sd
        return dataclasses.replace(self, draws=moved, method=f"{self.method} (sd x {scale:g}, bias {bias:g} sd)")

    @staticmethod
    def pool(parts: "Sequence[Calibration]") -> "Calibration":
        """Several calibrations of one backend on the same quantities, as one.

        Raises:
            ValueError: for calibrations of different quantities or numbers of draws.
        """
        first = parts[0]
        for part in parts:
            if part.names != first.names or part.draws.shape[1:] != first.draws.shape[1:]:
                raise ValueError("pool: calibrations of different quantities, or with different numbers of draws.")
        join = lambda name: np.concatenate([getattr(part, name) for part in parts])  # noqa: E731
        return dataclasses.replace(first, **{name: join(name) for name in ("truths", "draws", "status")})

    def to_arviz(self):
        """A DataTree whose group `prior_sbc` holds the ranks as shares, for `arviz_plots.plot_ecdf_pit`."""
        from arviz_base import from_dict

        values = {name.replace("/", "."): v[None] for name, v in zip(self.names, self.values.T, strict=True)}
        return from_dict({"prior_sbc": values})

    def plot(self):
        """Figure: how far the distribution of ranks strays from the diagonal, and coverage, with their bands."""
        return calibration_plots.calibration(self)

    def _usable(self):
        finite = np.isfinite(self.draws).all(axis=(1, 2)) & np.isfinite(self.truths).all(axis=1)
        return finite & ~np.isin(self.status, (Status.NONFINITE, Status.NOT_POSITIVE_DEFINITE))

    def _effective(self) -> Float[np.ndarray, " Q"]:
        """Share of the draws that count, by their autocorrelation of order one: the median over fits."""
        draws = self.draws[self._usable()]
        apart = draws - draws.mean(axis=1, keepdims=True)
        square, lagged = np.sum(apart**2, axis=1), np.sum(apart[:, 1:] * apart[:, :-1], axis=1)
        moves = square > SAME**2 * np.sum(draws**2, axis=1)
        correlation = np.divide(lagged, square, out=np.zeros_like(square), where=moves)
        return np.median((1 - correlation) / (1 + correlation), axis=0)

    def __str__(self) -> str:
        table, count, width = self.table, len(self.ranks), max(len(name) for name in (*self.names, "quantity"))
        low, high = rank_tests.coverage_band(count, rank_tests.COVERED, self.each)
        verdict = "rejected" if self.rejected else "not rejected"
        head = f"{self.method}: {verdict} at the family-wise level {self.level:g} | {count} data sets, "
        lines = [head + f"{self.draws.shape[1]} draws each"]
        if self.failed:
            failed = "1 fit failed and has no rank" if self.failed == 1 else f"{self.failed} fits failed, without ranks"
            lines.append(f"not passed: {failed}")
        others = {
            Status(s).name.lower().replace("_", " "): int(n)
            for s, n in zip(*np.unique(self.status, return_counts=True), strict=True)
        }
        others = {name: n for name, n in others.items() if name != "ok"}
        if others:
            lines.append("fits that ended otherwise than ok: " + ", ".join(f"{n} {name}" for name, n in others.items()))
        lines.append(f"each test at {self.each:.2g}; accepted coverage of the 90 % interval: {low:.3f} to {high:.3f}")
        lines.append(f"{'quantity':{width}}  {'KS p':>8}  {'cover p':>8}  " + "  ".join(f"{x:>5.0%}" for x in LEVELS))
        for row in table:
            shares = "  ".join(f"{share:5.3f}" for share in row["covered"].values())
            mark = "  rejected" if row["rejected"] else ""
            lines.append(f"{row['name']:{width}}  {row['ks']:8.2g}  {row['coverage']:8.2g}  {shares}{mark}")
        if few := [row for row in table if row["effective"] < INDEPENDENT]:
            names, share = ", ".join(row["name"] for row in few), min(row["effective"] for row in few)
            lines.append(
                f"note: draws of {names} depend on each other and count for {share:.0%} of their number: ranks of"
            )
            lines.append("a right belief are then not uniform either. Give the backend more `draws`.")
        return "\n".join(lines)


def calibrate(
    key: PRNGKeyArray,
    model: Dynamics,
    design: Transitions | Trajectories,
    backend: Backend,
    *,
    datasets: int = 200,
    draws: int = 99,
    at: Transitions | None = None,
    level: float = 1e-3,
    batch: int = 50,
    progress: bool | None = None,
) -> Calibration:
    """Fit data sets simulated from the prior, and see where each truth lies among draws of its belief.

    Fits run `batch` at a time in one compiled program, shared out among the devices.

    Args:
        design: what every data set has in common: states and actions, or the inputs of recordings and their `start`,
            from which first states are drawn. Outcomes are simulated; those in it are not looked at.
        datasets: N; more of them begin with the same ones. `rank_tests.power` tells what so many can see.
        draws: L of each belief; of a sampler's draws so many evenly spaced ones, which should be independent.
        at: rank the next state at these inputs, process noise excluded, in place of the sites: the one way for beliefs
            about functions that are no longer tied to sites.
        level: family-wise.
        progress: a bar; by default on a terminal.

    Raises:
        TypeError: for a model that is not a Dynamics, a backend that is none, or other data.
        ValueError: for counts that are not positive, a level outside (0, 1), a design that does not fit the spaces, is
            of a fleet or without the recordings' start; for a program that observes something itself, or a backend that
            gives fewer draws.
        FitError: where no fit ends in a belief.
    """
    check_arguments(key, model, design, backend, at, level, datasets=datasets, draws=draws, batch=batch)
    found = []
    with jax.enable_x64(True):
        design = doubles(design.inputs)
        at = None if at is None else doubles(at.inputs)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(datasets))
        batch = min(batch, datasets)
        starts = range(0, datasets, batch)
        for start in bar(starts, f"calibrating {type(backend).__name__}", progress):
            rows = np.arange(start, start + batch) % datasets  # of the last batch the surplus is dropped
            truths, drawn, status = jax.device_get(_batch(keys[rows], model, design, backend, at, draws))
            kept = slice(0, min(batch, datasets - start))
            found.append((jax.tree.map(lambda x, kept=kept: x[kept], (truths, drawn)), status[kept]))
    truths, drawn = ([_columns(tree[i], lead) for tree, _ in found] for i, lead in ((0, 1), (1, 2)))
    names = _names(found[0][0][0], model, at)
    status = np.concatenate([s for _, s in found])
    found = Calibration(type(backend).__name__, names, np.concatenate(truths), np.concatenate(drawn), status, level)
    if found.failed == datasets:
        raise FitError(f"calibrate: all fits failed: {Status(int(status[0])).remedy}.")
    return found


@eqx.filter_jit
def _batch(keys, model, design, backend, at, draws: int):
    def one(key):
        truth_key, fit_key, draw_key = jax.random.split(key, 3)
        trace = handlers.trace(handlers.seed(model, truth_key)).get_trace(design)
        data = design.with_outcomes(trace[model.likelihood(design).site]["value"])
        truth = {name: trace[name]["value"] for name in UnconstrainedSpace.of(model, data).names}
        posterior = backend.fit(fit_key, model, data)
        if at is not None:
            values = lambda f: {"f": jax.vmap(f)(at.states, at.actions, at.times)}  # noqa: E731
            drawn = jax.vmap(lambda key: values(posterior._draw(key)))(jax.random.split(draw_key, draws))
            return values(model.bind(truth)), drawn, posterior.status
        samples = {k: v.reshape(-1, *v.shape[2:]) for k, v in posterior._samples(draw_key, draws).items()}
        if (count := len(next(iter(samples.values())))) < draws:
            raise ValueError(
                f"calibrate: {type(backend).__name__} gives {count} draws of each belief, and ranks need {draws}. Give "
                f"the backend more `draws`, or calibrate with draws={count}."
            )
        pick = lambda x: x[jnp.linspace(0, len(x) - 1, draws).round().astype(int)]  # noqa: E731
        return truth, {name: pick(samples[name]) for name in truth}, posterior.status

    return parallel_vmap(one, keys)


def _columns(tree, lead: int) -> np.ndarray:
    """{quantity: (..., *shape)} as one matrix (..., Q)."""
    return np.concatenate([np.asarray(x).reshape(*x.shape[:lead], -1) for x in tree.values()], axis=-1)


def _names(truth: dict, model: Dynamics, at) -> tuple[str, ...]:
    if at is not None:
        return tuple(f"{name} at {i}" for i in range(len(at)) for name in model.state.names)
    names = []
    for name, value in truth.items():
        indices = np.ndindex(value.shape[1:])
        names += [name + (f"[{','.join(map(str, i))}]" if i else "") for i in indices]
    return tuple(names)
