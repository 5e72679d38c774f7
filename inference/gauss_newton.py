"""The mode of thousands of weights, by products with the Jacobian only.

Quasi-Newton steps cover the long way from a random network; Gauss-Newton steps by conjugate gradients (J. Martens, ICML
2010) end at the mode and tell how far it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.sparse.linalg import cg
from jaxtyping import Float, Int, PRNGKeyArray

from physppl.data.transitions import Transitions
from physppl.density.curvature import NOISES, row_jacobians
from physppl.density.unconstrained import UnconstrainedSpace, gaussians, latent_part
from physppl.dynamics import Dynamics
from physppl.inference.products import Leading, Whitened
from physppl.posterior.backend import empty

ENOUGH = 1e-12  # squared length of a step, in posterior sds, at which a search ends
RANK = 64  # of the approximation that the conjugate gradients begin with
INNER = 100  # products of one step, at most
LEAST = 1e-6  # of the prior's precision, where it is not log-concave


class Problem(NamedTuple):
    """A Dynamics with its noises held, in coordinates in which prior and outcomes have unit noise.

    Attributes:
        others: entries of virtual space that are no noises; `noises` are the rest.
    """

    space: UnconstrainedSpace
    model: Dynamics
    data: Transitions

    @property
    def noises(self) -> Int[np.ndarray, " K"]:
        return np.flatnonzero(self.space.where(NOISES.__contains__))

    @property
    def others(self) -> Int[np.ndarray, " O"]:
        return np.flatnonzero(~self.space.where(NOISES.__contains__))

    def log_noise(self, z: Float[Array, " P"]) -> Float[Array, " D"]:
        """Log sd of each coordinate."""
        return jnp.log(self.model.bind(self.space.sites(self.model, z, self.data)).noise)

    def error(self, z: Float[Array, " P"], log_noise: Float[Array, " D"]) -> Float[Array, "N D"]:
        """Outcomes minus predictions, in sds of the noise; zero where a row is not valid."""
        step = self.model.stepper(self._program(z))
        means = jax.vmap(step)(self.data.times, self.data.states, self.data.actions)
        return (self.model.outcomes(self.data) - means) * jnp.exp(-log_noise) * self.data.valid[:, None]

    def log_prior(self, z: Float[Array, " P"]) -> Float[Array, ""]:
        return self.space.log_prior(self.model, z, self.data)

    def log_joint(self, z: Float[Array, " P"], log_noise: Float[Array, " D"]) -> Float[Array, ""]:
        """Log density of the outcomes and of z."""
        each = -0.5 * self.error(z, log_noise) ** 2
        rows = jnp.sum(self.data.valid) * jnp.sum(log_noise + 0.5 * jnp.log(2 * jnp.pi))
        return self.log_prior(z) + jnp.sum(each) - rows

    def prior_precision(self, z: Float[Array, " P"]) -> Float[Array, " P"]:
        """Of each entry, given all others: the curvature of a prior whose sites are independent."""
        _, product = jax.jvp(jax.grad(self.log_prior), (z,), (jnp.ones_like(z),))
        return -product

    def sds(self, z: Float[Array, " P"]) -> Float[Array, " O"]:
        """The prior's, as its curvature at z has them."""
        return jnp.maximum(self.prior_precision(z)[self.others], LEAST) ** -0.5

    def whitened(self, z: Float[Array, " P"], log_noise: Float[Array, " D"], sds) -> tuple[Array, Whitened]:
        """Error (N D,) and the products of its derivatives."""
        predictions = lambda v: -self.error(z.at[self.others].add(sds * v), log_noise).reshape(-1)  # noqa: E731
        zero = jnp.zeros(len(self.others), z.dtype)
        negative, push = jax.linearize(predictions, zero)
        pull = jax.linear_transpose(push, zero)

        def dense():  # row by row: each depends on its own input alone
            _, jacobians = row_jacobians(self.space, self.model, self.data, z)
            weights = jnp.exp(-log_noise) * self.data.valid[:, None]
            return (jacobians[..., self.others] * sds * weights[..., None]).reshape(len(negative), len(zero))

        return -negative, Whitened(push, lambda u: pull(u)[0], dense, (len(negative), len(zero)))

    def _program(self, z):
        sites = self.space.sites(self.model, z, self.data)
        return {name: value for name, value in sites.items() if name not in NOISES}

    def check(self) -> None:
        """Refuse what the algebra leaves out; it runs when a fit is traced, on no data.

        Raises:
            ValueError: for a prior that couples entries of virtual space; for a program that observes; for a `param`
                site that changes what the program predicts.
        """
        where = f"StructuredLaplace on Dynamics({self.model.name})"
        blank = empty(self.model)
        rows = Transitions(blank.states, blank.actions, blank.next_states)
        params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), self.space.params)

        def at(params) -> Problem:
            return Problem(self.space.holding(params), self.model, rows)

        def curvatures(params):
            own, (run, *args) = at(params), latent_part(self.model, rows)
            draw_key, sign_key = jax.random.split(jax.random.key(0))
            z = own.space.draw_prior(draw_key, run, *args)
            if gaussians(own.space.trace(run, z, *args)):
                raise ValueError(f"{where}: the program observes data of its own; use Laplace.")
            direction = jax.random.normal(sign_key, z.shape, z.dtype)
            _, product = jax.jvp(jax.grad(own.log_prior), (z,), (direction,))
            zero = jnp.zeros(len(self.model.state), z.dtype)
            slopes = jax.jacrev(lambda params: at(params).error(z, zero))(params) if params else {}
            return product, -own.prior_precision(z) * direction, slopes

        with jax.ensure_compile_time_eval():
            product, expected, slopes = jax.tree.map(np.asarray, jax.jit(curvatures)(params))
        coupled = ~np.isclose(product, expected, rtol=1e-6, atol=1e-6 * np.max(np.abs(expected)))
        if coupled.any():
            names = [name for name in self.space.names if np.any(coupled & self.space.where(name.__eq__))]
            raise ValueError(
                f"{where}: the prior couples parameters ({', '.join(names)}), and thousands of them are only handled "
                "where it does not. Write a hierarchy non-centred (a standard Normal times its sd), or use Laplace."
            )
        for name, slope in slopes.items():
            if np.any(slope != 0):
                raise ValueError(
                    f"{where}: the `param` site {name!r} changes what the program predicts; here the evidence chooses "
                    "sds of priors only. Use residual(..., weights='all', learned=True), or NeuralLinear."
                )


