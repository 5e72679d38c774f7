"""What a newcomer runs into on the first day: each was once a crash, a silence, or a wrong number."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import physppl as pp
from physppl.inference import HMC, Laplace
from physppl.planning import RandomShooting

state = pp.StateSpace(speed=pp.Real("rad/s", scale=5.0))
action = pp.ActionSpace(voltage=pp.Bounded(-12.0, 12.0, "V"))


def motor():
    gain = pp.physical("gain", 1.0, 20.0, unit="rad/s/V/s")
    rate = pp.physical("rate", 0.1, 5.0, unit="1/s")
    return lambda t, x, u: gain * u - rate * x


def bind(program=motor, **options):
    return pp.Dynamics(program, state, action, dt=0.1, **options)


def recording(rows=40):
    truth = bind().transition({"gain": 6.0, "rate": 1.5}, noise=0.05)
    rng = np.random.default_rng(0)
    voltages, states = rng.uniform(-12, 12, (rows, 1)), [np.zeros(1)]
    for key, u in zip(jax.random.split(jax.random.key(0), rows), voltages, strict=True):
        states.append(np.asarray(truth.sample(key, states[-1], u)))
    return pp.Transitions.from_trajectory(np.stack(states), voltages)


@pytest.mark.parametrize("where", ["step", "field"])
def test_a_residual_acts_after_a_fit_in_single_precision(where):
    def program():
        physics, residual = motor(), pp.residual("residual", state, action, width=6)
        if where == "step":
            return pp.step_residual(physics, residual)
        return lambda t, x, u: physics(t, x, u) + residual(x, u)

    dynamics, data = bind(program), recording(15)  # as many rows, padded, as the loop below allocates
    transition = pp.fit(jax.random.key(0), dynamics, data, Laplace()).draw(jax.random.key(1))
    assert transition(jnp.zeros(1), jnp.ones(1)).dtype == jnp.float32
    system = pp.SimulatedSystem(bind().transition({"gain": 6.0, "rate": 1.5}, 0.05), [0.0])
    task = pp.Task(lambda x, u: -((x[0] - 3.0) ** 2), steps=5)
    run = pp.psrl(jax.random.key(2), system, task, dynamics, Laplace(), RandomShooting(horizon=4, population=20), 2)
    assert np.all(np.isfinite(run.episodes.returns))


def test_chains_in_different_modes_are_not_called_converged():
    def mirror():
        root = numpyro.sample("root", dist.Normal(0.0, 3.0))
        return lambda t, x, u: root**2 * u - x

    rng = np.random.default_rng(1)
    states, voltages = rng.normal(size=(30, 1)), rng.uniform(-12, 12, (30, 1))
    after = jax.vmap(bind(mirror).transition({"root": 2.0}))(states, voltages)
    data = pp.Transitions(states, voltages, np.asarray(after) + 0.05 * rng.normal(size=(30, 1)))
    with pytest.warns(pp.PhyspplWarning, match="not mixed: the chains disagree"):
        posterior = pp.fit(jax.random.key(0), bind(mirror), data, HMC(draws=100, warmup=200))
    assert int(posterior.status) == pp.Status.NOT_MIXED


PRIORS = [
    dist.LogNormal(-4.0, 1.0),
    pytest.param(dist.Uniform(1e-4, 0.1), marks=pytest.mark.science),
    pytest.param(dist.InverseGamma(3.0, 0.05), marks=pytest.mark.science),
]


@pytest.mark.parametrize("prior", PRIORS)
def test_any_positive_prior_serves_the_process_noise(prior):
    dynamics, data = bind(process_noise=prior), recording()
    assert dynamics == bind(process_noise=prior) and hash(dynamics) == hash(bind(process_noise=prior))
    noise = pp.fit(jax.random.key(0), dynamics, data, Laplace()).noise()
    np.testing.assert_allclose(noise, 0.05, rtol=5 / np.sqrt(2 * len(data)))  # five sds of a sample sd
    mcmc = MCMC(NUTS(dynamics), num_warmup=50, num_samples=20, progress_bar=False)
    mcmc.run(jax.random.key(0), data)
    assert np.all(mcmc.get_samples()["process_noise"] > 0)


def test_a_prior_of_the_noise_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="prior of process_noise must be over one positive number.*got Normal"):
        bind(process_noise=dist.Normal(0.0, 1.0))


def test_a_fleet_is_updated_machine_by_machine(as_user):
    def fleet(data):
        with numpyro.plate("machine", 2):
            bind()(data)

    one = recording(5)
    machines = pp.Transitions.stack([one, one[:2]])
    posterior = pp.fit(jax.random.key(0), fleet, machines, Laplace(starts=2))
    with pytest.warns(pp.PhyspplWarning, match="update: 7 of the new transitions are already in the posterior"):
        later = Laplace(starts=2).update(jax.random.key(1), posterior, machines)
    assert int(np.sum(later.data.valid)) == 2 * 7
    with pytest.raises(TypeError, match="prior needs a Dynamics"):
        Laplace().prior(jax.random.key(0), fleet)


@pytest.mark.science
def test_time_reaches_every_prediction():
    def program():
        push = pp.physical("push", 0.5, 4.0)
        return lambda t, x, u: push * jnp.sin(t) + 0.0 * u - x

    dynamics = bind(program)
    times, states = 0.1 * np.arange(60.0), np.random.default_rng(2).normal(size=(60, 1))
    truth = jax.vmap(dynamics.transition({"push": 2.0}))
    after = truth(states, np.zeros((60, 1)), times) + 1e-3 * np.random.default_rng(3).normal(size=(60, 1))
    data = pp.Transitions(states, np.zeros((60, 1)), after, times=times)
    for backend in (Laplace(), HMC(draws=100, warmup=100, chains=2)):
        posterior = pp.fit(jax.random.key(0), dynamics, data, backend)
        predicted = posterior.predict(states, data.actions, t=times).mean
        np.testing.assert_allclose(predicted, data.next_states, atol=5e-3)
    system = pp.SimulatedSystem(dynamics.transition({"push": 2.0}, 0.01), [0.0])
    task = pp.Task(lambda x, u: x[0], steps=3)
    planner = RandomShooting(horizon=2, population=4)
    run = pp.psrl(jax.random.key(0), system, task, dynamics, Laplace(starts=2), planner, 1, data=data)
    np.testing.assert_allclose(run.data.times[:60], times)


def test_a_transition_takes_one_point_and_says_so(as_user):
    transition = bind().transition({"gain": 6.0, "rate": 1.5})
    with pytest.raises(ValueError, match=r"one state is \(1,\) \(speed\); got shape \(2, 1\). Use jax.vmap for many"):
        transition(np.zeros((2, 1)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"rollout of motor: one action is \(1,\) \(voltage\); got shape \(4,\)"):
        pp.rollout(transition, np.zeros(1), np.zeros((7, 4)))
    with pytest.raises(ValueError, match=r"actions must be \(T, A, N\), candidates last; got \(7, 1\)"):
        pp.rollouts(transition, np.zeros(1), np.zeros((7, 1)))
    with pytest.raises(ValueError, match="brings its own dt, solver and substeps"):
        pp.rollout(transition, np.zeros(1), np.zeros((7, 1)), substeps=10)
    with pytest.raises(TypeError, match="takes a Transition"):
        pp.rollout(3.0, np.zeros(1), np.zeros((7, 1)), dt=0.1)


def test_mistakes_of_the_first_hour_are_named(as_user):
    with pytest.raises(ValueError, match=r"physical\('gain'\) was called outside a running program"):
        bind(motor())
    with pytest.raises(TypeError, match="solver must be a diffrax solver object"):
        bind(solver="rk4")
    with pytest.raises(ValueError, match="substeps must be an integer"):
        bind(substeps=2.5)
    with pytest.raises(TypeError, match=r"fit\(key, model, data, backend\)"):
        pp.fit(jax.random.key(0), recording(3), bind(), Laplace())
    with pytest.raises(ValueError, match="HMC needs draws >= 4"):
        HMC(draws=0)
    with pytest.raises(ValueError, match="Laplace needs starts >= 1"):
        Laplace(starts=0)
    task = pp.Task(lambda x, u: -(u**2), steps=3)
    system = pp.SimulatedSystem(bind().transition({"gain": 6.0, "rate": 1.5}), [0.0])
    with pytest.raises(ValueError, match=r"reward must return a scalar; got shape \(1,\).*action\[0\]"):
        pp.episode(jax.random.key(0), system, task, RandomShooting(horizon=2, population=4), system.transition)
    with pytest.raises(ValueError, match="states must have 1 columns"):
        wide = pp.Transitions(np.zeros((3, 2)), np.zeros((3, 1)), np.zeros((3, 2)))
        pp.psrl(jax.random.key(0), system, task, bind(), Laplace(), RandomShooting(), 1, data=wide)
