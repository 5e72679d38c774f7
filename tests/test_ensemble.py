"""Ensembles: exact where the posterior is known, diverse as they say, and through the planner's particle axis."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import (
    clock_dynamics,
    linear_action,
    linear_data,
    linear_dynamics,
    linear_features,
    linear_mean,
    linear_noise,
    linear_program,
    linear_state,
)
from test_exactness import Regression

import physppl as pp
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import (
    Adam,
    Anchored,
    Bootstrap,
    DrawsPosterior,
    Ensemble,
    EnsemblePosterior,
    Laplace,
    Newton,
    RandomStarts,
    disagreement,
    widest_disagreement,
)
from physppl.inference.diversity import Joint, Member
from physppl.internal.precision import doubles
from physppl.language.transition import LaterTransition, SwitchingTransition
from physppl.models import pendulum
from physppl.planning import ICEM
from physppl.planning.planner import evaluate
from physppl.posterior.backend import empty

KEY = jax.random.key(0)
STATE, ACTIONS = np.array([0.3, -0.5]), np.array([[0.5], [-0.9], [0.1], [0.7]])


@pytest.fixture(scope="module")
def anchored() -> EnsemblePosterior:
    return pp.fit(KEY, linear_dynamics(), linear_data(), Ensemble(members=1000))


@pytest.fixture(scope="module")
def network() -> EnsemblePosterior:
    """A network alone, of 386 weights, fitted to a pendulum that was seen at small angles and velocities."""

    def program():
        net = pp.residual("net", pendulum.state, pendulum.action, width=16, weights="all", scale=1.0)
        return pp.Step(lambda t, x, u: x + net(x, u))

    prior = dist.Uniform(0.001, 0.1)
    dynamics = pp.Dynamics(program, pendulum.state, pendulum.action, dt=0.05, process_noise=prior)
    return pp.fit(KEY, dynamics, pendulum_rows(0, 200), Ensemble(members=5, search=Adam(steps=800)))


def pendulum_rows(seed: int, rows: int, centre: float = 0.0, noise: float = 0.02) -> pp.Transitions:
    """Transitions of a pendulum at angles within 1 rad of the centre, with noise of `noise` scales."""
    rng = np.random.default_rng(seed)
    states = np.column_stack([centre + rng.uniform(-1, 1, rows), rng.uniform(-2, 2, rows)])
    actions = rng.uniform(-2.5, 2.5, (rows, 1))
    mean = jax.vmap(pendulum.dynamics().transition(pendulum.truth))(states, actions)
    return pp.Transitions(states, actions, mean + noise * pendulum.state.scale * rng.normal(size=states.shape))


def test_anchored_members_are_draws_of_bayesian_regression(anchored):
    """Means and covariances by their standard errors: 14 numbers."""
    exact, sites = Regression(linear_data()), anchored.samples(KEY)
    theta = np.column_stack([sites["drift"], sites["gain"], sites["weights"]]).astype(float)
    sd, n = np.sqrt(np.diag(exact.covariance)), len(theta)
    assert n == 1000
    assert np.all(np.abs(theta.mean(0) - exact.mean) < 4 * sd / np.sqrt(n))
    error = np.sqrt((np.outer(sd**2, sd**2) + exact.covariance**2) / n)
    assert np.all(np.abs(np.cov(theta.T) - exact.covariance) < 4.5 * error)


def test_before_data_an_anchor_is_the_mode(x64):
    """Of Normal sites: the tilted prior has its maximum at the draw that the member was given."""
    dynamics, data = linear_dynamics(), linear_data(rows=1)
    space = UnconstrainedSpace.of(dynamics, data)

    @jax.jit
    def slope(draw):
        tilt = Anchored().member(KEY, Joint(space, dynamics, data), draw).tilt
        return jax.grad(lambda z: space.log_prior(dynamics, z, data) + tilt.value(z, {}, {}))(draw)

    assert np.abs(slope(jnp.array([1.0, -2.0, 0.3, 0.2]))).max() < 1e-12


def test_a_minibatch_of_equal_rows_is_all_of_them(x64):
    """Whichever rows a step draws, its gradient is then that of all: both searches take the same steps."""
    dynamics, data = linear_dynamics(), doubles(linear_data(rows=1)[np.zeros(12, int)])
    joint = Joint(UnconstrainedSpace.of(dynamics, data), dynamics, data)
    starts = jnp.asarray(linear_mean) + jnp.array([[0.5], [-0.5]])
    members = jax.vmap(lambda start: Member(start, data, None))(starts)
    whole, part = (
        jax.jit(lambda m, s=Adam(steps=10, rows=rows): s.run(KEY, joint, m, starts, False).points)(members)
        for rows in (None, 3)
    )
    assert np.all(whole != starts)
    np.testing.assert_allclose(part, whole, rtol=1e-9)


def test_bootstrap_resamples_rows():
    """Of 25 rows drawn 25 times more than 22 differ once in 10,000 keys; rows that do not count never come."""
    rows = np.arange(40.0)[:, None]
    data = pp.Transitions(rows, rows, rows + 0.5, valid=rows[:, 0] < 25)
    drawn = jax.jit(pp.Transitions.resampled)(data, KEY)
    chosen = np.asarray(drawn.states)[:25, 0]
    assert len(set(chosen)) <= 22 and chosen.max() < 25
    assert np.array_equal(drawn.next_states[:, 0], drawn.states[:, 0] + 0.5)  # rows stay together


def test_bootstrap_resamples_recordings():
    readings = np.arange(25.0)[:, None, None] + np.zeros((25, 2, 1))
    drawn = jax.jit(pp.Trajectories.resampled)(pp.Trajectories(readings, 0 * readings, dt=0.1), KEY)
    chosen = np.asarray(drawn.observations)
    assert len(set(chosen[:, 0, 0])) <= 22 and np.array_equal(chosen[:, 0], chosen[:, 1])


def test_particles_take_every_member_as_often():
    points, data = jnp.arange(20.0).reshape(5, 4), linear_data(rows=1)
    space = UnconstrainedSpace.of(linear_dynamics(), data)
    posterior = EnsemblePosterior(linear_dynamics(), data, space, points, jnp.zeros(5), 0)
    values, counts = np.unique(posterior.draws(KEY, 10).sites["gain"], return_counts=True)
    assert np.array_equal(values, points[:, 1]) and np.all(counts == 2)


def test_switching_particles_meet_another_member_at_every_step():
    members = jax.vmap(lambda gain: clock_dynamics().transition({"gain": gain}))(jnp.arange(5.0))
    switching = SwitchingTransition.of(members, KEY)
    times = 0.1 * (1 + jnp.arange(40))
    gains = jax.jit(jax.vmap(lambda t: switching(jnp.zeros(1), jnp.zeros(1), t)))(times)[:, 0] / times
    met = np.round(np.asarray(gains)).astype(int)
    np.testing.assert_allclose(gains, met, atol=1e-5)
    assert set(met) == set(range(5)) and np.mean(met[1:] == met[:-1]) < 0.5


def test_the_noise_of_draws_is_their_root_mean_square(x64):
    dynamics = clock_dynamics(noise=dist.LogNormal(0.0, 1.0))
    space = UnconstrainedSpace.of(dynamics, empty(dynamics))
    sds = np.array([0.3, 4.0])
    points = jnp.stack([jnp.ones(2), jnp.log(sds)], axis=-1)[None]
    posterior = DrawsPosterior(dynamics, empty(dynamics), space, points)
    np.testing.assert_allclose(posterior.noise(), np.sqrt(np.mean(sds**2)), rtol=1e-5)


@pytest.mark.science
def test_bootstrapped_members_spread_as_the_sandwich_says():
    """Rows exchanged at random: H^-1 (sum of outer products of the rows' scores) H^-1 (P. Huber, 1967)."""
    data = linear_data(rows=300)
    posterior = pp.fit(KEY, linear_dynamics(), data, Ensemble(members=1000, diversity=Bootstrap()))
    exact, sites = Regression(data), posterior.samples(KEY)
    theta = np.column_stack([sites["drift"], sites["gain"], sites["weights"]]).astype(float)
    design = np.array([linear_features(np, x, u) for x, u in zip(data.states, data.actions, strict=True)])
    error = data.next_states - data.states - design @ exact.mean
    scores = np.einsum("nd,ndp->np", error / linear_noise**2, design)
    scores = scores - scores.mean(axis=0)
    sandwich = exact.covariance @ scores.T @ scores @ exact.covariance
    ratio = theta.std(axis=0) / np.sqrt(np.diag(sandwich))
    # 1,000 members, and a bootstrap's own error of order 1 / rows for every parameter.
    assert np.all(np.abs(ratio - 1) < 4 / np.sqrt(2000) + 4 / 300), ratio
    assert np.all(np.abs(theta.mean(0) - exact.mean) < (4 / np.sqrt(1000) + 0.1) * theta.std(axis=0))


@pytest.mark.science
def test_random_starts_of_one_mode_are_one_member():
    found = pp.fit(KEY, linear_dynamics(), linear_data(), Ensemble(members=4, diversity=RandomStarts()))
    exact, sd = Regression(linear_data()).mean, np.sqrt(np.diag(Regression(linear_data()).covariance))
    sites = found.samples(KEY)
    theta = np.column_stack([sites["drift"], sites["gain"], sites["weights"]]).astype(float)
    assert np.all(np.abs(theta - exact) < 1e-4 * sd) and found.facts()["spread"] < 1e-4
    assert np.all(widest_disagreement(found, STATE, ACTIONS[0]) < 1e-4)


def test_the_widest_disagreement_is_that_of_two_members(anchored):
    few = EnsemblePosterior(
        anchored.model, anchored.data, anchored.space, anchored.points[0, :5], anchored.log_joint[:5], 0
    )
    states, actions = np.array([[0.3, -0.5], [2.0, 1.0], [-1.0, 0.2]]), ACTIONS[:3]
    members = [few.model.bind(few.space.sites(few.model, z, few.data)) for z in few.points[0]]
    means = np.array([jax.vmap(f)(states, actions) for f in members]) / linear_state.scale
    by_hand = [max(np.linalg.norm(a[i] - b[i]) for a in means for b in means) for i in range(3)]
    assert np.allclose(widest_disagreement(few, states, actions), by_hand, rtol=1e-4)
    with pytest.raises(TypeError, match="members of an ensemble; got a posterior by Laplace"):
        widest_disagreement(pp.fit(KEY, linear_dynamics(), linear_data(), Laplace()), states, actions)


def test_adam_and_newton_reach_the_same_members(anchored):
    few = pp.fit(KEY, linear_dynamics(), linear_data(), Ensemble(members=1000, search=Adam(steps=400, rate=0.1)))
    ours, theirs = np.asarray(few.points[0]), np.asarray(anchored.points[0])
    assert np.all(np.abs(ours - theirs) < 1e-3 * np.std(theirs, axis=0))
    assert few.facts()["log_joint"] == pytest.approx(anchored.facts()["log_joint"], abs=1e-3)


@pytest.mark.science
def test_before_data_an_anchored_member_is_its_anchor(x64):
    """Priors that are log-concave in virtual space, of any shape: there the member's density has its maximum."""

    def program():
        numpyro.sample("positive", dist.HalfNormal(0.3))
        numpyro.sample("rate", dist.Gamma(2.0, 3.0))
        numpyro.sample("between", dist.Uniform(-1.0, 4.0))
        sd = numpyro.sample("sd", dist.LogNormal(0.0, 0.5))
        numpyro.sample("effects", dist.Normal(1.0, 2.0).expand([3]).to_event(1))
        mass = pp.physical("mass", 0.1, 2.0, unit="kg")
        return pp.Step(lambda t, x, u: x + mass * sd * u)

    dynamics = pp.Dynamics(program, linear_state, linear_action, dt=0.1)
    data = linear_data(rows=2)
    data = pp.Transitions(data.states, data.actions, data.next_states, valid=np.zeros(2, bool))
    space = UnconstrainedSpace.of(dynamics, data)
    noise = space.where("process_noise".__eq__)

    @jax.jit
    def member(key):
        draw_key, key = jax.random.split(key)
        draw = space.draw_prior(draw_key, dynamics, data)
        tilt = Anchored().member(key, Joint(space, dynamics, data), draw).tilt
        density = lambda z: space.log_prior(dynamics, z, data) + tilt.value(z, {}, {})  # noqa: E731
        return jax.grad(density)(draw), jax.hessian(density)(draw), tilt.slope

    slope, curvature, own = jax.vmap(member)(jax.random.split(KEY, 20))
    assert np.abs(slope[:, ~noise]).max() < 1e-12 < np.abs(slope[:, noise]).min()
    assert np.all(np.linalg.eigvalsh(curvature[:, ~noise][:, :, ~noise]) < 0)
    assert np.all(own[:, noise] == 0)  # noises keep their prior


@pytest.mark.science
def test_the_bootstrap_draws_valid_rows_alone():
    rows = np.arange(40.0)
    data = pp.Transitions(rows[:, None] + [0, 100], rows[:, None], rows[:, None] + [0.5, 200], valid=rows < 25)
    drawn = jax.vmap(lambda k: data.resampled(k))(jax.random.split(KEY, 400))
    counts = np.bincount(np.asarray(drawn.states[..., 0])[:, data.valid].astype(int).ravel(), minlength=40)
    assert np.all(counts[25:] == 0) and np.all(drawn.valid == data.valid)
    assert np.all(np.abs(counts[:25] - 400) < 4.5 * np.sqrt(400))
    assert np.array_equal(drawn.next_states[..., 0], drawn.states[..., 0] + 0.5)  # rows stay together
    assert np.array_equal(drawn.actions[..., 0], drawn.states[..., 0])
    assert len({tuple(np.asarray(x)) for x in drawn.states[..., 0]}) == 400

    fleet = pp.Transitions.stack([data[:25], data[5:15]])
    drawn = fleet.resampled(KEY)
    assert np.array_equal(drawn.valid, fleet.valid)
    assert set(np.asarray(drawn.states[1, :, 0])[fleet.valid[1]]) <= set(rows[5:15])

    recordings = pp.Trajectories(
        np.arange(4.0)[:, None, None] + np.zeros((4, 6, 1)), np.zeros((4, 6, 1)), dt=0.1,
        valid=np.array([[True], [True], [False], [True]]) & (np.arange(6) < 5),
    )  # fmt: skip
    drawn = jax.vmap(lambda k: recordings.resampled(k))(jax.random.split(KEY, 200))
    kept = np.asarray(drawn.observations[..., 0, 0])
    assert set(kept[:, [0, 1, 3]].ravel()) == {0.0, 1.0, 3.0} and not np.any(drawn.valid[:, 2])
    assert np.all(drawn.valid[:, [0, 1, 3]] == (np.arange(6) < 5))


@pytest.mark.science
def test_compiled_work_does_not_grow_with_the_members():
    runs = []

    def program():
        runs.append(1)
        return linear_program()

    dynamics = pp.Dynamics(program, linear_state, linear_action, dt=0.1)
    for diversity, search in ((Anchored(), Newton()), (RandomStarts(), Adam(steps=5))):
        sizes = []
        for members in (4, 40):
            runs.clear()
            backend = Ensemble(members, diversity, search)
            jax.make_jaxpr(lambda k, d: backend.fit(k, dynamics, d).points)(KEY, linear_data())  # noqa: B023
            sizes.append(len(runs))
        assert 0 < sizes[0] == sizes[1]


@pytest.mark.science
def test_a_network_alone_learns_a_pendulum_and_disagrees_away_from_data(network):
    assert network.points.shape == (1, 5, 386)
    near, far = pendulum_rows(1, 300, noise=0.0), pendulum_rows(2, 300, centre=np.pi, noise=0.0)
    mean, _ = network.basis(near.states, near.actions)
    error = np.sqrt(np.mean(((mean - near.next_states) / pendulum.state.scale) ** 2, axis=0))
    moved = np.sqrt(np.mean(((near.states - near.next_states) / pendulum.state.scale) ** 2, axis=0))
    assert np.all(error < 0.25 * moved)
    apart = [np.median(disagreement(network, rows.states, rows.actions), axis=0) for rows in (near, far)]
    assert apart[0].shape == (2,) and np.all(apart[1] > 4 * apart[0])
    ratio = network.noise() / (0.02 * pendulum.state.scale)  # of noisy targets it would be 1.41
    assert np.all((ratio > 0.8) & (ratio < 1.2))
    gain = [network.information_gain(rows.states[:10], rows.actions[:10]) for rows in (near, far)]
    assert 0 < gain[0] < gain[1] and np.isfinite(network.entropy())


@pytest.mark.science
def test_trajectory_sampling_takes_every_member_as_often(anchored):
    with jax.enable_x64(True):
        points, log_joint = anchored.points[0, :8], anchored.log_joint[:8]
        posterior = EnsemblePosterior(anchored.model, anchored.data, anchored.space, points, log_joint, 0)
    held = pp.TrajectorySampling(draws=16).particles(KEY, posterior)
    values, counts = np.unique(held.sites["gain"], return_counts=True)
    assert len(values) == 8 and np.all(counts == 2)
    assert np.allclose(posterior.mean()(STATE, ACTIONS[0]), posterior.basis(STATE, ACTIONS[0])[0], atol=1e-6)

    objective = lambda states, actions: states[-1, 0] + jnp.sum(actions)  # noqa: E731
    by_hand = [objective(pp.rollout(take(held, i), STATE, ACTIONS), ACTIONS) for i in range(16)]
    assert np.allclose(evaluate(held, objective, STATE, jnp.asarray(ACTIONS)[..., None]), np.mean(by_hand), atol=1e-5)

    members = jax.vmap(lambda f: f(STATE, ACTIONS[0]))(held)[:, 0]
    switching = pp.TrajectorySampling(draws=16, switch=True).particles(KEY, posterior)
    times = jnp.arange(50) * posterior.model.dt
    steps = np.asarray(jax.vmap(lambda f: jax.vmap(lambda t: f(STATE, ACTIONS[0], t))(times))(switching))[..., 0]
    which = np.argmin(np.abs(steps[..., None] - np.unique(members)), axis=-1)
    assert np.allclose(np.unique(members)[which], steps, atol=1e-6)  # each step is one member's, and not the same one
    assert np.all(np.abs(np.bincount(which.ravel(), minlength=8) - 100) < 4.5 * 10)
    assert np.mean(which[:, 1:] == which[:, :-1]) < 0.2 and np.mean(which[1:] == which[:-1]) < 0.2
    one = take(switching, 3)
    later = LaterTransition(one.sites, one.noise, one.dynamics, one, jnp.asarray(2 * posterior.model.dt))
    later = pp.rollout(later, STATE, ACTIONS[2:])
    assert np.allclose(pp.rollout(one, STATE, ACTIONS[2:], t=2 * posterior.model.dt), later)


def take(particles, i: int):
    return jax.tree.map(lambda x: x[i], particles)


@pytest.mark.science
def test_particles_of_a_residual_act_on_a_pendulum_and_compile_once():
    def program():
        net = pp.residual("net", pendulum.state, pendulum.action, width=8, depth=1)
        return pp.step_residual(pendulum.program(), net)

    run = pp.psrl(
        KEY, pendulum.system(), pp.Task(pendulum.swing_up.reward, steps=16), pendulum.dynamics(program),
        Ensemble(members=4, diversity=Bootstrap(), search=Newton(steps=30)),
        ICEM(horizon=5, population=16, elites=4, keep=2), episodes=2,
        acquisition=pp.TrajectorySampling(draws=6, switch=True),
    )  # fmt: skip
    assert run.seconds[0]["compile"] > 0 and run.seconds[1]["compile"] == 0.0
    assert np.all(np.isfinite(run.episodes.states)) and np.all(np.isfinite(run.entropy))
    assert run.posterior.facts()["spread"] > 0


def test_entropy_of_many_members_is_the_covariances_and_of_few_is_finite(x64):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6)) * [1, 10, 0.1, 1, 1, 1]
    space = UnconstrainedSpace(("w",), ((6,),))
    exact = 0.5 * np.linalg.slogdet(root.T @ root)[1] + 3 * (1 + np.log(2 * np.pi))

    def entropy(count):
        points = jnp.asarray(rng.normal(size=(count, 6)) @ root)
        data = linear_data()
        return float(EnsemblePosterior(linear_dynamics(), data, space, points, jnp.zeros(count), 0).entropy())

    assert entropy(5000) == pytest.approx(exact, abs=0.1)
    assert exact - 3 < entropy(4) < exact + 6
    same = EnsemblePosterior(linear_dynamics(), linear_data(), space, jnp.ones((4, 6)), jnp.zeros(4), 0)
    assert float(same.entropy()) == pytest.approx(6 * (np.log(1e-6) + 0.5 * (1 + np.log(2 * np.pi))))


