"""How the members of an ensemble reach their modes, side by side."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.data.data import drawn_rows
from physppl.data.transitions import Transitions
from physppl.density.curvature import Local, added, local
from physppl.density.mode import find_mode, tolerance_of, unit_of
from physppl.density.unconstrained import gaussians
from physppl.inference.diversity import Joint, Member, Tilt
from physppl.internal.parallel import parallel_vmap


class Found(NamedTuple):
    """Where members ended: points (K, P), their own log densities there, and whether each search converged."""

    points: Float[Array, "K P"]
    log_joint: Float[Array, " K"]
    converged: Array


class Search(eqx.Module):
    """How members reach their modes."""

    @abstractmethod
    def run(self, key: PRNGKeyArray, joint: Joint, members: Member, draws: Float[Array, "J P"], near: bool) -> Found:
        """All of them side by side.

        Args:
            members: stacked (K, ...).
            draws: of the prior, more than there are members where those are few.
            near: as of `Diversity`.
        """


class Newton(Search):
    """Levenberg-Marquardt on the Fisher curvature, as `Laplace` searches: for programs of few parameters.

    All members first search the posterior itself, each from its prior draw. Bootstrapped and anchored ones then go on,
    by their own densities, from the best mode of these.

    Attributes:
        steps: evaluations of each search, at most.
    """

    steps: int = eqx.field(default=200, static=True)

    def __check_init__(self):
        if self.steps < 1:
            raise ValueError(f"Newton needs steps >= 1; got {self.steps}.")

    def run(self, key: PRNGKeyArray, joint: Joint, members: Member, draws: Float[Array, "J P"], near: bool) -> Found:
        del key
        space, model, data = joint
        unit = unit_of(draws)

        def stage(starts, own):  # one loop for both searches, so that one copy of the model is compiled
            def search(start, member: Member):
                seen = jax.tree.map(lambda mine, all_: jnp.where(own, mine, all_), member.data, data)
                outcomes = lambda z: gaussians(space.trace(model, z, seen))  # noqa: E731
                evaluate, tilt = lambda z: local(space, model, seen, z), member.tilt  # noqa: E731
                if tilt is not None:
                    log_scales = {name: site.log_scale for name, site in outcomes(start).items()}
                    evaluate = _tilted(evaluate, lambda z: own * tilt.value(z, outcomes(z), log_scales))
                found = find_mode(evaluate, start[None], unit, self.steps, tolerance=tolerance_of(data))
                return Found(found.point, found.local.log_joint, found.decrement < 2e-4)

            found = parallel_vmap(search, starts, members)
            best = found.points[jnp.argmax(found.log_joint)]
            return jnp.broadcast_to(best, starts.shape), found

        _, found = jax.lax.scan(stage, members.start, jnp.array([False, True] if near else [False]))
        return jax.tree.map(lambda x: x[-1], found)


def _tilted(evaluate: Callable, term: Callable) -> Callable[[Array], Local]:
    """A local density times one that has no curvature worth counting."""

    def both(z):
        density = evaluate(z)
        return added(density, Local(*jax.value_and_grad(term)(z), jnp.zeros_like(density.curvature)))

    return both


class Adam(Search):
    """Gradient steps, all members in one scan: for neural networks, whose curvature would be too large.

    (D. Kingma, J. Ba, ICLR 2015.) Gradients are per outcome, clipped to length one; the rate falls to zero along a
    cosine. There is no test of convergence: more steps must not raise `facts()["log_joint"]` by much.

    Attributes:
        steps: of the optimiser.
        rate: of each step, in virtual space.
        rows: transitions of each step, drawn at random from the valid ones; None: all of them.
    """

    steps: int = eqx.field(default=3000, static=True)
    rate: float = eqx.field(default=0.02, static=True)
    rows: int | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        if self.steps < 1 or not 0 < self.rate < np.inf or (self.rows is not None and self.rows < 1):
            raise ValueError(
                f"Adam needs steps >= 1, rate > 0 and rows >= 1 or None; got {self.steps}, {self.rate} and {self.rows}."
            )

    def run(self, key: PRNGKeyArray, joint: Joint, members: Member, draws: Float[Array, "J P"], near: bool) -> Found:
        del draws, near
        space, model, data = joint
        schedule = optax.cosine_decay_schedule(self.rate, self.steps)
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
        if self.rows is not None and (not isinstance(data, Transitions) or data.batch_shape):
            raise ValueError("Adam(rows=...) takes Transitions of one machine apart; of other data leave `rows` out.")

        def log_joint(z, member: Member, weight):
            trace = space.trace(model, z, member.data)
            prior, likelihood = space.log_densities(trace, z)
            outcomes = gaussians(trace)
            total = prior + weight * likelihood
            if member.tilt is not None:
                here = {name: jax.lax.stop_gradient(site.log_scale) for name, site in outcomes.items()}
                total += member.tilt.value(z, outcomes, here, weight)
            return total, outcomes

        def batch(key, member: Member) -> Member:
            chosen = drawn_rows(key, member.data.valid, self.rows or 1)
            pick = lambda tree: jax.tree.map(lambda x: x[chosen], tree)  # noqa: E731
            tilt = None if member.tilt is None else Tilt(member.tilt.slope, pick(member.tilt.scores))
            return Member(member.start, pick(member.data), tilt)

        def search(key, member: Member):
            weight = 1.0 if self.rows is None else jnp.sum(member.data.valid) / self.rows
            _, outcomes = log_joint(member.start, member, 1.0)
            count = [jnp.sum(jnp.broadcast_to(s.root_weight, s.mean.shape) ** 2) for s in outcomes.values()]
            scale = jnp.maximum(sum(count, jnp.zeros(())), 1.0)

            def step(carry, key):
                z, state = carry
                part = member if self.rows is None else batch(key, member)
                slope = jax.grad(lambda z: -log_joint(z, part, weight)[0] / scale)(z)
                change, state = optimiser.update(slope, state)
                return (z + change, state), None

            keys = jax.random.split(key, self.steps)
            (point, _), _ = jax.lax.scan(step, (member.start, optimiser.init(member.start)), keys)
            return Found(point, log_joint(point, member, 1.0)[0], jnp.ones((), bool))

        return parallel_vmap(search, jax.random.split(key, len(members.start)), members)
