"""`physppl psrl` and `physppl psal`: a machine learned by acting on it, every episode saved on disk."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
from numpyro import handlers
from tyro.conf import Positional, arg

import physppl as pp
from physppl import plots
from physppl.cli.acting import MACHINES, LearningProblem, animate_last, machine
from physppl.cli.console import list_files, listed, make_writable, numbers, one_line_errors, option, say, timed
from physppl.cli.program_file import learning_file
from physppl.control.loops import HEAD
from physppl.inference import Laplace
from physppl.internal.files import write
from physppl.language.noise import PROCESS
from physppl.planning import ICEM, MPPI, GradientShooting, Planner, RandomShooting
from physppl.plots import loops
from physppl.posterior.summary import summarise

PLANNERS = {  # by name, with the names of its population and iterations arguments
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
    """Options of both commands."""

    episodes: Annotated[int, arg(help="total number; a larger one continues an earlier run")] = 10
    seed: Annotated[int, arg(help="of every random choice")] = 0
    out: Annotated[Path | None, option("of episodes and results", "runs/COMMAND_MODEL", "FOLDER")] = None
    dt: Annotated[float | None, option("s, control step", "the task's own")] = None
    acquisition: Annotated[
        Literal["thompson", "mean"], arg(help="act on a draw of the posterior, or on its mean function")
    ] = "thompson"
    every: Annotated[int | None, option("control steps until another draw", "one an episode")] = None
    planner: Annotated[Literal["icem", "mppi", "gradient", "random"], arg(help="random: random shooting")] = "icem"
    horizon: Annotated[int, arg(help="control steps that a plan looks ahead")] = 40
    population: Annotated[int | None, option("plans compared at once; for gradient, starts", "the planner's")] = None
    iterations: Annotated[int | None, option("refinements per control step; not for random", "the planner's")] = None
    truth: Annotated[tuple[str, ...], option("of the true machine, e.g. mass=2", metavar="NAME=VALUE ...")] = ()
    hold: Annotated[tuple[str, ...], option("that the program fixes, rightly or not", metavar="NAME=VALUE ...")] = ()
    dead_band: Annotated[float, arg(help="in the action's unit: smaller commands do nothing")] = 0.0
    delay: Annotated[int, arg(help="control steps until a command acts")] = 0
    lag: Annotated[float, arg(help="s, time constant of the drive")] = 0.0
    measurement_noise: Annotated[float | None, option("sd of each reading", "0.01 of a machine without noise")] = None


Model = Annotated[Positional[str | None], option(f"one of {', '.join(MACHINES)}", metavar="MODEL")]
Program = Annotated[
    Path | None,
    option("or a Python file of your own; see Planning in the docs", metavar="FILE"),
]


def psrl(model: Model = None, program: Program = None, options: Annotated[Options, arg(name="")] = Options()) -> None:
    """Learn to master a simulated machine: posterior sampling reinforcement learning.

    Each episode acts on a draw of the posterior, planned for the task's reward; the posterior is fitted again after it.
    Every episode is saved as soon as it is over: a command that was stopped continues when it is given again.

    The program has priors on all unknown parameters, friction included where the model has it. --hold fixes one: with
    --truth arm_coulomb=0.002 --hold arm_coulomb=0 the furuta has friction that its program lacks.
    """
    _loop("psrl", model, program, options, pp.TaskReward(), {})


def psal(
    model: Model = None,
    program: Program = None,
    options: Annotated[Options, arg(name="")] = Options(),
    step_sum: Annotated[bool, arg(help="plan for the sum of each step's information, not for the joint one")] = False,
) -> None:
    """Learn a simulated machine's parameters: posterior sampling active learning.

    The loop of psrl, planned for information, within the task's limits, instead of the task's reward.
    """
    _loop("psal", model, program, options, pp.InformationGain(joint=not step_sum), {"step_sum": step_sum})


def _loop(
    command: str, model: str | None, program: Path | None, options: Options, objective: pp.Objective,
    more: dict[str, Any],
) -> None:  # fmt: skip
    with one_line_errors(command, program):
        if options.episodes < 1:
            raise ValueError(f"--episodes must be at least 1; got {options.episodes}.")
        problem = _problem(command, model, program, options)
        out = Path("runs") / f"{command}_{Path(problem.name).stem}" if options.out is None else options.out
        planner, every = _planner(options), options.every
        acquisition = pp.Thompson(every) if options.acquisition == "thompson" else pp.PosteriorMean(every)
        make_writable(out, command)
        chosen = {"model": model, "program": program and str(program)}
        finished = _claim(out, command, chosen | asdict(options) | more)
        say(_opening(command, problem, planner, options))
        if finished:
            say(f"Found {_count(finished)} of this run in {out}; the table begins there.")
        say(f"Episodes are kept in {out}. Stopped at any moment, the same command goes on.\n\n{HEAD}")
        try:
            run = pp.psrl(
                jax.random.key(options.seed), problem.system, problem.task, problem.dynamics, Laplace(), planner,
                options.episodes, objective=objective, acquisition=acquisition, checkpoints=out, report=say,
                progress=False,
            )  # fmt: skip
            _results(run, problem, out)
        except KeyboardInterrupt:
            say(f"\nStopped with {_count(_saved_episodes(out))} in {out}. The same command goes on.")
            raise SystemExit(INTERRUPTED) from None


def _problem(command: str, model: str | None, program: Path | None, options: Options) -> LearningProblem:
    for name, value in (("dead-band", options.dead_band), ("measurement-noise", options.measurement_noise or 0.0)):
        if not value >= 0:
            raise ValueError(f"--{name} must not be negative; got {value:g}.")
    actuator = {"dead_band": options.dead_band, "delay": options.delay, "lag": options.lag}
    changes: dict[str, Any] = {
        "truth": numbers(options.truth, "truth"),
        "measurement_noise": options.measurement_noise,
        "actuator": actuator if any(actuator.values()) else None,
    }
    if (model is None) == (program is None):
        raise ValueError(f"give either a model, one of {', '.join(MACHINES)}, or --program, a Python file.")
    if program is None:
        return machine(str(model), options.dt, hold=numbers(options.hold, "hold"), **changes)
    for name, value in (("dt", options.dt), ("hold", options.hold)):
        if value:
            remedy = (
                "dt is an argument of its dynamics" if name == "dt" else "write the value in the place of the prior"
            )
            raise ValueError(f"--{name} is for the included models; in {program} {remedy}.")
    return learning_file(program, command, **changes)


def _planner(options: Options) -> Planner:
    kind, size, rounds = PLANNERS[options.planner]
    arguments: dict[str, Any] = {"horizon": options.horizon}
    if options.population is not None:
        arguments[size] = options.population
        if kind is ICEM:
            elites = max(1, options.population // 10)
            arguments |= {"elites": elites, "keep": min(6, elites)}
    if options.iterations is not None:
        if rounds is None:
            raise ValueError("--iterations: random shooting refines nothing; give it a larger --population.")
        arguments[rounds] = options.iterations
    return kind(**arguments)


def _claim(out: Path, command: str, settings: dict[str, Any]) -> int:
    """Record the run's settings in the folder and count the episodes already there.

    Raises:
        ValueError: where it has the episodes of a run with other settings, naming option and values.
    """
    settings = {"command": command} | {k: v for k, v in settings.items() if k not in ("out", "episodes")}
    settings = json.loads(json.dumps(settings))  # with JSON's types, as in the file
    path = out / "options.json"
    stored = json.loads(path.read_text()) if path.exists() else settings
    differs = [f"{k} is {v}, was {stored.get(k)}" for k, v in settings.items() if v != stored.get(k)]
    if differs:
        raise ValueError(
            f"{out} holds another run: {'; '.join(differs)}. Give the same options to go on with it, or another --out."
        )
    write(path, (json.dumps(settings, indent=1) + "\n").encode())
    return _saved_episodes(out)


def _saved_episodes(out: Path) -> int:
    return len(list(out.glob("episode_*.npz")))


def _count(episodes: int) -> str:
    return "1 episode" if episodes == 1 else f"{episodes} episodes"


def _opening(command: str, problem: LearningProblem, planner: Planner, options: Options) -> str:
    """Description of the problem, printed before the loop starts."""
    dynamics, task = problem.dynamics, problem.task
    with handlers.seed(rng_seed=0):
        sites = [name for name in dynamics.sites() if name != PROCESS]
    sites += [] if dynamics.knows_noise else ["and the process noise"]
    lines = [
        f"{command} {problem.name}: state {listed(dynamics.state)}; action {listed(dynamics.action)}; "
        f"{task.steps} steps of {dynamics.dt:g} s an episode.",
        f"   To learn: {', '.join(sites)}.",
    ]
    if problem.unknown:
        wrong = "; ".join(f"{k} is {true:.4g}, not {assumed:.4g}" for k, (true, assumed) in problem.unknown.items())
        lines.append(f"   Fixed wrongly in the program: {wrong}.")
    if task.limits is not None:
        limits = (task.limits.index, task.limits.low, task.limits.high)
        texts = (f"{dynamics.state.names[i]} {low:g} to {high:g}" for i, low, high in zip(*limits, strict=True))
        lines.append(f"   Limits: {', '.join(texts)}.")
    drive = {"dead band": options.dead_band, "delay in steps": options.delay, "lag in s": options.lag}
    if isinstance(problem.system, pp.SimulatedSystem):
        drive |= {"measurement noise": float(problem.system.measurement_sd.max())}
    if any(drive.values()):
        lines.append(f"   Drive and sensors: {', '.join(f'{k} {v:g}' for k, v in drive.items() if v)}.")
    lines.append(f"   {type(planner).__name__}: {planner.evaluations} model evaluations a control step.")
    return "\n".join(lines)


def _results(run: pp.Run, problem: LearningProblem, out: Path) -> None:
    """Print the table of parameters, save the figures and the posterior."""
    say(f"\n{summarise(jax.random.key(0), run.posterior, truth=problem.truth or None).text()}\n")
    with timed("drawn and saved"):
        plots.parameters(run.posterior, problem.truth).savefig(out / "parameters.png")
        loops.returns(run).savefig(out / "returns.png")
        animate_last(problem, out / "last_episode.gif", run)
        tree = run.posterior.to_arviz(jax.random.key(0))
        tree.to_netcdf(out / "posterior.nc")
    say(f"   check of the posterior: {tree.attrs['check']}")
    say("".join(f"   - {reason}\n" for reason in tree.attrs["check_reasons"].splitlines()) + f"In {out}:")
    list_files(out, FILES)
