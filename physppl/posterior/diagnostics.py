"""One verdict on a fit, with its reasons and their remedies."""

import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from physppl.data.data import Data
from physppl.density.forms import DrawsForm, Form, GaussianForm
from physppl.density.moments import local, log_joint
from physppl.dynamics import Dynamics
from physppl.internal.errors import R_HAT_LIMIT, Status
from physppl.posterior.base import AbstractPosterior
from physppl.posterior.identifiability import UNDETERMINED, identifiability, parameters
from physppl.posterior.summary import EDGE, VERDICTS, amount, summarise
from physppl.posterior.verdict import DOUBTFUL, UNUSABLE, Check, Figures, Reason, status_reasons

GRADIENT = 0.015  # posterior sds from the mode, above the tolerance of a Laplace fit of recordings
SHIFT = 0.1  # posterior sds, in the direction that moves most, by which a finer solver may move the estimate
PROBE = 0.01  # posterior sds: spacing of central differences of the log density, which is nearly quadratic over it
FINER = 4  # times as many sub-steps
FINEST = 256  # times as many sub-steps: beyond, the field rather than the step is to be changed
# Rank-normalised split R-hat and effective draws per chain: A. Vehtari, A. Gelman, D. Simpson, B. Carpenter,
# P. Buerkner, Bayesian Analysis 16, 2021.
R_HAT, EFFECTIVE = 1.01, 100
# Least share of effective draws of a Gaussian under importance weights by the joint density; in many dimensions the
# weights are uninformative.
COUNTING, WEIGHED, DIMENSIONS = 0.1, 200, 20
BFMI = 0.3  # energy transitions below it are slow (M. Betancourt, arXiv 1604.00695)
ALONE = 0.95  # entry of a combination above which it is one parameter and rounding
LISTED = 3  # combinations that are named


