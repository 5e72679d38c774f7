"""One verdict on a fit, with its reasons and their remedies."""

import importlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from physppl.data.data import Data
from physppl.density.forms import FLAT, DrawsForm, Form, GaussianForm
from physppl.density.moments import local, log_joint_and_outcomes
from physppl.density.unconstrained import Gaussian
from physppl.dynamics import Dynamics
from physppl.internal.errors import R_HAT_LIMIT, Status
from physppl.posterior import fit_tests, innovations, solver_error
from physppl.posterior.base import AbstractPosterior
from physppl.posterior.identifiability import DETERMINED, SHARED, UNDETERMINED, constrained, identifiability, parameters
from physppl.posterior.summary import EDGE, VERDICTS, WIDER, amount, summarise
from physppl.posterior.verdict import DOUBTFUL, UNUSABLE, Check, Figures, Reason, listed, status_reasons

GRADIENT = 0.015  # posterior sds from the mode, above the tolerance of a Laplace fit of recordings
# Rank-normalised split R-hat and effective draws per chain: A. Vehtari, A. Gelman, D. Simpson, B. Carpenter,
# P. Buerkner, Bayesian Analysis 16, 2021.
R_HAT, EFFECTIVE = 1.01, 100
# Least share of effective draws of a Gaussian under importance weights by the joint density; in many dimensions the
# weights are uninformative.
COUNTING, WEIGHED, DIMENSIONS = 0.1, 200, 20
BFMI = 0.3  # energy transitions below it are slow (M. Betancourt, arXiv 1604.00695)
ALONE = 0.95  # entry of a combination above which it is one parameter and rounding
LISTED = 3  # combinations that are named
COMPARABLE, SEPARATE = 3.0, 3.0  # nats of evidence, and sds, between two modes of which one must not be left out


def check(posterior: AbstractPosterior, key: PRNGKeyArray | None = None) -> Check:
    """One verdict on a fit: its numerics, what the data left open, and the solver's error.

    - the mode: posterior sds left to it; whether the density around it is that of the Gaussian; other modes;
    - the innovations, standardised one-step errors, against their null (`physppl.posterior.fit_tests`);
    - the sampler: R-hat, effective draws, divergences, energy;
    - the backend's own findings, such as what features miss of a function prior;
    - numbers chosen without a prior: whether they are more than the data;
    - the data: parameters on which nothing depends, combinations that stay at the prior, values at the prior's edge;
    - the solver: how far one Gauss-Newton step with 4 times finer sub-steps moves the estimate; draws under which it
      fails.

    Checks that a posterior does not permit are listed as such.

    Args:
        key: random key of the summary's draws; `jax.random.key(0)` by default.
    """
    header = " | ".join([posterior.method, str(posterior.model), *amount(posterior.data)])
    # A fit without a finite density or covariance is not checked further; other statuses are measured below.
    if fatal := [reason for reason in status_reasons(posterior.status) if reason.verdict == UNUSABLE]:
        return Check(header, tuple(fatal), {})
    form, of_backend, not_checked = posterior.unconstrained(), posterior.findings(), []
    parts = [of_backend or ([], {})]
    fit_checked = of_backend is not None or isinstance(form, GaussianForm) or bool(posterior.sample_stats())
    if form is None:
        not_checked.append(
            f"the fit, the solver, and what the data left open: {posterior.method} keeps neither a Gaussian nor draws "
            "in unconstrained space"
        )
        errors = innovations.of_functions(posterior)
    else:
        with jax.enable_x64(True):
            probed = _probed(posterior, form)
            if isinstance(form, GaussianForm):
                parts.append(_mode(posterior, form, probed))
            elif posterior.sample_stats():
                parts.append(_sampler(posterior, form))
            parts += [_several(posterior, form), _optimised(posterior)]
            if isinstance(posterior.model, Dynamics):
                parts.append(solver_error.judge(posterior, form, probed.around))
                parts.append(solver_error.failures(posterior, probed.failed))
        parts.append(_data(posterior, form, jax.random.key(0) if key is None else key))
        errors = innovations.of_sites(posterior, form.space, probed.sites)
        if isinstance(form, GaussianForm) and form.found is None and form.decrement is not None:
            not_checked.append("other modes: the fit kept one search alone")
        if not fit_checked:
            not_checked.append("the fit: its draws come without a sampler's diagnostics")
    if errors is None:
        not_checked.append("the test of fit: the outcomes are not rows of Gaussian or Student-t readings")
    else:
        parts.append(fit_tests.judge(errors))
    if isinstance(form, GaussianForm) and len(form.mode) > DIMENSIONS:
        not_checked.append(f"the shape of the posterior around its mode: {len(form.mode)} dimensions are too many")
    reasons = [reason for found, _ in parts for reason in found]
    reasons.sort(key=lambda reason: reason.verdict != UNUSABLE)
    figures = {name: value for _, measured in parts for name, value in measured.items()}
    return Check(header, tuple(reasons), figures, tuple(not_checked), fit_checked)


