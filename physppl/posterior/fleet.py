"""One machine of a fleet: the posterior of a hierarchical model, marginalised to one machine's Dynamics.

The machine is a Dynamics of its own. Its program runs the fleet's model up to the Dynamics inside the plates, and
rebuilds the field there from the machine's own site values: the population's sites, which that field may close over,
are sites of the machine too. Their distribution is the fleet's marginal. A Gaussian is transformed to first order into
the coordinates of the machine's own sites, in which the ridge between population and machine of a non-centred prior is
Gaussian.
"""

import copy
import operator
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from numpyro import handlers
from numpyro.distributions import biject_to

from physppl.data.transitions import Transitions
from physppl.density.forms import DrawsForm, Form, GaussianForm
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.internal.errors import unknown
from physppl.language.noise import PROCESS
from physppl.language.plates import PlateLayout
from physppl.language.program import Visit
from physppl.posterior.base import AbstractPosterior
from physppl.posterior.fleet_program import MachineProgram, Place, open_plates, run_to_dynamics


def marginal(posterior: AbstractPosterior, *index: int, **plates: int) -> AbstractPosterior:
    """The posterior of one machine of a fleet, about a Dynamics of its own: see `Posterior.machine`.

    Raises:
        TypeError: for a posterior whose model has no plate around one Dynamics, or that is held neither as a Gaussian
            nor as draws in unconstrained space; for an index that is not whole.
        KeyError: for a plate that is not there, with close matches.
        ValueError: for an index out of range, naming plate and size; for a model that cannot be marginalised.
    """
    model, data = posterior.model, posterior.data
    if isinstance(model, Dynamics):
        raise TypeError(
            f"machine: this posterior is about one machine, {model}: its model has no plate around a Dynamics."
        )
    if not isinstance(data, Transitions):
        raise TypeError(f"machine: the fleet's data must be Transitions.stack([...]); got {type(data).__name__}.")
    form = posterior.unconstrained()
    if form is None:
        raise TypeError(
            f"machine: needs a Gaussian or draws in unconstrained space, which {posterior.method} does not keep."
        )
    if form.space.params:
        raise TypeError(f"machine: `param` sites have no place in a fleet; got {', '.join(form.space.params)}.")
    with jax.enable_x64(True):
        dynamics, names, sizes, has_observed = find_dynamics(model, data)
        place = Place(names, sizes, _index(names, sizes, index, plates))
        machine = copy.copy(dynamics)
        machine.program = MachineProgram(model, dynamics.name, place, _no_data(data), has_observed)
        machine = machine.rebound()
        rows = jax.tree.map(lambda x: x[place.indices], data)
        space = UnconstrainedSpace.of(machine, rows)
        arrays = _marginal_arrays(form, model, data, space, jnp.asarray(place.indices))
        return posterior.about(machine, rows, form._replace(space=space, **arrays))


def find_dynamics(model: Callable, data: Transitions) -> tuple[Dynamics, tuple[str, ...], tuple[int, ...], bool]:
    """The one Dynamics of a fleet's model, names and sizes of its plates, and True if it has observed sites."""
    visited = []

    def visit(dynamics, rows):
        plates = open_plates()
        PlateLayout(plates, 0, rows.batch_shape, dynamics.name)  # checks that they are as many as the data's axes
        record = dynamics.declare()
        if PROCESS in record.observed:
            raise ValueError(
                f"machine: {PROCESS!r} of {dynamics.name} is conditioned; give the Dynamics its process_noise= instead."
            )
        names, sizes = tuple(p.name for p in plates), tuple(p.size for p in plates)
        visited.append((dynamics, names, sizes, bool(record.observed)))
        return rows.outcomes

    with Visit(visit):
        jax.eval_shape(lambda k: (handlers.seed(model, k)(data), jnp.zeros(()))[1], jax.random.key(0))
    if len(visited) != 1:
        inside = ", ".join(dynamics.name for dynamics, *_ in visited) or "none"
        raise TypeError(f"machine: the model must run one Dynamics in a plate; it runs {len(visited)} ({inside}).")
    if not visited[0][1]:
        raise TypeError("machine: the model has no plate around its Dynamics, so there is no machine to choose.")
    return visited[0]


