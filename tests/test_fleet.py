"""One machine of a fleet: its belief is the marginal of the fleet's, whatever the plates and handlers around it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import drawn
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam, TransformReparam

import physppl as pp
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import DrawsPosterior, Laplace
from physppl.internal.progress import compile_clock
from physppl.posterior.innovations import innovations

state = pp.StateSpace(level=pp.Real("m", scale=2.0), flow=pp.Real("m/s"))
action = pp.ActionSpace(valve=pp.Bounded(-1.0, 1.0))
NOISE = np.array([0.05, 0.2])
ROWS = (3, 30, 12)
GAINS, LEAK = np.array([0.4, 0.9, 1.3]), 0.2
BACKEND = Laplace(starts=2)
AT = (np.array([[0.5, -0.2], [1.0, 0.3]]), np.array([[1.0], [-0.5]]))


def step(gain, leak):
    """s' = s + (gain, 1) u - leak (s1, s0)."""
    return pp.Step(lambda t, x, u: x + jnp.stack([gain, jnp.ones(())]) * u[0] - leak * x[::-1])


def recorded(m: int, rows: int) -> pp.Transitions:
    rng = np.random.default_rng(m)
    states, actions = rng.normal(size=(rows, 2)), rng.uniform(-1, 1, (rows, 1))
    after = states + np.concatenate([GAINS[m] * actions, actions], 1) - LEAK * states[:, ::-1]
    return pp.Transitions(states, actions, after + NOISE * rng.normal(size=(rows, 2)))


PARTS = [recorded(m, rows) for m, rows in enumerate(ROWS)]
data = pp.Transitions.stack(PARTS)


def gaussian(data):
    """Gaussian all through: the population's centre and a leak that all share, which the program closes over."""
    centre = numpyro.sample("centre", dist.Normal(0.5, 1.0))
    leak = numpyro.sample("leak", dist.Normal(0.0, 0.5))

    def program():
        gain = pp.physical("gain", dist.Normal(centre, 0.5), unit="m")
        numpyro.deterministic("twice", 2 * gain)
        return step(gain, leak)

    with numpyro.plate("machine", data.batch_shape[0]):
        pp.Dynamics(program, state, action, dt=0.1, process_noise=NOISE)(data)


