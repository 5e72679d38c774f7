"""The Dynamics that a command identifies: a model by name or a user's program file, bound as the recordings need it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import numpyro.distributions as dist
from jax import numpy as jnp
from numpyro import handlers

import physppl as pp
from physppl import models
from physppl.dynamics.sensors import GAIN, TIMING
from physppl.internal.errors import closest
from physppl.language.integrate import Step, StepResidual
from physppl.language.noise import PROCESS
from physppl.language.program import rebuild

STILL = 1e-5  # of a position's scale: the prior scale of noise that moves it in a step other than by its velocity
ROUNDING = 1e-4  # of a step, in which two are the same
VELOCITY = 0.1  # of their scales: the prior scale of process noise elsewhere, as in every Dynamics
MODELS = {name: m for name, m in vars(models).items() if isinstance(m, ModuleType) and hasattr(m, "dynamics")}


def model(name: str) -> pp.Dynamics:
    """The default Dynamics of a module of `physppl.models`.

    Raises:
        ValueError: for an unknown one, with close matches.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}.{closest(name, MODELS)} Of your own: --program my_machine.py.")
    return MODELS[name].dynamics()


def program(path: Path) -> pp.Dynamics:
    """What a Python file defines as `dynamics`: a Dynamics, or a function that returns one.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a file that does not define it; what else the file raises is its own.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no program file {path}.")
    name = f"_{path.stem}_of_physppl_identify"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))  # it may import its neighbours, as a script may
    spec.loader.exec_module(module)
    found = getattr(module, "dynamics", None)
    found = found() if callable(found) and not isinstance(found, pp.Dynamics) else found
    if not isinstance(found, pp.Dynamics):
        got = "nothing of that name" if found is None else type(found).__name__
        raise ValueError(
            f"{path} must define dynamics = physppl.Dynamics(program, state, action, dt=...); it has {got}."
        )
    return found


def for_real_recordings(dynamics: pp.Dynamics, exact_inputs: bool) -> pp.Dynamics:
    """With the noises that real machines need, unless the Dynamics says anything of its own about noise.

    Positions move by their velocities and by next to nothing else; inputs are not quite what was recorded.
    """
    silent = dynamics == dynamics.rebound(process_noise=None) and dynamics.sensing.gain is dynamics.sensing.timing
    if not silent:  # both are None where neither is given
        return dynamics
    moved = positions(dynamics)
    changes = {"process_noise": dist.HalfNormal(np.where(moved, STILL, VELOCITY))} if moved.any() else {}
    if not exact_inputs:
        changes |= {GAIN: dist.HalfNormal(0.1), TIMING: dist.HalfNormal(0.5)}
    return dynamics.rebound(**changes)


def stepping(dynamics: pp.Dynamics, dt: float) -> pp.Dynamics:
    """With another step, s, unless the program knows one step alone: its data have to come at that one."""
    same = abs(dt / dynamics.dt - 1) < ROUNDING
    if same or isinstance(_field(dynamics), Step | StepResidual):
        return dynamics
    return dynamics.rebound(dt=float(f"{dt:.8g}"))  # differences of decimal times are decimal again


def positions(dynamics: pp.Dynamics) -> np.ndarray:
    """Which coordinates (D,) change by the value of another one and by nothing else."""
    field = _field(dynamics)
    field = field.physics if isinstance(field, StepResidual) else field
    found = np.ones((len(dynamics.state), len(dynamics.state)), bool)
    if isinstance(field, Step):  # which does not say
        return np.zeros(len(found), bool)
    random = np.random.default_rng(0)
    for _ in range(4):
        state = jnp.asarray(dynamics.state.scale * random.normal(size=len(found)))
        action = jnp.asarray(random.uniform(dynamics.action.low, dynamics.action.high))
        rates = np.stack([np.asarray(rate) for rate in field(0.0, state, action)])
        found &= rates[:, None] == np.asarray(state)
    return np.asarray(found.any(axis=1))


def _field(dynamics: pp.Dynamics):
    """The program's result at a draw of the prior."""
    with handlers.seed(rng_seed=0):
        values = dynamics.sites()
    values.pop(PROCESS, None)
    return rebuild(dynamics.program, values, dynamics.name)
