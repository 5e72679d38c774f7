"""Progress bars, and a clock for the time spent compiling."""

import sys
import threading
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from tqdm.auto import tqdm

_listeners: list["Clock"] = []


COMPILED = "/jax/core/compile/backend_compile_duration"
TRACED = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")


class Timing(NamedTuple):
    """Duration of a fit in seconds, and the part spent compiling."""

    seconds: float
    compiling: float

    def __str__(self) -> str:
        return f"fitted in {self.seconds:.2f} s, {self.compiling:.2f} s of it compiling"


class Clock:
    """Seconds spent and programs made by XLA's compiler while the clock ran; beside them, seconds of tracing and
    lowering, where inner functions of a traced function count twice."""

    def __init__(self):
        self.seconds, self.programs, self.tracing = 0.0, 0, 0.0
        self.thread = threading.get_ident()


def _on_event(event: str, duration_secs: float, **details: Any) -> None:
    del details
    for clock in tuple(_listeners):
        if clock.thread != threading.get_ident():  # JAX reports in the thread that compiles
            continue
        if event == COMPILED:
            clock.seconds += duration_secs
            clock.programs += 1
        elif event in TRACED:
            clock.tracing += duration_secs


jax.monitoring.register_event_duration_secs_listener(_on_event)


@contextmanager
def compile_clock():
    """Measure compilation inside the block: `with compile_clock() as clock: ...; clock.seconds, clock.programs`."""
    clock = Clock()
    _listeners.append(clock)
    try:
        yield clock
    finally:
        _listeners.remove(clock)


def bar(iterable, title: str, enabled: bool | None = None):
    """Wrap an iterable in a tqdm bar that shows after two seconds; by default only on a terminal."""
    shown = sys.stderr.isatty() if enabled is None else enabled
    return tqdm(iterable, desc=title, delay=2.0, disable=not shown, leave=False)
