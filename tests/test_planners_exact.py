"""Planners against plain loops with the same noise, and against the exact optimum of a linear-quadratic problem."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from planning_problem import DT, action, dynamics, half, middle, particles, reach, simulate

from physppl.planning import ICEM, MPPI, Autoregressive, Coloured, GradientShooting, Spline, White
from physppl.planning.mppi import weights


def perturbations(key, proposal, shape):
    """As planners draw them, (H, A, N)."""
    matrix = proposal.matrix(shape[0])
    normals = np.asarray(jax.random.normal(key, (matrix.shape[1], *shape[1:]), jnp.float64))
    return np.stack([matrix @ normals[:, a] for a in range(shape[1])], axis=1)


def advanced(sequence):
    return np.concatenate([sequence[1:], sequence[-1:]])


def cem_by_hand(planner: ICEM, key, gain, start, mean):
    """The cross-entropy method as a textbook writes it (R. Rubinstein, D. Kroese, 2004), one candidate at a time."""
    sd = np.broadcast_to(planner.spread * half, mean.shape)
    best, best_value, shape = mean, -np.inf, (*mean.shape, planner.population)
    for k in jax.random.split(key, planner.iterations):
        if isinstance(planner.proposal, White):
            noise = np.asarray(jax.random.truncated_normal(k, -2.0, 2.0, shape, jnp.float64))
        else:
            noise = perturbations(k, planner.proposal, shape)
        candidates = [np.clip(mean + sd * noise[..., i], action.low, action.high) for i in range(planner.population)]
        values = np.array([reach(simulate(gain, start, u), u) for u in candidates])
        order = np.argsort(-values)[: planner.elites]
        elites = np.array([candidates[i] for i in order])
        mean = planner.smoothing * mean + (1 - planner.smoothing) * elites.mean(0)
        sd = planner.smoothing * sd + (1 - planner.smoothing) * elites.std(0)
        if values[order[0]] > best_value:
            best, best_value = candidates[order[0]], values[order[0]]
    return best, best_value, mean


@pytest.mark.parametrize("proposal", [White(), Autoregressive(0.7)], ids=str)
def test_icem_without_its_memory_is_the_cross_entropy_method(proposal, x64):
    planner = ICEM(horizon=6, population=50, iterations=4, elites=7, keep=0, proposal=proposal, smoothing=0.2)
    plan_state, mean = planner.init(action), np.tile(middle, (6, 1))
    start = np.array([0.1, -0.2])
    for seed in range(3):  # three control steps in a row: the shifted mean is handed on
        key = jax.random.key(seed)
        best, plan_state, info = planner.plan(key, particles(0.8), reach, jnp.asarray(start), plan_state)
        ours, value, mean = cem_by_hand(planner, key, 0.8, start, mean)
        mean = advanced(mean)
        assert np.allclose(best, ours, atol=1e-12) and abs(info["value"] - value) < 1e-12
        assert np.allclose(plan_state.mean, mean, atol=1e-12)


def mppi_by_hand(planner: MPPI, key, value, mean):
    """The information-theoretic update (G. Williams et al., 2017), one candidate at a time.

    Returns:
        the mean, and per iteration the temperature in units of the value and the mean's covariance (HA, HA) from the
        finite population: sum of weight^2 x deviation deviation'.
    """
    steps = []
    for k in jax.random.split(key, planner.iterations):
        noise = perturbations(k, planner.proposal, (*mean.shape, planner.population))
        candidates = [mean + planner.spread * half * noise[..., i] for i in range(planner.population)]
        candidates = [np.clip(u, action.low, action.high) for u in candidates]
        values = np.array([value(u) for u in candidates])
        good = [i for i in range(planner.population) if np.isfinite(values[i])]
        temperature = planner.temperature * (max(values[good]) - np.median(values[good]))
        shares = [np.exp((values[i] - max(values[good])) / temperature) for i in good]
        mean = sum(share * candidates[i] for share, i in zip(shares, good, strict=True)) / sum(shares)
        total = sum(shares)
        deviations = [share / total * (candidates[i] - mean).ravel() for share, i in zip(shares, good, strict=True)]
        steps.append((temperature, np.transpose(deviations) @ deviations))
    return mean, steps


def wall(states, actions):
    """`reach` with a wall at 0.3 m, beyond which the model is not a number."""
    xp = np if isinstance(states, np.ndarray) else jnp
    return xp.where(states[:, 0].max() > 0.3, xp.nan, reach(states, actions))


@pytest.mark.parametrize("objective", [reach, wall])
@pytest.mark.parametrize("proposal", [White(), Spline(3)], ids=str)
def test_mppi_averages_candidates_by_their_value(proposal, objective, x64):
    planner = MPPI(horizon=6, population=50, iterations=3, temperature=0.2, proposal=proposal)
    plan_state, mean = planner.init(action), np.tile(middle, (6, 1))
    start, failed = np.array([0.1, -0.2]), []
    for seed in range(3):
        key = jax.random.key(seed)
        plan, plan_state, info = planner.plan(key, particles(0.8), objective, jnp.asarray(start), plan_state)
        mean, _ = mppi_by_hand(planner, key, lambda u: objective(simulate(0.8, start, u), u), mean)
        assert np.allclose(plan, mean, atol=1e-12)
        assert abs(info["value"] - objective(simulate(0.8, start, mean), mean)) < 1e-12
        mean = advanced(mean)
        assert np.allclose(plan_state.last, mean, atol=1e-12)
        failed.append(float(info["failed"]))
    assert (max(failed) > 0.0) == (objective is wall)


def test_weights_do_not_depend_on_the_scale_or_the_origin_of_the_reward(x64):
    values = jnp.array([3.0, -jnp.inf, 1.0, 2.5, -4.0, 2.0])
    expected = np.array([np.exp((v - 3.0) / (0.5 * (3.0 - 2.0))) for v in (3.0, -np.inf, 1.0, 2.5, -4.0, 2.0)])
    assert np.allclose(weights(values, 0.5), expected / expected.sum(), atol=1e-15)  # the median of the finite is 2
    for scale, origin in ((1e-6, 0.0), (1e5, -7.0)):
        assert np.allclose(weights(scale * values + origin, 0.5), expected / expected.sum(), atol=1e-8)
    assert np.allclose(weights(jnp.array([2.0, -jnp.inf, 2.0]), 0.5), [0.5, 0.0, 0.5])
    assert np.array_equal(weights(jnp.full(3, -jnp.inf), 0.5), np.zeros(3))


def never(states, actions):
    return jnp.nan * states[-1, 0]


@pytest.mark.parametrize("planner", [MPPI(horizon=6), GradientShooting(horizon=6)], ids=lambda p: type(p).__name__)
def test_where_every_candidate_diverges_the_old_plan_stays(planner):
    plan, plan_state, _ = planner.plan(jax.random.key(0), particles(0.8), reach, jnp.zeros(2), planner.init(action))
    assert np.ptp(plan[:, 0]) > 0.1
    after, _, info = planner.plan(jax.random.key(1), particles(0.8), never, jnp.zeros(2), plan_state)
    assert np.allclose(after, advanced(plan), atol=1e-6) and info["failed"] == 1.0


def test_where_the_mean_of_mppi_diverges_its_best_candidate_is_executed(x64):
    """Two good sides with a hole between: their mean is in the hole."""
    hole = lambda states, u: jnp.where(jnp.abs(u[0, 0] - middle[0]) < 0.3, jnp.nan, jnp.abs(u[0, 0] - middle[0]))  # noqa: E731
    planner = MPPI(horizon=1, population=400, iterations=1, temperature=10.0, proposal=White(), spread=0.3)
    key, start = jax.random.key(0), np.zeros(2)
    mean, _ = mppi_by_hand(planner, key, lambda u: float(hole(None, u)), middle[None])
    assert abs(mean[0, 0] - middle[0]) < 0.3
    plan, _, info = planner.plan(key, particles(0.8), hole, jnp.asarray(start), planner.init(action))
    noise = perturbations(jax.random.split(key, 1)[0], White(), (1, 2, 400))
    candidates = np.clip(
        middle[None, :, None] + 0.3 * half[None, :, None] * noise, action.low[:, None], action.high[:, None]
    )
    best = candidates[..., np.argmax(np.abs(candidates[0, 0] - middle[0]))]
    assert np.allclose(plan, best, atol=1e-12) and abs(info["value"] - abs(best[0, 0] - middle[0])) < 1e-12


class LinearQuadratic:
    """Maximise -sum x'Qx - sum (u - rest)'R(u - rest) over H steps of the double integrator.

    The value of actions z = (u - middle) / half is optimum - (z - best)' P (z - best): P from stacked responses,
    `best` and `optimum` from the Riccati recursion, checked against each other.
    """

    horizon, gain, start = 6, 0.8, np.array([0.5, -0.3])
    Q, R, rest = np.diag([1.0, 0.2]), np.diag([0.3, 6.0]), middle

    def __init__(self):
        A, B = np.array([[1.0, DT], [0.0, 1.0]]), DT * np.array([[0.0, 0.0], [self.gain, 1.0]])
        drift = B @ self.rest
        F, c = np.block([[A, drift[:, None]], [np.zeros(2), 1.0]]), np.zeros((3, 3))  # state (x, 1), input u - rest
        G, c[:2, :2] = np.vstack([B, np.zeros(2)]), self.Q
        V, gains = np.zeros((3, 3)), []
        for _ in range(self.horizon):  # backwards; c enters on arrival
            W = c + V
            K = np.linalg.solve(self.R + G.T @ W @ G, G.T @ W @ F)
            V = F.T @ W @ (F - G @ K)
            gains.insert(0, K)
        x, actions = np.append(self.start, 1.0), []
        self.optimum = -x @ V @ x
        for K in gains:
            actions.append(self.rest - K @ x)
            x = F @ x + G @ (-K @ x)
        self.best = ((np.array(actions) - middle) / half).ravel()
        response = np.zeros((self.horizon, 2, self.horizon, 2))
        for i in range(self.horizon):
            for j in range(i + 1):
                response[i, :, j] = np.linalg.matrix_power(A, i - j) @ B * half
        response = response.reshape(2 * self.horizon, -1)
        stacked = lambda M: np.kron(np.eye(self.horizon), M)  # noqa: E731
        self.P = response.T @ stacked(self.Q) @ response + stacked(half[:, None] * self.R * half)
        self.initial_gap = self.gap(np.zeros_like(self.best))
        for z in (np.zeros_like(self.best), self.best, 0.3 * np.sin(np.arange(len(self.best)))):
            u = middle + half * z.reshape(-1, 2)
            assert abs(self.value(simulate(self.gain, self.start, u), u) - (self.optimum - self.gap(z))) < 1e-12

    def value(self, states, actions):
        """The objective; of JAX and NumPy arrays alike."""
        effort = actions - self.rest
        return -(states[1:] @ self.Q * states[1:]).sum() - (effort @ self.R * effort).sum()

    def gap(self, z):
        return (z - self.best) @ self.P @ (z - self.best)

    def plan(self, planner, key=0):
        """(z, value) of the planner's first plan."""
        start, transition = jnp.asarray(self.start), particles(self.gain)
        plan = jax.jit(lambda k: planner.plan(k, transition, self.value, start, planner.init(action)))
        actions, _, info = plan(jax.random.key(key))
        return ((np.asarray(actions) - middle) / half).ravel(), float(info["value"])


