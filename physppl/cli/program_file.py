"""Program files: what a user's Python file defines for `physppl identify`, `psrl` and `psal`."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

import physppl as pp
from physppl.cli.acting import LearningProblem, equipped, values
from physppl.internal.errors import unknown
from physppl.language.noise import PROCESS

STEPS = 200  # of an episode that is planned for information, where the file has no task


def dynamics_file(path: Path) -> pp.Dynamics:
    """Load `dynamics` from a Python file: a Dynamics, or a function that returns one.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file that does not define it. Errors of the file itself pass through.
    """
    return _dynamics(_load(path), path)


def learning_file(
    path: Path,
    command: str,
    *,
    truth: Mapping[str, float] = {},
    measurement_noise: float | None = None,
    actuator: Mapping[str, Any] | None = None,
) -> LearningProblem:
    """Set up a machine by a Python file.

    The file defines `dynamics`; `task`, which psal can do without; and either `system`, a System or HostSystem (or a
    function that returns one), or `truth`, {site: value}, with `initial_state`, of which one is simulated. Beside a
    system, `truth` is what the table of parameters shows.

    Args:
        truth, measurement_noise, actuator: as of `acting.machine`; for simulated systems.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming what the file lacks and the lines to add, or options that its system does not take.
        KeyError: for an unknown or missing site of `truth`, with close matches.
    """
    module = _load(path)
    dynamics, task = _dynamics(module, path), getattr(module, "task", None)
    if task is None and command == "psal":
        task = pp.Task(_nothing, steps=STEPS)
    if not isinstance(task, pp.Task):
        name = dynamics.state.names[0]
        raise _lacks(path, "task", task, f"task = physppl.Task(lambda state, action: -state[0] ** 2, steps={STEPS}), "
                     f"which rewards {name} near 0")  # fmt: skip
    system, known = _made(module, "system", pp.System | pp.HostSystem), getattr(module, "truth", None)
    if system is None:
        system = _simulated(path, module, dynamics, {**(known or {}), **truth})
        if measurement_noise is None and not np.any(system.transition.noise):
            system = equipped(system, 0.01 * dynamics.state.scale)
    elif not isinstance(system, pp.System | pp.HostSystem):
        raise _lacks(path, "system", system, "system = MyMachine(), of a class that derives from physppl.HostSystem")
    elif not isinstance(system, pp.SimulatedSystem):
        if truth or actuator is not None or measurement_noise is not None:
            raise ValueError(
                f"{path}: options that change a simulated machine do not change its system, a {type(system).__name__}. "
                "Leave out --truth, --dead-band, --delay, --lag and --measurement-noise."
            )
    elif truth:
        old = system.transition
        transition = old.dynamics.transition({**old.sites, **truth}, old.noise)
        system = eqx.tree_at(lambda s: s.transition, system, transition)
    sites = values(dynamics, {})
    if isinstance(system, pp.SimulatedSystem):
        system = equipped(system, measurement_noise, actuator)
        true = values(system.transition.dynamics, system.transition.sites)
        return LearningProblem(path.name, task, dynamics, system, {k: v for k, v in true.items() if k in sites}, {})
    for site in known or {}:
        if site not in sites:
            raise unknown("site", site, sites, f"{path}: truth")
    return LearningProblem(path.name, task, dynamics, system, dict(known or {}), {})


def _simulated(path: Path, module: ModuleType, dynamics: pp.Dynamics, truth: Mapping[str, Any]) -> pp.SimulatedSystem:
    start, count = getattr(module, "initial_state", None), len(dynamics.state)
    if not truth or start is None:
        with handlers.seed(rng_seed=0):
            sites = {k: v for k, v in dynamics.sites().items() if k != PROCESS}
        drawn = ", ".join(f'"{k}": {float(v):.2g}' for k, v in sites.items() if jnp.size(v) == 1)
        lines = [] if truth else [f"truth = {{{drawn}}}"]
        lines += [] if start is not None else [f"initial_state = {[0.0] * count}"]
        what = f"of {', '.join(dynamics.state.names)}" if start is None else "a value of each site"
        raise ValueError(
            f"{path} has no `system`, and of a simulated one it lacks: {'; '.join(lines)} ({what}). Add that for a "
            "simulated machine with these parameters, or for a real one system = MyMachine(), of a class that derives "
            "from physppl.HostSystem."
        )
    return pp.SimulatedSystem(dynamics.transition(truth), start)


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no program file {path}.")
    name = f"_{path.stem}_of_physppl"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))  # it may import modules beside it, as a script may
    spec.loader.exec_module(module)
    return module


def _made(module: ModuleType, name: str, kind: Any) -> Any:
    """Attribute of a module, or what the function of that name returns; None where there is none."""
    value = getattr(module, name, None)
    return value() if callable(value) and not isinstance(value, kind) else value


def _dynamics(module: ModuleType, path: Path) -> pp.Dynamics:
    dynamics = _made(module, "dynamics", pp.Dynamics)
    if not isinstance(dynamics, pp.Dynamics):
        raise _lacks(path, "dynamics", dynamics, "dynamics = physppl.Dynamics(program, state, action, dt=...)")
    return dynamics


def _lacks(path: Path, name: str, found: Any, line: str) -> ValueError:
    got = f"nothing of the name `{name}`" if found is None else f"a `{name}` of type {type(found).__name__}"
    return ValueError(f"{path} must define {line}; it has {got}.")


def _nothing(state, action):
    """Reward of a task that is not played for one."""
    del state, action
    return jnp.zeros(())
