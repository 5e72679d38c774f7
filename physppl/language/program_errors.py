"""Mistakes in a user's program, told with its line and what to write instead."""

import contextlib
import inspect
import linecache
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[1]
# This library's folders: two of its layers are links, whose files are named by either path.
OURS = tuple(
    {f"{folder}/" for layer in (ROOT, ROOT / "models", ROOT / "inference") for folder in (layer, layer.resolve())}
)
OTHERS = ("site-packages", "dist-packages", "<frozen", "<string>")

# (kind of error, words in it, what to write instead); the first that fits is told.
REMEDIES = (
    (
        AssertionError, "unique names",
        "declare each site once, in the program, outside the field: the field runs many times",
    ),
    (
        jax.errors.TracerArrayConversionError, "",
        "NumPy cannot take values of sites, states and inputs, which JAX traces: write jnp for np (jnp.sin, jnp.stack)",
    ),
    (
        jax.errors.TracerBoolConversionError, "",
        "if, while, and, or cannot depend on values of sites, states and inputs: write jnp.where(condition, a, b)",
    ),
    (
        jax.errors.TracerIntegerConversionError, "",
        "an index or a length cannot depend on values of sites, states and inputs: write jnp.take, or a fixed number",
    ),
    (
        jax.errors.ConcretizationTypeError, "",
        "float(), int() and math ask for a number, which sites, states and inputs are not yet: leave float() out, and "
        "write jnp.sin for math.sin",
    ),
    (
        AttributeError, "Tracer has no attribute",
        "state and action are arrays in the order of their spaces: angle, velocity = state, or state[0]",
    ),
    (
        AttributeError, "Space' object has no attribute",
        "a space holds names, not values: inside the field, angle, velocity = state, or state[0]",
    ),
    (
        IndexError, "0-dimensional",
        "time and parameters are numbers without entries; the field is called as field(t, state, action), time first",
    ),
    (TypeError, "string indexing", "state and action are arrays in the order of their spaces: state[0], action[0]"),
    (TypeError, "immutable", "arrays of JAX are not changed in place: return jnp.stack([...]) of the parts"),
    (
        ValueError, "stack arrays",
        "the parts of jnp.stack must be numbers of one kind; the action is an array also where there is one input: "
        "write action[0]",
    ),
)  # fmt: skip


class ProgramError(ValueError):
    """A mistake in a user's program; the message names its line and the remedy."""


@contextlib.contextmanager
def explained(owner: str) -> Iterator[None]:
    """Within it, errors that a user's program raises are raised as ProgramError, with the line and a remedy.

    Errors of this library pass unchanged: they say what is wrong already.
    """
    try:
        yield
    except ProgramError:
        raise
    except Exception as error:
        place = _users_line(error)
        if place is None:
            raise
        text = " ".join(str(error).split())
        text = text.partition(" The problem arose")[0].partition(" This ")[0].partition(" The error occurred")[0]
        remedy = next((r for kind, words, r in REMEDIES if isinstance(error, kind) and words in str(error)), None)
        code = linecache.getline(place.filename, place.lineno or 0).strip()
        at = f"{Path(place.filename).name}, line {place.lineno}, in {place.name}"
        told = f" {remedy[0].upper()}{remedy[1:]}." if remedy else ""
        raise ProgramError(f"{owner}: {at}: {code}\n{type(error).__name__}: {text.rstrip('.')}.{told}") from error


def takes(function: Callable, count: int) -> bool:
    """True if a function can be called with so many arguments, as far as can be told."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # no signature to be had
        pass
    return True


def _users_line(error: Exception) -> traceback.FrameSummary | None:
    """The innermost line of a user's own file that this library ran; None where the library raised the error itself."""
    found, entered, last_is_ours = None, False, False
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(OURS):
            # Code under `with explained(...)` in another file is not run by the library.
            entered, last_is_ours = entered or frame.name != explained.__name__, True
            continue
        last_is_ours = False
        if entered and not any(part in frame.filename for part in OTHERS):
            found = frame
    return None if found is None or last_is_ours else found
