"""Dynamics inside larger models: a fleet of unequal machines, renamed, reparametrised, conditioned, predicted."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive, log_likelihood
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from numpyro.infer.util import log_density

import physppl as pp
from physppl.inference import HMC, Laplace

state = pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s", scale=8.0))
action = pp.ActionSpace(torque=pp.Bounded(-2.0, 2.0, "N m"))
DT, WIDTH = 0.05, 6
ROWS = (14, 40, 25)  # of the three machines


def field(mass, damping):
    def field(t, x, u):
        return jnp.stack([x[1], (u[0] - damping * x[1] - mass * 9.81 * jnp.sin(x[0])) / mass])

    return field


def plain_program():
    return field(pp.physical("mass", 0.2, 2.0, unit="kg"), pp.physical("damping", dist.HalfNormal(0.1)))


plain = pp.Dynamics(plain_program, state, action, dt=DT)


def machines(data, *, dim=None):
    """The fleet: masses share a population, damping and residual are each machine's own."""
    centre = numpyro.sample("centre", dist.Normal(0.0, 1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(0.5))

    def program():
        mass = pp.physical("mass", 0.2, 2.0, loc=centre, scale=spread, unit="kg")
        damping = pp.physical("damping", dist.HalfNormal(0.1), unit="N m s/rad")
        residual = pp.residual("residual", state, action, width=WIDTH, depth=1, scale=1e-3)
        return pp.step_residual(field(mass, damping), residual)

    with numpyro.plate("machine", len(ROWS), dim=dim):
        return pp.Dynamics(program, state, action, dt=DT)(data)


fleet = handlers.reparam(
    machines, config={"mass": TransformReparam(), "mass_base": LocScaleReparam(0.0)}
)  # non-centred
AXES = {"mass": 0, "damping": 0, "residual": 1, "process_noise": 1}  # event axes of the machines' own sites


def trajectory(mass, rows, seed):
    """(states, actions, next states) of one noisy machine, NumPy, textbook Runge-Kutta."""
    rng = np.random.default_rng(seed)
    states, actions = [rng.normal(size=2)], rng.uniform(-2, 2, (rows, 1))
    for u in actions:
        states.append(rk4(states[-1], u[0], mass, 0.05) + [0.002, 0.01] * rng.normal(size=2))
    states = np.stack(states)
    return states[:-1], actions, states[1:]


def rk4(x, u, mass, damping):
    def slope(x):
        return np.array([x[1], (u - damping * x[1] - mass * 9.81 * np.sin(x[0])) / mass])

    k1 = slope(x)
    k2 = slope(x + DT / 2 * k1)
    k3 = slope(x + DT / 2 * k2)
    k4 = slope(x + DT * k3)
    return x + DT / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


recorded = [trajectory(mass, rows, seed) for seed, (mass, rows) in enumerate(zip((0.6, 1.0, 1.4), ROWS, strict=True))]
data = pp.Transitions.stack([pp.Transitions(*r) for r in recorded])


def values(seed=0):
    """Site values of the fleet, plate axis first."""
    rng = np.random.default_rng(seed)
    return {
        "centre": 0.2,
        "spread": 0.7,
        "mass": np.array([0.55, 1.05, 1.5]),
        "damping": np.array([0.02, 0.05, 0.11]),
        "residual": rng.normal(size=(3, 2 * WIDTH)),
        "process_noise": rng.uniform(0.05, 0.3, (3, 2)),
    }


def residual_by_hand():
    """The (D, weights) matrix of the residual at (x, u): it is linear; its columns, one by one, without any model."""
    model = handlers.seed(lambda: pp.residual("residual", state, action, width=WIDTH, depth=1, scale=1e-3), 0)
    columns = [handlers.substitute(model, data={"residual": e})() for e in np.eye(2 * WIDTH)]
    return lambda x, u: np.stack([np.asarray(c(x, u)) for c in columns], axis=1)


def likelihood_by_hand(v):
    """[log density of each transition] of each machine: plain loops over the real rows."""
    matrix = residual_by_hand()
    out = []
    for m, (states, actions, after) in enumerate(recorded):
        sd = v["process_noise"][m] + 1e-6 * state.scale
        rows = []
        for x, u, y in zip(states, actions, after, strict=True):
            mean = (
                rk4(x, u[0], v["mass"][m], v["damping"][m]) + matrix(jnp.asarray(x), jnp.asarray(u)) @ v["residual"][m]
            )
            error = y - mean
            rows.append(np.sum(scipy.stats.norm.logpdf(error, 0, sd)))
        out.append(np.array(rows))
    return out


def at_dim(v, dim):
    """The values with their plate axis at `dim`."""
    shape = lambda k: (3, *(1,) * (-dim - 1), *np.shape(v[k])[1:])  # noqa: E731
    return {k: np.reshape(x, shape(k)) if k in AXES else x for k, x in v.items()}


def trace_at(model, v, *args):
    return handlers.trace(handlers.substitute(handlers.seed(model, 0), data=v)).get_trace(*args)


def pointwise(model, v, name="next_state"):
    """{site: log likelihoods} at one set of values, by NumPyro's own function."""
    batched = {k: jnp.asarray(x)[None] for k, x in v.items()}
    return np.asarray(log_likelihood(model, batched, data)[name][0])


def test_the_likelihood_of_the_fleet_is_that_of_three_machines_one_by_one(x64):
    v = values()
    ours, expected = pointwise(machines, v), likelihood_by_hand(v)
    assert ours.shape == (max(ROWS), 3)
    for m, rows in enumerate(ROWS):
        np.testing.assert_allclose(ours[:rows, m], expected[m], rtol=1e-10, atol=1e-10)
        np.testing.assert_array_equal(ours[rows:, m], 0.0)  # padding says nothing


@pytest.mark.parametrize("dim", [-1, -2, -3])
def test_the_plate_may_stand_anywhere(x64, dim):
    v = values()
    ours = pointwise(lambda d: machines(d, dim=dim), at_dim(v, dim))
    expected = likelihood_by_hand(v)
    assert ours.shape == {-1: (40, 3), -2: (3, 40), -3: (3, 1, 40)}[dim]
    ours = ours.T if dim == -1 else ours.reshape(3, 40)
    for m, rows in enumerate(ROWS):
        np.testing.assert_allclose(ours[m, :rows], expected[m], rtol=1e-10, atol=1e-10)
        np.testing.assert_array_equal(ours[m, rows:], 0.0)


def test_scope_renames_and_changes_no_number(x64):
    """A renamed site keeps its value: the obvious trace and substitute would redraw it from the prior."""
    v = values()
    scoped = handlers.scope(machines, prefix="hall")
    renamed = {f"hall/{k}": x for k, x in v.items()}
    np.testing.assert_allclose(pointwise(scoped, renamed, "hall/next_state"), pointwise(machines, v), rtol=1e-10)
    traces = [trace_at(m, w, data) for m, w in ((machines, v), (scoped, renamed))]
    sites = [{k for k, s in t.items() if s["type"] == "sample"} for t in traces]
    assert sites[1] == {f"hall/{k}" for k in sites[0]}

    # Inside the plate, and twice in one model.
    def two(data):
        for name in ("left", "right"):
            with handlers.scope(prefix=name):
                plain(data)

    one = pp.Transitions(*recorded[0])
    each = {"mass": 0.8, "damping": 0.04, "process_noise": np.array([0.1, 0.6])}
    alone = log_density(plain, (one,), {}, each)[0]
    both = log_density(two, (one,), {}, {f"{n}/{k}": x for n in ("left", "right") for k, x in each.items()})[0]
    assert float(both) == pytest.approx(2 * float(alone), rel=1e-12)


def test_reparam_changes_the_coordinates_and_no_likelihood(x64):
    v = values()
    z = np.log((v["mass"] - 0.2) / (2.0 - v["mass"]))
    non_centred = {k: x for k, x in v.items() if k != "mass"} | {"mass_base_decentered": (z - 0.2) / 0.7}
    trace = trace_at(fleet, non_centred, data)
    np.testing.assert_allclose(trace["mass"]["value"], v["mass"], rtol=1e-12)
    assert trace["mass"]["type"] == "deterministic"
    np.testing.assert_allclose(pointwise(fleet, non_centred), pointwise(machines, v), rtol=1e-10, atol=1e-10)
    # And under both, in either order.
    scoped = handlers.scope(fleet, prefix="hall")
    renamed = {f"hall/{k}": x for k, x in non_centred.items()}
    np.testing.assert_allclose(
        pointwise(scoped, renamed, "hall/next_state"), pointwise(machines, v), rtol=1e-10, atol=1e-10
    )


def test_the_joint_density_is_prior_plus_likelihood_and_its_gradient_is_the_finite_difference(x64):
    v = {k: jnp.asarray(x, float) for k, x in values().items()}
    share = (values()["mass"] - 0.2) / 1.8
    squashed = scipy.stats.norm.logpdf(np.log(share / (1 - share)), 0.2, 0.7) - np.log(1.8 * share * (1 - share))
    prior = scipy.stats.norm.logpdf(0.2) + scipy.stats.halfnorm.logpdf(0.7, scale=0.5) + squashed.sum()
    prior += scipy.stats.halfnorm.logpdf(values()["damping"], scale=0.1).sum()
    prior += scipy.stats.norm.logpdf(values()["residual"]).sum()
    prior += scipy.stats.halfnorm.logpdf(values()["process_noise"], scale=0.1 * state.scale).sum()
    joint = jax.jit(lambda v: log_density(machines, (data,), {}, v)[0])
    expected = prior + sum(rows.sum() for rows in likelihood_by_hand(values()))
    assert float(joint(v)) == pytest.approx(expected, rel=1e-10)
    flat, unravel = ravel_pytree(v)
    gradient = ravel_pytree(jax.grad(joint)(v))[0]
    direction = np.random.default_rng(3).normal(size=flat.size)
    h = 1e-6
    finite = (joint(unravel(flat + h * direction)) - joint(unravel(flat - h * direction))) / (2 * h)
    assert float(gradient @ direction) == pytest.approx(float(finite), rel=1e-6)


def test_conditioning_fixes_a_site_for_one_machine_or_for_all(x64):
    v = values()
    for fixed in (v["damping"], 0.05):
        conditioned = handlers.condition(machines, data={"damping": jnp.asarray(fixed)})
        rest = {k: x for k, x in v.items() if k != "damping"}
        expected = likelihood_by_hand(v | {"damping": np.broadcast_to(fixed, 3)})
        ours = pointwise(conditioned, rest)
        assert trace_at(conditioned, rest, data)["damping"]["is_observed"]
        for m, rows in enumerate(ROWS):
            np.testing.assert_allclose(ours[:rows, m], expected[m], rtol=1e-10, atol=1e-10)


def test_plates_in_plates(x64):
    """Two halls of three machines, the data stacked twice; shared, per hall and per machine sites side by side."""

    def program():
        return field(numpyro.sample("mass", dist.Uniform(0.2, 2.0)), 0.05)

    dynamics = pp.Dynamics(program, state, action, dt=DT, process_noise=(0.1, 0.8))
    halls = jax.tree.map(lambda x: np.stack([x, x]), data)

    def model(data):
        with numpyro.plate("hall", 2, dim=-2), numpyro.plate("machine", 3, dim=-1):
            return dynamics(data)

    mass = np.array([[0.5, 1.0, 1.5], [0.6, 0.9, 1.9]])
    ours = np.asarray(log_likelihood(model, {"mass": mass[None]}, halls)["next_state"][0])
    assert ours.shape == (40, 2, 3)
    for h in range(2):
        for m, (states, actions, after) in enumerate(recorded):
            for k, (x, u, y) in enumerate(zip(states, actions, after, strict=True)):
                expected = np.sum(scipy.stats.norm.logpdf(y, rk4(x, u[0], mass[h, m], 0.05), [0.1, 0.8]))
                assert ours[k, h, m] == pytest.approx(expected, rel=1e-10)


def test_plates_inside_the_program(x64):
    """A program may have plates of its own, inside the fleet's: two joints a machine."""

    def program():
        with numpyro.plate("joint", 2):
            friction = numpyro.sample("friction", dist.HalfNormal(1.0))
        return pp.Step(lambda t, x, u: x - friction * x)

    dynamics = pp.Dynamics(program, state, action, dt=DT, process_noise=(0.1, 0.8))

    def model(data, dim):
        with numpyro.plate("machine", 3, dim=dim):
            return dynamics(data)

    friction = np.random.default_rng(0).uniform(size=(3, 2))
    for dim, v in ((-1, friction.T), (-2, friction)):
        trace = trace_at(lambda d, dim=dim: model(d, dim), {"friction": v}, data)
        mean = np.asarray(trace["next_state"]["fn"].base_dist.base_dist.mean)
        mean = np.moveaxis(mean, 0, 1) if dim == -1 else mean
        np.testing.assert_allclose(mean, data.states * (1 - friction[:, None]), rtol=1e-12)


def test_a_program_may_observe_something_itself(x64):
    """A machine that was weighed: the reading counts in the posterior, and a transition needs no value for it."""

    def program():
        mass = pp.physical("mass", 0.2, 2.0)
        numpyro.sample("scale reading", dist.Normal(mass, 0.01), obs=0.6)
        return field(mass, 0.05)

    dynamics = pp.Dynamics(program, state, action, dt=DT, process_noise=(0.1, 0.8))
    one = pp.Transitions(*recorded[0])
    v = {"mass": jnp.asarray(0.8)}
    states, actions, after = recorded[0]
    steps = np.stack([rk4(x, u[0], 0.8, 0.05) for x, u in zip(states, actions, strict=True)])
    share = (0.8 - 0.2) / 1.8
    expected = scipy.stats.norm.logpdf(after, steps, [0.1, 0.8]).sum() + scipy.stats.norm.logpdf(0.6, 0.8, 0.01)
    expected += scipy.stats.norm.logpdf(np.log(share / (1 - share))) - np.log(1.8 * share * (1 - share))
    assert float(log_density(dynamics, (one,), {}, v)[0]) == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(
        dynamics.transition({"mass": 0.8})(jnp.asarray(states[0]), jnp.asarray(actions[0])), steps[0], rtol=1e-12
    )
    posterior = pp.fit(jax.random.key(0), dynamics, one, Laplace(starts=2))
    predicted = posterior.predict(jnp.asarray(states), jnp.asarray(actions))
    assert np.all(np.isfinite(predicted.covariance_matrix))
    mass = posterior.samples(jax.random.key(1), 4000)["mass"]
    assert float(mass.mean()) == pytest.approx(0.6, abs=0.02)
    assert float(mass.std()) == pytest.approx(0.01, rel=0.1)  # the scale says nearly all


def test_prediction_has_the_layout_of_the_fleet_and_its_moments(x64):
    """`Predictive` at fixed values: mean and sd of the drawn outcomes, 5 standard errors of 4,000 draws."""
    v, draws = values(), 4000
    posterior = {k: jnp.broadcast_to(jnp.asarray(x), (draws, *np.shape(x))) for k, x in v.items()}
    predict = Predictive(machines, posterior, return_sites=["next_state"])
    outcomes = np.asarray(predict(jax.random.key(0), data.inputs)["next_state"])
    assert outcomes.shape == (draws, 40, 3, 2)
    matrix = residual_by_hand()
    for m, rows in enumerate(ROWS):
        states, actions, _ = recorded[m]
        sd = v["process_noise"][m] + 1e-6 * state.scale
        for k in range(rows):
            x, u = states[k], actions[k]
            mean = (
                rk4(x, u[0], v["mass"][m], v["damping"][m]) + matrix(jnp.asarray(x), jnp.asarray(u)) @ v["residual"][m]
            )
            np.testing.assert_allclose(outcomes[:, k, m].mean(0), mean, atol=np.max(5 * sd / np.sqrt(draws)))
            np.testing.assert_allclose(outcomes[:, k, m].std(0), sd, rtol=5 / np.sqrt(2 * draws))
    # With outcomes in the data NumPyro returns the data.
    back = Predictive(machines, {k: x[:2] for k, x in posterior.items()}, return_sites=["next_state"])
    np.testing.assert_allclose(back(jax.random.key(0), data)["next_state"][1][: ROWS[0], 0], recorded[0][2], rtol=1e-12)


def test_prior_prediction_of_the_fleet_has_every_site():
    out = Predictive(fleet, num_samples=3)(jax.random.key(0), data.inputs)
    assert out["next_state"].shape == (3, 40, 3, 2) and out["mass"].shape == (3, 3) and out["centre"].shape == (3,)
    assert out["residual"].shape == (3, 3, 2 * WIDTH)
    assert np.all((out["mass"] > 0.2) & (out["mass"] < 2.0))


def test_a_wrong_number_of_plates_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"leading axes \(3,\) need as many plates outside; found no plate.*stack"):
        handlers.seed(plain, 0)(data)
    with pytest.raises(ValueError, match=r"leading axes \(\) .*found plates of sizes \(3,\)"):
        handlers.seed(machines, 0)(pp.Transitions(*recorded[0]))
    with pytest.raises(ValueError, match=r"leading axes \(2,\) .*found plates of sizes \(3,\)"):
        handlers.seed(machines, 0)(pp.Transitions.stack([pp.Transitions(*r) for r in recorded[:2]]))
    with pytest.raises(ValueError, match=r"data of a fleet \(3,\) need a model with a plate around dynamics\(data\)"):
        pp.fit(jax.random.key(0), plain, data, Laplace())


