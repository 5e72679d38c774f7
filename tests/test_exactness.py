"""What must hold to rounding: closed forms, dense algebra in plain NumPy, and invariances. All in double precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import (
    linear_action,
    linear_data,
    linear_dynamics,
    linear_features,
    linear_mean,
    linear_noise,
    linear_program,
    linear_sd,
    linear_state,
    recording,
)
from numpyro.infer.util import potential_energy
from scipy.stats import multivariate_normal

import physppl as pp
from physppl.density import curvature
from physppl.density.mode import find_mode
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import Laplace
from physppl.inference.laplace import at
from physppl.models import cartpole, pendulum


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def design(data) -> np.ndarray:
    """Phi of all rows, (2 N, 4), coordinates of one row next to each other."""
    return np.concatenate([linear_features(np, x, u) for x, u in zip(data.states, data.actions, strict=True)])


class Regression:
    """Bayesian linear regression with known noise, in plain NumPy."""

    def __init__(self, data):
        self.phi, self.noise = design(data), np.tile(linear_noise, len(data))
        self.precision = np.diag(linear_sd**-2.0) + (self.phi.T / self.noise**2) @ self.phi
        self.change = (data.next_states - data.states).reshape(-1)
        right = linear_mean / linear_sd**2 + self.phi.T @ (self.change / self.noise**2)
        self.mean, self.covariance = np.linalg.solve(self.precision, right), np.linalg.inv(self.precision)

    def log_evidence(self) -> float:
        covariance = (self.phi * linear_sd**2) @ self.phi.T + np.diag(self.noise**2)
        return multivariate_normal(self.phi @ linear_mean, covariance).logpdf(self.change)


def within(ours, theirs, tolerance: float) -> None:
    """Largest difference, relative to the largest entry of the oracle."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-300)
    assert error < tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_laplace_is_bayesian_linear_regression(rows):
    data, new = linear_data(seed=rows, rows=rows), linear_data(seed=99, rows=7)
    posterior, exact = pp.fit(jax.random.key(0), linear_dynamics(), data, Laplace()), Regression(data)
    assert posterior.status == pp.Status.OK
    within(posterior.mode, exact.mean, 1e-8)
    within(posterior.factor.T @ posterior.factor, exact.covariance, 1e-8)
    assert abs(posterior.log_evidence - exact.log_evidence()) < 1e-6

    phi = design(new)
    mean = new.states + (phi @ exact.mean).reshape(new.states.shape)
    joint = phi @ exact.covariance @ phi.T
    predicted = posterior.predict(new.states, new.actions)
    within(predicted.mean, mean, 1e-8)
    blocks = np.stack([joint[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] for i in range(len(new))])
    within(predicted.covariance_matrix, blocks + np.diag(linear_noise**2), 1e-8)
    within(posterior.covariance(new.states, new.actions), joint, 1e-8)
    density = sum(
        multivariate_normal(m, c + np.diag(linear_noise**2)).logpdf(y)
        for m, c, y in zip(mean, blocks, new.next_states, strict=True)
    )
    assert abs(jnp.sum(predicted.log_prob(new.next_states)) - density) < 1e-6


@pytest.mark.parametrize("measured", [1, 7, 60])
def test_information_gain_is_half_the_log_ratio_of_the_precisions(measured):
    data, new = linear_data(seed=1, rows=20), linear_data(seed=2, rows=measured)
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), data, Laplace())
    before, after = Regression(data), Regression(pp.Transitions.concatenate([data, new]))
    expected = 0.5 * (np.linalg.slogdet(after.precision)[1] - np.linalg.slogdet(before.precision)[1])
    assert abs(posterior.information_gain(new.states, new.actions) - expected) < 1e-10


def pendulum_by_hand(z, data):
    """Mean next states (N, 2) and noise sd (2,) at virtual parameters, in NumPy; holds for complex z as well."""
    logistic = 1 / (1 + np.exp(-z[:3]))
    mass, length, damping = (low + (high - low) * p for (low, high), p in zip(BOUNDS, logistic, strict=True))
    torque, h = data.actions[:, 0], 0.05

    def slope(x):
        gravity = -mass * 9.81 * length * np.sin(x[0])
        return np.stack([x[1], (torque - damping * x[1] + gravity) / (mass * length**2)])

    x = data.states.T
    k1 = slope(x)
    k2 = slope(x + h / 2 * k1)
    k3 = slope(x + h / 2 * k2)
    x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3))
    return x.T, (np.exp(z[3:]) + 1e-6) * SCALE


BOUNDS = [(0.2, 2.0), (0.3, 1.8), (0.0, 0.2)]
SCALE = pendulum.state.scale


def hand_made_pendulum():
    """The program that `pendulum_by_hand` writes out; its bounds stand here, whatever the model's are."""
    mass, length, damping = BOUNDS
    return pendulum.field(pp.physical("mass", *mass), pp.physical("length", *length), pp.physical("damping", *damping))


