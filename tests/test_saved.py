"""Beliefs on disk: what comes back, what is recognised, what is refused, and what a death in between leaves."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import linear_action, linear_data, linear_features, linear_noise, linear_state
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import physppl as pp
from physppl.density.unconstrained import UnconstrainedSpace
from physppl.inference import DrawsPosterior
from physppl.internal import files
from physppl.models import pendulum
from physppl.posterior import saving


def bound(constant=0.5, site="gain", size=2, mean=0.0, state=linear_state, **options) -> pp.Dynamics:
    """The linear Step of the helpers with something changed."""

    def program():
        drift = pp.physical("drift", dist.Normal(mean, constant), unit="m")
        gain = pp.physical(site, dist.Normal(-0.2, 2.0))
        weights = numpyro.sample("weights", dist.Normal(np.zeros(size), 0.5).to_event(1))
        theta = jnp.concatenate([jnp.stack([drift, gain]), weights[:2]])
        return pp.Step(lambda t, x, u: x + linear_features(jnp, x, u) @ theta.astype(x.dtype))

    return pp.Dynamics(program, state, linear_action, **({"dt": 0.1, "process_noise": linear_noise} | options))


def swinging(gravity=9.81, **options) -> pp.Dynamics:
    """A pendulum of one latent parameter."""

    def program():
        damping = pp.physical("damping", 0.0, 0.2, unit="1/s")
        return lambda t, x, u: jnp.stack([x[1], u[0] - damping * x[1] - gravity * jnp.sin(x[0])])

    return pp.Dynamics(program, pendulum.state, pendulum.action, **({"dt": 0.05, "process_noise": 0.01} | options))


def regression(data):
    """No Dynamics: a NumPyro model of a dict."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    numpyro.deterministic("double", 2 * slope)
    with numpyro.plate("row", len(data["x"])):
        numpyro.sample("y", dist.Normal(slope * data["x"], 0.1), obs=data["y"])


def steeper(data):
    numpyro.deterministic("double", 2 * numpyro.sample("slope", dist.Normal(0.0, 2.0)))
    with numpyro.plate("row", len(data["x"])):
        numpyro.sample("y", dist.Normal(1.0 + data["x"], 0.1), obs=data["y"])


class Pair(NamedTuple):
    left: Any
    right: Any


class Part(eqx.Module):
    weights: jax.Array
    label: str = eqx.field(static=True)


class Own(pp.Posterior):
    """A user's belief that holds one of each kind of thing."""

    things: Any
    later: int = 7

    def _draw(self, key):
        raise NotImplementedError

    def _basis(self, states, actions, times):
        raise NotImplementedError

    def _samples(self, key, draws):
        return {"damping": 0.1 + 0.01 * jax.random.uniform(key, (1, draws))}

    def samples(self, key, draws=1000, *, group_by_chain=False):  # without jit, which takes no big-endian arrays
        return {name: value[0] for name, value in self._samples(key, draws).items()}

    def _noise(self):
        return jnp.full(2, 0.01)


def drawn(model, data, seed=0, draws=5, **options) -> DrawsPosterior:
    """A belief held as draws, without a fit."""
    with jax.enable_x64(True):
        space = UnconstrainedSpace.of(model, data)
        points = 0.3 * jax.random.normal(jax.random.key(seed), (2, draws, space.size))
        return DrawsPosterior(model, jax.tree.map(jnp.asarray, data), space, points, {"lp": points[..., 0]}, **options)


def own(model=None, **things) -> Own:
    data = pp.Transitions(np.zeros((2, 2)), np.zeros((2, 1)), np.ones((2, 2)))
    return Own(model or swinging(), data, jnp.asarray(0), "Own", things)


def same(a: pp.Posterior, b: pp.Posterior) -> bool:
    """Bit by bit, kinds of arrays and static fields included; of the models only that each has one."""
    plain = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    bits = lambda x: (type(x), np.asarray(plain(x)).tobytes() if hasattr(x, "dtype") else x)  # noqa: E731
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(bits(x) == bits(y) for x, y in leaves) and tree(a) == tree(b)


def tree(posterior) -> str:
    return json.dumps(saving.Writer(posterior.model).node(posterior, "posterior"))