@pytest.mark.parametrize("starts", [1, 5])
def test_gradient_shooting_descends_as_gradient_descent_does(starts, x64):
    """Gradient ascent at rate 1 / (2 L) on a quadratic: z - best shrinks by (I - P / L) a step, its gap at least by
    (1 - smallest / largest eigenvalue)^2."""
    problem, steps = LinearQuadratic(), 60
    eigenvalues = np.linalg.eigvalsh(problem.P)
    planner = GradientShooting(problem.horizon, starts, steps, optax.sgd(0.5 / eigenvalues[-1]))
    contraction = np.eye(len(problem.best)) - problem.P / eigenvalues[-1]
    path = [problem.best - np.linalg.matrix_power(contraction, k) @ problem.best for k in range(steps + 1)]
    assert np.abs(path).max() < 1.0, "the oracle knows no bounds"
    z, value = problem.plan(planner)
    gap = problem.optimum - value
    bound = (1 - eigenvalues[0] / eigenvalues[-1]) ** (2 * steps) * problem.initial_gap
    assert bound < 0.05 * problem.initial_gap, "the check must have teeth"
    assert -1e-12 < gap <= min(bound, problem.gap(path[-1])) + 1e-12
    if starts == 1:
        assert np.allclose(z, path[-1], atol=1e-10)


