"""Functional SVGD particles with a simulator's functions as their prior: the idea of SIM-FSVGD, as a backend.

After J. Rothfuss et al., "Bridging the Sim-to-Real Gap with Bayesian Inference", 2024: networks are moved as functions.
At every step their values at some data and at points drawn from a measure are pushed by Stein's variational gradient
(Q. Liu, D. Wang, NeurIPS 2016; functional: Z. Wang et al., ICLR 2019) of a Gaussian prior process, whose moments at
these points are those of simulated functions plus a slack Gaussian process, and of the likelihood with known noise.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import physppl as pp
from physppl.data.data import drawn_rows
from physppl.data.input_measures import Box, Measure
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import DrawsPosterior, Slack

SIMULATED = 256  # functions of the prior from which its moments are taken


class FSVGD(pp.Backend[DrawsPosterior]):
    """Particles of a network program, its process noise known, with a simulator's functions as their prior.

    Attributes:
        physics: Dynamics whose program's prior functions are the prior, in the network's spaces.
        particles: how many networks.
        measure: of the points besides data.
        points, rows: how many of these, and of the data, at each step.
        bandwidth: of the kernel between functions, in units of the median distance between particles.
    """

    physics: pp.Dynamics = eqx.field(static=True)
    particles: int = eqx.field(default=10, static=True)
    measure: Measure = Box()
    slack: Slack = Slack()
    points: int = eqx.field(default=32, static=True)
    rows: int = eqx.field(default=32, static=True)
    steps: int = eqx.field(default=5000, static=True)
    rate: float = eqx.field(default=3e-3, static=True)
    bandwidth: float = eqx.field(default=1.0, static=True)

    def fit(self, key, model: Callable, data) -> DrawsPosterior:
        space, unit = UnconstrainedSpace.of(model, data), model.state.scale
        prior_key, start_key, key = jax.random.split(key, 3)
        physics = UnconstrainedSpace.of(self.physics, data)
        simulated = jax.vmap(lambda k: physics.draw_prior(k, self.physics, data))(
            jax.random.split(prior_key, SIMULATED)
        )
        start = jax.vmap(lambda k: space.draw_prior(k, model, data))(jax.random.split(start_key, self.particles))
        optimiser = optax.adam(optax.cosine_decay_schedule(self.rate, self.steps))
        noise = model.bind(space.sites(model, start[0], data)).noise / unit
        count = jnp.sum(data.valid)

        def values(own: UnconstrainedSpace, of: pp.Dynamics, z, states, actions):  # (M, D) change in scales
            function = of.bind(own.sites(of, z, data)).stepper()
            return (jax.vmap(lambda x, u: function(jnp.zeros(()), x, u))(states, actions) - states) / unit

        def inputs(states, actions):
            return jax.vmap(lambda x, u: jnp.concatenate([model.state.features(x), model.action.normalise(u)]))(
                states, actions
            )

        def push(z, key):
            row_key, point_key = jax.random.split(key)
            rows = drawn_rows(row_key, data.valid, self.rows)
            states, actions = self.measure.sample(point_key, self.points, model, data)
            states = jnp.concatenate([data.states[rows], states])
            actions = jnp.concatenate([data.actions[rows], actions])
            functions = jax.vmap(lambda v: values(physics, self.physics, v, states, actions))(simulated)  # (S, M, D)
            mean = jnp.mean(functions, axis=0)
            rest = (functions - mean) / jnp.sqrt(SIMULATED - 1.0)
            slack = self.slack.factor(inputs(states, actions), len(model.state))
            prior = jnp.einsum("smd,snd->dmn", rest, rest) + jnp.einsum("mdk,ndk->dmn", slack, slack)
            prior = prior + 1e-6 * jnp.eye(len(states))
            lower = jnp.linalg.cholesky(prior)
            own, pull = jax.vjp(lambda z: jax.vmap(lambda v: values(space, model, v, states, actions))(z), z)
            known = (model.outcomes(data)[rows] - data.states[rows]) / unit

            def score(f):  # of one function's values (M, D)
                error = (f - mean).T[..., None]
                of_prior = -jax.vmap(lambda low, e: jax.scipy.linalg.cho_solve((low, True), e))(lower, error)[..., 0].T
                of_data = jnp.where(count > 0, count / self.rows, 0.0) * (known - f[: self.rows]) / noise**2
                return of_prior.at[: self.rows].add(of_data)

            flat = own.reshape(self.particles, -1)
            square = jnp.sum((flat[:, None] - flat) ** 2, axis=-1)
            width = self.bandwidth**2 * jnp.median(square) / jnp.log(self.particles + 1.0) + 1e-12
            kernel = jnp.exp(-square / width)
            repulsion = 2 / width * (jnp.sum(kernel, axis=1, keepdims=True) * flat - kernel @ flat)
            stein = (kernel @ jax.vmap(score)(own).reshape(self.particles, -1) + repulsion) / self.particles
            return pull(-stein.reshape(own.shape) / jnp.maximum(count, 1))[0]

        def step(carry, key):
            z, state = carry
            change, state = optimiser.update(push(z, key), state)
            return (optax.apply_updates(z, change), state), None

        (z, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), jax.random.split(key, self.steps))
        return DrawsPosterior(model, data, space, z[None], {}, method="FSVGD")
