"""Demo of a torque pendulum: identified from a recording, then swung up."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import physppl as pp
from physppl import plots
from physppl.cli.acting import machine
from physppl.cli.console import say, timed
from physppl.cli.learning import Learning
from physppl.evaluation import benchmarks
from physppl.inference import Laplace
from physppl.internal.units import pretty
from physppl.models import pendulum
from physppl.planning import ICEM, RandomPolicy

FRICTION = 0.1  # N m, dry friction of the simulated pendulum, which all programs below lack
UNITS = {"mass": "kg", "length": "m", "damping": "N m s/rad", "dry friction": "N m"}
FILES = {
    "identified.nc": "posterior of the recorded pendulum",
    "identified.png": "its parameters, posterior over prior",
    "fan.png": "its predictions of a held-out recording",
    "phase_portrait.png": "free motion, of posterior draws and of the true system",
}


def learning() -> Learning:
    """Swing-up of the torque pendulum."""
    values = pendulum.truth | {"dry friction": FRICTION}
    words = ", ".join(f"{name} {value:g} {pretty(UNITS[name])}" for name, value in values.items())
    opening = (
        f"Learn to swing up a simulated pendulum: {words}.",
        "The program has sites for the first three; the dry friction lies outside its prior.",
        "The first episode acts from the prior.",
    )
    problem = machine("pendulum", truth={"coulomb": FRICTION})
    return Learning(problem, opening, ICEM(horizon=40), _portrait, "phase_portrait.png")


def _portrait(key, run: pp.Run, system: pp.SimulatedSystem, oracle: pp.Episode):
    del oracle
    visited = np.asarray(run.episodes.states)
    return plots.phase_portrait(key, run.posterior, system.transition, visited=visited)


class RecordedPendulum(NamedTuple):
    """Recordings of a pendulum, one to fit and one held out."""

    source: str
    dynamics: pp.Dynamics
    data: pp.Transitions
    held_out: str
    states: np.ndarray  # (T + 1, 2) of the held-out recording
    actions: np.ndarray  # (T, 1)
    restart: int  # steps from one restart of its predictions to the next


def identify(key, out: Path) -> pp.Posterior:
    """Fit a recording, print the table, save the figures."""
    data_key, fit_key, fan_key = jax.random.split(key, 3)
    folder = os.environ.get("PHYSPPL_DATA")
    recorded = real(folder) if folder else simulated(data_key)
    say(f"1. Identify a pendulum: {recorded.source}.")
    with timed("fitted"):
        posterior = pp.fit(fit_key, recorded.dynamics, recorded.data, Laplace())
    say(f"\n{posterior.summary()}\n")
    with timed("drawn: identified.png, fan.png"):
        plots.parameters(posterior).savefig(out / "identified.png")
        title = f"Open-loop predictions of {recorded.held_out}, not used in the fit"
        figure = plots.fan(fan_key, posterior, recorded.states, recorded.actions, restart=recorded.restart, title=title)
        figure.savefig(out / "fan.png")
    return posterior


def real(folder: str) -> RecordedPendulum:
    """Recordings of the real simple pendulum, smoothed, at 100 Hz."""
    train, tests = benchmarks.simple_pendulum(folder)
    [test] = tests["direct collocation"]
    piece = test.between(0.1, 3.11)
    action = pp.ActionSpace(torque=pp.Bounded(-6.0, 6.0, "N m"))  # its motor's rated torque
    dynamics = pp.Dynamics(pendulum.program_with_coulomb, pendulum.state, action, dt=test.dt)
    names = " and ".join(repr(r.name) for r in train)
    return RecordedPendulum(
        f"recordings {names} of a real one, in {folder}", dynamics, benchmarks.transitions(train),
        "a real swing-up ('direct collocation')", piece.state, piece.inputs[:-1], 100,
    )  # fmt: skip


def simulated(key) -> RecordedPendulum:
    """Simulated recordings under random torques, with friction that the program lacks."""
    system, task = pendulum.system(coulomb=FRICTION), pendulum.swing_up
    train, test = (
        pp.episode(k, system, task, RandomPolicy(correlation=0.95), system.transition) for k in jax.random.split(key)
    )
    source = f"a simulated recording, with {FRICTION} N·m of dry friction that the program does not know"
    data = pp.Transitions.from_trajectory(train.states, train.actions)
    held_out = "a second simulated recording"
    return RecordedPendulum(
        source, pendulum.dynamics(), data, held_out, np.asarray(test.states)[:121], np.asarray(test.actions)[:120], 40
    )