def test_mppi_converges_to_the_linear_quadratic_optimum_as_its_theory_says(x64):
    """Of a quadratic value and Gaussian candidates, the weighted mean of infinitely many is known: its error shrinks
    by A = (I + 2 S P / temperature)^-1 an iteration, S the candidates' covariance. A finite population adds errors of
    known covariance; the rest is a chi-squared variable, false alarms 2e-6."""
    problem = LinearQuadratic()
    planner = MPPI(problem.horizon, 2048, 10, temperature=0.4, proposal=Coloured(1.0), spread=0.12)
    value = lambda u: problem.optimum - problem.gap(((u - middle) / half).ravel())  # noqa: E731
    _, steps = mppi_by_hand(planner, jax.random.key(0), value, np.tile(middle, (problem.horizon, 1)))
    matrix = planner.spread * Coloured(1.0).matrix(problem.horizon)
    S, unit = np.kron(matrix @ matrix.T, np.eye(2)), np.tile(1 / half, problem.horizon)
    assert np.abs(problem.best).max() + 5 * planner.spread < 1.0, "the oracle knows no bounds"

    error, covariance = -problem.best, np.zeros_like(S)
    for temperature, sampling in steps:
        A = np.linalg.inv(np.eye(len(S)) + 2 * S @ problem.P / temperature)
        error, covariance = A @ error, A @ covariance @ A.T + sampling * np.outer(unit, unit)
    z, found = problem.plan(planner)
    residual = z - problem.best - error
    low, high = scipy.stats.chi2.ppf([1e-6, 1 - 1e-6], len(S))
    assert low < residual @ np.linalg.solve(covariance, residual) < high

    factor = np.linalg.cholesky(covariance)  # the gap is a squared norm: triangle inequality
    worst = np.sqrt(high * np.linalg.eigvalsh(factor.T @ problem.P @ factor)[-1])
    bound = (np.sqrt(error @ problem.P @ error) + worst) ** 2
    assert bound < 0.05 * problem.initial_gap, "the check must have teeth"
    assert -1e-12 < problem.optimum - found < bound


