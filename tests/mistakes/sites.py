"""Mistakes in parameters, priors, noises and units."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer import Predictive

import physppl as pp
from mistakes.common import bind, data, field, fit, mass, model, nuts, of_draws, plainly, u, x, y
from mistakes.entry import Mistake

NO_UNITS = "NumPyro has no units"


def site(*arguments, **options):
    """Fit with this parameter as the mass."""

    def pendulum():
        m = pp.physical(*arguments, **options)
        return lambda t, x, u: field(m, x, u)

    return lambda: fit(pendulum)


def substituted():
    jax.eval_shape(lambda: handlers.seed(handlers.substitute(bind(), data={"mas": 1.0}), 0)(data()))


def plain_substituted():
    return nuts(handlers.substitute(model(), data={"mas": 1.0}), x, u, y)


def plain_predictive():
    draws = Predictive(model(), {"mas": jnp.ones(100)})(jax.random.key(0), x, u)
    return f"{of_draws(draws)}: drawn from the prior"


def plain_unnamed(states, actions, outcomes):
    numpyro.sample(dist.Uniform(0.1, 3.0))


MISTAKES = [
    Mistake(
        "Bounds of a parameter the wrong way round",
        site("mass", 3.0, 0.1), ("physical('mass')", "needs finite low < high; got low=3.0, high=0.1"),
        plainly(prior=lambda: dist.Uniform(3.0, 0.1)),
    ),
    Mistake(
        "One bound in place of two",
        site("mass", 0.5), ("needs low and high, or a NumPyro distribution; got low=0.5 alone",),
        plainly(prior=lambda: dist.Uniform(0.5)),
    ),
    Mistake(
        "A bound that is NaN, as an empty cell of a table",
        site("mass", 0.1, np.nan), ("needs finite low < high", "high=nan"),
        plainly(prior=lambda: dist.Uniform(0.1, np.nan)),
    ),
    Mistake(
        "Bounds as text, from a configuration file",
        site("mass", "0.1", "3.0"), ("physical('mass')", "`low` must be numeric; got '0.1'", "Pass a number"),
        plainly(prior=lambda: dist.Uniform("0.1", "3.0")),
    ),
    Mistake(
        "A parameter without its name, `physical(0.1, 3.0)`",
        site(0.1, 3.0), ("begins with the site's name, physical('mass', 0.1, 3.0)", "got 0.1"),
        lambda: nuts(plain_unnamed, x, u, y),
    ),
    Mistake(
        "A negative spread of a prior",
        site("mass", 0.1, 3.0, scale=-1.0), ("physical('mass')", "scale must be positive", "got -1.0"),
        plainly(prior=lambda: dist.LogNormal(0.0, -1.0)),
    ),
    Mistake(
        "A distribution and a bound together",
        site("mass", dist.HalfNormal(1.0), 2.0), ("give a distribution or two bounds", "got a distribution and high=2"),
        None, "a truncated distribution is one of its own",
    ),
    Mistake(
        "A logarithmic scale from zero on",
        site("mass", 0.0, 3.0, log=True), ("needs 0 < low; got low=0.0", "smallest value that would matter"),
        plainly(prior=lambda: dist.LogUniform(0.0, 3.0)),
    ),
    Mistake(
        "A unit that is misspelt",
        site("mass", 0.1, 3.0, unit="kilogramz"), ("unit 'kilogramz' is not understood", "Write it as in"),
        None, NO_UNITS,
    ),
    Mistake(
        "Torque in `Nm`, which is a measure of yarn",
        lambda: pp.ActionSpace(torque=pp.Bounded(-1.0, 1.0, "Nm")), ("'Nm' is no unit", "Did you mean 'N m'"),
        None, NO_UNITS,
    ),
    Mistake(
        "A misspelt parameter under `substitute`",
        substituted, ("gives a value to 'mas', which is no site", "Did you mean 'mass'"), plain_substituted,
    ),
    Mistake(
        "A misspelt parameter of a simulation",
        lambda: bind().transition({"mas": 1.0}), ("no value for site 'mass'", "Did you mean 'mas'"), plain_predictive,
    ),
    Mistake(
        "A prior of a standard deviation that reaches below zero",
        lambda: bind(process_noise=dist.Normal(0.0, 0.1)),
        ("prior of process_noise must be over one positive number", "HalfNormal and LogNormal are"),
        plainly(noise=lambda: numpyro.sample("sd", dist.Normal(0.0, 0.1))),
    ),
    Mistake(
        "A known noise of zero",
        lambda: bind(process_noise=0.0), ("a known process_noise must be positive; got 0.0",),
        plainly(noise=lambda: 0.0),
    ),
    Mistake(
        "Three noises for two coordinates",
        lambda: bind(process_noise=(0.1, 0.2, 0.3)), ("one sd or one of each of the 2 coordinates", "shape (3,)"),
        plainly(noise=lambda: jnp.array([0.1, 0.2, 0.3])),
    ),
    Mistake(
        "A noise with its unit, as text",
        lambda: bind(process_noise="0.1 rad"), ("`process_noise` must be numeric; got '0.1 rad'",),
        plainly(noise=lambda: "0.1 rad"),
    ),
    Mistake(
        "A parameter named as the library's own noise",
        lambda: fit(lambda: (mass(), pp.physical("process_noise", 0.1, 1.0), lambda t, x, u: x)[2]),
        ("site 'process_noise' is declared twice", "a name of its own"), None, "its models name every site themselves",
    ),
    Mistake(
        "A residual network of width zero",
        lambda: pp.residual("r", bind().state, bind().action, width=0), ("width and depth must be at least 1; got 0",),
        plainly(lambda m, x, u: field(m, x, u) + jnp.zeros((2, 0)) @ jnp.tanh(jnp.zeros((0, 2)) @ x)),
    ),
]  # fmt: skip