@pytest.mark.parametrize("seed", [0, 1])
def test_curvature_is_the_dense_fisher_information_plus_the_prior(seed):
    dynamics = pendulum.dynamics(hand_made_pendulum)
    data = recording(dynamics, pendulum.truth, seed, steps=50).pad(64)
    z = np.random.default_rng(seed).normal(size=5) * [1, 1, 1, 0.5, 0.5] + [0, 0, 0, -3, -3]
    posterior = eqx.filter_jit(at)(dynamics, data, jnp.asarray(z))
    assert posterior.space.names == ("mass", "length", "damping", "process_noise")
    # In which units the noise's virtual coordinate is counted does not matter to derivatives; find the shift.
    shift = np.log(posterior.space.sites(dynamics.sites, jnp.asarray(z))["process_noise"] / SCALE) - z[3:]
    z_hand = z + np.concatenate([np.zeros(3), shift])

    step = 1e-30  # derivatives by a complex step: exact to rounding
    jacobian = np.stack([pendulum_by_hand(z_hand + 1j * step * e, data)[0].imag / step for e in np.eye(5)])
    spread = np.stack([np.log(pendulum_by_hand(z_hand + 1j * step * e, data)[1]).imag / step for e in np.eye(5)])
    noise = pendulum_by_hand(z_hand, data)[1]
    weighted = jacobian[:, data.valid] / noise
    prior = np.concatenate([np.ones(3), 2 * np.exp(2 * z_hand[3:]) / 0.1**2])  # N(0, 1); log of a HalfNormal(0.1)
    dense = np.einsum("ind,jnd->ij", weighted, weighted) + 2 * data.valid.sum() * spread @ spread.T + np.diag(prior)
    within(np.linalg.inv(posterior.factor.T @ posterior.factor), dense, 1e-8)
    within(posterior.factor.T @ posterior.factor, np.linalg.inv(dense), 1e-8)


def pendulum_with_residual():
    physics = pendulum.program()
    residual = pp.residual("residual", pendulum.state, pendulum.action, width=8, depth=2)
    return lambda t, x, u: physics(t, x, u) + residual(x, u)


def pendulum_with_step_residual():
    return pp.step_residual(
        pendulum.program(), pp.residual("residual", pendulum.state, pendulum.action, width=5, depth=1, weights="all")
    )


@pytest.mark.parametrize(
    "model, program",
    [
        (pendulum, pendulum.program),
        (cartpole, cartpole.program),
        (pendulum, pendulum_with_residual),
        (pendulum, pendulum_with_step_residual),
    ],
    ids=["pendulum", "cartpole", "residual", "step-residual"],
)
def test_gradient_and_log_joint_are_numpyros(model, program):
    dynamics = model.dynamics(program)
    data = recording(model.dynamics(), model.truth, steps=30).pad(32)
    space = UnconstrainedSpace.of(dynamics, data)
    z = 0.5 * np.random.default_rng(0).normal(size=space.size)
    density = jax.jit(jax.value_and_grad(lambda z: -potential_energy(dynamics, (data,), {}, space.split(z))))
    value, gradient = density(jnp.asarray(z))
    found = jax.jit(lambda z: curvature.local(space, dynamics, data, z))(jnp.asarray(z))
    within(found.gradient, gradient, 1e-9)
    within(found.log_joint, value, 1e-12)
    assert np.linalg.eigvalsh(found.curvature)[0] > 0


def moments(posterior):
    return posterior.mode, posterior.factor.T @ posterior.factor, posterior.log_evidence


def test_padding_and_order_of_the_rows_change_nothing():
    dynamics = pendulum.dynamics(process_noise=0.05)
    data = recording(dynamics, pendulum.truth, steps=40)
    bare = jax.jit(lambda d: moments(Laplace().fit(jax.random.key(0), dynamics, d)))(data)  # 40 rows, not a bucket
    order = np.random.default_rng(0).permutation(40)
    for same in (data, data.pad(100), data[order]):
        posterior = pp.fit(jax.random.key(0), dynamics, same, Laplace())
        assert len(posterior.data) in (64, 128)
        for ours, exact in zip(moments(posterior), bare, strict=True):
            within(ours, exact, 1e-10)


def test_what_stands_in_an_invalid_row_changes_nothing():
    dynamics, data = linear_dynamics(), linear_data(rows=30)
    valid = np.arange(30) % 3 != 0
    wrong = data.next_states.copy()
    wrong[~valid] = np.nan
    masked = pp.Transitions(data.states, data.actions, wrong, valid=valid)
    left = moments(pp.fit(jax.random.key(0), dynamics, masked, Laplace()))
    for ours, exact in zip(left, moments(pp.fit(jax.random.key(0), dynamics, data[valid], Laplace())), strict=True):
        within(ours, exact, 1e-10)


