"""More data: a belief continued is the belief of all data."""

import functools
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import linear_data, linear_dynamics, recording

import physppl as pp
from physppl.data.data import repeats
from physppl.inference import HMC, DrawsPosterior, Laplace, LaplacePosterior
from physppl.internal.progress import compile_clock
from physppl.models import pendulum
from physppl.posterior.backend import union

KEY = jax.random.key(0)
both = pytest.mark.parametrize("backend", [Laplace(), Laplace(recursive=True)], ids=["all data", "recursive"])
fit = functools.cache(lambda rows: pp.fit(KEY, linear_dynamics(), linear_data(rows=60)[:rows], Laplace()))


def moments(posterior: LaplacePosterior):
    """Mean, covariance (as W' W) and log evidence."""
    factor = np.asarray(posterior.factor)
    return np.asarray(posterior.mode), factor.T @ factor, float(posterior.log_evidence)


def same(one, other) -> bool:
    """Bit by bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def shift(one: LaplacePosterior, other: LaplacePosterior) -> tuple[float, float]:
    """How far the modes are apart, in sds of the second, and the sds, as a share; the largest over all parameters."""
    ours, theirs = (np.linalg.norm(p.factor, axis=0) for p in (one, other))
    return float(np.max(np.abs(one.mode - other.mode) / theirs)), float(np.max(np.abs(ours / theirs - 1)))


@both
def test_a_linear_program_learns_in_pieces_what_it_learns_at_once(backend):
    data, posterior, compiled = linear_data(rows=60), fit(40), []
    for start in range(40, 60, 4):
        with compile_clock() as clock:
            posterior = backend.update(KEY, posterior, data[start : start + 4])
        compiled.append(clock.programs)
    for ours, batch in zip(moments(posterior), moments(fit(60)), strict=True):
        np.testing.assert_allclose(ours, batch, rtol=1e-8, atol=1e-8)
    assert compiled[1:] == [0, 0, 0, 0]  # the buckets are the same
    assert np.array_equal(posterior.data.states, fit(60).data.states) and len(posterior.data) == 64
    assert posterior.data.states.dtype == np.float64 and isinstance(posterior.data.states, jax.Array)


@both
def test_an_update_of_what_was_saved_is_the_update_of_what_was_there(backend, tmp_path):
    fit(40).save(tmp_path / "yesterday")
    loaded, new = pp.load(tmp_path / "yesterday", linear_dynamics()), linear_data(rows=60)[40:44]
    assert same(backend.update(KEY, loaded, new), backend.update(KEY, fit(40), new))


@both
def test_nothing_new_changes_nothing(backend):
    new = linear_data(rows=60)[40:42]
    for nothing in (new[:0], pp.Transitions(new.states, new.actions, new.next_states, valid=np.zeros(2, bool))):
        assert backend.update(KEY, fit(40), nothing) is fit(40)


@both
def test_what_is_not_new_gives_a_warning(backend):
    said = "update: 4 of the new transitions are already in the posterior.*only what"
    with pytest.warns(pp.PhyspplWarning, match=said):
        backend.update(KEY, fit(40), linear_data(rows=60)[36:44])


def test_what_is_not_new_is_found_at_once():
    """Nothing compiles; 2,000 rows take some milliseconds."""
    many, start = linear_data(rows=2000), time.perf_counter()
    with compile_clock() as clock:
        assert repeats(many, many) == 2000
    assert clock.programs == 0 and time.perf_counter() - start < 0.5
    recorded = pp.Trajectories(np.ones((5, 2)), np.zeros((5, 1)), 0.1 * np.arange(5.0))
    with pytest.warns(pp.PhyspplWarning, match="1 of the new recordings are already"):
        assert union(recorded.pad(8), recorded).batch_shape == (2,)


def test_beliefs_without_a_mode_of_data_are_refitted(x64):
    """A prior, and what another backend left."""
    data, known = linear_data(rows=60), fit(40)
    prior = eqx.tree_at(lambda p: (p.data.valid, p.mode), known, (jnp.zeros(64, bool), known.mode + 1))
    drawn = DrawsPosterior(known.model, known.data, known.space, known.mode[None, None] + 1)
    for other, new in ((prior, data), (drawn, data[40:])):
        for backend in (Laplace(), Laplace(recursive=True)):
            updated = backend.update(KEY, other, new)
            assert isinstance(updated, LaplacePosterior)
            for ours, batch in zip(moments(updated), moments(fit(60)), strict=True):
                np.testing.assert_allclose(ours, batch, rtol=1e-10, atol=1e-10)


@both
def test_data_of_another_kind_are_refused(backend, as_user):
    times, new = 0.1 * np.arange(5.0), linear_data(rows=3)
    recorded = pp.Trajectories(np.zeros((5, 2)), np.zeros((5, 1)), times)
    with pytest.raises(TypeError, match="update: the posterior is of Transitions; got Trajectories"):
        backend.update(KEY, fit(40), recorded)
    with pytest.raises(TypeError, match="update: the posterior is of Transitions; got dict"):
        backend.update(KEY, fit(40), {"states": 0})
    with pytest.raises(ValueError, match="actions are out of bounds, first 'valve' = 2 +at transition 0"):
        backend.update(KEY, fit(40), pp.Transitions(new.states, 2 + 0 * new.actions, new.states))
    with pytest.raises(ValueError, match="some Transitions have next_states and some do not"):
        backend.update(KEY, fit(40), new.inputs)
    with pytest.raises(TypeError, match="`key` must be a JAX random key; got int 0"):
        backend.update(0, fit(40), new)
    plain = DrawsPosterior(lambda data: None, {"x": 0}, fit(40).space, fit(40).mode[None, None])
    with pytest.raises(TypeError, match="joins Transitions or Trajectories; the posterior is of dict. Fit all data"):
        backend.update(KEY, plain, new)


def pendulum_data(seed: int, rows: int) -> pp.Transitions:
    return recording(pendulum.dynamics(), pendulum.truth, seed=seed, steps=rows)


def learnt(data: pp.Transitions, ends, backend) -> LaplacePosterior:
    """The belief of a pendulum that learns piece by piece."""
    posterior = pp.fit(KEY, pendulum.dynamics(), data[: ends[0]], Laplace())
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        posterior = backend.update(KEY, posterior, data[start:end])
    return posterior


def test_a_pendulum_with_unknown_noise_learns_in_pieces_what_it_learns_at_once():
    data = pendulum_data(0, 60)
    batch, updated = pp.fit(KEY, pendulum.dynamics(), data, Laplace()), learnt(data, (40, 60), Laplace())
    assert max(shift(updated, batch)) < 1e-6
    assert float(updated.log_evidence) == pytest.approx(float(batch.log_evidence), abs=1e-8)
    assert int(updated.steps) < int(batch.steps)  # of one search instead of eight


@pytest.mark.science
@pytest.mark.parametrize("ends", [(100, 200), (40, 80, 120, 160, 200)], ids=["100+100", "5x40"])
def test_pendulums_learn_in_pieces_what_they_learn_at_once(ends):
    """Exactly over all data. Yesterday's Gaussian forgets what is not Gaussian: measured, and told by the check."""
    found = {"all data": [], "recursive": []}
    for seed in range(8):
        data = pendulum_data(seed, ends[-1])
        batch = pp.fit(KEY, pendulum.dynamics(), data, Laplace())
        for name, backend in (("all data", Laplace()), ("recursive", Laplace(recursive=True))):
            found[name].append(shift(posterior := learnt(data, ends, backend), batch))
        report, moved = posterior.check(), found["recursive"][-1][0]
        assert moved / 2 < report.figures["sds_to_the_mode"] < 4 * moved  # in all directions together
        assert "update without `recursive`" in str(report)
    for name, shifts in found.items():
        print(f"\n{ends} {name}: modes at most {np.max(shifts, 0)[0]:.2g} sds apart, sds {np.max(shifts, 0)[1]:.2%}")
    assert np.max(found["all data"]) < 1e-6 and np.max(found["recursive"]) < 0.6


