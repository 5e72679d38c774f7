"""Priors of a machine's parameters as one table; each parameter can be fixed at a value instead."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro
from jax import Array

from physppl.internal.units import UNITLESS
from physppl.language.program import Program, note_units
from physppl.language.sites import physical
from physppl.models.truth import adapted, refuse_unknown


class Between(NamedTuple):
    """Prior low + (high - low) sigmoid(Normal(loc, scale)), with the arguments of `physical`.

    With low = 0 and loc = -2 the median is high / 8.4, and four draws in five lie between 0.3 and 2.7 times the median.
    """

    low: float
    high: float
    unit: str = UNITLESS
    loc: float = 0.0
    scale: float = 1.0


def up_to(high: float, unit: str) -> Between:
    """Prior of friction and the like, which may be almost zero: four draws in five lie in 0.4 to 40 % of `high`."""
    return Between(0.0, high, unit, -3.0, 2.0)


def sample(priors: Mapping[str, Between], held: Mapping[str, Any]) -> dict[str, Any]:
    """Sample {parameter: its fixed value, or else a `physical` site}; a fixed parameter needs no prior."""
    sites = {name: physical(name, **prior._asdict()) for name, prior in priors.items() if name not in held}
    return sites | dict(held)


def derived(name: str, value, unit: str) -> Array:
    """Record a quantity computed from sites under its name, so that tables show it beside them."""
    note_units({name: unit})
    return jnp.asarray(numpyro.deterministic(name, jnp.asarray(value)))


def hold(program: Callable[..., Any], field: Callable, priors: Mapping[str, Any], held: Mapping[str, Any]) -> Program:
    """Fix some arguments of `program`. Equal arguments give the same object, so that equal Dynamics share compilation.

    Raises:
        KeyError: for a name that is neither a parameter of the field nor a site, with close matches.
    """
    refuse_unknown(held, program, field, priors)
    return adapted(program, (), tuple(sorted((k, v if isinstance(v, bool) else float(v)) for k, v in held.items())))
