"""Stiff programs: right to 1e-4 with steps that suffice, NaN and a status where they do not."""

from typing import Any

import diffrax
import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
from scipy.integrate import solve_ivp

import physppl as pp
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import DrawsPosterior, Laplace
from physppl.internal.errors import failed_solves_are_nan
from physppl.language.integrate import stepper
from physppl.posterior import diagnostics, solver_error


def robertson(t, x, u, fast=3e7):
    """H. H. Robertson, 1966: rates over nine orders of magnitude."""
    slow, back = 0.04 * x[0], 1e4 * x[1] * x[2]
    return jnp.stack([-slow + back, slow - back - fast * x[1] ** 2, fast * x[1] ** 2])


def van_der_pol(t, x, u, stiffness=1e3):
    return jnp.stack([x[1], stiffness * (1 - x[0] ** 2) * x[1] - x[0]])


PROBLEMS = {
    "Robertson": (robertson, [1.0, 0.0, 0.0], 10.0, 4, [1.0, 3e-5, 1.0]),
    "van der Pol": (van_der_pol, [2.0, 0.0], 200.0, 6, [2.0, 1e-3]),
}


def reference(field, start, dt, steps):
    with jax.enable_x64(True):
        slope = jax.jit(lambda t, x: field(t, x, None))
        at = dt * np.arange(1, steps + 1)

        def rates(t, x):
            return np.asarray(slope(t, x))

        solution = solve_ivp(rates, (0, at[-1]), start, "Radau", at, rtol=1e-10, atol=1e-14)
    return solution.y.T


def course(field, start, dt, steps, solver, substeps=1):
    step, x, states = jax.jit(stepper(field, dt, solver, substeps)), jnp.asarray(start), []
    for k in range(steps):
        x = step(k * dt, x, jnp.zeros(0))
        states.append(np.asarray(x))
    return np.array(states)


kvaerno = diffrax.Kvaerno3(root_finder=optimistix.Newton(rtol=1e-8, atol=1e-12))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_standard_problems_are_right(problem, x64):
    field, start, dt, steps, scale = PROBLEMS[problem]
    expected = reference(field, start, dt, steps)
    adaptive = course(field, start, dt, steps, pp.Adaptive(diffrax.Kvaerno5()))
    np.testing.assert_allclose(adaptive / scale, expected / scale, atol=1e-4)
    if problem == "Robertson":  # no fixed step suffices where the van der Pol oscillator jumps
        fixed = course(field, start, dt, steps, kvaerno, substeps=400)
        np.testing.assert_allclose(fixed / scale, expected / scale, atol=1e-4)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(
    ("solver", "substeps"),
    [(kvaerno, 1), (pp.Adaptive(diffrax.Kvaerno5(), max_steps=3), 1), (pp.Adaptive(diffrax.Tsit5()), 1)],
    ids=["one implicit step", "3 steps", "explicit"],
)
def test_steps_that_do_not_suffice_are_no_number(problem, solver, substeps, x64):
    """Never a finite state that is wrong: it is NaN, or right."""
    field, start, dt, steps, scale = PROBLEMS[problem]
    expected, found = reference(field, start, dt, steps), course(field, start, dt, steps, solver, substeps)
    finite = np.isfinite(found).all(axis=1)
    if isinstance(solver, pp.Adaptive):
        np.testing.assert_allclose((found / scale)[finite], (expected / scale)[finite], atol=1e-3)
    assert not finite.all()


@pytest.mark.parametrize("solver", [diffrax.Kvaerno3(), diffrax.Tsit5()])
def test_derivatives_in_both_modes_are_the_finite_differences(solver, x64):
    step = stepper(lambda t, x, u: van_der_pol(t, x, u, 3.0), 0.3, pp.Adaptive(solver, rtol=1e-9, atol=1e-12))
    x = jnp.array([1.2, -0.4])
    f = jax.jit(lambda x: step(0.0, x, jnp.zeros(0)))
    forward, reverse = jax.jit(jax.jacfwd(f))(x), jax.jit(jax.jacrev(f))(x)
    finite = np.stack([(f(x + h) - f(x - h)) / 2e-5 for h in 1e-5 * np.eye(2)], axis=1)
    np.testing.assert_allclose(forward, reverse, rtol=1e-8)
    np.testing.assert_allclose(forward, finite, rtol=1e-5, atol=1e-7)


chemistry = pp.StateSpace(a=pp.Real(), b=pp.Real(scale=3e-5), c=pp.Real())


def reaction():
    fast = pp.physical("fast", 1e6, 1e9, log=True)
    return lambda t, x, u: robertson(t, x, u, fast)


SDS = np.array([1e-3, 1e-7, 1e-3])


