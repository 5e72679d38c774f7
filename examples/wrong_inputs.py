"""Wrong inputs: what the library says to each, and what plain NumPyro does with it.

    python examples/wrong_inputs.py [--write]

Two hundred mistakes of first weeks, in Python and on the command line, each made twice: with physppl, and in plain
NumPyro on a model of the same machine written by hand. Both columns are what happened when this script ran, told apart
automatically: by whether an error was raised, by the file that raised it, and by whether that was on purpose (a `raise`
or an `assert`). The model by hand is that of a pendulum of 1 kg, by 100 draws of NUTS after 100 of warm-up. Where
NumPyro has no such thing, no reader of files, no units, no planner and no command, the table says so, and nothing is
held against it. The default tests check for each row that physppl's error is its own, and has the remedy.
"""

import argparse
import re
import sys
from collections import Counter

import jax
import page

sys.path.insert(0, str(page.ROOT / "tests"))

from mistakes.entry import Mistake  # noqa: E402
from mistakes.kinds import KINDS  # noqa: E402
from mistakes.run import Outcome, outcome  # noqa: E402

SILENT, WARNED, DEEP, OWN, OTHER, NONE = (
    "runs, no word", "runs, with a warning", "error from deep in JAX", "NumPyro's own error",
    "error of Python or of another package", "no such thing",
)  # fmt: skip
HEAD = "| the mistake | what physppl says | what plain NumPyro does |\n|---|---|---|\n"
JAX = ("jax", "jaxlib", "diffrax", "equinox", "lineax", "optimistix")


def cell(text: str, width: int) -> str:
    """Text as a cell of a Markdown table, of at most so many characters."""
    steady = re.sub(r" at 0x[0-9a-f]+", "", text)  # addresses differ from run to run
    short = " ".join(steady.split())
    if len(short) > width:  # what is wrong stands at the beginning, what to do at the end
        half = width // 2
        short = f"{short[:half].rsplit(' ', 1)[0]} … {short[-half:].split(' ', 1)[-1]}"
    return short.replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("*", "\\*")


def plainly(mistake: Mistake) -> tuple[str, str]:
    """Class of what plain NumPyro does, and the cell."""
    if mistake.plain is None:
        return NONE, f"{NONE}: {cell(mistake.reason, 90)}"
    found = outcome(mistake.plain)
    if not found.error:
        kind, said = (WARNED, found.warning) if found.warning else (SILENT, found.text)
        return kind, f"**{kind}**" + (f": {cell(said, 120)}" if said else "")
    said = f"{found.error}: {cell(found.text or 'no message', 100)}"
    if found.place in JAX:
        return DEEP, f"{DEEP if found.place.startswith('jax') else f'error from deep in {found.place}'}: {said}"
    if found.place == "numpyro":
        return (OWN, f"{OWN}: {said}") if found.meant else (DEEP, f"error from deep in NumPyro: {said}")
    places = {"the user's line": "Python's error at the user's line", "Python": "Python's error"}
    return OTHER, f"{places.get(found.place, f'error of {found.place}')}: {said}"


def ours(found: Outcome) -> str:
    if not found.error:
        return "**runs, no word**"
    name = "exit status 1" if found.error == "SystemExit" else found.error
    return f"{name}: {cell(found.text, 320)}"


def measured() -> str:
    """The counts and the table."""
    rows, counts, silent = [], Counter(), 0
    for kind, mistakes in KINDS.items():
        rows.append(f"| **{kind}** | | |")
        for mistake in mistakes:
            found = outcome(mistake.ours)
            silent += not found.error or found.place != "physppl" or not found.meant
            group, plain = plainly(mistake)
            counts[group] += 1
            rows.append(f"| {mistake.title} | {ours(found)} | {plain} |")
            print(rows[-1], flush=True)
        jax.clear_caches()
    total = sum(counts.values())
    told = "; ".join(f"{group}: {counts[group]}" for group in (SILENT, WARNED, DEEP, OWN, OTHER, NONE) if counts[group])
    return (
        f"{total} wrong inputs. physppl refuses {total - silent} by an error of its own, {silent} not. Plain NumPyro: "
        f"{told}. Errors from deep inside NumPyro, Diffrax and others count with JAX's.\n\n{HEAD}" + "\n".join(rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write docs/results/wrong_inputs.md")
    write = parser.parse_args().write
    jax.config.update("jax_traceback_filtering", "off")  # or JAX's errors seem to come from their callers
    text = measured()
    print(text.split("\n", 1)[0])
    if write:
        page.write("wrong_inputs", "Wrong inputs", page.introduction(__doc__), "wrong_inputs.py", text)


if __name__ == "__main__":
    main()
