"""The command `physppl`: one module per sub-command."""

import difflib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from physppl.cli.demo import demo
from physppl.cli.identify import identify
from physppl.cli.loop import psal, psrl

COMMANDS = {"demo": demo, "identify": identify, "psal": psal, "psrl": psrl}
COMPLETION = "--tyro-print-completion"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a sub-command; `physppl --help` lists them, `physppl --version` tells the version."""
    import tyro

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if COMPLETION in arguments:  # one script completes all commands, whichever is asked for it
        arguments = arguments[arguments.index(COMPLETION) :]
    first = arguments[0] if arguments else "-"
    if first in ("--version", "-V", "version"):
        print(f"physppl {version('physppl')}")
        return
    if first == "help":  # help, or help of a command
        arguments = [*arguments[1:2], "--help"]
        first = arguments[0]
    elif not first.startswith("-") and first not in COMMANDS:
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SystemExit(f"physppl: there is no command {first!r}.{hint} Commands: {', '.join(COMMANDS)}.")
    app = tyro.extras.SubcommandApp()
    for name, command in COMMANDS.items():  # a list of commands has a line of each, a command's help all that it says
        app.command(name=name, help=None if first in COMMANDS else str(command.__doc__).splitlines()[0])(command)
    config = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)
    app.cli(prog="physppl", description="Physical dynamics as NumPyro programs.", args=arguments, config=config)
