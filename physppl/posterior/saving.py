"""A belief as one file: its arrays bit by bit, and figures by which the model that is given back is recognised.

Magic bytes, SHA-256 of all that follows, the length of a JSON header, the header, the bytes of the arrays. The program
is not in it: no code is written, and what a file names is looked up among the classes that are imported, never run.
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

from physppl.density.unconstrained import UnconstrainedSpace, latent_part
from physppl.dynamics import Dynamics
from physppl.internal.files import write
from physppl.internal.progress import Timing
from physppl.posterior.base import AbstractPosterior
from physppl.posterior.serialisation import Reader, Writer

MAGIC = b"\x89physppl belief\r\n\x1a\n"  # the line ends tell of transfers as text
FORMAT = 1
DIGEST = hashlib.sha256().digest_size
DRAWS = 3  # of the belief, at which a model is recognised
PROBES = 4  # states and actions at which its step is
POINTS = (-1.0, 0.0, 1.0)  # of virtual space, all coordinates the same, at which its bijections are
SAME, SIMILAR = 1e-8, 1e-6  # relative, by one version of JAX and between two


def save(path: str | Path, posterior: AbstractPosterior) -> None:
    """Writes a belief, whole or not at all; a file of this name is replaced.

    Raises:
        TypeError: for what a file cannot hold, naming the field: functions, and classes that are not at the top level
            of a module.
        FileNotFoundError, IsADirectoryError: for a path that is no file in a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"save: {path} is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: there is no folder {path.parent}; make it first.")
    write(path, encode(posterior))