@pytest.fixture(scope="module")
def belief():
    return drawn(bound(), linear_data(rows=6), method="HMC")


@pytest.fixture
def file(belief, tmp_path):
    belief.save(tmp_path / "belief")
    return tmp_path / "belief"


def recordings(**options):
    times = np.stack([0.05 * np.arange(6)] * 2)
    readings = np.sin(3 * times)[..., None]
    readings[0, 3] = np.nan
    return pp.Trajectories(readings, np.cos(times)[..., None], times, segment=2, **options)


@pytest.mark.parametrize(
    "model, data",
    [
        (swinging, pp.Transitions(np.zeros((2, 2)), np.zeros((2, 1)), np.zeros((2, 2)), valid=[True, False])),
        (lambda: swinging(sensors=("angle",), variation=0.1), recordings(start=(np.zeros((2, 2)), np.ones((2, 2))))),
        (lambda: regression, {"x": np.arange(3.0), "y": np.arange(3.0)}),
    ],
    ids=["transitions", "recordings", "NumPyro model"],
)
def test_a_belief_comes_back_bit_by_bit(model, data, tmp_path):
    posterior = drawn(model(), data)
    posterior.save(tmp_path / "a belief.fit")
    again = pp.load(str(tmp_path / "a belief.fit"), posterior.model)
    assert same(again, posterior) and again.model == posterior.model
    draws = [p.samples(jax.random.key(1)) for p in (again, posterior)]
    assert all(np.array_equal(draws[0][name], draws[1][name]) for name in draws[0].keys() | draws[1].keys())
    assert [p.name for p in tmp_path.iterdir()] == ["a belief.fit"]


def test_a_users_belief_comes_back_with_all_it_holds(tmp_path):
    model = swinging()
    posterior = own(
        model,
        twin=model,
        key=jax.random.key(3, impl="rbg"),
        raw=jax.random.PRNGKey(1),
        half=jnp.arange(3.0).astype(jnp.bfloat16),
        single=jnp.float32(0.1),
        numpy=np.array([[np.nan, -0.0, np.inf]]),
        swapped=np.arange(3, dtype=">i4"),
        scalar=np.float32(1 / 3),
        empty=np.zeros((0, 3), bool),
        nested=(None, True, -(2**70), 0.1, float("inf"), "ä\n", [Pair(1, (2,)), {3: "x", 4: []}]),
        part=Part(jnp.ones(2), "relu"),
    )
    posterior.save(tmp_path / "own")
    again = pp.load(tmp_path / "own", swinging())
    assert isinstance(again, Own)
    things = again.things
    assert things.pop("swapped").tolist() == posterior.things.pop("swapped").tolist()  # in this machine's byte order
    assert isinstance(things["scalar"], np.float32) and things["nested"][6][0] == Pair(1, (2,))
    assert things["twin"] is again.model and things["part"].label == "relu" and again.later == 7
    del things["twin"], posterior.things["twin"]
    assert same(again, posterior)


def test_a_field_with_a_default_may_be_newer_than_the_file(tmp_path, monkeypatch):
    own().save(tmp_path / "own")

    def edited(change):
        content = (tmp_path / "own").read_bytes()
        return rebuilt(content, lambda header: change(header["posterior"][3]))

    (tmp_path / "before").write_bytes(edited(lambda fields: fields.pop("later")))
    assert pp.load(tmp_path / "before", swinging()).later == 7
    (tmp_path / "before").write_bytes(edited(lambda fields: fields.pop("things")))
    with pytest.raises(ValueError, match="saved with another Own: it has no things"):
        pp.load(tmp_path / "before", swinging())
    (tmp_path / "after").write_bytes(edited(lambda fields: fields.update(newer=1)))
    with pytest.raises(ValueError, match="saved with another Own: this one has no newer"):
        pp.load(tmp_path / "after", swinging())


def rebuilt(content: bytes, change) -> bytes:
    """A file with another header and a checksum that fits."""
    start = len(saving.MAGIC) + saving.DIGEST
    body = content[start:]
    size = 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:size])
    change(header)
    text = json.dumps(header).encode()
    body = len(text).to_bytes(8, "little") + text + body[size:]
    return saving.MAGIC + saving.hashlib.sha256(body).digest() + body