class _Probed(NamedTuple):
    """Log joint densities of draws from a Gaussian and around the centre of a posterior; observed sites there.

    `failed` are the numbers of rows without a finite prediction under draws of the posterior, Gaussian or not.
    """

    draws: Float[np.ndarray, " W"]
    around: Float[np.ndarray, " Q"]
    failed: Int[np.ndarray, " F"]
    sites: dict[str, Gaussian]


def _standard_draws(form: Form) -> Float[np.ndarray, "W R"]:
    """Standard normal draws by which the shape of a Gaussian is tested; none where they would tell nothing."""
    if not isinstance(form, GaussianForm) or form.linearised or form.space.size > DIMENSIONS:
        return np.zeros((0, form.space.size))
    return np.random.default_rng(0).normal(size=(WEIGHED, len(form.factor)))


def _probed(posterior, form: Form) -> _Probed:
    """All densities of which a check of the present model needs no derivative, in one program."""
    z, covariance = form.moments()
    centre, draws = np.asarray(innovations.centre(form)), _standard_draws(form)
    around = solver_error.probes(z, covariance) if isinstance(posterior.model, Dynamics) else np.zeros((0, len(z)))
    if isinstance(form, GaussianForm) and len(draws):
        draws = centre + draws @ np.asarray(form.factor)
    others = solver_error.draws(posterior, form) if not len(draws) else draws[:0]
    points = np.concatenate(
        [centre[None], *([draws] if len(draws) else []), around, *([others] if len(others) else [])]
    )
    density, failed, sites = log_joint_and_outcomes(form.space, posterior.model, posterior.data, points)
    of_draws, of_around, _ = np.split(np.asarray(density)[1:], [len(draws), len(draws) + len(around)])
    failed = np.asarray(failed)[1:]
    return _Probed(of_draws, of_around, failed[: len(draws)] if len(draws) else failed[len(around) :], sites)


def _mode(posterior, form: GaussianForm, probed: _Probed) -> tuple[list[Reason], Figures]:
    z, factor = form.mode, form.factor
    reasons: list[Reason] = []
    if form.by_evidence and form.decrement is not None:  # the joint density has its maximum elsewhere
        distance = float(jnp.sqrt(form.decrement))
        at_mode = int(posterior.status) in (Status.OK, Status.CLIMBING)
        if int(posterior.status) == Status.CLIMBING:
            reasons += status_reasons(posterior.status)
    else:
        _, gradient, _ = local(form.space, posterior.model, posterior.data, z)
        distance = float(jnp.linalg.norm(factor @ gradient))
        at_mode = distance <= GRADIENT
    figures: Figures = {"sds_to_the_mode": distance}
    if not at_mode:
        finding = f"the search ended {distance:.2g} posterior sds from the mode"
        verdict = DOUBTFUL if distance < 1 else UNUSABLE
        remedy = "raise `steps` or `starts` of the backend"
        if form.recursive:
            remedy = "fit all of `posterior.data` at once, or update without `recursive`"
        reasons.append(Reason(verdict, finding, remedy))
    if len(probed.draws):
        log_weights = np.where(np.isfinite(probed.draws), probed.draws, -np.inf)
        log_weights = log_weights + 0.5 * np.sum(_standard_draws(form) ** 2, axis=1)
        weights = np.exp(log_weights - log_weights.max())
        counting = figures["draws_that_count"] = float(weights.sum() ** 2 / np.sum(weights**2) / WEIGHED)
        if not counting >= COUNTING:
            finding = f"the posterior is no Gaussian in unconstrained space: {counting:.1%} of the draws count"
            remedy = "draw Laplace(linearised=True), sample with HMC, or settle what the data leave open"
            reasons.append(Reason(DOUBTFUL, finding, remedy))
    return reasons, figures


