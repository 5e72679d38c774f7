"""What a belief predicts of data it has not seen, one step and several steps ahead, beside what came."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray
from numpyro import handlers

from physppl.data.trajectories import Trajectories
from physppl.data.transitions import Transitions
from physppl.density.unconstrained import UnconstrainedSpace, gaussians
from physppl.dynamics import Dynamics
from physppl.dynamics.sensors import OFFSETS
from physppl.evaluation import recording_forecasts, scoring_rules
from physppl.evaluation.scoring_rules import NormalMixture
from physppl.internal.precision import doubles
from physppl.posterior.base import Posterior

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


def evaluate(
    key: PRNGKeyArray, posterior: Posterior, data: Transitions | Trajectories, steps: int, draws: int
) -> Scores | None:
    """Scores of predictions so many steps ahead; None where the data hold none."""
    with jax.enable_x64(True):
        if isinstance(data, Trajectories):
            predicted = _recordings(key, posterior, data, steps, draws)
        else:
            predicted = _transitions(key, posterior, data, steps, draws)
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
    model = posterior.model
    if steps == 1:
        flat = lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1])  # noqa: E731
        outcomes, mixture, counted = jax.tree.map(flat, readings_given_earlier(key, posterior, data, draws))
        means = outcomes - model.sensing.space.difference(outcomes, mixture.means)
        return Predicted(outcomes, mixture._replace(means=means), counted)
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


def readings_given_earlier(key: PRNGKeyArray, posterior: Posterior, data: Trajectories, draws: int) -> Predicted:
    """Each reading and the terms of its likelihood under draws of a belief: (R, N, d), of the mixture (S, R, N, d).

    Parameters that vary between recordings are drawn anew. Noise enters at every sample, whatever the fit's segments.

    Raises:
        ValueError: where the belief does not know the sensors.
    """
    model, rows = posterior.model, data.rows()
    rows = Trajectories(rows.observations, rows.actions, rows.times, valid=rows.valid, start=rows.start)
    sample_key, new_key, order_key = jax.random.split(key, 3)
    samples = posterior.samples(sample_key, draws)
    needed = [name for name in UnconstrainedSpace.of(model, rows, params=posterior.params).names if name != OFFSETS]
    if lacking := [name for name in needed if name not in samples]:
        raise ValueError(
            f"the {posterior.method} belief has no site {', '.join(lacking)}, without which readings cannot be "
            "predicted: fitted to Transitions, it knows nothing of the sensors. Test it on Transitions, or fit "
            "Trajectories."
        )
    count = len(samples[needed[0]])
    pick = np.linspace(0, count - 1, min(draws, count)).round().astype(int)
    pick = np.asarray(jax.random.permutation(order_key, pick))  # CRPS takes a chain's next draws for independent
    return _terms(new_key, {name: samples[name][pick] for name in needed}, posterior.params, model, rows)


@eqx.filter_jit
def _terms(key, samples, params, model: Dynamics, rows: Trajectories) -> Predicted:
    rows = doubles(rows)

    def one(at):
        key, sites = at
        seeded = handlers.seed(handlers.substitute(model, data=sites | params), key)
        site = gaussians(handlers.trace(seeded).get_trace(rows))["observation"]
        full = lambda x: jnp.broadcast_to(x, site.value.shape)  # noqa: E731
        df = None if site.df is None else full(site.df)
        return site.value, NormalMixture(full(site.mean), full(jnp.exp(site.log_scale)), df), full(site.root_weight > 0)

    keys = jax.random.split(key, len(jax.tree.leaves(samples)[0]))
    readings, mixture, counted = jax.lax.map(one, (keys, samples), batch_size=32)
    return Predicted(readings[0], mixture, counted[0])
