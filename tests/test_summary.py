"""The summary: its numbers against the draws and the prior's own formulas, its verdicts, units and truth columns."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import linear_data, linear_dynamics, linear_truth, recording

import physppl as pp
from physppl.inference import HMC, Laplace
from physppl.models import pendulum
from physppl.posterior import edges, summary

TRUTH = {"mass": 0.9, "length": 1.1, "damping": 0.08}
NOISE = 0.01  # of the coordinates' scales, over one step


def program():
    """A pendulum's program with priors of its own, so that the numbers below stay what they are."""
    mass = pp.physical("mass", 0.2, 2.0, unit="kg")
    length = pp.physical("length", 0.3, 1.8, unit="m")
    return pendulum.field(mass, length, pp.physical("damping", 0.0, 0.2, unit="N m s/rad"))


def fitted(program, rows=200, noise=NOISE):
    """The program fitted to a simulated pendulum."""
    data = recording(pendulum.dynamics(), TRUTH, steps=200, noise=noise)[:rows]
    return pp.fit(jax.random.key(0), pendulum.dynamics(program), data, Laplace())


@pytest.fixture(scope="module")
def posterior():
    return fitted(program)


def test_numbers_are_those_of_the_belief(posterior):
    table = posterior.summary(jax.random.key(5))
    names = ["mass", "length", "damping", "process_noise[angle]", "process_noise[velocity]"]
    assert [row["name"] for row in table.rows] == names
    draws = posterior.samples(jax.random.key(6), 4000)
    for name, index in zip(names, [..., ..., ..., 0, 1], strict=True):
        row = table[name]
        other = np.asarray(draws[row["site"]])
        other = other if index is ... else other[:, index]
        # two independent means of 4,000 draws: their difference has sd sqrt(2 / 4000) of a posterior sd
        assert abs(row["mean"] - other.mean()) < 4 * other.std() * np.sqrt(2 / 4000)
        assert abs(row["sd"] / other.std() - 1) < 4 * np.sqrt(1 / 4000) * 2  # and of heavier tails than a Gaussian
        # a quantile's sd is sqrt(p (1 - p) / S) / density: 2.1 posterior sds / sqrt(S) at 5 % of a Gaussian
        for key, p in (("low", 0.05), ("high", 0.95)):
            assert abs(row[key] - np.quantile(other, p)) < 4 * 3 * other.std() * np.sqrt(2 / 4000)


def test_contraction_is_sd_over_the_priors_own(posterior):
    table = posterior.summary()
    half_normal = 0.1 * np.sqrt(1 - 2 / np.pi)  # the noise's prior: HalfNormal(0.1) in units of the scales
    for name, scale in zip(pendulum.state.names, pendulum.state.scale, strict=True):
        row = table[f"process_noise[{name}]"]
        assert row["contraction"] == pytest.approx(row["sd"] / (half_normal * scale), rel=0.06)
    z, w = np.polynomial.hermite_e.hermegauss(60)  # the mass's prior: 0.2 + 1.8 sigmoid(Normal(0, 1))
    values, w = 0.2 + 1.8 / (1 + np.exp(-z)), w / w.sum()
    sd = np.sqrt(w @ (values - w @ values) ** 2)
    assert table["mass"]["contraction"] == pytest.approx(table["mass"]["sd"] / sd, rel=0.05)
    assert table["mass"]["verdict"] == "learned"


def test_units_and_coordinates(posterior):
    table = posterior.summary()
    units = {row["name"]: row["unit"] for row in table.rows}
    assert units["damping"] == "N m s/rad" and units["mass"] == "kg"
    assert units["process_noise[angle]"] == "rad" and units["process_noise[velocity]"] == "rad/s"
    assert "N·m·s/rad" in str(table) and "rad/s" in str(table)


def test_text_is_aligned_and_tells_how_the_fit_went(posterior):
    lines = str(posterior.summary()).splitlines()
    assert lines[0].startswith("Laplace | Dynamics(program") and "converged" in lines[0]
    assert "200 transitions" in lines[0] and f"log evidence {float(posterior.log_evidence):.2f} nats" in lines[0]
    head, *body = lines[2:]
    assert len(body) == 5
    at = head.index("verdict")
    assert all(line[at - 2 : at] == "  " and line[at] != " " for line in body)
    page = posterior.summary()._repr_html_()
    assert page.count("<tr>") == 6 and "log evidence" in page


