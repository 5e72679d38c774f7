"""What a belief predicts of data it has not seen, one step and several steps ahead, beside what came."""

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

MOST = 200  # windows of several steps, evenly spread
SAME = 1e-6  # of its scale: how far a state may be from the last one's outcome and still be the same


class Predicted(NamedTuple):
    """N outcomes of d coordinates and their predictive distribution.

    Attributes:
        outcomes: (N, d), on the branch of the predictions where they are angles.
        mixture: of S draws of the belief.
        counted: (N, d), or what broadcasts to it: which of the outcomes were seen.
    """

    outcomes: Float[Array, "N d"]
    mixture: NormalMixture
    counted: Bool[Array, "#N #d"]


class Scores(NamedTuple):
    """Of one belief at one horizon.

    Attributes:
        size: outcomes that were predicted.
        rmse, crps: (d,) in the coordinates' units; `crps` is NaN of Student-t sensors.
        coverage: (L, d), the share inside the central intervals of `physppl.evaluation.scoring_rules.LEVELS`.
        log_density: mean over outcomes, joint over coordinates, nats; with its standard error.
    """

    size: int
    rmse: Float[np.ndarray, " d"]
    crps: Float[np.ndarray, " d"]
    coverage: Float[np.ndarray, "L d"]
    log_density: float
    log_density_se: float