def measured(solver) -> tuple[pp.Dynamics, pp.Transitions]:
    dynamics = pp.Dynamics(reaction, chemistry, pp.ActionSpace(), dt=4.0, solver=solver, process_noise=[*SDS])
    states = np.concatenate([[[1.0, 0.0, 0.0]], reference(robertson, [1.0, 0.0, 0.0], 4.0, 8)])
    states += SDS * np.random.default_rng(0).normal(size=states.shape) / np.sqrt(2)
    return dynamics, pp.Transitions.from_trajectory(states, np.zeros((8, 0)))


@pytest.mark.science
def test_a_stiff_program_is_fitted_and_a_failed_solver_is_told(optimised):
    dynamics, data = measured(pp.Adaptive(diffrax.Kvaerno5(), rtol=1e-6, atol=1e-10))
    posterior = pp.fit(jax.random.key(0), dynamics, data, Laplace(starts=2))
    row = posterior.summary()["fast"]
    assert abs(row["mean"] - 3e7) < 4 * row["sd"] and "Kvaerno5 to 1e-06" in str(dynamics)
    dynamics, data = measured(pp.Adaptive(diffrax.Kvaerno5(), max_steps=2))
    with pytest.raises(pp.FitError, match=r"nonfinite.*solver that fails .*Adaptive"):
        pp.fit(jax.random.key(0), dynamics, data, Laplace(starts=2))


def decay():
    rate = pp.physical("rate", 1.0, 1e4, log=True)
    return lambda t, x, u: rate * (jnp.cos(t) - x)


def at_rates(solver, rates) -> DrawsPosterior:
    """A posterior held as draws of the rate."""
    space = pp.StateSpace(level=pp.Real())
    dynamics = pp.Dynamics(decay, space, pp.ActionSpace(), dt=1.0, solver=solver, process_noise=0.1)
    data = pp.Transitions(np.zeros((3, 1)), np.zeros((3, 0)), np.ones((3, 1)))
    with jax.enable_x64(True):
        at = UnconstrainedSpace.of(dynamics, data)
        points = jax.vmap(lambda rate: at.point(dynamics, {"rate": rate}, data))(jnp.asarray(rates))
        return DrawsPosterior(dynamics, data, at, points[None])


def test_draws_under_which_a_solver_fails_are_counted(monkeypatch):
    """An explicit solver takes steps of about 3 / rate: 64 of them suffice for 1 s up to a rate of some hundreds."""
    rates = np.geomspace(2.0, 5e3, 16)
    posterior = at_rates(pp.Adaptive(diffrax.Tsit5(), max_steps=64), rates)
    step = jax.jit(jax.vmap(lambda rate: posterior.model.transition({"rate": rate})(np.zeros(1), np.zeros(0))))
    failing = int(np.sum(~np.isfinite(step(rates))))
    monkeypatch.setattr(diagnostics, "_data", lambda *_: ([], {}))  # compiles derivatives, for long
    found = pp.check(posterior)
    assert found.figures["draws_with_failed_steps"] == failing and 0 < failing < 16
    told = next(reason for reason in found.reasons if "failed step" in reason.finding)
    assert told.finding == (
        f"{failing} of 16 draws have a failed step: 3 of 3 transitions are not predicted under the worst"
    )
    assert "raise `max_steps` of Adaptive (64)" in told.remedy
    assert "error cannot be told: near the estimate it fails" in str(found) and "nan" not in str(found)


def test_solvers_that_do_not_fail_are_no_reason():
    posterior = at_rates(pp.Adaptive(diffrax.Tsit5()), [2.0, 3.0, 4.0])
    assert solver_error.draws(posterior, posterior.unconstrained()).shape == (3, 1)
    assert solver_error.failures(posterior, np.zeros(3, int)) == ([], {"draws_with_failed_steps": 0})
    posterior = at_rates(pp.RK4(), [2.0, 3.0, 4.0])  # always gives a number
    assert solver_error.draws(posterior, posterior.unconstrained()).shape == (0, 1)
    assert solver_error.failures(posterior, np.zeros(0, int)) == ([], {})


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Adaptive chooses its steps; leave out substeps=4"):
        pp.Dynamics(reaction, chemistry, pp.ActionSpace(), dt=1.0, solver=pp.Adaptive(diffrax.Tsit5()), substeps=4)
    with pytest.raises(ValueError, match="diffrax solver object"):
        pp.Adaptive(diffrax.Tsit5)
    with pytest.raises(ValueError, match="positive tolerances"):
        pp.Adaptive(diffrax.Tsit5(), rtol=0.0)


def test_fits_that_overlap_leave_the_switch_as_they_found_it():
    """Two fits in two threads: the first one to begin ends first."""
    switch: Any = equinox._errors
    first, second = failed_solves_are_nan(), failed_solves_are_nan()
    found = switch.EQX_ON_ERROR
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert switch.EQX_ON_ERROR == "off"
    second.__exit__(None, None, None)
    assert switch.EQX_ON_ERROR == found != "off"
