"""Mistakes in a program: its sites, its field, and what it returns."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import physppl as pp
from mistakes.common import bind, data, field, fit, fits, mass, model, nuts, plainly, program, u, x, y
from mistakes.entry import Mistake
from physppl.inference import Laplace


def branch(m, x, u):
    if x[1] > 0:
        return -x
    return m * x


def in_place(m, x, u):
    rates = jnp.zeros(2)
    rates[0] = x[1]
    rates[1] = u[0] / m
    return rates


def scipys(x, t, u):
    return jnp.stack([x[1], u[0] - 9.81 * jnp.sin(x[0])])


def in_scipys_order():
    mass()
    return scipys


def in_the_field():
    return lambda t, x, u: field(pp.physical("mass", 0.1, 3.0), x, u)


def plain_in_the_field(_, x, u):
    return field(numpyro.sample("mass", dist.Uniform(0.1, 3.0)), x, u)


def twice():
    mass()
    return program()()


def plain_twice(states, actions, outcomes):
    numpyro.sample("mass", dist.Uniform(0.1, 3.0))
    model()(states, actions, outcomes)


def noisy():
    m, key = mass(), numpyro.prng_key()
    return lambda t, x, u: field(m, x, u) + jax.random.normal(key, (2,))


def plain_noisy(m, x, u):
    return field(m, x, u) + jax.random.normal(numpyro.prng_key(), (2,))


def discrete():
    m, gear = mass(), numpyro.sample("gear", dist.Bernoulli(0.5))
    return lambda t, x, u: field(m, x, u * (1 + gear))


def plain_discrete(states, actions, outcomes):
    gear = numpyro.sample("gear", dist.Bernoulli(0.5))
    model(lambda m, x, u: field(m, x, u * (1 + gear)))(states, actions, outcomes)


def param():
    m = numpyro.param("mass", 0.5)
    return lambda t, x, u: field(m, x, u)


def plain_param(states, actions, outcomes):
    m = numpyro.param("mass", 0.5)
    sd = numpyro.sample("sd", dist.HalfNormal(0.1))
    mean = jax.vmap(lambda x, u: x + 0.05 * field(m, x, u))(states, actions)
    numpyro.sample("next", dist.Normal(mean, sd), obs=outcomes)


def plain_known(states, actions, outcomes):
    mean = jax.vmap(lambda x, u: x + 0.05 * field(1.0, x, u))(states, actions)
    numpyro.sample("next", dist.Normal(mean, 0.1), obs=outcomes)


def plain_nothing(states, actions, outcomes):
    def rates(m):
        lambda x, u: field(m, x, u)  # noqa: B018

    m = numpyro.sample("mass", dist.Uniform(0.1, 3.0))
    mean = jax.vmap(lambda x, u: x + 0.05 * rates(m)(x, u))(states, actions)
    numpyro.sample("next", dist.Normal(mean, 0.1), obs=outcomes)


# Apart from what their messages must say, since a message quotes its line.
RATES = {
    "np.sin": lambda m, x, u: jnp.stack([x[1], -m * np.sin(x[0])]),
    "math.sin": lambda m, x, u: jnp.stack([x[1], -m * math.sin(x[0])]),
    "range": lambda m, x, u: m * sum(x for _ in range(x[0].astype(int))),
    "attribute": lambda m, x, u: m * x.velocity * x,
    "name": lambda m, x, u: m * x["angle"] * x,
    "whole action": lambda m, x, u: jnp.stack([x[1], u / m]),
}

MISTAKES = [
    Mistake(
        "`np.sin` of a state",
        fits(RATES["np.sin"]), ("np.sin(x[0])", "write jnp for np"),
        plainly(RATES["np.sin"]),
    ),
    Mistake(
        "`math.sin` of a state",
        fits(RATES["math.sin"]), ("math.sin(x[0])", "jnp.sin for math.sin"),
        plainly(RATES["math.sin"]),
    ),
    Mistake(
        "`float()` of a parameter",
        fits(prepare=float), ("prepare(mass())", "leave float() out"),
        plainly(lambda m, x, u: field(float(m), x, u)),
    ),
    Mistake(
        "`if` on a state, for friction that changes its sign",
        fits(branch), ("if x[1] > 0:", "write jnp.where"), plainly(branch),
    ),
    Mistake(
        "A loop as long as a state says",
        fits(RATES["range"]), ("range(", "fixed number"),
        plainly(RATES["range"]),
    ),
    Mistake(
        "A rate assigned in place, `rates[0] = ...`",
        fits(in_place), ("rates[0] = x[1]", "return jnp.stack"), plainly(in_place),
    ),
    Mistake(
        "A coordinate by attribute, `state.velocity`",
        fits(RATES["attribute"]), ("x.velocity", "angle, velocity = state"),
        plainly(RATES["attribute"]),
    ),
    Mistake(
        'A coordinate by name, `state["angle"]`',
        fits(RATES["name"]), ('x["angle"]', "state[0], action[0]"),
        plainly(RATES["name"]),
    ),
    Mistake(
        "The action as a number, though it is an array of one",
        fits(RATES["whole action"]), ("jnp.stack([x[1], u / m])", "write action[0]"),
        plainly(RATES["whole action"]),
    ),
    Mistake(
        "A field without time, `f(state, action)`, as other simulators take it",
        lambda: fit(lambda: lambda x, u: x), ("must take (t, state, action)", "got (x, u)"),
        lambda: nuts(model(lambda x, u: x), x, u, y),
    ),
    Mistake(
        "A field in SciPy's order, `f(state, t, action)`",
        lambda: fit(in_scipys_order), ("jnp.stack([x[1]", "called as field(t, state, action)"),
        lambda: nuts(model(lambda m, x, u: scipys(0.0, x, u)), x, u, y),
    ),
    Mistake(
        "A field that returns too few rates",
        fits(lambda m, x, u: m * x[1:]), ("must return an array of the state's shape (2,); got shape (1,)", "stack"),
        plainly(lambda m, x, u: m * x[1:]),
    ),
    Mistake(
        "A field that returns one number for all coordinates",
        fits(lambda m, x, u: u[0] / m), ("shape (2,); got shape ()", "one entry per state coordinate"),
        plainly(lambda m, x, u: u[0] / m),
    ),
    Mistake(
        "A field that returns a dict",
        fits(lambda m, x, u: {"angle": x[1], "velocity": u[0] / m}), ("returned a dict", "Return jnp.stack"),
        plainly(lambda m, x, u: {"angle": x[1], "velocity": u[0] / m}),
    ),
    Mistake(
        "A field that forgets its `return`",
        fits(lambda m, x, u: None), ("returned nothing: a `return` is missing", "jnp.stack"),
        plainly(lambda m, x, u: None),
    ),
    Mistake(
        "A program that forgets to return its field",
        lambda: fit(lambda: None if mass() is None else None), ("must return a vector field", "got NoneType"),
        lambda: nuts(plain_nothing, x, u, y),
    ),
    Mistake(
        "A parameter declared inside the field, which runs many times",
        lambda: fit(in_the_field), ('pp.physical("mass", 0.1, 3.0)', "Declare each site once, in the program"),
        lambda: nuts(model(plain_in_the_field, prior=lambda: dist.Uniform(0.1, 3.0)), x, u, y),
    ),
    Mistake(
        "Two parameters of one name",
        lambda: fit(twice), ("site 'mass' is declared twice", "a name of its own"),
        lambda: nuts(plain_twice, x, u, y),
    ),
    Mistake(
        "Randomness of the program's own, `numpyro.prng_key()`",
        lambda: fit(noisy), ("used a 'prng_key' statement", "Draw randomness as a sample site"), plainly(plain_noisy),
    ),
    Mistake(
        "A discrete parameter",
        lambda: fit(discrete), ("site 'gear' is discrete", "marginalise it or make it continuous"),
        lambda: nuts(plain_discrete, x, u, y),
    ),
    Mistake(
        "`numpyro.param` in place of a parameter with a prior",
        lambda: fit(param), ("site 'mass' is a `param`: it has no prior", "Make it a sample site"),
        lambda: nuts(plain_param, x, u, y) or "the mass stays at its first value, 0.5 kg, truth 1",
    ),
    Mistake(
        "A model in which nothing is unknown",
        lambda: fit(lambda: lambda t, x, u: field(1.0, x, u), process_noise=0.1),
        ("the model has no latent site: there is nothing to infer",), lambda: nuts(plain_known, x, u, y),
    ),
    Mistake(
        "The program called where it is bound, `Dynamics(pendulum(), ...)`",
        lambda: bind(program()()), ("was called outside a running program", "uncalled: Dynamics(pendulum, ...)"),
        lambda: nuts(model()(x, u, y)),
    ),
    Mistake(
        "A program fitted without binding it",
        lambda: pp.fit(jax.random.key(0), program(), data(), Laplace()),
        ("A program is bound first: Dynamics(pendulum",), lambda: nuts(lambda: field, x, u, y),
    ),
]  # fmt: skip
