"""Bad input: every message names the argument or site, what came, and the remedy; nothing becomes a silent NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import planners

import physppl as pp
from physppl.inference import HMC, Laplace
from physppl.internal.errors import Status
from physppl.planning import ICEM, RandomPolicy, RandomShooting

state = pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s", scale=8.0))
action = pp.ActionSpace(torque=pp.Bounded(-0.3, 0.7, "N m"))


def pendulum():
    mass = pp.physical("mass", 0.1, 2.0, unit="kg")
    return lambda t, x, u: jnp.stack([x[1], u[0] / mass - 9.81 * jnp.sin(x[0])])


def bind(program, **options):
    return pp.Dynamics(program, state, action, dt=0.05, **options)


dynamics = bind(pendulum)
quick = Laplace(starts=2)


def arrays(rows=6, seed=0):
    rng = np.random.default_rng(seed)
    states, actions = rng.normal(size=(rows, 2)), rng.uniform(-0.3, 0.7, (rows, 1))
    after = pp.rollouts(dynamics.transition({"mass": 1.0}), jnp.zeros(2), jnp.zeros((1, 1, 1)))[1, :, 0]
    return states, actions, states + np.asarray(after) + 0.01 * rng.normal(size=states.shape)


def clean(rows=6):
    return pp.Transitions(*arrays(rows))


# Data -----------------------------------------------------------------------------------------------------------------


def test_shapes_that_do_not_fit_name_both_arguments():
    states, actions, after = arrays()
    with pytest.raises(ValueError, match=r"actions must have as many rows as states; got \(5, 1\) against \(6, 2\)"):
        pp.Transitions(states, actions[:5], after)
    with pytest.raises(ValueError, match=r"next_states must have the shape of states; got \(5, 2\) against \(6, 2\)"):
        pp.Transitions(states, actions, after[:5])
    with pytest.raises(ValueError, match=r"must be \(N, D\) and \(N, A\); got \(6, 2\) and \(6,\).*x\[:, None\]"):
        pp.Transitions(states, actions[:, 0], after)
    with pytest.raises(ValueError, match=r"valid must be bool of shape \(6,\); got int64 \(6,\)"):
        pp.Transitions(states, actions, after, valid=np.ones(6, int))
    with pytest.raises(ValueError, match=r"times must have shape \(6,\), one per transition; got \(7,\)"):
        pp.Transitions(states, actions, after, times=np.arange(7.0))
    with pytest.raises(ValueError, match="`states` is ragged.*one length"):
        pp.Transitions([[1.0, 2.0], [3.0]], actions[:2])
    with pytest.raises(ValueError, match="pad: 6 rows do not fit into 4"):
        clean().pad(4)


def test_a_column_against_a_vector_does_not_broadcast_to_a_wrong_posterior():
    states, actions, after = arrays()
    with pytest.raises(ValueError, match=r"got \(6, 1\) against \(6, 2\).*\(N, 1\) against \(N,\) would broadcast"):
        pp.Transitions(states, actions, after[:, :1])
    with pytest.raises(ValueError, match=r"next_states must have the shape.*got \(6,\) against \(6, 1\)"):
        pp.Transitions(states[:, :1], actions, after[:, 0])
    with pytest.raises(ValueError, match=r"got \(6,\) and \(6, 1\).*A single coordinate is a column"):
        pp.Transitions(states[:, 0], actions, after[:, :1])


def test_what_is_not_a_number_is_a_type_error_that_names_the_argument():
    states, actions, after = arrays()
    with pytest.raises(TypeError, match="`states` must be numeric; got .*'0.1'.*are read by"):
        pp.Transitions([["0.1", "0.2"]] * 6, actions, after)
    with pytest.raises(TypeError, match=r"`next_states` must be numeric; got None \(dtype object\)"):
        pp.Transitions(states, actions, [[None, 1.0]] * 6)
    with pytest.raises(TypeError, match="`actions` must be real; got dtype complex128"):
        pp.Transitions(states, actions * 1j, after)
    with pytest.raises(TypeError, match="`times` must be numeric; got .*datetime64"):
        pp.Transitions(states, actions, after, times=np.array(["2020-01-01"] * 6, "M8[ns]"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("argument", "column", "coordinate"),
    [("states", 0, "angle"), ("next_states", 1, "velocity"), ("actions", 0, "torque"), ("times", None, "time")],
)
def test_a_value_that_is_not_finite_is_named_by_row_and_coordinate(value, argument, column, coordinate):
    states, actions, after = arrays()
    given = {"states": states, "actions": actions, "next_states": after, "times": np.zeros(6)}
    given[argument][(3, column) if column is not None else 3] = value
    data = pp.Transitions(**given)
    named = rf"{argument} has 1 non-finite values, first at transition 3, coordinate '{coordinate}' \({value}\).*valid"
    with pytest.raises(ValueError, match=named):
        pp.fit(jax.random.key(0), dynamics, data, quick)
    # The remedy of the message works, and the row then counts for nothing.
    valid = np.arange(6) != 3
    marked = pp.fit(jax.random.key(0), dynamics, pp.Transitions(**given, valid=valid), quick)
    dropped = pp.fit(jax.random.key(0), dynamics, clean()[np.flatnonzero(valid)], quick)
    np.testing.assert_allclose(marked.mode, dropped.mode, rtol=1e-6, atol=1e-6)


def test_in_a_fleet_the_machine_is_named_too():
    fleet = pp.Transitions.stack([clean(3), clean(5)])
    outcomes = np.array(fleet.next_states)
    outcomes[1, 2, 1] = np.nan
    data = pp.Transitions(fleet.states, fleet.actions, outcomes, valid=fleet.valid)

    def model(data):
        with numpyro.plate("machine", 2):
            dynamics(data)

    with pytest.raises(ValueError, match=r"next_states has 1 .* first at transition \(1, 2\), coordinate 'velocity'"):
        pp.fit(jax.random.key(0), model, data, quick)


def test_actions_out_of_bounds_are_refused_with_row_value_and_bounds():
    states, actions, after = arrays()
    actions[2, 0] = 0.9
    out = r"1 actions are out of bounds, first 'torque' = 0.9 N m at transition 2, outside \[-0.3, 0.7\].*widen"
    with pytest.raises(ValueError, match=out):
        pp.fit(jax.random.key(0), dynamics, pp.Transitions(states, actions, after), quick)
    actions[2, 0] = np.float32(0.7)  # the bound itself in single precision is not out of bounds
    dynamics.check(pp.Transitions(states, actions, after))


def test_data_that_are_not_of_these_spaces_are_refused(as_user):
    states, actions, after = arrays()
    with pytest.raises(
        ValueError, match=r"Dynamics\(pendulum\): states must have 2 columns \(angle, velocity\); got 1"
    ):
        pp.fit(jax.random.key(0), dynamics, pp.Transitions(states[:, :1], actions, after[:, :1]), quick)
    with pytest.raises(ValueError, match=r"actions must have 1 columns \(torque\); got 2"):
        pp.fit(jax.random.key(0), dynamics, pp.Transitions(states, states, after), quick)
    with pytest.raises(
        TypeError, match=r"takes Transitions\(states=, actions=, next_states=\) or Trajectories\(.*\); got dict"
    ):
        pp.fit(jax.random.key(0), dynamics, {"states": states}, quick)
    with pytest.raises(ValueError, match="fit needs next_states; got inputs alone"):
        pp.fit(jax.random.key(0), dynamics, clean().inputs, quick)


# Few data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backend",
    [quick, pytest.param(HMC(draws=500, warmup=300, chains=2), marks=pytest.mark.science)],
    ids=["Laplace", "HMC"],
)
def test_no_data_is_the_prior_with_a_notice(backend, notices):
    """Mean and sd of the mass in virtual space against Normal(0, 1): 5 standard errors of the draws."""
    empty = pp.Transitions(np.zeros((0, 2)), np.zeros((0, 1)), np.zeros((0, 2)))
    posterior = pp.fit(jax.random.key(0), dynamics, empty, backend)
    assert "no transitions: the prior" in notices.text
    mass = np.asarray(posterior.samples(jax.random.key(1), 4000)["mass"])
    z = np.log((mass - 0.1) / (2.0 - mass))
    effective = 4000 if isinstance(backend, Laplace) else 200  # NUTS draws of a Gaussian are worth at least that many
    assert abs(z.mean()) < 5 / np.sqrt(effective)
    assert abs(z.std() - 1) < 5 / np.sqrt(2 * effective)
    prior = backend.prior(jax.random.key(0), dynamics)
    np.testing.assert_array_equal(prior.samples(jax.random.key(1), 4000)["mass"], mass)


def test_one_transition_works_with_a_notice(notices):
    posterior = pp.fit(jax.random.key(0), dynamics, clean(1), quick)
    assert "one transition: mostly the prior" in notices.text
    assert np.all(np.isfinite(posterior.predict(np.zeros((1, 2)), np.zeros((1, 1))).covariance_matrix))


# Programs and sites ---------------------------------------------------------------------------------------------------


def test_a_site_declared_twice_is_named():
    def twice():
        pp.physical("mass", 0.1, 1.0)
        return pendulum()

    def clash():
        pp.physical("process_noise", 0.1, 1.0)
        return pendulum()

    def with_residual():
        pp.residual("mass", state, action)
        return pendulum()

    for program, site in ((twice, "mass"), (clash, "process_noise"), (with_residual, "mass")):
        with pytest.raises(ValueError, match=f"site '{site}' is declared twice; every site needs a name of its own"):
            pp.fit(jax.random.key(0), bind(program), clean(), quick)


def test_an_unknown_or_missing_site_is_a_key_error_with_the_close_ones():
    with pytest.raises(KeyError, match=r"no value for site 'mass'. Did you mean 'mas'\? Known: mas"):
        dynamics.transition({"mas": 1.0})
    with pytest.raises(KeyError, match=r"Dynamics\(pendulum\) has no site 'masss'. Did you mean 'mass'\? Known: mass"):
        dynamics.transition({"mass": 1.0, "masss": 1.0})
    with pytest.raises(KeyError, match="no value for site 'mass'. Known: none"):
        dynamics.stepper({})


@pytest.mark.parametrize(
    ("field", "got"),
    [
        (lambda t, x, u: x[:1], r"\(1,\)"),
        (lambda t, x, u: jnp.zeros(()), r"\(\)"),
        (lambda t, x, u: jnp.stack([x, x]), r"\(2, 2\)"),
        (lambda t, x, u: (x[0], x[1], u[0]), r"\(3,\)"),
    ],
)
def test_a_program_of_the_wrong_shape_is_named_with_the_shape_that_came(field, got):
    def wrong():
        pp.physical("mass", 0.1, 2.0)
        return field

    def wrong_step():
        pp.physical("mass", 0.1, 2.0)
        return pp.Step(field)

    def wrong_residual():
        return pp.step_residual(pendulum(), lambda x, u: field(0.0, x, u))

    for program, what in ((wrong, "field"), (wrong_step, "step"), (wrong_residual, "residual")):
        with pytest.raises(ValueError, match=rf"The {what} of \w+ must return .* shape \(2,\); got shape {got}.*stack"):
            pp.fit(jax.random.key(0), bind(program), clean(), quick)


def test_a_program_that_returns_no_field_or_draws_its_own_randomness_is_refused(as_user):
    def nothing():
        pp.physical("mass", 0.1, 2.0)

    def random():
        mass, key = pp.physical("mass", 0.1, 2.0), numpyro.prng_key()
        return lambda t, x, u: mass * x + jax.random.normal(key, x.shape)

    with pytest.raises(ValueError, match=r"nothing must return a vector field f\(t, state, action\).*got NoneType"):
        pp.fit(jax.random.key(0), bind(nothing), clean(), quick)
    with pytest.raises(ValueError, match="may only sample sites and compute; it used a 'prng_key' statement"):
        pp.fit(jax.random.key(0), bind(random), clean(), quick)
    with pytest.raises(ValueError, match=r"program must be a function \(\) -> field; got str"):
        bind("pendulum")


def test_sites_that_cannot_be_inferred_are_named():
    def discrete():
        gear = numpyro.sample("gear", dist.Bernoulli(0.5))
        return lambda t, x, u: gear * x

    def param():
        gain = numpyro.param("gain", 0.5)
        return lambda t, x, u: gain * x

    with pytest.raises(NotImplementedError, match="site 'gear' is discrete; marginalise it or make it continuous"):
        pp.fit(jax.random.key(0), bind(discrete), clean(), quick)
    with pytest.raises(ValueError, match="site 'gain' is a `param`: it has no prior. Make it a sample site"):
        pp.fit(jax.random.key(0), bind(param), clean(), quick)
    with pytest.raises(ValueError, match="the model has no latent site: there is nothing to infer"):
        pp.fit(jax.random.key(0), bind(lambda: lambda t, x, u: x, process_noise=0.1), clean(), quick)


def test_a_binding_that_makes_no_sense_is_refused(as_user):
    with pytest.raises(ValueError, match=r"Dynamics\(pendulum\): dt must be positive seconds; got 0.0"):
        pp.Dynamics(pendulum, state, action, dt=0.0)
    with pytest.raises(ValueError, match="substeps must be an integer of at least 1; got 0"):
        bind(pendulum, substeps=0)
    with pytest.raises(ValueError, match="a known process_noise must be positive; got -0.1"):
        bind(pendulum, process_noise=-0.1)
    with pytest.raises(ValueError, match=r"process_noise must be one sd or one of each of the 2.*got shape \(3,\)"):
        bind(pendulum, process_noise=(0.1, 0.2, 0.3))
    with pytest.raises(TypeError, match="`process_noise` must be numeric; got .*'small'"):
        bind(pendulum, process_noise="small")


# Calls ----------------------------------------------------------------------------------------------------------------


def test_an_int_for_a_key_is_refused_with_the_remedy(as_user):
    posterior = pp.fit(jax.random.key(0), dynamics, clean(), quick)
    system = pp.SimulatedSystem(dynamics.transition({"mass": 1.0}), [0.0, 0.0])
    task = pp.Task(lambda x, u: -(x[0] ** 2), steps=3)
    calls = [
        lambda: pp.fit(0, dynamics, clean(), quick),
        lambda: posterior.draw(0),
        lambda: posterior.samples(0),
        lambda: pp.episode(0, system, task, RandomPolicy(), posterior.draw(jax.random.key(0))),
        lambda: pp.psrl(0, system, task, dynamics, quick, RandomPolicy(), episodes=1),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"`key` must be a JAX random key; got int 0. Pass jax.random.key\(0\)"):
            call()
    assert pp.fit(jax.random.PRNGKey(0), dynamics, clean(), quick).mode.shape == (3,)  # the old kind of key is a key


def test_a_class_for_a_backend_and_spaces_the_wrong_way_round_are_refused(as_user):
    with pytest.raises(TypeError, match=r"`backend` must be an object such as Laplace\(\) or HMC\(\); got <class"):
        pp.fit(jax.random.key(0), dynamics, clean(), Laplace)
    with pytest.raises(TypeError, match="takes a StateSpace, then an ActionSpace; got ActionSpace and StateSpace"):
        pp.Dynamics(pendulum, action, state, dt=0.1)


def test_points_of_another_space_are_refused_by_belief_and_transition(as_user):
    posterior = pp.fit(jax.random.key(0), dynamics, clean(), quick)
    for f in (posterior.predict, posterior.basis, posterior.information_gain):
        with pytest.raises(ValueError, match=r"state must end in 2 \(angle, velocity\); got shape \(4, 3\)"):
            f(np.zeros((4, 3)), np.zeros((4, 1)))
        with pytest.raises(ValueError, match=r"action must end in 1 \(torque\); got shape \(4, 2\)"):
            f(np.zeros((4, 2)), np.zeros((4, 2)))
        with pytest.raises(ValueError, match=r"must go together; got \(4, 2\) and \(3, 1\)"):
            f(np.zeros((4, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"transition of pendulum: one action is \(1,\) \(torque\); got shape \(2,\)"):
        posterior.draw(jax.random.key(0))(jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"SimulatedSystem: initial_state must be \(2,\); got \(3,\)"):
        pp.SimulatedSystem(dynamics.transition({"mass": 1.0}), np.zeros(3))


# Numerical failures ---------------------------------------------------------------------------------------------------


def explosive():
    growth = pp.physical("growth", 1.0, 2.0)
    return lambda t, x, u: jnp.exp(growth * jnp.exp(50 * (1 + x**2)))


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(quick, id="Laplace"),
        pytest.param(HMC(draws=10, warmup=10, chains=1), id="HMC", marks=pytest.mark.science),
    ],
)
def test_a_fit_that_is_finite_nowhere_is_an_error_with_its_remedy(backend):
    with pytest.raises(pp.FitError, match="nonfinite: the log density is not finite at any start.*raise `substeps`"):
        pp.fit(jax.random.key(0), bind(explosive), clean(), backend)


def test_a_search_cut_short_is_a_warning_and_a_status():
    with pytest.warns(pp.PhyspplWarning, match="not converged.*raise `steps` or `starts`"):
        posterior = pp.fit(jax.random.key(0), dynamics, clean(), Laplace(starts=1, steps=2))
    assert Status(int(posterior.status)) is Status.NOT_CONVERGED


def test_every_status_has_a_remedy():
    assert all(len(status.remedy) > 10 for status in Status)


def test_a_machine_that_diverges_stops_the_episode_naming_step_and_coordinate():
    """angle'' = 1000 angle'^2 by Runge-Kutta of 0.05 s leaves the floating-point range; the angle follows."""

    def runaway():
        rate = pp.physical("rate", 0.0, 2000.0)
        return lambda t, x, u: jnp.stack([x[1], rate * x[1] ** 2])

    transition = bind(runaway).transition({"rate": 1000.0})
    task = pp.Task(lambda x, u: -(u[0] ** 2), steps=20)
    system = pp.SimulatedSystem(transition, [0.0, 1.0])
    with pytest.raises(FloatingPointError, match=r"'(angle|velocity)' is not finite from step \d+ on.*substeps"):
        pp.episode(jax.random.key(0), system, task, RandomPolicy(), transition)
    states = np.asarray(pp.rollout(transition, np.array([0.0, 1.0]), np.zeros((20, 1))))
    first = np.argmax(~np.isfinite(states).all(axis=1))
    with pytest.raises(FloatingPointError, match=f"from step {first} on"):
        pp.episode(jax.random.key(0), system, task, RandomPolicy(), transition)


