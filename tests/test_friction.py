"""Friction of every kind against the law in NumPy and against geometry; simulated machines with a changed truth."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import machines, oracles, prior_draws, scattered

import physppl as pp
from physppl.language.friction import friction
from physppl.language.program import rebuild
from physppl.models import cartpole, double_pendulum, furuta, pendulum, quanser_cartpole, simple_pendulum, two_link

ROWS = 400
named = pytest.mark.parametrize("model", [*machines, pendulum, cartpole], ids=lambda m: m.__name__.split(".")[-1])
COEFFICIENTS = ("damping", "coulomb", "breakaway", "quadratic")


@pytest.fixture(autouse=True)
def double(x64):
    """Equations are compared to rounding."""


def law(v, damping, coulomb, breakaway, quadratic, width, stribeck):
    """In NumPy, the sign and the size of friction apart."""
    dry = (coulomb + breakaway * np.exp(-((v / stribeck) ** 2))) * np.tanh(np.abs(v) / width)
    return np.sign(v) * (damping * np.abs(v) + dry + quadratic * v**2)


def coefficients(count=ROWS):
    """Velocities from creeping to fast, and coefficients from nothing to much."""
    rng = np.random.default_rng(3)
    v = rng.choice([-1.0, 1.0], count) * 10 ** rng.uniform(-3, 1.5, count)
    p = {name: rng.exponential(size=count) * rng.integers(0, 2, count) for name in COEFFICIENTS}
    return v, p | {"width": rng.uniform(0.05, 0.5, count), "stribeck": rng.uniform(0.1, 2.0, count)}


def test_friction_is_the_law_and_never_gives_power():
    v, p = coefficients()
    found = np.asarray(friction(jnp.asarray(v), **{k: jnp.asarray(x) for k, x in p.items()}))
    np.testing.assert_allclose(found, law(v, **p), rtol=1e-13)
    # Breakaway friction alone is gone at speed; the others never are.
    rubs = p["damping"] + p["coulomb"] + p["quadratic"] > 0
    assert np.all((v * found)[rubs] > 0) and np.all(v * found >= 0) and 0 < np.sum(~rubs) < ROWS / 4
    np.testing.assert_array_equal(friction(-v, **p), -found)
    # By hand: 0.1 x 0.5 + (0.2 + 0.3 exp(-1)) tanh(5) + 0.4 x 0.25
    assert float(friction(0.5, 0.1, 0.2, 0.3, 0.4, 0.1, 0.5)) == pytest.approx(0.46033565263841, rel=1e-12)
    assert float(friction(0.0, 0.1, 0.2, 0.3, 0.4)) == 0.0


def test_a_term_without_a_coefficient_is_not_computed():
    def primitives(**p):
        return sorted(str(e.primitive) for e in jax.make_jaxpr(lambda v: jnp.asarray(friction(v, **p)))(0.3).eqns)

    assert friction(jnp.ones(3), 0.0) == 0.0 and isinstance(friction(jnp.ones(3), 0.0), float)
    assert primitives(damping=0.5) == ["mul"]
    assert primitives(damping=0.0, coulomb=0.5) == ["div", "mul", "tanh"]
    assert primitives(damping=0.0, quadratic=0.5) == ["abs", "mul", "mul"]
    assert "exp" in primitives(damping=0.0, breakaway=0.5)
    # A site of 0 is no absent one: it has a derivative.
    slope = jax.grad(lambda c: friction(2.0, 0.0, c))(0.0)
    assert slope == pytest.approx(np.tanh(20.0))
    v, p = coefficients()
    for name in COEFFICIENTS:
        arrays = {k: jnp.asarray(x) for k, x in p.items()}
        np.testing.assert_array_equal(
            friction(v, **(arrays | {name: 0.0})), friction(v, **(arrays | {name: jnp.zeros(ROWS)}))
        )


def test_dry_friction_alone_is_what_it_was_to_the_last_bit():
    """Results that were measured before breakaway and drag were known stay those of the same equations."""
    v = jnp.asarray(coefficients()[0])
    np.testing.assert_array_equal(friction(v, 0.03, 0.2, width=0.3), 0.03 * v + 0.2 * jnp.tanh(v / 0.3))
    former = (0.2 + 0.1 * jnp.exp(-((v / 0.5) ** 2))) * jnp.tanh(v / 0.1)
    np.testing.assert_array_equal(friction(v, 0.03, 0.2, 0.1), 0.03 * v + former)
    arm = {k: v for k, v in two_link.nominal.items() if k != "split"}
    # (field, the accelerations it gave)
    cart = quanser_cartpole.nominal | {"cart_coulomb": 1.3, "pole_coulomb": 2e-3}
    cable = {"cable_stiffness": 1e-3, "cable_offset": 1e-4}
    qube = furuta.nominal | cable | {"arm_coulomb": 2e-3, "pendulum_coulomb": 1e-4}
    four = [
        (furuta.field(**qube), [-7.6549873891272915, 106.35367404715991]),
        (quanser_cartpole.field(**cart), [-0.8073092355371719, 41.71487931913442]),
        (two_link.arm(**arm), [2.8491342835973446, 7.7817635114082195]),
        (two_link.arm(**(arm | {"breakaway_1": 0.2, "breakaway_2": 0.1})), [0.9922527126176258, 10.331850579913493]),
    ]
    for field, before in four:
        now = field(0.0, jnp.array([0.4, -1.1, 0.05, -0.7]), jnp.array([0.9, -0.6]))
        np.testing.assert_allclose(now[2:], before, rtol=1e-13)  # tanh and exp of other processors: 1e-16 each
    now = pendulum.field(**pendulum.truth, coulomb=0.1)(0.0, jnp.array([0.4, -0.07]), jnp.array([0.9]))
    assert float(now[1]) == pytest.approx(-2.8562571603361455, rel=1e-13)


def _furuta_resistance(p, v):
    arm = {k: p[f"arm_{k}"] for k in COEFFICIENTS}
    swing = {k: p[f"pendulum_{k}"] for k in COEFFICIENTS}
    both = {k: p[k] for k in ("width", "stribeck")}
    return law(v[:, 0], **arm, **both) + 0.042**2 / 8.4 * v[:, 0], law(v[:, 1], **swing, **both)


def _cartpole_resistance(p, v):
    cart, pole = ({k: p[f"{part}_{k}"] for k in (*COEFFICIENTS, "width", "stribeck")} for part in ("cart", "pole"))
    motor = 3.71 * 0.00767 / (2.6 * 0.00635) * 3.71 * 0.00767 / 0.00635
    return law(v[:, 0], **cart) + motor * v[:, 0], law(v[:, 1], **pole)


def _two_link_resistance(p, v):
    both = {k: p[k] for k in ("width", "stribeck")}
    return [law(v[:, i], **{k: p[f"{k}_{i + 1}"] for k in COEFFICIENTS}, **both) for i in (0, 1)]


# (sites without priors and their sizes, what resists by the law in NumPy, torque per unit action)
RUBBING = {
    "furuta": (
        {"arm_breakaway": 2e-3, "arm_quadratic": 1e-5, "pendulum_breakaway": 5e-4, "pendulum_quadratic": 2e-6}
        | {"width": 0.3, "stribeck": 2.0},
        _furuta_resistance,
        np.array([[0.042 / 8.4], [0.0]]),
    ),
    "quanser_cartpole": (
        {"cart_breakaway": 1.0, "cart_quadratic": 2.0, "pole_breakaway": 5e-3, "pole_quadratic": 1e-4}
        | {"cart_width": 0.05, "cart_stribeck": 0.3, "pole_width": 0.3, "pole_stribeck": 2.0},
        _cartpole_resistance,
        np.array([[3.71 * 0.00767 / (2.6 * 0.00635)], [0.0]]),
    ),
    "two_link": (
        {"quadratic_1": 0.02, "quadratic_2": 0.01, "width": 0.1, "stribeck": 0.5},
        _two_link_resistance,
        np.eye(2),
    ),
}
RUBBING["furuta-published"] = RUBBING["furuta"]


@pytest.mark.parametrize("name", RUBBING)
def test_machines_rub_by_the_law(name):
    """M v' is the torque of motor and geometry less the law in NumPy, at random parameters and states, to 1e-9."""
    model, program, oracle = oracles[name]
    sizes, resistance, gain = RUBBING[name]
    dynamics = model.dynamics(program)
    draws = prior_draws(dynamics, ROWS)
    rng = np.random.default_rng(4)
    extra = {k: size * rng.uniform(0.2, 2.0, ROWS) for k, size in sizes.items()}
    states, actions = scattered(dynamics, ROWS)
    states[: ROWS // 2, 2:] *= 0.02  # slow, where dry friction falls
    field, variants = (two_link.arm if model is two_link else model.field), {}
    if name == "furuta-published":
        variants = {"as_published": True}
    sites = {k: v for k, v in draws.items() if k in inspect.signature(field).parameters}

    @jax.jit
    @jax.vmap
    def ours(p, x, u):
        return field(**p, **variants)(0.0, x, u)[2:]

    mass, conservative, _ = (np.asarray(x) for x in jax.jit(jax.vmap(oracle.terms))(draws, states, actions))
    resisted = np.stack(resistance(draws | extra, states[:, 2:]), axis=1)
    assert np.all(states[:, 2:] * resisted > 0)
    derived = np.linalg.solve(mass, (conservative + actions @ gain.T - resisted)[..., None])[..., 0]
    reach = np.abs(derived).max(axis=1, keepdims=True)
    assert np.max(np.abs(ours(sites | extra, states, actions) - derived) / reach) < 1e-9
    # Without any one of the new coefficients that is not so: this sees each.
    for k in extra:
        if k.endswith(("breakaway", "quadratic")) or k.startswith("quadratic"):
            less = ours(sites | extra | {k: np.zeros(ROWS)}, states, actions)
            assert np.max(np.abs(less - derived) / reach) > 1e-3, k


CHANGES = {  # {argument of the field: (one value, another)}, some sites and some not
    furuta: {"arm_coulomb": (1e-3, 2e-3), "arm_breakaway": (5e-4, 1e-3), "driven_inertia": (2e-4, 3e-4)},
    quanser_cartpole: {"cart_breakaway": (1.0, 0.5), "cart_stribeck": (0.2, 0.1), "pole_mgl": (0.2, 0.3)},
    two_link: {"quadratic_1": (0.02, 0.03), "gravity": (9.0, 0.0), "coulomb_2": (0.1, 0.2), "stribeck": (1.0, 0.3)},
    simple_pendulum: {"coulomb": (0.1, 0.2), "width": (0.3, 0.2), "mgl": (2.0, 3.0)},
    double_pendulum: {"coulomb_1": (0.1, 0.2), "m1": (1.0, 2.0), "l2": (0.5, 0.7)},
    pendulum: {"coulomb": (0.1, 0.2), "breakaway": (0.1, 0.3), "mass": (1.2, 1.4)},
    cartpole: {"pole_mass": (0.2, 0.3), "cart_friction": (0.1, 0.3)},
}


@named
def test_a_changed_system_has_the_changed_field(model):
    values = dict(model.truth if hasattr(model, "truth") else model.nominal)
    states, actions = scattered(model.dynamics(), 20)
    field = two_link.arm if model is two_link else model.field
    values.pop("split", None)
    traces = []

    @jax.jit
    def step(transition):
        traces.append(0)
        return jax.vmap(transition)(states, actions)

    seen = []
    for i in (0, 1):
        changes = {name: pair[i] for name, pair in CHANGES[model].items()}
        system = model.system(**changes)
        dt, changed = system.transition.dynamics.dt, field(**(values | changes))
        expected = jax.vmap(lambda x, u: pp.rollout(changed, x, u[None], dt=dt)[1])(states, actions)  # noqa: B023
        seen.append(np.asarray(step(system.transition)))
        np.testing.assert_allclose(seen[-1], expected, rtol=1e-9, atol=1e-12)
    assert len(traces) == 1, "the same changes of other values share what is compiled"
    assert np.abs(seen[0] - seen[1]).max() > 1e-6
    step(model.system().transition)
    added = set(CHANGES[model]) - set(model.system().transition.sites)
    assert len(traces) == (2 if added else 1), "a truth with more parameters is another program, new values are not"
    name = next(iter(CHANGES[model]))
    with pytest.raises(KeyError, match=f"{model.__name__} has no parameter '{name}s'.*{name}"):
        model.system(**{f"{name}s": 1.0})


@named
def test_what_a_truth_adds_can_be_held_in_a_program(model):
    """program_with(...) at the other published values is the field of system(...)."""
    changes = {name: pair[0] for name, pair in CHANGES[model].items()}
    system = model.system(**changes)
    states, actions = scattered(model.dynamics(), 20)
    sites = dict(model.truth if hasattr(model, "truth") else model.nominal)
    sites = {k: jnp.asarray(v) for k, v in sites.items() if k not in changes}
    by_program = jax.vmap(rebuild(model.program_with(**changes), sites, "test"), (None, 0, 0))(0.0, states, actions)
    truth = system.transition
    by_system = jax.vmap(rebuild(truth.dynamics.program, truth.sites, "test"), (None, 0, 0))(0.0, states, actions)
    np.testing.assert_allclose(by_system, by_program, rtol=1e-12)


def test_variants_of_the_equations_are_programs_and_the_usual_one_is_no_variant():
    usual = furuta.system().transition
    assert usual.dynamics == furuta.system(as_published=False).transition.dynamics == furuta.dynamics(dt=0.01)
    for model in (furuta, quanser_cartpole):
        assert model.system(as_published=True).transition.dynamics != model.system().transition.dynamics
    x, u = jnp.array([0.3, 1.0, 2.0, -3.0]), jnp.array([1.0])
    for model in (furuta, quanser_cartpole):
        printed = model.field(**model.nominal, as_published=True)
        found = model.system(as_published=True).transition(x, u)
        np.testing.assert_allclose(found, pp.rollout(printed, x, u[None], dt=0.01)[1], rtol=1e-12)
        assert np.abs(found - model.system().transition(x, u)).max() > 1e-3
    fast = two_link.system(gravity=0.0, locked=True).transition(jnp.array([0.3, 1.0, 2.0, -3.0]), jnp.array([1.0, 0.1]))
    assert float(fast[0]) == 0.3 and float(fast[2]) == 2.0
    # The first argument of the pendulum's is its friction, and none is some: one compiled program for all.
    systems = [pendulum.system(0.1), pendulum.system(coulomb=0.1), pendulum.system()]
    assert len({s.transition.dynamics for s in systems}) == 1
    assert [float(s.transition.sites["coulomb"]) for s in systems] == [0.1, 0.1, 0.0]


def test_the_usual_mistakes_about_inertia_are_those_of_the_geometry():
    # c0 of the Qube, 2.31e-4 kg m2 about the middle of the arm's rod, 4.02e-4 about its end: 74 % more
    coupling = furuta.nominal["pendulum_mgl"] / 9.81 * 0.085
    inertia = furuta.nominal["pendulum_mgl"] / 9.81 * furuta.nominal["pendulum_length"]
    middle, end = (x + coupling**2 / inertia for x in (furuta.nominal["driven_inertia"], furuta.PIVOT_INERTIA))
    assert middle == pytest.approx(0.095 * 0.085**2 / 12 + 0.024 * 0.085**2)
    assert end == pytest.approx(0.095 * 0.085**2 / 3 + 0.024 * 0.085**2)
    assert (middle, end, end / middle) == pytest.approx((2.306e-4, 4.02e-4, 1.74), rel=3e-3)

    def hangs(p):
        """m l, J and M, all a pole of 0.127 kg."""
        moment, total = p["pole_mgl"] / 9.81, p["driven_mass"] + p["pole_mgl"] / 9.81 / p["pole_length"]
        return moment, moment * p["pole_length"], total

    total = 0.37 + 3.71**2 * 3.9e-7 / 6.35e-3**2 + 0.127
    for changes, half, inertia in (
        ({}, 0.16825, 0.127 * 0.3365**2 / 3),
        (quanser_cartpole.LONG_POLE, 0.3365, 4 / 3 * 0.127 * 0.3365**2),
        (quanser_cartpole.POINT_POLE, 0.16825, 0.127 * 0.16825**2),
    ):
        assert hangs(quanser_cartpole.nominal | changes) == pytest.approx((0.127 * half, inertia, total))
        assert quanser_cartpole.system(**changes).transition.dynamics == quanser_cartpole.dynamics()


def test_resets_scatter_as_told():
    keys = jax.random.split(jax.random.key(0), 2000)
    for model, usual in ((furuta, 0.01), (quanser_cartpole, 0.01), (two_link, 0.0), (pendulum, 0.05)):
        for system, sd in ((model.system(), usual), (model.system(initial_sd=0.3), 0.3)):
            starts = np.asarray(jax.jit(jax.vmap(lambda k: system.physical(system.reset(k)[0])))(keys))  # noqa: B023
            # The sd of n normal numbers is known to 1 / sqrt(2 n): four of these.
            np.testing.assert_allclose(starts.std(axis=0), sd, rtol=4 / np.sqrt(4000), atol=1e-15)
    uneven = furuta.system(initial_sd=(0.0, 0.1, 0.0, 0.0)).initial_sd
    np.testing.assert_allclose(uneven, [0.0, 0.1, 0.0, 0.0])
