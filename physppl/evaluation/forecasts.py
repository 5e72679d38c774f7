"""Open-loop predictive distributions of states and sensor readings."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics.kalman import propagate
from physppl.dynamics.recordings import input_sd
from physppl.dynamics.sensors import OFFSETS, VARIATION
from physppl.language.integrate import course
from physppl.posterior.posterior import Posterior


class Forecast(NamedTuple):
    """Mean (B, d) and covariance (B, d, d) of the readings at the end of B windows."""

    mean: Float[np.ndarray, "B d"]
    covariance: Float[np.ndarray, "B d d"]

    @property
    def sd(self) -> Float[np.ndarray, "B d"]:
        return np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2))


def forecast_readings(
    key: PRNGKeyArray,
    posterior: Posterior,
    states: Float[Array | np.ndarray, "B D"],
    inputs: Float[Array | np.ndarray, "B T A"],
    start_sd: Float[Array | np.ndarray, " D"] | float = 0.0,
    draws: int = 64,
    *,
    start_covariance: Float[Array | np.ndarray, "B D D"] | None = None,
    times: Float[Array | np.ndarray, " B"] | float = 0.0,
) -> Forecast:
    """Mean and covariance of the sensor readings T steps ahead of known states.

    The mean is that of rollouts under posterior draws. The covariance is the sum of that between draws and that of the
    noise: of the start, the inputs, the process and the sensors, propagated along the rollout at the posterior's mean
    parameters as in the filter.

    Args:
        states: at the windows' starts.
        inputs: as they arrive (an input delay already applied), held over each step.
        start_sd: sd of the error of `states`, per coordinate.
        draws: posterior draws.
        start_covariance: covariance of the error of each of `states`, e.g. a filter's; in place of `start_sd`.
        times: s, at which the windows start; used only by programs that depend on time.
    """
    with jax.enable_x64(True):
        mean_key, key = jax.random.split(key)
        sites = mean_sites(mean_key, posterior)
        transitions = jax.vmap(posterior._draw)(jax.random.split(key, draws))
        if start_covariance is None:
            sd = jnp.broadcast_to(jnp.asarray(start_sd, float), states.shape)
            start_covariance = jax.vmap(jnp.diag)(sd**2)
        start = jnp.asarray(start_covariance, float)
        states, inputs = jnp.asarray(states, float), jnp.asarray(inputs, float)
        times = jnp.broadcast_to(jnp.asarray(times, float), states.shape[:1])
        moments = _moments(sites, transitions, states, inputs, start, times, dynamics=posterior.model)
    return Forecast(*map(np.asarray, moments))


def mean_sites(key: PRNGKeyArray, posterior: Posterior) -> dict[str, Array]:
    """Posterior mean of each latent site of a single recording."""
    samples = posterior.samples(key, 256)
    latent = UnconstrainedSpace.of(posterior.model, posterior.data, params=posterior.params).names
    means = {n: jnp.mean(jnp.asarray(samples[n], float), axis=0) for n in latent if n not in (VARIATION, OFFSETS)}
    return means | posterior.params


@functools.partial(jax.jit, static_argnames="dynamics")
def _moments(sites, transitions, states, inputs, start, times, *, dynamics):
    sensing, step = dynamics.sensing, dynamics.bind(sites).stepper()
    process = jnp.diag(dynamics.noise.value(sites) ** 2)
    errors = input_sd(sensing, sites, inputs)

    def noise_covariance(state, covariance, inputs, errors, start_time):
        def body(carry, at):
            x, covariance, t = carry
            x, covariance, _ = propagate(lambda x, u: step(t, x, u), x, covariance, *at)
            return (x, covariance + process, t + dynamics.dt), None

        (x, covariance, _), _ = jax.lax.scan(body, (state, covariance, start_time), (inputs, errors))
        rows = jax.jacfwd(sensing.read)(x)
        return rows @ covariance @ rows.T

    def end(transition, state, inputs, start_time):
        advance = transition.stepper()
        times = start_time + dynamics.dt * jnp.arange(len(inputs))
        x, _ = jax.lax.scan(lambda x, at: (advance(at[0], x, at[1]), None), state, (times, inputs))
        return sensing.read(x)

    noise = jax.vmap(noise_covariance)(states, start, inputs, errors, times)
    ends = jax.vmap(lambda f: jax.vmap(lambda *window: end(f, *window))(states, inputs, times))(transitions)
    ends = ends if sensing.instrument is None else sensing.instrument.held(ends)
    mean = jnp.mean(ends, axis=0)
    between_draws = jnp.einsum("kbi,kbj->bij", ends - mean, ends - mean) / (len(ends) - 1)
    return mean, noise + between_draws + jnp.diag(sensing.variance(sites))


def forecast(
    key: PRNGKeyArray,
    posterior: Posterior,
    states,
    inputs,
    draws: int = 100,
    *,
    noise: bool = True,
    times: Float[Array | np.ndarray, " B"] | float = 0.0,
) -> Float[np.ndarray, "K B N D"]:
    """Open-loop trajectories (K, B, N = T + 1, D) under K posterior draws, each for all windows.

    Args:
        states: initial states (B, D), e.g. `windows.initial_state`.
        inputs: (B, T, A) as they arrive, e.g. `windows.inputs`.
        draws: K. The mean over draws is the predictive mean, their quantiles are its intervals.
        noise: add process noise at every step, as intervals need; leave it out for the mean.
        times: s, at which the windows start; they matter only where the program reads the time.
    """
    draw_key, noise_key = jax.random.split(key)
    transitions = jax.vmap(posterior.draw)(jax.random.split(draw_key, draws))
    keys = jax.random.split(noise_key, (draws, len(states)))
    states, inputs = jnp.asarray(states), jnp.asarray(inputs)
    times = jnp.broadcast_to(jnp.asarray(times, jnp.result_type(states, 0.0)), states.shape[:1])
    return np.asarray(_forecast(keys, transitions, states, inputs, times, noise))


@eqx.filter_jit
def _forecast(keys, transitions, states, inputs, times, noise: bool):
    def roll(key, transition, state, inputs, start):
        step = transition.stepper()

        def advance(x, key, action, t):  # inputs are those that arrive
            return transition.sample(key, x, action, t) if noise else step(t, x, action)

        passed = start + transition.dynamics.dt * jnp.arange(len(inputs))
        state = jnp.asarray(state, transition.noise.dtype)
        return course(advance, state, jax.random.split(key, len(inputs)), inputs, passed)

    windows = jax.vmap(roll, in_axes=(0, None, 0, 0, 0))
    return jax.vmap(windows, in_axes=(0, 0, None, None, None))(keys, transitions, states, inputs, times)
