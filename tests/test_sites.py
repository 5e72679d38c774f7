"""Sites: the prior of a physical parameter, and what a residual adds."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn

import physppl as pp
from physppl.language.program import UnitTable
from physppl.language.sites import bounded

state = pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s", scale=8.0))
action = pp.ActionSpace(torque=pp.Bounded(-3.0, 1.0, "N m"))


def density_of_bounded(x, low, high, loc, scale):
    """d/dx of Phi((logit((x - low) / (high - low)) - loc) / scale), by hand."""
    share = (x - low) / (high - low)
    z = np.log(share / (1 - share))
    slope = 1 / ((high - low) * share * (1 - share))
    return np.exp(-0.5 * ((z - loc) / scale) ** 2) / (scale * np.sqrt(2 * np.pi)) * slope


@pytest.mark.parametrize(("low", "high", "loc", "scale"), [(0.1, 2.0, 0.0, 1.0), (-5.0, -1.0, 0.7, 0.3), (0, 1, -2, 2)])
def test_a_physical_parameter_is_a_squashed_gaussian_between_its_bounds(x64, getkey, low, high, loc, scale):
    """The density by hand, and the draws against its integral: Kolmogorov-Smirnov, false alarm 1e-4."""
    prior = bounded(low, high, loc, scale)
    x = low + (high - low) * np.linspace(0.01, 0.99, 23)
    np.testing.assert_allclose(np.exp(prior.log_prob(x)), density_of_bounded(x, low, high, loc, scale), rtol=1e-10)
    draws = np.asarray(prior.sample(getkey(), (20_000,)))
    assert draws.min() > low and draws.max() < high
    share = (draws - low) / (high - low)
    normal = (np.log(share / (1 - share)) - loc) / scale
    assert scipy.stats.kstest(normal, "norm").pvalue > 1e-4


def test_the_bounds_are_the_support_and_virtual_space_is_the_logit(x64):
    def program():
        pp.physical("mass", 0.1, 2.0, unit="kg")

    prior = bounded(0.1, 2.0)
    inside = prior.support(jnp.array([0.1, 0.1001, 1.9999, 2.0, 2.1, -1.0]))
    np.testing.assert_array_equal(inside[1:3], True)
    np.testing.assert_array_equal(inside[4:], False)
    virtual = unconstrain_fn(handlers.seed(program, 0), (), {}, {"mass": jnp.array(0.6)})["mass"]
    share = (0.6 - 0.1) / 1.9
    assert float(virtual) == pytest.approx(np.log(share / (1 - share)), rel=1e-12)


@pytest.mark.parametrize(("low", "high", "loc", "scale"), [(1e-5, 5e-3, 0.0, 1.0), (0.5, 2.0, 0.7, 0.3)])
def test_on_a_logarithmic_scale_it_is_the_same_of_the_logarithm(x64, getkey, low, high, loc, scale):
    prior = bounded(low, high, loc, scale, log=True)
    x = low * (high / low) ** np.linspace(0.01, 0.99, 23)
    by_hand = density_of_bounded(np.log(x), np.log(low), np.log(high), loc, scale) / x
    np.testing.assert_allclose(np.exp(prior.log_prob(x)), by_hand, rtol=1e-9)
    draws = np.asarray(prior.sample(getkey(), (20_000,)))
    share = np.log(draws / low) / np.log(high / low)
    assert scipy.stats.kstest((np.log(share / (1 - share)) - loc) / scale, "norm").pvalue > 1e-4


def test_the_unconstrained_coordinate_of_a_logarithmic_site_is_a_gaussian(x64):
    def program():
        pp.physical("friction", 1e-5, 5e-3, log=True, unit="N m")

    run = handlers.seed(program, 0)
    z = jnp.linspace(-3.0, 3.0, 7)
    values = jax.vmap(lambda z: constrain_fn(run, (), {}, {"friction": z})["friction"])(z)
    np.testing.assert_allclose(values, 1e-5 * 500 ** (1 / (1 + np.exp(-z))), rtol=1e-12)
    density = jax.vmap(lambda z: -potential_energy(run, (), {}, {"friction": z}))(z)
    np.testing.assert_allclose(density, scipy.stats.norm.logpdf(z), rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.0, 1.0), "needs 0 < low; got low=0.0"), ((dist.HalfNormal(1.0), None), "a distribution and log=True")],
)
def test_a_logarithmic_scale_needs_two_positive_bounds(arguments, message):
    with handlers.seed(rng_seed=0), pytest.raises(ValueError, match=message):
        pp.physical("friction", *arguments, log=True)


def test_any_numpyro_prior_is_taken_and_units_are_kept_outside_the_trace():
    def program():
        pp.physical("damping", dist.HalfNormal(0.1), unit="N m s/rad")
        return pp.Step(lambda t, x, u: x)

    trace = handlers.trace(handlers.seed(program, 0)).get_trace()
    assert isinstance(trace["damping"]["fn"], dist.HalfNormal)
    dynamics = pp.Dynamics(program, state, action, dt=0.1, process_noise=0.1)
    table: dict[str, str] = {}
    with UnitTable(table), handlers.seed(rng_seed=0), handlers.scope(prefix="arm"):
        dynamics.sites()
    assert table == {"arm/damping": "N m s/rad"}


def test_loc_and_scale_may_be_sites_themselves_and_carry_gradients(x64):
    """A hierarchy: the density of a machine's parameter under traced population parameters."""

    def log_density(loc, log_scale):
        def program():
            with numpyro.plate("machine", 3):
                pp.physical("mass", 0.1, 2.0, loc=loc, scale=jnp.exp(log_scale))

        values = {"mass": jnp.array([0.4, 1.0, 1.7])}
        trace = handlers.trace(handlers.seed(handlers.substitute(program, data=values), 0)).get_trace()
        return jnp.sum(trace["mass"]["fn"].log_prob(trace["mass"]["value"]))

    masses = np.array([0.4, 1.0, 1.7])
    expected = np.sum(np.log(density_of_bounded(masses, 0.1, 2.0, 0.3, np.exp(-0.5))))
    value, slopes = jax.jit(jax.value_and_grad(log_density, argnums=(0, 1)))(0.3, -0.5)
    assert float(value) == pytest.approx(expected, rel=1e-12)
    z = np.log((masses - 0.1) / (2.0 - masses))
    error = (z - 0.3) / np.exp(-0.5)
    np.testing.assert_allclose(slopes, [np.sum(error) / np.exp(-0.5), np.sum(error**2 - 1)], rtol=1e-10)