def _several(posterior, form: Form) -> tuple[list[Reason], Figures]:
    """Check whether the searches found another mode that the posterior leaves out, or a density that is flat."""
    reasons, figures = [], {}
    drop = form.drop if isinstance(form, GaussianForm) else None
    if drop is not None:
        figures["fall_at_two_sds"] = float(drop)
        if drop < FLAT:
            finding, _, remedy = Status.FLAT.remedy.partition(": ")
            finding += f" ({float(drop):.2g} nats lower two sds away, of a Gaussian 2)"
            reasons.append(Reason(DOUBTFUL, finding, remedy))
    if form.found is None or not np.isfinite(form.found.log_evidence).any():
        return reasons, figures
    points, sds, evidence = map(np.asarray, form.found)
    best = int(np.argmax(evidence))
    apart = np.abs(points - points[best]) / np.maximum(np.fmax(sds, sds[best]), 1e-300)
    others = np.flatnonzero((evidence > evidence[best] - COMPARABLE) & (apart.max(axis=1) > SEPARATE))
    if isinstance(form, DrawsForm):  # draws may lie in both
        draws = np.asarray(form.points).reshape(-1, points.shape[1])
        others = [t for t in others if np.min(np.max(np.abs(draws - points[t]) / sds[t], axis=1)) > SEPARATE]
    if len(others):
        other = int(max(others, key=lambda t: evidence[t]))
        names = [name for _, name, _ in parameters(form.space, posterior.model, posterior.data)]
        values = [
            np.asarray(constrained(form.space, posterior.model, posterior.data, points[t])[0]) for t in (best, other)
        ]
        named = [int(i) for i in np.argsort(-apart[other], kind="stable")[:LISTED] if apart[other][i] > SEPARATE]
        places = [", ".join(f"{names[i]} = {value[i]:.4g}" for i in named) for value in values]
        gap = evidence[best] - evidence[other]
        finding = f"two modes explain the data: {places[0]}, and {places[1]} (log evidence {gap:.1f} nats lower)"
        held = (
            "this posterior is about the first alone" if isinstance(form, GaussianForm) else "no chain saw the second"
        )
        remedy = f"{held}: let a prior's bounds settle it, or give data that tell them apart"
        reasons.append(Reason(DOUBTFUL, finding, remedy))
    return reasons, figures


def _optimised(posterior) -> tuple[list[Reason], Figures]:
    """Check that optimised values without a prior do not outnumber the outcomes, which they would overfit.

    Measured in the documentation's comparison of every backend on one machine.
    """
    count = sum(np.size(value) for value in posterior.params.values())
    if not count or not isinstance(posterior.data, Data):
        return [], {}
    outcomes = posterior.data.count * np.shape(posterior.data.outcomes)[-1]
    reasons = []
    if count > outcomes:
        finding = f"{count} numbers without a prior were chosen from {outcomes} outcomes: the posterior is far too sure"
        remedy = "take fixed features (`residual` without `learned`), FunctionSpaceVI or an Ensemble, or give more data"
        reasons.append(Reason(DOUBTFUL, finding, remedy))
    return reasons, {"chosen_without_a_prior": count}