def bent(data, dim=None):
    """Bounded, with a spread to infer and noise of each machine's own."""
    centre = numpyro.sample("centre", dist.Normal(0.0, 1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(0.5))

    def program():
        return step(pp.physical("gain", 0.0, 2.0, loc=centre, scale=spread, unit="m"), LEAK)

    with numpyro.plate("machine", len(ROWS), dim=dim):
        pp.Dynamics(program, state, action, dt=0.1)(data)


CONFIG = {"gain": TransformReparam(), "gain_base": LocScaleReparam(0.0)}
non_centred = handlers.reparam(bent, config=CONFIG)


@pytest.fixture(scope="module")
def gaussian_fit():
    nothing = pp.Transitions(np.zeros((0, 2)), np.zeros((0, 1)), np.zeros((0, 2)))
    return pp.fit(jax.random.key(0), gaussian, pp.Transitions.stack([*PARTS, nothing]), BACKEND)


def at_random(model, data):
    """A belief about a fleet that no fit made: a few points of its virtual space."""
    with jax.enable_x64(True):
        space = UnconstrainedSpace.of(model, data)
        points = jnp.asarray(np.random.default_rng(0).normal(size=(1, 20, space.size)))
        return DrawsPosterior(model, data, space, points)


def by_hand():
    """Mean and covariance of (centre, leak, gain 0, 1, 2), by Bayesian linear regression in NumPy."""
    precision = np.zeros((5, 5))
    precision[0, 0], precision[1, 1] = 1.0, 1 / 0.5**2
    for m in range(3):  # gain_m - centre has sd 0.5
        d = np.zeros(5)
        d[0], d[2 + m] = -1.0, 1.0
        precision += np.outer(d, d) / 0.5**2
    pull = np.zeros(5)
    pull[0] = 0.5
    for m, part in enumerate(PARTS):
        for x, u, y in zip(part.states, part.actions, part.next_states, strict=True):
            matrix = features(m, x, u)
            precision += matrix.T @ (matrix / NOISE[:, None] ** 2)
            pull += matrix.T @ ((y - x - [0.0, u[0]]) / NOISE**2)
    return np.linalg.solve(precision, pull), np.linalg.inv(precision)


def features(m, x, u):
    matrix = np.zeros((2, 5))
    matrix[:, 1] = -x[::-1]
    matrix[0, 2 + m] = u[0]
    return matrix


@pytest.mark.parametrize("held", ["Gaussian", pytest.param("draws", marks=pytest.mark.science)])
def test_a_machine_of_a_gaussian_fleet_is_the_marginal(x64, gaussian_fit, held):
    """Moments, predictions and their joint covariance, against linear algebra by hand; of draws within their error."""
    mean, covariance = by_hand()
    fleet = gaussian_fit if held == "Gaussian" else drawn(gaussian_fit)
    close = {"rtol": 1e-8, "atol": 1e-10} if held == "Gaussian" else {"rtol": 0.15, "atol": 0.02}
    for m in (0, 2):
        one = fleet.machine(m)
        moments = one.moments()
        for name, i in (("centre", 0), ("leak", 1), ("gain", 2 + m)):
            np.testing.assert_allclose(moments[name], [mean[i], np.sqrt(covariance[i, i])], **close)
        np.testing.assert_allclose(moments["twice"], 2 * np.array(moments["gain"]), rtol=1e-10)
        matrix = np.concatenate([features(m, x, u) for x, u in zip(*AT, strict=True)])
        np.testing.assert_allclose(one.covariance(*AT), matrix @ covariance @ matrix.T, **close)
        expected = AT[0] + np.concatenate([0 * AT[1], AT[1]], 1) + (matrix @ mean).reshape(2, 2)
        np.testing.assert_allclose(one.predict(*AT).mean, expected, **close)
        np.testing.assert_allclose(one.noise(), NOISE)
        draw = one.draw(jax.random.key(m))
        gain, leak = draw.sites["gain"], draw.sites["leak"]
        x, u = AT[0][0], AT[1][0]
        np.testing.assert_allclose(draw(x, u), x + np.array([gain, 1.0]) * u[0] - leak * x[::-1], rtol=1e-10)
        assert "twice" in one.samples(jax.random.key(0), 5) and one.data.states.shape == (max(ROWS), 2)


@pytest.mark.science
def test_what_the_others_have_seen_is_in_it(gaussian_fit):
    """Three transitions of its own: the belief is surer than one from these alone."""
    alone = pp.fit(jax.random.key(0), gaussian, pp.Transitions.stack(PARTS[:1]), BACKEND).machine(0)
    assert gaussian_fit.machine(0).information_gain(*AT) < 0.8 * alone.information_gain(*AT)
    assert gaussian_fit.machine(0).entropy() < alone.entropy() - 1


def test_a_machine_without_data_is_one_that_was_not_seen(x64, gaussian_fit):
    mean, covariance = by_hand()
    new = gaussian_fit.machine(3).moments()["gain"]
    np.testing.assert_allclose(new, [mean[0], np.sqrt(covariance[0, 0] + 0.25)], rtol=1e-8)


def scoped(data):
    return handlers.scope(non_centred, prefix="hall")(data)


def at_dim(dim):
    return handlers.reparam(lambda data: bent(data, dim), config=CONFIG)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(scoped, id="scoped and reparametrised"),
        pytest.param(at_dim(-2), id="dim", marks=pytest.mark.science),
        pytest.param(bent, id="centred", marks=pytest.mark.science),
    ],
)
def test_draws_of_a_machine_are_the_fleets_at_its_place(x64, model):
    """Whatever the handlers: the constrained values of each draw of the fleet are those of the machine's."""
    fleet = at_random(model, data)
    whole, one = fleet.samples(jax.random.key(0)), fleet.machine(1).samples(jax.random.key(0))
    prefix = "hall/" if model is scoped else ""
    gain = np.asarray(whole[f"{prefix}gain"])
    assert one["gain"].shape == (20,) and one["process_noise"].shape == (20, 2)
    np.testing.assert_allclose(one["gain"], gain.reshape(20, 3)[:, 1], rtol=1e-9)
    noise = np.asarray(whole[f"{prefix}process_noise"]).reshape(20, 3, 2)[:, 1]
    np.testing.assert_allclose(one["process_noise"], noise, rtol=1e-9)
    np.testing.assert_allclose(one[f"{prefix}centre"], whole[f"{prefix}centre"], rtol=1e-12)


