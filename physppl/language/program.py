"""Runs of a program: its sites recorded under any outer handlers, and its field rebuilt from recorded values.

A field made inside a plate closes over stacked parameters and breaks; so the program runs once to record (inside the
plates, under scope, reparam, condition, ...) and again, per plate element, from the recorded values. The recorder is
the innermost handler: it sees each name before other handlers change it and each value after.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.primitives import _PYRO_STACK, Messenger

from physppl.internal import tracing
from physppl.internal.errors import closest

tracing.install()

Program = Callable[[], Any]


class Record(Messenger):
    """A handler that collects {name in the program: value} of the sample and param sites run inside it.

    Attributes:
        values: the site values, with the batch axes of the plates outside.
        event_dims: event axes of each site, which say where the plate axes are.
        own_dims: batch axes of each site that plates inside the program take.
        supports: of each sample site, as the program declares it.
        units: {name outside, as traces show it: unit}.
        observed: sites whose values are data, the program's own or a handler's.
        frames: {plate created inside: the plates outside it as (name, dim, size)}.
        names: all names, as in the program and as outer handlers change them, auxiliary sites of handlers included.
    """

    def __init__(self, owner: str):
        self.owner = owner
        self.values: dict[str, Array] = {}
        self.event_dims: dict[str, int] = {}
        self.own_dims: dict[str, int] = {}
        self.supports: dict[str, Any] = {}
        self.units: dict[str, str] = {}
        self.observed: set[str] = set()
        self.frames: dict[str, list] = {}
        self.names: set[str] = set()
        self._open: list[tuple] = []
        super().__init__()

    def __enter__(self) -> "Record":  # pyright: ignore[reportIncompatibleMethodOverride]
        super().__enter__()
        return self

    def process_message(self, msg) -> None:
        # A handler outside may sample auxiliary sites while it processes this one (reparam does): the stack of open
        # messages tells them apart, and only the outermost is the program's own.
        fn, kind, name = msg.get("fn"), msg.get("type"), msg.get("name")
        unit = (msg.get("infer") or {}).get("physppl", {}).get("unit", "")
        if not self._open and kind in ("sample", "param"):
            if name in self.values:  # before an outer trace refuses it, with less detail
                raise ValueError(f"{self.owner}: site {name!r} is declared twice; every site needs a name of its own.")
            if kind == "sample" and not msg.get("is_observed"):
                self.supports[str(name)] = fn.support  # pyright: ignore[reportOptionalMemberAccess]
            self.own_dims[str(name)] = max((-frame.dim for frame in msg.get("cond_indep_stack", ())), default=0)
        self._open.append((kind, name, getattr(fn, "event_dim", 0), unit))

    def postprocess_message(self, msg) -> None:
        kind, name, event_dim, unit = self._open.pop()
        self.names |= {str(name), str(msg.get("name"))}
        if self._open or name is None:
            return
        if kind == "plate":
            self.frames[name] = list(msg["cond_indep_stack"])
        elif kind in ("sample", "param"):
            value = msg["value"]  # a `param` may be a number
            self.values[name] = jnp.asarray(value) if isinstance(value, float | int) else value
            self.event_dims[name] = event_dim
            self.units[str(msg["name"])] = unit
            if msg.get("is_observed"):
                self.observed.add(str(name))


class Replay(Messenger):
    """A handler that runs a program on given values, hidden from outer handlers.

    Raises:
        KeyError: for a site without a value.
    """

    def __init__(self, values: Mapping[str, Array], owner: str):
        self.values, self.owner, self.used = values, owner, set()
        super().__init__()

    def process_message(self, msg) -> None:
        msg["stop"] = True
        if msg["type"] in ("sample", "param"):
            name = msg["name"]
            if name in self.values:
                self.used.add(name)
                msg["value"] = jnp.asarray(self.values[name])
            elif not msg.get("is_observed"):  # an observed or conditioned site of the program brings its own value
                raise KeyError(f"{self.owner}: no value for site {name!r}.{closest(name, self.values)}")
        elif msg["value"] is None and msg["type"] not in ("deterministic", "plate"):
            raise ValueError(
                f"{self.owner}: a program may only sample sites and compute; it used a {msg['type']!r} statement. "
                "Draw randomness as a sample site."
            )


def rebuild(program: Program, values: Mapping[str, Array], owner: str):
    """The program's field at given site values.

    Raises:
        KeyError: for a site without a value, or a value without a site, with close matches.
    """
    replay = Replay(values, owner)
    with replay:
        field = program()
    for name in values:
        if name not in replay.used:
            raise KeyError(f"{owner} has no site {name!r}.{closest(name, replay.used)}")
    return field


def refuse_unknown(model: Callable, names: set[str], owner: str) -> None:
    """Refuse values that `substitute` or `condition`, wrapped around this model alone, hold for no site of it.

    NumPyro ignores them silently, and a misspelt site is then drawn from its prior. Handlers around a larger model
    may hold values of its other sites, so only those whose chain of wrapped functions ends in this model are read; and
    around a `replay` those of a guide, as NumPyro's SVI has it.

    Raises:
        KeyError: naming the value, with close matches.
    """
    for handler in _PYRO_STACK:
        values = (
            getattr(handler, "data", None) if isinstance(handler, handlers.substitute | handlers.condition) else None
        )
        wrapped, guided = handler, False
        while isinstance(wrapped, Messenger):
            wrapped, guided = wrapped.fn, guided or isinstance(wrapped, handlers.replay)
        if not values or guided or wrapped is not model:
            continue
        for name in values:
            if not any(site == name or site.endswith(f"/{name}") for site in names):
                kind = type(handler).__name__
                raise KeyError(f"{owner}: {kind} gives a value to {name!r}, which is no site.{closest(name, names)}")


class Visit(Messenger):
    """A handler inside which a Dynamics that runs as a model returns `receive(dynamics, data)` instead."""

    def __init__(self, receive: Callable):
        self.receive = receive
        super().__init__()


def visitor() -> Callable | None:
    """The function of the innermost `Visit`, or None."""
    return next((handler.receive for handler in reversed(_PYRO_STACK) if isinstance(handler, Visit)), None)


class UnitTable(Messenger):
    """A handler that collects {site name in traces: unit} of every Dynamics run inside, in `units`.

    The `infer` dicts of sites lose their units under reparam.
    """

    def __init__(self, units: dict[str, str]):
        self.units = units
        super().__init__()


def note_units(units: Mapping[str, str]) -> None:
    """Add units to every `UnitTable` among the outer handlers."""
    for handler in _PYRO_STACK:
        if isinstance(handler, UnitTable):
            handler.units.update(units)
