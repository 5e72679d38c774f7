"""Scores of predictions of unseen data, one step and several steps ahead."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray
from numpyro import handlers

from physppl.data.data import Data
from physppl.data.trajectories import Trajectories
from physppl.data.transitions import Transitions
from physppl.density.unconstrained import UnconstrainedSpace, gaussians
from physppl.dynamics import Dynamics
from physppl.dynamics.likelihood import Dependence
from physppl.dynamics.sensors import OFFSETS
from physppl.evaluation import recording_forecasts, scoring_rules
from physppl.evaluation.scoring_rules import NormalMixture
from physppl.internal.precision import doubles
from physppl.posterior.posterior import Posterior

MAX_WINDOWS = 200  # of several steps, evenly spread


class Predicted(NamedTuple):
    """N outcomes of d coordinates and their predictive distribution.

    Attributes:
        outcomes: (N, d), on the branch of the predictions where they are angles.
        mixture: predictive distribution, over S posterior draws.
        counted: (N, d), or broadcastable to it: True for outcomes that were measured.
    """

    outcomes: Float[Array, "N d"]
    mixture: NormalMixture
    counted: Bool[Array, "#N #d"]


class Scores(NamedTuple):
    """Scores of one posterior at one horizon.

    Attributes:
        size: number of predicted outcomes.
        rmse, crps: (d,) in the coordinates' units; `crps` is NaN for sensors that are Student-t, round or saturate.
        coverage: (L, d), share inside the central intervals of `physppl.evaluation.scoring_rules.LEVELS`.
        log_density: mean over outcomes, joint over coordinates, nats; with its standard error.
    """

    size: int
    rmse: Float[np.ndarray, " d"]
    crps: Float[np.ndarray, " d"]
    coverage: Float[np.ndarray, "L d"]
    log_density: float
    log_density_se: float


def evaluate(key: PRNGKeyArray, posterior: Posterior, data: Any, steps: int, draws: int) -> Scores | None:
    """Scores of predictions `steps` ahead; None where the data have no window of this length."""
    with jax.enable_x64(True):
        dependence = posterior.model.likelihood(data).dependence
        if dependence is Dependence.ROWS:
            predicted = _transitions(key, posterior, data, steps, draws)
        elif dependence is Dependence.RECORDINGS:
            predicted = _recordings(key, posterior, data, steps, draws)
        else:
            predicted = _one_step(key, posterior, data, draws) if steps == 1 else None
        if predicted is None:
            return None
        rows, rmse, crps, inside = jax.tree.map(np.asarray, _scores(*predicted))
    measured = np.asarray(predicted.counted)
    rows = rows[np.broadcast_to(measured, predicted.outcomes.shape).any(axis=-1)]
    error = rows.std(ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else np.nan
    inside = np.where(np.isfinite(rmse), inside, np.nan)  # no coverage of predictions that are not finite
    return Scores(len(rows), rmse, crps, inside, float(rows.mean()), float(error))


@eqx.filter_jit
def _scores(outcomes, mixture: NormalMixture, counted):
    def average(x):
        return jnp.mean(x, axis=-2, where=jnp.broadcast_to(counted, outcomes.shape))

    return (
        scoring_rules.log_density(outcomes, mixture, counted),
        jnp.sqrt(average((outcomes - mixture.mean) ** 2)),
        average(scoring_rules.crps(outcomes, mixture)),
        average(scoring_rules.inside(outcomes, mixture).astype(float)),
    )


def _transitions(key, posterior: Posterior, data: Transitions, steps: int, draws: int) -> Predicted | None:
    """Open-loop predictions from known states; each posterior draw, with process noise, rolls out all windows.

    The last step contributes its whole Gaussian, the steps before it one path per draw, so that one step is exact.
    """
    model: Dynamics = posterior.model
    states, actions, times = (np.asarray(x, float) for x in (data.states, data.actions, data.times))
    starts = unbroken_windows(data, model, steps)
    if not len(starts):
        return None
    if steps > 1:
        starts = starts[np.unique(np.linspace(0, len(starts) - 1, min(MAX_WINDOWS, len(starts))).round().astype(int))]
    rows = starts[:, None] + np.arange(steps)
    draw_key, noise_key = jax.random.split(key)
    transitions = jax.vmap(posterior.draw)(jax.random.split(draw_key, draws))
    means = _ends(jax.random.split(noise_key, draws), transitions, states[starts], actions[rows], times[rows])
    outcomes = jnp.asarray(np.asarray(data.next_states, float)[rows[:, -1]])
    means = outcomes - model.state.difference(outcomes, means)
    return Predicted(outcomes, NormalMixture(means, transitions.noise[:, None, :]), jnp.ones((1, 1), bool))


@eqx.filter_jit
def _ends(keys, transitions, states, inputs, times):
    """Means of the last states (S, B, D), before the noise of the last step."""

    def roll(key, transition, state, inputs, times):
        advance = transition.stepper()

        def body(x, at):
            key, u, t = at
            return advance(t, x, u) + transition.noise * jax.random.normal(key, x.shape, x.dtype), None

        before = (jax.random.split(key, len(inputs))[1:], inputs[:-1], times[:-1])
        x, _ = jax.lax.scan(body, state, before)
        return advance(times[-1], x, inputs[-1])

    def all_windows(key, transition):
        keys = jax.random.split(key, len(states))
        return jax.vmap(lambda *at: roll(at[0], transition, *at[1:]))(keys, states, inputs, times)

    return jax.vmap(all_windows)(keys, transitions)


def unbroken_windows(data: Transitions, model: Dynamics, steps: int) -> np.ndarray:
    """First rows of all windows of `steps` rows in which each row's outcome is the next row's state."""
    valid = np.asarray(data.valid)
    broken = np.concatenate([[0], np.cumsum(~data.followed(model.state))])  # breaks before each row
    first = np.arange(max(len(data) - steps + 1, 0))
    return first[valid[first] & (broken[first + steps - 1] == broken[first])]


def _recordings(key, posterior: Posterior, data: Trajectories, steps: int, draws: int) -> Predicted | None:
    """Predictions of readings: one step by a filter under each draw, several by `predict_ahead`'s two moments."""
    if steps == 1:
        return _one_step(key, posterior, recording_forecasts.stepwise(data.rows()), draws)
    model = posterior.model
    recordings = forecastable(data, steps, model)
    if not recordings:
        return None
    most, horizon = max(MAX_WINDOWS // len(recordings), 1), steps * model.dt
    ahead = [recording_forecasts.predict_ahead(key, posterior, r, horizon, most=most, draws=draws) for r in recordings]
    outcomes, mean, sd = (np.concatenate([getattr(a, x) for a in ahead]) for x in ("readings", "mean", "sd"))
    mean = outcomes - model.sensing.space.difference(outcomes, mean)
    outcomes, mean, sd = map(jnp.asarray, (outcomes, mean, sd))
    return Predicted(outcomes, NormalMixture(mean[None], sd[None]), jnp.ones((1, 1), bool))


def _one_step(key, posterior: Posterior, data: Data, draws: int) -> Predicted:
    """Terms of the likelihood under each draw, one outcome after the other; angles on the predictions' branch."""
    model = posterior.model
    outcomes, mixture, counted = outcome_terms(key, posterior, data, draws)
    lead = outcomes.ndim - 1

    def flat(x):
        return x.reshape(*x.shape[: x.ndim - 1 - lead], -1, x.shape[-1])

    outcomes, mixture, counted = jax.tree.map(flat, (outcomes, mixture, counted))
    means = outcomes - model.likelihood(data).space(model).difference(outcomes, mixture.means)
    return Predicted(outcomes, mixture._replace(means=means), counted)


def forecastable(data: Trajectories, steps: int, model: Dynamics) -> list[Trajectories]:
    """Recordings with a window of `steps` at whose end all sensors were read, each cut after its last reading."""
    rows = data.rows()
    recordings = []
    for i, valid in enumerate(np.asarray(rows.valid)):
        recording = jax.tree.map(lambda x: np.asarray(x)[i], rows)  # noqa: B023
        recordings.append(recording[: max(np.flatnonzero(valid), default=0) + 1])
    return [r for r in recordings if len(recording_forecasts.reading_windows(r, steps, model)[0])]


def outcome_terms(key: PRNGKeyArray, posterior: Posterior, data: Data, draws: int) -> Predicted:
    """Each outcome (..., N, d) and the terms of its likelihood under draws of a posterior, (S, ..., N, d).

    Parameters that vary between recordings are drawn anew.

    Raises:
        ValueError: where the posterior lacks a site of the likelihood, such as the sensors' noise.
    """
    model = posterior.model
    sample_key, new_key, order_key = jax.random.split(key, 3)
    samples = posterior.samples(sample_key, draws)
    needed = [name for name in UnconstrainedSpace.of(model, data, params=posterior.params).names if name != OFFSETS]
    if lacking := [name for name in needed if name not in samples]:
        kind = type(posterior.data).__name__
        raise ValueError(
            f"the {posterior.method} posterior has no site {', '.join(lacking)}, without which {data.row}s cannot be "
            f"predicted: fitted to {kind}, it has no parameters of the {model.likelihood(data).axis}s. "
            f"Test it on {kind}, or fit {type(data).__name__}."
        )
    count = len(samples[needed[0]])
    pick = np.linspace(0, count - 1, min(draws, count)).round().astype(int)
    pick = np.asarray(jax.random.permutation(order_key, pick))  # CRPS takes consecutive draws for independent
    return _terms(new_key, {name: samples[name][pick] for name in needed}, posterior.params, model, data)


@eqx.filter_jit
def _terms(key, samples, params, model: Dynamics, data: Data) -> Predicted:
    data = doubles(data)

    def predict(key_and_sites):
        key, sites = key_and_sites
        seeded = handlers.seed(handlers.substitute(model, data=sites | params), key)
        site = gaussians(handlers.trace(seeded).get_trace(data))[model.likelihood(data).site]
        instrument = None if site.bounds is None else model.sensing.instrument
        components = NormalMixture(site.mean, jnp.exp(site.log_scale), site.df, instrument)
        full = jax.tree.map(lambda x: jnp.broadcast_to(x, site.value.shape), (components, site.root_weight > 0))
        return site.value, *full

    keys = jax.random.split(key, len(jax.tree.leaves(samples)[0]))
    outcomes, mixture, counted = jax.lax.map(predict, (keys, samples), batch_size=32)
    return Predicted(outcomes[0], mixture, counted[0])
