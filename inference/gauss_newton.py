"""The mode of thousands of weights, by products with the Jacobian only.

Quasi-Newton steps lead from a random network to the neighbourhood of the mode; Gauss-Newton steps by conjugate
gradients (J. Martens, ICML 2010) converge to it and measure the remaining distance.
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
from physppl.language.transition import Transition
from physppl.posterior.backend import empty

CONVERGED = 1e-12  # squared length of a step, in posterior sds, at which a search ends
RANK = 64  # of the preconditioner of the conjugate gradients
INNER = 100  # conjugate-gradient iterations of one step, at most
MIN_PRECISION = 1e-6  # of the prior, where it is not log-concave


class Problem(NamedTuple):
    """The mode problem of a Dynamics at fixed noises.

    Attributes:
        parameters: indices of all entries of unconstrained space but the noises; `noises` are those of the rest.
    """

    space: UnconstrainedSpace
    model: Dynamics
    data: Transitions

    @property
    def noises(self) -> Int[np.ndarray, " K"]:
        return np.flatnonzero(self.space.where(NOISES.__contains__))

    @property
    def parameters(self) -> Int[np.ndarray, " O"]:
        return np.flatnonzero(~self.space.where(NOISES.__contains__))

    def log_noise(self, z: Float[Array, " P"]) -> Float[Array, " D"]:
        """Log of the process-noise sd of each coordinate."""
        return jnp.log(self._transition(z).noise)

    def error(self, z: Float[Array, " P"], log_noise: Float[Array, " D"]) -> Float[Array, "N D"]:
        """Outcomes minus predictions, in sds of the noise; zero where a row is not valid."""
        step = self._transition(z).stepper()
        means = jax.vmap(step)(self.data.times, self.data.states, self.data.actions)
        return (self.model.outcomes(self.data) - means) * jnp.exp(-log_noise) * self.data.valid[:, None]

    def log_prior(self, z: Float[Array, " P"]) -> Float[Array, ""]:
        return self.space.log_prior(self.model, z, self.data)

    def log_joint(self, z: Float[Array, " P"], log_noise: Float[Array, " D"]) -> Float[Array, ""]:
        """Log density of the outcomes and of z."""
        square = jnp.sum(self.error(z, log_noise) ** 2)
        normaliser = jnp.sum(self.data.valid) * jnp.sum(log_noise + 0.5 * jnp.log(2 * jnp.pi))
        return self.log_prior(z) - 0.5 * square - normaliser

    def prior_precision(self, z: Float[Array, " P"]) -> Float[Array, " P"]:
        """Diagonal of the prior's curvature, by its product with ones: exact where entries are independent a priori."""
        _, product = jax.jvp(jax.grad(self.log_prior), (z,), (jnp.ones_like(z),))
        return -product

    def sds(self, z: Float[Array, " P"]) -> Float[Array, " O"]:
        """Prior sds of the parameters, from the prior's curvature at z."""
        return jnp.maximum(self.prior_precision(z)[self.parameters], MIN_PRECISION) ** -0.5

    def whitened(self, z: Float[Array, " P"], log_noise: Float[Array, " D"], sds) -> tuple[Array, Whitened]:
        """Error (N D,), and products with the Jacobian of the predictions in units of noise and prior sds."""

        def negative_error(v):
            return -self.error(z.at[self.parameters].add(sds * v), log_noise).reshape(-1)

        zero = jnp.zeros(len(self.parameters), z.dtype)
        negative, push = jax.linearize(negative_error, zero)
        pull = jax.linear_transpose(push, zero)

        def dense():  # row by row, as each row depends on its own input alone
            _, jacobians = row_jacobians(self.space, self.model, self.data, z)
            weights = jnp.exp(-log_noise) * self.data.valid[:, None]
            return (jacobians[..., self.parameters] * sds * weights[..., None]).reshape(len(negative), len(zero))

        return -negative, Whitened(push, lambda u: pull(u)[0], dense, (len(negative), len(zero)))

    def _transition(self, z) -> Transition:
        return self.model.bind(self.space.sites(self.model, z, self.data))

    def check(self) -> None:
        """Refuse models for which the algebra does not hold; runs while a fit is traced, without data.

        Raises:
            ValueError: for a prior that couples entries of unconstrained space, a program with observed sites, or a
                `param` site that changes the predictions.
        """
        where = f"StructuredLaplace on Dynamics({self.model.name})"
        blank = empty(self.model)
        rows = Transitions(blank.states, blank.actions, blank.next_states)
        params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), self.space.params)

        def at(params) -> Problem:
            return Problem(self.space.holding(params), self.model, rows)

        def curvatures(params):
            problem, (run, *args) = at(params), latent_part(self.model, rows)
            draw_key, direction_key = jax.random.split(jax.random.key(0))
            z = problem.space.draw_prior(draw_key, run, *args)
            if gaussians(problem.space.trace(run, z, *args)):
                raise ValueError(f"{where}: the program has observed sites besides the outcomes; use Laplace.")
            direction = jax.random.normal(direction_key, z.shape, z.dtype)
            _, product = jax.jvp(jax.grad(problem.log_prior), (z,), (direction,))
            zero = jnp.zeros(len(self.model.state), z.dtype)
            slopes = jax.jacrev(lambda params: at(params).error(z, zero))(params) if params else {}
            return product, -problem.prior_precision(z) * direction, slopes

        with jax.ensure_compile_time_eval():
            product, expected, slopes = jax.tree.map(np.asarray, jax.jit(curvatures)(params))
        coupled = ~np.isclose(product, expected, rtol=1e-6, atol=1e-6 * np.max(np.abs(expected)))
        if coupled.any():
            names = [name for name in self.space.names if np.any(coupled & self.space.where(name.__eq__))]
            raise ValueError(
                f"{where}: the prior couples parameters ({', '.join(names)}); they must be "
                "independent a priori. Write a hierarchy non-centred (a standard Normal times its sd), or use Laplace."
            )
        for name, slope in slopes.items():
            if np.any(slope != 0):
                raise ValueError(
                    f"{where}: the `param` site {name!r} changes what the program predicts; the evidence "
                    "can choose prior sds only. Use residual(..., weights='all', learned=True), or NeuralLinear."
                )