def test_gradient_shooting_is_never_worse_than_the_last_plan(x64):
    """With an optimiser that goes the wrong way, the last plan, shifted, is all that is left."""
    planner, start = GradientShooting(horizon=6, starts=1, steps=5, optimiser=optax.sgd(-0.1)), jnp.array([0.1, -0.2])
    good, plan_state, _ = GradientShooting(horizon=6).plan(
        jax.random.key(0), particles(0.8), reach, start, planner.init(action)
    )
    plan, _, info = planner.plan(jax.random.key(1), particles(0.8), reach, start, plan_state)
    expected = advanced(np.asarray(good))
    assert np.allclose(plan, expected, atol=1e-12)
    assert abs(info["value"] - reach(simulate(0.8, start, expected), expected)) < 1e-12


def test_a_start_without_a_finite_gradient_stays_and_the_others_do_not_notice(x64):
    """The norm has no gradient where it is zero, at the first start; its value there is finite."""
    kink = lambda states, actions: reach(states, actions) - 0.01 * jnp.linalg.norm(actions - middle)  # noqa: E731
    start, key = jnp.array([0.1, -0.2]), jax.random.key(0)
    alone, more = GradientShooting(horizon=6, starts=1), GradientShooting(horizon=6, starts=4)
    plan, _, info = alone.plan(key, particles(0.8), kink, start, alone.init(action))
    assert np.allclose(plan, middle, atol=1e-12) and info["failed"] == 0.0
    plan, _, better = more.plan(key, particles(0.8), kink, start, more.init(action))
    optimum = ICEM(horizon=6, population=2000, iterations=20).plan(
        key, particles(0.8), kink, start, ICEM(horizon=6).init(action)
    )[2]["value"]
    assert better["value"] > info["value"] + 0.9 * (optimum - info["value"])


def test_starts_are_optimised_each_by_itself():
    """An optimiser that looks at all entries at once, the norm of the gradient, sees one start's."""
    optimiser = optax.chain(optax.clip_by_global_norm(0.05), optax.sgd(1.0))
    plans = []
    for starts in (1, 6):
        planner = GradientShooting(horizon=6, starts=starts, steps=3, optimiser=optimiser, spread=3.0)
        plans.append(planner.plan(jax.random.key(0), particles(0.8), gentle, jnp.zeros(2), planner.init(action))[0])
    assert np.abs(plans[0] - middle).max() > 0.01 and np.allclose(*plans, atol=1e-6)


def gentle(states, actions):
    """Best near the middle of the range, where the first start is."""
    return -((actions - 0.9 * middle) ** 2).sum()


def test_dynamics_of_this_file_are_those_of_the_loop():
    u = np.array([[0.3, -0.2], [1.5, 0.05]])
    x = np.array([0.1, 0.2])
    transition = dynamics.transition({"gain": 0.8})
    assert np.allclose(transition(transition(x, u[0]), u[1]), simulate(0.8, x, u)[-1], atol=1e-6)
