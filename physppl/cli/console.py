"""What the sub-commands share: saying things, timing them, a folder to write to."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from physppl.progress import compile_clock


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def timed(what: str, tell: Callable[[str], None] = say) -> Iterator[dict[str, float]]:
    """Tells when the block is done and how long it took; the seconds are in the dict afterwards."""
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    with compile_clock() as clock:
        yield seconds
    seconds |= {"seconds": time.perf_counter() - start, "compiling": clock.seconds}
    tell(f"   {what} ({seconds['seconds']:.1f} s, of it {clock.seconds:.1f} s compiling)")


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