def test_the_model_can_be_drawn():
    """The graph's source names every site and both plates; drawing it needs no program `dot`."""
    graph = numpyro.render_model(machines, (data,), render_distributions=True)
    for name in (
        "centre",
        "spread",
        "mass",
        "damping",
        "residual",
        "process_noise",
        "next_state",
        "machine",
        "transition",
    ):
        assert name in graph.source
    assert "next_state" in numpyro.render_model(fleet, (data,)).source
    assert "mass -> next_state" in numpyro.render_model(plain, (pp.Transitions(*recorded[0]),)).source


@pytest.fixture(scope="module")
def sampled():
    return pp.fit(jax.random.key(3), fleet, data, HMC(draws=300, warmup=300, chains=2, target_acceptance=0.95))


@functools.cache
def fitted(dim):
    """By Laplace, with the plate at `dim`."""
    model = handlers.reparam(lambda data: machines(data, dim=dim), config=fleet.config)
    return pp.fit(jax.random.key(4), model, data, Laplace(starts=4))


@pytest.mark.science
def test_the_fleet_is_fitted_by_both_backends_and_they_agree(sampled):
    """The machines' masses, which the data determine: the Laplace mode within 0.5 sd of the sampler's mean.

    The linearised sd is within a third. (Draws of the nonlinear function are wider here: without centring, population
    and machine are bound along a curved ridge that a Gaussian does not follow.)
    """
    arviz_stats = pytest.importorskip("arviz_stats")
    laplace = fitted(-2)
    draws = laplace.samples(jax.random.key(5), 50)
    assert draws["mass_base_decentered"].shape == (50, 3, 1) and draws["residual"].shape == (50, 3, 1, 2 * WIDTH)
    for posterior in (laplace, sampled):
        with pytest.raises(TypeError, match=r"not a Dynamics: it has samples\(\) and to_arviz\(\)"):
            posterior.draw(jax.random.key(0))

    def mass(site):
        return 0.2 + 1.8 * jax.nn.sigmoid(site["centre"] + site["spread"] * site["mass_base_decentered"].ravel())

    with jax.enable_x64(True):
        at = lambda z: mass(laplace.space.sites(laplace.model, z, data))  # noqa: E731
        mode, slope = np.asarray(at(laplace.mode)), np.asarray(jax.jacfwd(at)(laplace.mode))
        sd = np.linalg.norm(np.asarray(laplace.factor) @ slope.T, axis=0)
    exact = sampled.samples(jax.random.key(6), group_by_chain=True)
    assert exact["process_noise"].shape == (2, 300, 3, 2)
    masses = np.asarray(jax.vmap(jax.vmap(mass))(exact)).reshape(-1, 3)
    np.testing.assert_array_less(np.abs(mode - masses.mean(0)) / masses.std(0), 0.5)
    np.testing.assert_array_less(np.abs(np.log(sd / masses.std(0))), np.log(1.33))
    np.testing.assert_array_less(np.abs(masses.mean(0) - [0.6, 1.0, 1.4]) / masses.std(0), 3.0)
    rhat = arviz_stats.rhat(sampled.to_arviz().posterior.to_dataset())
    assert max(float(rhat[k].max()) for k in rhat.data_vars) < 1.05


