"""A posterior as one file: its arrays bit by bit, and figures by which its model is recognised on loading.

Magic bytes, SHA-256 of the rest of the file, the length of a JSON header, the header, the bytes of the arrays. The
program is not in it: no code is written, and classes that a file names are looked up among those imported, never run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers

from physppl.density.unconstrained import UnconstrainedSpace, latent_shapes
from physppl.dynamics import Dynamics
from physppl.internal.files import write
from physppl.internal.progress import Timing
from physppl.posterior.base import AbstractPosterior
from physppl.posterior.serialisation import Reader, Writer

MAGIC = b"\x89physppl belief\r\n\x1a\n"  # part of the format; line ends reveal transfers as text
FORMAT = 1
DIGEST = hashlib.sha256().digest_size
DRAWS = 3  # posterior draws at which a model is recognised
PROBES = 4  # states and actions at which its step is compared
POINTS = (-1.0, 0.0, 1.0)  # of unconstrained space, equal in all coordinates, at which its bijections are compared
AT_A_POINT = " at a point of virtual space"  # part of the format: end of the names of these figures
SAME, SIMILAR = 1e-8, 1e-6  # relative tolerances within one version of JAX and between two


def save(path: str | Path, posterior: AbstractPosterior) -> None:
    """Write a posterior, whole or not at all; an existing file is replaced.

    Raises:
        TypeError: for values that a file cannot hold, naming the field: functions, and classes that are not at the top
            level of a module.
        FileNotFoundError, IsADirectoryError: for a folder, or a path in no folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"save: {path} is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: there is no folder {path.parent}; make it first.")
    write(path, encode(posterior))


def load(path: str | Path, model: Callable) -> AbstractPosterior:
    """Read a posterior from a file, with the model that it was fitted with.

    The model is an argument because its program is code, which a file does not hold. It is recognised by its sites, its
    spaces, step and solver, by its log densities and steps at a few posterior draws, and by its bijections.

    Args:
        path: a file written by `posterior.save`.
        model: the Dynamics or NumPyro model of the fit.

    Raises:
        ValueError: for a file that was not saved by physppl, is damaged, or is of another format; for one whose classes
            are not imported; for another model, naming the differences.
        FileNotFoundError: for a missing file.
    """
    if not callable(model):
        raise TypeError(f"load(path, model): model must be a Dynamics or a NumPyro model; got {type(model).__name__}.")
    path = Path(path)
    content, where = path.read_bytes(), f"load: {path}"
    try:
        header, arrays = _opened(content, where)
        with jax.enable_x64(True):
            reader = Reader(arrays, model, where)
            posterior, draws, figures = (reader.value(header[k]) for k in ("posterior", "draws", "figures"))
        timing = None if header["timing"] is None else Timing(*header["timing"])
        description = {"kind": header["model"]["kind"]} | header["model"]
        same_jax = header["versions"]["jax"] == jax.__version__
        draws, figures = ({name: np.asarray(x) for name, x in values.items()} for values in (draws, figures))
    except Exception as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where} is not as `save` writes: {type(error).__name__}: {error}.") from error
    if not isinstance(posterior, AbstractPosterior):
        raise ValueError(f"{where} holds a {type(posterior).__name__}, which is no Posterior.")
    _recognise(posterior, description, draws, figures, same_jax, where)
    object.__setattr__(posterior, "_timing", timing)
    return posterior


def encode(posterior: AbstractPosterior) -> bytes:
    """Encode a posterior as the content of a file."""
    model, data, writer = posterior.model, posterior.data, Writer(posterior.model)
    tree = writer.node(posterior, type(posterior).__name__)
    with jax.enable_x64(True):
        draws = _draws(posterior)
        figures = _figures(model, data, draws, posterior.site_space())
        header = {
            "format": FORMAT,
            "versions": {name: metadata.version(name) for name in ("physppl", "jax", "numpyro")},
            "model": _description(model),
            "timing": posterior.timing,
            "posterior": tree,
            "draws": writer.node(draws, "draws"),
            "figures": writer.node(figures, "figures"),
        }
    text = json.dumps(header).encode()
    body = b"".join([len(text).to_bytes(8, "little"), text, *writer.arrays])
    return MAGIC + hashlib.sha256(body).digest() + body


