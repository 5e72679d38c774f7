"""The Kalman filter and smoother of a nonlinear machine: latent states of a recording, eliminated sample by sample.

For given parameters the filter is the forward sweep of the block elimination that a joint fit of parameters and states
would need: its innovations carry the marginal likelihood, its smoother returns the states. Exact where dynamics and
sensors are linear. Else the dynamics are replaced by differences over the state's own spread (M. Norgaard, N. Poulsen,
O. Ravn, Automatica 36, 2000), not by their slope at its mean: dry friction is steep where a joint stands and flat where
it moves, and a filter that believes the slope thinks itself stuck. Sensors are processed one after the other (their
noises are independent): no matrix is inverted.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

SPACING = 3**0.5  # of differences, in sds: matches a Gaussian's fourth moment
TINY = 1e-14  # of a variance: what is left of it is rounding


class Samples(NamedTuple):
    """What the filter reads at each sample of one recording, (N, ...) each."""

    times: Float[Array, " N"]  # s
    lengths: Float[Array, " N"]  # s, to the next sample
    observations: Float[Array, "N d"]
    seen: Bool[Array, "N d"]  # which readings count
    alive: Bool[Array, " N"]  # whether a reading is still to come
    inputs: Float[Array, "N A"]  # as they arrive
    input_sd: Float[Array, "N A"] | None  # None: inputs are exact
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
    cross: Float[Array, "N D D"]  # covariance of the sample's state with the next sample's


SampleStep = Callable[[Array, Array, Array, Array], Array]  # (time, length, state, input) -> next state
Observe = Callable[[Array], Array]


def kalman_filter(
    step: SampleStep,
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
            gain = jnp.where(sample.seen[i], cross / variance, 0.0)
            mean = mean + gain * error
            covariance = covariance - gain[:, None] * cross
        advance = lambda x, u: step(sample.times, sample.lengths, x, u)  # noqa: E731
        ahead, spread_ahead, cross = propagate(advance, mean, covariance, sample.inputs, sample.input_sd)
        spread_ahead = spread_ahead + jnp.diag(sample.process_sd**2)
        # After the last reading time stands still: an unstable machine would diverge through the padding.
        ahead = jnp.where(sample.alive, ahead, mean)
        spread_ahead = jnp.where(sample.alive, spread_ahead, covariance)
        cross = jnp.where(sample.alive, cross, covariance)
        course = Filtered(jnp.stack(expected), jnp.stack(spread), mean, covariance, ahead, spread_ahead, cross)
        return (ahead, spread_ahead), course

    _, course = jax.lax.scan(body, (mean, jnp.diag(sd**2)), samples)
    return course


def propagate(
    advance: Callable[[Array, Array], Array],
    mean: Float[Array, " D"],
    covariance: Float[Array, "D D"],
    inputs: Float[Array, " A"],
    input_sd: Float[Array, " A"] | None,
) -> tuple[Float[Array, " D"], Float[Array, "D D"], Float[Array, "D D"]]:
    """Mean and covariance of the next state, and its covariance with this one, by differences to second order.

    Args:
        advance: (state, input) -> next state, without noise.
        input_sd: of the inputs' own errors; None where there are none.
    """
    size, zeros = len(mean), jnp.zeros((len(mean), len(inputs)), mean.dtype)
    root = _root(covariance)
    offsets = jnp.concatenate([root.T, zeros], axis=1)
    if input_sd is not None:
        offsets = jnp.concatenate([offsets, jnp.concatenate([zeros.T, jnp.diag(input_sd)], axis=1)])
    centre = jnp.concatenate([mean, inputs])
    points = jnp.concatenate([centre[None], centre + SPACING * offsets, centre - SPACING * offsets])
    ends = jax.vmap(lambda p: advance(p[:size], p[size:]))(points)
    up, down = jnp.split(ends[1:] - ends[0], 2)
    first, second = (up - down) / (2 * SPACING), (up + down) / (2 * SPACING**2)
    ahead = ends[0] + jnp.sum(second, axis=0)
    spread = _product(first.T, first) + (SPACING**2 - 1) * _product(second.T, second)
    return ahead, spread, _product(root, first[:size])


def _root(covariance: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """The Cholesky factor, column by column: a library's would cost more than the rest of the step, and has no slope
    where a covariance is singular."""
    columns, rest, size = [], covariance, len(covariance)
    for i in range(size):
        pivot = rest[i, i]
        positive = pivot > TINY * covariance[i, i]
        column = jnp.where(positive, rest[:, i] / jnp.sqrt(jnp.where(positive, pivot, 1.0)), 0.0)
        column = jnp.where(jnp.arange(size) < i, 0.0, column)
        columns.append(column)
        rest = rest - column[:, None] * column[None, :]
    return jnp.stack(columns, axis=1)


def _product(a, b):
    """a @ b of matrices so small that the call of a library routine would cost more than the product."""
    return jnp.sum(a[:, :, None] * b[None, :, :], axis=1)


def smooth(course: Filtered) -> tuple[Float[Array, "N D"], Float[Array, "N D D"]]:
    """States (N, D) given the whole recording, and their covariances (Rauch, Tung and Striebel, AIAA J. 3, 1965)."""

    def body(carry, at):
        later, later_covariance = carry
        mean, covariance, ahead, spread, cross = at
        gain = jnp.linalg.solve(spread, cross.T).T
        mean = mean + gain @ (later - ahead)
        covariance = covariance + gain @ (later_covariance - spread) @ gain.T
        return (mean, covariance), (mean, covariance)

    last = (course.mean[-1], course.covariance[-1])
    rest = (course.mean, course.covariance, course.next_mean, course.next_covariance, course.cross)
    _, (means, covariances) = jax.lax.scan(body, last, jax.tree.map(lambda x: x[:-1], rest), reverse=True)
    return jnp.concatenate([means, last[0][None]]), jnp.concatenate([covariances, last[1][None]])