def check(posterior: AbstractPosterior, key: PRNGKeyArray | None = None) -> Check:
    """One verdict on a fit: its numerics, what the data left open, and the solver's error.

    - the mode: posterior sds left to it; whether the density around it is that of the Gaussian;
    - the sampler: R-hat, effective draws, divergences, energy;
    - the backend's own findings, such as what features miss of a function prior;
    - numbers chosen without a prior: whether they are more than the data;
    - the data: parameters on which nothing depends, combinations that stay at the prior, values at the prior's edge;
    - the solver: how far one Gauss-Newton step with 4 times finer sub-steps moves the estimate.

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
    else:
        with jax.enable_x64(True):
            if isinstance(form, GaussianForm):
                parts.append(_mode(posterior, form))
            elif posterior.sample_stats():
                parts.append(_sampler(posterior, form))
            parts += [_optimised(posterior), _solver(posterior, form)]
        parts.append(_data(posterior, form, jax.random.key(0) if key is None else key))
        if not fit_checked:
            not_checked.append("the fit: its draws come without a sampler's diagnostics")
    if isinstance(form, GaussianForm) and len(form.mode) > DIMENSIONS:
        not_checked.append(f"the shape of the posterior around its mode: {len(form.mode)} dimensions are too many")
    reasons = [reason for found, _ in parts for reason in found]
    reasons.sort(key=lambda reason: reason.verdict != UNUSABLE)
    figures = {name: value for _, measured in parts for name, value in measured.items()}
    return Check(header, tuple(reasons), figures, tuple(not_checked), fit_checked)


def _mode(posterior, form: GaussianForm) -> tuple[list[Reason], Figures]:
    z, factor = form.mode, form.factor
    if form.by_evidence and form.decrement is not None:  # the joint density has its maximum elsewhere
        distance = float(jnp.sqrt(form.decrement))
        at_mode = int(posterior.status) == Status.OK
    else:
        _, gradient, _ = local(form.space, posterior.model, posterior.data, z)
        distance = float(jnp.linalg.norm(factor @ gradient))
        at_mode = distance <= GRADIENT
    reasons, figures = [], {"sds_to_the_mode": distance}
    if not at_mode:
        finding = f"the search ended {distance:.2g} posterior sds from the mode"
        verdict = DOUBTFUL if distance < 1 else UNUSABLE
        remedy = "raise `steps` or `starts` of the backend"
        converged = form.decrement is not None and form.decrement <= GRADIENT**2
        if converged and not form.by_evidence:  # on new data alone
            remedy = "fit all of `posterior.data` at once, or update without `recursive`"
        reasons.append(Reason(verdict, finding, remedy))
    elif len(z) <= DIMENSIONS and not form.linearised:
        noise = jax.random.normal(jax.random.key(0), (WEIGHED, len(z)), z.dtype)
        log_weights = log_joint(form.space, posterior.model, posterior.data, z + noise @ factor)
        log_weights = jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf) + 0.5 * jnp.sum(noise**2, axis=1)
        counting = figures["draws_that_count"] = float(1 / jnp.sum(jax.nn.softmax(log_weights) ** 2) / WEIGHED)
        if not counting >= COUNTING:
            finding = f"the posterior is no Gaussian in unconstrained space: {counting:.1%} of the draws count"
            remedy = "draw Laplace(linearised=True), sample with HMC, or settle what the data leave open"
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


def _solver(posterior, form: Form) -> tuple[list[Reason], Figures]:
    if not isinstance(posterior.model, Dynamics):
        return [], {}
    shift, needed = solver_shift(posterior, form)
    if shift <= SHIFT:
        return [], {"solver_shift_sds": shift}
    model = posterior.model
    finding = f"the solver's error moves the estimate by {shift:.2g} posterior sds (substeps={model.substeps})"
    if needed is None:
        remedy = f"{FINEST * model.substeps} do not settle it: take a solver of higher order, or one for stiff fields"
    else:
        remedy = f"fit with substeps={needed}, steps of {model.dt / needed:.2g} s, or a solver of higher order"
    return [Reason(DOUBTFUL, finding, remedy)], {"solver_shift_sds": shift}


def solver_shift(posterior, form: Form | None = None) -> tuple[float, int | None]:
    """Shift of the estimate under a finer solver.

    Args:
        form: the posterior of a Dynamics in unconstrained space, where the caller has it already.

    Returns:
        The length, in posterior sds, of one Gauss-Newton step from the posterior's centre under 4 times finer
        sub-steps; and where it is above `SHIFT` the sub-steps that bring it below, or None where none do.
    """
    form = posterior.unconstrained() if form is None else form
    space, model, data = form.space, posterior.model, posterior.data
    z, covariance = form.moments()
    shift = initial = _shift(space, model, data, z, covariance)
    times = 1
    while shift > SHIFT and times < FINEST:
        times *= FINER
        shift = _shift(space, _finer(model, times), data, z, covariance)
        if shift <= SHIFT:
            # A coarse fit takes the solver's error for noise; the posterior under a finer solver is narrower.
            z, covariance = _refined_mode(space, _finer(model, times), data, z)
            shift = _shift(space, _finer(model, times), data, z, covariance)
    if not shift <= SHIFT:
        return initial, None
    order = model.solver.order(None) or 1  # of the error, between this grid and the one before
    fraction = min(max((2 * shift / SHIFT) ** (1 / order), 1 / FINER), 1.0)
    return initial, math.ceil(times * fraction * model.substeps)


def _shift(space, model, data, z, covariance) -> float:
    """Length, in posterior sds, of the Gauss-Newton step from the mode under 4 times finer sub-steps."""
    variances, axes = jnp.linalg.eigh(covariance)
    directions = (axes * jnp.sqrt(jnp.maximum(variances, 0.0))).T  # rows of one posterior sd
    points = jnp.concatenate([z + PROBE * directions, z - PROBE * directions])
    change = log_joint(space, _finer(model, FINER), data, points) - log_joint(space, model, data, points)
    ahead, behind = jnp.split(change, 2)
    return float(jnp.linalg.norm(ahead - behind) / (2 * PROBE))


def _refined_mode(space, model, data, z, steps: int = 40):
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
    """The same Dynamics with `times` as many sub-steps; programs of it are compiled anew."""
    return model.rebound(substeps=model.substeps * times)


def _data(posterior, form: Form, key) -> tuple[list[Reason], Figures]:
    report = identifiability(posterior)
    figures = {"combinations": len(report.names), "largest_variance_left": float(report.eigenvalues.max())}
    if len(report.unused) == len(report.names):
        reason = Reason(DOUBTFUL, "nothing was learnt: this is the prior", "give data that depend on the parameters")
        return [reason], figures
    reasons = []
    if report.unused:
        remedy = "take out of the program what nothing shows, or record what it acts on"
        reasons.append(Reason(DOUBTFUL, f"no prediction depends on {', '.join(report.unused)}", remedy))
    undetermined = [int(i) for i in np.flatnonzero(report.eigenvalues > UNDETERMINED)]
    single = [i for i in undetermined if np.abs(report.directions[i]).max() > ALONE]
    mixed = [report.combination(i) for i in undetermined if i not in single]
    mentioned = {report.names[j] for i in undetermined for j in report.members(i)} | set(report.unused)
    single_names = [report.names[report.members(i)[0]] for i in single]
    if mixed:
        finding = "the data do not determine " + " or ".join(mixed[:LISTED])
        finding += f" or {len(mixed) - LISTED} more" if len(mixed) > LISTED else ""
        reasons.append(Reason(DOUBTFUL, finding, "give one of each as known, or record motions that tell them apart"))
    rows = [row for row in summarise(key, posterior).rows if row["site"] in form.space.names]
    barely = [row["name"] for row in rows if row["verdict"] == VERDICTS[2] and row["site"] not in report.marginalised]
    barely = [name for name in single_names if name not in report.unused] + [n for n in barely if n not in mentioned]
    if barely:
        finding = f"the data say little about {', '.join(barely)}: what is known is mostly the prior"
        reasons.append(Reason(DOUBTFUL, finding, "excite more of what it acts on, or give it as known"))
    edges = [row["name"] for row in rows if row["verdict"] == EDGE]
    if edges:
        remedy = "widen the prior, or look for physics that the program lacks and it stands in for"
        reasons.append(Reason(DOUBTFUL, f"{', '.join(edges)}: at the edge of the prior", remedy))
    return reasons, figures
