"""Demo of a torque pendulum: identified from a recording, then swung up."""

import os
from pathlib import Path

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


# Of two recordings: words for the one that is fitted, its dynamics and data; words for the one held out, its states
# (T + 1, 2) and actions (T, 1), and the steps from one restart of its predictions to the next.
Recorded = tuple[str, pp.Dynamics, pp.Transitions, str, np.ndarray, np.ndarray, int]


def identify(key, out: Path) -> pp.Posterior:
    """Fit a recording, print the table, save the figures."""
    data_key, fit_key, fan_key = jax.random.split(key, 3)
    folder = os.environ.get("PHYSPPL_DATA")
    source, dynamics, data, held_out, states, actions, restart = real(folder) if folder else simulated(data_key)
    say(f"1. Identify a pendulum: {source}.")
    with timed("fitted"):
        posterior = pp.fit(fit_key, dynamics, data, Laplace())
    say(f"\n{posterior.summary().text()}\n")
    with timed("drawn: identified.png, fan.png"):
        plots.parameters(posterior).savefig(out / "identified.png")
        title = f"Open-loop predictions of {held_out}, not used in the fit"
        plots.fan(fan_key, posterior, states, actions, restart=restart, title=title).savefig(out / "fan.png")
    return posterior


def real(folder: str) -> Recorded:
    """Recordings of the real simple pendulum, smoothed, at 100 Hz."""
    train, tests = benchmarks.simple_pendulum(folder)
    [test] = tests["direct collocation"]
    piece = test.between(0.1, 3.11)
    action = pp.ActionSpace(torque=pp.Bounded(-6.0, 6.0, "N m"))  # its motor's rated torque
    dynamics = pp.Dynamics(pendulum.program_with_coulomb, pendulum.state, action, dt=test.dt)
    source = f"recordings {' and '.join(repr(r.name) for r in train)} of a real one, in {folder}"
    held_out = "a real swing-up ('direct collocation')"
    return source, dynamics, benchmarks.transitions(train), held_out, piece.state, piece.inputs[:-1], 100


def simulated(key) -> Recorded:
    """Simulated recordings under random torques, with friction that the program lacks."""
    system, task = pendulum.system(coulomb=FRICTION), pendulum.swing_up
    train, test = (
        pp.episode(k, system, task, RandomPolicy(correlation=0.95), system.transition) for k in jax.random.split(key)
    )
    source = f"a simulated recording, with {FRICTION} N·m of dry friction that the program does not know"
    data = pp.Transitions.from_trajectory(train.states, train.actions)
    held_out = "a second simulated recording"
    states, actions = np.asarray(test.states)[:121], np.asarray(test.actions)[:120]
    return source, pendulum.dynamics(), data, held_out, states, actions, 40
