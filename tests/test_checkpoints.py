"""Loops that die: what is kept, what is refused, and that going on ends where the uninterrupted loop does."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import physppl as pp
from physppl.control.checkpoints import Checkpoints
from physppl.inference import HMC, Laplace
from physppl.internal.fingerprint import fingerprint
from physppl.models import furuta, pendulum
from physppl.planning import ICEM, RandomPolicy, RandomShooting

TASK = pp.Task(pendulum.swing_up.reward, steps=15)
PLANNER = RandomShooting(horizon=5, population=16)


def loop(folder=None, episodes=3, seed=0, task=TASK, **options):
    arguments = (jax.random.key(seed), pendulum.system(), task, pendulum.dynamics(), Laplace(), PLANNER)
    return pp.psrl(*arguments, episodes, checkpoints=folder, **options)


def same(a: pp.Run, b: pp.Run) -> bool:
    """Bit by bit, the clock left out."""
    leaves = zip(
        jax.tree.leaves((a.episodes, a.posterior, a.data)),
        jax.tree.leaves((b.episodes, b.posterior, b.data)),
        strict=True,
    )
    return all(np.array_equal(x, y) for x, y in leaves) and np.array_equal(a.entropy, b.entropy)


@pytest.fixture(scope="module")
def whole():
    return loop()


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_loop_goes_on_after_its_last_episode_and_ends_in_the_same_result(done, whole, tmp_path):
    first, second = [], []
    loop(tmp_path, episodes=3, report=first.append)
    for i in range(done, 3):
        (tmp_path / f"episode_{i + 1:04d}.npz").unlink()
    again = loop(tmp_path, report=second.append)
    assert same(again, whole)
    assert [row._replace(seconds={}) for row in first] == [row._replace(seconds={}) for row in second]
    assert len(loop(tmp_path, episodes=4).seconds) == 4  # and further than it was to go


def test_other_arguments_are_refused_by_name(tmp_path):
    loop(tmp_path, episodes=1)
    for options, name in (
        ({"seed": 1}, "key"),
        ({"task": dataclasses.replace(TASK, steps=16)}, "task"),
        ({"acquisition": pp.PosteriorMean()}, "acquisition"),
        ({"objective": pp.InformationGain()}, "objective"),
        ({"explore": RandomPolicy()}, "explore"),
    ):
        with pytest.raises(ValueError, match=f"another loop: {name} differs. Pass the same arguments"):
            loop(tmp_path, episodes=1, **options)


def test_a_damaged_episode_is_refused_and_half_a_draft_is_nothing(tmp_path, whole):
    loop(tmp_path, episodes=2)
    path = tmp_path / "episode_0002.npz"
    content = bytearray(path.read_bytes())
    (tmp_path / ".episode_0003.npz.123").write_bytes(bytes(content[:100]))  # what a kill leaves behind
    rng = np.random.default_rng(0)
    for cut in (len(content) - 1, 40, 0):
        path.write_bytes(bytes(content[:cut]))
        with pytest.raises(ValueError, match="episode_0002.npz is damaged"):
            loop(tmp_path)
    for _ in range(20):
        flipped, at = bytearray(content), rng.integers(len(content))
        flipped[at] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(flipped))
        with pytest.raises(ValueError, match="damaged.*Delete it and all later ones"):
            Checkpoints.read(path)
    path.unlink()
    assert same(loop(tmp_path), whole)


def test_two_loops_in_one_folder_one_wins(tmp_path):
    settings = {"key": 0}
    with Checkpoints(tmp_path, settings), pytest.raises(RuntimeError, match="another loop is writing to"):
        Checkpoints(tmp_path, settings)
    Checkpoints(tmp_path, settings).close()


def test_a_loop_interrupted_in_a_session_goes_on_there(tmp_path, whole):
    """Whoever keeps the exception keeps the loop's variables; the folder is free all the same."""

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        loop(tmp_path, report=stop)
    assert same(loop(tmp_path), whole) and stopped.value is not None


def test_an_unknown_format_is_refused(tmp_path):
    Checkpoints(tmp_path, {"key": 0}).close()
    path = tmp_path / "loop.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="has format 2; this version reads 1"):
        Checkpoints(tmp_path, {"key": 0})


def test_fingerprints_tell_content_and_nothing_else():
    base = pendulum.dynamics()
    assert fingerprint(base) == fingerprint(pendulum.dynamics())
    others = [
        pendulum.dynamics(dt=0.04), pendulum.dynamics(pendulum.program_with_coulomb), furuta.dynamics(),
        pendulum.dynamics(process_noise=0.1), ICEM(), ICEM(horizon=31), Laplace(), HMC(), TASK,
        pendulum.system(), pendulum.system(0.1), pendulum.system().with_actuator(delay=1), pp.TaskReward(),
        pp.TaskReward() + pp.InformationGain(), np.zeros(3), np.zeros(4), np.zeros(3, np.float32), 1, 1.0, True, "1",
    ]  # fmt: skip
    prints = [fingerprint(base), *map(fingerprint, others)]
    assert len(set(prints)) == len(prints)

    def reward(scale):
        return lambda x, u: scale * x[0]

    assert fingerprint(reward(1.0)) == fingerprint(reward(1.0)) != fingerprint(reward(2.0))