def residual_at(weights, *, kind="last", **options):
    """The residual function at given weights."""

    def program():
        return pp.residual("residual", state, action, weights=kind, **options)

    return handlers.substitute(handlers.seed(program, 0), data={"residual": weights})()


def size_of(**options):
    trace = handlers.trace(handlers.seed(lambda: pp.residual("residual", state, action, **options), 0)).get_trace()
    return trace["residual"]["value"].size


def test_a_residual_declares_one_standard_normal_site_of_the_size_its_layers_need():
    assert size_of(width=16, depth=2) == 16 * 2
    # 3 features and 1 action, two layers of 16 with biases, an output layer without
    assert size_of(width=16, depth=2, weights="all") == (4 * 16 + 16) + (16 * 16 + 16) + 16 * 2
    trace = handlers.trace(handlers.seed(lambda: pp.residual("residual", state, action), 0)).get_trace()
    fn, value = trace["residual"]["fn"], trace["residual"]["value"]
    assert fn.event_shape == (128,)
    assert float(fn.log_prob(0 * value)) == pytest.approx(-64 * np.log(2 * np.pi), rel=1e-6)


@pytest.mark.parametrize(("kind", "tolerance"), [("last", 0.03), ("all", 0.15)])
def test_the_prior_sd_of_a_residual_is_scale_times_that_of_the_coordinate(x64, getkey, kind, tolerance):
    """Over typical inputs, drawn here anew: any angle, any action, velocities of their scale.

    Over random features the variance is the sum of the squared columns, exactly, and the tolerance is the Monte Carlo
    error of the 1,000 inputs that set the units. Over all weights the features vary from draw to draw as well: 400
    draws on 300 inputs are within 5 % of their mean, and one network of 64 units is within 10 % of the average one.
    """
    rng = np.random.default_rng(7)
    velocity = state.scale[1] * rng.standard_normal(300)
    x = jnp.asarray(np.column_stack([rng.uniform(-np.pi, np.pi, 300), velocity]))
    u = jnp.asarray(rng.uniform(-3.0, 1.0, (300, 1)))
    size = size_of(weights=kind, scale=0.3)
    weights = jnp.eye(size) if kind == "last" else jax.random.normal(getkey(), (400, size))
    values = jax.jit(jax.vmap(lambda w: jax.vmap(residual_at(w, kind=kind, scale=0.3))(x, u)))(weights)
    variance = np.mean(np.sum(np.asarray(values) ** 2, axis=0), axis=0) / (1 if kind == "last" else 400)
    np.testing.assert_allclose(np.sqrt(variance) / (0.3 * state.scale), 1.0, atol=tolerance)