# Planners -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "planner",
    [*planners, pytest.param(RandomPolicy(correlation=0.0), id="RandomPolicy")],
)
@pytest.mark.parametrize("wish", ["above", "below", "nothing finite"])
def test_planned_actions_keep_their_bounds(planner, wish):
    """10,000 plans and more in all, towards both bounds and where every candidate fails; asymmetric bounds."""
    target = {"above": 1.0, "below": -1.0, "nothing finite": jnp.nan}[wish]
    objective = lambda states, actions: target * jnp.sum(actions)  # noqa: E731
    particles = dynamics.transition({"mass": 1.0}).particles()

    @jax.jit
    def run(key):
        def body(plan_state, key):
            actions, plan_state, info = planner.plan(key, particles, objective, jnp.zeros(2), plan_state)
            return plan_state, (actions, info["failed"])

        return jax.lax.scan(body, planner.init(action), jax.random.split(key, 400))[1]

    actions, failed = run(jax.random.key(0))
    low, high = np.float32(action.low), np.float32(action.high)
    assert actions.shape[0] == 400 and np.all(np.isfinite(actions))
    assert np.all(actions >= low) and np.all(actions <= high)
    if isinstance(planner, RandomPolicy):
        assert abs(np.mean(actions) - 0.2) < 5 * (1.0 / np.sqrt(12)) / np.sqrt(400)  # uniform between the bounds
    elif wish == "nothing finite":
        np.testing.assert_array_equal(failed, 1.0)
    else:  # the bound was within reach, and was reached
        assert np.median(np.abs(actions - (high if wish == "above" else low))) < 0.25


def test_planners_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="ICEM needs 0 <= keep <= elites <= population; got 6, 30, 20"):
        ICEM(population=20, elites=30)
    with pytest.raises(ValueError, match="ICEM needs horizon and iterations >= 1; got 0, 3"):
        ICEM(horizon=0)
    with pytest.raises(ValueError, match="RandomShooting needs horizon >= 1, population >= 2; got 30, 1"):
        RandomShooting(population=1)
    with pytest.raises(ValueError, match=r"RandomPolicy: correlation must lie in \[0, 1\); got 1.0"):
        RandomPolicy(correlation=1.0)
