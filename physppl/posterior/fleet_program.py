"""The program of one machine of a fleet: the fleet's model up to its Dynamics, then the program of that."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.primitives import _PYRO_STACK, Messenger

from physppl.data.transitions import Transitions
from physppl.dynamics import Dynamics
from physppl.language.noise import PROCESS
from physppl.language.plates import PlateLayout
from physppl.language.program import Record, Replay, Visit

ALONE = "the posterior of one machine is not fitted, updated or scored: do that with the fleet's model and posterior"


class Place(NamedTuple):
    """Position of a machine: the plates around its Dynamics, outermost first."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    indices: tuple[int, ...]


class MachineProgram:
    """The program of one machine: the fleet's model up to its Dynamics, then its program at the machine's values.

    Programs of different machines are equal, and share what is compiled: they differ in the prior that their sites are
    drawn from, not in the field at given values. Where sites in the plates are `known`, each machine's are its own.
    """

    def __init__(self, fleet: Callable, name: str, place: Place, inputs: Transitions, known: bool):
        self.fleet, self.place, self.inputs, self.known = fleet, place, inputs, known
        where = ", ".join(f"{n} {i}" for n, i in zip(place.names, place.indices, strict=True))
        self.__name__ = f"{name}, {where}"

    @property
    def index(self) -> tuple[int, ...]:
        return self.place.indices

    def __eq__(self, other) -> bool:
        return isinstance(other, MachineProgram) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self):
        place = self.place if self.known else self.place._replace(indices=())
        return (self.fleet, place, *(np.shape(x) for x in jax.tree.leaves(self.inputs)))

    def __call__(self):
        hidden = Hidden()
        with hidden:
            reached = run_to_dynamics(self.fleet, self.inputs, hidden)
        own, record = reached.values(self.index), reached.record
        own.pop(PROCESS, None)
        for name in own:
            if name in record.supports and name not in record.observed:
                prior = Implied(own[name], record.supports[name], record.event_dims[name])
                unit = next((u for n, u in record.units.items() if n == name or n.endswith(f"/{name}")), "")
                own[name] = jnp.asarray(numpyro.sample(name, prior, infer={"physppl": {"unit": unit}}))
        with Answered(own, f"Dynamics({self.__name__})"):
            return reached.dynamics.program()


class Reached(NamedTuple):
    """A Dynamics within its plates during a run of the model, whose values its program closes over."""

    dynamics: Dynamics
    record: Record
    layout: PlateLayout

    def values(self, index) -> dict[str, Array]:
        """{name in the program: value} of one machine."""
        record, lead = self.record, self.layout.lead
        own = ((k, lead(v, record.event_dims[k], record.own_dims[k])) for k, v in record.values.items())
        return {name: value[tuple(index)] for name, value in own}


def run_to_dynamics(fleet: Callable, data: Transitions, hidden: "Hidden | None" = None) -> Reached:
    """Run a fleet's model, and at its Dynamics the program of that; `hidden` answers all sites from there on."""
    reached = []

    def visit(dynamics, rows):
        layout = PlateLayout(open_plates(), 0, rows.batch_shape, dynamics.name)
        if hidden is not None:
            hidden.closed = True
        reached.append(Reached(dynamics, dynamics.declare(), layout))
        return rows.outcomes

    with Visit(visit):
        fleet(data)
    return reached[0]


def open_plates() -> list[numpyro.plate]:
    """The plates that are open, outermost first."""
    return sorted((h for h in _PYRO_STACK if isinstance(h, numpyro.plate)), key=lambda plate: plate.dim)


class Hidden(Messenger):
    """A handler that, once closed, answers all sites inside by prior draws that are hidden from outer handlers."""

    def __init__(self):
        self.closed, self.key = False, jax.random.key(0)
        for handler in _PYRO_STACK:  # a seed outside gives the draw its key; without one no draw is used
            if isinstance(handler, handlers.seed):
                key: Any = handler.rng_key
                handler.rng_key, self.key = jax.random.split(key)
        super().__init__()

    def process_message(self, msg) -> None:
        if not self.closed:
            return
        msg["stop"] = True
        if msg["type"] == "sample" and not msg["is_observed"] and msg["value"] is None:
            self.key, msg["kwargs"]["rng_key"] = jax.random.split(self.key)


class Answered(Replay):
    """A replay whose deterministic sites are visible to outer handlers."""

    def process_message(self, msg) -> None:
        if msg["type"] != "deterministic":
            super().process_message(msg)


class Implied(dist.Distribution):
    """A machine's value under the fleet's prior, drawn jointly with the rest; its marginal density is not known."""

    def __init__(self, value, support, event_dim: int):
        self.value, self._support = jnp.asarray(value), support
        shape = self.value.shape
        super().__init__(shape[: len(shape) - event_dim], shape[len(shape) - event_dim :])

    @property
    def support(self):
        return self._support

    def sample(self, key, sample_shape=()):
        return jnp.broadcast_to(self.value, (*sample_shape, *self.value.shape))

    def log_prob(self, value, intermediates=None):
        raise NotImplementedError(f"machine: {ALONE}.")
