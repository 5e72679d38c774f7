"""`physppl demo`: identify a pendulum from a recording, then learn to swing one up."""

import os
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro

import physppl as pp
from physppl import animation, plots, recordings
from physppl.cli.console import make_writable, say, timed
from physppl.inference import Laplace
from physppl.models import pendulum
from physppl.planning import ICEM, RandomPolicy
from physppl.progress import compile_clock
from physppl.summary import summarise
from physppl.units import pretty

FRICTION = 0.1  # N m, the dry friction of the simulated pendulum, of which no program below knows
UNITS = {"mass": "kg", "length": "m", "damping": "N m s/rad", "dry friction": "N m"}
BASELINES = 3  # episodes of the oracle and of random actions


def demo(
    out: Annotated[Path, tyro.conf.arg(help="folder of the figures and the posterior")] = Path("out"),
    seed: Annotated[int, tyro.conf.arg(help="of every random choice")] = 0,
    episodes: Annotated[int, tyro.conf.arg(help="of the swing-up")] = 3,
) -> None:
    """Identify a pendulum from a recording, learn to swing one up, and save what was found.

    The recording is of a real pendulum where PHYSPPL_DATA names the folder of recordings, and simulated elsewhere.
    """
    if episodes < 1:
        raise SystemExit(f"physppl demo: --episodes must be at least 1; got {episodes}.")
    make_writable(out, "demo")
    began = time.perf_counter()
    with compile_clock() as clock:
        identify_key, learn_key, draw_key = jax.random.split(jax.random.key(seed), 3)
        posterior = identify(identify_key, out)
        run = learn(learn_key, episodes, out)
        say("\n3. The posteriors as netCDF, for ArviZ: `xarray.open_datatree(path)`.")
        with timed("saved"):
            posterior.to_arviz(draw_key).to_netcdf(out / "identified.nc")
            run.posterior.to_arviz(draw_key).to_netcdf(out / "swing_up.nc")
    seconds = time.perf_counter() - began
    say(f"\nDone in {seconds:.0f} s, of it {clock.seconds:.0f} s compiling. In {out}:")
    for path in sorted(p for p in out.iterdir() if p.suffix in (".png", ".gif", ".nc")):
        say(f"  {path.name:24s} {FILES.get(path.name, '')}")


FILES = {
    "identified.nc": "posterior of the recorded pendulum",
    "identified.png": "its parameters, posterior over prior",
    "fan.png": "its predictions on a recording that was held out",
    "swing_up.nc": "posterior after the last episode",
    "swing_up_parameters.png": "its parameters, posterior over prior, with the true values",
    "returns.png": "return per episode",
    "phase_portrait.png": "free motion, believed and true",
    "swing_up.gif": "the last episode",
}


class Recorded(NamedTuple):
    """A pendulum that someone recorded."""

    source: str
    dynamics: pp.Dynamics
    data: pp.Transitions
    held_out: str
    states: np.ndarray  # (T + 1, 2) of the held-out recording
    actions: np.ndarray  # (T, 1)
    restart: int  # steps between the beginnings of its predictions


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


def real(folder: str) -> Recorded:
    """The recordings of the real simple pendulum, smoothed, at 100 Hz."""
    train, tests = recordings.simple_pendulum(folder)
    [test] = tests["direct collocation"]
    piece = test.between(0.1, 3.11)
    machine = pp.ActionSpace(torque=pp.Bounded(-6.0, 6.0, "N m"))  # its motor's rated torque
    dynamics = pp.Dynamics(pendulum.program_with_coulomb, pendulum.state, machine, dt=test.dt)
    names = " and ".join(repr(r.name) for r in train)
    return Recorded(
        f"recordings {names} of a real one, in {folder}", dynamics, recordings.transitions(train),
        "a real swing-up ('direct collocation')", piece.state, piece.inputs[:-1], 100,
    )  # fmt: skip


