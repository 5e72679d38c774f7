"""The solver's error: how far an estimate moves under finer steps, in posterior sds."""

import math

import jax.numpy as jnp
import numpy as np
from diffrax import AbstractERK
from jax import Array
from jaxtyping import Float, Int

from physppl.density.forms import DrawsForm, Form
from physppl.density.moments import local, log_joint
from physppl.dynamics import Dynamics
from physppl.dynamics.sensors import of_program
from physppl.language.adaptive import Adaptive
from physppl.posterior.verdict import DOUBTFUL, Figures, Reason

SHIFT = 0.1  # posterior sds, in the direction that moves most, by which a finer solver may move the estimate
PROBE = 0.01  # posterior sds: spacing of central differences of the log density, which is nearly quadratic over it
FINER = 4  # times as many sub-steps
TRIED = 16  # draws under which a solver is tried, where the check has none for another purpose
FINEST = 256  # times as many sub-steps: beyond, the field rather than the step is to be changed


def judge(
    posterior, form: Form, density: Float[Array | np.ndarray, " Q"] | None = None
) -> tuple[list[Reason], Figures]:
    """Reason against the solver's steps, if there is one, and the shift.

    Args:
        form: the posterior of a Dynamics.
        density: log joint density at the `probes` of its moments, where the caller has it already.
    """
    shift, needed = solver_shift(posterior, form, density)
    figures: Figures = {"solver_shift_sds": shift}
    if shift <= SHIFT:
        return [], figures
    model, adaptive = posterior.model, isinstance(posterior.model.solver, Adaptive)
    if not math.isfinite(shift):
        finding = "the solver's error cannot be told: near the estimate it fails, or with finer steps it does"
        remedy = "raise `max_steps` of Adaptive" if adaptive else "raise `substeps`, or take Adaptive"
        return [Reason(DOUBTFUL, finding, remedy)], {}
    steps = f"rtol={model.solver.rtol:g}" if adaptive else f"substeps={model.substeps}"
    finding = f"the solver's error moves the estimate by {shift:.2g} posterior sds ({steps})"
    if needed is not None and adaptive:
        finer = model.solver.finer(needed)
        remedy = f"fit with rtol={finer.rtol:.1g} and atol={finer.atol:.1g}"
    elif adaptive:
        remedy = "much finer tolerances do not settle it: give fewer jumps to the field, or another solver"
    elif needed is None:
        remedy = f"{FINEST * model.substeps} do not settle it: take a solver of higher order, or one for stiff fields"
    else:
        remedy = f"fit with substeps={needed}, steps of {model.dt / needed:.2g} s, or a solver of higher order"
    return [Reason(DOUBTFUL, finding, remedy)], figures


def draws(posterior, form: Form) -> Float[np.ndarray, "F P"]:
    """Draws of a posterior under which its solver is tried; none where it cannot fail, or is linear in the draw."""
    if not isinstance(posterior.model, Dynamics) or not _may_fail(posterior.model):
        return np.zeros((0, form.space.size))
    if isinstance(form, DrawsForm):
        points = np.asarray(form.points).reshape(-1, form.space.size)
        return points[np.unique(np.linspace(0, len(points) - 1, TRIED).round().astype(int))]
    if form.linearised:
        return np.zeros((0, form.space.size))
    normal = np.random.default_rng(0).normal(size=(TRIED, len(form.factor)))
    return np.asarray(form.mode) + normal @ np.asarray(form.factor)


def failures(posterior, failed: Int[np.ndarray, " F"]) -> tuple[list[Reason], Figures]:
    """Reason against a solver that fails under draws of the posterior, and their number.

    Args:
        failed: the number of rows without a finite prediction under each of F draws.
    """
    model, count = posterior.model, int(np.sum(failed > 0))
    if not len(failed) or not (count or _may_fail(model)):
        return [], {}
    figures: Figures = {"draws_with_failed_steps": count}
    if not count:
        return [], figures
    rows = f"{int(failed.max())} of {posterior.data.count} {posterior.data.row}s are not predicted under the worst"
    finding = f"{count} of {len(failed)} draws have a failed step: {rows}"
    remedy = "the state diverges within a step: raise `substeps`, or give bounds that exclude such parameters"
    if isinstance(model.solver, Adaptive):
        remedy = f"raise `max_steps` of Adaptive ({model.solver.max_steps}), take a solver for stiff fields such as "
        remedy += "Kvaerno5, or give bounds that exclude such parameters"
    elif _may_fail(model):
        remedy = "the implicit equation is not solved: raise `substeps`, take Adaptive, or give bounds that exclude "
        remedy += "such parameters"
    return [Reason(DOUBTFUL, finding, remedy)], figures


def _may_fail(model: Dynamics) -> bool:
    """True for solvers that give NaN where they fail; explicit ones of fixed steps always give a number."""
    return not isinstance(model.solver, AbstractERK)


def probes(z: Array, covariance: Array) -> Float[np.ndarray, "Q P"]:
    """Points (2 P, P) on either side of z along the covariance's axes, PROBE sds away."""
    variances, axes = np.linalg.eigh(np.asarray(covariance))
    directions = PROBE * (axes * np.sqrt(np.maximum(variances, 0.0))).T
    return np.concatenate([np.asarray(z) + directions, np.asarray(z) - directions])


def solver_shift(
    posterior, form: Form | None = None, density: Float[Array | np.ndarray, " Q"] | None = None
) -> tuple[float, int | None]:
    """Shift of the estimate under a finer solver; arguments as of `judge`.

    Returns:
        The length, in posterior sds, of the program's part of one Gauss-Newton step from the posterior's centre under
        4 times finer sub-steps; and where it is above `SHIFT` the sub-steps that bring it below, or None where none do.
    """
    form = posterior.unconstrained() if form is None else form
    space, model, data = form.space, posterior.model, posterior.data
    z, covariance = form.moments()
    shift = initial = _shift(space, model, data, z, covariance, density)
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
    if isinstance(model.solver, Adaptive):
        return initial, times
    order = model.solver.order(None) or 1  # of the error, between this grid and the one before
    fraction = min(max((2 * shift / SHIFT) ** (1 / order), 1 / FINER), 1.0)
    return initial, math.ceil(times * fraction * model.substeps)


def _shift(space, model, data, z, covariance, density=None) -> float:
    """Length, in posterior sds, of the parameters' Gauss-Newton step from the mode under 4 times finer sub-steps."""
    points = probes(z, covariance)
    density = log_joint(space, model, data, points) if density is None else density
    change = np.asarray(log_joint(space, _finer(model, FINER), data, points)) - np.asarray(density)
    ahead, behind = np.split(change, 2)
    step = (points[: len(ahead)] - np.asarray(z)).T @ (ahead - behind) / (2 * PROBE**2)
    # A noise that takes up the solver's error widens the parameters' sds, and moves none of them.
    of_machine = space.where(of_program)
    block = np.asarray(covariance)[np.ix_(of_machine, of_machine)]
    return float(np.sqrt(max(step[of_machine] @ np.linalg.lstsq(block, step[of_machine])[0], 0.0)))


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
    """The same Dynamics with `times` as many sub-steps, or finer tolerances; programs of it are compiled anew."""
    if isinstance(model.solver, Adaptive):
        return model.rebound(solver=model.solver.finer(times))
    return model.rebound(substeps=model.substeps * times)
