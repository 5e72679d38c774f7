"""A posterior and a kind of data of a user's own, by the documented contracts alone (examples/own_parts.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import example, linear_data, linear_dynamics, linear_truth

import physppl as pp
from physppl.density.curvature import local
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import Laplace

own_parts = example("own_parts")


def strides(data: pp.Transitions):
    """Transitions as strides of one step."""
    return own_parts.Strides(data.states, np.asarray(data.actions)[:, None], data.next_states)


@pytest.fixture(scope="module")
def shortlist():
    return pp.fit(jax.random.key(0), linear_dynamics(), strides(linear_data()), own_parts.Shortlist(candidates=50))


def test_strides_of_one_step_are_transitions(x64):
    """Density, gradient and Fisher information of outcomes taken together are those of outcomes taken row by row."""
    dynamics, data = linear_dynamics(), linear_data(rows=10)
    space = UnconstrainedSpace.of(dynamics, data)
    z = jnp.linspace(-0.5, 0.5, space.size)
    rows, joint = (local(space, dynamics, kind, z) for kind in (data, strides(data)))
    for one, other in zip(rows, joint, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-10)


def test_own_data_are_fitted_checked_and_updated():
    data = strides(linear_data(rows=20))
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), data, Laplace(starts=2))
    check = posterior.check()
    assert check.verdict == "ok" and "20 strides" in check.header
    for name, truth in linear_truth.items():
        low, high = np.quantile(posterior.samples(jax.random.key(1))[name], [0.001, 0.999], axis=0)
        assert np.all((low < truth) & (truth < high))
    updated = Laplace(starts=2).update(jax.random.key(0), posterior, strides(linear_data(1, rows=5)))
    assert updated.data.describe() == "25 strides"


def test_a_posterior_without_a_form_is_not_checked(shortlist):
    check = shortlist.check()
    assert check.verdict == "not checked" and not check.reasons
    assert "neither a Gaussian nor draws" in str(check)
    assert shortlist.to_arviz(draws=10).attrs["check"] == "not checked"


def test_a_posterior_without_a_form_is_summarised_and_kept(shortlist, tmp_path):
    assert "Shortlist" in str(shortlist.summary())
    tree = shortlist.to_arviz(draws=10)
    assert tree["log_likelihood"]["end"].sizes["stride"] == 40
    shortlist.save(tmp_path / "posterior")
    loaded = pp.load(tmp_path / "posterior", linear_dynamics())
    state, action = np.array([0.3, 0.1]), np.array([0.5])
    np.testing.assert_array_equal(loaded.predict(state, action).mean, shortlist.predict(state, action).mean)


def test_own_parts_are_compared(shortlist):
    laplace = pp.fit(jax.random.key(0), linear_dynamics(), strides(linear_data()), Laplace(starts=2))
    result = pp.compare({"Laplace": laplace, "Shortlist": shortlist}, strides(linear_data(2, rows=12)), draws=20)
    assert np.all(np.isfinite(result.dataset.rmse.sel(horizon=1)))
    assert int(result.dataset.outcomes.sel(horizon=1)) == 12
    assert any(note.endswith("each stride of Strides is forecast by itself.") for note in result.notes)