def test_truth_columns(posterior):
    noise = NOISE * pendulum.state.scale
    table = summary.summarise(jax.random.key(0), posterior, truth={"mass": 0.9, "length": 1.5, "process_noise": noise})
    assert table["mass"]["inside"] and table["mass"]["truth"] == 0.9
    assert not table["length"]["inside"]
    assert table["process_noise[velocity]"]["truth"] == pytest.approx(noise[1]) and "truth" not in table["damping"]
    assert "in 90 %" in str(table)
    with pytest.raises(KeyError, match="Did you mean 'mass'"):
        summary.summarise(jax.random.key(0), posterior, truth={"mas": 0.9})


def test_the_prior_is_called_the_prior():
    prior = Laplace().prior(jax.random.key(0), pendulum.dynamics(program))
    table = prior.summary()
    for name in TRUTH:
        assert table[name]["contraction"] == pytest.approx(1.0, abs=6 / np.sqrt(4000))
        assert table[name]["verdict"].startswith("barely informed")
    assert "0 transitions" in str(table)


def edge_program():
    """A mass whose prior ends before the truth, 0.9 kg."""
    mass = pp.physical("mass", 0.1, 0.85, unit="kg")
    return pendulum.field(mass, 1.1, 0.08)


def test_a_prior_that_misses_the_truth_is_told():
    table = fitted(edge_program, noise=0.002).summary()
    assert table["mass"]["verdict"].startswith("at the edge of its prior")
    assert table["process_noise[angle]"]["verdict"] == "learned"  # small, but its prior allows zero


def rng(seed=0):
    return np.random.default_rng(seed)


def test_an_sd_beyond_the_prior_is_not_called_informed():
    assert [summary._verdict(c, False).split(":")[0] for c in (0.1, 0.5, 1.0, 1.7)] == [
        "learned", "informed", "barely informed", "wider than its prior",
    ]  # fmt: skip


def test_edges_by_hand():
    z = rng().standard_normal(4000)
    narrow = 0.01 * rng(1).standard_normal(4000)
    wide = 0.3 * rng(1).standard_normal(4000)
    ends = edges.Bounds(0.0, 1.0)
    unit = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    assert not edges.at_edge(1.8 + narrow, z, None)
    assert edges.at_edge(2.3 + narrow, z, None) and edges.at_edge(-2.3 + narrow, z, None)
    # between bounds the edge is the bound: what the data hold away from it is no edge, however far out in the prior
    assert not edges.at_edge(unit(2.3 + narrow), unit(z), ends)
    assert not edges.at_edge(unit(-9.0 + narrow), unit(z), ends)
    assert edges.at_edge(unit(2.4 + wide), unit(z), ends)
    assert edges.at_edge(1 + unit(-2.4 + wide), 1 + unit(z), edges.Bounds(1.0, 2.0))
    assert not edges.at_edge(unit(1.8 + wide), unit(z), ends)
    assert not edges.at_edge(unit(4.0 + 6 * wide), unit(6 * z), ends)
    assert edges.at_edge(unit(6.0 + 6 * wide), unit(6 * z), ends)  # within one per cent of the upper end
    # on a logarithmic scale the lower half per cent of the range may hold half of the prior
    decades = edges.Bounds(1e-5, 5e-3, log=True)
    assert not edges.at_edge(1e-5 * 500 ** unit(0.5 + wide), 1e-5 * 500 ** unit(z), decades)
    assert edges.at_edge(1e-5 * 500 ** unit(-2.4 + wide), 1e-5 * 500 ** unit(z), decades)
    # bounded below only: a half-normal allows zero, a log-normal does not
    assert not edges.at_edge(np.exp(-6 + narrow), np.abs(z), None)
    assert edges.at_edge(np.exp(-2.3 + narrow), np.exp(z), None)
    assert edges.at_edge(4 + narrow, np.abs(z), None)


def residual_program():
    physics = program()
    residual = pp.residual("residual", pendulum.state, pendulum.action, width=16)
    return lambda t, x, u: physics(t, x, u) + residual(x, u)


