"""The joint mode in unconstrained space by damped Fisher scoring, from several starts at once.

Levenberg (1944) and Marquardt (1963) damping on the curvature of `curvature.py`. The model is compiled
once: a step evaluates the candidate, accepts or rejects it, and proposes the next.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from physppl.data.data import is_sequential
from physppl.density.curvature import Local


class Mode(NamedTuple):
    """Result of a search for the mode."""

    point: Float[Array, " P"]
    local: Local
    decrement: Float[Array, ""]  # squared length of the next step, in posterior sds
    steps: Array


EXACT = 1e-9  # posterior sds from the mode
SEQUENTIAL_TOLERANCE = 0.01  # posterior sds: each evaluation is a recursion along all outcomes


def tolerance_of(data) -> float:
    """Posterior sds from the mode at which a search may end."""
    return SEQUENTIAL_TOLERANCE if is_sequential(data) else EXACT


def unit_of(draws: Float[Array, "J P"]) -> Float[Array, " P"]:
    """The prior's sd along each axis of unconstrained space, from its draws; one where that is zero or not finite."""
    sd = jnp.std(draws, axis=0)
    return jnp.where(jnp.isfinite(sd) & (sd > 0), sd, 1.0)


def find_mode(
    evaluate: Callable[[Array], Local],
    starts: Float[Array, "K P"],
    unit: Float[Array, " P"],
    steps: int | Array,
    **options: Any,
) -> Mode:
    """The best mode reached from several starts; arguments as of `find_modes`."""
    modes = find_modes(evaluate, starts, unit, steps, **options)
    winner = jnp.argmax(modes.local.log_joint)
    return jax.tree.map(lambda x: x[winner], modes)._replace(steps=jnp.max(modes.steps))


def find_modes(
    evaluate: Callable[[Array], Local],
    starts: Float[Array, "K P"],
    unit: Float[Array, " P"],
    steps: int | Array,
    patience: int = 25,
    tolerance: float | Array = EXACT,
    least_gain: float | Array = 0.0,
) -> Mode:
    """Ends (K, ...) of searches from several starts, side by side.

    They end when the best one has converged (next step shorter than `tolerance`) and the others have had `patience`
    steps to overtake it.

    Args:
        evaluate: the local density.
        starts: points of unconstrained space.
        unit: the prior's sd along each axis; a step is clipped to three of them.
        steps: evaluations per start, at most.
        patience: evaluations granted to every start.
        tolerance: in posterior sds.
        least_gain: nats that a search farther than an sd from a mode must gain in ten steps or so; else it is given up.
    """
    enough = tolerance**2
    count, size = starts.shape
    dtype = starts.dtype
    infinity = jnp.full(count, jnp.inf, dtype)
    unevaluated = Local(
        -infinity, jnp.zeros_like(starts), jnp.broadcast_to(jnp.eye(size, dtype=dtype), (count, size, size))
    )

    def unfinished(carry):
        (_, best, _, _, decrement, _), progress, k = carry
        settled = decrement[jnp.argmax(best.log_joint)] < enough
        running = (decrement >= enough) & ((progress >= least_gain) | (decrement < 1.0))
        return (k < steps) & ~(settled & (k >= patience)) & jnp.any(running)

    def body(carry):
        search, progress, k = carry
        after = jax.vmap(lambda *s: _advance(evaluate, unit, *s))(*search)
        gain = after[1].log_joint - search[1].log_joint
        return after, 0.9 * progress + jnp.where(jnp.isfinite(gain), gain, 0.0), k + 1

    damping = jnp.full(count, 1e-3, dtype)
    search = (starts, unevaluated, starts, damping, infinity, jnp.zeros_like(unevaluated.curvature))
    carry = (search, jnp.full(count, 60 * least_gain, dtype), jnp.zeros((), int))
    (point, best, _, _, decrement, _), _, k = jax.lax.while_loop(unfinished, body, carry)
    return Mode(point, best, decrement, jnp.full(count, k))