class Found(NamedTuple):
    """Where a search ended: the point (P,), and the squared length of the step left in posterior sds."""

    point: Float[Array, " P"]
    decrement: Float[Array, ""]


def descend(problem: Problem, start: Float[Array, " P"], steps) -> Float[Array, " P"]:
    """Limited-memory BFGS (optax), for the long way from a random network; in units of the prior's sds at the start."""
    log_noise, sds = problem.log_noise(start), problem.sds(start)
    place = lambda v: start.at[problem.others].add(sds * v)  # noqa: E731
    loss = lambda v: -problem.log_joint(place(v), log_noise)  # noqa: E731
    optimiser = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def going(carry):
        _, _, slope, count = carry
        return (count < steps) & (slope > 1e-4)

    def step(carry):
        v, state, _, count = carry
        value, gradient = value_and_grad(v, state=state)
        change, state = optimiser.update(gradient, state, v, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(v, change), state, optax.tree.norm(gradient), count + 1

    zero = jnp.zeros(len(problem.others), start.dtype)
    first = (zero, optimiser.init(zero), jnp.asarray(jnp.inf, start.dtype), jnp.zeros((), int))
    v, *_ = jax.lax.while_loop(going, step, first)
    return jnp.where(jnp.isfinite(loss(v)), place(v), start)


def search(key: PRNGKeyArray, problem: Problem, start: Float[Array, " P"], steps) -> Found:
    """Levenberg-Marquardt with the noises where they are.

    Args:
        steps: at most.
    """
    log_noise = problem.log_noise(start)
    value = lambda z: problem.log_joint(z, log_noise)  # noqa: E731

    def going(carry):
        *_, decrement, count = carry
        return (count < steps) & (decrement > ENOUGH)

    def step(carry):
        key, z, best, damping, _, count = carry
        key, sketch_key = jax.random.split(key)
        damping = jnp.where(count == steps - 1, 0.0, damping)  # the last step tells how far the mode is
        sds = problem.sds(z)
        error, whitened = problem.whitened(z, log_noise, sds)
        gradient = whitened.pull(error) + sds * jax.grad(problem.log_prior)(z)[problem.others]
        rank = min(RANK, *whitened.shape)
        leading = Leading.sketched(sketch_key, whitened, rank, z.dtype)

        def curvature(v):
            v = leading.halved(v)
            return leading.halved(whitened.gram(v) + (1 + damping) * v)

        white, _ = cg(curvature, leading.halved(gradient), tol=1e-3, maxiter=INNER)
        move = leading.halved(white)
        later = z.at[problem.others].add(sds * move)
        found = value(later)
        better = jnp.isfinite(found) & (found >= best)
        z, best = jax.tree.map(lambda new, old: jnp.where(better, new, old), (later, found), (z, best))
        decrement = jnp.where(damping < 0.1, gradient @ move, jnp.inf)
        damping = jnp.where(better, jnp.maximum(damping / 10, 1e-9), jnp.maximum(damping * 6, 1e-4))
        return key, z, best, damping, decrement, count + 1

    infinity = jnp.asarray(jnp.inf, start.dtype)
    first = (key, start, value(start), jnp.asarray(1e-3, start.dtype), infinity, jnp.zeros((), int))
    _, z, _, _, decrement, _ = jax.lax.while_loop(going, step, first)
    return Found(z, decrement)
