"""One machine of a fleet: what a hierarchical model believes about it, as the belief about a Dynamics.

The machine is a Dynamics of its own. Its program runs the fleet's model as far as the Dynamics that stands in the
plates, and rebuilds the field there from the machine's own site values: the population's sites, which that field may
close over, are sites of the machine too. The belief about them is the fleet's marginal. A Gaussian one is carried over
to first order, into the coordinates of the machine's own sites, where the ridge between population and machine of a
non-centred prior is a Gaussian's.
"""

import copy
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import biject_to

from physppl.data.transitions import Transitions
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.internal.errors import unknown
from physppl.language.noise import PROCESS
from physppl.language.plates import PlateLayout
from physppl.language.program import visiting
from physppl.language.transition import AbstractTransition
from physppl.posterior.base import Posterior
from physppl.posterior.fleet_program import MachineProgram, Place, open_plates, reach


class MachinePosterior(Posterior):
    """The belief about one machine of a fleet; made by `posterior.machine(index)`.

    It has all that the posterior of a Dynamics has. `samples` and `summary` are of the machine's own sites and of the
    population's; `check` is that of the fleet's fit, and what has to be saved or updated is the fleet's posterior.

    Attributes:
        belief: about the machine's Dynamics: the marginal of the fleet's.
        fleet: the posterior of all machines.
    """

    belief: Any
    fleet: Posterior

    def _draw(self, key: PRNGKeyArray) -> AbstractTransition:
        return self.belief._draw(key)

    def _basis(self, states, actions, times):
        return self.belief._basis(states, actions, times)

    def _samples(self, key: PRNGKeyArray, draws: int):
        return self.belief._samples(key, draws)

    def _noise(self) -> Array:
        return self.belief._noise()

    def _mean(self) -> AbstractTransition:
        return self.belief._mean()

    def _entropy(self) -> Float[Array, ""]:
        return self.belief._entropy()

    def _several(self, key: PRNGKeyArray, count: int) -> AbstractTransition:
        return self.belief._several(key, count)

    def sample_stats(self) -> dict[str, Array]:
        return self.fleet.sample_stats()

    def facts(self) -> dict[str, float]:
        """Of the fleet's fit."""
        return self.fleet.facts()

    def moments(self) -> dict[str, tuple[Array, Array]]:
        """{site: (mean, sd)} of the machine and of the population, deterministic sites included, in the sites' units.

        Of a Gaussian belief to first order at its mode (the delta method), of draws their own. Where a deterministic
        site is bent along a ridge, as a mass that is computed from the population's mean and sd and the machine's
        offset, the first order stays on the ridge that Gaussian draws leave.
        """
        dtype = jnp.result_type(float)
        with jax.enable_x64(True):
            return jax.tree.map(lambda x: x.astype(dtype), _moments(self.belief))

    def save(self, path) -> None:
        """Raises TypeError: the fleet's posterior is saved, and has the machine again once it is loaded."""
        raise TypeError(
            "save: this is one machine of a fleet. Save the fleet's posterior, and ask what is loaded for the machine: "
            f"load(path, model).machine({', '.join(map(str, self.model.program.index))})."
        )


def machine(posterior: Posterior, *index: int, **plates: int) -> MachinePosterior:
    """The belief about one machine of a fleet: `Posterior.machine`.

    Raises:
        TypeError: for a belief whose model has no plate around one Dynamics, or that is held neither as a Gaussian nor
            as draws in virtual space; for an index that is not whole.
        KeyError: for a plate that is not there, with close matches.
        ValueError: for an index out of range, naming plate and size; for a model that cannot be taken apart.
    """
    model, data, space = posterior.model, posterior.data, getattr(posterior, "space", None)
    if isinstance(model, Dynamics):
        raise TypeError(
            f"machine: this belief is about one machine, {model}: its model has no plate around a Dynamics."
        )
    if not isinstance(data, Transitions):
        raise TypeError(f"machine: the fleet's data must be Transitions.stack([...]); got {type(data).__name__}.")
    if not isinstance(space, UnconstrainedSpace) or not (hasattr(posterior, "points") or hasattr(posterior, "factor")):
        raise TypeError(f"machine: needs a Gaussian or draws in virtual space, which {posterior.method} does not keep.")
    if space.params:
        raise TypeError(f"machine: `param` sites have no place in a fleet; got {', '.join(space.params)}.")
    with jax.enable_x64(True):
        dynamics, names, sizes, known = _found(model, data)
        place = Place(names, sizes, _index(names, sizes, index, plates))
        own = copy.copy(dynamics)
        own.program = MachineProgram(model, dynamics.name, place, _unseen(data), known)
        own = own.rebound()
        rows = jax.tree.map(lambda x: x[place.indices], data)
        within = UnconstrainedSpace.of(own, rows)
        carried = _marginal(posterior, own, within, jnp.asarray(place.indices))
    belief = copy.copy(posterior)
    for name, value in ({"model": own, "data": rows, "space": within, "_timing": None} | carried).items():
        object.__setattr__(belief, name, value)
    return MachinePosterior(own, rows, posterior.status, posterior.method, belief, posterior)