def test_plates_in_plates_are_addressed_by_place_or_by_name(x64):
    halls = jax.tree.map(lambda x: np.stack([x, x]), data)

    def model(data):
        gravity = numpyro.sample("gravity", dist.Normal(1.0, 0.1))
        weights = np.arange(6.0).reshape(2, 3)

        def program():
            with numpyro.plate("joint", 2):
                friction = numpyro.sample("friction", dist.HalfNormal(1.0))
            return pp.Step(lambda t, x, u: gravity * x - friction * x)

        hall, machine = numpyro.plate("hall", 2, dim=-2), numpyro.plate("machine", 3, dim=-1)
        with hall as h, machine as m:
            assert weights.shape == (len(h), len(m))
            pp.Dynamics(program, state, action, dt=0.1, process_noise=NOISE)(data)

    fleet = at_random(model, halls)
    whole = np.asarray(fleet.samples(jax.random.key(0))["friction"])  # (draws, joint, hall, machine)
    for one in (fleet.machine(1, 2), fleet.machine(machine=2, hall=1)):
        np.testing.assert_allclose(one.samples(jax.random.key(0))["friction"], whole[:, :, 1, 2], rtol=1e-9)
    np.testing.assert_array_equal(one.data.states, data.states[2])
    with pytest.raises(TypeError, match=r"one index for each plate \(hall, machine\), as in machine\(hall=0, mach"):
        fleet.machine(1)


@pytest.mark.science
def test_a_conditioned_site_is_known(x64):
    fleet = at_random(handlers.condition(bent, data={"gain": jnp.array([0.3, 0.6, 0.9])}), data)
    x, u = AT[0][0], AT[1][0]
    for m, gain in enumerate((0.3, 0.6, 0.9)):
        one = fleet.machine(m)
        np.testing.assert_allclose(one.mean()(x, u), x + np.array([gain, 1.0]) * u[0] - LEAK * x[::-1], rtol=1e-10)


@pytest.mark.science
def test_new_draws_refits_and_other_machines_compile_nothing(gaussian_fit):
    def everything(fleet, m):
        one = fleet.machine(m)
        transitions = one.draws(jax.random.key(m), 3)
        ends = jax.vmap(lambda f: pp.rollout(f, np.zeros(2), np.ones((4, 1)))[-1])(transitions)
        return ends, one.predict(*AT).mean, one.information_gain(*AT), one.mean(), one.moments()

    first = everything(gaussian_fit, 0)
    again = pp.fit(jax.random.key(1), gaussian, jax.tree.map(lambda x: x[::-1], gaussian_fit.data), BACKEND)
    with compile_clock() as clock:
        second = everything(again, 1)
    assert clock.programs == 0 and not np.array_equal(first[1], second[1])


@pytest.mark.science
def test_it_is_pure(x64, gaussian_fit):
    """Under jit, with the fleet's belief as an argument; under vmap over beliefs."""

    def gain(fleet, key):
        return fleet.machine(1).draw(key).sites["gain"]

    key = jax.random.key(3)
    expected = gain(gaussian_fit, key)
    np.testing.assert_allclose(jax.jit(gain)(gaussian_fit, key), expected, rtol=1e-10)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), gaussian_fit)
    np.testing.assert_allclose(jax.jit(jax.vmap(gain, (0, None)))(two, key), [expected, expected], rtol=1e-10)


def plain():
    return step(pp.physical("gain", 0.0, 2.0), LEAK)


one = pp.Dynamics(plain, state, action, dt=0.1, process_noise=NOISE)


def test_what_is_asked_wrongly_is_told(gaussian_fit, tmp_path):
    fleet = gaussian_fit
    for index, error, message in (
        ((4,), ValueError, "plate 'machine' has machines 0 to 3; got 4"),
        ((-1,), ValueError, "plate 'machine' has machines 0 to 3; got -1"),
        ((), TypeError, r"give one index for each plate \(machine\), as in machine\(machine=0\)"),
        ((0, 1), TypeError, "give one index for each plate"),
    ):
        with pytest.raises(error, match=message):
            fleet.machine(*index)
    with pytest.raises(KeyError, match=r"the fleet has no plate 'machin'.*machine"):
        fleet.machine(machin=0)
    machine = fleet.machine(1)
    with pytest.raises(TypeError, match=re.escape("load(path, model).machine(1)")):
        machine.save(tmp_path / "machine")
    with pytest.raises(TypeError, match="this posterior is about one machine"):
        machine.machine(0)
    for act in (
        lambda: BACKEND.update(jax.random.key(0), machine, PARTS[0]),
        lambda: pp.fit(jax.random.key(0), machine.model, PARTS[0], BACKEND),
    ):
        with pytest.raises(NotImplementedError, match="the posterior of one machine is not fitted, updated or scored"):
            act()
    with pytest.raises(TypeError, match="needs a Gaussian or draws in unconstrained space"):
        pp.identifiability(machine)


