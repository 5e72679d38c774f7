"""Checks of the arguments of `calibrate`."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from numpyro import handlers

from physppl.data.data import Data
from physppl.data.trajectories import Trajectories
from physppl.data.transitions import Transitions
from physppl.density.unconstrained import latent_part
from physppl.dynamics import Dynamics
from physppl.internal.errors import check_counts, check_key
from physppl.posterior.backend import Backend


def check_arguments(key: PRNGKeyArray, model, design, backend, at, level, **counts) -> None:
    """Refuse arguments that cannot be calibrated.

    Raises:
        TypeError: for arguments of another kind, naming what came.
        ValueError: for counts or a level out of range, data that do not fit the spaces, fleets, recordings without a
            start, and programs with observed sites.
    """
    check_key(key)
    if not isinstance(model, Dynamics) or not isinstance(backend, Backend):
        got = f"{type(model).__name__}, {type(backend).__name__}"
        raise TypeError(f"calibrate(key, model, design, backend) takes a Dynamics and a backend object; got {got}.")
    if not isinstance(design, Data):
        raise TypeError(
            "calibrate: design must be Transitions(states, actions) or Trajectories(None, actions, ...), the inputs of "
            f"every data set; got {type(design).__name__}."
        )
    if not isinstance(at, Transitions | None):
        raise TypeError(f"calibrate: at must be Transitions(states, actions) or None; got {type(at).__name__}.")
    for name, data in (("design", design), ("at", at)):
        if data is not None and data.machines:
            raise ValueError(f"calibrate: {name} is of a fleet {data.machines}; calibrate one machine at a time.")
    if not 0 < level < 1:
        raise ValueError(f"calibrate: level is a probability, 0 < level < 1; got {level}.")
    check_counts("calibrate", **counts)
    model.check(design.inputs)
    if isinstance(design, Trajectories) and design.start is None:
        raise ValueError(
            "calibrate: recordings need start=(mean, sd), from which first states are drawn. Without it a fit "
            "centres its prior of the first state on the first reading, which a simulation cannot reproduce."
        )
    if at is not None:
        model.check(at.inputs)
    _check_program(model, design)


def _check_program(model: Dynamics, design) -> None:
    run, *args = latent_part(model, design)
    observed = []

    def trace(key):
        sites = handlers.trace(handlers.seed(run, key)).get_trace(*args).items()
        observed.extend(name for name, site in sites if site["type"] == "sample" and site["is_observed"])
        return jnp.zeros(())

    jax.eval_shape(trace, jax.random.key(0))
    if observed:
        raise ValueError(
            f"calibrate: the program observes {', '.join(map(repr, observed))}. Truths are drawn from the prior, which "
            "ignores this observation, and every fit conditions on it, so that a correct backend would be rejected. "
            "Leave it out of the program, or make it an argument that calibration omits."
        )
