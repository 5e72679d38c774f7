"""Searches of recordings from several starts, one after the other, and walks along what the data leave flat.

A density of recordings costs a pass of the filter, and its curvature one for each parameter: starts are screened by
their density, and searched one by one until two of them end at the same best mode. From that mode the density is then
followed along the directions that the data leave open, with all other coordinates relaxed (a profile, as of
likelihoods): where it falls by less than its curvature says, the walk goes on, and what it finds uphill is searched.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from physppl.data.trajectories import Trajectories
from physppl.density.curvature import Local, local
from physppl.density.mode import Mode, find_mode
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics.sensors import MEASUREMENT, OFFSETS, of_program
from physppl.internal import gaussians

SCREENED = 32  # prior draws, each with its sensor noise and with e^4 times less
APART = 0.3  # prior sds, of some parameter, between starts that are searched both
LEAST_GAIN = 0.5  # nats in ten steps or so, below which a search is given up: rough densities end none
AGREEING = 2  # searches that must have ended at the best mode before the rest is left out
FEWEST = 3  # searches, however they end
MERGED = 0.3  # nats and squared sds within which two searches ended at the same mode
OPEN = 0.1  # of the prior's sd: directions in which the posterior is wider are walked along
DIRECTIONS = 3  # that are walked along, at most, on either side
FIRST = 2.0  # posterior sds of a walk's first step, at which a Gaussian has fallen by 2 nats
LATER = 1.5  # posterior sds of its other steps
CORRECTIONS = 40  # evaluations of one step of a walk, at most
SHORTEST = 0.5  # posterior sds: shorter steps of a walk are not tried
WALKED = 16  # steps of a walk, at most
WALKABLE = 1.0  # nats: a walk goes on where the density falls by less over its first step
GAUSSIAN = 2.0  # nats by which a Gaussian falls over the first step
DEPTH = 3.0  # nats below the mode at which a walk ends
UPHILL = 0.2  # nats above the mode from which a search begins anew
STIFF = 1e3  # precision that holds a walk at its step, in those of the posterior
MOVES = 96  # searches and steps altogether, at most
WINDOW = 512  # samples of recordings on which searches begin where they are longer than twice that
ON_THE_WHOLE = 3  # searches of long recordings after those, at most
FRESH, WALK, AGAIN, DONE = range(4)


class Explored(NamedTuple):
    """Modes of all searches (T, ...), their log evidences (-inf where a search did not end at one) and the best one.

    `drop` is the least fall of the log density, nats, two sds from the best mode along any direction that the data
    leave open: 2 of a Gaussian.
    """

    modes: Mode
    log_evidence: Float[Array, " T"]
    best: Int[Array, ""]
    drop: Float[Array, ""]


class _Walk(NamedTuple):
    """Place of a walk.

    Attributes:
        point, log_joint: where it stands.
        along: the functional that it raises.
        step: towards the profile's next point, one posterior sd of the functional long.
        length: of the next step, in such sds.
        taken: steps so far.
    """

    point: Array
    log_joint: Array
    along: Array
    step: Array
    length: Array
    taken: Array


class _State(NamedTuple):
    phase: Array
    moves: Array
    starts: Float[Array, "T P"]
    explored: Explored
    searches: Array
    gain: Array  # nats, of the first search
    leg: Array  # number of the walk from the best mode
    walk: _Walk
    uphill: _Walk  # the highest place of all walks from the best mode


class SearchTask(NamedTuple):
    """A density of recordings, and the limits of its searches.

    Attributes:
        space, model, data: of the density.
        unit: the prior's sd along each axis.
        steps: evaluations of one search, at most.
        searches: candidates that are searched, at most.
        tolerance: posterior sds from the mode at which a search may end.
    """

    space: UnconstrainedSpace
    model: Callable
    data: Trajectories
    unit: Float[Array, " P"]
    steps: int
    searches: int
    tolerance: float


def search_recordings(search: SearchTask, draws: Float[Array, "J P"]) -> tuple[Mode, Float[Array, ""]]:
    """Modes (T, ...) of all searches of recordings, and the least fall of the density two sds from the best one.

    Starts are prior draws, each with its sensor noise and with e^4 times less: with too large a noise a search can end
    at a mode that explains the motion as noise. Long recordings are first searched in their liveliest windows alone.
    """
    space, rows = search.space, search.data.rows()
    sensors = space.where(lambda name: name.endswith(MEASUREMENT))
    candidates = jnp.concatenate([draws, draws - 4.0 * sensors])
    if len(rows) * rows.batch_shape[0] > 2 * WINDOW and OFFSETS not in space.names:
        first = explore(search._replace(data=liveliest(rows)), candidates, walks=False)
        ends = first.modes.point[jnp.argsort(-first.log_evidence)]
        candidates = jnp.concatenate([ends, candidates[:: max(1, len(candidates) // 8)]])
        whole = search._replace(searches=min(search.searches, ON_THE_WHOLE))
        explored = explore(whole, candidates, of_part=True)
    else:
        explored = explore(search, candidates)
    return explored.modes, explored.drop


def liveliest(rows: Trajectories) -> Trajectories:
    """Windows, WINDOW samples together, of the recordings in which readings and inputs move most."""
    length = min(len(rows), WINDOW)
    seen = jnp.asarray(rows.seen)
    readings = jnp.where(seen, rows.observations, 0.0)
    columns = jnp.concatenate([readings, jnp.asarray(rows.actions, readings.dtype)], axis=-1)
    changes = jnp.abs(jnp.diff(columns, axis=1, prepend=columns[:, :1])) * jnp.asarray(rows.valid)[..., None]
    typical = jnp.mean(changes, axis=(0, 1))
    changes = jnp.minimum(changes / jnp.where(typical > 0, typical, 1.0), 10.0)  # outliers count little
    motion = jnp.cumsum(jnp.pad(jnp.sum(changes, axis=-1), ((0, 0), (1, 0))), axis=1)
    within = motion[:, length:] - motion[:, :-length]
    begins = jnp.argmax(within, axis=1)
    chosen = jnp.argsort(-jnp.max(within, axis=1))[: max(1, WINDOW // length)]
    plain = eqx.tree_at(lambda d: d.start, rows, None, is_leaf=lambda x: x is None)

    def cut(row, begin):
        along_time = eqx.tree_at(lambda d: d.before, row, None)
        window = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, begin, length), along_time)
        before = jnp.where(begin > 0, row.actions[jnp.maximum(begin - 1, 0)], row.before)
        return eqx.tree_at(lambda d: d.before, window, before, is_leaf=lambda x: x is None)

    return jax.vmap(cut)(jax.tree.map(lambda x: jnp.asarray(x)[chosen], plain), begins[chosen])


def explore(
    search: SearchTask, candidates: Float[Array, "C P"], *, walks: bool = True, of_part: bool = False
) -> Explored:
    """Search from the likeliest candidates, then walk from the best mode.

    Args:
        walks: False to leave the walks out.
        of_part: True for candidates that are modes of a part of the data: after the first search another is searched
            only where twice the first one's gain could make it the best, and one direction is walked along.
    """
    space, model, data, unit, steps, searches, tolerance = search
    program = np.flatnonzero(space.where(of_program)) if space.where(of_program).any() else np.arange(space.size)
    directions = min(1 if of_part else DIRECTIONS, len(program))
    allowed, legs = min(searches, len(candidates)), 2 * directions if walks else 0
    fewest, room = min(FEWEST, allowed), allowed + min(legs, 3)
    density = jax.lax.map(lambda z: space.log_joint(model, z, data), candidates)
    density = jnp.where(jnp.isfinite(density), density, -jnp.inf)

    def evaluate(z):
        return local(space, model, data, z)

    def held(z, along, target) -> Local:
        """Local density with a narrow Gaussian factor at along' z = target; none where `along` is zero."""
        density, off = evaluate(z), target - along @ z
        return Local(
            density.log_joint - 0.5 * STIFF * off**2,
            density.gradient + STIFF * off * along,
            density.curvature + STIFF * jnp.outer(along, along),
        )

    def next_candidate(state: _State) -> tuple[Array, Array]:
        """The likeliest candidate that is apart from all that were searched, and its log density."""
        searched = jnp.concatenate([state.starts, state.explored.modes.point])
        used = jnp.tile(jnp.arange(room) < state.searches, 2)
        gaps = jnp.abs(candidates[:, None] - searched[None])[..., program] / unit[program]
        near = jnp.any((jnp.max(gaps, axis=-1) < APART) & used, axis=1)
        apart = jnp.where(near, density - 1e6, density)
        return candidates[jnp.argmax(apart)], jnp.max(apart)

    def departure(top: Mode, leg) -> tuple[_Walk, Array]:
        """Beginning of a walk from the best mode, and True where the data leave its direction open."""
        factor = gaussians.inverse_factor(top.local.curvature)
        left, lengths, _ = jnp.linalg.svd((factor / unit)[:, program], full_matrices=False)
        step = (left.T @ factor)[leg // 2] * jnp.where(leg % 2 == 0, 1.0, -1.0)
        length = jnp.asarray(FIRST, unit.dtype)
        walk = _Walk(top.point, top.local.log_joint, top.local.curvature @ step, step, length, jnp.zeros((), int))
        return walk, (leg < legs) & (lengths[leg // 2] > OPEN) & jnp.all(jnp.isfinite(step))

    def move(state: _State) -> _State:
        walking, walk = state.phase == WALK, state.walk
        candidate, before = next_candidate(state)
        start = jnp.where(state.phase == FRESH, candidate, state.uphill.point)
        start = jnp.where(walking, walk.point + walk.length * walk.step, start)
        along = jnp.where(walking, walk.along, 0.0)
        target = along @ start
        mode = find_mode(
            lambda z: held(z, along, target), start[None], unit, jnp.where(walking, CORRECTIONS, steps), patience=0,
            tolerance=jnp.where(walking, 0.1, tolerance), least_gain=jnp.where(state.phase == FRESH, LEAST_GAIN, 0.0),
        )  # fmt: skip
        free = Local(
            mode.local.log_joint + 0.5 * STIFF * (target - along @ mode.point) ** 2,
            mode.local.gradient,
            mode.local.curvature - STIFF * jnp.outer(along, along),
        )
        state = state._replace(moves=state.moves + 1)
        return jax.lax.cond(walking, stepped, searched, state, start, before, mode._replace(local=free))

    def searched(state: _State, start, before, mode: Mode) -> _State:
        """The state after a search: more of them, or walks from the best mode."""
        explored, t, count = state.explored, state.searches, state.searches + 1
        factor = gaussians.inverse_factor(mode.local.curvature)
        evidence = gaussians.log_evidence(mode.local.log_joint, factor)
        evidence = jnp.where(jnp.isfinite(evidence) & (mode.decrement < 1.0), evidence, -jnp.inf)
        modes = jax.tree.map(lambda all_, new: all_.at[t].set(new), explored.modes, mode)
        evidences = explored.log_evidence.at[t].set(evidence)
        at_mode = jnp.isfinite(evidences)
        best = jnp.argmax(jnp.where(at_mode.any(), evidences, modes.local.log_joint))
        top = jax.tree.map(lambda x: x[best], modes)
        shift = modes.point - top.point
        agree = jnp.einsum("tp,pq,tq->t", shift, top.local.curvature, shift) < MERGED
        agree &= at_mode & (jnp.abs(modes.local.log_joint - top.local.log_joint) < MERGED)
        enough = (jnp.sum(agree) >= AGREEING) & (count >= fewest)
        again, starts = state.phase == AGAIN, state.starts.at[t].set(start)
        gain = jnp.where(t == 0, mode.local.log_joint - before, state.gain)
        explored = Explored(modes, evidences, best, explored.drop)
        if of_part:
            ahead = next_candidate(state._replace(starts=starts, explored=explored, searches=count))[1] + 2 * gain
            enough |= at_mode[best] & (ahead < top.local.log_joint)
        over = again | enough | (count >= allowed)
        walk, is_open = departure(top, jnp.zeros((), int))
        walks_now = over & is_open & at_mode[best] & (~again | (best == t))
        phase = jnp.where(walks_now, WALK, jnp.where(over, DONE, FRESH))
        drop = jnp.where(~again | (best == t), jnp.asarray(GAUSSIAN, unit.dtype), explored.drop)
        explored = explored._replace(drop=drop)
        return _State(phase, state.moves, starts, explored, count, gain, jnp.zeros((), int), walk, walk)

    def stepped(state: _State, start, before, mode: Mode) -> _State:
        """The state after a step: more of them, another walk, or a search from the highest place."""
        explored, walk = state.explored, state.walk
        top = jax.tree.map(lambda x: x[explored.best], explored.modes)
        log_joint, first = mode.local.log_joint, walk.taken == 0
        fall = top.local.log_joint - log_joint
        factor = gaussians.inverse_factor(mode.local.curvature)
        white = factor @ walk.along  # the profile's tangent, of one sd of the functional
        step = white @ factor / jnp.linalg.norm(white)
        after = _Walk(mode.point, log_joint, walk.along, step, jnp.full_like(walk.length, LATER), walk.taken + 1)
        usable = jnp.isfinite(fall) & (mode.decrement < 1.0)
        drop = jnp.where(first & usable, jnp.minimum(explored.drop, fall), explored.drop)
        higher = usable & (log_joint > state.uphill.log_joint)
        uphill = jax.tree.map(lambda new, old: jnp.where(higher, new, old), after, state.uphill)
        least = jnp.where(first, WALKABLE, DEPTH)
        goes_on = usable & jnp.all(jnp.isfinite(step)) & (fall < least) & (after.taken < WALKED)
        climbed = uphill.log_joint > top.local.log_joint + UPHILL
        # A walk that climbs goes on to the top; then the mode there is searched, and walked from.
        goes_on &= ~climbed | higher
        shorter = walk._replace(length=walk.length / 2)  # a profile may bend too much for the step
        again = ~first & ~goes_on & ~climbed & ~(usable & (fall < DEPTH)) & (walk.length > SHORTEST)
        leg = state.leg + jnp.where(goes_on | again, 0, 1)
        new_walk, is_open = departure(top, leg)
        walk = jax.tree.map(lambda a, b, c: jnp.where(goes_on, a, jnp.where(again, b, c)), after, shorter, new_walk)
        ended = jnp.where(climbed & (state.searches < room), AGAIN, jnp.where(is_open, WALK, DONE))
        phase = jnp.where(goes_on | again, WALK, ended)
        return state._replace(phase=phase, explored=explored._replace(drop=drop), leg=leg, walk=walk, uphill=uphill)

    shape = jax.eval_shape(lambda: find_mode(evaluate, candidates[:1], unit, 1))
    modes = jax.tree.map(lambda x: jnp.zeros((room, *x.shape), x.dtype), shape)
    modes = eqx.tree_at(lambda m: m.local.log_joint, modes, replace_fn=lambda x: x - jnp.inf)
    nothing = jnp.full(room, -jnp.inf, candidates.dtype)
    zero = jnp.zeros((), int)
    walk = _Walk(candidates[0], nothing[0], candidates[0], candidates[0], nothing[0], zero)
    explored = Explored(modes, nothing, zero, jnp.asarray(GAUSSIAN, candidates.dtype))
    state = _State(zero, zero, jnp.zeros_like(modes.point), explored, zero, nothing[0], zero, walk, walk)
    return jax.lax.while_loop(lambda s: (s.phase != DONE) & (s.moves < MOVES), move, state).explored