def load(path: str | Path, model: Callable) -> AbstractPosterior:
    """The belief in a file, about the model it was fitted with.

    The model is given because its program is code, which a file does not hold. It is recognised: by its sites, its
    spaces, step and solver, by its log densities and steps at a few draws of the belief, and by its bijections.

    Args:
        path: what `posterior.save` wrote.
        model: the Dynamics or NumPyro model that the belief is about, as it was.

    Raises:
        ValueError: for a file that is not such a file, is damaged, or is of another format; for one whose classes are
            not imported; for another model, naming what differs.
        FileNotFoundError: where there is none.
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
        told = {"kind": header["model"]["kind"]} | header["model"]
        same_jax = header["versions"]["jax"] == jax.__version__
        draws, figures = ({name: np.asarray(x) for name, x in values.items()} for values in (draws, figures))
    except Exception as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where} is not as `save` writes: {type(error).__name__}: {error}.") from error
    if not isinstance(posterior, AbstractPosterior):
        raise ValueError(f"{where} holds a {type(posterior).__name__}, which is no Posterior.")
    _recognise(posterior, told, draws, figures, same_jax, where)
    object.__setattr__(posterior, "_timing", timing)
    return posterior


def encode(posterior: AbstractPosterior) -> bytes:
    """What the file holds."""
    model, data, writer = posterior.model, posterior.data, Writer(posterior.model)
    tree = writer.node(posterior, type(posterior).__name__)
    with jax.enable_x64(True):
        draws = _draws(posterior)
        figures = _figures(model, data, draws, posterior.site_space())
        header = {
            "format": FORMAT,
            "versions": _versions(),
            "model": _told(model),
            "timing": posterior.timing,
            "posterior": tree,
            "draws": writer.node(draws, "draws"),
            "figures": writer.node(figures, "figures"),
        }
    text = json.dumps(header).encode()
    body = b"".join([len(text).to_bytes(8, "little"), text, *writer.arrays])
    return MAGIC + hashlib.sha256(body).digest() + body


def _opened(content: bytes, where: str) -> tuple[dict[str, Any], bytes]:
    """The header and the bytes of the arrays of a file that is whole and of this format."""
    if not content.startswith(MAGIC[: len(content)]):
        raise ValueError(f"{where} is no belief saved by physppl (it begins with {content[:8]!r}).")
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


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("physppl", "jax", "numpyro")}


def _told(model) -> dict[str, Any]:
    """What a Dynamics was told beside its program."""
    if not isinstance(model, Dynamics):
        return {"kind": "a NumPyro model"}
    plain = lambda value: value if isinstance(value, str) else float(value)  # noqa: E731
    of = lambda c: [type(c).__name__, *map(plain, dataclasses.astuple(c))]  # noqa: E731
    spaces = {"state": model.state, "action": model.action, "sensors": model.sensing.space}
    own = {name: {k: of(c) for k, c in space.coordinates.items()} for name, space in spaces.items()}
    own |= {"dt": model.dt, "solver": type(model.solver).__name__, "substeps": model.substeps}
    return {"kind": "a Dynamics"} | own


def _free(model, data) -> dict[str, tuple[int, ...]]:
    """{latent or `param` site: shape of its value}."""
    run, *args = latent_part(model, data)
    shapes = {}

    def trace(key, args):
        for name, site in handlers.trace(handlers.seed(run, key)).get_trace(*args).items():
            if site["type"] == "param" or (site["type"] == "sample" and not site["is_observed"]):
                shapes[name] = jnp.shape(site["value"])
        return jnp.zeros(())

    jax.eval_shape(trace, jax.random.key(0), args)
    return shapes


def _draws(posterior: AbstractPosterior) -> dict[str, Array]:
    """{latent or `param` site: values (DRAWS, ...)}, always the same ones."""
    samples, draws = posterior.samples(jax.random.key(0, impl="threefry2x32"), DRAWS), {}
    samples = samples | {k: jnp.broadcast_to(v, (DRAWS, *v.shape)) for k, v in posterior.params.items()}
    for site in _free(posterior.model, posterior.data):
        if site not in samples:
            raise ValueError(f"save: samples() of this {type(posterior).__name__} has no site {site!r}.")
        draws[site] = samples[site][np.linspace(0, len(samples[site]) - 1, DRAWS).round().astype(int)]
    return draws


@eqx.filter_jit
def _figures(model, data, draws: Mapping[str, Array], space: UnconstrainedSpace | None) -> dict[str, Array]:
    """At each draw: the log density of every site, what is deterministic, summed; of a Dynamics a few steps besides,
    which tell of the program where there are no data. Of a belief that lives in virtual space also what sites are at
    fixed points there: the same densities can go with other bijections, for which the belief is another one."""

    def one(values):
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

    figures = jax.vmap(one)(dict(draws))
    if space is not None:
        points = jnp.array(POINTS)[:, None] * jnp.ones(space.size)
        sites = jax.vmap(lambda z: space.sites(model, z, data))(points)
        figures |= {f"{name} at a point of virtual space": sites[name] for name in space.names}
    return figures


def _steps(model: Dynamics, data, values) -> dict[str, Array]:
    """Next states, noise and, where sensors were recorded, readings; in units of the scales."""
    transition, state, action = model.bind(values), model.state, model.action
    spread = lambda n: np.sin(1.0 + np.arange(PROBES * n)).reshape(PROBES, n)  # noqa: E731
    states = jnp.asarray(0.3 * spread(len(state)) * state.scale)
    actions = jnp.asarray(action.low + (action.high - action.low) * (0.5 + 0.4 * spread(len(action))))
    after = jax.vmap(transition.stepper())(model.dt * jnp.arange(PROBES), states, actions)
    figures = {"the next state": after / state.scale, "the process noise": transition.noise / state.scale}
    if model.likelihood(data).axis == "sensor":
        figures["the readings"] = jax.vmap(model.sensing.read)(states) / model.sensing.space.scale
    return figures


def _recognise(posterior: AbstractPosterior, told: dict[str, Any], draws, figures, same_jax: bool, where: str) -> None:
    """Refuses a model that is not the one of the belief, naming what differs."""
    model, data, space = posterior.model, posterior.data, posterior.site_space()
    other, remedy = f"{where} was saved with another model", "Pass the model that the belief was fitted with."
    now = _told(model)
    if told["kind"] != now["kind"]:
        raise ValueError(f"{other}: it was {told['kind']}, this is {now['kind']} ({model}). {remedy}")
    with jax.enable_x64(True):
        try:
            sites = _free(model, data)
        except Exception as error:
            raise ValueError(f"{other}: this one does not run on the saved data: {error} {remedy}") from error
        known = {name: value.shape[1:] for name, value in draws.items()}
        differs = [f"site {name!r} is missing" for name in known if name not in sites]
        differs += [f"site {name!r} is new" for name in sites if name not in known]
        differs += [
            f"site {name!r} had shape {known[name]}, has {sites[name]}"
            for name in known
            if name in sites and known[name] != sites[name]
        ]
        differs = differs or [f"{k} was {told[k]}, is {now[k]}" for k in told if told[k] != now.get(k)]
        if differs:
            raise ValueError(f"{other}: {'; '.join(differs)}. {remedy}")
        try:
            found = _figures(model, data, jax.tree.map(jnp.asarray, draws), space)
        except Exception as error:  # e.g. a site whose virtual space has another size
            raise ValueError(f"{other}: this one does not run at its draws: {error} {remedy}") from error
        if space is None and same_jax:  # what is drawn anew is what was
            figures, found = figures | draws, found | _draws(posterior)
    tolerance = SAME if same_jax else SIMILAR
    for name in (*figures, *(name for name in found if name not in figures)):
        if name not in figures or name not in found:
            raise ValueError(f"{other}: {name} is {'missing' if name in figures else 'new'}. {remedy}")
        before, ours = figures[name], np.asarray(found[name])
        if before.shape != ours.shape:
            raise ValueError(f"{other}: {name} had shape {before.shape[1:]}, has {ours.shape[1:]}. {remedy}")
        far = ~np.isclose(ours, before, rtol=tolerance, atol=tolerance, equal_nan=True)
        if far.any():
            at = tuple(np.argwhere(far)[0])
            raise ValueError(
                f"{other}: the program, or a constant in it, has changed: {name} was {before[at]:.12g} when it "
                f"was saved, and is {ours[at]:.12g}. {remedy}"
            )