def differentiable_mode(log_joint: Callable[[Array], Array], search: Callable[[], Mode]) -> tuple[Array, tuple]:
    """The mode (P,) that a search finds, with the derivatives of the implicit function theorem; decrement and steps.

    At the mode z the gradient g(z, y) vanishes, so that dz/dy = -(dg/dz)^-1 dg/dy for whatever y the density depends
    on. The search itself is not differentiated.
    """
    shape = jax.eval_shape(search)

    def solve(_, start):
        mode = search()
        return mode.point, (mode.decrement, mode.steps.astype(mode.point.dtype))

    def tangent_solve(linear, right):
        return jnp.linalg.solve(jax.jacobian(linear)(right), right)

    start = jnp.zeros(shape.point.shape, shape.point.dtype)
    return jax.lax.custom_root(jax.grad(log_joint), start, solve, tangent_solve, has_aux=True)


def _advance(evaluate, unit, point, best, candidate, damping, decrement, secant):
    """Evaluate the candidate, keep it if it is no worse, and propose the next."""
    new = evaluate(candidate)
    finite = jnp.isfinite(new.log_joint) & jnp.all(jnp.isfinite(new.gradient)) & jnp.all(jnp.isfinite(new.curvature))
    # A step that is worse by rounding only is taken: near the mode the gradient is more exact than the density.
    slack = jnp.where(jnp.isfinite(best.log_joint), 1e-9 + 1e-13 * jnp.abs(best.log_joint), 0.0)
    accept = finite & (new.log_joint >= best.log_joint - slack)
    secant = jnp.where(accept, _corrected(secant, new, best, candidate - point, decrement), secant)
    point = jnp.where(accept, candidate, point)
    best = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, best)
    damping = jnp.where(accept, jnp.maximum(damping * 0.1, 1e-14), jnp.clip(damping * 8, 1e-2, 1e12))
    diagonal = jnp.diagonal(best.curvature)
    scale = jnp.maximum(diagonal, unit**-2)
    # The tail of a noise's prior has a slope but no curvature, and would send a step without bound to zero noise.
    floor = jnp.maximum(0.25 * unit**-2 - diagonal, 0.0)
    damped = best.curvature + jnp.diag(floor + damping * scale)
    lower = jnp.linalg.cholesky(damped + secant)
    step = jax.scipy.linalg.cho_solve((lower, True), best.gradient)
    failed = ~jnp.all(jnp.isfinite(step))
    # No step: the point itself is the next candidate, and its acceptance will divide the damping by ten. The correction
    # may have made the matrix indefinite; then the next step is without it.
    damping = jnp.where(
        failed, jnp.where(jnp.any(secant != 0), damping * 10, jnp.clip(damping * 80, 1e-3, 1e12)), damping
    )
    secant = jnp.where(failed, 0.0, secant)
    # The decrement is that of the whole step: a clipped one may point downhill, and would pass for convergence.
    decrement = jnp.where(failed | (damping > 0.1), jnp.inf, step @ best.gradient)
    step = jnp.where(failed, 0.0, jnp.clip(step, -3 * unit, 3 * unit))
    return point, best, point + step, damping, decrement, secant


def _corrected(secant, new: Local, best: Local, step, decrement):
    """Secant correction of the curvature by symmetric rank one, from the gradient's change along the last step.

    Where a model is misspecified its Fisher information is not the density's curvature, and convergence would be linear
    (J. Dennis, D. Gay, R. Welsch, ACM Trans. Mathematical Software 7, 1981). With r = (change of minus the gradient)
    - (curvature + correction) s, along the step s, the correction grows by r r' / r' s; far from the mode it is zero.
    """
    residual = best.gradient - new.gradient - (new.curvature + secant) @ step
    along = residual @ step
    # The change along the shortest steps is rounding.
    exact = (decrement > 1e-8) & (jnp.abs(along) > 1e-6 * jnp.linalg.norm(residual) * jnp.linalg.norm(step))
    update = jnp.outer(residual, residual) / jnp.where(exact, along, 1.0)
    return jnp.where(decrement < 1.0, secant + jnp.where(exact, update, 0.0), 0.0)
