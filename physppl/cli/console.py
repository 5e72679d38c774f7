"""Helpers of the sub-commands: output, timing, output folders, name=number options, one-line errors."""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tyro.conf import arg

from physppl.data.spaces import ActionSpace, StateSpace
from physppl.internal.progress import compile_clock
from physppl.internal.units import label


def option(text: str, default: str = "", metavar: str | None = None) -> Any:
    """Annotation of an option whose default, None or (), is not shown; `default` says what it stands for."""
    return arg(help=text, metavar=metavar, help_behavior_hint=f"(default: {default})" if default else lambda _: "")


def say(what: object) -> None:
    print(what, flush=True)


@contextmanager
def timed(what: str, report: Callable[[str], None] = say) -> Iterator[dict[str, float]]:
    """Report when the block is done and how long it took; the dict then holds the seconds."""
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    with compile_clock() as clock:
        yield seconds
    seconds |= {"seconds": time.perf_counter() - start, "compiling": clock.seconds}
    report(f"   {what} ({seconds['seconds']:.1f} s, of it {clock.seconds:.1f} s compiling)")


def make_writable(out: Path, command: str) -> None:
    """Make the folder, or end the command with one line.

    Raises:
        SystemExit: where nothing can be written.
    """
    probe = out / ".physppl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise SystemExit(f"physppl {command}: cannot write to --out {out} ({reason}). Choose another folder.") from None


def listed(space: StateSpace | ActionSpace) -> str:
    """Names of the coordinates, each with its unit."""
    return ", ".join(label(name, unit) for name, unit in zip(space.names, space.units, strict=True))


def list_files(out: Path, files: dict[str, str]) -> None:
    """List those of the files that exist, in the order of the dict, each with its description."""
    for name, what in files.items():
        if (out / name).exists():
            say(f"  {name:24s} {what}")


def numbers(texts: Sequence[str], option: str) -> dict[str, float]:
    """Parse `name=value` texts into {name: value}; true and false are 1 and 0.

    Raises:
        ValueError: for texts of another form, and names given twice.
    """
    values: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        value = {"true": "1", "false": "0"}.get(value.lower(), value)
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"--{option} takes name=number, e.g. {option} arm_coulomb=0.002; got {text}.") from None
        if name in values:
            raise ValueError(f"--{option} has {name} twice.")
        values[name] = number
    return values


@contextmanager
def one_line_errors(command: str, program: Path | None = None) -> Iterator[None]:
    """End the command with one line on errors that a user can correct; for the user's program it names the line.

    Raises:
        SystemExit: with that line.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())

        def of_program(filename: str | None) -> bool:  # Python names a file by its whole path
            return bool(program and filename) and Path(str(filename)).resolve() == Path(str(program)).resolve()

        frames = [f for f in traceback.extract_tb(error.__traceback__) if of_program(f.filename)]
        if isinstance(error, SyntaxError) and of_program(error.filename):
            raise SystemExit(f"physppl {command}: {program}, line {error.lineno}: {error.msg}.") from None
        if frames:
            where = f"{program}, line {frames[-1].lineno}"
            raise SystemExit(f"physppl {command}: {where}: {type(error).__name__}: {text}") from None
        if isinstance(error, OSError | KeyError | ValueError | TypeError | RuntimeError | FloatingPointError):
            raise SystemExit(f"physppl {command}: {text}") from None
        raise
