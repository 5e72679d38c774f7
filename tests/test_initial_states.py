"""First states of recordings: the mixture of dense smoothers over the posterior's draws."""

import dense
import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import linear_data, linear_dynamics

import physppl as pp
from physppl.inference import Laplace
from physppl.posterior.initial_states import DRAWS

KEY = jax.random.key(3)
VARIATION = 0.3


def program():
    stiffness = pp.physical("stiffness", dist.Normal(1.5, 0.3))
    return pp.Step(lambda t, x, u: dense.matrix(stiffness) @ x + dense.B @ u)


def recordings(segment: int) -> list[pp.Trajectories]:
    return [dense.recording(rows, seed, segment) for seed, rows in enumerate((25, 9))]


@pytest.fixture(scope="module")
def posterior():
    dynamics = dense.bind(program, variation=VARIATION)
    return pp.fit(jax.random.key(0), dynamics, pp.Trajectories.stack(recordings(3)), Laplace())


def test_first_states_are_those_of_dense_smoothers_under_each_draw(posterior):
    """Recordings of different lengths, in segments, with parameters that differ from one to the other."""
    found, samples = pp.initial_states(posterior, KEY), posterior.samples(KEY, DRAWS)
    for r, one in enumerate(recordings(3)):
        stiffness = np.asarray(samples["stiffness"]) + VARIATION * np.asarray(samples["variation_offsets"])[:, r, 0]
        draws = [dense.dense(one, s, 1.0).smoothed(np.asarray(one.observations)) for s in stiffness]
        means = np.array([mean[0] for mean, _ in draws])
        within = np.array([np.diag(covariance[0]) for _, covariance in draws])
        between = means.var(axis=0, ddof=1)
        assert (between > 1e-3 * within.mean(0)).any()  # enough to be missed
        np.testing.assert_allclose(found.mean[r], means.mean(0), atol=1e-6)
        np.testing.assert_allclose(found.sd[r], np.sqrt(within.mean(0) + between), rtol=1e-5)
        np.testing.assert_allclose(found.prior_mean[r], one.start[0], rtol=1e-7)
        np.testing.assert_allclose(found.prior_sd[r], one.start[1], rtol=1e-7)


def test_the_table_sets_each_beside_its_prior(posterior):
    found = pp.initial_states(posterior)
    lines = str(found).splitlines()
    assert lines[0].split() == "recording coordinate mean sd unit prior mean prior sd".split()
    assert [line.split()[:2] for line in lines[1:]] == [[r, n] for r in "01" for n in ("position", "velocity")]
    assert found.rows[3]["name"] == "velocity" and found.rows[3]["unit"] == "m/s" and found.rows[3]["recording"] == 1
    assert found.rows[3]["sd"] == found.sd[1, 1] < found.rows[3]["prior_sd"]
    assert found._repr_html_().count("<tr>") == 5


def test_a_first_state_that_is_known_stays_known():
    """Without noise before the end of the segment the states are known as well."""
    one = dense.recording(12, 0, 5)
    known = pp.Trajectories(one.observations, one.actions, dt=dense.DT, segment=5, start=((0.3, -0.2), (0.0, 0.0)))
    posterior = pp.fit(jax.random.key(0), dense.bind(program), known, Laplace())
    found = pp.initial_states(posterior)
    np.testing.assert_allclose(found.mean, [[0.3, -0.2]], atol=1e-7)
    np.testing.assert_allclose(found.sd, 0.0, atol=1e-7)


def test_states_that_are_data_are_refused():
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), linear_data(rows=5), Laplace())
    with pytest.raises(TypeError, match="fitted to Trajectories, whose states are latent; got .* fitted to Trans"):
        pp.initial_states(posterior)
    with pytest.raises(TypeError, match="got Dynamics"):
        pp.initial_states(linear_dynamics())