def simulated(key) -> Recorded:
    """Random torques on the simulated pendulum, with friction that the program does not know."""
    system, task = pendulum.system(coulomb=FRICTION), pendulum.swing_up
    train, test = (
        pp.episode(k, system, task, RandomPolicy(correlation=0.95), system.transition) for k in jax.random.split(key)
    )
    source = f"a simulated recording, with {FRICTION} N·m of dry friction that the program does not know"
    data = pp.Transitions.from_trajectory(train.states, train.actions)
    held_out = "a second simulated recording"
    return Recorded(
        source, pendulum.dynamics(), data, held_out, np.asarray(test.states)[:121], np.asarray(test.actions)[:120], 40
    )


def learn(key, episodes: int, out: Path) -> pp.Run:
    """Swing up by posterior sampling, print the table, save the figures and the animation."""
    truth = pendulum.truth | {"dry friction": FRICTION}
    named = ", ".join(f"{name} {value:g} {pretty(UNITS[name])}" for name, value in truth.items())
    say(f"\n2. Learn to swing up a simulated pendulum: {named}.")
    say("   The program has sites for the first three; the dry friction lies outside its prior.")
    say("   The first episode acts from the prior.")
    run_key, oracle_key, random_key, plot_key, draw_key = jax.random.split(key, 5)
    system, task, planner = pendulum.system(coulomb=FRICTION), pendulum.swing_up, ICEM(horizon=40)
    with timed("learned"):
        run = pp.psrl(run_key, system, task, pendulum.dynamics(), Laplace(), planner, episodes)
    with timed("acted: oracle and random"):
        oracle, random = (
            [pp.episode(k, system, task, who, system.transition) for k in jax.random.split(acting_key, BASELINES)]
            for acting_key, who in ((oracle_key, planner), (random_key, RandomPolicy()))
        )
    say(f"\n{table(run, oracle, random)}\n")
    say(f"{summarise(draw_key, run.posterior, truth=pendulum.truth)}\n")
    say("   Where a program lacks a friction, the parameters it has make up for it: compare truth and 'in 90 %'.")
    with timed("drawn: swing_up_parameters.png, returns.png, phase_portrait.png, swing_up.gif"):
        plots.parameters(run.posterior, pendulum.truth).savefig(out / "swing_up_parameters.png")
        figure = plots.returns(run, oracle=[e.returns for e in oracle], random=[e.returns for e in random])
        figure.savefig(out / "returns.png")
        visited = np.asarray(run.episodes.states)
        figure = plots.phase_portrait(plot_key, run.posterior, system.transition, visited=visited)
        figure.savefig(out / "phase_portrait.png")
        last = jax.tree.map(lambda x: np.asarray(x[-1]), run.episodes)
        title = f"episode {episodes}"
        animation.animate_pendulum(out / "swing_up.gif", last.states, last.actions, pendulum.dynamics(), title=title)
    return run


def table(run: pp.Run, oracle: list[pp.Episode], random: list[pp.Episode]) -> str:
    """Episodes of the agent, and the means of the baselines, in one table."""
    solved = pendulum.swing_up.solved
    assert solved is not None  # this task judges its episodes
    lines = [f"{'episode':>16s}{'return':>10s}{'solved':>8s}{'fit s':>8s}{'act s':>8s}{'of it compiling s':>19s}"]
    for i, (value, s) in enumerate(zip(np.asarray(run.episodes.returns), run.seconds, strict=True)):
        word = "yes" if solved(run.episodes.states[i]) else "no"
        lines.append(f"{i + 1:16d}{value:10.1f}{word:>8s}{s['fit']:8.2f}{s['act']:8.2f}{s['compile']:19.2f}")
    for name, episodes in (("oracle, mean", oracle), ("random, mean", random)):
        value = np.mean([float(e.returns) for e in episodes])
        count = sum(bool(solved(e.states)) for e in episodes)
        lines.append(f"{name:>16s}{value:10.1f}{f'{count}/{len(episodes)}':>8s}{'-':>8s}{'-':>8s}{'-':>19s}")
    return "\n".join(lines)
