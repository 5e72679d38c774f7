"""How fast an agent acts: whole episodes of the 10 ms cart-pole against the clock on the wall."""

import time

import jax
import numpy as np
import pytest

import physppl as pp
from physppl.inference import Laplace
from physppl.models import quanser_cartpole
from physppl.planning import ICEM, RandomPolicy

DT = 0.01
REAL_TIME = 2.0  # times faster than the machine, at least


@pytest.fixture(scope="module")
def data():
    system, task = quanser_cartpole.system(DT, measurement_sd=0.01), quanser_cartpole.swing_up(DT)
    seen = pp.episode(jax.random.key(0), system, task, RandomPolicy(), system.transition)
    return pp.Transitions.from_trajectory(seen.states, seen.actions)


@pytest.mark.parametrize("linearised", [False, True], ids=["nonlinear", "linearised"])
def test_an_episode_is_twice_as_fast_as_the_machine(benchmark, data, linearised):
    """256 control steps of ICEM at population 200, 3 iterations, horizon 40; linearised draws are shown, not judged."""
    belief = pp.fit(jax.random.key(1), quanser_cartpole.dynamics(dt=DT), data, Laplace(linearised=linearised))
    draw = belief.draw(jax.random.key(2))
    system, task = quanser_cartpole.system(DT, measurement_sd=0.01), quanser_cartpole.swing_up(DT)
    act = lambda: jax.block_until_ready(pp.episode(jax.random.key(3), system, task, ICEM(horizon=40), draw))  # noqa: E731
    act()
    seconds = []

    def measured():
        for _ in range(5):
            start = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - start)

    benchmark.pedantic(measured, rounds=1)
    speed = DT * task.steps / float(np.median(seconds))
    benchmark.extra_info |= {"times real time": speed, "seconds": float(np.median(seconds))}
    print(f"\n{benchmark.name}: {np.median(seconds):.2f} s for {DT * task.steps:.2f} s, {speed:.1f} times real time")
    assert linearised or speed >= REAL_TIME
