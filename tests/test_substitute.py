"""Values for sites that do not exist: refused where NumPyro would ignore them, and nowhere else."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive, init_to_value, log_likelihood
from numpyro.infer.reparam import TransformReparam

import physppl as pp

state = pp.StateSpace(speed=pp.Real("m/s"))
action = pp.ActionSpace(force=pp.Bounded(-1.0, 1.0, "N"))


def cart():
    mass = pp.physical("mass", 0.5, 2.0, unit="kg")
    numpyro.deterministic("weight", 9.81 * mass)
    return lambda t, x, u: u / mass


dynamics = pp.Dynamics(cart, state, action, dt=0.1, process_noise=0.1)
forces = np.linspace(-1, 1, 5)[:, None]
data = pp.Transitions(np.zeros((5, 1)), forces, 0.1 * forces)


def run(model):
    return handlers.trace(handlers.seed(model, 0)).get_trace(data)


@pytest.mark.parametrize("handler", [handlers.substitute, handlers.condition])
def test_a_misspelt_site_is_a_key_error_with_the_close_ones(handler):
    with pytest.raises(
        KeyError, match=f"{handler.__name__} gives a value to 'mas', which is no site. Did you mean 'mass'"
    ):
        run(handler(dynamics, data={"mas": 1.0}))
    with pytest.raises(KeyError, match="'mas'"):
        run(handlers.scope(handler(handlers.mask(dynamics, mask=True), data={"mas": 1.0}), prefix="robot"))


@pytest.mark.parametrize(
    "model, name",
    [
        (handlers.substitute(dynamics, data={"mass": 1.0}), "mass"),
        (handlers.substitute(handlers.scope(dynamics, prefix="robot"), data={"robot/mass": 1.0}), "robot/mass"),
        (handlers.scope(handlers.substitute(dynamics, data={"mass": 1.0}), prefix="robot"), "robot/mass"),
        (
            handlers.substitute(
                handlers.reparam(dynamics, config={"mass": TransformReparam()}),
                data={"mass_base": float(np.log(0.5))},  # sigmoid 1/3, so 0.5 + 1.5 / 3
            ),
            "mass",
        ),
    ],
    ids=["plain", "scope inside", "scope outside", "reparam"],
)
def test_names_that_are_sites_pass(model, name):
    np.testing.assert_allclose(run(model)[name]["value"], 1.0, rtol=1e-6)


def test_a_larger_model_may_hold_values_of_its_own_sites():
    def experiment(data):
        numpyro.sample("bias", dist.Normal(0.0, 1.0))
        dynamics(data)

    trace = run(handlers.substitute(experiment, data={"bias": 2.0, "mass": 1.0}))
    assert trace["bias"]["value"] == 2.0 and trace["mass"]["value"] == 1.0


def test_numpyro_passes_deterministic_values_and_starts_through():
    kernel = NUTS(dynamics, init_strategy=init_to_value(values={"mass": 1.0}))
    mcmc = MCMC(kernel, num_warmup=20, num_samples=20, progress_bar=False)
    mcmc.run(jax.random.key(0), data)
    samples = mcmc.get_samples()
    assert "weight" in samples
    assert log_likelihood(dynamics, samples, data)["next_state"].shape == (20, 5)
    assert Predictive(dynamics, samples)(jax.random.key(1), data.inputs)["next_state"].shape == (20, 5, 1)