def test_fingerprints_see_defaults():
    def positional(scale):
        def reward(x, u, scale=scale):
            return scale * x[0]

        return reward

    def by_name(scale):
        def reward(x, u, *, scale=scale):
            return scale * x[0]

        return reward

    for make in (positional, by_name):
        assert fingerprint(make(1.0)) == fingerprint(make(1.0)) != fingerprint(make(2.0))


GRAVITY = 9.81


def weight(mass):
    return mass * GRAVITY


def falls(t, x, u):
    return x + weight(u)


class Slope(pp.Objective):
    def bind(self, task, posterior):
        return task.earned


def test_fingerprints_see_what_functions_use(monkeypatch):
    """Globals, through the functions that use them; what wraps and what is built in; code on one line; classes."""
    import numpyro

    before = fingerprint(falls), fingerprint(TASK), fingerprint(furuta.dynamics())
    monkeypatch.setitem(globals(), "GRAVITY", 1.62)
    assert fingerprint(falls) != before[0]
    monkeypatch.undo()
    monkeypatch.setattr(furuta, "GRAVITY", 1.62)
    assert fingerprint(furuta.dynamics()) != before[2]
    monkeypatch.undo()
    assert (fingerprint(falls), fingerprint(TASK), fingerprint(furuta.dynamics())) == before
    typed: dict = {}
    exec("sin = lambda x, u: jnp.sin(x[0])\ncos = lambda x, u: jnp.cos(x[0])", {"jnp": np}, typed)
    pair = (lambda x, u: x[0]), (lambda x, u: -x[0])
    slope = fingerprint(Slope())
    monkeypatch.setattr(Slope, "bind", lambda self, task, posterior: task)
    assert fingerprint(Slope()) != slope
    several = [
        *pair, *map(jax.jit, pair), *map(functools.cache, pair), np.sin, np.cos, jax.numpy.sin, jax.numpy.cos,
        typed["sin"], typed["cos"], range(3), range(5), functools.partial(weight, 1), functools.partial(weight, 2),
        numpyro.distributions.Normal(0, 1), numpyro.distributions.Normal(0, 2), {1, 2}, {1, 3},
    ]  # fmt: skip
    assert len(set(map(fingerprint, several))) == len(several)


PRINTS = """
from physppl.internal.fingerprint import fingerprint
from physppl.models import pendulum
print(*map(fingerprint, (pendulum.dynamics(), pendulum.system(), pendulum.swing_up)))
"""


def test_fingerprints_are_the_same_in_every_process():
    def told(seed: str) -> str:
        run = {"capture_output": True, "text": True, "check": True, "env": os.environ | {"PYTHONHASHSEED": seed}}
        return subprocess.run([sys.executable, "-c", PRINTS], **run).stdout

    first = told("1")
    assert first == told("2") and len(first.split()) == 3


LOOP = """
import sys, jax, numpy as np, physppl as pp
from physppl.inference import Laplace
from physppl.models import pendulum
from physppl.planning import ICEM
system, dynamics, whole = pendulum.system(coulomb=0.1), pendulum.dynamics(), sys.argv[1] == "swing-up"
task = pendulum.swing_up if whole else pp.Task(pendulum.swing_up.reward, steps=15)
planner, episodes = (ICEM(), 8) if whole else (ICEM(10, population=20), 20)
for folder in sys.argv[2:]:  # one loop after the other
    run = pp.psrl(jax.random.key(0), system, task, dynamics, Laplace(), planner, episodes, checkpoints=folder)
    leaves = jax.tree.leaves((run.episodes, run.posterior, run.data, run.entropy))
    np.savez(folder + ".npz", *map(np.asarray, leaves))
"""


def started(what: str, *folders) -> subprocess.Popen:
    """Loops in a process of their own: swing-ups, or short episodes."""
    return subprocess.Popen([sys.executable, "-c", LOOP, what, *map(str, folders)], stderr=subprocess.DEVNULL)


def killed(folder, seconds: float | None) -> bool:
    """Runs a loop of swing-ups; whether it was over before it was killed."""
    process = started("swing-up", folder)
    try:
        assert process.wait(seconds) == 0, "the loop failed by itself"
        return True
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return False


def contents(path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays]


@pytest.mark.science
def test_twenty_kills_change_nothing(tmp_path):
    """SIGKILL at 20 random moments, of one loop and its successors and of loops begun anew."""
    start = time.perf_counter()
    assert killed(tmp_path / "whole", None)
    lasts = time.perf_counter() - start
    whole, rng, kills, attempt = contents(tmp_path / "whole.npz"), np.random.default_rng(0), 0, 0
    while kills < 20:
        folder = tmp_path / f"loop{attempt}"
        while not killed(folder, rng.uniform(0.1, 1.1) * lasts):
            kills += 1
        attempt += 1
        for ours, expected in zip(contents(f"{folder}.npz"), whole, strict=True):
            assert np.array_equal(ours, expected)
    assert attempt >= 2


def test_a_kill_changes_nothing(tmp_path):
    """One, as soon as the second episode is there; what goes on, in another process, ends as what was never killed."""
    process = started("short", tmp_path / "killed")
    while not (tmp_path / "killed" / "episode_0002.npz").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "episode_0020.npz").exists()
    assert started("short", tmp_path / "killed", tmp_path / "whole").wait() == 0
    pairs = zip(contents(tmp_path / "killed.npz"), contents(tmp_path / "whole.npz"), strict=True)
    assert all(np.array_equal(ours, expected) for ours, expected in pairs)
