"""Pages of docs/results that the scripts beside this file write, with command, commit and day; what long ones keep."""

import datetime
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def commit() -> str:
    """The commit that a script ran at, and whether the tree had changes."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=, with changes", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def introduction(doc: str | None) -> str:
    """A script's docstring without its first line and its usage."""
    return (doc or "").split("\n\n", 2)[2].strip()


def write(name: str, title: str, about: str, command: str, text: str) -> None:
    """Write docs/results/NAME.md."""
    when = f"`python examples/{command} --write`, commit {commit()}, {datetime.date.today()}."
    head = f"# {title}\n\n{about}\n\n{when}\n\n"
    (ROOT / "docs" / "results" / f"{name}.md").write_text(head + text + "\n")


def kept(path: Path, work: Callable[[], dict]) -> dict:
    """Result of some work and its seconds, read from disk where it was done before."""
    if not path.exists():
        began = time.perf_counter()
        found = work() | {"seconds": time.perf_counter() - began}
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(found))
        draft.rename(path)
    return json.loads(path.read_text())


def row(name: str, returns, solved) -> str:
    """A row of a Markdown table: median and range of the returns, and how many episodes were solved."""
    returns = np.asarray(returns)
    spread = f"{returns.min():.1f} to {returns.max():.1f}"
    return f"| {name} | {np.median(returns):.1f} | {spread} | {int(np.sum(solved))} of {len(returns)} |"
