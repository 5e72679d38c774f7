"""Integration: orders of convergence, agreement with diffrax, gradients both ways, and what an action may touch."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
import scipy.linalg
from jax.test_util import check_grads

import physppl as pp
from physppl.language.integrate import StepResidual, stepper

MATRIX = np.array([[0.0, 1.0], [-4.0, -0.3]])  # a damped oscillator
INPUT = np.array([[0.0], [2.0]])


def linear(t, x, u):
    return jnp.asarray(MATRIX) @ x + jnp.asarray(INPUT) @ u


def pendulum(t, x, u):
    return jnp.stack([x[1], u[0] * jnp.cos(t) - 0.1 * x[1] - 9.81 * jnp.sin(x[0])])


def exact(x, u, duration):
    """The linear system with a held input, by the matrix exponential of the augmented system."""
    block = np.zeros((3, 3))
    block[:2, :2], block[:2, 2:] = MATRIX, INPUT
    return (scipy.linalg.expm(block * duration) @ np.concatenate([x, u]))[:2]


start = np.array([0.7, -0.4])
newton = optimistix.Newton(rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        pytest.param(diffrax.Euler(), 1, id="Euler"),
        pytest.param(diffrax.Heun(), 2, id="Heun"),
        pytest.param(pp.RK4(), 4, id="RK4"),
        pytest.param(diffrax.Tsit5(), 5, id="Tsit5"),
        pytest.param(diffrax.Kvaerno3(root_finder=newton), 3, id="Kvaerno3"),
    ],
)
def test_the_error_falls_with_the_order_of_the_solver(x64, solver, order):
    """Slope of log error against log step over one second, fitted: within 0.3 of the order."""
    counts = np.array([16, 32, 64, 128])  # below 16 the leading terms of Tsit5 nearly cancel
    advance = lambda n: stepper(linear, 1.0, solver, int(n))(0.0, jnp.asarray(start), jnp.array([0.5]))  # noqa: E731
    errors = [np.linalg.norm(advance(n) - exact(start, [0.5], 1.0)) for n in counts]
    slope = np.polyfit(np.log(1 / counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.3)
    assert errors[-1] > 2e-14  # the fit saw the method's error, not rounding


@pytest.mark.parametrize(
    "solver",
    [diffrax.Euler(), diffrax.Heun(), diffrax.Midpoint(), diffrax.Bosh3(), pp.RK4(), diffrax.Tsit5(), diffrax.Dopri8()],
    ids=lambda x: type(x).__name__,
)
def test_the_unrolled_tableau_is_diffrax_own_step(x64, solver):
    rng = np.random.default_rng(0)
    term = diffrax.ODETerm(pendulum)
    ours = jax.jit(stepper(pendulum, 0.05, solver))

    @jax.jit
    def theirs(t, x, u):
        state = solver.init(term, t, t + 0.05, x, u)
        return solver.step(term, t, t + 0.05, x, u, state, made_jump=False)[0]

    for _ in range(20):
        t, x, u = rng.uniform(0, 5), rng.normal(size=2) * [2, 5], rng.uniform(-2, 2, 1)
        np.testing.assert_allclose(ours(t, x, u), theirs(t, x, u), rtol=3e-15, atol=3e-15)


def test_implicit_euler_solves_its_equation(x64):
    """(I - hA) x1 = x0 + h B u, solved by hand."""
    h = 0.05
    by_hand = np.linalg.solve(np.eye(2) - h * MATRIX, start + h * INPUT @ [0.5])
    step = stepper(linear, h, diffrax.ImplicitEuler(root_finder=newton))
    np.testing.assert_allclose(step(0.0, jnp.asarray(start), jnp.array([0.5])), by_hand, rtol=1e-10)


def test_an_implicit_solver_without_tolerances_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"Kvaerno5 needs tolerances.*Kvaerno5\(root_finder=optimistix.Newton\(rtol"):
        stepper(linear, 0.05, diffrax.Kvaerno5())


@pytest.mark.parametrize(
    ("solver", "substeps"),
    [
        pytest.param(pp.RK4(), 1, id="RK4"),
        pytest.param(pp.RK4(), 7, id="RK4 in a scan"),
        pytest.param(diffrax.Tsit5(), 2, id="Tsit5"),
        pytest.param(diffrax.Kvaerno3(root_finder=newton), 2, id="Kvaerno3"),
    ],
)
def test_forward_and_reverse_mode_give_one_jacobian_and_it_is_the_finite_difference(x64, solver, substeps):
    x, u = jnp.array([0.7, -0.4]), jnp.array([0.5])
    step = stepper(pendulum, 0.1, solver, substeps)
    f = jax.jit(lambda x: step(0.3, x, u))
    forward, reverse = jax.jit(jax.jacfwd(f))(x), jax.jit(jax.jacrev(f))(x)
    np.testing.assert_allclose(forward, reverse, rtol=1e-12, atol=1e-14)
    h = 1e-6
    finite = np.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(2)], axis=1)
    np.testing.assert_allclose(forward, finite, rtol=1e-6, atol=1e-7)  # the implicit solver's own tolerance


def test_gradients_through_a_rollout_hold_to_second_order(x64):
    actions = jnp.linspace(-1, 1, 4)[:, None]
    end = jax.jit(lambda x, a: pp.rollout(pendulum, x, a, dt=0.05)[-1])
    check_grads(end, (jnp.array([0.7, -0.4]), actions), order=2, modes=("fwd", "rev"), rtol=1e-4)


def bound(program, dt=0.05, **options):
    state = pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s"))
    action = pp.ActionSpace(torque=pp.Bounded(-2.0, 2.0))
    return pp.Dynamics(program, state, action, dt=dt, process_noise=0.1, **options)


def by_hand(x, actions, dt, substeps=1, t=0.0, field=pendulum):
    """Classical Runge-Kutta as in a textbook, in plain Python."""
    h, out = dt / substeps, [np.asarray(x)]
    for u in np.asarray(actions):
        y = out[-1]
        for _ in range(substeps):
            k1 = np.asarray(field(t, y, u))
            k2 = np.asarray(field(t + h / 2, y + h / 2 * k1, u))
            k3 = np.asarray(field(t + h / 2, y + h / 2 * k2, u))
            k4 = np.asarray(field(t + h, y + h * k3, u))
            y, t = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), t + h
        out.append(y)
    return np.stack(out)


@pytest.mark.parametrize("substeps", [1, 3])
def test_a_rollout_is_a_textbook_loop(x64, substeps):
    actions = np.random.default_rng(0).uniform(-2, 2, (12, 1))
    loop = by_hand(start, actions, 0.05, substeps, t=1.5)
    states = pp.rollout(pendulum, start, actions, dt=0.05, substeps=substeps, t=1.5)
    np.testing.assert_allclose(states, loop, rtol=1e-12)
    transition = bound(lambda: pendulum, substeps=substeps).transition({})
    np.testing.assert_allclose(pp.rollout(transition, start, actions, t=1.5), loop, rtol=1e-12)
    x = jnp.asarray(start)
    for k, u in enumerate(actions):
        x = transition(x, jnp.asarray(u), 1.5 + 0.05 * k)
    np.testing.assert_allclose(x, loop[-1], rtol=1e-12)


def test_a_rollout_over_given_times_equals_a_loop_and_needs_no_actions(x64):
    rng = np.random.default_rng(1)
    times = 0.4 + np.cumsum(np.concatenate([[0.0], rng.uniform(0.01, 0.1, 9)]))
    actions = rng.uniform(-2, 2, (9, 1))
    loop = [np.asarray(start)]
    for k in range(9):
        loop.append(by_hand(loop[-1], actions[k : k + 1], times[k + 1] - times[k], t=times[k])[-1])
    states = pp.rollout(pendulum, start, actions, times=times)
    np.testing.assert_allclose(states, np.stack(loop), rtol=1e-12)
    free = pp.rollout(lambda t, x, u: jnp.asarray(MATRIX) @ x, start, times=times, substeps=8)
    expected = np.stack([exact(start, [0.0], t - times[0]) for t in times])
    np.testing.assert_allclose(free, expected, atol=1e-9)


def test_a_rollout_is_the_adaptive_solution_of_diffrax(x64):
    """To 1e-6 over 40 held inputs, where the steps are fine enough."""
    actions = np.random.default_rng(3).uniform(-2, 2, (40, 1))
    times = 0.05 * np.arange(41)
    ours = pp.rollout(pendulum, start, actions, dt=0.05, solver=diffrax.Tsit5(), substeps=2)
    held = lambda t, x, a: pendulum(t, x, a[jnp.clip(jnp.searchsorted(times, t, side="right") - 1, 0, 39)])  # noqa: E731
    theirs = diffrax.diffeqsolve(
        diffrax.ODETerm(held),
        diffrax.Dopri8(),
        t0=0.0,
        t1=2.0,
        dt0=None,
        y0=jnp.asarray(start),
        args=jnp.asarray(actions),
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.ClipStepSizeController(
            diffrax.PIDController(rtol=1e-10, atol=1e-12), jump_ts=times[1:-1]
        ),
    )
    np.testing.assert_allclose(ours, theirs.ys, rtol=1e-6, atol=1e-7)


def test_many_rollouts_are_one_rollout_each(x64):
    """Candidates last: the same numbers as a vmap over single rollouts."""
    rng = np.random.default_rng(2)
    actions = rng.uniform(-2, 2, (10, 1, 7))
    transition = bound(lambda: pendulum, substeps=2).transition({})
    states = pp.rollouts(transition, start, actions, t=0.2)
    assert states.shape == (11, 2, 7)
    single = jax.vmap(lambda a: pp.rollout(transition, start, a, t=0.2), in_axes=-1, out_axes=-1)(actions)
    np.testing.assert_allclose(states, single, rtol=1e-13, atol=1e-14)


def test_an_action_is_held_over_its_own_step_and_touches_no_other(x64):
    """Solving across steps would read the next action at the last stage: here its derivative is zero, exactly."""
    actions = jnp.linspace(-1, 1, 5)[:, None]
    states = lambda a: pp.rollout(pendulum, start, a, dt=0.05, solver=diffrax.Tsit5())  # noqa: E731
    jacobian = np.asarray(jax.jacfwd(states)(actions))[..., 0]  # (T + 1, D, T)
    for k in range(6):
        np.testing.assert_array_equal(jacobian[k, :, k:], 0.0)
        assert k == 0 or np.all(np.abs(jacobian[k, 1, :k]) > 1e-3)
    # A held action and the exact held solution agree to the method's error.
    x = start
    for u in np.asarray(actions):
        x = exact(x, u, 0.05)
    held = pp.rollout(linear, start, actions, dt=0.05, substeps=4)[-1]
    np.testing.assert_allclose(held, x, atol=1e-9)


def test_a_frictionless_pendulum_keeps_its_energy(x64):
    """RK4 at 0.01 s over 1,000 periods of small swings: relative drift below 1e-4, falling with the fifth power.

    Its amplification factor on x'' = -w^2 x is 1 - (w h)^6 / 144 per step in the amplitude, (w h)^6 / 72 in energy: at
    w h = 0.0313 and 200,000 steps 2.6e-6.
    """
    steps = 200_000

    @jax.jit
    def drift(h, count):
        step = lambda x: stepper(lambda t, x, u: jnp.stack([x[1], -9.81 * jnp.sin(x[0])]), h, pp.RK4())(0.0, x, None)  # noqa: E731
        energy = lambda x: 0.5 * x[1] ** 2 + 9.81 * (1 - jnp.cos(x[0]))  # noqa: E731
        x0 = jnp.array([0.1, 0.0])
        end = jax.lax.fori_loop(0, count, lambda _, x: step(x), x0)
        return energy(end) / energy(x0) - 1

    predicted = -steps * (np.sqrt(9.81) * 0.01) ** 6 / 72
    assert float(drift(0.01, steps)) == pytest.approx(predicted, rel=0.1)
    assert float(drift(0.02, steps // 2) / drift(0.01, steps)) == pytest.approx(2**5, rel=0.1)


def test_a_step_and_a_step_residual_go_around_the_integrator(x64):
    step = pp.Step(lambda t, x, u: x + t * u[0])
    x, u = jnp.asarray(start), jnp.array([0.5])
    np.testing.assert_allclose(stepper(step, 0.05, pp.RK4(), substeps=4)(2.0, x, u), start + 1.0, rtol=1e-15)
    both = StepResidual(step, lambda x, u: 0.1 * x)
    np.testing.assert_allclose(stepper(both, 0.05, pp.RK4())(2.0, x, u), start + 1.0 + 0.1 * start, rtol=1e-15)


def test_precision_is_that_of_the_state():
    """A field with a double-precision constant neither promotes a float32 rollout nor retraces it."""
    field = lambda t, x, u: x * np.float64(-1.5) + np.asarray(INPUT)[:, 0] * u[0]  # noqa: E731
    states = pp.rollout(field, np.zeros(2, np.float32), np.ones((4, 1)), dt=0.1)
    assert states.dtype == jnp.float32
    with jax.enable_x64(True):
        assert pp.rollout(field, np.zeros(2), np.ones((4, 1)), dt=0.1).dtype == jnp.float64
        assert pp.rollout(field, np.zeros(2, np.float32), np.ones((4, 1)), dt=0.1, substeps=3).dtype == jnp.float32
    assert pp.rollout(field, [0, 0], np.ones((4, 1)), dt=0.1).dtype == jnp.float32  # integers are not a precision


def test_a_rollout_that_is_not_determined_is_refused():
    actions = np.zeros((3, 1))
    transition = bound(lambda: pendulum).transition({})
    with pytest.raises(ValueError, match="a bare field needs exactly one of dt and times"):
        pp.rollout(pendulum, start, actions)
    with pytest.raises(ValueError, match="a bare field needs exactly one of dt and times"):
        pp.rollout(pendulum, start, actions, dt=0.1, times=np.arange(4.0))
    with pytest.raises(ValueError, match="a Transition brings its own dt, solver and substeps; drop"):
        pp.rollout(transition, start, actions, dt=0.1)
    with pytest.raises(ValueError, match=r"a Transition needs actions \(T, A\)"):
        pp.rollout(transition, start)
    with pytest.raises(ValueError, match=r"times must have one more entry than actions; got \(3,\) and \(3, 1\)"):
        pp.rollout(pendulum, start, actions, times=np.arange(3.0))
