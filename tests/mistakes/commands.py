"""Mistakes on the command line: each ends with one line and another exit status than 0."""

import argparse

import numpy as np

from mistakes import trajectories
from mistakes.common import nuts, plainly
from mistakes.entry import Mistake, command, write

NO_COMMAND = "NumPyro has no command"
TIMES = 0.02 * np.arange(300)
CALM = "t,angle,torque\n" + "".join(f"{t:.2f},{0.1 * np.sin(t):.4f},0\n" for t in TIMES)
DEGREES = "t,angle,torque\n" + "".join(f"{t:.2f},{150 * t:.4f},0\n" for t in TIMES)
STRONG = CALM.replace(",0\n", ",20\n")
EMPTY = "t,angle,torque\n" + "".join(f"{t:.2f},,0\n" for t in TIMES)
LATE = """import physppl as pp
import numpy as np
from physppl.models import pendulum
def program():
    mass = pp.physical("mass", 0.1, 2.0)
    return lambda t, x, u: mass * np.sin(x)
dynamics = pp.Dynamics(program, pendulum.state, pendulum.action, dt=0.02, sensors=("angle",))
"""


def identify(rest: str, text: str = CALM, model: str = "pendulum"):
    return command(f"identify --model {model} --data log.csv --out out {rest}", log=text)


def of_program(text: str):
    def run():
        write("machine.py", text)
        return command("identify --program machine.py --data log.csv --out out", log=CALM)()

    return run


def script(text: str = CALM, name: str = "log.csv"):
    """A script of one's own that reads the file and fits the pendulum by hand."""

    def run():
        write("log.csv", text)
        table = np.genfromtxt(name, delimiter=",", names=True)
        return nuts(trajectories.plain, table["angle"], table["torque"][:, None], table["t"])

    return run


def of_words():
    """A script of one's own with argparse."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--delay", type=int)
    return parser.parse_args(["--delay", "soon"])


MISTAKES = [
    Mistake(
        "A command that is misspelt", command("idntify"), ("no command 'idntify'", "Did you mean identify"),
        None, NO_COMMAND,
    ),
    Mistake(
        "`identify`: a machine that is misspelt", command("identify --model pendulm --data log.csv", log=CALM),
        ("there is no model 'pendulm'", "Did you mean 'pendulum'"), None, NO_COMMAND,
    ),
    Mistake(
        "`identify`: no recording", command("identify --model pendulum"),
        ("no recording: --data is empty", "torque [N·m]"),
        None, NO_COMMAND,
    ),
    Mistake(
        "`identify`: neither a machine nor a program", command("identify --data log.csv", log=CALM),
        ("give either --model", "or --program"), None, NO_COMMAND,
    ),
    Mistake(
        "`identify`: a file that is misspelt", command("identify --model pendulum --data lgo.csv", log=CALM),
        ("there is no file lgo.csv", "Did you mean log.csv"), script(name="lgo.csv"),
    ),
    Mistake(
        "`identify`: columns of other names", identify("", CALM.replace("angle", "pos")),
        ("has no column 'angle'", "Known: t, pos, torque"), script(CALM.replace("angle", "pos")),
    ),
    Mistake(
        "`identify`: a unit of another kind", identify("--units angle=m"),
        ("cannot convert 'm' to 'rad'",), None, NO_COMMAND,
    ),
    Mistake(
        "`identify`: a delay in words", identify("--delay soon"),
        ("--delay must be a whole number", "got soon"), of_words,
    ),
    Mistake(
        "`identify`: predictions further than the recording", identify("--horizon 9"), ("are held out, too little",),
        None, NO_COMMAND,
    ),
    Mistake(
        "`identify`: a column in degrees", identify("", DEGREES),
        ("jumps by about half a turn", "--units name=deg"), script(DEGREES),
    ),
    Mistake(
        "`identify`: torques beyond those of the machine", identify("", STRONG),
        ("out of bounds, first 'torque' = 20",),
        script(STRONG),
    ),
    Mistake(
        "`identify`: not one reading", identify("", EMPTY), ("not one sample has a reading",), script(EMPTY),
    ),
    Mistake(
        "`identify`: a program without `dynamics`", of_program("import physppl as pp\n"),
        ("machine.py must define dynamics", "nothing of the name `dynamics`"), None, NO_COMMAND,
    ),
    Mistake(
        "`identify`: a program that does not parse", of_program("dynamics = ("),
        ("machine.py, line 1: '(' was never closed",),
        lambda: compile("dynamics = (", "machine.py", "exec"),
    ),
    Mistake(
        "`identify`: a program with `np.sin` in it", of_program(LATE), ("machine.py, line 6", "write jnp for np"),
        plainly(lambda m, x, u: m * np.sin(x)),
    ),
    Mistake(
        "`identify`: a folder that cannot be written",
        command("identify --model pendulum --data log.csv --out log.csv", log=CALM),
        ("cannot write to --out", "Choose another folder"), None, NO_COMMAND,
    ),
    Mistake(
        "`psrl`: a machine without a task", command("psrl double_pendulum"),
        ("no machine 'double_pendulum' with a task",),
        None, NO_COMMAND,
    ),
    Mistake(
        "`psrl`: a parameter that is misspelt", command("psrl furuta --truth arm_coulmb=1 --out out"),
        ("no parameter 'arm_coulmb'", "Did you mean 'arm_coulomb'"), None, NO_COMMAND,
    ),
    Mistake(
        "`psrl`: a parameter twice", command("psrl furuta --truth width=1 width=2 --out out"),
        ("--truth has width twice",),
        None, NO_COMMAND,
    ),
    Mistake(
        "`psrl`: no episodes", command("psrl pendulum --episodes 0 --out out"),
        ("--episodes must be at least 1; got 0",),
        None, NO_COMMAND,
    ),
    Mistake(
        "`psrl`: an option that its planner does not have",
        command("psrl pendulum --planner random --iterations 2 --out out"), ("random shooting refines nothing",),
        None, NO_COMMAND,
    ),
]  # fmt: skip