class SearchEnd(NamedTuple):
    """End point (P,) of a search, and the squared length of the remaining step in posterior sds."""

    point: Float[Array, " P"]
    decrement: Float[Array, ""]


def descend(problem: Problem, start: Float[Array, " P"], steps) -> Float[Array, " P"]:
    """Limited-memory BFGS (optax) from a random network, in units of the prior's sds at the start."""
    log_noise, sds = problem.log_noise(start), problem.sds(start)

    def point(v):
        return start.at[problem.parameters].add(sds * v)

    def loss(v):
        return -problem.log_joint(point(v), log_noise)

    optimiser = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def unfinished(carry):
        _, _, slope, count = carry
        return (count < steps) & (slope > 1e-4)

    def step(carry):
        v, state, _, count = carry
        value, gradient = value_and_grad(v, state=state)
        change, state = optimiser.update(gradient, state, v, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(v, change), state, optax.tree.norm(gradient), count + 1

    zero = jnp.zeros(len(problem.parameters), start.dtype)
    first = (zero, optimiser.init(zero), jnp.asarray(jnp.inf, start.dtype), jnp.zeros((), int))
    v, *_ = jax.lax.while_loop(unfinished, step, first)
    return jnp.where(jnp.isfinite(loss(v)), point(v), start)


def search(key: PRNGKeyArray, problem: Problem, start: Float[Array, " P"], steps) -> SearchEnd:
    """Levenberg-Marquardt search at fixed noises, each step by preconditioned conjugate gradients.

    Args:
        steps: at most.
    """
    log_noise = problem.log_noise(start)

    def unfinished(carry):
        *_, decrement, count = carry
        return (count < steps) & (decrement > CONVERGED)

    def iterate(carry):
        key, z, best, damping, _, count = carry
        key, sketch_key = jax.random.split(key)
        damping = jnp.where(count == steps - 1, 0.0, damping)  # an undamped last step measures the distance to the mode
        sds = problem.sds(z)
        error, whitened = problem.whitened(z, log_noise, sds)
        gradient = whitened.pull(error) + sds * jax.grad(problem.log_prior)(z)[problem.parameters]
        rank = min(RANK, *whitened.shape)
        leading = Leading.sketched(sketch_key, whitened, rank, z.dtype)

        # (A' A + (1 + damping) I) step = gradient, A the whitened Jacobian, preconditioned on both sides by M^-1/2 with
        # M = I + the rank-`rank` approximation of A' A.
        def curvature(v):
            v = leading.precondition(v)
            return leading.precondition(whitened.gram(v) + (1 + damping) * v)

        white, _ = cg(curvature, leading.precondition(gradient), tol=1e-3, maxiter=INNER)
        step = leading.precondition(white)
        candidate = z.at[problem.parameters].add(sds * step)
        log_joint = problem.log_joint(candidate, log_noise)
        better = jnp.isfinite(log_joint) & (log_joint >= best)
        z, best = jax.tree.map(lambda new, old: jnp.where(better, new, old), (candidate, log_joint), (z, best))
        decrement = jnp.where(damping < 0.1, gradient @ step, jnp.inf)
        damping = jnp.where(better, jnp.maximum(damping / 10, 1e-9), jnp.maximum(damping * 6, 1e-4))
        return key, z, best, damping, decrement, count + 1

    infinity = jnp.asarray(jnp.inf, start.dtype)
    log_joint, damping = problem.log_joint(start, log_noise), jnp.asarray(1e-3, start.dtype)
    first = (key, start, log_joint, damping, infinity, jnp.zeros((), int))
    _, z, _, _, decrement, _ = jax.lax.while_loop(unfinished, iterate, first)
    return SearchEnd(z, decrement)
