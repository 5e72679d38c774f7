"""`physppl psrl` and `physppl psal`: a simulated machine learned by acting on it, every episode kept on disk."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
from tyro.conf import Positional, arg

import physppl as pp
from physppl import plots
from physppl.cli.acting import MACHINES, LearningProblem, animate, machine
from physppl.cli.console import list_files, make_writable, mistakes, numbers, say, timed
from physppl.control.loops import HEAD
from physppl.inference import Laplace
from physppl.internal.files import write
from physppl.internal.units import label
from physppl.planning import ICEM, MPPI, GradientShooting, Planner, RandomShooting
from physppl.plots import loops
from physppl.posterior.summary import summarise

PLANNERS = {  # by name, with what each calls its population and its iterations
    "icem": (ICEM, "population", "iterations"),
    "mppi": (MPPI, "population", "iterations"),
    "gradient": (GradientShooting, "starts", "steps"),
    "random": (RandomShooting, "population", None),
}
INTERRUPTED = 130  # as shells report it
FILES = {
    "parameters.png": "posterior over prior, with the true values",
    "returns.png": "return per episode",
    "last_episode.gif": "the last episode",
    "posterior.nc": "the posterior for ArviZ: xarray.open_datatree(path)",
}


@dataclass(frozen=True)
class Options:
    """What both commands take."""

    episodes: Annotated[int, arg(help="more than were asked for before go on where those ended")] = 10
    seed: Annotated[int, arg(help="of every random choice")] = 0
    out: Annotated[Path | None, arg(help="folder of episodes and results (default: runs/COMMAND_MODEL)")] = None
    dt: Annotated[float | None, arg(help="s, control step (default: the task's own)")] = None
    acquisition: Annotated[
        Literal["thompson", "mean"], arg(help="act on a draw of the belief, or on its mean function")
    ] = "thompson"
    every: Annotated[int | None, arg(help="control steps until another draw (default: one an episode)")] = None
    planner: Annotated[Literal["icem", "mppi", "gradient", "random"], arg(help="random: random shooting")] = "icem"
    horizon: Annotated[int, arg(help="control steps that a plan looks ahead")] = 40
    population: Annotated[int | None, arg(help="plans compared at once; of gradient, started")] = None
    iterations: Annotated[int | None, arg(help="refinements a control step; not of random")] = None
    truth: Annotated[tuple[str, ...], arg(help="name=value of the true machine, e.g. arm_coulomb=0.002")] = ()
    hold: Annotated[tuple[str, ...], arg(help="name=value that the program takes for known, rightly or not")] = ()
    dead_band: Annotated[float, arg(help="in the action's unit: commands this small do nothing")] = 0.0
    delay: Annotated[int, arg(help="control steps until a command acts")] = 0
    lag: Annotated[float, arg(help="s, time constant of the drive")] = 0.0
    measurement_noise: Annotated[
        float | None, arg(help="sd of each reading (default: 0.01 where the machine has no noise)")
    ] = None


Model = Annotated[Positional[str], arg(metavar="MODEL", help=f"one of {', '.join(MACHINES)}")]


def psrl(model: Model, options: Annotated[Options, arg(name="")] = Options()) -> None:
    """Learn to master a simulated machine: posterior sampling reinforcement learning.

    Each episode acts on a draw of the belief, planned for the task's reward; the belief is fitted again after it. Every
    episode is kept as soon as it is over: a command that was stopped goes on when it is given again.

    The program has priors for what it does not know, friction included where the model has it. --hold takes that away:
    with --truth arm_coulomb=0.002 --hold arm_coulomb=0 the furuta has friction of which its program does not know.
    """
    _loop("psrl", model, options, pp.TaskReward(), {})


def psal(
    model: Model,
    options: Annotated[Options, arg(name="")] = Options(),
    step_sum: Annotated[bool, arg(help="plan for the sum of what each step tells alone, not for all of them")] = False,
) -> None:
    """Learn a simulated machine's parameters: posterior sampling active learning.

    As psrl, but planned for what there is to learn, within the task's limits, instead of for its reward.
    """
    _loop("psal", model, options, pp.InformationGain(joint=not step_sum), {"step_sum": step_sum})


def _loop(command: str, model: str, options: Options, objective: pp.Objective, more: dict[str, Any]) -> None:
    out = Path("runs") / f"{command}_{model}" if options.out is None else options.out
    with mistakes(command):
        if options.episodes < 1:
            raise ValueError(f"--episodes must be at least 1; got {options.episodes}.")
        chosen = _machine(model, options)
        planner, acquisition = _planner(options), _acquisition(options)
        make_writable(out, command)
        found = _claim(out, command, {"model": model} | asdict(options) | more)
        say(_opening(command, chosen, planner, options))
        if found:
            say(f"Found {_count(found)} of this run in {out}; the table begins there.")
        say(f"Episodes are kept in {out}. Stopped at any moment, the same command goes on.\n\n{HEAD}")
        try:
            run = pp.psrl(
                jax.random.key(options.seed), chosen.system, chosen.task, chosen.dynamics, Laplace(), planner,
                options.episodes, objective=objective, acquisition=acquisition, checkpoints=out, report=say,
                progress=False,
            )  # fmt: skip
            _results(run, chosen, out)
        except KeyboardInterrupt:
            say(f"\nStopped with {_count(_kept(out))} in {out}. The same command goes on.")
            raise SystemExit(INTERRUPTED) from None


def _machine(model: str, options: Options) -> LearningProblem:
    for name, value in (("dead-band", options.dead_band), ("measurement-noise", options.measurement_noise or 0.0)):
        if not value >= 0:
            raise ValueError(f"--{name} must not be negative; got {value:g}.")
    actuator = {"dead_band": options.dead_band, "delay": options.delay, "lag": options.lag}
    return machine(
        model,
        options.dt,
        truth=numbers(options.truth, "truth"),
        hold=numbers(options.hold, "hold"),
        measurement_noise=options.measurement_noise,
        actuator=actuator if any(actuator.values()) else None,
    )


def _planner(options: Options) -> Planner:
    kind, size, rounds = PLANNERS[options.planner]
    chosen: dict[str, Any] = {"horizon": options.horizon}
    if options.population is not None:
        chosen[size] = options.population
        if kind is ICEM:
            elites = max(1, options.population // 10)
            chosen |= {"elites": elites, "keep": min(6, elites)}
    if options.iterations is not None:
        if rounds is None:
            raise ValueError("--iterations: random shooting refines nothing; give it a larger --population.")
        chosen[rounds] = options.iterations
    return kind(**chosen)


def _acquisition(options: Options) -> pp.Acquisition:
    return pp.Thompson(options.every) if options.acquisition == "thompson" else pp.PosteriorMean(options.every)


def _claim(out: Path, command: str, told: dict[str, Any]) -> int:
    """Episodes of this run that the folder has already.

    Raises:
        ValueError: where it has those of a run that was told something else, naming option and values.
    """
    told = {"command": command} | {k: v for k, v in told.items() if k not in ("out", "episodes")}
    told = json.loads(json.dumps(told))  # as the file has it
    path = out / "options.json"
    known = json.loads(path.read_text()) if path.exists() else told
    differs = [f"{k} is {told[k]}, was {known.get(k)}" for k in told if told[k] != known.get(k)]
    if differs:
        raise ValueError(
            f"{out} holds another run: {'; '.join(differs)}. Give the same options to go on with it, or another --out."
        )
    write(path, (json.dumps(told, indent=1) + "\n").encode())
    return _kept(out)


def _kept(out: Path) -> int:
    return len(list(out.glob("episode_*.npz")))


def _count(episodes: int) -> str:
    return "1 episode" if episodes == 1 else f"{episodes} episodes"


def _opening(command: str, chosen: LearningProblem, planner: Planner, options: Options) -> str:
    """What is about to be learned."""
    dynamics, task = chosen.dynamics, chosen.task
    named = [
        ", ".join(label(n, u) for n, u in zip(s.names, s.units, strict=True)) for s in (dynamics.state, dynamics.action)
    ]
    sites = [name for name in chosen.truth if name in chosen.system.transition.sites]
    lines = [
        f"{command} {chosen.name}: state {named[0]}; action {named[1]}; "
        f"{task.steps} steps of {dynamics.dt:g} s an episode.",
        f"   To learn: {', '.join(sites)}, and the process noise.",
    ]
    if chosen.unknown:
        wrong = "; ".join(f"{k} is {true:.4g}, not {taken:.4g}" for k, (true, taken) in chosen.unknown.items())
        lines.append(f"   Of what the program does not know: {wrong}.")
    if task.limits is not None:
        limits = (task.limits.index, task.limits.low, task.limits.high)
        kept = ", ".join(f"{dynamics.state.names[i]} {low:g} to {high:g}" for i, low, high in zip(*limits, strict=True))
        lines.append(f"   Limits: {kept}.")
    drive = {"dead band": options.dead_band, "delay in steps": options.delay, "lag in s": options.lag}
    drive |= {"measurement noise": float(chosen.system.measurement_sd.max())}
    if any(drive.values()):
        lines.append(f"   Drive and sensors: {', '.join(f'{k} {v:g}' for k, v in drive.items() if v)}.")
    lines.append(f"   {type(planner).__name__}: {planner.evaluations} model evaluations a control step.")
    return "\n".join(lines)


def _results(run: pp.Run, chosen: LearningProblem, out: Path) -> None:
    """The table of parameters, the figures, the posterior."""
    say(f"\n{summarise(jax.random.key(0), run.posterior, truth=chosen.truth)}\n")
    with timed("drawn and saved"):
        plots.parameters(run.posterior, chosen.truth).savefig(out / "parameters.png")
        loops.returns(run).savefig(out / "returns.png")
        last = jax.tree.map(lambda x: x[-1], run.episodes)
        title = f"episode {len(run.seconds)}"
        animate(chosen.name, out / "last_episode.gif", last, chosen.dynamics, title)
        tree = run.posterior.to_arviz(jax.random.key(0))
        tree.to_netcdf(out / "posterior.nc")
    say(f"   check of the belief: {tree.attrs['check']}")
    say("".join(f"   - {reason}\n" for reason in tree.attrs["check_reasons"].splitlines()) + f"In {out}:")
    list_files(out, FILES)
