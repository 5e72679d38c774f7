"""One verdict on a fit, with its reasons and their remedies."""

import copy
import importlib
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from physppl.data.transitions import Transitions
from physppl.density.moments import belief, local, log_joint
from physppl.dynamics import Dynamics
from physppl.internal.errors import R_HAT_LIMIT, Status
from physppl.posterior.base import Posterior
from physppl.posterior.identifiability import UNDETERMINED, identifiability, parameters
from physppl.posterior.summary import EDGE, VERDICTS, amount, summarise

OK, DOUBTFUL, UNUSABLE = "ok", "doubtful", "unusable"
GRADIENT = 0.015  # posterior sds from the mode: what a Laplace fit of recordings stops at
SHIFT = 0.1  # posterior sds, in the direction that moves most, by which a finer solver may move the estimate
PROBE = 0.01  # posterior sds: of central differences of the log density, which is nearly quadratic over them
FINER = 4  # times as many sub-steps
FINEST = 256  # times as many sub-steps: beyond, the field rather than the step is to be changed
# Rank-normalised split R-hat and effective draws per chain: A. Vehtari, A. Gelman, D. Simpson, B. Carpenter,
# P. Buerkner, Bayesian Analysis 16, 2021.
R_HAT, EFFECTIVE = 1.01, 100
# Of the draws of a Gaussian belief, weighted by the posterior itself, so many must count; in many dimensions the
# weights tell nothing.
COUNTING, WEIGHED, DIMENSIONS = 0.1, 200, 20
MISSED = 0.1  # of a function prior's variance: a network with less cannot say within a tenth how sure the prior is
BFMI = 0.3  # energy transitions below it are slow (M. Betancourt, arXiv 1604.00695)
ALONE = 0.95  # largest entry of a combination that is one parameter and rounding
LISTED = 3  # combinations that are named

Figures = dict[str, float | int]


@dataclass(frozen=True)
class Reason:
    """Why a verdict is not `ok`: how bad it is, what was found, and what to do."""

    verdict: str
    finding: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.finding}. {self.remedy[0].upper()}{self.remedy[1:]}."


@dataclass(frozen=True)
class Check:
    """One verdict; print it.

    Attributes:
        header: what was fitted, and how.
        reasons: the worst first; none for a fit that is ok.
        figures: {name: value} of what was measured, whatever came out.
    """

    header: str
    reasons: tuple[Reason, ...]
    figures: Figures

    @property
    def verdict(self) -> str:
        """`ok`, `doubtful` (usable with care for the reasons), or `unusable`."""
        return self.reasons[0].verdict if self.reasons else OK

    def __str__(self) -> str:
        measured = "measured: " + ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in self.figures.items())
        return "\n".join([f"{self.verdict} | {self.header}", *(f"- {reason}" for reason in self.reasons), measured])


def check(posterior: Posterior, key: PRNGKeyArray | None = None) -> Check:
    """Whether a fit deserves trust: its numerics, what the data left open, and the solver's error.

    - the mode: posterior sds left to it; whether the posterior around it is the Gaussian that the belief is;
    - the sampler: R-hat, effective draws, divergences, energy;
    - features: what of its prior a function-space belief's miss; whether learned ones are more than the data;
    - the data: parameters on which nothing depends, combinations that stay at the prior, beliefs at the prior's edge;
    - the solver: how far one Gauss-Newton step with 4 times finer sub-steps moves the estimate.

    Args:
        key: of the draws that summaries take; `jax.random.key(0)` by default.
    """
    posterior = getattr(posterior, "fleet", posterior)  # of one machine, the fit of all
    reasons, figures = _status(posterior), {}
    if not reasons and hasattr(posterior, "space"):
        with jax.enable_x64(True):
            for part in (_sampler if posterior.sample_stats() else _mode, _features, _solver):
                found, measured = part(posterior)
                reasons, figures = reasons + found, figures | measured
        found, measured = _data(posterior, jax.random.key(0) if key is None else key)
        reasons, figures = reasons + found, figures | measured
    reasons.sort(key=lambda reason: reason.verdict != UNUSABLE)
    header = " | ".join([posterior.method, str(posterior.model), *amount(posterior.data)])
    return Check(header, tuple(reasons), figures)