def narrow(scale):
    return pp.StateSpace(level=pp.Real("m", scale=scale), flow=pp.Real("m/s"))


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda: bound(site="gein"), "site 'gain' is missing; site 'gein' is new. Pass the model"),
        (lambda: bound(size=3), r"site 'weights' had shape \(2,\), has \(3,\)"),
        (lambda: bound(process_noise=None), "site 'process_noise' is new"),
        (lambda: bound(state=narrow(1.0)), r"state was .*2.0.*, is .*1.0.*sensors was"),
        (lambda: bound(dt=0.2), "dt was 0.1, is 0.2. Pass"),
        (lambda: bound(solver=diffrax.Tsit5(), substeps=2), "solver was RK4, is Tsit5; substeps was 1, is 2"),
        (lambda: bound(mean=1e-5), r"a constant in it, has changed: log p\(drift\) was -?\d.*, and is"),
        (lambda: bound(process_noise=2 * linear_noise), r"log p\(next_state\) was .*, and is"),
        (lambda: regression, r"it was a Dynamics, this is a NumPyro model \(<function regression"),
    ],
)
def test_another_model_is_refused_by_what_differs(model, message, file):
    with pytest.raises(ValueError, match=f"load: .*belief was saved with another model: .*{message}"):
        pp.load(file, model())


def half(prior) -> pp.Dynamics:
    def program():
        width = numpyro.sample("width", prior)
        return pp.Step(lambda t, x, u: x + width * u)

    return pp.Dynamics(program, linear_state, linear_action, dt=0.1, process_noise=linear_noise)


class Bare(Own):
    """A belief that has a virtual space and does not say so."""

    def _samples(self, key, draws):
        space = UnconstrainedSpace.of(self.model, self.data)
        sites = jax.vmap(jax.vmap(lambda z: space.sites(self.model, z, self.data)))
        return sites(jax.random.normal(key, (1, draws, space.size)))


@pytest.mark.parametrize(
    "make, said",
    [
        (drawn, "width at a point of unconstrained space was 0.367879"),
        (lambda model, data: Bare(model, data, jnp.asarray(0), "Bare", {}), "width was"),
    ],
    ids=["draws", "bare"],
)
def test_a_prior_of_the_same_density_over_another_virtual_space_is_refused(make, said, tmp_path):
    """HalfNormal(0.1) is exp of virtual space; a normal truncated to [0, 10] a sigmoid: ten times as large there."""
    make(half(dist.HalfNormal(0.1)), linear_data(rows=6)).save(tmp_path / "belief")
    with pytest.raises(ValueError, match=f"has changed: {said}.* when it was saved, and is"):
        pp.load(tmp_path / "belief", half(dist.TruncatedNormal(0.0, 0.1, low=0.0, high=10.0)))


def test_another_program_is_refused_where_no_data_show_it(tmp_path):
    """A prior's likelihood is nothing; the step itself tells."""
    nothing = pp.Transitions(np.zeros((1, 2)), np.zeros((1, 1)), np.zeros((1, 2)), valid=[False])
    drawn(swinging(), nothing).save(tmp_path / "prior")
    with pytest.raises(ValueError, match="has changed: the next state was .*Pass the model"):
        pp.load(tmp_path / "prior", swinging(gravity=9.80665))


def test_another_numpyro_model_is_refused(tmp_path):
    drawn(regression, {"x": np.arange(3.0), "y": np.arange(3.0)}).save(tmp_path / "belief")
    with pytest.raises(ValueError, match=r"has changed: log p\(y\) was"):
        pp.load(tmp_path / "belief", steeper)
    with pytest.raises(ValueError, match="this one does not run on the saved data: 'z'.*Pass the model"):
        pp.load(tmp_path / "belief", lambda data: data["z"])
    with pytest.raises(ValueError, match="it was a NumPyro model, this is a Dynamics"):
        pp.load(tmp_path / "belief", swinging())


