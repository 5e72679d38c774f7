"""`physppl demo`: learn to swing up a Furuta pendulum; or identify a torque pendulum, then learn to swing one up."""

import time
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from physppl.cli import demo_furuta, demo_pendulum, learning
from physppl.cli.console import list_files, make_writable, option, say, timed
from physppl.internal.progress import compile_clock

EPISODES = {"furuta": 4, "pendulum": 3}


def demo(
    model: Annotated[Literal["furuta", "pendulum"], tyro.conf.arg(help="the machine")] = "furuta",
    out: Annotated[Path, tyro.conf.arg(help="of the figures and the posterior", metavar="FOLDER")] = Path("out"),
    seed: Annotated[int, tyro.conf.arg(help="of every random choice")] = 0,
    episodes: Annotated[int | None, option("of the swing-up", "furuta 4, pendulum 3")] = None,
) -> None:
    """Learn to swing up a simulated machine that has friction its program lacks, and save the results.

    The pendulum is first identified from a recording: of a real one if PHYSPPL_DATA names the folder of recordings,
    else of a simulated one.
    """
    episodes = EPISODES[model] if episodes is None else episodes
    if episodes < 1:
        raise SystemExit(f"physppl demo: --episodes must be at least 1; got {episodes}.")
    make_writable(out, "demo")
    start = time.perf_counter()
    machine = demo_furuta if model == "furuta" else demo_pendulum
    with compile_clock() as clock:
        identify_key, learn_key, draw_key = jax.random.split(jax.random.key(seed), 3)
        posteriors = {}
        if model == "pendulum":
            posteriors["identified.nc"] = demo_pendulum.identify(identify_key, out)
            say("")
        steps = len(posteriors) + 1
        posteriors["swing_up.nc"] = learning.learn(learn_key, steps, machine.learning(), episodes, out).posterior
        subject = "The posterior" if steps == 1 else "The posteriors"
        say(f"\n{steps + 1}. {subject} as netCDF, for ArviZ: `xarray.open_datatree(path)`.")
        with timed("saved"):
            for name, posterior in posteriors.items():
                posterior.to_arviz(draw_key).to_netcdf(out / name)
    say(f"\nDone in {time.perf_counter() - start:.0f} s, of it {clock.seconds:.0f} s compiling. In {out}:")
    list_files(out, machine.FILES | learning.FILES)