def evaluate(key: PRNGKeyArray, posterior: Posterior, data: Any, steps: int, draws: int) -> Scores | None:
    """Scores of predictions so many steps ahead; None where the data hold none."""
    with jax.enable_x64(True):
        structure = posterior.model.likelihood(data).structure
        if structure is Dependence.ROWS:
            predicted = _transitions(key, posterior, data, steps, draws)
        elif structure is Dependence.RECORDINGS:
            predicted = _recordings(key, posterior, data, steps, draws)
        else:
            predicted = _one_step(key, posterior, data, draws) if steps == 1 else None
        if predicted is None:
            return None
        rows, rmse, crps, inside = jax.tree.map(np.asarray, _scores(*predicted))
    seen = np.asarray(predicted.counted)
    rows = rows[np.broadcast_to(seen, predicted.outcomes.shape).any(axis=-1)]
    error = rows.std(ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else np.nan
    inside = np.where(np.isfinite(rmse), inside, np.nan)  # what is not finite lies in no interval
    return Scores(len(rows), rmse, crps, inside, float(rows.mean()), float(error))


@eqx.filter_jit
def _scores(outcomes, mixture: NormalMixture, counted):
    average = lambda x: jnp.mean(x, axis=-2, where=jnp.broadcast_to(counted, outcomes.shape))  # noqa: E731
    return (
        scoring_rules.log_density(outcomes, mixture, counted),
        jnp.sqrt(average((outcomes - mixture.mean) ** 2)),
        average(scoring_rules.crps(outcomes, mixture)),
        average(scoring_rules.inside(outcomes, mixture).astype(float)),
    )


def _transitions(key, posterior: Posterior, data: Transitions, steps: int, draws: int) -> Predicted | None:
    """Open loop from a known state; each draw of the belief, with its process noise, rolls out all windows.

    Before the last step there is a draw's path, of the last step its whole distribution: one step is exact.
    """
    model: Dynamics = posterior.model
    states, actions, times = (np.asarray(x, float) for x in (data.states, data.actions, data.times))
    starts = unbroken_windows(data, model, steps)
    if not len(starts):
        return None
    if steps > 1:
        starts = starts[np.unique(np.linspace(0, len(starts) - 1, min(MOST, len(starts))).round().astype(int))]
    rows = starts[:, None] + np.arange(steps)
    draw_key, noise_key = jax.random.split(key)
    transitions = jax.vmap(posterior.draw)(jax.random.split(draw_key, draws))
    means = _ends(jax.random.split(noise_key, draws), transitions, states[starts], actions[rows], times[rows])
    outcomes = jnp.asarray(np.asarray(data.next_states, float)[rows[:, -1]])
    means = outcomes - model.state.difference(outcomes, means)
    return Predicted(outcomes, NormalMixture(means, transitions.noise[:, None, :]), jnp.ones((1, 1), bool))


@eqx.filter_jit
def _ends(keys, transitions, states, inputs, times):
    """Last states before their noise (S, B, D)."""

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
    """First rows of all windows of so many steps: each row's outcome is the next row's state."""
    valid = np.asarray(data.valid)
    states, after = np.asarray(data.states, float), np.asarray(data.next_states, float)
    apart = np.abs(model.state.difference(after[:-1], states[1:]))
    joined = valid[:-1] & valid[1:] & np.all(apart <= SAME * model.state.scale, axis=-1)
    broken = np.concatenate([[0], np.cumsum(~joined)])  # breaks before each row
    first = np.arange(max(len(data) - steps + 1, 0))
    return first[valid[first] & (broken[first + steps - 1] == broken[first])]


def _recordings(key, posterior: Posterior, data: Trajectories, steps: int, draws: int) -> Predicted | None:
    """One step: each reading given all before it, by a filter under each draw. More: `predict_ahead`'s two moments."""
    if steps == 1:
        return _one_step(key, posterior, stepwise(data), draws)
    model = posterior.model
    recordings = forecastable(data, steps, model.dt)
    if not recordings:
        return None
    ahead = lambda one: recording_forecasts.predict_ahead(key, posterior, one, steps * model.dt, most=most, draws=draws)  # noqa: E731
    most = max(MOST // len(recordings), 1)
    found = [ahead(one) for one in recordings]
    outcomes, mean, sd = (np.concatenate([getattr(a, x) for a in found]) for x in ("readings", "mean", "sd"))
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


def stepwise(data: Trajectories) -> Trajectories:
    """Recordings into which process noise enters at every sample, whatever the fit's segments."""
    rows = data.rows()
    return Trajectories(rows.observations, rows.actions, rows.times, valid=rows.valid, start=rows.start)


def forecastable(data: Trajectories, steps: int, dt: float) -> list[Trajectories]:
    """The recordings, each until its last reading, in which all sensors are read so many steps after some sample."""
    rows = data.rows()
    found = []
    for i, valid in enumerate(np.asarray(rows.valid)):
        one = jax.tree.map(lambda x: np.asarray(x)[i], rows)  # noqa: B023
        one = one[: max(np.flatnonzero(valid), default=0) + 1]
        if len(recording_forecasts.reading_windows(one, steps, dt)[0]):
            found.append(one)
    return found


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
            f"predicted: fitted to {kind}, it knows nothing of the {model.likelihood(data).axis}s. Test it on {kind}, "
            f"or fit {type(data).__name__}."
        )
    count = len(samples[needed[0]])
    pick = np.linspace(0, count - 1, min(draws, count)).round().astype(int)
    pick = np.asarray(jax.random.permutation(order_key, pick))  # CRPS takes a chain's next draws for independent
    return _terms(new_key, {name: samples[name][pick] for name in needed}, posterior.params, model, data)


@eqx.filter_jit
def _terms(key, samples, params, model: Dynamics, data: Data) -> Predicted:
    data = doubles(data)

    def one(at):
        key, sites = at
        seeded = handlers.seed(handlers.substitute(model, data=sites | params), key)
        site = gaussians(handlers.trace(seeded).get_trace(data))[model.likelihood(data).site]

        def full(x):
            return jnp.broadcast_to(x, site.value.shape)

        df = None if site.df is None else full(site.df)
        return site.value, NormalMixture(full(site.mean), full(jnp.exp(site.log_scale)), df), full(site.root_weight > 0)

    keys = jax.random.split(key, len(jax.tree.leaves(samples)[0]))
    outcomes, mixture, counted = jax.lax.map(one, (keys, samples), batch_size=32)
    return Predicted(outcomes[0], mixture, counted[0])