def test_files_that_are_none_are_refused(file, tmp_path, as_user):
    load = lambda content: pp.load(tmp_path / "other", bound()) if (tmp_path / "other").write_bytes(content) else None  # noqa: E731
    whole = file.read_bytes()
    with pytest.raises(ValueError, match=r"other is no posterior saved by physppl \(it begins with b'PK"):
        load(b"PK\x03\x04 an npz")
    with pytest.raises(ValueError, match="no posterior saved by physppl"):
        load(whole.replace(b"\r\n", b"\n"))
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="damaged or cut short: its checksum does not fit its 0 bytes"):
        pp.load(tmp_path / "empty", bound())
    with pytest.raises(ValueError, match=f"damaged or cut short.*{len(whole) - 1} bytes. Copy it anew"):
        load(whole[:-1])
    with pytest.raises(
        ValueError, match="newer format 2, written by physppl 9.9; this version reads 1.*update physppl"
    ):
        load(rebuilt(whole, lambda header: header.update(format=2, versions={"physppl": "9.9"})))
    with pytest.raises(ValueError, match="older format 0.*save anew"):
        load(rebuilt(whole, lambda header: header.update(format=0)))
    for what in ("draws", "model", "versions", "timing"):
        with pytest.raises(ValueError, match=f"is not as `save` writes: KeyError: '{what}'"):
            load(rebuilt(whole, lambda header, what=what: header.pop(what)))
    for what in ("draws", "figures", "model"):
        with pytest.raises(ValueError, match="is not as `save` writes: "):
            load(rebuilt(whole, lambda header, what=what: header.update({what: 3})))
    body = (100_000).to_bytes(8, "little") + b"[" * 100_000
    with pytest.raises(ValueError, match="is not as `save` writes: RecursionError"):
        load(saving.MAGIC + saving.hashlib.sha256(body).digest() + body)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pp.load(tmp_path / "nowhere", bound())
    with pytest.raises(IsADirectoryError):
        pp.load(tmp_path, bound())
    with pytest.raises(TypeError, match="model must be a Dynamics or a NumPyro model; got NoneType"):
        pp.load(file, None)


@pytest.mark.parametrize(
    "module, name, why",
    [
        ("antigravity", "Belief", "which is not imported. Import antigravity, if you trust it"),
        ("physppl", "Belief", "but physppl has no Belief. Give it its name back"),
        ("os", "system", "which is no equinox module and no NamedTuple"),
        ("builtins", "exec", "which is no equinox module and no NamedTuple"),
    ],
)
def test_nothing_that_a_file_names_is_imported_or_called(module, name, why, file):
    def change(header):
        header["posterior"][1:3] = [module, name]

    file.write_bytes(rebuilt(file.read_bytes(), change))
    with pytest.raises(ValueError, match=f"holds a {module}.{name}, {why}"):
        pp.load(file, bound())
    assert "antigravity" not in sys.modules


def test_what_a_file_cannot_hold_is_refused_by_field(tmp_path):
    class Local(eqx.Module):
        x: int = 0

    Script = type("Script", (eqx.Module,), {"__module__": "__main__"})
    for thing, message in (
        (
            Script(),
            r"Own.things\['x'\] is a Script, which is defined in the script itself.* in a module, and import it",
        ),
        (len, r"save: Own.things\['x'\] is a builtin_function_or_method, which a file cannot hold. It holds arrays"),
        (Local(), r"Own.things\['x'\] is a .*Local, which could not be found again: define the class at the top level"),
        (np.array(["a"]), "is an array of <U1; a file holds arrays of numbers"),
    ):
        with pytest.raises(TypeError, match=message):
            own(x=thing).save(tmp_path / "own")
    with pytest.raises(IsADirectoryError, match="save: .* is a folder; give the name of a file"):
        own().save(tmp_path)
    with pytest.raises(FileNotFoundError, match="save: there is no folder .*nowhere; make it first"):
        own().save(tmp_path / "nowhere" / "own")
    assert not list(tmp_path.iterdir())


FILES: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def encoded(belief):
    FILES["one"], FILES["other"] = (
        saving.encode(belief),
        saving.encode(drawn(belief.model, linear_data(rows=6), seed=1)),
    )
    FILES["belief"] = belief


