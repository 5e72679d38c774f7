"""One wrong input: how it is made with the library, what its message must say, and the same in plain NumPyro."""

import contextlib
import io
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Mistake:
    """A wrong input.

    Attributes:
        title: the mistake, as a user would tell it.
        ours: makes it with the library, in an empty working folder; must raise.
        words: parts of the message: what is wrong, and the remedy.
        plain: makes it in plain NumPyro and JAX; text that it returns says what came out. None where NumPyro has no
            such thing, which `reason` then says.
    """

    title: str
    ours: Callable[[], Any]
    words: tuple[str, ...]
    plain: Callable[[], Any] | None
    reason: str = ""

    def __post_init__(self):
        assert (self.plain is None) == bool(self.reason), f"{self.title}: either a plain version or a reason"


def write(name: str, text: str) -> str:
    """Write a file into the working folder; returns its name."""
    Path(name).write_text(text)
    return name


def command(line: str, **files: str) -> Callable[[], Any]:
    """The command `physppl` in this process, beside files {name without .csv: text}."""

    def run():
        from physppl.cli import main

        for name, text in files.items():
            write(f"{name}.csv", text)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(shlex.split(line))

    return run
