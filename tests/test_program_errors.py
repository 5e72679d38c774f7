"""Mistakes of a first week in a program: each is told with its line, and what to write instead."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import physppl as pp
from physppl.inference import Laplace
from physppl.language.program_errors import ProgramError, explained

state = pp.StateSpace(angle=pp.Angle(), velocity=pp.Real("rad/s"))
action = pp.ActionSpace(torque=pp.Bounded(-2.0, 2.0, "N m"))
data = pp.Transitions.from_trajectory(np.random.default_rng(0).normal(size=(21, 2)), np.zeros((20, 1)))


def mass():
    return pp.physical("mass", 0.1, 2.0, unit="kg")


def program(field, prepare=lambda m: m):
    def machine():
        m = prepare(mass())
        return lambda t, x, u: field(m, x, u)

    return machine


def branch(m, x, u):
    if x[1] > 0:
        return -x
    return x


def loop(m, x, u):
    while x[0] > 1:
        x = x / 2
    return x


def in_place(m, x, u):
    rates = jnp.zeros(2)
    rates[0] = x[1]
    return rates


machine = pp.Dynamics(program(branch), state, action, dt=0.05)

MISTAKES = {
    "site in the field": (lambda: lambda t, x, u: x / mass(), "pp.physical", "Declare each site once, in the program"),
    "np.sin of the state": (program(lambda m, x, u: x * np.sin(x[0])), "np.sin(x[0])", "write jnp for np"),
    "np.sin of a site": (program(lambda m, x, u: m * x, lambda m: np.sin(m)), "np.sin(m)", "write jnp for np"),
    "np.array": (program(lambda m, x, u: np.array([x[1], x[0]])), "np.array", "write jnp for np"),
    "if": (program(branch), "if x[1] > 0:", "write jnp.where"),
    "if on a site": (program(lambda m, x, u: x, lambda m: 1 if m > 1 else 2), "1 if m > 1", "write jnp.where"),
    "while": (program(loop), "while x[0] > 1:", "write jnp.where"),
    "float of a site": (program(lambda m, x, u: m * x, float), "prepare(mass())", "leave float() out"),
    "float of the state": (program(lambda m, x, u: float(x[0]) * x), "float(x[0])", "leave float() out"),
    "math.sin": (program(lambda m, x, u: math.sin(x[0]) * x), "math.sin", "jnp.sin for math.sin"),
    "attribute": (program(lambda m, x, u: x.velocity * x), "x.velocity", "angle, velocity = state, or state[0]"),
    "attribute of a space": (program(lambda m, x, u: state.motor * x), "state.motor", "names, not values"),
    "name as an index": (program(lambda m, x, u: x["angle"] * x), 'x["angle"]', "state[0], action[0]"),
    "whole action": (program(lambda m, x, u: jnp.stack([x[1], u])), "jnp.stack([x[1], u])", "write action[0]"),
    "in place": (program(in_place), "rates[0] = x[1]", "not changed in place"),
    "range": (program(lambda m, x, u: sum(x for _ in range(x[0].astype(int)))), "range(", "fixed number"),
    "division": (program(lambda m, x, u: x * (1 / 0)), "1 / 0", "ZeroDivisionError: division by zero"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_the_line_and_the_remedy(name):
    wrong, code, remedy = MISTAKES[name]
    with pytest.raises(ProgramError) as raised:
        pp.fit(jax.random.key(0), pp.Dynamics(wrong, state, action, dt=0.05), data, Laplace())
    text = str(raised.value)
    assert "test_program_errors.py, line" in text and code in text and remedy.lower() in text.lower()
    assert "Tracer" not in text.splitlines()[0] and len(text) < 700


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fitted(lambda: lambda x, u: x), r"must take \(t, state, action\); got \(x, u\)"),
        (lambda: fitted(program(lambda m, x, u: None)), "returned nothing: a `return` is missing"),
        (lambda: fitted(program(lambda m, x, u: {"angle": x[1]})), "returned a dict"),
        (lambda: fitted(lambda: None), "must return a vector field"),
        (lambda: pp.fit(jax.random.key(0), program(branch), data, Laplace()), r"bound first: Dynamics\(machine"),
        (lambda: pp.StateSpace("x", "v"), r"takes named coordinates, StateSpace\(x=Real"),
        (lambda: pp.ActionSpace({"u": pp.Bounded(0.0, 1.0)}), r"Of a dict: ActionSpace\(\*\*coordinates\)"),
        (lambda: machine.likelihood([data, data]), "Transitions.concatenate"),
        (lambda: machine.likelihood({"x": [1.0]}), "Tables and dicts are read by"),
    ],
)  # fmt: skip
def test_what_is_wrong_around_it_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def fitted(wrong, rows=data):
    return pp.fit(jax.random.key(0), pp.Dynamics(wrong, state, action, dt=0.05), rows, Laplace())


def test_errors_of_the_library_and_of_others_pass_unchanged():
    with pytest.raises(ZeroDivisionError), explained("here"):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="needs finite low < high") as raised:
        fitted(lambda: pp.physical("mass", 2.0, 1.0))
    assert not isinstance(raised.value, ProgramError)
    with pytest.raises(ProgramError, match="line"):
        pp.Dynamics(program(lambda m, x, u: m * x, float), state, action, dt=0.05).transition({"mass": jnp.ones(())})


def test_a_number_in_place_of_a_unit_is_told():
    """Without the types that are checked in these tests."""
    code = "import physppl as pp\ntry: pp.Real(10.0)\nexcept ValueError as error: print(error)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "a unit is text, as in 'rad/s'; got 10.0. A typical size is scale=10.0" in told
