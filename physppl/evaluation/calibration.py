"""Simulation-based calibration: ranks of known truths among posterior draws, over simulated data sets.

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

from physppl.data.data import Data
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

SAME = 1e-12  # relative difference up to which a draw and a truth count as equal
INDEPENDENT = 0.5  # effective share of the draws below which a note is printed


@dataclass(frozen=True, eq=False)
class Calibration:
    """Truths, posterior draws and the verdict of the tests; print it.

    Attributes:
        method: name of the backend.
        names: names of the Q quantities.
        truths: (N, Q), in the quantities' units.
        draws: (N, L, Q), of each posterior.
        status: (N,), how each fit ended (`physppl.Status`).
        level: family-wise probability of rejecting a correct backend: over all quantities, with two tests each.
    """

    method: str
    names: tuple[str, ...]
    truths: Float[np.ndarray, "N Q"]
    draws: Float[np.ndarray, "N L Q"]
    status: Int[np.ndarray, " N"]
    level: float

    @property
    def failed(self) -> int:
        """Number of fits without a usable posterior; they have no rank, and no backend passes with one."""
        return int(np.sum(~self._usable()))

    @property
    def ranks(self) -> Int[np.ndarray, "M Q"]:
        """Rank of each truth among its L draws, 0 to L, for the M fits that did not fail; ties are broken at random."""
        usable = self._usable()
        draws, truths = self.draws[usable], self.truths[usable, None]
        tied = np.abs(draws - truths) <= SAME * np.maximum(np.abs(draws), np.abs(truths))
        below, ties = np.sum((draws < truths) & ~tied, axis=1), np.sum(tied, axis=1)
        return below + np.random.default_rng(1).integers(0, ties + 1)

    @property
    def values(self) -> Float[np.ndarray, "M Q"]:
        """Ranks mapped to [0, 1]: uniform where the backend is calibrated."""
        return rank_tests.spread_ranks(np.random.default_rng(0), self.ranks, self.draws.shape[1])

    @property
    def each(self) -> float:
        """Level of each test (Bonferroni)."""
        return self.level / (2 * len(self.names))

    @property
    def table(self) -> list[dict]:
        """One row per quantity: name, ks and coverage (p of the two tests), covered ({level: share}), rejected, and
        `effective`, the effective share of the draws."""
        rows = []
        for name, values, share in zip(self.names, self.values.T, self._effective(), strict=True):
            p = {"ks": rank_tests.ks(values), "coverage": rank_tests.coverage(values)}
            covered = {level: rank_tests.inside(values, level) / len(values) for level in LEVELS}
            rejected = min(p.values()) < self.each
            rows.append({"name": name, **p, "covered": covered, "rejected": rejected, "effective": float(share)})
        return rows

    @property
    def rejected(self) -> bool:
        """True if a test of some quantity rejects, on the fits that did not fail."""
        return any(row["rejected"] for row in self.table)

    @property
    def passed(self) -> bool:
        """True if no test rejects and no fit failed."""
        return self.failed == 0 and not self.rejected

    def planted(self, *, scale: float = 1.0, bias: float = 0.0) -> "Calibration":
        """The same fits with a planted defect: each posterior's sd times `scale`, its mean shifted by `bias` sds.

        With a defect of relevant size it must be `rejected`; otherwise there are too few data sets to detect it.
        """
        mean, sd = self.draws.mean(axis=1, keepdims=True), self.draws.std(axis=1, keepdims=True)
        draws = mean + scale * (self.draws - mean) + bias * sd
        return dataclasses.replace(self, draws=draws, method=f"{self.method} (sd x {scale:g}, bias {bias:g} sd)")

    @staticmethod
    def pool(parts: "Sequence[Calibration]") -> "Calibration":
        """Merge several calibrations of one backend on the same quantities.

        Raises:
            ValueError: for calibrations of different quantities or numbers of draws.
        """
        first = parts[0]
        for part in parts:
            if part.names != first.names or part.draws.shape[1:] != first.draws.shape[1:]:
                raise ValueError("pool: calibrations of different quantities, or with different numbers of draws.")
        merged = {x: np.concatenate([getattr(part, x) for part in parts]) for x in ("truths", "draws", "status")}
        return dataclasses.replace(first, **merged)

    def to_arviz(self):
        """DataTree whose group `prior_sbc` holds the ranks as shares, for `arviz_plots.plot_ecdf_pit`."""
        from arviz_base import from_dict

        values = {name.replace("/", "."): v[None] for name, v in zip(self.names, self.values.T, strict=True)}
        return from_dict({"prior_sbc": values})

    def plot(self):
        """Figure of the deviations of ranks from uniform and of coverage from nominal, with their acceptance bands."""
        return calibration_plots.calibration(self)

    def _usable(self):
        finite = np.isfinite(self.draws).all(axis=(1, 2)) & np.isfinite(self.truths).all(axis=1)
        return finite & ~np.isin(self.status, (Status.NONFINITE, Status.NOT_POSITIVE_DEFINITE))

    def _effective(self) -> Float[np.ndarray, " Q"]:
        """Effective share of the draws, (1 - r) / (1 + r) with the lag-one autocorrelation r: the median over fits."""
        draws = self.draws[self._usable()]
        deviations = draws - draws.mean(axis=1, keepdims=True)
        square = np.sum(deviations**2, axis=1)
        lagged = np.sum(deviations[:, 1:] * deviations[:, :-1], axis=1)
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
        counts = zip(*np.unique(self.status, return_counts=True), strict=True)
        not_ok = [f"{n} {Status(s).name.lower().replace('_', ' ')}" for s, n in counts if s != Status.OK]
        if not_ok:
            lines.append("fits that ended otherwise than ok: " + ", ".join(not_ok))
        lines.append(f"each test at {self.each:.2g}; accepted coverage of the 90 % interval: {low:.3f} to {high:.3f}")
        lines.append(f"{'quantity':{width}}  {'KS p':>8}  {'cover p':>8}  " + "  ".join(f"{x:>5.0%}" for x in LEVELS))
        for row in table:
            shares = "  ".join(f"{share:5.3f}" for share in row["covered"].values())
            mark = "  rejected" if row["rejected"] else ""
            lines.append(f"{row['name']:{width}}  {row['ks']:8.2g}  {row['coverage']:8.2g}  {shares}{mark}")
        if few := [row for row in table if row["effective"] < INDEPENDENT]:
            names, share = ", ".join(row["name"] for row in few), min(row["effective"] for row in few)
            lines.append(
                f"note: draws of {names} depend on each other and count for {share:.0%} of their number: ranks under"
            )
            lines.append("a correct posterior are then not uniform either. Give the backend more `draws`.")
        return "\n".join(lines)


def calibrate(
    key: PRNGKeyArray,
    model: Dynamics,
    design: Data,
    backend: Backend,
    *,
    datasets: int = 200,
    draws: int = 99,
    at: Transitions | None = None,
    level: float = 1e-3,
    batch: int = 50,
    progress: bool | None = None,
) -> Calibration:
    """Fit data sets simulated from the prior, and rank each truth among draws of its posterior.

    Fits run `batch` at a time in one compiled program, shared out among the devices.

    Args:
        design: the inputs of every data set: states and actions, or the actions of recordings and their `start`, from
            which first states are drawn. Outcomes are simulated; those of the design are ignored.
        datasets: N; a larger N extends the same sequence. `rank_tests.power` gives the power at this number.
        draws: L of each posterior; of a sampler's draws L evenly spaced ones, which should be independent.
        at: rank the next state at these inputs, process noise excluded, in place of the sites: the only way for
            posteriors over functions that are not parametrised by the model's sites.
        level: family-wise.
        progress: a bar; by default on a terminal.

    Raises:
        TypeError: for a model that is not a Dynamics, a backend that is not a Backend, or other data.
        ValueError: for counts that are not positive, a level outside (0, 1), a design that does not fit the spaces, is
            of a fleet or without the recordings' start; for a program with observed sites, or a backend that gives
            fewer draws.
        FitError: where all fits fail.
    """
    check_arguments(key, model, design, backend, at, level, datasets=datasets, draws=draws, batch=batch)
    batches = []
    with jax.enable_x64(True):
        design = doubles(design.inputs)
        at = None if at is None else doubles(at.inputs)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(datasets))
        batch = min(batch, datasets)
        starts = range(0, datasets, batch)
        for start in bar(starts, f"calibrating {type(backend).__name__}", progress):
            rows = np.arange(start, start + batch) % datasets  # the surplus of the last batch is dropped
            batches.append(jax.device_get(_batch(keys[rows], model, design, backend, at, draws)))
    truths, samples, status = zip(*batches, strict=True)
    names, status = _names(truths[0], model, at), np.concatenate(status)[:datasets]
    truths = np.concatenate([_columns(tree, 1) for tree in truths])[:datasets]
    samples = np.concatenate([_columns(tree, 2) for tree in samples])[:datasets]
    calibration = Calibration(type(backend).__name__, names, truths, samples, status, level)
    if calibration.failed == datasets:
        raise FitError(f"calibrate: all fits failed: {Status(int(status[0])).remedy}.")
    return calibration


@eqx.filter_jit
def _batch(keys, model, design, backend, at, draws: int):
    def dataset(key):
        truth_key, fit_key, draw_key = jax.random.split(key, 3)
        trace = handlers.trace(handlers.seed(model, truth_key)).get_trace(design)
        data = design.with_outcomes(trace[model.likelihood(design).site]["value"])
        truth = {name: trace[name]["value"] for name in UnconstrainedSpace.of(model, data).names}
        posterior = backend.fit(fit_key, model, data)
        if at is not None:

            def values(transition):
                return {"f": jax.vmap(transition)(at.states, at.actions, at.times)}

            samples = jax.vmap(lambda key: values(posterior._draw(key)))(jax.random.split(draw_key, draws))
            return values(model.bind(truth)), samples, posterior.status
        samples = {k: v.reshape(-1, *v.shape[2:]) for k, v in posterior._samples(draw_key, draws).items()}
        if (count := len(next(iter(samples.values())))) < draws:
            raise ValueError(
                f"calibrate: {type(backend).__name__} gives {count} draws of each posterior, and ranks need {draws}. "
                f"Give the backend more `draws`, or calibrate with draws={count}."
            )
        indices = jnp.linspace(0, count - 1, draws).round().astype(int)
        return truth, {name: samples[name][indices] for name in truth}, posterior.status

    return parallel_vmap(dataset, keys)


def _columns(tree, lead: int) -> np.ndarray:
    """Concatenate {quantity: (..., *shape)} to one matrix (..., Q)."""
    return np.concatenate([np.asarray(x).reshape(*x.shape[:lead], -1) for x in tree.values()], axis=-1)


def _names(truth: dict, model: Dynamics, at) -> tuple[str, ...]:
    if at is not None:
        return tuple(f"{name} at {i}" for i in range(len(at)) for name in model.state.names)
    names = []
    for name, value in truth.items():
        indices = np.ndindex(value.shape[1:])
        names += [name + (f"[{','.join(map(str, i))}]" if i else "") for i in indices]
    return tuple(names)
