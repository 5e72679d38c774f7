"""The command `physppl`: one module per sub-command."""

from collections.abc import Sequence

from physppl.cli.demo import demo
from physppl.cli.identify import identify
from physppl.cli.loop import psal, psrl

COMMANDS = {"demo": demo, "identify": identify, "psal": psal, "psrl": psrl}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a sub-command; `physppl --help` lists them."""
    import tyro

    app = tyro.extras.SubcommandApp()
    for name, command in COMMANDS.items():
        app.command(name=name)(command)
    app.cli(prog="physppl", description="Physical dynamics as NumPyro programs.", args=arguments)