@st.composite
def damage(draw) -> bytes:
    """A file after what happens to files: bits flip, blocks go, come twice, change places, or are another file's."""
    content, other = bytearray(FILES["one"]), FILES["other"]
    for _ in range(draw(st.integers(1, 3))):
        at = lambda: draw(st.integers(0, len(content)))  # noqa: E731
        (a, b), c = sorted((at(), at())), at()
        kind = draw(st.sampled_from(["flip", "cut", "drop", "twice", "insert", "swap", "zeros", "splice", "foreign"]))
        if kind == "flip" and content:
            content[a % len(content)] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[a:]
        elif kind == "drop":
            del content[a:b]
        elif kind == "twice":
            content[c:c] = content[a:b]
        elif kind == "insert":
            content[a:a] = draw(st.binary(max_size=8))
        elif kind == "swap":
            content[a:c] = content[b:c] + content[a:b] if b <= c else content[a:c]
        elif kind == "zeros":
            content[a:b] = bytes(b - a)
        elif kind == "splice":
            content[a:] = other[b:]
        elif kind == "foreign":
            content[a:b] = other[a:b]
    return bytes(content)


@settings(max_examples=300)
@given(damage())
def test_a_damaged_file_never_loads_as_another_belief(tmp_path_factory, content):
    assume(content != FILES["other"])
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        again = pp.load(path, FILES["belief"].model)
    except ValueError as error:
        assert "damaged or cut short" in str(error) or "no posterior saved by physppl" in str(error)
        assert content != FILES["one"]
    else:
        assert same(again, FILES["belief"])


@pytest.mark.parametrize("dies", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(dies, file, belief, monkeypatch):
    before = file.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if dies == "open":
            patch.setattr("builtins.open", full)
        else:
            patch.setattr(os, dies, full)
        with pytest.raises(OSError, match="No space left"):
            drawn(belief.model, belief.data, seed=1).save(file)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == [file.name]


def test_what_killed_saves_left_goes_with_a_later_one(file, belief):
    old, young = (file.with_name(f".{file.name}.{pid}.draft") for pid in (11, 12))
    others = file.with_name(f".{file.name}.toml")
    for path in (old, young, others):
        path.touch()
    os.utime(old, (0, 0))
    os.utime(others, (0, 0))
    belief.save(file)
    assert not old.exists() and young.exists() and others.exists()


# The part of `save` that touches the disk, in a process that starts at once.
WRITE = f"""
import contextlib, glob, os, sys, time
from pathlib import Path
STALE = {files.STALE}
{inspect.getsource(files.write)}
path, contents = Path(sys.argv[1]), [Path(p).read_bytes() for p in sys.argv[2:]]
print("ready", flush=True)
while True:
    for content in contents:
        write(path, content)
"""
SAVE = """
import sys
import physppl as pp
from test_saved import bound
beliefs = [pp.load(p, bound()) for p in sys.argv[2:]]
for belief in beliefs:
    belief.save(sys.argv[1])
print("ready", flush=True)
while True:
    for belief in beliefs:
        belief.save(sys.argv[1])
"""


@pytest.mark.parametrize("script", [WRITE, pytest.param(SAVE, marks=pytest.mark.science)], ids=["write", "save"])
def test_twenty_kills_leave_the_old_file_or_the_new_one(script, tmp_path):
    """SIGKILL at random moments of a process that saves two beliefs of 2 MB by turns."""
    beliefs = [drawn(bound(), linear_data(rows=6), seed=s, draws=30_000) for s in (0, 1)]
    paths = [tmp_path / name for name in ("one", "other")]
    for belief, path in zip(beliefs, paths, strict=True):
        belief.save(path)
    whole, rng, seen = [p.read_bytes() for p in paths], np.random.default_rng(0), []
    target = tmp_path / "folder" / "belief"
    target.parent.mkdir()
    target.write_bytes(whole[0])
    for _ in range(20):
        arguments = [sys.executable, "-c", script, target, *paths]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(__file__))
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        seen.append(whole.index(target.read_bytes()))
    assert set(seen) == {0, 1}
    assert same(pp.load(target, bound()), beliefs[seen[-1]])
    left = list(target.parent.glob(".*.draft"))
    assert left and all(p.stat().st_size <= max(map(len, whole)) for p in left)  # some died while they wrote
    for path in left:
        os.utime(path, (0, 0))
    beliefs[0].save(target)
    assert [p.name for p in target.parent.iterdir()] == ["belief"]