def _status(posterior) -> list[Reason]:
    """A fit without a finite density or covariance ends here."""
    status = Status(int(posterior.status))
    if status not in (Status.NONFINITE, Status.NOT_POSITIVE_DEFINITE):
        return []
    finding, _, remedy = status.remedy.partition(": ")
    return [Reason(UNUSABLE, finding, remedy)]


def _mode(posterior) -> tuple[list[Reason], Figures]:
    if hasattr(posterior, "points"):  # a belief held as draws, but not a sampler's
        return [], {}
    z, factor = posterior.mode, posterior.factor
    if by_evidence := getattr(posterior, "by_evidence", False):  # the joint density has its maximum elsewhere
        distance = float(jnp.sqrt(posterior.decrement))
        close = int(posterior.status) == Status.OK
    else:
        _, gradient, _ = local(posterior.space, posterior.model, posterior.data, z)
        distance = float(jnp.linalg.norm(factor @ gradient))
        close = distance <= GRADIENT
    reasons, figures = [], {"sds_to_the_mode": distance}
    if not close:
        finding = f"the search ended {distance:.2g} posterior sds from the mode"
        verdict = DOUBTFUL if distance < 1 else UNUSABLE
        remedy = "raise `steps` or `starts` of the backend"
        converged = getattr(posterior, "decrement", 1.0) <= GRADIENT**2
        if converged and not by_evidence:  # on new data alone
            remedy = "fit all of `posterior.data` at once, or update without `recursive`"
        reasons.append(Reason(verdict, finding, remedy))
    elif len(z) <= DIMENSIONS and not getattr(posterior, "linearised", False):
        noise = jax.random.normal(jax.random.key(0), (WEIGHED, len(z)), z.dtype)
        logs = log_joint(posterior.space, posterior.model, posterior.data, z + noise @ factor)
        logs = jnp.where(jnp.isfinite(logs), logs, -jnp.inf) + 0.5 * jnp.sum(noise**2, axis=1)
        counting = figures["draws_that_count"] = float(1 / jnp.sum(jax.nn.softmax(logs) ** 2) / WEIGHED)
        if not counting >= COUNTING:
            finding = f"the posterior is no Gaussian in virtual space: {counting:.1%} of the belief's draws count"
            remedy = "draw Laplace(linearised=True), sample with HMC, or settle what the data leave open"
            reasons.append(Reason(DOUBTFUL, finding, remedy))
    return reasons, figures


def _features(posterior) -> tuple[list[Reason], Figures]:
    if not hasattr(posterior, "missed"):  # no belief about functions in the place of another
        return _chosen(posterior)
    share = float(np.max(np.asarray(posterior.missed)))
    reasons = []
    if not share <= MISSED:
        finding = f"the features miss {share:.0%} of the function prior's variance over the measure"
        remedy = "raise `width`, and with it `points` and `steps`, or give `features` that span the prior's functions"
        reasons.append(Reason(DOUBTFUL, finding, remedy))
    return reasons, {"missed": share}


def _chosen(posterior) -> tuple[list[Reason], Figures]:
    """What has no prior fits the data by itself where it is more than they are (docs/results/every_belief.md)."""
    count = sum(np.size(value) for value in posterior.space.params.values())
    if not count or not isinstance(posterior.data, Transitions):
        return [], {}
    outcomes = int(np.sum(posterior.data.valid)) * np.shape(posterior.data.states)[-1]
    reasons = []
    if count > outcomes:
        finding = f"{count} numbers without a prior were chosen from {outcomes} outcomes: the belief is far too sure"
        remedy = "take fixed features (`residual` without `learned`), FunctionSpaceVI or an Ensemble, or give more data"
        reasons.append(Reason(DOUBTFUL, finding, remedy))
    return reasons, {"chosen_without_a_prior": count}