def test_errors_teach(as_user):
    with pytest.raises(ValueError, match="members >= 2 to have a spread; got 1"):
        Ensemble(members=1)
    with pytest.raises(TypeError, match=r"diversity must be Anchored\(\), .* or RandomStarts\(\); got 'boot"):
        Ensemble(diversity="bootstrap")
    with pytest.raises(TypeError, match=r"search must be Newton\(\), Adam\(\) or None; got <class"):
        Ensemble(search=Adam)
    with pytest.raises(ValueError, match="steps >= 1, rate > 0 and rows >= 1 or None; got 10, 0.0 and None"):
        Adam(steps=10, rate=0.0)
    with pytest.raises(ValueError, match="draws must be at least 1; got 0"):
        pp.TrajectorySampling(draws=0)

    def learned():
        net = pp.residual("net", linear_state, linear_action, width=4, learned=True)
        return pp.Step(lambda t, x, u: x + net(x, u))

    def fit(model, data, **choices):
        return jax.eval_shape(lambda k: Ensemble(**choices).fit(k, model, data).points, KEY)

    dynamics = pp.Dynamics(learned, linear_state, linear_action, dt=0.1)
    with pytest.raises(ValueError, match="'net.features' is a `param`: it has no prior"):
        fit(dynamics, linear_data())
    recording = pp.Trajectories(np.zeros((9, 2)), np.zeros((9, 1)), dt=0.1)
    with pytest.raises(ValueError, match=r"Bootstrap resamples recordings, and there is one: use Anchored\(\)"):
        fit(linear_dynamics(), recording, diversity=Bootstrap())
    with pytest.raises(ValueError, match="takes Transitions of one machine; for other data"):
        fit(linear_dynamics(), recording, search=Adam(rows=4))

    def counts(data):
        numpyro.sample("count", dist.Poisson(jnp.exp(numpyro.sample("log_rate", dist.Normal()))), obs=data)

    with pytest.raises(ValueError, match="the outcomes 'count' are Poisson; noisy targets are defined for Normal"):
        fit(counts, jnp.array(3))
    with pytest.raises(TypeError, match="Bootstrap resamples Transitions or Trajectories; got"):
        fit(counts, jnp.array(3), diversity=Bootstrap())
