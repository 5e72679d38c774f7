"""Simulated machines for the commands: task, true system, program and animation."""

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

import physppl as pp
from physppl.cli.machine import MODELS
from physppl.internal.errors import closest, unknown
from physppl.models import furuta, quanser_cartpole, two_link
from physppl.plots import machines

TASKS = ("swing_up", "reach")
MACHINES = {n: m for n, m in MODELS.items() if hasattr(m, "system") and any(hasattr(m, task) for task in TASKS)}
FLAT = {"two_link": {"gravity": 0.0}}  # known from a machine's task: the reaching arm lies flat
NOISE = 0.01  # sd of readings of the SIM2GP experiments (github.com/bhahner/MC-PILCO)
ANIMATIONS = {
    "cartpole": functools.partial(machines.animate_cartpole, pole=1.0, upright=0.0),
    "furuta": functools.partial(machines.animate_furuta, arm_range=furuta.ARM_RANGE),
    "gym_pendulum": functools.partial(machines.animate_pendulum, upright=0.0),
    "pendulum": machines.animate_pendulum,
    "quanser_cartpole": functools.partial(machines.animate_cartpole, track=quanser_cartpole.TRACK),
    "two_link": functools.partial(machines.animate_two_link, target=two_link.TARGET),
}


class LearningProblem(NamedTuple):
    """Machine, its task, and the program to be learned.

    Attributes:
        truth: {site or derived quantity of the program: true value}.
        unknown: {parameter: (true value, the program's value)} of those without a site whose fixed value is wrong.
    """

    name: str
    task: pp.Task
    dynamics: pp.Dynamics
    system: pp.System | pp.HostSystem
    truth: dict[str, float]
    unknown: dict[str, tuple[float, float]]


def machine(
    name: str,
    dt: float | None = None,
    *,
    truth: Mapping[str, float] = {},
    hold: Mapping[str, float] = {},
    measurement_noise: float | None = None,
    actuator: Mapping[str, Any] | None = None,
) -> LearningProblem:
    """Set up a machine of `physppl.models` by a command's options.

    Args:
        dt: s; None: the task's own.
        truth: parameters of the true machine that differ from the published values.
        hold: parameters that the program fixes, with their values.
        measurement_noise: sd of every reading, in the coordinates' units; None: 0.01 where the machine has no noise.
            (Without any noise one episode determines it to many digits.)
        actuator: arguments of `Actuator`; None: commands act directly.

    Raises:
        ValueError: for an unknown machine, a step that does not suit its task, options that it does not have.
        KeyError: for an unknown parameter, with close matches.
    """
    if name not in MACHINES:
        raise ValueError(f"there is no machine {name!r} with a task.{closest(name, MACHINES)}")
    module, known = MACHINES[name], FLAT.get(name, {})
    task, dt = _task(name, module, dt)
    step = {"dt": dt} if "dt" in inspect.signature(module.system).parameters else {}
    system = module.system(**step, **_changes(name, module, {**known, **truth}, "truth"))
    fixed = {**known, **hold}
    if fixed and not hasattr(module, "program_with"):
        raise ValueError(f"--hold: the program of {name} has no parameters that can be held.")
    program = {"program": module.program_with(**fixed)} if fixed else {}
    dynamics = module.dynamics(**program, **step)
    if measurement_noise is None and not (np.any(system.transition.noise) or np.any(system.measurement_sd)):
        measurement_noise = NOISE
    system = equipped(system, measurement_noise, actuator)
    true, sites = values(system.transition.dynamics, system.transition.sites), values(dynamics, {})
    field = inspect.signature(getattr(module, "field", lambda: None)).parameters
    assumed = {k: p.default for k, p in field.items() if isinstance(p.default, float)} | fixed
    wrong = {
        k: (v, assumed[k])
        for k, v in true.items()
        if k not in sites and k in assumed and not np.isclose(v, assumed[k], rtol=1e-6, atol=0.0)
    }
    return LearningProblem(name, task, dynamics, system, {k: v for k, v in true.items() if k in sites}, wrong)


def _task(name: str, module: ModuleType, dt: float | None) -> tuple[pp.Task, float]:
    """Task of a machine, and its control step in s."""
    task = next(getattr(module, task) for task in TASKS if hasattr(module, task))
    if isinstance(task, pp.Task):
        task_dt = module.dynamics().dt
        if dt is not None and dt != task_dt:
            raise ValueError(f"--dt: the task of {name} is in steps of {task_dt:g} s; got {dt:g}.")
        return task, task_dt
    step = float(inspect.signature(task).parameters["dt"].default if dt is None else dt)
    if not 0 < step < 1:
        raise ValueError(f"--dt must be seconds, more than 0 and less than 1; got {step:g}.")
    return task(step), step


def _changes(name: str, module: ModuleType, changes: Mapping[str, float], option: str) -> Mapping[str, float]:
    """Changed parameters, refused where one is an argument of `system` but no parameter of the machine."""
    arguments = inspect.signature(module.system).parameters
    if changes and not any(p.kind is p.VAR_KEYWORD for p in arguments.values()):
        raise ValueError(f"--{option}: {name} has no parameters that can be changed.")
    for key in changes:
        if key in ("dt", "noise", "measurement_sd", "initial_sd"):
            raise unknown("parameter", key, inspect.signature(module.field).parameters, name)
    return changes


def equipped(
    system: pp.SimulatedSystem, measurement_noise: Any = None, actuator: Mapping[str, Any] | None = None
) -> pp.SimulatedSystem:
    """The system with sds (D,) or scalar of its readings and an actuator of these arguments, where they are given."""
    if measurement_noise is not None:
        sd = jnp.broadcast_to(jnp.asarray(measurement_noise, float), system.measurement_sd.shape)
        system = eqx.tree_at(lambda s: s.measurement_sd, system, sd)
    return system if actuator is None else system.with_actuator(**actuator)


def values(dynamics: pp.Dynamics, sites: Mapping[str, Any]) -> dict[str, float]:
    """Values {site or derived quantity: value} of a program at some site values; others are drawn."""
    program = handlers.substitute(handlers.seed(dynamics.program, jax.random.key(0)), dict(sites))
    trace = handlers.trace(program).get_trace()
    return {k: float(site["value"]) for k, site in trace.items() if np.size(site.get("value", ())) == 1}


def animate_last(problem: LearningProblem, path: Path, run: pp.Run) -> None:
    """Write the animation of a run's last episode, where this machine has one."""
    if problem.name in ANIMATIONS:
        last = jax.tree.map(lambda x: np.asarray(x)[-1], run.episodes)
        states, actions = last.states[: last.valid.sum() + 1], last.actions[: last.valid.sum()]
        ANIMATIONS[problem.name](path, states, actions, problem.dynamics, title=f"episode {len(run.seconds)}")
