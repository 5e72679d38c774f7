"""Running a wrong input, and telling where its error was raised and what it says."""

import contextlib
import io
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(str(ROOT / folder) + "/" for folder in ("physppl", "models", "inference"))


@dataclass(frozen=True)
class Outcome:
    """What came of a wrong input.

    Attributes:
        error: name of the error's class; empty where there was none.
        text: the error's message; without an error what the call returned, if that is text.
        place: who raised it: "physppl", the name of another package, "Python", or "the user's line".
        meant: True if that was on purpose, by a `raise` or an `assert`.
        warning: first warning without an error.
    """

    error: str
    text: str
    place: str
    meant: bool = False
    warning: str = ""


def outcome(call: Callable[[], Any]) -> Outcome:
    """Run a call in an empty working folder.

    JAX's own frames must not be hidden (`jax_traceback_filtering="off"`), or its errors seem to come from its callers.
    """
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                result = call()
        except (Exception, SystemExit) as error:
            text = error.args[0] if isinstance(error, KeyError | SystemExit) and error.args else error
            last = traceback.extract_tb(error.__traceback__)[-1]
            meant = isinstance(error, AssertionError) or (last.line or "").startswith("raise ")
            return Outcome(type(error).__name__, str(text).replace(folder + "/", ""), _place(last.filename), meant)
        finally:
            os.chdir(before)
    told = [w for w in told if not issubclass(w.category, DeprecationWarning | ResourceWarning)]
    warning = f"{told[0].category.__name__}: {told[0].message}" if told else ""
    return Outcome("", result if isinstance(result, str) else "", "", warning=warning)


def _place(path: str) -> str:
    resolved = str(Path(path).resolve())
    if resolved.startswith(OURS):
        return "physppl"
    if "site-packages/" in path:
        return path.rpartition("site-packages/")[2].split("/")[0]
    return "the user's line" if resolved.startswith(str(ROOT)) else "Python"
