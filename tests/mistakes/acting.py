"""Mistakes in planners, tasks, machines and loops."""

import jax
import numpy as np

import physppl as pp
from mistakes.common import bind, data, state, x
from mistakes.entry import Mistake
from physppl.control.gym import GymSystem
from physppl.inference import Laplace
from physppl.models import furuta
from physppl.planning import ICEM, MPPI, Multisine, RandomPolicy, RandomShooting, Spline

NO_PLANNER = "NumPyro has no planners"
NO_LOOP = "NumPyro has no machines and loops"
key = jax.random.key(0)
task = pp.Task(lambda x, u: -(x[0] ** 2), steps=3)


def loop(episodes=1, **changed):
    """One short loop, with some arguments changed."""
    truth = bind().transition({"mass": 1.0}, 0.01)
    arguments = {"system": pp.SimulatedSystem(truth, [0.0, 0.0]), "task": task, "dynamics": bind()}
    arguments |= {"backend": Laplace(starts=2), "planner": RandomPolicy(), "data": data()} | changed
    return pp.psrl(key, **arguments, episodes=episodes)


def rewarded_by_an_array():
    truth = bind().transition({"mass": 1.0})
    system, planner = pp.SimulatedSystem(truth, [0.0, 0.0]), RandomShooting(horizon=2, population=4)
    pp.episode(key, system, pp.Task(lambda x, u: -(u**2), steps=3), planner, truth)


class Silent(pp.HostSystem):
    """A machine whose sensor fails."""

    batch = 1

    def reset(self, seed):
        return np.full((1, 2), np.nan)

    def step(self, actions):
        return pp.HostStep(np.zeros((1, 2)), None, np.zeros(1, bool), np.zeros(1, bool))


def on_silent():
    system = Silent()
    system.dynamics = bind()
    return pp.episode(key, system, task, RandomPolicy(), bind().transition({"mass": 1.0}))


def gym(name="Pendulum-v1", **options):
    return lambda: GymSystem(name, bind(), **options)


MISTAKES = [
    Mistake(
        "More elites than candidates", lambda: ICEM(population=20, elites=30),
        ("ICEM needs 0 <= keep <= elites <= population; got 6, 30, 20",), None, NO_PLANNER,
    ),
    Mistake(
        "A planner that looks no step ahead", lambda: RandomShooting(horizon=0),
        ("RandomShooting needs horizon >= 1", "got 0"), None, NO_PLANNER,
    ),
    Mistake(
        "A horizon as text, from a configuration file", lambda: RandomShooting(horizon="30"),
        ("RandomShooting: horizon must be a whole number; got '30'",), None, NO_PLANNER,
    ),
    Mistake(
        "A temperature of zero", lambda: MPPI(temperature=0.0), ("MPPI needs temperature > 0", "got 0.0"),
        None, NO_PLANNER,
    ),
    Mistake(
        "More knots of a spline than steps", lambda: ICEM(horizon=5, proposal=Spline(6)),
        ("6 knots for 5 steps", "Take fewer knots"), None, NO_PLANNER,
    ),
    Mistake(
        "An excitation in Hz, beyond half the sampling rate", lambda: Multisine(low=1.0, high=5.0),
        ("0 < low <= high < 0.5 cycles per step (Hz times dt)",), None, NO_PLANNER,
    ),
    Mistake(
        "A reward that is an array", rewarded_by_an_array,
        ("reward must return a scalar; got shape (1,)", "write action[0]"),
        None, NO_PLANNER,
    ),
    Mistake(
        "An episode of no steps", lambda: pp.Task(lambda x, u: x[0], steps=0), ("steps must be at least 1; got 0",),
        None, NO_LOOP,
    ),
    Mistake(
        "A reward function in place of a task", lambda: loop(task=lambda x, u: -(x[0] ** 2)),
        ("`task` must be an object such as Task(reward, steps=200); got function",), None, NO_LOOP,
    ),
    Mistake(
        "Backend and planner in each other's place", lambda: loop(backend=RandomPolicy(), planner=Laplace()),
        ("`backend` must be an object such as Laplace(); got RandomPolicy",), None, NO_LOOP,
    ),
    Mistake(
        "A planner's class, `ICEM` for `ICEM()`", lambda: loop(planner=ICEM),
        ("`planner` must be an object such as ICEM(); got the class ICEM",), None, NO_PLANNER,
    ),
    Mistake(
        "Half an episode", lambda: loop(episodes=1.5), ("episodes must be a whole number of at least 1; got 1.5",),
        None, NO_LOOP,
    ),
    Mistake(
        "Limits of a coordinate the wrong way round", lambda: pp.Limits(state, angle=(1.0, -1.0)),
        ("Limits: angle needs low < high; got 1.0 and -1.0",),
        lambda: f"{np.mean((x[:, 0] > 1.0) & (x[:, 0] < -1.0)):.0%} of the states count as inside",
    ),
    Mistake(
        "Limits of a coordinate that does not exist", lambda: pp.Limits(state, anlge=(-1.0, 1.0)),
        ("no coordinate 'anlge'", "Did you mean 'angle'"), None, NO_PLANNER,
    ),
    Mistake(
        "An actuator that acts before its command", lambda: pp.Actuator(delay=-1),
        ("delay must be a whole number of control steps from 0 on; got -1",),
        lambda: f"a delay of -1 acts on {np.roll(np.arange(5), -1)[0]} at step 0",
    ),
    Mistake(
        "A first state of three entries for two coordinates",
        lambda: pp.SimulatedSystem(bind().transition({"mass": 1.0}), np.zeros(3)),
        ("initial_state must be (2,); got (3,)",), None, NO_LOOP,
    ),
    Mistake(
        "A machine at 0.05 s and an agent at 0.1 s", lambda: loop(dynamics=bind(dt=0.1), data=None),
        ("dt, s, and those of the agent's dynamics differ: 0.05 and 0.1", "Build both with the same values"),
        None, NO_LOOP,
    ),
    Mistake(
        "A change of a parameter that the machine has not", lambda: furuta.system(0.01).changed(pendulum_mgll=0.03),
        ("pendulum_mgll", "Did you mean 'pendulum_mgl'"), None, NO_LOOP,
    ),
    Mistake(
        "A sensor that gives NaN when an episode begins", on_silent,
        ("Silent.reset: 'angle' is nan at the beginning", "until the sensor has a reading"), None, NO_LOOP,
    ),
    Mistake(
        "An environment with discrete actions", gym("CartPole-v1"),
        ("actions are Discrete(2); planners need continuous ones", "TransformAction"), None, NO_LOOP,
    ),
    Mistake(
        "An environment whose observation is no state", gym(),
        ("observations have shape (3,), the state is (2,) (angle, velocity)", "from_observation"), None, NO_LOOP,
    ),
    Mistake(
        "An environment whose step lasts another time",
        lambda: GymSystem("Pendulum-v1", bind(dt=0.1), from_observation=lambda o: o[:2]),
        ("a step of the environment lasts 0.05 s, one of the dynamics 0.1 s", "dt=0.05"), None, NO_LOOP,
    ),
]  # fmt: skip