def _sampler(posterior) -> tuple[list[Reason], Figures]:
    stats_of: Any = importlib.import_module("arviz_stats")  # a second to import
    points, stats = np.asarray(posterior.points), jax.tree.map(np.asarray, posterior.sample_stats())
    chains, draws = points.shape[:2]
    names = [name for _, name, _ in parameters(posterior.space, posterior.model, posterior.data)]
    halves = points if chains > 1 else points[:, : draws // 2 * 2].reshape(2, draws // 2, -1)
    r_hat = np.asarray(stats_of.rhat(halves))
    effective = {
        "bulk": np.asarray(stats_of.ess(points, method="bulk")),
        "tail": np.asarray(stats_of.ess(points, method="tail", prob=(0.05, 0.95))),
    }
    figures = {"r_hat": float(np.max(r_hat))} | {f"ess_{k}": float(np.min(v)) for k, v in effective.items()}
    reasons = []
    if not figures["r_hat"] <= R_HAT:  # also where it is not a number: a chain that never moved
        finding = f"the chains disagree about {names[int(np.argmax(r_hat))]} (R-hat {figures['r_hat']:.3f})"
        remedy = "raise `warmup` and `draws`; if it stays, a tighter prior must settle several modes or a ridge"
        reasons.append(Reason(DOUBTFUL if figures["r_hat"] <= R_HAT_LIMIT else UNUSABLE, finding, remedy))
    if chains == 1:
        reasons.append(Reason(DOUBTFUL, "one chain cannot show that it missed a mode", "run four"))
    kind = min(effective, key=lambda kind: effective[kind].min())
    count, enough = effective[kind].min(), EFFECTIVE * chains
    if count < enough:
        worst = names[int(np.argmin(effective[kind]))]
        finding = f"{count:.0f} effective draws in the {kind} of {worst}, where {chains} chains should give {enough}"
        remedy = f"raise `draws` {math.ceil(enough / count)} times"
        reasons.append(Reason(DOUBTFUL, finding, remedy))
    if "diverging" in stats:
        count = figures["divergences"] = int(stats["diverging"].sum())
        if count:
            finding = f"{count} of {chains * draws} transitions diverged"
            remedy = "raise `target_acceptance` or `warmup`, or sample in other coordinates where the posterior narrows"
            reasons.append(Reason(DOUBTFUL, finding, remedy))
    if "energy" in stats:
        bfmi = figures["bfmi"] = float(np.min(stats_of.bfmi(stats["energy"])))
        if not bfmi >= BFMI:
            finding = f"the energy moves slowly (E-BFMI {bfmi:.2f}): the tails are not explored"
            reasons.append(Reason(DOUBTFUL, finding, "raise `warmup`, or sample hierarchies in non-centred form"))
    return reasons, figures


def _solver(posterior) -> tuple[list[Reason], Figures]:
    if not isinstance(posterior.model, Dynamics):
        return [], {}
    shift, needed = solver_shift(posterior)
    if shift <= SHIFT:
        return [], {"solver_shift_sds": shift}
    model = posterior.model
    finding = f"the solver's error moves the estimate by {shift:.2g} posterior sds (substeps={model.substeps})"
    if needed is None:
        remedy = f"{FINEST * model.substeps} do not settle it: take a solver of higher order, or one for stiff fields"
    else:
        remedy = f"fit with substeps={needed}, steps of {model.dt / needed:.2g} s, or a solver of higher order"
    return [Reason(DOUBTFUL, finding, remedy)], {"solver_shift_sds": shift}


def solver_shift(posterior) -> tuple[float, int | None]:
    """How far a finer solver would move a belief about a Dynamics.

    Returns:
        The length, in posterior sds, of one Gauss-Newton step from the belief's centre under 4 times finer sub-steps;
        and where it is above `SHIFT` the sub-steps that bring it below, or None where none do.
    """
    space, model, data = posterior.space, posterior.model, posterior.data
    z, covariance = belief(posterior)
    shift = first = _shift(space, model, data, z, covariance)
    times = 1
    while shift > SHIFT and times < FINEST:
        times *= FINER
        shift = _shift(space, _finer(model, times), data, z, covariance)
        if shift <= SHIFT:
            # A coarse fit takes the solver's error for noise; a finer one is sharper and asks for more.
            z, covariance = _climb(space, _finer(model, times), data, z)
            shift = _shift(space, _finer(model, times), data, z, covariance)
    if not shift <= SHIFT:
        return first, None
    order = model.solver.order(None) or 1  # with which the error falls between this grid and the one before
    part = min(max((2 * shift / SHIFT) ** (1 / order), 1 / FINER), 1.0)
    return first, math.ceil(times * part * model.substeps)


def _shift(space, model, data, z, covariance) -> float:
    """Length, in sds, of the step that 4 times finer sub-steps would add."""
    variances, axes = jnp.linalg.eigh(covariance)
    directions = (axes * jnp.sqrt(jnp.maximum(variances, 0.0))).T  # rows of one posterior sd
    points = jnp.concatenate([z + PROBE * directions, z - PROBE * directions])
    change = log_joint(space, _finer(model, FINER), data, points) - log_joint(space, model, data, points)
    ahead, behind = jnp.split(change, 2)
    return float(jnp.linalg.norm(ahead - behind) / (2 * PROBE))


def _climb(space, model, data, z, steps: int = 40):
    """Mode near z and its covariance, by damped Fisher scoring, to a hundredth of an sd."""
    value, gradient, curvature = local(space, model, data, z)
    damping = 1e-3
    for _ in range(steps):
        step = jnp.linalg.solve(curvature + damping * jnp.diag(jnp.diagonal(curvature)), gradient)
        new = local(space, model, data, z + step)
        if new[0] >= value:
            z, (value, gradient, curvature), damping = z + step, new, damping / 10
            if gradient @ jnp.linalg.solve(curvature, gradient) < 1e-4:
                break
        else:
            damping *= 8
    return z, jnp.linalg.inv(curvature)


def _finer(model: Dynamics, times: int) -> Dynamics:
    """The same Dynamics with so many times as many sub-steps, which is another one to the compiler."""
    finer = copy.copy(model)
    finer.substeps, finer._content = model.substeps * times, (model._content, times)
    return finer


def _data(posterior, key) -> tuple[list[Reason], Figures]:
    report = identifiability(posterior)
    figures = {"combinations": len(report.names), "largest_variance_left": float(report.eigenvalues.max())}
    if len(report.unused) == len(report.names):
        reason = Reason(DOUBTFUL, "nothing was learnt: this is the prior", "give data that depend on the parameters")
        return [reason], figures
    reasons = []
    if report.unused:
        remedy = "take out of the program what nothing shows, or record what it acts on"
        reasons.append(Reason(DOUBTFUL, f"no prediction depends on {', '.join(report.unused)}", remedy))
    open_ = [int(i) for i in np.flatnonzero(report.eigenvalues > UNDETERMINED)]
    single = [i for i in open_ if np.abs(report.directions[i]).max() > ALONE]
    mixed = [report.combination(i) for i in open_ if i not in single]
    mentioned = {report.names[j] for i in open_ for j in report.members(i)} | set(report.unused)
    alone = [report.names[report.members(i)[0]] for i in single]
    if mixed:
        finding = "the data do not determine " + " or ".join(mixed[:LISTED])
        finding += f" or {len(mixed) - LISTED} more" if len(mixed) > LISTED else ""
        reasons.append(Reason(DOUBTFUL, finding, "give one of each as known, or record motions that tell them apart"))
    rows = [row for row in summarise(key, posterior).rows if row["site"] in posterior.space.names]
    barely = [row["name"] for row in rows if row["verdict"] == VERDICTS[2] and row["site"] not in report.marginalised]
    barely = [name for name in alone if name not in report.unused] + [n for n in barely if n not in mentioned]
    if barely:
        finding = f"the data say little about {', '.join(barely)}: what is known is mostly the prior"
        reasons.append(Reason(DOUBTFUL, finding, "excite more of what it acts on, or give it as known"))
    edges = [row["name"] for row in rows if row["verdict"] == EDGE]
    if edges:
        remedy = "widen the prior, or look for physics that the program lacks and it stands in for"
        reasons.append(Reason(DOUBTFUL, f"{', '.join(edges)}: at the edge of the prior", remedy))
    return reasons, figures