def _index(names, sizes, index, plates) -> tuple[int, ...]:
    """A checked index, outermost plate first."""
    example = f"machine({', '.join(f'{name}=0' for name in names)})"
    for name in plates:
        if name not in names:
            raise unknown("plate", name, names, "machine: the fleet")
    if index and plates or len(index or plates) != len(names):
        raise TypeError(f"machine: give one index for each plate ({', '.join(names)}), as in {example}.")
    indices = index or tuple(plates[name] for name in names)
    for name, size, value in zip(names, sizes, indices, strict=True):
        try:
            whole = operator.index(value)
        except TypeError:
            raise TypeError(f"machine: the index of plate {name!r} must be a whole number; got {value!r}.") from None
        if not 0 <= whole < size:
            raise ValueError(f"machine: plate {name!r} has machines 0 to {size - 1}; got {whole}.")
    return tuple(map(operator.index, indices))


def _no_data(data: Transitions) -> Transitions:
    """Data of a fleet's shape with one invalid row of NaN, with which no model can compute."""
    row = jax.tree.map(lambda x: np.full((*data.batch_shape, 1, *x.shape[len(data.batch_shape) + 1 :]), np.nan), data)
    return eqx.tree_at(lambda d: d.valid, row, np.zeros((*data.batch_shape, 1), bool))


def _point(
    form: Form, model: Callable, data, space: UnconstrainedSpace, index: Array, z: Float[Array, " P"]
) -> Float[Array, " K"]:
    """The machine's point in its own unconstrained space, at a point of the fleet's."""
    runs, parts = [], form.space.split(z)
    form.space.trace(lambda data: runs.append(run_to_dynamics(model, data)), z, data)
    values, supports, point = runs[0].values(index), runs[0].record.supports, {}
    for name, shape in zip(space.names, space.shapes, strict=True):
        point[name] = biject_to(supports[name]).inv(values[name]) if name in values else parts[name]
        if point[name].shape != shape:
            raise ValueError(
                f"machine: the bounds of {name!r} are {point[name].shape}, of a machine's own {shape}: they must be "
                "the same for all machines."
            )
    return jnp.concatenate([point[name].reshape(-1) for name in space.names])


@eqx.filter_jit
def _marginal_arrays(form: Form, model, data, space: UnconstrainedSpace, index: Array) -> dict[str, Array]:
    """Arrays of the machine's form, in its unconstrained space: draws, or mode and factor."""
    point = partial(_point, form, model, data, space, index)
    if isinstance(form, DrawsForm):
        return {"points": jax.vmap(jax.vmap(point))(form.points)}
    mode, push = jax.linearize(point, form.mode)
    rows = jax.vmap(push)(form.factor)
    rows = jnp.concatenate([rows, jnp.zeros((len(mode), len(mode)))])
    # QR of the reversed columns, so that the factor W of the covariance W' W is lower triangular.
    factor = jnp.linalg.qr(rows[:, ::-1], mode="r")[::-1, ::-1]
    return {"mode": mode, "factor": jnp.where(jnp.diagonal(factor) < 0, -1.0, 1.0)[:, None] * factor}


@eqx.filter_jit
def site_moments(posterior: AbstractPosterior) -> dict[str, tuple[Array, Array]]:
    """{site: (mean, sd)}: to first order for a Gaussian, sample moments for draws."""
    form = posterior.unconstrained()
    if not isinstance(form, GaussianForm):
        samples = posterior._samples(jax.random.key(0), 0)
        return {name: (jnp.mean(v, (0, 1)), jnp.std(v, (0, 1))) for name, v in samples.items()}
    values, push = jax.linearize(lambda z: form.space.values(posterior.model, z, posterior.data), form.mode)
    tangents = jax.vmap(push)(form.factor)
    return {name: (value, jnp.linalg.norm(tangents[name], axis=0)) for name, value in values.items()}