def _found(model: Callable, data: Transitions) -> tuple[Dynamics, tuple[str, ...], tuple[int, ...], bool]:
    """The one Dynamics of a fleet's model, names and sizes of the plates around it, whether some sites are known."""
    found = []

    def visit(dynamics, given):
        outside = open_plates()
        PlateLayout(outside, 0, given.batch_shape, dynamics.name)  # as many as the data's axes
        record = dynamics.declare()
        if PROCESS in record.observed:
            raise ValueError(
                f"machine: {PROCESS!r} of {dynamics.name} is conditioned; give the Dynamics its process_noise= instead."
            )
        names, sizes = tuple(p.name for p in outside), tuple(p.size for p in outside)
        found.append((dynamics, names, sizes, bool(record.observed)))

    def run(key):
        with visiting(visit):
            handlers.seed(model, key)(data)
        return jnp.zeros(())

    jax.eval_shape(run, jax.random.key(0))
    if len(found) != 1:
        inside = ", ".join(dynamics.name for dynamics, *_ in found) or "none"
        raise TypeError(f"machine: the model must run one Dynamics in a plate; it runs {len(found)} ({inside}).")
    if not found[0][1]:
        raise TypeError("machine: the model has no plate around its Dynamics, so there is no machine to choose.")
    return found[0]


def _index(names, sizes, index, plates) -> tuple[int, ...]:
    """A checked index, outermost plate first."""
    example = f"machine({', '.join(f'{name}=0' for name in names)})"
    for name in plates:
        if name not in names:
            raise unknown("plate", name, names, "machine: the fleet")
    if index and plates or len(index or plates) != len(names):
        raise TypeError(f"machine: give one index for each plate ({', '.join(names)}), as in {example}.")
    given = index or tuple(plates[name] for name in names)
    for name, size, value in zip(names, sizes, given, strict=True):
        try:
            whole = operator.index(value)
        except TypeError:
            raise TypeError(f"machine: the index of plate {name!r} must be a whole number; got {value!r}.") from None
        if not 0 <= whole < size:
            raise ValueError(f"machine: plate {name!r} has machines 0 to {size - 1}; got {whole}.")
    return tuple(map(operator.index, given))


def _unseen(data: Transitions) -> Transitions:
    """Data of a fleet's shape, of one row that does not count and that no model can compute with."""
    one = jax.tree.map(lambda x: np.full((*data.batch_shape, 1, *x.shape[len(data.batch_shape) + 1 :]), np.nan), data)
    return eqx.tree_at(lambda d: d.valid, one, np.zeros((*data.batch_shape, 1), bool))


def _point(
    posterior, own: Dynamics, within: UnconstrainedSpace, index: Array, z: Float[Array, " P"]
) -> Float[Array, " K"]:
    """The machine's point in its own virtual space, at a point of the fleet's."""
    found, parts = [], posterior.space.split(z)
    posterior.space.trace(lambda data: found.append(reach(posterior.model, data)), z, posterior.data)
    reached, mine = found[0], {}
    values, supports = reached.values(index), reached.record.supports
    for name, shape in zip(within.names, within.shapes, strict=True):
        mine[name] = biject_to(supports[name]).inv(values[name]) if name in values else parts[name]
        if mine[name].shape != shape:
            raise ValueError(
                f"machine: the bounds of {name!r} are {mine[name].shape}, of a machine's own {shape}: they must be the "
                "same for all machines."
            )
    return jnp.concatenate([mine[name].reshape(-1) for name in within.names])


@eqx.filter_jit
def _marginal(posterior, own: Dynamics, within: UnconstrainedSpace, index: Array) -> dict[str, Array]:
    """What the machine's belief holds in place of the fleet's: draws, or mode and factor."""
    point = partial(_point, posterior, own, within, index)
    if hasattr(posterior, "points"):
        return {"points": jax.vmap(jax.vmap(point))(posterior.points)}
    mode, push = jax.linearize(point, posterior.mode)
    along = jax.vmap(push)(posterior.factor)
    along = jnp.concatenate([along, jnp.zeros((len(mode), len(mode)))])
    # Of the reversed columns, so that the factor W of the covariance W' W is lower triangular.
    factor = jnp.linalg.qr(along[:, ::-1], mode="r")[::-1, ::-1]
    return {"mode": mode, "factor": jnp.where(jnp.diagonal(factor) < 0, -1.0, 1.0)[:, None] * factor}


@eqx.filter_jit
def _moments(belief) -> dict[str, tuple[Array, Array]]:
    if hasattr(belief, "points"):
        samples = belief._samples(jax.random.key(0), 0)
        return {name: (jnp.mean(v, (0, 1)), jnp.std(v, (0, 1))) for name, v in samples.items()}
    values, push = jax.linearize(lambda z: belief.space.values(belief.model, z, belief.data), belief.mode)
    tangents = jax.vmap(push)(belief.factor)
    return {name: (value, jnp.linalg.norm(tangents[name], axis=0)) for name, value in values.items()}
