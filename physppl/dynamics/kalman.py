"""The Kalman filter and smoother of a nonlinear machine: latent states of a recording, eliminated sample by sample.

For given parameters the filter is the forward sweep of the block elimination that a joint fit of parameters and states
would need: its innovations carry the marginal likelihood, its smoother returns the states. Exact where dynamics and
sensors are linear. Otherwise the dynamics enter by divided differences over the state's standard deviations
(M. Norgaard, N. Poulsen, O. Ravn, Automatica 36, 2000), not by their Jacobian at its mean: dry friction is steep at
rest and flat in motion, and a filter that is linearised at rest predicts a joint that never moves. Sensors are
processed one after the other (their noises are independent): no matrix is inverted. A reading that tells an interval
alone moves the state to the moments that a Gaussian has within it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from physppl.internal.truncated import truncated

SPACING = 3**0.5  # spacing h of the differences, in sds: matches a Gaussian's fourth moment
TURN = 2 * jnp.pi  # rad
TINY = 1e-14  # of a variance: a pivot below this share of it is rounding


class Samples(NamedTuple):
    """Inputs of the filter at each sample of one recording, (N, ...) each."""

    times: Float[Array, " N"]  # s
    lengths: Float[Array, " N"]  # s, to the next sample
    observations: Float[Array, "N d"]
    seen: Bool[Array, "N d"]  # True for readings that count
    alive: Bool[Array, " N"]  # True up to the last reading
    inputs: Float[Array, "N A"]  # as they arrive
    input_sd: Float[Array, "N A"] | None  # None: inputs are exact
    process_sd: Float[Array, "N D"]  # entering on the way to the next sample
    bounds: tuple[Array, Array] | None = None  # (N, d) each: values between which readings lie; None: they are exact


class Filtered(NamedTuple):
    """Results of the filter for one recording, (N, ...) each.

    `expected` and `spread` are mean and sd of the predictive distribution of each sensor's reading, given all earlier
    readings and those of the sensors before it in the same sample: the product of these densities is the likelihood.
    """

    expected: Float[Array, "N d"]
    spread: Float[Array, "N d"]
    mean: Float[Array, "N D"]  # given the readings up to this sample, included
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
    turns: tuple[bool, ...] | None = None,
    point: Float[Array, " D"] | None = None,
) -> Filtered:
    """Filter one recording.

    Args:
        step: the dynamics over one sample.
        observe: state -> readings.
        sensor_sd: sd of each sensor's noise; with `df` the scale of its Student-t.
        mean, sd: prior of the first state.
        df: degrees of freedom of heavy-tailed sensor noise; None is Gaussian. A reading far off its expectation then
            counts with the weight (df + 1) / (df + squared distance), so that outliers move the state little
            (G. Agamennoni et al., IEEE Trans. Signal Processing 60, 2012, in one pass).
        turns: True for sensors that read an angle: their errors are less than half a turn, in whichever turn they read.
        point: state at which the sensors are linearised at the first sample; by default its mean.
    """
    size, sensors = len(mean), range(len(sensor_sd))

    def body(carry, sample: Samples):
        mean, covariance, point = carry
        reading, push = jax.linearize(observe, point)
        jacobian = jax.vmap(push, out_axes=-1)(jnp.eye(size, dtype=mean.dtype))
        expected, spread = [], []
        for i in sensors:
            row = jacobian[i]
            cross = _product(covariance, row[:, None])[:, 0]
            noise = sensor_sd[i] ** 2
            expectation = reading[i] + jnp.sum(row * (mean - point))
            if turns is not None and turns[i]:
                whole = jnp.round((sample.observations[i] - expectation) / TURN)
                expectation = expectation + jnp.where(sample.seen[i], TURN * whole, 0.0)
            variance = jnp.sum(row * cross) + noise
            error = sample.observations[i] - expectation
            expected.append(expectation)
            spread.append(jnp.sqrt(variance))
            if df is not None:
                variance = variance + noise * ((df + error**2 / variance) / (df + 1) - 1)
            gain = jnp.where(sample.seen[i], cross / variance, 0.0)
            told = cross  # what the reading tells of the state: all of it, or a share
            if sample.bounds is not None:
                low, high = sample.bounds
                part = truncated(expectation, spread[-1], low[i], high[i])
                error, told = part.mean * spread[-1], cross * (1 - part.variance)
            mean = mean + gain * error
            covariance = covariance - gain[:, None] * told
        advance = partial(step, sample.times, sample.lengths)
        next_mean, next_covariance, cross = propagate(advance, mean, covariance, sample.inputs, sample.input_sd)
        next_covariance = next_covariance + jnp.diag(sample.process_sd**2)
        # The state is constant after the last reading: an unstable machine would diverge through the padding.
        next_mean = jnp.where(sample.alive, next_mean, mean)
        next_covariance = jnp.where(sample.alive, next_covariance, covariance)
        cross = jnp.where(sample.alive, cross, covariance)
        filtered = Filtered(jnp.stack(expected), jnp.stack(spread), mean, covariance, next_mean, next_covariance, cross)
        return (next_mean, next_covariance, next_mean), filtered

    return jax.lax.scan(body, (mean, jnp.diag(sd**2), mean if point is None else point), samples)[1]


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
        input_sd: sd of the inputs' errors; None for exact inputs.
    """
    # With r_i the columns of roots of the covariances of state and inputs, and h the spacing (Norgaard et al., 2000):
    # d_i = (f(m + h r_i) - f(m - h r_i)) / 2h,  s_i = (f(m + h r_i) + f(m - h r_i) - 2 f(m)) / 2h^2,
    # mean f(m) + sum s_i,  covariance sum d_i d_i' + (h^2 - 1) sum s_i s_i',  covariance with the state sum r_i d_i'.
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
    next_mean = ends[0] + jnp.sum(second, axis=0)
    next_covariance = _product(first.T, first) + (SPACING**2 - 1) * _product(second.T, second)
    return next_mean, next_covariance, _product(root, first[:size])


def _root(covariance: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """The Cholesky factor, column by column.

    A library's routine would cost more than the rest of the step, and has no derivative where a covariance is singular.
    """
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
    """The product a @ b of matrices so small that calling a library routine would cost more."""
    return jnp.sum(a[:, :, None] * b[None, :, :], axis=1)


def smooth(course: Filtered) -> tuple[Float[Array, "N D"], Float[Array, "N D D"]]:
    """Smoothed states (N, D) and their covariances (H. Rauch, F. Tung, C. Striebel, AIAA J. 3, 1965)."""

    def body(carry, sample):
        later_mean, later_covariance = carry
        _, _, mean, covariance, next_mean, next_covariance, cross = sample
        root = _root(next_covariance)  # a column is zero where the next state is known, given those before: no gain
        root = root + jnp.diag(jnp.where(jnp.diagonal(root) > 0, 0.0, 1.0))
        gain = jax.scipy.linalg.cho_solve((root, True), cross.T).T
        mean = mean + gain @ (later_mean - next_mean)
        covariance = covariance + gain @ (later_covariance - next_covariance) @ gain.T
        return (mean, covariance), (mean, covariance)

    last = (course.mean[-1], course.covariance[-1])
    _, (means, covariances) = jax.lax.scan(body, last, jax.tree.map(lambda x: x[:-1], course), reverse=True)
    return jnp.concatenate([means, last[0][None]]), jnp.concatenate([covariances, last[1][None]])