@pytest.mark.science
@pytest.mark.parametrize("variation", [None, 0.05])
def test_recordings_are_added_like_transitions(variation):
    dynamics = pendulum.dynamics(sensors=("angle",), variation=variation)
    parts = []
    for seed in range(3):
        data = recording(pendulum.dynamics(), pendulum.truth, seed=seed, steps=60, noise=0.005)
        readings = data.states[:, :1] + 0.01 * np.random.default_rng(seed).normal(size=(60, 1))
        parts.append(pp.Trajectories(readings, data.actions, dt=0.05))
    batch = pp.fit(KEY, dynamics, pp.Trajectories.stack(parts), Laplace())
    posterior = pp.fit(KEY, dynamics, pp.Trajectories.stack(parts[:2]), Laplace())
    whole = Laplace().update(KEY, posterior, parts[2])
    recursive = Laplace(recursive=True).update(KEY, posterior, parts[2])
    for updated in (whole, recursive):
        assert updated.data.batch_shape == (3,) and updated.space.names == batch.space.names
        assert np.array_equal(updated.data.observations, batch.data.observations)
    print("\n", shift(whole, batch), shift(recursive, batch))
    assert max(shift(whole, batch)) < 0.03  # searches of recordings end a hundredth of an sd from the mode
    assert shift(recursive, batch)[0] < (0.5 if variation is None else 0.03)


@pytest.mark.science
def test_a_sampler_takes_more_data_by_a_refit():
    sampler = HMC(draws=200, warmup=200, chains=2)
    updated = sampler.update(KEY, fit(40), linear_data(rows=60)[40:])
    assert same(updated, pp.fit(KEY, linear_dynamics(), linear_data(rows=60), sampler))
