"""Pages of docs/results that the scripts beside this file write: with the command, the commit and the day."""

import datetime
import subprocess
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
    """docs/results/NAME.md."""
    when = f"`python examples/{command} --write`, commit {commit()}, {datetime.date.today()}."
    head = f"# {title}\n\n{about}\n\n{when}\n\n"
    (ROOT / "docs" / "results" / f"{name}.md").write_text(head + text + "\n")


def row(name: str, returns, solved) -> str:
    """A row of a Markdown table: median and range of the returns, and how many episodes were solved."""
    returns = np.asarray(returns)
    spread = f"{returns.min():.1f} to {returns.max():.1f}"
    return f"| {name} | {np.median(returns):.1f} | {spread} | {int(np.sum(solved))} of {len(returns)} |"