def test_weights_share_one_row():
    posterior = fitted(residual_program, rows=60)
    table = posterior.summary()
    row = table["residual (rms of 32)"]
    weights = np.asarray(posterior.samples(jax.random.key(3), 4000)["residual"])
    assert row["mean"] == pytest.approx(np.sqrt((weights**2).mean(1)).mean(), rel=0.02)
    assert row["contraction"] == pytest.approx(np.sqrt(weights.var(0).mean()), rel=0.02)  # the prior's variance is 1
    assert [r["site"] for r in table.rows].count("residual") == 1


def test_vector_sites_and_sampled_beliefs():
    posterior = pp.fit(jax.random.key(0), linear_dynamics(), linear_data(), HMC(draws=250, warmup=250, chains=2))
    table = summary.summarise(jax.random.key(0), posterior, truth=linear_truth)
    assert table["weights[0]"]["truth"] == linear_truth["weights"][0]
    assert table["weights[1]"]["truth"] == linear_truth["weights"][1]
    draws = np.asarray(posterior.samples(jax.random.key(9))["weights"])
    assert table["weights[1]"]["mean"] == pytest.approx(draws[:, 1].mean())  # the sampler's own draws
    assert "converged | 40 transitions\n" in str(table)  # and no evidence, which a sampler does not give


def fleet(data):
    with numpyro.plate("machine", 2):
        numpyro.sample("offset", dist.Normal(0.0, 1.0))
    pendulum.dynamics(program)(data)


def test_a_model_that_is_no_dynamics():
    data = recording(pendulum.dynamics(), TRUTH, steps=50)
    table = pp.fit(jax.random.key(0), fleet, data, Laplace()).summary()
    assert table["offset[0]"]["verdict"].startswith("barely informed")
    assert table["process_noise[1]"]["unit"] == "rad/s"  # entry by entry even where the coordinates' names are lost
    assert table["mass"]["unit"] == "kg"


def test_missing_rows_are_named(posterior):
    with pytest.raises(KeyError, match="Did you mean 'length'"):
        posterior.summary()["lenght"]
    assert jnp.isfinite(posterior.summary()["length"]["mean"])


@pytest.mark.parametrize("high", [20.0, 200.0])
def test_what_data_hold_far_from_both_bounds_is_no_edge(high):
    """At .7 % of the range, five prior sds out, known to .1 %."""

    def program():
        rate = pp.physical("rate", 0.05, high, unit="1/s^2")
        return lambda t, x, u: jnp.stack([x[1], u[0] - rate * jnp.sin(x[0])])

    dynamics, key = pp.Dynamics(program, pendulum.state, pendulum.action, dt=0.1), jax.random.key(0)
    states, actions = jax.random.normal(key, (100, 2)), jax.random.uniform(key, (100, 1), minval=-1.0)
    after = jax.vmap(dynamics.transition({"rate": 1.36}))(states, actions)
    after = after + 0.002 * jax.random.normal(jax.random.key(1), after.shape)
    posterior = pp.fit(key, dynamics, pp.Transitions(states, actions, after), Laplace(starts=2))
    assert posterior.summary()["rate"]["verdict"] == "learned"


@pytest.mark.parametrize(("low", "log", "noted"), [(1e-5, False, True), (1e-5, True, False), (2e-3, False, False)])
def test_a_prior_over_decades_says_what_it_says(low, log, noted):
    def program():
        friction = pp.physical("friction", low, 5e-3, log=log, unit="N m s/rad")
        return pp.Step(lambda t, x, u: x - friction * u)

    space, action = pp.StateSpace(x=pp.Real()), pp.ActionSpace(u=pp.Bounded(-1.0, 1.0))
    table = Laplace().prior(jax.random.key(0), pp.Dynamics(program, space, action, dt=0.1, process_noise=0.1)).summary()
    assert len(table.notes) == noted
    if noted:  # z below logit((2.2e-4 - 1e-5) / 4.99e-3) = -3.12: .09 %
        assert "puts 0.1% below 0.00022" in table.notes[0] and "log=True" in table.notes[0]
        assert table.notes[0] in str(table) and "log=True" in table._repr_html_()
