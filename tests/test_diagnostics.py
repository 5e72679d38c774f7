"""The check: a healthy fit is ok, and each planted defect is named with its remedy."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import drawn, linear_data, linear_dynamics, recording
from numpyro import handlers
from test_identifiability import product, tank, tank_data

import physppl as pp
from physppl.inference import HMC, DrawsPosterior, FunctionSpaceVI, Laplace, NeuralLinear, StructuredLaplace
from physppl.models import pendulum
from physppl.posterior import diagnostics, solver_error

TRUTH = {"mass": 0.9, "length": 1.1, "damping": 0.08}


def found(check: pp.Check, text: str) -> diagnostics.Reason:
    """The one reason that says `text`."""
    [reason] = [r for r in check.reasons if text in r.finding]
    return reason


@functools.cache
def fitted(rate, gain=0.7, noise=0.05, linearised=False):
    backend = Laplace(starts=2, linearised=linearised)
    return pp.fit(jax.random.key(0), tank(rate), tank_data(gain=gain, noise=noise), backend)


def gain():
    return pp.physical("gain", 0.0, 2.0)


@pytest.fixture(scope="module")
def data():
    return recording(pendulum.dynamics(), TRUTH, steps=300, noise=0.005)


@pytest.fixture(scope="module")
def healthy(data):
    return pp.fit(jax.random.key(0), pendulum.dynamics(), data, Laplace())


def test_a_healthy_fit_is_ok(healthy):
    check = pp.check(healthy)
    assert check.verdict == "ok" and check.reasons == ()
    assert check.figures["sds_to_the_mode"] < 1e-3 and 0 < check.figures["solver_shift_sds"] < 0.1
    assert check.figures["draws_that_count"] > 0.5 and check.figures["combinations"] == 3
    assert str(check).startswith("ok | Laplace | Dynamics(program: angle, velocity;") and "300 transitions" in str(
        check
    )
    assert healthy.check() == check


@pytest.mark.science
def test_where_the_evidence_chose_the_noise_the_joint_density_has_no_maximum_and_that_is_no_defect(data):
    """A network of few rows: the two maxima lie most of a posterior sd apart."""
    few = data[:60]

    def program():
        net = pp.residual("net", pendulum.state, pendulum.action, width=8, depth=1, learned=True)
        return pp.step_residual(pendulum.program(), net)

    for backend, model in (
        (NeuralLinear(steps=60), pendulum.dynamics(program)),
        (StructuredLaplace(), pendulum.dynamics()),
        (FunctionSpaceVI(width=32, points=256, steps=100), pendulum.dynamics()),
    ):
        posterior = pp.fit(jax.random.key(0), model, few, backend)
        check = pp.check(posterior)
        assert int(posterior.status) == pp.Status.OK and check.figures["sds_to_the_mode"] < 0.1
        assert not any("from the mode" in reason.finding for reason in check.reasons), str(check)
        many = [reason for reason in check.reasons if "without a prior" in reason.finding]
        assert len(many) == 0  # 8 x 5 + 8 features and a scale, of 120 outcomes


@pytest.mark.science
def test_features_that_are_more_than_the_data_are_told(data):
    def program():
        net = pp.residual("net", pendulum.state, pendulum.action, width=32, depth=1, learned=True)
        return pp.step_residual(pendulum.program(), net)

    posterior = pp.fit(jax.random.key(0), pendulum.dynamics(program), data[:30], NeuralLinear(steps=20))
    reason = found(pp.check(posterior), "numbers without a prior were chosen from 60 outcomes")
    assert reason.verdict == "doubtful" and "fixed features" in reason.remedy


@pytest.mark.science
def test_features_that_miss_the_function_prior_are_told(data):
    backend = FunctionSpaceVI(width=4, points=64, steps=0)
    check = pp.check(pp.fit(jax.random.key(0), pendulum.dynamics(), data, backend))
    reason = found(check, "of the function prior's variance")
    assert reason.verdict == "doubtful" and "`width`" in reason.remedy and check.figures["missed"] > 0.1


@pytest.mark.science
def test_a_healthy_sampler_is_ok():
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), linear_data(), HMC(draws=400, warmup=200))
    check = pp.check(posterior)
    assert check.verdict == "ok", str(check)
    assert check.figures["r_hat"] < 1.01 and check.figures["ess_bulk"] > 400 and check.figures["divergences"] == 0
    assert check.figures["solver_shift_sds"] == 0.0  # a Step has no solver


def test_an_early_stop_is_a_distance_to_the_mode(data):
    with pytest.warns(pp.PhyspplWarning, match="not converged"):
        posterior = pp.fit(jax.random.key(0), pendulum.dynamics(), data, Laplace(starts=1, steps=4))
    check = pp.check(posterior)
    reason = found(check, "posterior sds from the mode")
    assert reason.verdict == check.verdict == "unusable" and "`steps`" in reason.remedy
    assert check.figures["sds_to_the_mode"] > 1.0


STIFF = {"mass": 0.9, "length": 0.08, "damping": 0.01}  # 11 rad/s


def stiff():
    mass = pp.physical("mass", 0.2, 2.0, unit="kg")
    length = pp.physical("length", 0.03, 0.3, unit="m")
    return pendulum.field(mass, length, pp.physical("damping", 0.0, 0.03, unit="N m s/rad"))


def stiff_fit(dt: float, noise: float, substeps: int):
    """A pendulum that was simulated with 64 sub-steps, fitted with fewer."""
    data = recording(pendulum.dynamics(stiff, dt=dt, substeps=64), STIFF, steps=100, noise=noise)
    dynamics = pendulum.dynamics(stiff, dt=dt, substeps=substeps)
    return pp.fit(jax.random.key(0), dynamics, data, Laplace(starts=2))


@functools.cache
def swung(substeps: int, backend) -> pp.Posterior:
    """A pendulum with noise of 0.01 rad and rad/s, 0.2 s a transition, simulated with 64 sub-steps."""
    exact = pendulum.dynamics(dt=0.2, substeps=64)
    data = recording(exact, pendulum.truth, steps=60, noise=0.01 / pendulum.state.scale)
    dynamics = pendulum.dynamics(dt=0.2, substeps=substeps, process_noise=0.01)
    return pp.fit(jax.random.key(0), dynamics, data, backend)


@pytest.mark.parametrize(
    "backend", [Laplace(starts=2), pytest.param(HMC(), marks=pytest.mark.science)], ids=["Laplace", "HMC"]
)
def test_one_coarse_step_is_told_and_four_are_not(backend, x64):
    """One step of fourth order in 0.2 s; of the same belief, and of it held as draws."""
    coarse, fine = (swung(n, backend) for n in (1, 4))
    silent, figures = solver_error.judge(fine, fine.unconstrained())
    assert not silent and figures["solver_shift_sds"] < 0.02 * solver_error.SHIFT
    for posterior in [coarse, drawn(coarse)] if hasattr(coarse, "mode") else [coarse]:
        [reason], figures = solver_error.judge(posterior, posterior.unconstrained())
        assert figures["solver_shift_sds"] > 3 * solver_error.SHIFT
        assert re.fullmatch(r"fit with substeps=[23], steps of .* s, or a solver of higher order", reason.remedy)


@pytest.mark.science
def test_a_solver_that_is_too_coarse_is_told_the_step_it_needs(x64):
    check = pp.check(stiff_fit(0.1, 0.003, substeps=1))
    reason = found(check, "the solver's error moves the estimate")
    assert reason.verdict == "doubtful" and check.figures["solver_shift_sds"] > 1
    needed = int(re.search(r"substeps=(\d+)", reason.remedy).group(1))
    assert 4 < needed < 64 and f"steps of {0.1 / needed:.2g} s" in reason.remedy
    # Fitted with what was named, the belief is sharper (no error is taken for noise), and still the solver will do.
    enough, _ = solver_error.solver_shift(stiff_fit(0.1, 0.003, substeps=needed))
    assert enough <= solver_error.SHIFT


@pytest.mark.science
def test_the_licence_is_the_shift_that_a_finer_fit_makes(x64):
    coarse, fine = stiff_fit(0.02, 0.01, substeps=1), stiff_fit(0.02, 0.01, substeps=4)
    licence, _ = solver_error.solver_shift(coarse)
    moved = np.linalg.solve(np.asarray(coarse.factor).T, np.asarray(fine.mode - coarse.mode))
    assert licence == pytest.approx(np.linalg.norm(moved), rel=0.1) and licence > solver_error.SHIFT


def test_a_sum_that_nothing_splits_is_named():
    rate = lambda: pp.physical("a", dist.Normal(0, 1)) + pp.physical("b", dist.Normal(0, 1))  # noqa: E731
    check = pp.check(fitted(rate))
    assert "do not determine +0.71 a -0.71 b" in found(check, "do not determine").finding
    assert check.verdict == "doubtful" and check.figures["draws_that_count"] > 0.9  # a straight ridge is a Gaussian


def test_a_bent_ridge_is_no_gaussian():
    rate = lambda: pp.physical("a", dist.LogNormal(0, 1)) + pp.physical("b", dist.LogNormal(0, 1))  # noqa: E731
    check = pp.check(fitted(rate, gain=3.0, noise=0.01))
    assert "no Gaussian in unconstrained space" in str(check) and check.figures["draws_that_count"] < 0.1
    straight = pp.check(fitted(rate, gain=3.0, noise=0.01, linearised=True))
    assert "draws_that_count" not in straight.figures  # its draws are of the linearised function, which is one


def test_a_site_that_nothing_shows_is_named():
    def rate():
        pp.physical("spare", dist.HalfNormal(1.0))
        return gain()

    assert found(pp.check(fitted(rate)), "no prediction depends on").finding.endswith(" spare")


def test_a_confounded_parameter_is_named_once():
    check = pp.check(fitted(product))
    assert "+0.71 a -0.71 b" in found(check, "do not determine").finding
    assert not any("say little" in r.finding for r in check.reasons)


def test_a_prior_that_misses_the_truth_is_told():
    check = pp.check(fitted(lambda: pp.physical("gain", 0.0, 0.69), noise=1e-3))
    assert found(check, "at the edge of the prior").finding.startswith("gain:")


def test_no_data_is_the_prior():
    check = pp.check(Laplace(starts=1).prior(jax.random.key(0), tank(gain)))
    assert check.verdict == "doubtful" and [r.finding for r in check.reasons] == [
        "nothing was learnt: this is the prior"
    ]


def sampled(change=lambda points, stats: None, chains=4, draws=500):
    """A belief as chains of independent draws of the right posterior, after a change to them."""
    laplace = fitted(gain)
    rng, points = np.random.default_rng(0), np.array(drawn(laplace, chains, draws).points)
    stats = {"diverging": np.zeros((chains, draws), bool), "energy": rng.normal(size=(chains, draws))}
    change(points, stats)
    with jax.enable_x64(True):
        stats = {k: jnp.asarray(v) for k, v in stats.items()}
        return DrawsPosterior(laplace.model, laplace.data, laplace.space, jnp.asarray(points), stats, method="Sampled")


def test_chains_that_are_too_short_are_told():
    reason = found(pp.check(sampled(draws=40)), "where 4 chains should give 400")
    assert reason.verdict == "doubtful" and re.search(r"raise `draws` \d+ times", reason.remedy)


def test_chains_that_disagree_are_told():
    def shifted(points, stats):
        points[0] += 2 * points.std()

    check = pp.check(sampled(shifted))
    assert found(check, "the chains disagree about gain").verdict == check.verdict == "unusable"
    assert pp.check(sampled()).verdict == "ok"


def test_chains_that_crawl_are_told():
    def slow(points, stats):
        centre = points.mean()
        for k in range(1, points.shape[1]):  # a first-order process with the same spread, 39 times fewer draws
            points[:, k] = centre + 0.95 * (points[:, k - 1] - centre) + np.sqrt(1 - 0.95**2) * (points[:, k] - centre)

    count = float(re.match(r"(\d+) effective", found(pp.check(sampled(slow)), "effective draws").finding).group(1))
    assert 2000 / 39 / 2 < count < 2000 / 39 * 2


def test_divergences_and_slow_energy_are_counted():
    def broken(points, stats):
        stats["diverging"][1, :3] = True
        stats["energy"] = stats["energy"].cumsum(axis=1)

    check = pp.check(sampled(broken))
    assert check.verdict == "doubtful" and check.figures["divergences"] == 3
    assert "3 of 2000 transitions diverged" in str(check) and found(check, "E-BFMI 0.0")


def test_one_chain_is_not_enough():
    check = pp.check(sampled(chains=1))
    assert found(check, "one chain").remedy == "run four" and check.figures["r_hat"] < 1.02


def test_a_belief_without_a_density_is_unusable():
    root = lambda: jnp.sqrt(pp.physical("gain", -2.0, -1.0))  # noqa: E731
    with jax.enable_x64(True):
        posterior = Laplace(starts=1, steps=2).fit(jax.random.key(0), tank(root), tank_data())
    check = pp.check(posterior)
    assert check.verdict == "unusable" and "not finite" in check.reasons[0].finding and check.figures == {}


def test_every_file_keeps_its_check(tmp_path):
    import xarray

    posterior = fitted(product)
    posterior.to_arviz(draws=50).to_netcdf(tmp_path / "fit.nc")
    with xarray.open_datatree(tmp_path / "fit.nc") as tree:
        check = pp.check(posterior)
        assert tree.attrs["check"] == "doubtful" and "+0.71 a -0.71 b" in tree.attrs["check_reasons"]
        for name, value in check.figures.items():
            assert tree.attrs[f"check_{name}"] == pytest.approx(value)


def test_a_model_around_dynamics_is_checked():
    def model(data):
        with handlers.scope(prefix="machine"):
            tank(gain)(data)

    check = pp.check(pp.fit(jax.random.key(0), model, tank_data(), Laplace(starts=2)))
    assert check.verdict == "ok" and "solver_shift_sds" not in check.figures