def _opened(content: bytes, where: str) -> tuple[dict[str, Any], bytes]:
    """Header and array bytes of a file that is complete and of this format."""
    if not content.startswith(MAGIC[: len(content)]):
        raise ValueError(f"{where} is no posterior saved by physppl (it begins with {content[:8]!r}).")
    body = content[len(MAGIC) + DIGEST :]
    if hashlib.sha256(body).digest() != content[len(MAGIC) : len(MAGIC) + DIGEST]:
        raise ValueError(
            f"{where} is damaged or cut short: its checksum does not fit its {len(content)} bytes. Copy it anew from "
            "where it was saved, or fit again."
        )
    start = 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:start])
    if header["format"] != FORMAT:
        newer = header["format"] > FORMAT
        remedy = "update physppl" if newer else "load it with that version and fit or save anew"
        raise ValueError(
            f"{where} has the {'newer' if newer else 'older'} format {header['format']}, written by physppl "
            f"{header['versions']['physppl']}; this version reads {FORMAT}. To use it, {remedy}."
        )
    return header, body[start:]


def _description(model) -> dict[str, Any]:
    """Arguments of a Dynamics beside its program."""
    if not isinstance(model, Dynamics):
        return {"kind": "a NumPyro model"}

    def values(coordinate):
        fields = dataclasses.astuple(coordinate)
        return [type(coordinate).__name__, *(x if isinstance(x, str) else float(x) for x in fields)]

    spaces = {"state": model.state, "action": model.action, "sensors": model.sensing.space}
    arguments = {name: {k: values(c) for k, c in space.coordinates.items()} for name, space in spaces.items()}
    arguments |= {"dt": model.dt, "solver": type(model.solver).__name__, "substeps": model.substeps}
    return {"kind": "a Dynamics"} | arguments


def _draws(posterior: AbstractPosterior) -> dict[str, Array]:
    """{latent or `param` site: values (DRAWS, ...)}, by a fixed random key."""
    samples, draws = posterior.samples(jax.random.key(0, impl="threefry2x32"), DRAWS), {}
    samples = samples | {k: jnp.broadcast_to(v, (DRAWS, *v.shape)) for k, v in posterior.params.items()}
    for site in latent_shapes(posterior.model, posterior.data):
        if site not in samples:
            raise ValueError(f"save: samples() of this {type(posterior).__name__} has no site {site!r}.")
        draws[site] = samples[site][np.linspace(0, len(samples[site]) - 1, DRAWS).round().astype(int)]
    return draws


@eqx.filter_jit
def _figures(model, data, draws: Mapping[str, Array], space: UnconstrainedSpace | None) -> dict[str, Array]:
    """Figures by which a model is recognised, at each draw.

    The log density of every site and the sums of deterministic ones; of a Dynamics also a few steps, which reveal the
    program where there are no data. Of a posterior held in unconstrained space also the sites' values at fixed points:
    equal densities with other bijections make another posterior.
    """

    def at_draw(values):
        run = handlers.substitute(handlers.seed(model, jax.random.key(0)), data=values)
        figures = {}
        for name, site in handlers.trace(run).get_trace(data).items():
            if site["type"] == "sample":
                density = site["fn"].log_prob(jnp.asarray(site["value"]))
                figures[f"log p({name})"] = jnp.sum(density if site["scale"] is None else site["scale"] * density)
            elif site["type"] == "deterministic":
                figures[name] = sum(jnp.sum(jnp.asarray(x, float)) for x in jax.tree.leaves(site["value"]))
        if isinstance(model, Dynamics):
            figures |= _steps(model, data, values)
        return figures

    figures = jax.vmap(at_draw)(dict(draws))
    if space is not None:
        points = jnp.array(POINTS)[:, None] * jnp.ones(space.size)
        sites = jax.vmap(lambda z: space.sites(model, z, data))(points)
        figures |= {f"{name}{AT_A_POINT}": sites[name] for name in space.names}
    return figures