@pytest.mark.science
@pytest.mark.parametrize("dim", [-1, -2])
def test_leave_one_out_counts_the_real_transitions_and_no_padding(dim):
    """79 real rows of 120; the pointwise numbers belong to the observed rows beside them."""
    arviz_stats = pytest.importorskip("arviz_stats")
    tree = fitted(dim).to_arviz(jax.random.key(0), draws=300)
    assert tree.log_likelihood["next_state"].shape == (1, 300, sum(ROWS))
    observed = np.concatenate([after for _, _, after in recorded])
    np.testing.assert_allclose(tree.observed_data["next_state"], observed, rtol=1e-12)
    with (
        warnings.catch_warnings()
    ):  # few rows for the sites of a machine: importance weights are heavy, and loo says so
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto", UserWarning)
        loo = arviz_stats.loo(tree)
    assert loo.n_data_points == sum(ROWS) and np.isfinite(loo.elpd)
    # One draw by hand: the same draw through the plain loops.
    draw = {k: np.asarray(v[0, 7]) for k, v in tree.posterior.to_dataset().items()}
    draw["mass"] = 0.2 + 1.8 / (1 + np.exp(-(draw["centre"] + draw["spread"] * draw.pop("mass_base_decentered"))))
    draw = {k: v.reshape(3, *v.shape[v.ndim - AXES[k] :]) if k in AXES else v for k, v in draw.items()}
    with jax.enable_x64(True):
        expected = np.concatenate(likelihood_by_hand(draw))
    np.testing.assert_allclose(tree.log_likelihood["next_state"][0, 7], expected, rtol=1e-8, atol=1e-8)


def test_numpyro_samples_a_dynamics_with_nothing_of_ours_in_between(x64):
    """`MCMC(NUTS(dynamics))`, then `Predictive` and `log_likelihood` on its draws, by their documented use."""
    one = pp.Transitions.concatenate([pp.Transitions(*r) for r in recorded])
    mcmc = MCMC(NUTS(plain), num_warmup=100, num_samples=100, progress_bar=False)
    mcmc.run(jax.random.key(0), one)
    samples = mcmc.get_samples()
    assert samples["mass"].shape == (100,) and samples["process_noise"].shape == (100, 2)
    predicted = Predictive(plain, samples)(jax.random.key(1), one.inputs)
    assert predicted["next_state"].shape == (100, len(one), 2)
    assert log_likelihood(plain, samples, one)["next_state"].shape == (100, len(one))
    error = np.asarray(predicted["next_state"]).mean(0) - one.next_states
    assert np.sqrt(np.mean((error / predicted["next_state"].std(0)) ** 2)) < 2
