"""Type-II maximum likelihood: what has no prior, and the noises, at the maximum of Laplace's evidence.

In the joint mode the bias of a noise grows with the number of weights beside it, and features have no prior to hold
them. So both are chosen by what they make of the data once the weights are integrated out (D. MacKay, Neural
Computation 4, 1992; A. Immer et al., ICML 2021).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.linalg import solve_triangular
from numpyro import handlers
from numpyro.distributions import biject_to, constraints

from physppl.data.transitions import Transitions
from physppl.density.curvature import NOISES, Local, local
from physppl.density.mode import Mode, find_mode, unit_of
from physppl.density.unconstrained import UnconstrainedSpace, latent_part
from physppl.dynamics import Dynamics


class EvidenceMode(NamedTuple):
    """Hyperparameters at the maximum, and the mode of all else there."""

    space: UnconstrainedSpace
    mode: Mode


def free_space(key, model: Callable, data) -> tuple[UnconstrainedSpace, dict[str, Any]]:
    """A model's space with its `param` sites at initial values, and the map of each from all reals."""
    run, *args = latent_part(model, data)
    trace = handlers.trace(handlers.seed(run, key)).get_trace(*args)
    params = {name: site for name, site in trace.items() if site["type"] == "param"}
    maps = {k: biject_to(site["kwargs"].get("constraint", constraints.real)) for k, site in params.items()}
    values = {k: jnp.asarray(site["value"], float) for k, site in params.items()}
    return UnconstrainedSpace.of(model, data, params=values), maps


def maximise(key, model: Dynamics, data: Transitions, steps: int, rate: float, search: int = 100) -> EvidenceMode:
    """Climb the evidence with Adam, the weights always one Newton step behind; then find their mode to the end.

    The evidence is that of the local quadratic, whose maximum need not be where the weights are: for programs linear in
    them it is exact at every step, and so is its slope. What curvature owes to the motion of a nonlinear program's
    mode is left out, as Immer et al. do.

    Args:
        steps: of Adam; the first few only let the weights settle.
        rate: its step, in the hyperparameters' unconstrained coordinates; it falls to zero along a cosine.
        search: evaluations at most of the search for the mode.
    """
    param_key, prior_key = jax.random.split(key)
    space, maps = free_space(param_key, model, data)
    noises = np.flatnonzero(space.where(NOISES.__contains__))
    others = np.setdiff1d(np.arange(space.size), noises)
    draws = jax.vmap(lambda k: space.draw_prior(k, model, data))(jax.random.split(prior_key, 63))
    unit, start = unit_of(draws), jnp.median(draws, axis=0)

    def at(params) -> UnconstrainedSpace:
        return space.holding({k: maps[k](v) for k, v in params.items()})

    def objective(hyper, z):
        z = z.at[noises].set(hyper["noise"])
        log_joint, gradient, curvature = local(at(hyper["params"]), model, data, z, noises_held=True)
        lower = jnp.linalg.cholesky(curvature[np.ix_(others, others)])
        white = solve_triangular(lower, gradient[others], lower=True)  # of a vector: a fifth of an inverse's time
        step = solve_triangular(lower, white, lower=True, trans=1)
        later = z.at[others].add(jnp.clip(step, -3 * unit[others], 3 * unit[others]))
        evidence = log_joint + 0.5 * white @ white - jnp.sum(jnp.log(jnp.diagonal(lower)))
        return -evidence, jax.lax.stop_gradient(later)

    settle = min(10, steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, settle, max(steps, 1))
    optimiser = optax.adam(schedule)

    def climb(carry, _):
        hyper, state, z = carry
        (loss, later), slope = jax.value_and_grad(objective, has_aux=True)(hyper, z)
        usable = jnp.isfinite(loss) & jnp.all(jnp.isfinite(later))
        usable &= jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(slope)]))
        change, following = optimiser.update(slope, state)
        moved = (optax.apply_updates(hyper, change), following, later)
        return jax.tree.map(lambda new, old: jnp.where(usable, new, old), moved, carry), None

    hyper = {"noise": start[noises], "params": {k: maps[k].inv(v) for k, v in space.params.items()}}
    (hyper, _, z), _ = jax.lax.scan(climb, (hyper, optimiser.init(hyper), start), length=steps)
    space = at(hyper["params"])
    z = z.at[noises].set(hyper["noise"])

    def held(z) -> Local:
        """The density, with no slope along the noises: the search leaves them where they are."""
        found = local(space, model, data, z)
        return found._replace(gradient=found.gradient.at[noises].set(0.0))

    return EvidenceMode(space, find_mode(held, z[None], unit, search))
