"""Type-II maximum likelihood: noise sds and `param` sites at the maximum of Laplace's evidence.

At the joint mode the bias of a noise sd grows with the number of weights, and features have no prior that regularises
them. So both maximise the marginal likelihood, with the weights integrated out (D. MacKay, Neural Computation 4, 1992;
A. Immer et al., ICML 2021).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float
from numpyro.distributions import biject_to, constraints

from physppl.data.transitions import Transitions
from physppl.density.curvature import NOISES, Local, local
from physppl.density.mode import Mode, find_mode, unit_of
from physppl.density.unconstrained import UnconstrainedSpace, latent_trace
from physppl.dynamics import Dynamics


def free_space(key, model: Callable, data) -> tuple[UnconstrainedSpace, dict[str, Any]]:
    """The model's unconstrained space with `param` sites at initial values, and each one's bijection from the reals."""
    params = {name: site for name, site in latent_trace(key, model, data).items() if site["type"] == "param"}
    maps = {k: biject_to(site["kwargs"].get("constraint", constraints.real)) for k, site in params.items()}
    values = {k: jnp.asarray(site["value"], float) for k, site in params.items()}
    return UnconstrainedSpace.of(model, data, params=values), maps


def with_params(space: UnconstrainedSpace, maps: dict[str, Any], free: dict[str, Any]) -> UnconstrainedSpace:
    """The space with other values of the `param` sites, given in the reals."""
    return space.holding({name: maps[name](value) for name, value in free.items()})


def maximise(
    key, model: Dynamics, data: Transitions, steps: int, rate: float, search: int = 100
) -> tuple[UnconstrainedSpace, Mode, Float[Array, ""]]:
    """Maximise the evidence with Adam, the weights following by one Newton step each; then search their mode.

    With log joint density l, gradient g and curvature H at the current weights, the evidence of the local quadratic is
    l + g' H^-1 g / 2 - log det(H) / 2, up to a constant: exact, with its gradient, for programs linear in the weights.
    The derivative of H through the motion of a nonlinear program's mode is neglected, as by Immer et al.

    Args:
        steps: of Adam; the first few only let the weights settle.
        rate: step size, in the hyperparameters' unconstrained coordinates; it falls along a cosine to a tenth, at which
            a fifth as many steps, ten or more, follow: what they gain says whether the climb had ended.
        search: evaluations at most of the search for the mode.

    Returns:
        The space with the `param` sites at the maximum of the evidence, the mode of all other sites there, and the
        nats that the last steps gained.
    """
    param_key, prior_key = jax.random.split(key)
    space, maps = free_space(param_key, model, data)
    noises = np.flatnonzero(space.where(NOISES.__contains__))
    parameters = np.setdiff1d(np.arange(space.size), noises)
    draws = space.prior_draws(prior_key, 63, model, data)
    unit, start, at = unit_of(draws), jnp.median(draws, axis=0), partial(with_params, space, maps)

    def objective(hyper, z):
        z = z.at[noises].set(hyper["noise"])
        log_joint, gradient, curvature = local(at(hyper["params"]), model, data, z, noises_held=True)
        lower = jnp.linalg.cholesky(curvature[np.ix_(parameters, parameters)])
        white = solve_triangular(lower, gradient[parameters], lower=True)  # a fifth of the time of an inverse
        step = solve_triangular(lower, white, lower=True, trans=1)
        candidate = z.at[parameters].add(jnp.clip(step, -3 * unit[parameters], 3 * unit[parameters]))
        evidence = log_joint + 0.5 * white @ white - jnp.sum(jnp.log(jnp.diagonal(lower)))
        return -evidence, jax.lax.stop_gradient(candidate)

    settle, averaged = min(10, steps // 2), min(10, steps)
    last = max(steps // 5, averaged)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, settle, max(steps, 1), end_value=rate / 10)
    optimiser = optax.adam(schedule)

    def climb(carry, _):
        hyper, state, z = carry
        (loss, candidate), slope = jax.value_and_grad(objective, has_aux=True)(hyper, z)
        usable = jnp.isfinite(loss) & jnp.all(jnp.isfinite(candidate))
        usable &= jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(slope)]))
        change, next_state = optimiser.update(slope, state)
        proposal = (optax.apply_updates(hyper, change), next_state, candidate)
        return jax.tree.map(lambda new, old: jnp.where(usable, new, old), proposal, carry), -loss

    hyper = {"noise": start[noises], "params": {k: maps[k].inv(v) for k, v in space.params.items()}}
    (hyper, _, z), evidence = jax.lax.scan(climb, (hyper, optimiser.init(hyper), start), length=steps + last)
    # Ten steps each side, as Adam's wobble.
    gained = jnp.zeros(())
    if averaged:
        gained = jnp.mean(evidence[-averaged:]) - jnp.mean(evidence[steps - averaged : steps])
    space = at(hyper["params"])
    z = z.at[noises].set(hyper["noise"])

    def with_fixed_noises(z) -> Local:
        """Local density with no gradient along the noises, so that the search does not move them."""
        density = local(space, model, data, z)
        return density._replace(gradient=density.gradient.at[noises].set(0.0))

    return space, find_mode(with_fixed_noises, z[None], unit, search), gained