def test_innovations_of_a_fleet_are_those_of_its_machines(x64, gaussian_fit):
    found = innovations(gaussian_fit)
    _, leak, *gains = np.asarray(gaussian_fit.unconstrained().mode)
    assert found.names == ("level", "flow") and found.input_names == ("valve",) and found.lag == 0
    assert found.parts == tuple(f"machine {m}" for m in range(4)) and found.noise_is_known
    assert found.place(2, 5, 1) == "flow at transition 5 of machine 2"
    assert found.seen.sum(axis=(1, 2)).tolist() == [2 * rows for rows in (*ROWS, 0)]
    for m, part in enumerate(PARTS):
        one, seen = innovations(gaussian_fit.machine(m)), found.seen[m]
        np.testing.assert_allclose(found.errors[m][seen], one.errors[0][one.seen[0]], atol=1e-9)
        mean = part.states + np.hstack([gains[m] * part.actions, part.actions]) - leak * part.states[:, ::-1]
        errors = (part.next_states - mean) / NOISE
        np.testing.assert_allclose(found.errors[m][: len(part)], errors, atol=1e-9)


def test_plates_in_plates_name_their_machines():
    """Halls of machines, as `machine(hall, machine)` counts them."""
    data = pp.Transitions(*(np.zeros((2, 3, 4, n)) for n in (2, 1, 2)))

    def halls(data):
        with numpyro.plate("hall", 2, dim=-2), numpyro.plate("machine", 3, dim=-1):
            pp.Dynamics(lambda: step(pp.physical("gain", dist.Normal(0.0, 1.0)), LEAK), state, action, dt=0.1)(data)

    parts = innovations(at_random(halls, data)).parts
    assert parts[4] == "hall 1, machine 1" and len(parts) == 6


def test_models_that_are_no_fleet_are_told():
    def two(data):
        with numpyro.plate("machine", 3):
            for name in ("left", "right"):
                with handlers.scope(prefix=name):
                    one(data)

    def none(data):
        numpyro.sample("y", dist.Normal(numpyro.sample("centre", dist.Normal(0.0, 1.0)), 1.0), obs=0.3)

    def bare(data):
        one(data)

    with pytest.raises(TypeError, match=r"must run one Dynamics in a plate; it runs 2 \(plain, plain\)"):
        at_random(two, data).machine(0)
    with pytest.raises(TypeError, match=r"must run one Dynamics in a plate; it runs 0 \(none\)"):
        at_random(none, data).machine(0)
    with pytest.raises(TypeError, match="has no plate around its Dynamics"):
        at_random(bare, PARTS[1]).machine(0)
    with pytest.raises(TypeError, match="this posterior is about one machine"):
        at_random(one, PARTS[1]).machine(0)
    noisy = handlers.condition(bent, data={"process_noise": np.full((3, 2), 0.1)})
    with pytest.raises(ValueError, match="'process_noise' of program is conditioned"):
        at_random(noisy, data).machine(0)


@pytest.mark.science
def test_tables_and_arviz_are_of_the_machine_and_the_check_is_of_the_fleet():
    fitted = pp.fit(jax.random.key(0), non_centred, data, BACKEND)
    for fleet in (fitted, drawn(fitted)):
        machine = fleet.machine(2)
        tree = machine.to_arviz(draws=50)
        assert tree.log_likelihood["next_state"].shape[-1] == ROWS[2]
        assert tree.posterior["gain"].dims == ("chain", "draw") and tree.posterior["gain"].attrs["units"] == "m"
        prior = np.asarray(machine.to_arviz(draws=2000).prior["gain"])
        assert prior.min() > 0 and prior.max() < 2 and 0.35 < prior.std() < 0.65
        rows = {row["name"]: row for row in machine.summary().rows}
        assert {"gain", "centre", "spread", "process_noise[level]"} <= rows.keys() and rows["gain"]["unit"] == "m"
        assert str(machine.check()) == str(fleet.check()) == str(pp.check(machine))