def flat_program():
    """Linear, with a prior so wide that only the data speak."""
    theta = pp.physical("theta", dist.Normal(0.0, 1e6).expand([4]).to_event(1))
    return pp.Step(lambda t, x, u: x + linear_features(jnp, x, u) @ theta)


def test_twice_the_data_halve_the_variance_under_a_flat_prior():
    dynamics = pp.Dynamics(
        flat_program, linear_state, linear_dynamics().action, dt=0.1, process_noise=tuple(linear_noise)
    )
    data = linear_data(rows=30)
    once = pp.fit(jax.random.key(0), dynamics, data, Laplace())
    twice = pp.fit(jax.random.key(0), dynamics, pp.Transitions.concatenate([data, data]), Laplace())
    within(twice.mode, once.mode, 1e-8)
    within(2 * twice.factor.T @ twice.factor, once.factor.T @ once.factor, 1e-8)


def test_no_data_is_the_prior():
    dynamics = linear_dynamics()
    nothing = linear_data(rows=1)[:0]
    fitted = pp.fit(jax.random.key(0), dynamics, nothing, Laplace())
    for posterior in (fitted, Laplace().prior(jax.random.key(0), dynamics)):
        within(posterior.mode, linear_mean, 1e-12)
        within(posterior.factor.T @ posterior.factor, np.diag(linear_sd**2), 1e-12)
        assert abs(posterior.log_evidence) < 1e-12  # the probability of no data is one


def test_data_one_after_the_other_equal_all_data_at_once():
    dynamics, data, backend = linear_dynamics(), linear_data(rows=30), Laplace()
    first = pp.fit(jax.random.key(0), dynamics, data[:11], backend)
    updated = backend.update(jax.random.key(1), first, data[11:])
    for ours, exact in zip(moments(updated), moments(pp.fit(jax.random.key(0), dynamics, data, backend)), strict=True):
        within(ours, exact, 1e-10)


def test_data_without_noise_pin_the_physics_and_bound_the_noise(x64):
    """At the noise's floor the Fisher information of the log noise vanishes; the floor's own curvature takes over."""
    dynamics = pendulum.dynamics()
    rng = np.random.default_rng(0)
    states, torques = rng.normal(size=(100, 2)), rng.uniform(-2.5, 2.5, (100, 1))
    data = pp.Transitions(states, torques, jax.vmap(dynamics.transition(pendulum.truth))(states, torques))
    posterior = pp.fit(jax.random.key(0), dynamics, data, Laplace())
    samples = posterior.samples(jax.random.key(1), 1000)
    assert int(posterior.status) == 0
    for name, value in pendulum.truth.items():
        np.testing.assert_allclose(samples[name], value, rtol=1e-2)
    assert np.all(samples["process_noise"] < 1e-5 * dynamics.state.scale)


def test_the_search_goes_uphill():
    """Up -log cosh, where a Newton step from 2 lands farther off on the other side, and the next one farther still."""

    def evaluate(z):
        height, slope = jax.value_and_grad(lambda z: -jnp.sum(jnp.log(jnp.cosh(z))))(z)
        return curvature.Local(height, slope, jnp.diag(jnp.cosh(z) ** -2))

    found = jax.jit(lambda z: find_mode(evaluate, z, jnp.full(1, 10.0), 50))(jnp.array([[2.0]]))
    assert abs(found.point[0]) < 1e-6


def test_the_search_leaves_a_region_of_negative_curvature():
    """Where no step can be made the damping must grow until one can, and not shrink because the point is no worse."""

    def evaluate(z):
        density = lambda z: -jnp.sum(jnp.log1p(z**2))  # noqa: E731  (convex beyond one from the mode)
        return curvature.Local(density(z), jax.grad(density)(z), -jax.hessian(density)(z))

    found = find_mode(evaluate, jnp.array([[5.0, -3.0]]), jnp.ones(2), steps=40)
    assert np.max(np.abs(found.point)) < 1e-9
    within(found.local.curvature, 2 * np.eye(2), 1e-9)


def test_entropy_leaves_noises_out():
    """That of the program's parameters is the marginal one, whatever is known of the noise."""
    dynamics = pp.Dynamics(linear_program, linear_state, linear_action, dt=0.1, process_noise=dist.LogNormal(0.0, 1.0))
    posterior = eqx.filter_jit(at)(
        dynamics, linear_data(rows=8), jnp.concatenate([jnp.asarray(linear_mean), jnp.zeros(2)])
    )
    covariance = np.asarray(posterior.factor.T @ posterior.factor)
    assert posterior.space.names[-1] == "process_noise" and covariance.shape == (6, 6)
    exact = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance[:4, :4])[1]
    assert float(posterior.entropy()) == pytest.approx(exact, abs=1e-9)
