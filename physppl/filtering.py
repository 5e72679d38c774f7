"""The extended Kalman filter and smoother: latent states of a recording, eliminated sample by sample.

For given parameters the filter is the forward sweep of the block elimination that a joint fit of parameters and states
would need: its innovations carry the marginal likelihood, its smoother returns the states. Exact where dynamics and
sensors are linear; else linearised about the filter's own mean (A. Jazwinski, Stochastic Processes and Filtering
Theory, 1970). Sensors are processed one after the other (their noises are independent): no matrix is inverted.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


class Samples(NamedTuple):
    """What the filter reads at each sample of one recording, (N, ...) each."""

    times: Float[Array, " N"]  # s
    lengths: Float[Array, " N"]  # s, to the next sample
    observations: Float[Array, "N d"]
    valid: Bool[Array, " N"]
    alive: Bool[Array, " N"]  # whether a reading is still to come
    inputs: Float[Array, "N A"]  # as they arrive
    input_sd: Float[Array, "N A"]
    process_sd: Float[Array, "N D"]  # entering on the way to the next sample


class Filtered(NamedTuple):
    """The filter's course over one recording, (N, ...) each.

    `expected` and `spread` are mean and sd of each sensor's reading given all earlier readings, those of sensors before
    it in the same sample included: their product of densities is the likelihood.
    """

    expected: Float[Array, "N d"]
    spread: Float[Array, "N d"]
    mean: Float[Array, "N D"]  # given readings up to and with the sample
    covariance: Float[Array, "N D D"]
    next_mean: Float[Array, "N D"]  # of the next sample before its readings
    next_covariance: Float[Array, "N D D"]
    transition: Float[Array, "N D D"]


Step = Callable[[Array, Array, Array, Array], Array]  # (time, length, state, input) -> next state
Observe = Callable[[Array], Array]


def kalman_filter(
    step: Step,
    observe: Observe,
    sensor_sd: Float[Array, " d"],
    mean: Float[Array, " D"],
    sd: Float[Array, " D"],
    samples: Samples,
    df: float | None = None,
) -> Filtered:
    """Filter one recording.

    Args:
        step: the dynamics over one sample.
        observe: state -> readings.
        sensor_sd: of each sensor's noise; with `df` the scale of its Student-t.
        mean, sd: of the first state.
        df: degrees of freedom of heavy-tailed sensor noise; None is Gaussian. A reading far off its expectation then
            counts with the weight (df + 1) / (df + squared distance), so that outliers move the state little
            (G. Agamennoni et al., IEEE Trans. Signal Processing 60, 2012, in one pass).
    """
    size, names = len(mean), range(len(sensor_sd))

    def body(carry, sample: Samples):
        mean, covariance = carry
        reading, readings_of = jax.linearize(observe, mean)
        rows = jax.vmap(readings_of, out_axes=-1)(jnp.eye(size, dtype=mean.dtype))
        prior, expected, spread = mean, [], []
        for i in names:
            row = rows[i]
            cross = _product(covariance, row[:, None])[:, 0]
            noise = sensor_sd[i] ** 2
            guess = reading[i] + jnp.sum(row * (mean - prior))
            variance = jnp.sum(row * cross) + noise
            error = sample.observations[i] - guess
            expected.append(guess)
            spread.append(jnp.sqrt(variance))
            if df is not None:
                variance = variance + noise * ((df + error**2 / variance) / (df + 1) - 1)
            gain = jnp.where(sample.valid, cross / variance, 0.0)
            mean = mean + gain * error
            covariance = covariance - gain[:, None] * cross
        advance = lambda x, u: step(sample.times, sample.lengths, x, u)  # noqa: E731
        ahead, push = jax.linearize(advance, mean, sample.inputs)
        count = len(sample.inputs)
        basis = jnp.eye(size + count, dtype=mean.dtype)
        jacobian = jax.vmap(lambda e: push(e[:size], e[size:]), out_axes=-1)(basis)
        transition, by_input = jacobian[:, :size], jacobian[:, size:] * sample.input_sd
        noise = _product(by_input, by_input.T) + jnp.diag(sample.process_sd**2)
        spread_ahead = _product(_product(transition, covariance), transition.T) + noise
        spread_ahead = 0.5 * (spread_ahead + spread_ahead.T)  # rounding would grow where the machine is unstable
        # After the last reading time stands still: an unstable machine would diverge through the padding.
        ahead = jnp.where(sample.alive, ahead, mean)
        spread_ahead = jnp.where(sample.alive, spread_ahead, covariance)
        transition = jnp.where(sample.alive, transition, basis[:size, :size])
        course = Filtered(jnp.stack(expected), jnp.stack(spread), mean, covariance, ahead, spread_ahead, transition)
        return (ahead, spread_ahead), course

    _, course = jax.lax.scan(body, (mean, jnp.diag(sd**2)), samples)
    return course


def _product(a, b):
    """a @ b of matrices so small that the call of a library routine would cost more than the product."""
    return jnp.sum(a[:, :, None] * b[None, :, :], axis=1)


def smooth(course: Filtered) -> tuple[Float[Array, "N D"], Float[Array, "N D D"]]:
    """States (N, D) given the whole recording, and their covariances (Rauch, Tung and Striebel, AIAA J. 3, 1965)."""

    def body(carry, at):
        later, later_covariance = carry
        mean, covariance, ahead, spread, transition = at
        gain = jnp.linalg.solve(spread, transition @ covariance).T
        mean = mean + gain @ (later - ahead)
        covariance = covariance + gain @ (later_covariance - spread) @ gain.T
        return (mean, covariance), (mean, covariance)

    last = (course.mean[-1], course.covariance[-1])
    rest = (course.mean, course.covariance, course.next_mean, course.next_covariance, course.transition)
    _, (means, covariances) = jax.lax.scan(body, last, jax.tree.map(lambda x: x[:-1], rest), reverse=True)
    return jnp.concatenate([means, last[0][None]]), jnp.concatenate([covariances, last[1][None]])