def _sampler(posterior, form: DrawsForm) -> tuple[list[Reason], Figures]:
    arviz_stats: Any = importlib.import_module("arviz_stats")  # a second to import
    points, stats = np.asarray(form.points), jax.tree.map(np.asarray, posterior.sample_stats())
    chains, draws = points.shape[:2]
    names = [name for _, name, _ in parameters(form.space, posterior.model, posterior.data)]
    halves = points if chains > 1 else points[:, : draws // 2 * 2].reshape(2, draws // 2, -1)
    r_hat = np.asarray(arviz_stats.rhat(halves))
    effective = {
        "bulk": np.asarray(arviz_stats.ess(points, method="bulk")),
        "tail": np.asarray(arviz_stats.ess(points, method="tail", prob=(0.05, 0.95))),
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
        bfmi = figures["bfmi"] = float(np.min(arviz_stats.bfmi(stats["energy"])))
        if not bfmi >= BFMI:
            finding = f"the energy moves slowly (E-BFMI {bfmi:.2f}): the tails are not explored"
            reasons.append(Reason(DOUBTFUL, finding, "raise `warmup`, or sample hierarchies in non-centred form"))
    return reasons, figures


def _data(posterior, form: Form, key) -> tuple[list[Reason], Figures]:
    report = identifiability(posterior)
    figures = {"combinations": len(report.names), "largest_variance_left": float(report.eigenvalues.max())}
    if len(report.unused) == len(report.names):
        reason = Reason(DOUBTFUL, "nothing was learnt: this is the prior", "give data that depend on the parameters")
        return [reason], figures
    reasons = []
    if report.unused:
        remedy = "take out of the program what nothing shows, or record what it acts on"
        reasons.append(Reason(DOUBTFUL, f"no prediction depends on {listed(report.unused)}", remedy))
    undetermined = [int(i) for i in np.flatnonzero(report.eigenvalues > UNDETERMINED)]
    single = [i for i in undetermined if np.abs(report.directions[i]).max() > ALONE]
    mixed = [report.combination(i) for i in undetermined if i not in single]
    mentioned = {report.names[j] for i in undetermined for j in report.members(i)} | set(report.unused)
    single_names = [report.names[report.members(i)[0]] for i in single]
    if mixed:
        finding = "the data do not determine " + " or ".join(mixed[:LISTED])
        finding += f" or {len(mixed) - LISTED} more" if len(mixed) > LISTED else ""
        reasons.append(Reason(DOUBTFUL, finding, "give one of each as known, or record motions that tell them apart"))
    shared = [
        report.names[i]
        for i in np.flatnonzero((report.held < SHARED) & (1 - report.contraction > DETERMINED))
        if report.names[i] not in mentioned
    ]
    if shared:
        finding = f"{listed(shared)} and the weights explain each other's share: with known weights the sd would be "
        finding += f"{np.sqrt(min(report.held[report.names.index(name)] for name in shared)):.0%} of what it is"
        remedy = "give the residual a tighter prior, or record motions in which the two differ"
        reasons.append(Reason(DOUBTFUL, finding, remedy))
    rows = [row for row in summarise(key, posterior).rows if row["site"] in form.space.names]
    barely = [
        row["name"] for row in rows if row["verdict"] in (VERDICTS[2], WIDER) and row["site"] not in report.marginalised
    ]
    barely = [name for name in single_names if name not in report.unused] + [n for n in barely if n not in mentioned]
    if barely:
        finding = f"the data say little about {listed(barely)}: what is known is mostly the prior"
        reasons.append(Reason(DOUBTFUL, finding, "excite more of what it acts on, or give it as known"))
    edges = [row["name"] for row in rows if row["verdict"] == EDGE]
    if edges:
        remedy = "widen the prior, or look for physics that the program lacks and it stands in for"
        reasons.append(Reason(DOUBTFUL, f"{listed(edges)}: at the edge of the prior", remedy))
    return reasons, figures