def _steps(model: Dynamics, data, values) -> dict[str, Array]:
    """Next states, noise and, where sensors were recorded, readings; in units of the scales."""
    transition, state, action = model.bind(values), model.state, model.action

    def spread(size):
        return np.sin(1.0 + np.arange(PROBES * size)).reshape(PROBES, size)

    states = jnp.asarray(0.3 * spread(len(state)) * state.scale)
    actions = jnp.asarray(action.low + (action.high - action.low) * (0.5 + 0.4 * spread(len(action))))
    next_states = jax.vmap(transition.stepper())(model.dt * jnp.arange(PROBES), states, actions)
    figures = {"the next state": next_states / state.scale, "the process noise": transition.noise / state.scale}
    if model.likelihood(data).axis == "sensor":
        figures["the readings"] = jax.vmap(model.sensing.read)(states) / model.sensing.space.scale
    return figures


def _recognise(posterior: AbstractPosterior, saved: dict[str, Any], draws, figures, same_jax: bool, where: str) -> None:
    """Refuse a model that is not the posterior's, naming the differences."""
    model, data, space = posterior.model, posterior.data, posterior.site_space()
    refusal, remedy = f"{where} was saved with another model", "Pass the model that the posterior was fitted with."
    current = _description(model)
    if saved["kind"] != current["kind"]:
        raise ValueError(f"{refusal}: it was {saved['kind']}, this is {current['kind']} ({model}). {remedy}")
    with jax.enable_x64(True):
        try:
            sites = latent_shapes(model, data)
        except Exception as error:
            raise ValueError(f"{refusal}: this one does not run on the saved data: {error} {remedy}") from error
        shapes = {name: value.shape[1:] for name, value in draws.items()}
        differs = [f"site {name!r} is missing" for name in shapes if name not in sites]
        differs += [f"site {name!r} is new" for name in sites if name not in shapes]
        differs += [
            f"site {name!r} had shape {x}, has {sites[name]}" for name, x in shapes.items() if sites.get(name, x) != x
        ]
        differs = differs or [f"{k} was {saved[k]}, is {current[k]}" for k in saved if saved[k] != current.get(k)]
        if differs:
            raise ValueError(f"{refusal}: {'; '.join(differs)}. {remedy}")
        try:
            computed = _figures(model, data, jax.tree.map(jnp.asarray, draws), space)
        except Exception as error:  # e.g. a site of another size in unconstrained space
            raise ValueError(f"{refusal}: this one does not run at its draws: {error} {remedy}") from error
        if space is None and same_jax:  # the same draws again
            figures, computed = figures | draws, computed | _draws(posterior)
    tolerance = SAME if same_jax else SIMILAR
    for name in (*figures, *(name for name in computed if name not in figures)):
        shown = name.replace(AT_A_POINT, " at a point of unconstrained space")
        if name not in figures or name not in computed:
            raise ValueError(f"{refusal}: {shown} is {'missing' if name in figures else 'new'}. {remedy}")
        before, now = figures[name], np.asarray(computed[name])
        if before.shape != now.shape:
            raise ValueError(f"{refusal}: {shown} had shape {before.shape[1:]}, has {now.shape[1:]}. {remedy}")
        far = ~np.isclose(now, before, rtol=tolerance, atol=tolerance, equal_nan=True)
        if far.any():
            at = tuple(np.argwhere(far)[0])
            raise ValueError(
                f"{refusal}: the program, or a constant in it, has changed: {shown} was {before[at]:.12g} when it "
                f"was saved, and is {now[at]:.12g}. {remedy}"
            )
