"""The posteriordb models: our densities against SciPy's, our draws against the reference draws."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import example
from numpyro.infer.util import log_density
from scipy import stats
from scipy.integrate import solve_ivp

import physppl as pp
from physppl.inference import HMC

posteriordb = example("posteriordb")
DATA = Path(os.environ.get("PHYSPPL_DATA", ""), "posteriordb")
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="PHYSPPL_DATA names no folder that holds posteriordb")
each = pytest.mark.parametrize("name", posteriordb.PROBLEMS)


def ours(name, data):
    """Log density of the reference's parameters (P,) under our program."""

    def lotka_volterra(x):
        sites = {"theta": x[:4], "z_init": x[4:6], "sigma": x[6:]}
        return log_density(posteriordb.lotka_volterra, (data,), {}, sites)[0]

    def one_compartment(x):
        k_a, K_m, V_m, sigma = x
        above = K_m + jnp.mean(data["C_hat"])  # the program samples V_m / above: back by its Jacobian
        sites = {"k_a": k_a, "K_m": K_m, "rate": V_m / above, "sigma": sigma}
        return log_density(posteriordb.one_compartment, (data,), {}, sites)[0] - jnp.log(above)

    return {"lotka_volterra": lotka_volterra, "one_compartment": one_compartment}[name]


def scipy_density(name, data):
    """The published model written out in NumPy and SciPy, integrated adaptively to twelve digits."""
    tight = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-13}

    def lognormal(y, z, sigma):
        return np.sum(stats.norm.logpdf(np.log(y), np.log(z), sigma) - np.log(y))

    def lotka_volterra(x):
        (a, b, c, d), z_init, sigma = x[:4], x[4:6], x[6:]
        field = lambda t, z: [(a - b * z[1]) * z[0], (-c + d * z[0]) * z[1]]  # noqa: E731
        z = solve_ivp(field, (0, data["ts"][-1]), z_init, t_eval=data["ts"], **tight).y.T
        mean, sd = np.array([1, 0.05, 1, 0.05]), np.array([0.5, 0.05, 0.5, 0.05])
        prior = np.sum(stats.truncnorm.logpdf(x[:4], -mean / sd, np.inf, mean, sd))
        prior += lognormal(z_init, np.array([10.0, 10.0]), 1.0) + lognormal(sigma, np.exp([-1.0, -1.0]), 1.0)
        return prior + lognormal(data["y_init"], z_init, sigma) + lognormal(data["y"], z, sigma)

    def one_compartment(x):
        k_a, K_m, V_m, sigma = x
        dose, volume = data["D"] / data["V"], data["V"]
        field = lambda t, c: dose * k_a * np.exp(-k_a * t) - V_m / volume * c / (K_m + c)  # noqa: E731
        c = solve_ivp(field, (data["t0"], data["times"][-1]), [0.0], t_eval=data["times"], **tight).y[0]
        return np.sum(stats.halfcauchy.logpdf(x)) + lognormal(data["C_hat"], c, sigma)

    return {"lotka_volterra": lotka_volterra, "one_compartment": one_compartment}[name]


def points(name):
    """(data, 50 reference draws (50, P) from all chains, the reference's sds (P,))."""
    data, reference = posteriordb.PROBLEMS[name].load(DATA.parent)
    flat = np.stack([v.ravel() for k, v in reference.items() if not k.startswith("log ")], axis=1)
    return data, flat[100::200], flat.std(axis=0)


@each
def test_our_density_is_that_of_scipy(name, x64):
    """The sd of the error of a log density over the posterior bounds, to first order, the shift of any mean in its sds.

    It comes from the fixed Runge-Kutta steps, 1.2e-3 at most, and is asked to be a twentieth of the bound on means.
    """
    data, draws, _ = points(name)
    exact = np.array([scipy_density(name, data)(x) for x in draws])
    error = np.asarray(jax.jit(jax.vmap(ours(name, data)))(draws)) - exact
    assert np.std(exact) > 1  # the draws differ by far more than the error
    assert np.std(error) < 0.005 and np.abs(np.mean(error)) < 0.005
    assert np.max(np.abs(error)) < 0.05


@each
def test_our_gradient_is_that_of_scipy(name, x64):
    """Against central differences, in units of one over the posterior's sd, where it is of order one."""
    data, draws, sds = points(name)
    sds = np.minimum(sds, np.median(draws, axis=0))  # an sd that does not exist is no unit
    gradient, exact = jax.jit(jax.grad(ours(name, data))), scipy_density(name, data)
    for x in draws[::10]:
        steps = np.diag(1e-4 * np.minimum(sds, x))
        slope = np.array([(exact(x + h) - exact(x - h)) / (2 * h.sum()) for h in steps])
        np.testing.assert_allclose(np.asarray(gradient(x)) * sds, slope * sds, atol=0.005, rtol=0.002)


def test_the_concentrations_have_no_variance(x64):
    """Why the page asks nothing of the sds of K_m and V_m: along their common ray the density falls with K_m^-3."""
    data, draws, _ = points("one_compartment")
    k_a, K_m, V_m, sigma = np.median(draws, axis=0)
    rate = V_m / (K_m + data["C_hat"].mean())

    def density(K_m):
        sites = {"k_a": k_a, "K_m": K_m, "rate": rate, "sigma": sigma}  # in (K_m, rate) the Jacobian is in the prior
        return log_density(posteriordb.one_compartment, (data,), {}, sites)[0]

    slope = (density(1e6) - density(1e4)) / np.log(1e2)
    assert abs(slope + 3) < 0.01


@pytest.mark.science
def test_hmc_draws_the_reference_posterior():
    """Means and sds agree within four standard errors: 16 comparisons, one false alarm in a thousand keys."""
    problem = posteriordb.PROBLEMS["lotka_volterra"]
    data, reference = problem.load(DATA.parent)
    posterior = pp.fit(jax.random.key(1), problem.model, data, HMC(draws=1000))
    rows = posteriordb.compare(problem, posterior.samples(jax.random.key(0), group_by_chain=True), reference)
    table = "\n".join([posteriordb.HEADER, *map(str, rows)])
    assert [row.name for row in rows] == list(reference) and len(rows) == 8
    for row in rows:
        assert row.bulk > 2000 and row.tail > 1000, f"{row.name}: too few effective draws\n{table}"
        assert abs(row.shift) < 4 * row.shift_error, f"mean of {row.name}\n{table}"
        assert abs(row.ratio - 1) < 4 * row.ratio_error, f"sd of {row.name}\n{table}"
    tree = posterior.to_arviz(draws=100)
    assert dict(tree["posterior"].sizes) == {"chain": 4, "draw": 1000, "theta_dim_0": 4} | dict.fromkeys(
        ["z_init_dim_0", "sigma_dim_0"], 2
    )


@pytest.mark.science
@each
def test_the_reference_is_reproduced_within_its_bounds(name):
    problem = posteriordb.PROBLEMS[name]
    rows, page = posteriordb.study(problem, DATA.parent, posteriordb.BACKEND)
    assert [row.name for row in rows] == list(problem.load(DATA.parent)[1])
    assert sum(row.has_variance for row in rows) == len(rows) - len(problem.heavy)
    assert all(row.holds for row in rows), page
