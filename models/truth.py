"""True transition of a simulated machine: its published parameters, some of them changed."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpyro

from physppl.dynamics import Dynamics
from physppl.internal.errors import unknown
from physppl.language.program import Program
from physppl.language.transition import Transition


def refuse_unknown(names, program: Callable[..., Any], field: Callable, sites) -> None:
    """Refuse names that are neither a parameter of the field nor a site.

    Raises:
        KeyError: with close matches.
    """
    known = {**dict.fromkeys(sites), **inspect.signature(field).parameters}
    for name in names:
        if name not in known:
            raise unknown("parameter", name, known, program.__module__)


def true_transition(
    dynamics: Callable[..., Dynamics],
    program: Callable[..., Any],
    field: Callable,
    values: Mapping[str, Any],
    changes: Mapping[str, Any],
    dt: float,
    noise: Any,
) -> Transition:
    """Transition of a machine at `values`, with some arguments of `field` changed.

    Numbers are leaves of the transition: transitions that change the same parameters share compiled programs. Variants
    of the equations, arguments that are True or False, are part of the program.

    Args:
        dynamics: (program, dt) -> Dynamics, of the machine.
        program: (**held) -> field.
        field: whose arguments can be changed.
        values: {site of the program: value}.
        changes: {argument of the field, or site: value}.
        dt: step, s.
        noise: process-noise sd of each coordinate over one step.

    Raises:
        KeyError: for a change that is not a parameter, with close matches.
    """
    refuse_unknown(changes, program, field, values)
    defaults = {name: parameter.default for name, parameter in inspect.signature(field).parameters.items()}
    variants = {k: bool(v) for k, v in changes.items() if isinstance(defaults.get(k), bool)}
    numbers = {k: v for k, v in changes.items() if k not in variants}
    # A default variant is no change: a separate program would only be compiled again.
    variants = tuple(sorted((k, v) for k, v in variants.items() if v is not defaults[k]))
    added = tuple(sorted((k, defaults[k]) for k in set(numbers) - set(values)))
    true_program = adapted(program, added, variants) if added or variants else program
    return dynamics(true_program, dt).transition({**values, **numbers}, noise)


@functools.cache  # equal arguments give the same program, so that equal Dynamics share compiled programs
def adapted(program: Callable[..., Any], added: tuple, held: tuple) -> Program:
    """Extend the program's sites by parameters without a prior, and fix some of its arguments."""

    @functools.wraps(program)
    def adapted_program():
        return program(**{name: numpyro.param(name, default) for name, default in added}, **dict(held))

    return adapted_program