def test_over_random_features_a_residual_is_linear_in_its_weights_and_over_all_it_is_not(x64, getkey):
    x, u = jnp.array([0.4, -3.0]), jnp.array([0.5])
    for kind, linear in (("last", True), ("all", False)):
        size = size_of(width=8, depth=2, weights=kind)
        a, b = jax.random.normal(getkey(), (2, size))
        f = lambda w, kind=kind: residual_at(w, kind=kind, width=8, depth=2)(x, u)  # noqa: E731
        gap = np.abs(f(a + b) - f(a) - f(b)).max()
        assert (gap < 1e-14) if linear else (gap > 1e-3)
        np.testing.assert_array_equal(f(jnp.zeros(size)), 0.0)  # the prior mean is the physics


def test_added_to_the_step_a_residual_stays_linear_and_in_the_field_it_does_not(x64, getkey):
    def physics(t, x, u):
        return jnp.stack([x[1], u[0] - 9.81 * jnp.sin(x[0])])

    def in_step():
        return pp.step_residual(physics, pp.residual("residual", state, action, width=8))

    def in_field():
        residual = pp.residual("residual", state, action, width=8, scale=1.0)
        return lambda t, x, u: physics(t, x, u) + residual(x, u)

    x, u = jnp.array([0.4, -3.0]), jnp.array([0.5])
    a, b = jax.random.normal(getkey(), (2, 16))
    zero = jnp.zeros(16)
    plain = pp.Dynamics(lambda: physics, state, action, dt=0.1, process_noise=0.1).transition({})(x, u)
    for program, linear in ((in_step, True), (in_field, False)):
        dynamics = pp.Dynamics(program, state, action, dt=0.1, process_noise=0.1)
        f = lambda w, dynamics=dynamics: dynamics.transition({"residual": w})(x, u)  # noqa: E731
        np.testing.assert_allclose(f(zero), plain, rtol=1e-15)
        gap = np.abs((f(a + b) - f(zero)) - (f(a) - f(zero)) - (f(b) - f(zero))).max()
        assert (gap < 1e-14) if linear else (gap > 1e-6)
    np.testing.assert_allclose(
        pp.Dynamics(in_step, state, action, dt=0.1, process_noise=0.1).transition({"residual": a})(x, u) - plain,
        residual_at(a, width=8)(x, u),
        atol=1e-14,
    )


def test_a_residual_sees_the_circle_and_its_seed_fixes_its_features(x64, getkey):
    weights = jax.random.normal(getkey(), (16,))
    x, u = jnp.array([0.4, -3.0]), jnp.array([0.5])
    f = residual_at(weights, width=8)
    np.testing.assert_allclose(f(x + jnp.array([2 * np.pi, 0.0]), u), f(x, u), atol=1e-13)
    np.testing.assert_array_equal(residual_at(weights, width=8)(x, u), f(x, u))
    assert np.abs(residual_at(weights, width=8, seed=1)(x, u) - f(x, u)).max() > 1e-3
    # A rougher prior changes faster over the same distance.
    near = jnp.array([0.4, -2.0])
    rough = residual_at(weights, width=8, frequency=4.0)
    assert np.abs(rough(near, u) - rough(x, u)).max() > np.abs(f(near, u) - f(x, u)).max()


def test_sites_that_make_no_sense_are_refused_by_name():
    with pytest.raises(ValueError, match=r"physical\('mass'\): needs finite low < high; got low=2.0, high=0.1"):
        pp.physical("mass", 2.0, 0.1)
    with pytest.raises(ValueError, match=r"physical\('mass'\).*low=1.0, high=1.0"):
        pp.physical("mass", 1.0, 1.0)
    with pytest.raises(ValueError, match=r"physical\('mass'\).*high=nan"):
        pp.physical("mass", 0.0, np.nan)
    with pytest.raises(ValueError, match=r"physical\('mass'\): needs low and high.*got low=0.1 alone"):
        pp.physical("mass", 0.1)
    with pytest.raises(ValueError, match=r"physical\('mass'\): give a distribution or two bounds"):
        pp.physical("mass", dist.HalfNormal(1.0), 2.0)
    with pytest.raises(ValueError, match=r"physical\('mass'\): unit 'kilogramz' is not understood"):
        pp.physical("mass", 0.1, 2.0, unit="kilogramz")
    with pytest.raises(ValueError, match=r"residual\('r'\): weights must be 'last' or 'all'; got 'first'"):
        pp.residual("r", state, action, weights="first")
    with pytest.raises(ValueError, match=r"residual\('r'\): width and depth must be at least 1; got 0 and 2"):
        pp.residual("r", state, action, width=0)
